"""GGUF files give transformers' own logits, and a wrong file is refused by key or tensor."""

from __future__ import annotations

import math
import shutil
import struct
from pathlib import Path

import jax
import numpy as np
import pytest
from flax import nnx

from ixjax.gguf_file import open_gguf
from ixjax.io import InputError
from ixjax.models import check_hf, load_hf, save_hf
from ixjax.models.hf_config import read_config
from tests.gguf_files import KINDS, convert_folder, write_tiny
from tests.models.families import (
    LINEAR,
    TOKENS,
    make_checkpoint,
    torch,
    torch_logits,
    transformers,
)


def reference(path: Path) -> transformers.PreTrainedModel:
    """Return transformers' own reading of a file, dequantised."""
    return transformers.AutoModelForCausalLM.from_pretrained(
        path.parent, gguf_file=path.name, dtype=torch.float32, attn_implementation="eager"
    )


def logits_of(model: transformers.PreTrainedModel, tokens: np.ndarray) -> np.ndarray:
    with torch.no_grad():
        return model(torch.tensor(tokens)).logits.numpy()


@pytest.mark.parametrize(
    ("architecture", "tied"), [("llama", True), ("qwen2", False), ("qwen3", True)]
)
def test_every_quantisation_gives_the_logits_of_transformers(architecture, tied, tmp_path):
    path = write_tiny(tmp_path / "m.gguf", architecture, kinds=KINDS, tied=tied)
    kinds = {tensor.kind for tensor in open_gguf(path).tensors.values()}
    assert kinds == set(KINDS)
    model, expected = load_hf(path, dtype="float32"), logits_of(reference(path), TOKENS)
    assert model.config.tie_embeddings == tied
    assert np.abs(expected).max() > 0.5
    np.testing.assert_allclose(jax.jit(model.__call__)(TOKENS), expected, atol=1e-4)


# Checkpoints whose every setting GGUF can express; the reference is the folder they come from.
FOLDERS = {
    "llama-wide-heads-linear": ("llama", {"head_dim": 10, "rope_parameters": LINEAR}),
    "mistral-window": ("mistral", {"num_key_value_heads": 2, "sliding_window": 8}),
    "qwen2": ("qwen2", {"num_key_value_heads": 2}),
    "qwen3": ("qwen3", {"num_key_value_heads": 2, "head_dim": 8}),
    "gemma2": (
        "gemma2",
        {
            "num_key_value_heads": 2,
            "head_dim": 8,
            "sliding_window": 8,
            "query_pre_attn_scalar": 8,
        },
    ),
    "gemma3": (
        "gemma3_text",
        {
            "num_key_value_heads": 2,
            "head_dim": 8,
            "sliding_window": 8,
            "num_hidden_layers": 7,
            "query_pre_attn_scalar": 8,
        },
    ),
}


@pytest.mark.parametrize("case", FOLDERS)
def test_a_converted_folder_is_the_same_model(case, tmp_path):
    folder = make_checkpoint(tmp_path / "hf", *FOLDERS[case])
    path = convert_folder(folder, tmp_path / "m.gguf")
    assert read_config(path) == read_config(folder / "config.json")
    model = load_hf(path, dtype="float32")
    np.testing.assert_allclose(jax.jit(model.__call__)(TOKENS), torch_logits(folder), atol=2e-4)


# Llama 3.1's scaling. Heads of 64 have frequencies that are kept, stretched and in between.
LLAMA3 = {
    "rope_type": "llama3",
    "rope_theta": 500000.0,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 8192,
}
LLAMA3_CHANGES = {"num_key_value_heads": 2, "head_dim": 64, "rope_parameters": LLAMA3}


def llama3_divisors(changes: dict) -> np.ndarray:
    """Return `rope_freqs.weight`, from the frequencies that transformers computes."""
    config = transformers.LlamaConfig(**{**changes, "max_position_embeddings": 131072})
    scaled, _ = transformers.modeling_rope_utils.ROPE_INIT_FUNCTIONS["llama3"](config, "cpu")
    plain = 500000.0 ** -(torch.arange(0, 64, 2) / 64)
    return (plain / scaled).numpy()


