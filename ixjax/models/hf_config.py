"""config.json of transformers 4 and 5, read into a `ModelConfig` and written back.

`FAMILIES` lists the architectures that `ixjax.models.transformer` computes and the settings that
would change the network: an unsupported value is refused by name, never ignored.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ixjax.gguf_file import is_gguf
from ixjax.io import InputError, read_object
from ixjax.models.config import DType, ModelConfig
from ixjax.models.gguf_config import read_metadata
from ixjax.models.hf_fields import Fields

SPECIAL_IDS = ("bos_token_id", "eos_token_id", "pad_token_id")
FULL, SLIDING = "full_attention", "sliding_attention"
LONGEST_DEFAULT = 4096  # published lengths (131072) would size every KV cache for them


@dataclasses.dataclass(frozen=True)
class Family:
    """An architecture of transformers that `Transformer` computes."""

    model_type: str
    shape: Mapping[str, Any]
    """Fields of `ModelConfig` of this family; all others of `FAMILY_FIELDS` are default."""
    must_be: Mapping[str, Any]
    """Settings that would change the network: the only supported value, and the default."""
    absent: Mapping[str, Any]
    """Defaults of transformers for other settings that a config.json leaves out."""
    windows: bool = True
    """Whether its layers can have a sliding window."""


FAMILY_FIELDS = (
    "attention_bias",
    "qk_norm",
    "post_norms",
    "norm_offset",
    "activation",
    "scale_embeddings",
)
_GEMMA_SHAPE = {
    "post_norms": True,
    "norm_offset": 1.0,
    "activation": "gelu_tanh",
    "scale_embeddings": True,
}
_GEMMA_MUST_BE = {"hidden_activation": "gelu_pytorch_tanh", "attention_bias": False}
_GEMMA_ABSENT = {
    "tie_word_embeddings": True,
    "head_dim": 256,
    "num_key_value_heads": 4,
    "query_pre_attn_scalar": 256,
    "sliding_window": 4096,
}
FAMILIES: Mapping[str, Family] = {
    "LlamaForCausalLM": Family(
        "llama",
        {},
        {"hidden_act": "silu", "attention_bias": False, "mlp_bias": False},
        {},
        windows=False,
    ),
    "MistralForCausalLM": Family(
        "mistral", {}, {"hidden_act": "silu"}, {"num_key_value_heads": 8, "sliding_window": 4096}
    ),
    "Qwen2ForCausalLM": Family(
        "qwen2",
        {"attention_bias": True},
        {"hidden_act": "silu"},
        {"num_key_value_heads": 32, "max_window_layers": 28},
    ),
    "Qwen3ForCausalLM": Family(
        "qwen3",
        {"qk_norm": True},
        {"hidden_act": "silu", "attention_bias": False},
        {"num_key_value_heads": 32, "head_dim": 128, "max_window_layers": 28},
    ),
    "Gemma2ForCausalLM": Family(
        "gemma2",
        _GEMMA_SHAPE,
        _GEMMA_MUST_BE,
        _GEMMA_ABSENT
        | {
            "sliding_window_pattern": 2,
            "attn_logit_softcapping": 50.0,
            "final_logit_softcapping": 30.0,
        },
    ),
    "Gemma3ForCausalLM": Family(
        "gemma3_text",
        _GEMMA_SHAPE | {"qk_norm": True},
        _GEMMA_MUST_BE,
        _GEMMA_ABSENT
        | {"sliding_window_pattern": 6, "rope_theta": 1e6, "rope_local_base_freq": 1e4},
    ),
}


def read_config(
    path: str | Path,
    *,
    dtype: DType = "bfloat16",
    compute_dtype: DType | None = None,
    max_length: int | None = None,
) -> ModelConfig:
    """Return the `ModelConfig` of a config.json of transformers 4 or 5, or of a GGUF file.

    Args:
        path: the config.json, or the GGUF file, whose metadata take its place.
        dtype: as in `load_hf`, and the other arguments too.
        compute_dtype: see `load_hf`.
        max_length: see `load_hf`.

    Raises:
        InputError: a field is missing or wrong, or `Transformer` does not support its value.
    """
    described = read_fields(Path(path))
    family = _family(described)
    fields = dataclasses.replace(described, values={**family.absent, **described.values})
    longest = fields.integer("max_position_embeddings", LONGEST_DEFAULT)
    if max_length is not None and max_length > longest:
        raise InputError(
            f"{path}: {fields.key('max_position_embeddings')} is {longest}; expected "
            f"max_length={max_length} or more. Set a smaller --model.max-length"
        )
    hidden, heads = fields.integer("hidden_size"), fields.integer("num_attention_heads")
    if fields.values.get("head_dim") is None and hidden % heads:
        raise fields.error("num_attention_heads", f"a divisor of hidden_size ({hidden})")
    kv_heads = fields.integer("num_key_value_heads", heads)
    if heads % kv_heads:
        raise fields.error("num_key_value_heads", f"a divisor of num_attention_heads ({heads})")
    head_dim = fields.integer("head_dim", max(hidden // heads, 1))
    if head_dim % 2:
        raise InputError(
            f"{path}: head_dim (default hidden_size / num_attention_heads) is {head_dim}; expected "
            "an even number (rotary embedding)"
        )
    layers = fields.integer("num_hidden_layers")
    window, local_layers = _window(fields, family, layers)
    try:
        return ModelConfig(
            vocab_size=fields.integer("vocab_size"),
            hidden_size=hidden,
            num_layers=layers,
            num_heads=heads,
            num_kv_heads=kv_heads,
            head_dim=head_dim,
            intermediate_size=fields.integer("intermediate_size"),
            max_length=min(longest, LONGEST_DEFAULT) if max_length is None else max_length,
            max_positions=longest if "max_position_embeddings" in described.values else None,
            norm_eps=fields.number("rms_norm_eps", 1e-6),
            tie_embeddings=fields.flag("tie_word_embeddings", default=False),
            sliding_window=window,
            local_layers=local_layers,
            query_pre_attn_scalar=fields.optional_number("query_pre_attn_scalar"),
            attention_softcap=fields.optional_number("attn_logit_softcapping"),
            logits_softcap=fields.optional_number("final_logit_softcapping"),
            param_dtype=dtype,
            compute_dtype=compute_dtype or dtype,
            **_rope(fields),
            **family.shape,
        )
    except InputError:
        raise
    except ValueError as error:
        raise InputError(f"{path}: {error}") from None


def read_fields(path: Path) -> Fields:
    """Return the fields of a config.json, or of a GGUF file's metadata under the same names.

    Raises:
        InputError: the file can't be read.
    """
    return read_metadata(path) if is_gguf(path) else Fields(str(path), read_object(path))


def _architecture_name(fields: Fields) -> str:
    """Return the entry of `FAMILIES`, by `model_type` if `architectures` is absent."""
    names = fields.values.get("architectures")
    if names is None and "model_type" in fields.values:
        by_type = {family.model_type: name for name, family in FAMILIES.items()}
        found = fields.values["model_type"]
        if not isinstance(found, str) or found not in by_type:
            raise fields.error("model_type", f"one of the supported: {', '.join(by_type)}")
        return by_type[found]
    name = names[0] if isinstance(names, list) and len(names) == 1 else None
    if not isinstance(name, str) or name not in FAMILIES:
        raise fields.error("architectures", f"one of the supported: {', '.join(FAMILIES)}")
    return name


def _family(fields: Fields) -> Family:
    """Return the architecture; refuse settings that would change the network."""
    name = _architecture_name(fields)
    family = FAMILIES[name]
    for field, supported in family.must_be.items():
        if fields.values.get(field, supported) != supported:
            raise fields.error(field, f"{supported!r}, the only one supported for {name}")
    if fields.values.get("quantization_config"):
        raise fields.error("quantization_config", "none: weights must be plain floating point")
    if fields.values.get("use_bidirectional_attention"):
        raise fields.error("use_bidirectional_attention", "false: a decoder sees only the past")
    return family


def _window(fields: Fields, family: Family, layers: int) -> tuple[int | None, tuple[bool, ...]]:
    """Return the sliding window in tokens, and whether each layer has it (empty: all have)."""
    types = fields.values.get("layer_types") or _default_layer_types(fields, family, layers)
    known = [FULL, SLIDING] if family.windows else [FULL]
    fits = isinstance(types, list) and len(types) == layers and all(kind in known for kind in types)
    if not fits:
        raise fields.error("layer_types", f"{layers} of {', '.join(known)}")
    if SLIDING not in types:
        return None, ()
    if not fields.flag("use_sliding_window", default=True):
        raise fields.error("use_sliding_window", f"true, as layer_types has {SLIDING}")
    window = fields.integer("sliding_window")
    return window, () if FULL not in types else tuple(kind == SLIDING for kind in types)


def _default_layer_types(fields: Fields, family: Family, layers: int) -> list[str]:
    """Return the default `layer_types` of each family's config class."""
    if family.model_type == "mistral":
        full = [fields.values.get("sliding_window") is None] * layers
    elif "max_window_layers" in family.absent:  # Qwen: the upper layers, if it is switched on
        used = fields.flag("use_sliding_window", default=False)
        first = fields.integer("max_window_layers") if used else layers
        full = [layer < first for layer in range(layers)]
    elif "sliding_window_pattern" in family.absent:  # Gemma: all but every n-th layer
        period = fields.integer("sliding_window_pattern")
        full = [(layer + 1) % period == 0 for layer in range(layers)]
    else:
        full = [True] * layers
    return [FULL if sees_all else SLIDING for sees_all in full]


