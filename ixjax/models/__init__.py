"""Decoders: configuration, weights, Hugging Face checkpoints, LoRA adapters."""

from ixjax.models.attention import attend_pieces, in_window, select
from ixjax.models.config import LoraArguments, LoraConfig, ModelArguments, ModelConfig
from ixjax.models.hf import check_hf, load_hf, save_hf
from ixjax.models.hf_generation import sampling_settings
from ixjax.models.lora import (
    adapter_paths,
    add_lora,
    load_adapter,
    merge_lora,
    new_adapter,
    one_adapter,
    save_adapter,
    stack_adapters,
)
from ixjax.models.rotary import Rotary, rotary_angles
from ixjax.models.sharding import (
    abstract_params,
    cast,
    init_model,
    mesh_of,
    model_of,
    param_shardings,
    path_name,
    weights_by_path,
)
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
    "adapter_paths",
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
    "model_of",
    "new_adapter",
    "one_adapter",
    "param_shardings",
    "path_name",
    "rotary_angles",
    "sampling_settings",
    "save_adapter",
    "save_hf",
    "select",
    "stack_adapters",
    "weights_by_path",
]
