"""What a decoder costs in arithmetic: floating-point operations of reading and of training.

A product of a token with a matrix of n weights is 2 n operations; its backward pass is two such
products, one for the token's gradient and one for the matrix's. Attention adds 4 H D a layer for
each key that a token sees, under a causal mask about half the row. Norms, activations and the
softmax are left out, as is usual.

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
    """Weights of all blocks that a token is multiplied with, adapters left out."""
    return _matrices(config, lora=False)


def forward_flops(
    config: ModelConfig, tokens: float, length: float, *, scored: float | None = None
) -> float:
    """Operations to read tokens.

    Args:
        config: of the decoder.
        tokens: how many are read.
        length: of the sequences that they are read in, each from its beginning.
        scored: tokens that the LM head is applied to; default all.
    """
    return (
        2 * tokens * (block_weights(config) + _matrices(config, lora=True))
        + tokens * attention_flops(config, length)
        + head_flops(config, tokens if scored is None else scored)
    )


def decode_flops(config: ModelConfig, tokens: float, context: float) -> float:
    """Operations to sample tokens, each behind so many others in the mean."""
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
    """Operations to train on tokens: the forward pass, and twice as many backwards.

    With adapters the base is frozen and the gradient of its matrices is not computed. With `remat`
    the model's operations and those that are done again; utilisation of the model's own
    (MFU) is told without.

    Args:
        config: of the decoder.
        tokens: how many are trained on, prompts included.
        length: of the sequences.
        scored: tokens that the LM head is applied to; default all.
        remat: what of the blocks is computed again.
    """
    base, adapters = block_weights(config), _matrices(config, lora=True)
    passes = 3 if config.lora is None else 2
    attention = tokens * attention_flops(config, length)
    head = head_flops(config, tokens if scored is None else scored)
    trained = 2 * tokens * (passes * base + 3 * adapters) + passes * head + 3 * attention
    again = {"none": 0.0, "dots": attention, "full": 2 * tokens * (base + adapters) + attention}
    return trained + again[remat]


def attention_flops(config: ModelConfig, length: float) -> float:
    """Operations of all layers for a token's attention, in the mean of a sequence's tokens."""
    keys = sum(_mean_keys(config, local, length) for local in config.is_local)
    return 4 * config.num_heads * config.head_dim * keys


def head_flops(config: ModelConfig, scored: float) -> float:
    """Operations of the LM head."""
    return 2 * scored * config.vocab_size * config.hidden_size


def kv_bytes(config: ModelConfig) -> int:
    """Bytes of the keys and values that one token leaves in a cache, over all layers."""
    size = {"float32": 4}.get(config.compute_dtype, 2)
    return 2 * config.num_layers * config.num_kv_heads * config.head_dim * size


def _matrices(config: ModelConfig, *, lora: bool) -> int:
    """Weights of the blocks' matrices, or of the adapters beside them, which are multiplied too."""
    return sum(
        math.prod(spec.shape)
        for name, spec in weight_specs(config).items()
        if name.startswith("layers.") and len(spec.shape) > 2 and ("_lora_" in name) == lora
    )


def _window(config: ModelConfig, local: bool, keys: float) -> float:
    """Keys that a layer sees of so many."""
    if not local or config.sliding_window is None:
        return keys
    return min(keys, config.sliding_window)


def _mean_keys(config: ModelConfig, local: bool, length: float) -> float:
    """Keys that a token sees, itself included, in the mean: the i-th sees min(i, window)."""
    window = _window(config, local, length)
    return window - window * (window - 1) / (2 * max(length, 1))