def _rope(fields: Fields) -> dict[str, Any]:
    """Return the rotary fields, from `rope_parameters` (5) or `rope_theta`, `rope_scaling` (4)."""
    local_theta = fields.optional_number("rope_local_base_freq")
    theta = fields.number("rope_theta", 10000.0)
    _check_rotation(fields)  # transformers moves it into rope_parameters
    rope = fields.nested("rope_scaling") or fields.nested("rope_parameters")
    if rope is not None and (FULL in rope.values or SLIDING in rope.values):
        local = rope.nested(SLIDING)
        if local is not None:
            local_theta = local.number("rope_theta", local_theta)
            if local.values.get("rope_type", "default") != "default":
                raise local.error("rope_type", "default")
        rope = rope.nested(FULL)
    found = {"rope_theta": theta, "local_rope_theta": local_theta}
    return found if rope is None else found | _scaling(rope, theta)


def _scaling(rope: Fields, theta: float) -> dict[str, Any]:
    """Return base and scaling of the global layers."""
    found: dict[str, Any] = {"rope_theta": rope.number("rope_theta", theta)}
    _check_rotation(rope)
    key = "rope_type" if "rope_type" in rope.values else "type"
    kind = rope.values.get(key, "default")
    if kind == "linear":
        found["rope_factor"] = rope.number("factor")
    elif kind == "llama3":
        names = ("factor", "low_freq_factor", "high_freq_factor")
        factor, low, high = (rope.number(name) for name in names)
        if high <= low:
            raise rope.error("high_freq_factor", f"more than low_freq_factor ({low})")
        original = rope.integer("original_max_position_embeddings")
        found["rope_scaling"] = (factor, low, high, original)
    elif kind != "default":
        raise rope.error(key, "one of the supported: default, linear, llama3")
    return found


