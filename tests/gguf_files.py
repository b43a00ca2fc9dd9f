"""Small GGUF files, written with PyPI's `gguf` as llama.cpp's converter writes them."""

from __future__ import annotations

import json
from pathlib import Path

import gguf
import numpy as np
from gguf import GGMLQuantizationType, GGUFWriter
from safetensors.numpy import load_file

KINDS = (
    "F32",
    "F16",
    "BF16",
    "Q8_0",
    "Q4_0",
    "Q4_1",
    "Q5_0",
    "Q5_1",
    "Q2_K",
    "Q3_K",
    "Q4_K",
    "Q5_K",
    "Q6_K",
)
# Of each K-quant (ggml-common.h): bytes at which a block's float16 scales begin, and the largest
# integer that they multiply.
SCALES = {
    "Q2_K": ((80, 82), 15 * 3),
    "Q3_K": ((108,), 32 * 4),
    "Q4_K": ((0, 2), 63 * 15),
    "Q5_K": ((0, 2), 63 * 31),
    "Q6_K": ((208,), 128 * 32),
}
MODEL_TYPES = {"mistral": "llama", "gemma3_text": "gemma3"}  # others have the same name


def quantized(values: np.ndarray, kind: str, rng: np.random.Generator) -> np.ndarray:
    """Return `values` quantised; a K-quant, which `gguf` only reads, has random bytes instead."""
    number = GGMLQuantizationType[kind]
    if kind not in SCALES:
        return gguf.quantize(values, number)
    block, block_bytes = gguf.GGML_QUANT_SIZES[number]
    blocks = rng.integers(0, 256, (values.size // block, block_bytes), dtype=np.uint8)
    places, largest = SCALES[kind]
    for at in places:
        scales = (rng.uniform(0.1, 0.3, len(blocks)) / largest).astype(np.float16)
        blocks[:, at : at + 2] = scales.view(np.uint8).reshape(-1, 2)
    return blocks.reshape(*values.shape[:-1], -1)


def heads_of(architecture: str, head_dim: int) -> tuple[int, int]:
    """Return the heads of queries, and of keys; transformers reads no wide Qwen2."""
    heads = 256 // head_dim * (1 if architecture == "qwen2" else 2)
    return heads, heads // 2


def tiny_tensors(architecture: str, *, head_dim: int, tied: bool, vocabulary: int, seed: int = 0):
    """Return the tensors of a decoder of two layers and width 256."""
    rng = np.random.default_rng(seed)
    hidden, inner = 256, 512
    heads, kv_heads = heads_of(architecture, head_dim)
    shapes = {"token_embd.weight": (vocabulary, hidden), "output_norm.weight": (hidden,)}
    if not tied:
        shapes["output.weight"] = (vocabulary, hidden)
    for layer in range(2):
        block = {
            "attn_norm.weight": (hidden,),
            "ffn_norm.weight": (hidden,),
            "attn_q.weight": (heads * head_dim, hidden),
            "attn_k.weight": (kv_heads * head_dim, hidden),
            "attn_v.weight": (kv_heads * head_dim, hidden),
            "attn_output.weight": (hidden, heads * head_dim),
            "ffn_gate.weight": (inner, hidden),
            "ffn_up.weight": (inner, hidden),
            "ffn_down.weight": (hidden, inner),
        }
        if architecture == "qwen2":
            for name, width in (("q", heads), ("k", kv_heads), ("v", kv_heads)):
                block[f"attn_{name}.bias"] = (width * head_dim,)
        if architecture == "qwen3":
            block |= {"attn_q_norm.weight": (head_dim,), "attn_k_norm.weight": (head_dim,)}
        shapes |= {f"blk.{layer}.{name}": shape for name, shape in block.items()}
    values = {name: rng.standard_normal(shape).astype(np.float32) for name, shape in shapes.items()}
    return {
        name: 1 + 0.1 * value if "norm" in name else 0.1 * value for name, value in values.items()
    }


def tiny_metadata(architecture: str, *, head_dim: int, vocabulary: int) -> dict[str, int | float]:
    heads, kv_heads = heads_of(architecture, head_dim)
    return {
        f"{architecture}.{key}": value
        for key, value in {
            "context_length": 512,
            "embedding_length": 256,
            "block_count": 2,
            "feed_forward_length": 512,
            "attention.head_count": heads,
            "attention.head_count_kv": kv_heads,
            "attention.key_length": head_dim,
            "attention.value_length": head_dim,
            "rope.dimension_count": head_dim,
            "attention.layer_norm_rms_epsilon": 1e-5,
            "rope.freq_base": 10000.0,
            "vocab_size": vocabulary,
        }.items()
    }


def write_gguf(path: Path, architecture: str, metadata, tensors, kinds=(), tokenizer=None) -> Path:
    """Write a file.

    Args:
        path: the file.
        architecture: llama.cpp's name.
        metadata: integers, numbers, texts and lists of them.
        tensors: float32 values by llama.cpp's names.
        kinds: quantisations of the tensors of two axes, in turn; none: float32.
        tokenizer: further metadata.
    """
    writer, rng, number = GGUFWriter(path, architecture), np.random.default_rng(1), 0
    for key, value in {**metadata, **(tokenizer or {})}.items():
        if isinstance(value, bool):
            writer.add_bool(key, value)
        elif isinstance(value, int):
            writer.add_uint32(key, value)
        elif isinstance(value, float):
            writer.add_float32(key, value)
        elif isinstance(value, str):
            writer.add_string(key, value)
        else:
            writer.add_array(key, value)
    for name, values in tensors.items():
        if kinds and values.ndim > 1:
            kind, number = kinds[number % len(kinds)], number + 1
            raw = quantized(values, kind, rng)
            writer.add_tensor(name, raw, raw_dtype=GGMLQuantizationType[kind])
        else:
            writer.add_tensor(name, values)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def write_tiny(
    path: Path, architecture: str, *, kinds=(), tied=True, tokenizer=None, seed=0, **changes
) -> Path:
    """Write a random decoder; `changes` replace metadata (None removes one), dots as `__`."""
    head_dim = 128 if architecture == "qwen3" else 64  # transformers reads no other of a Qwen3
    vocabulary = len((tokenizer or {}).get("tokenizer.ggml.tokens", range(40)))
    metadata = tiny_metadata(architecture, head_dim=head_dim, vocabulary=vocabulary)
    for name, value in changes.items():
        metadata[f"{architecture}.{name.replace('__', '.')}"] = value
    metadata = {key: value for key, value in metadata.items() if value is not None}
    tensors = tiny_tensors(
        architecture, head_dim=head_dim, tied=tied, vocabulary=vocabulary, seed=seed
    )
    return write_gguf(path, architecture, metadata, tensors, kinds, tokenizer)


def convert_folder(folder: Path, path: Path, *, extra=None) -> Path:
    """Write a Hugging Face folder of one file as GGUF: llama.cpp's `convert_hf_to_gguf.py`."""
    config = json.loads((folder / "config.json").read_text())
    architecture = MODEL_TYPES.get(config["model_type"], config["model_type"])
    heads, kv_heads = config["num_attention_heads"], config["num_key_value_heads"]
    head_dim = config.get("head_dim") or config["hidden_size"] // heads
    by_name = {name: number for number, name in gguf.MODEL_ARCH_NAMES.items()}
    names = gguf.get_tensor_name_map(by_name[architecture], config["num_hidden_layers"])
    tensors = {}
    for name, values in load_file(folder / "model.safetensors").items():
        if architecture == "llama" and name.endswith(("q_proj.weight", "k_proj.weight")):
            count = heads if "q_proj" in name else kv_heads
            values = (
                values.reshape(count, 2, -1, values.shape[1]).swapaxes(1, 2).reshape(values.shape)
            )
        if architecture.startswith("gemma") and name.endswith("norm.weight"):
            values = values + 1
        mapped = names.get_name(name, (".weight", ".bias"))
        tensors[mapped] = values
    rope = config.get("rope_parameters") or {}
    rope = rope.get("full_attention", rope)
    metadata = {
        "context_length": config["max_position_embeddings"],
        "embedding_length": config["hidden_size"],
        "block_count": config["num_hidden_layers"],
        "feed_forward_length": config["intermediate_size"],
        "attention.head_count": heads,
        "attention.head_count_kv": kv_heads,
        "attention.key_length": head_dim,
        "attention.value_length": head_dim,
        "attention.layer_norm_rms_epsilon": config["rms_norm_eps"],
        "rope.freq_base": float(rope["rope_theta"]),
        "attention.sliding_window": config.get("sliding_window"),
        "attn_logit_softcapping": config.get("attn_logit_softcapping"),
        "final_logit_softcapping": config.get("final_logit_softcapping"),
    }
    if rope.get("rope_type") == "linear":
        metadata |= {"rope.scaling.type": "linear", "rope.scaling.factor": rope["factor"]}
    metadata = {f"{architecture}.{k}": v for k, v in metadata.items() if v is not None}
    return write_gguf(path, architecture, metadata, {**tensors, **(extra or {})})


def tokenizer_metadata(tokenizer, pre: str, **changes) -> dict:
    """Return a byte-level Hugging Face tokenizer as llama.cpp's converter stores it."""
    described = json.loads(tokenizer.backend_tokenizer.to_str())
    size = len(tokenizer)
    tokens = tokenizer.convert_ids_to_tokens(range(size))
    added = {token["id"]: token["special"] for token in described["added_tokens"]}
    types = [1 if i not in added else 3 if added[i] else 4 for i in range(size)]
    named = {"bos": tokenizer.bos_token_id, "eos": tokenizer.eos_token_id}
    named |= {"padding": tokenizer.pad_token_id}
    metadata = {
        "model": "gpt2",
        "pre": pre,
        "tokens": tokens,
        "token_type": types,
        "merges": [" ".join(pair) for pair in described["model"]["merges"]],
        "add_bos_token": False,
        **{f"{name}_token_id": number for name, number in named.items() if number is not None},
    }
    found = {f"tokenizer.ggml.{name}": value for name, value in metadata.items()}
    found |= {"tokenizer.chat_template": tokenizer.chat_template, **changes}
    return {key: value for key, value in found.items() if value is not None}