def test_divisors_of_frequencies_are_the_scaling_of_llama_3(tmp_path):
    folder = make_checkpoint(tmp_path / "hf", "llama", LLAMA3_CHANGES)
    divisors = llama3_divisors(LLAMA3_CHANGES)
    assert len(set(divisors.round(3))) > 3  # between 1 and 8, too
    path = convert_folder(folder, tmp_path / "m.gguf", extra={"rope_freqs.weight": divisors})
    assert read_config(path).rope_scaling == (8.0, 1.0, 4.0, 8192)
    assert read_config(path) == read_config(folder / "config.json")
    model = load_hf(path, dtype="float32")
    np.testing.assert_allclose(jax.jit(model.__call__)(TOKENS), torch_logits(folder), atol=2e-4)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_parts_of_a_mesh_are_those_of_one_device(dtype, tmp_path):
    from ixjax.parallel import MeshConfig, make_mesh

    path = write_tiny(tmp_path / "m.gguf", "llama", kinds=KINDS)
    one = load_hf(path, dtype=dtype)
    split = load_hf(path, dtype=dtype, mesh=make_mesh(MeshConfig(data=1, fsdp=2, tensor=4)))
    jax.tree.map(np.testing.assert_array_equal, jax.device_get(one), jax.device_get(split))


def test_a_checkpoint_without_architectures_goes_by_its_model_type(tmp_path):
    from tests.models.families import edit_config

    folder = make_checkpoint(tmp_path, "qwen2", {"num_key_value_heads": 2})
    expected = read_config(folder / "config.json")
    edit_config(folder, architectures=None)
    assert read_config(folder / "config.json") == expected


@pytest.mark.slow
def test_smollm2_gives_the_logits_of_transformers(smollm2):
    # Logits reach 30, and rounding in float32 makes 2e-4 of them over 30 layers.
    tokens = np.random.default_rng(0).integers(0, 49152, (1, 12))
    graph, params = nnx.split(load_hf(smollm2, dtype="float32"))  # constants compile for minutes
    found = jax.jit(lambda params, tokens: nnx.merge(graph, params)(tokens))(params, tokens)
    np.testing.assert_allclose(found, logits_of(reference(smollm2), tokens), atol=4e-4)


@pytest.mark.slow
def test_smollm2_is_exported_as_a_folder(smollm2, tmp_path):
    from ixjax.dialogue import load_tokenizer

    save_hf(load_hf(smollm2, dtype="bfloat16"), tmp_path, load_tokenizer(smollm2))
    loaded = transformers.AutoModelForCausalLM.from_pretrained(tmp_path, dtype=torch.float32)
    rounded = reference(smollm2).to(torch.bfloat16).to(torch.float32)
    found = dict(loaded.named_parameters())
    for name, expected in rounded.named_parameters():
        torch.testing.assert_close(found[name], expected, atol=0, rtol=0)
    tokenizer = transformers.AutoTokenizer.from_pretrained(tmp_path)
    text = tokenizer.apply_chat_template([{"role": "user", "content": "hi"}], tokenize=False)
    assert text.endswith("<|im_start|>user\nhi<|im_end|>\n")
    assert tokenizer(text)["input_ids"] == load_tokenizer(smollm2)(text)["input_ids"]


# Refusals


def truncated(path: Path) -> Path:
    path.write_bytes(path.read_bytes()[:-100])
    return path


def replaced(path: Path, old: bytes, new: bytes) -> Path:
    content = path.read_bytes()
    assert old in content
    path.write_bytes(content.replace(old, new, 1))
    return path


def tiny(path: Path, architecture: str = "llama", **changes) -> Path:
    return write_tiny(path, architecture, **changes)


