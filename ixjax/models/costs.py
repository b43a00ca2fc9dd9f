"""Floating-point operations of a decoder: prefill, decode and training.

A product of a token with a matrix of n weights is 2 n operations; its backward pass is two such
products, one for the token's gradient and one for the matrix's. Attention adds 4 H D a layer for
each key that a token sees, under a causal mask about half the row. Norms, activations and the
softmax are not counted, as is usual.

References:
    Kaplan et al. 2020, `Scaling Laws <https://arxiv.org/abs/2001.08361>`_, section 2.1;
    Chowdhery et al. 2022, `PaLM <https://arxiv.org/abs/2204.02311>`_, appendix B, where a training
    token is 6 N + 12 L H Q T, without the causal half.
"""

from __future__ import annotations

import math

from ixjax.models.config import ModelConfig
from ixjax.models.transformer import Remat, weight_specs


def block_weights(config: ModelConfig) -> int:
    """Return the number of weights in the blocks' matrices, without adapters."""
    return _matrices(config, lora=False)


def forward_flops(
    config: ModelConfig, tokens: float, length: float, *, scored: float | None = None
) -> float:
    """Return the operations of a forward pass over tokens.

    Args:
        config: the decoder.
        tokens: number of tokens.
        length: tokens of one sequence; every sequence starts at its first token.
        scored: tokens that the LM head is applied to; default all.
    """
    return (
        2 * tokens * (block_weights(config) + _matrices(config, lora=True))
        + tokens * attention_flops(config, length)
        + head_flops(config, tokens if scored is None else scored)
    )


def decode_flops(config: ModelConfig, tokens: float, context: float) -> float:
    """Return the operations to sample tokens after a mean of `context` others."""
    weights = block_weights(config) + _matrices(config, lora=True)
    keys = sum(_window(config, local, context) for local in config.is_local)
    seen = 4 * config.num_heads * config.head_dim * keys
    return tokens * (2 * weights + seen) + head_flops(config, tokens)


def training_flops(
    config: ModelConfig,
    tokens: float,
    length: float,
    *,
    scored: float | None = None,
    remat: Remat = "none",
) -> float:
    """Return the operations to train on tokens: the forward pass, and twice as many backward.

    With adapters the base is frozen, and the gradient of its matrices is not computed. With `remat`
    the recomputed operations count too; model FLOPs utilisation (MFU) uses `remat="none"`.

    Args:
        config: the decoder.
        tokens: number of tokens, prompts included.
        length: tokens of one sequence.
        scored: tokens that the LM head is applied to; default all.
        remat: parts of the blocks that are recomputed.
    """
    base, adapters = block_weights(config), _matrices(config, lora=True)
    passes = 3 if config.lora is None else 2
    attention = tokens * attention_flops(config, length)
    head = head_flops(config, tokens if scored is None else scored)
    trained = 2 * tokens * (passes * base + 3 * adapters) + passes * head + 3 * attention
    again = {"none": 0.0, "dots": attention, "full": 2 * tokens * (base + adapters) + attention}
    return trained + again[remat]


def attention_flops(config: ModelConfig, length: float) -> float:
    """Return the operations of all layers for a token's attention, as a mean over a sequence."""
    keys = sum(_mean_keys(config, local, length) for local in config.is_local)
    return 4 * config.num_heads * config.head_dim * keys


def head_flops(config: ModelConfig, scored: float) -> float:
    """Return the operations of the LM head."""
    return 2 * scored * config.vocab_size * config.hidden_size


def kv_bytes(config: ModelConfig) -> int:
    """Return the bytes of one token's keys and values in a cache, over all layers."""
    size = {"float32": 4}.get(config.compute_dtype, 2)
    return 2 * config.num_layers * config.num_kv_heads * config.head_dim * size


def _matrices(config: ModelConfig, *, lora: bool) -> int:
    """Return the number of weights in the blocks' matrices, or in their adapters."""
    return sum(
        math.prod(spec.shape)
        for name, spec in weight_specs(config).items()
        if name.startswith("layers.") and len(spec.shape) > 2 and ("_lora_" in name) == lora
    )


def _window(config: ModelConfig, local: bool, keys: float) -> float:
    """Return the number of keys that a layer sees, of `keys`."""
    if not local or config.sliding_window is None:
        return keys
    return min(keys, config.sliding_window)


def _mean_keys(config: ModelConfig, local: bool, length: float) -> float:
    """Return the mean number of keys that a token sees: the i-th sees min(i, window)."""
    window = _window(config, local, length)
    return window - window * (window - 1) / (2 * max(length, 1))