def _check_rotation(fields: Fields) -> None:
    if fields.number("partial_rotary_factor", 1.0) != 1.0:
        raise fields.error("partial_rotary_factor", "1: partial rotation is not supported")


def architecture(config: ModelConfig) -> str:
    """Return the name of the architecture of transformers that computes this network.

    Raises:
        ValueError: there is none.
    """
    plain = {f.name: f.default for f in dataclasses.fields(ModelConfig)}
    for name, family in FAMILIES.items():
        expected = {field: family.shape.get(field, plain[field]) for field in FAMILY_FIELDS}
        same = all(getattr(config, field) == value for field, value in expected.items())
        if same and (family.windows or not any(config.is_local)):
            return name
    raise ValueError(f"no architecture of transformers computes {config}")


def to_json(config: ModelConfig, tokenizer: Any, end_ids: Sequence[int] = ()) -> dict[str, Any]:
    """Return the config.json of a model in the form of transformers 4, which 5 reads too.

    Args:
        config: the network.
        tokenizer: gives the special tokens; None: they are null.
        end_ids: tokens that end generation; default the tokenizer's eos.
    """
    name = architecture(config)
    family = FAMILIES[name]
    return {
        "architectures": [name],
        "model_type": family.model_type,
        **family.must_be,
        "vocab_size": config.vocab_size,
        "hidden_size": config.hidden_size,
        "num_hidden_layers": config.num_layers,
        "num_attention_heads": config.num_heads,
        "num_key_value_heads": config.num_kv_heads,
        "head_dim": config.head_dim,
        "intermediate_size": config.intermediate_size,
        "max_position_embeddings": config.max_positions or config.max_length,
        "rms_norm_eps": config.norm_eps,
        "tie_word_embeddings": config.tie_embeddings,
        "torch_dtype": config.param_dtype,
        **_rope_json(config),
        **(_window_json(config, family) if family.windows else {}),
        **(_gemma_json(config) if config.post_norms else {}),
        # Null without a tokenizer: the classes' defaults (1 and 2) may be ordinary tokens.
        **{name: getattr(tokenizer, name, None) for name in SPECIAL_IDS},
        **({"eos_token_id": list(end_ids)} if end_ids else {}),
    }


def _rope_json(config: ModelConfig) -> dict[str, Any]:
    scaling = None
    if config.rope_scaling is not None:
        names = ("factor", "low_freq_factor", "high_freq_factor")
        scaling = dict(zip(names, config.rope_scaling, strict=False)) | {
            "rope_type": "llama3",
            "original_max_position_embeddings": config.rope_scaling[3],
        }
    elif config.rope_factor != 1.0:
        scaling = {"rope_type": "linear", "factor": config.rope_factor}
    local = config.local_rope_theta
    return {
        "rope_theta": config.rope_theta,
        "rope_scaling": scaling,
        **({} if local is None else {"rope_local_base_freq": local}),
    }


def _window_json(config: ModelConfig, family: Family) -> dict[str, Any]:
    local = config.is_local
    found: dict[str, Any] = {"sliding_window": config.sliding_window}
    # Mistral's layers are all alike; with layer_types, transformers reads the model as Ministral.
    if family.model_type != "mistral" or len(set(local)) > 1:
        found["layer_types"] = [SLIDING if here else FULL for here in local]
    if "max_window_layers" in family.absent:
        found["use_sliding_window"] = any(local)
        found["max_window_layers"] = local.index(True) if any(local) else config.num_layers
    return found


def _gemma_json(config: ModelConfig) -> dict[str, Any]:
    scalar = config.query_pre_attn_scalar or config.head_dim
    return {
        "query_pre_attn_scalar": int(scalar) if scalar == int(scalar) else scalar,
        "attn_logit_softcapping": config.attention_softcap,
        "final_logit_softcapping": config.logits_softcap,
    }