REFUSED = {
    "missing": (lambda path: path, "no such file; expected a GGUF checkpoint"),
    "empty": (lambda path: path.write_bytes(b"") and path, r"ends inside the magic \(byte 0\)"),
    "no GGUF": (
        lambda path: path.write_bytes(b"PK\3\4" + bytes(64)) and path,
        r"begins with b'PK.*; expected a GGUF file \(b'GGUF'\)",
    ),
    "big-endian": (
        lambda path: path.write_bytes(b"GGUF\0\0\0\3" + bytes(64)) and path,
        "GGUF version is 50331648; expected 2 or 3",
    ),
    "short header": (
        lambda path: tiny(path).write_bytes(path.read_bytes()[:200]) and path,
        r"ends inside .* \(byte 200\); expected a whole GGUF file",
    ),
    "short data": (
        lambda path: truncated(tiny(path)),
        r"tensor .* ends at byte \d+; expected at most \d+, the size of the file",
    ),
    "architecture": (
        lambda path: replaced(tiny(path), b"llama", b"phi33"),
        "general.architecture is 'phi33'; expected one of the supported: llama, qwen2, qwen3",
    ),
    "no field": (
        lambda path: tiny(path, block_count=None),
        "llama.block_count is nothing; expected a positive integer",
    ),
    "count of layers": (
        lambda path: tiny(path, block_count=10**9),
        "llama.block_count is 1000000000; expected at most 20, the file's tensors",
    ),
    "no epsilon": (
        lambda path: tiny(path, attention__layer_norm_rms_epsilon=None),
        "llama.attention.layer_norm_rms_epsilon is nothing; expected a positive number",
    ),
    "epsilon": (
        lambda path: tiny(path, attention__layer_norm_rms_epsilon=math.nan),
        "llama.attention.layer_norm_rms_epsilon is nan; expected a positive number",
    ),
    "key twice": (
        lambda path: replaced(
            write_tiny(path, "llama", tokenizer={"one.a": 1, "one.b": 2}), b"one.b", b"one.a"
        ),
        "one.a is given twice; expected once",
    ),
    "count of texts": (
        lambda path: replaced(
            write_tiny(path, "llama", tokenizer={"texts": ["a", "b"]}),
            b"texts" + struct.pack("<IIQ", 9, 8, 2),
            b"texts" + struct.pack("<IIQ", 9, 8, 2**40),
        ),
        "texts has 1099511627776 texts; expected no more than fit into the file",
    ),
    "wrong field": (
        lambda path: tiny(path, attention__head_count_kv=3),
        r"llama.attention.head_count_kv is 3; expected a divisor of num_attention_heads \(8\)",
    ),
    "experts": (lambda path: tiny(path, expert_count=8), "llama.expert_count is 8; expected 0"),
    "partial rotation": (
        lambda path: tiny(path, rope__dimension_count=32),
        "llama.rope.dimension_count is 32; expected 64, the width of a head",
    ),
    "scaling": (
        lambda path: tiny(path, rope__scaling__type="yarn", rope__scaling__factor=2.0),
        "llama.rope.scaling.type is 'yarn'; expected one of the supported: default, linear",
    ),
    "part": (
        lambda path: write_tiny(path, "llama", tokenizer={"split.count": 3}),
        "split.count is 3; expected 1: join the parts with `llama-gguf-split --merge`",
    ),
    "adapter": (
        lambda path: write_tiny(path, "llama", tokenizer={"general.type": "adapter"}),
        "general.type is 'adapter'; expected 'model'",
    ),
    "end token": (
        lambda path: write_tiny(path, "llama", tokenizer={"tokenizer.ggml.eos_token_id": 40}),
        "tokenizer.ggml.eos_token_id is 40; expected tokens from 0 to 39",
    ),
    "tensor twice": (
        lambda path: replaced(tiny(path), b"blk.1.attn_q.weight", b"blk.0.attn_q.weight"),
        "tensor blk.0.attn_q.weight is listed twice; expected once",
    ),
    "missing tensor": (
        lambda path: replaced(tiny(path), b"blk.1.attn_q.weight", b"blk.1.attn_z.weight"),
        r"tensor blk.1.attn_q.weight is missing; expected shape \[512, 256\]",
    ),
    "surplus tensor": (
        lambda path: tiny(path, block_count=1),
        "tensor blk.1.attn_k.weight is not part of the model in the metadata",
    ),
    "misshapen tensor": (
        lambda path: tiny(path, feed_forward_length=256),
        r"blk.0.ffn_gate.weight has shape \[512, 256\]; the metadata implies \[256, 256\]",
    ),
}


