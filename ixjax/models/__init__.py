"""Decoders: their shape, their weights, Hugging Face checkpoints in and out."""

from ixjax.models.config import LoraConfig, ModelArguments, ModelConfig
from ixjax.models.hf import load_hf, save_hf
from ixjax.models.lora import (
    add_lora,
    load_adapter,
    merge_lora,
    save_adapter,
    stack_adapters,
)
from ixjax.models.sharding import abstract_params, init_model, param_shardings
from ixjax.models.transformer import (
    FULL_UNROLL_LAYERS,
    LoraParam,
    Rotary,
    Transformer,
    attend_pieces,
    in_window,
    rotary_angles,
    select,
    unstack,
)

__all__ = [
    "FULL_UNROLL_LAYERS",
    "LoraConfig",
    "LoraParam",
    "ModelArguments",
    "ModelConfig",
    "Rotary",
    "Transformer",
    "abstract_params",
    "add_lora",
    "attend_pieces",
    "in_window",
    "init_model",
    "load_adapter",
    "load_hf",
    "merge_lora",
    "param_shardings",
    "rotary_angles",
    "save_adapter",
    "save_hf",
    "select",
    "stack_adapters",
    "unstack",
]
