"""Small random checkpoints of every family that we read, as transformers writes them."""

from __future__ import annotations

import json
from pathlib import Path

import jax
import numpy as np
import pytest

torch = pytest.importorskip(
    "torch", reason="transformers' models need torch: pip install ixjax[test]"
)
transformers = pytest.importorskip("transformers")

SHAPE = {
    "vocab_size": 40,
    "hidden_size": 24,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 36,
    "max_position_embeddings": 96,
    "pad_token_id": None,
    "bos_token_id": None,
    "eos_token_id": None,
}
LLAMA3 = {
    "rope_type": "llama3",
    "rope_theta": 500.0,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 16,
}
LINEAR = {"rope_type": "linear", "rope_theta": 500.0, "factor": 4.0}
CASES = {
    "llama-mha": ("llama", {"num_key_value_heads": 4, "rms_norm_eps": 1e-4}),
    "llama-gqa-tied": ("llama", {"num_key_value_heads": 2, "tie_word_embeddings": True}),
    "llama-mqa-wide-heads-llama3": (
        "llama",
        {"num_key_value_heads": 1, "head_dim": 10, "rope_parameters": LLAMA3},
    ),
    "llama3-tied-odd-vocabulary": (
        "llama",
        {
            "num_attention_heads": 6,
            "num_key_value_heads": 2,
            "tie_word_embeddings": True,
            "vocab_size": 43,
            "rope_parameters": LLAMA3 | {"factor": 32.0},
        },
    ),
    "llama-linear": ("llama", {"rope_parameters": LINEAR}),
    "qwen2-gqa": ("qwen2", {"num_key_value_heads": 2}),
    "qwen2-tied-narrow-heads": (
        "qwen2",
        {"num_key_value_heads": 1, "head_dim": 4, "tie_word_embeddings": True},
    ),
    "qwen2-upper-layers-local": (
        "qwen2",
        {
            "num_key_value_heads": 2,
            "num_hidden_layers": 3,
            "use_sliding_window": True,
            "sliding_window": 8,
            "max_window_layers": 1,
        },
    ),
    "qwen2-linear-odd-vocabulary": (
        "qwen2",
        {"num_key_value_heads": 4, "vocab_size": 43, "rope_parameters": LINEAR},
    ),
    "qwen3-gqa": ("qwen3", {"num_key_value_heads": 2, "head_dim": 8}),
    "qwen3-tied-odd-vocabulary": (
        "qwen3",
        {"num_key_value_heads": 4, "head_dim": 6, "tie_word_embeddings": True, "vocab_size": 43},
    ),
    "qwen3-upper-layers-local": (
        "qwen3",
        {
            "num_key_value_heads": 1,
            "head_dim": 10,
            "num_hidden_layers": 3,
            "use_sliding_window": True,
            "sliding_window": 8,
            "max_window_layers": 1,
            "rope_parameters": LINEAR,
        },
    ),
    "mistral-window": ("mistral", {"num_key_value_heads": 2, "sliding_window": 8}),
    "mistral-without": ("mistral", {"num_key_value_heads": 1, "sliding_window": None}),
    "mistral-many-layers": (
        "mistral",
        {"num_key_value_heads": 4, "sliding_window": 5, "num_hidden_layers": 9, "head_dim": 4},
    ),
    "mistral-tied-odd-vocabulary": (
        "mistral",
        {
            "num_key_value_heads": 2,
            "head_dim": 8,
            "sliding_window": 12,
            "tie_word_embeddings": True,
            "vocab_size": 43,
            "rope_parameters": LINEAR,
        },
    ),
    "gemma2": ("gemma2", {"num_key_value_heads": 2, "head_dim": 8, "sliding_window": 8}),
    "gemma2-free-uncapped": (
        "gemma2",
        {
            "num_key_value_heads": 1,
            "head_dim": 6,
            "sliding_window": 12,
            "num_hidden_layers": 9,
            "query_pre_attn_scalar": 144,  # with less, float32 differs from float64 by 4e-4
            "attn_logit_softcapping": None,
            "final_logit_softcapping": 2.0,
            "tie_word_embeddings": False,
            "vocab_size": 41,
        },
    ),
    "gemma2-mha-linear": (
        "gemma2",
        {
            "num_key_value_heads": 4,
            "head_dim": 4,
            "sliding_window": 8,
            "num_hidden_layers": 3,
            "rope_parameters": LINEAR,
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
    "gemma3-linear": (
        "gemma3_text",
        {
            "num_key_value_heads": 1,
            "head_dim": 10,
            "sliding_window": 6,
            "layer_types": ["sliding_attention", "full_attention"],
            "rope_parameters": {
                "sliding_attention": {"rope_type": "default", "rope_theta": 100.0},
                "full_attention": LINEAR,
            },
        },
    ),
    "gemma3-mha-untied-odd-vocabulary": (
        "gemma3_text",
        {
            "num_key_value_heads": 4,
            "head_dim": 4,
            "sliding_window": 12,
            "num_hidden_layers": 3,
            "layer_types": ["full_attention", "sliding_attention", "full_attention"],
            "tie_word_embeddings": False,
            "vocab_size": 43,
        },
    ),
}
# One of each family, for tests that take seconds a case.
FAMILIES = (
    "llama-mqa-wide-heads-llama3",
    "qwen2-upper-layers-local",
    "qwen3-gqa",
    "mistral-window",
    "gemma2",
    "gemma3",
)
TOKENS = np.random.default_rng(0).integers(0, 40, (2, 40))


def make_folder(folder: Path, case: str, **save_arguments) -> Path:
    """Write the checkpoint of a case."""
    return make_checkpoint(folder, *CASES[case], **save_arguments)


def make_checkpoint(folder: Path, model_type: str, changes: dict, **save_arguments) -> Path:
    """Write a checkpoint with transformers, every weight random (norms and biases too).

    Embeddings are small relative to the blocks' weights, or each token would predict itself.
    """
    config = transformers.AutoConfig.for_model(model_type, **{**SHAPE, **changes})
    torch.manual_seed(0)
    model = transformers.AutoModelForCausalLM.from_config(config)
    with torch.no_grad():
        for name, weight in model.named_parameters():
            scale = 0.15 if "embed" in name else 0.4
            weight.copy_(scale * torch.randn_like(weight) + ("norm" in name))
    model.save_pretrained(folder, **save_arguments)
    return folder


def torch_logits(folder: Path) -> np.ndarray:
    model = transformers.AutoModelForCausalLM.from_pretrained(
        folder, dtype="auto", attn_implementation="eager"
    )
    with torch.no_grad():
        return model(torch.tensor(TOKENS)).logits.float().numpy()


def edit_config(folder: Path, **changes) -> None:
    """Change fields of config.json; None removes a field."""
    values = json.loads((folder / "config.json").read_text()) | changes
    values = {name: value for name, value in values.items() if value is not None}
    (folder / "config.json").write_text(json.dumps(values))


def architectures(folder: Path) -> list[str]:
    return json.loads((folder / "config.json").read_text())["architectures"]


def weights(model) -> dict[str, np.ndarray]:
    leaves = jax.tree.leaves_with_path(model)
    return {jax.tree_util.keystr(path): np.asarray(leaf) for path, leaf in leaves}


def assert_same_weights(a, b) -> None:
    jax.tree.map(np.testing.assert_array_equal, weights(a), weights(b))
