"""Decoders: their shape, their weights, Hugging Face checkpoints in and out."""

from ixjax.models.config import ModelArguments, ModelConfig
from ixjax.models.hf import load_hf, save_hf
from ixjax.models.sharding import abstract_params, init_model, param_shardings
from ixjax.models.transformer import (
    FULL_UNROLL_LAYERS,
    Transformer,
    attend_pieces,
    in_window,
    select,
    unstack,
)

__all__ = [
    "FULL_UNROLL_LAYERS",
    "ModelArguments",
    "ModelConfig",
    "Transformer",
    "abstract_params",
    "attend_pieces",
    "in_window",
    "init_model",
    "load_hf",
    "param_shardings",
    "save_hf",
    "select",
    "unstack",
]
