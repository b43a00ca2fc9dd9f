"""config.json of transformers 4 and 5, read into a `ModelConfig` and written back.

`FAMILIES` lists the architectures that `ixjax.models.transformer` computes and the settings that
would change the network: a value that we do not compute is refused by name, never ignored.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ixjax.io import InputError, read_json
from ixjax.models.config import DType, ModelConfig

CONFIG = "config.json"
LONGEST_DEFAULT = 4096  # published lengths (131072) would size every KV cache row for them


@dataclasses.dataclass(frozen=True)
class Family:
    """An architecture of transformers that `Transformer` computes."""

    model_type: str
    attention_bias: bool
    """Whether q, k and v have a bias."""
    must_be: Mapping[str, Any]
    """Settings that would change the network: the value we compute, also when absent."""


FAMILIES: Mapping[str, Family] = {
    "LlamaForCausalLM": Family(
        "llama", False, {"hidden_act": "silu", "attention_bias": False, "mlp_bias": False}
    ),
    "Qwen2ForCausalLM": Family("qwen2", True, {"hidden_act": "silu"}),
}


@dataclasses.dataclass(frozen=True)
class _Fields:
    """The entries of one JSON object, checked as they are read."""

    where: str
    values: Mapping[str, Any]

    def error(self, name: str, expected: str) -> InputError:
        found = repr(self.values[name]) if name in self.values else "nothing"
        return InputError(f"{self.where}: {name} is {found}; expected {expected}")

    def integer(self, name: str, default: int | None = None) -> int:
        value = self._get(name, default)
        if not isinstance(value, int) or isinstance(value, bool) or value < 1:
            raise self.error(name, "a positive integer")
        return value

    def number(self, name: str, default: float | None = None) -> float:
        value = self._get(name, default)
        numeric = isinstance(value, int | float) and not isinstance(value, bool)
        if not numeric or not 0 < value < math.inf:
            raise self.error(name, "a positive number")
        return float(value)

    def flag(self, name: str, default: bool) -> bool:
        value = self._get(name, default)
        if not isinstance(value, bool):
            raise self.error(name, "true or false")
        return value

    def nested(self, name: str) -> _Fields | None:
        """The object under `name`; None where it is absent, null or empty."""
        value = self.values.get(name)
        if value is not None and not isinstance(value, dict):
            raise self.error(name, "an object")
        return _Fields(f"{self.where}: {name}", value) if value else None

    def _get(self, name: str, default: Any) -> Any:
        value = self.values.get(name)
        return default if value is None else value


def read_config(
    path: str | Path,
    *,
    dtype: DType = "bfloat16",
    compute_dtype: DType | None = None,
    max_length: int | None = None,
) -> ModelConfig:
    """A config.json of transformers 4 or 5 as a `ModelConfig`; arguments as in `load_hf`.

    Raises:
        InputError: a field is missing or wrong, or asks for what `Transformer` does not compute.
    """
    values = read_json(path)
    if not isinstance(values, dict):
        raise InputError(f"{path}: expected a JSON object, found a {type(values).__name__}")
    fields = _Fields(str(path), values)
    family = _family(fields)
    theta, scaling = _rope(fields)
    longest = fields.integer("max_position_embeddings", LONGEST_DEFAULT)
    if max_length is not None and max_length > longest:
        raise InputError(
            f"{path}: max_position_embeddings is {longest}; max_length={max_length} exceeds it"
        )
    hidden, heads = fields.integer("hidden_size"), fields.integer("num_attention_heads")
    try:
        return ModelConfig(
            vocab_size=fields.integer("vocab_size"),
            hidden_size=hidden,
            num_layers=fields.integer("num_hidden_layers"),
            num_heads=heads,
            num_kv_heads=fields.integer("num_key_value_heads", heads),
            head_dim=fields.integer("head_dim", max(hidden // heads, 1)),
            intermediate_size=fields.integer("intermediate_size"),
            max_length=min(longest, LONGEST_DEFAULT) if max_length is None else max_length,
            rope_theta=theta,
            rope_scaling=scaling,
            norm_eps=fields.number("rms_norm_eps", 1e-6),
            tie_embeddings=fields.flag("tie_word_embeddings", default=False),
            attention_bias=family.attention_bias,
            param_dtype=dtype,
            compute_dtype=compute_dtype or dtype,
        )
    except InputError:
        raise
    except ValueError as error:
        raise InputError(f"{path}: {error}") from None


def _family(fields: _Fields) -> Family:
    """The architecture, once every setting that would change the network is as we compute it."""
    names = fields.values.get("architectures")
    name = names[0] if isinstance(names, list) and len(names) == 1 else None
    if not isinstance(name, str) or name not in FAMILIES:
        raise fields.error("architectures", f"one of the supported: {', '.join(FAMILIES)}")
    family = FAMILIES[name]
    for field, supported in family.must_be.items():
        if fields.values.get(field, supported) != supported:
            raise fields.error(field, f"{supported!r}, the only one supported for {name}")
    if fields.values.get("quantization_config"):
        raise fields.error("quantization_config", "none: weights must be plain floating point")
    layer_types = fields.values.get("layer_types") or ["full_attention"]
    if not isinstance(layer_types, list) or any(t != "full_attention" for t in layer_types):
        raise fields.error("layer_types", "full_attention alone: no sliding window is supported")
    # With layer types given, the flag alone puts no window on any layer.
    if fields.values.get("use_sliding_window") and not fields.values.get("layer_types"):
        raise fields.error("use_sliding_window", "false: no sliding window is supported")
    return family


def _rope(fields: _Fields) -> tuple[float, tuple[float, float, float, int] | None]:
    """Base and scaling, from `rope_parameters` (5) or `rope_theta` and `rope_scaling` (4)."""
    theta = fields.number("rope_theta", 10000.0)
    rope = fields.nested("rope_scaling") or fields.nested("rope_parameters")
    if rope is None:
        return theta, None
    theta = rope.number("rope_theta", theta)
    if rope.number("partial_rotary_factor", 1.0) != 1.0:
        raise rope.error("partial_rotary_factor", "1: partial rotation is not supported")
    key = "rope_type" if "rope_type" in rope.values else "type"
    kind = rope.values.get(key, "default")
    if kind == "default":
        return theta, None
    if kind != "llama3":
        raise rope.error(key, "one of the supported: default, llama3")
    factor, low, high = (
        rope.number(name) for name in ("factor", "low_freq_factor", "high_freq_factor")
    )
    if high <= low:
        raise rope.error("high_freq_factor", f"more than low_freq_factor ({low})")
    return theta, (factor, low, high, rope.integer("original_max_position_embeddings"))


def to_json(config: ModelConfig, tokenizer: Any) -> dict[str, Any]:
    """The config.json of a model, in the form of transformers 4, which 5 reads as well."""
    architecture = next(
        name for name, f in FAMILIES.items() if f.attention_bias == config.attention_bias
    )
    scaling = None
    if config.rope_scaling is not None:
        names = ("factor", "low_freq_factor", "high_freq_factor")
        scaling = dict(zip(names, config.rope_scaling, strict=False)) | {
            "rope_type": "llama3",
            "original_max_position_embeddings": config.rope_scaling[3],
        }
    return {
        "architectures": [architecture],
        "model_type": FAMILIES[architecture].model_type,
        **FAMILIES[architecture].must_be,
        "vocab_size": config.vocab_size,
        "hidden_size": config.hidden_size,
        "num_hidden_layers": config.num_layers,
        "num_attention_heads": config.num_heads,
        "num_key_value_heads": config.num_kv_heads,
        "head_dim": config.head_dim,
        "intermediate_size": config.intermediate_size,
        "max_position_embeddings": config.max_length,
        "rope_theta": config.rope_theta,
        "rope_scaling": scaling,
        "rms_norm_eps": config.norm_eps,
        "tie_word_embeddings": config.tie_embeddings,
        "torch_dtype": config.param_dtype,
        # Null without a tokenizer: the classes' defaults (1 and 2) would be ordinary tokens here.
        "bos_token_id": getattr(tokenizer, "bos_token_id", None),
        "eos_token_id": getattr(tokenizer, "eos_token_id", None),
        "pad_token_id": getattr(tokenizer, "pad_token_id", None),
    }
