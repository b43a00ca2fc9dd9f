"""The metadata of a GGUF file as the fields of a config.json.

llama.cpp's converters write a config.json under other names. `_KEYS` maps the names, and the rest
is what llama.cpp's code knows of an architecture and the file does not say. `hf_config.read_config`
checks the result as it checks a config.json.

Keys: https://github.com/ggml-org/ggml/blob/master/docs/gguf.md
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np

from ixjax.gguf_file import GgufFile, open_gguf
from ixjax.io import InputError
from ixjax.models.hf_fields import Fields
from ixjax.models.rotary import scale_frequencies

ARCHITECTURE, KIND = "general.architecture", "general.type"
# llama.cpp's architectures and the `model_type` of transformers. Mistral's models are "llama".
MODEL_TYPES = {
    "llama": "llama",
    "qwen2": "qwen2",
    "qwen3": "qwen3",
    "gemma2": "gemma2",
    "gemma3": "gemma3_text",
}
_KEYS = {  # config.json's field -> key after the name of the architecture
    "max_position_embeddings": "context_length",
    "hidden_size": "embedding_length",
    "num_hidden_layers": "block_count",
    "num_attention_heads": "attention.head_count",
    "num_key_value_heads": "attention.head_count_kv",
    "head_dim": "attention.key_length",
    "intermediate_size": "feed_forward_length",
    "vocab_size": "vocab_size",
    "rms_norm_eps": "attention.layer_norm_rms_epsilon",
    "rope_theta": "rope.freq_base",
    "rope_local_base_freq": "rope.freq_base_swa",
    "sliding_window": "attention.sliding_window",
    "sliding_window_pattern": "attention.sliding_window_pattern",
    "attn_logit_softcapping": "attn_logit_softcapping",
    "final_logit_softcapping": "final_logit_softcapping",
    # of rope_scaling
    "rope_type": "rope.scaling.type",
    "factor": "rope.scaling.factor",
}
# Keys that would change the network, with the only supported value.
_MUST_BE = {
    "expert_count": 0,
    "attention.causal": True,
    "attention.scale": 0.0,
    "logit_scale": 0.0,
    "embedding_scale": 0.0,
    "residual_scale": 0.0,
    "rope.scale_linear": 1.0,  # of files before rope.scaling
}
_SPECIAL_IDS = {
    "bos_token_id": "tokenizer.ggml.bos_token_id",
    "eos_token_id": "tokenizer.ggml.eos_token_id",
}
# Models that divide attention scores by another root than that of the head's width; llama.cpp
# knows them by their number of layers: Gemma 2 27B and Gemma 3 27B.
_WIDE_SCALE = {("gemma2", 46), ("gemma3", 62)}
EMBEDDING, HEAD, ROPE_FREQS = "token_embd.weight", "output.weight", "rope_freqs.weight"
# Every Llama 3 has these; the file stores the frequencies' divisors that they imply.
LLAMA3_LOW, LLAMA3_HIGH, LLAMA3_ORIGINAL = 1.0, 4.0, 8192


def read_metadata(path: Path) -> Fields:
    """Return the metadata of a GGUF file under config.json's names.

    Raises:
        InputError: the file can't be read, or its architecture is not supported.
    """
    file = open_gguf(path)
    name = file.get(ARCHITECTURE, str)
    if name not in MODEL_TYPES:
        raise file.error(ARCHITECTURE, f"one of the supported: {', '.join(MODEL_TYPES)}")
    if file.get(KIND, str, "model") != "model":
        raise file.error(KIND, "'model'")
    for key, supported in _MUST_BE.items():
        if file.metadata.get(f"{name}.{key}", supported) != supported:
            raise file.error(f"{name}.{key}", f"{supported}, the only one supported")
    keys = {field: f"{name}.{key}" for field, key in _KEYS.items()} | _SPECIAL_IDS
    keys["model_type"] = ARCHITECTURE
    values = {field: file.metadata[key] for field, key in keys.items() if key in file.metadata}
    values["model_type"] = MODEL_TYPES[name]
    keys["layer_types"] = keys["sliding_window_pattern"]
    fields = Fields(str(path), values, keys)
    fields.number("rms_norm_eps")  # config.json has a default, GGUF has none
    if fields.integer("num_hidden_layers") > len(file.tensors):  # a damaged count would be slow
        raise fields.error("num_hidden_layers", f"at most {len(file.tensors)}, the file's tensors")
    values.update(_implied(file, name, fields))
    return fields


def _implied(file: GgufFile, name: str, fields: Fields) -> dict[str, Any]:
    """Return the fields that follow from others, from tensors, or from the architecture."""
    hidden, heads = fields.integer("hidden_size"), fields.integer("num_attention_heads")
    head_dim = fields.integer("head_dim", max(hidden // heads, 1))
    for key in ("rope.dimension_count", "attention.value_length"):
        if file.metadata.get(f"{name}.{key}", head_dim) != head_dim:
            raise file.error(f"{name}.{key}", f"{head_dim}, the width of a head")
    values: dict[str, Any] = {
        "num_key_value_heads": fields.values.get("num_key_value_heads", heads),
        "rope_theta": fields.number("rope_theta", 10000.0),
        "tie_word_embeddings": HEAD not in file.tensors,
        "rope_scaling": _rope_scaling(file, fields, head_dim)
        if name == "llama"
        else _linear(fields),
    }
    if "head_dim" in fields.values or hidden % heads == 0:  # else refused by `read_config`
        values["head_dim"] = head_dim
    if EMBEDDING in file.tensors:
        values["vocab_size"] = fields.integer("vocab_size", file.tensors[EMBEDDING].shape[0])
    if name == "llama" and fields.values.get("sliding_window"):
        values["model_type"] = "mistral"
    if name.startswith("gemma"):
        wide = (name, fields.integer("num_hidden_layers")) in _WIDE_SCALE
        values["query_pre_attn_scalar"] = hidden // heads if wide else head_dim
        values |= _local_layers(fields)
    return values


def _local_layers(fields: Fields) -> dict[str, Any]:
    """Return the local layers of a Gemma, if the file lists them."""
    fields.integer("sliding_window")
    pattern = fields.values.get("sliding_window_pattern")
    if not isinstance(pattern, list):
        return {}  # a period, or the architecture's own
    return {
        "layer_types": ["sliding_attention" if local else "full_attention" for local in pattern]
    }


def _linear(fields: Fields) -> dict[str, Any] | None:
    """Return the scaling that the metadata name; `read_config` refuses others than linear."""
    kind = fields.values.get("rope_type", "none")
    if kind == "none":
        return None
    return {name: fields.values[name] for name in ("rope_type", "factor") if name in fields.values}


def _rope_scaling(file: GgufFile, fields: Fields, head_dim: int) -> dict[str, Any] | None:
    """Return the scaling of a Llama, which a tensor of divisors describes since Llama 3.1.

    Raises:
        InputError: the divisors are not those of Llama 3.
    """
    if ROPE_FREQS not in file.tensors:
        return _linear(fields)
    stored = file.tensors[ROPE_FREQS]
    if (stored.kind, stored.shape) != ("F32", (head_dim // 2,)):
        raise InputError(
            f"{file.path}: tensor {ROPE_FREQS} has type {stored.kind} and shape "
            f"{list(stored.shape)}; expected F32 and [{head_dim // 2}]"
        )
    found = stored.dequantized()
    factor = round(float(found.max()), 4)  # the division that made it was rounded
    scaling = (factor, LLAMA3_LOW, LLAMA3_HIGH, LLAMA3_ORIGINAL)
    theta = fields.number("rope_theta", 10000.0)
    frequencies = theta ** -(np.arange(0, head_dim, 2, dtype=np.float32) / head_dim)
    expected = np.asarray(frequencies / scale_frequencies(jnp.asarray(frequencies), scaling))
    if not np.allclose(found, expected, rtol=1e-4):
        raise InputError(
            f"{file.path}: tensor {ROPE_FREQS} has values up to {factor:g}; expected the divisors "
            f"of frequencies of Llama 3 (low_freq_factor {LLAMA3_LOW:g}, high_freq_factor "
            f"{LLAMA3_HIGH:g}, {LLAMA3_ORIGINAL} positions)"
        )
    return {
        "rope_type": "llama3",
        "factor": factor,
        "low_freq_factor": LLAMA3_LOW,
        "high_freq_factor": LLAMA3_HIGH,
        "original_max_position_embeddings": LLAMA3_ORIGINAL,
    }