@pytest.mark.parametrize("case", REFUSED)
def test_a_wrong_file_is_refused_by_key_or_tensor(case, tmp_path):
    make, message = REFUSED[case]
    path = tmp_path / "m.gguf"
    make(path)
    with pytest.raises(InputError, match=message) as error:
        check_hf(path)
    assert str(error.value).startswith(f"{path}: ")


# A tensor in the header: its name, then the number of axes, their sizes, quantisation, offset.
DESCRIPTION = {"axes": 2, "inner": 256, "outer": 512, "kind": 0, "offset": None}


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("axes", 5, "has 5 axes; expected 1 to 4"),
        ("inner", 0, r"has shape \[512, 0\]; expected no 0"),
        ("outer", 2**62, r"ends at byte \d{20,}; expected at most \d+, the size of the file"),
        ("kind", 99, "has quantisation 99; expected one of F32, F16, Q4_0"),
        ("kind", 24, "has type I8; expected one of F32, F16, Q4_0"),
        ("offset", 2**63, r"ends at byte \d{19}; expected at most \d+, the size of the file"),
    ],
)
def test_a_description_that_no_tensor_has_is_refused(field, value, message, tmp_path):
    name, path = "blk.1.ffn_up.weight", write_tiny(tmp_path / "m.gguf", "llama")
    content, form = bytearray(path.read_bytes()), "<IQQIQ"
    at = content.index(name.encode()) + len(name)
    found = dict(zip(DESCRIPTION, struct.unpack_from(form, content, at), strict=True))
    assert {**found, "offset": None} == DESCRIPTION
    struct.pack_into(form, content, at, *{**found, field: value}.values())
    path.write_bytes(content)
    with pytest.raises(InputError, match=f"m.gguf: tensor {name} {message}"):
        check_hf(path)


def test_divisors_of_another_scaling_are_refused(tmp_path):
    folder = make_checkpoint(tmp_path / "hf", "llama", LLAMA3_CHANGES)
    divisors = np.linspace(1, 8, 32, dtype=np.float32)
    path = convert_folder(folder, tmp_path / "m.gguf", extra={"rope_freqs.weight": divisors})
    with pytest.raises(InputError, match=r"rope_freqs.weight has values up to 8; expected the"):
        check_hf(path)
    replaced(path, *(b"rope_freqs.weight" + struct.pack("<IQI", 1, 32, kind) for kind in (0, 26)))
    with pytest.raises(
        InputError, match=r"rope_freqs.weight has type I32 and shape \[32\]; expected F32 "
    ):
        check_hf(path)


def test_a_folder_with_a_file_names_the_file(tmp_path):
    path = write_tiny(tmp_path / "m.gguf", "llama")
    with pytest.raises(InputError, match=r"no config.json, but m.gguf; .*: .*/m\.gguf"):
        check_hf(tmp_path)
    shutil.copy(path, tmp_path / "M.GGUF")
    assert check_hf(tmp_path / "M.GGUF").hidden_size == 256


def test_a_folder_may_have_the_name_of_a_file(tmp_path):
    folder = make_checkpoint(tmp_path / "qwen.gguf", "qwen2", {"num_key_value_heads": 2})
    assert check_hf(folder) == read_config(folder / "config.json")
