"""Decoders: configuration, weights, Hugging Face checkpoints, LoRA adapters."""

from ixjax.models.attention import attend_pieces, in_window, select
from ixjax.models.config import LoraArguments, LoraConfig, ModelArguments, ModelConfig
from ixjax.models.hf import check_hf, load_hf, save_hf
from ixjax.models.hf_generation import turn_tokens
from ixjax.models.lora import (
    add_lora,
    load_adapter,
    merge_lora,
    new_adapter,
    save_adapter,
    stack_adapters,
)
from ixjax.models.rotary import Rotary, rotary_angles
from ixjax.models.sharding import abstract_params, cast, init_model, mesh_of, param_shardings
from ixjax.models.transformer import (
    LoraParam,
    Remat,
    Transformer,
    block,
    chosen_adapters,
    layer_weights,
)

__all__ = [
    "LoraArguments",
    "LoraConfig",
    "LoraParam",
    "ModelArguments",
    "ModelConfig",
    "Remat",
    "Rotary",
    "Transformer",
    "abstract_params",
    "add_lora",
    "attend_pieces",
    "block",
    "cast",
    "check_hf",
    "chosen_adapters",
    "in_window",
    "init_model",
    "layer_weights",
    "load_adapter",
    "load_hf",
    "merge_lora",
    "mesh_of",
    "new_adapter",
    "param_shardings",
    "rotary_angles",
    "save_adapter",
    "save_hf",
    "select",
    "stack_adapters",
    "turn_tokens",
]
