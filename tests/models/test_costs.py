"""Operation counts equal XLA's cost analysis and sums by hand."""

from __future__ import annotations

import dataclasses

import jax
import numpy as np
import pytest
from flax import nnx

from ixjax.models import LoraConfig, ModelConfig, Transformer, abstract_params
from ixjax.models.costs import (
    attention_flops,
    block_weights,
    decode_flops,
    forward_flops,
    kv_bytes,
    training_flops,
)

CONFIG = ModelConfig(
    vocab_size=512,
    hidden_size=128,
    num_layers=3,
    num_heads=4,
    num_kv_heads=2,
    head_dim=32,
    intermediate_size=384,
)


def test_forward_flops_are_those_that_xla_counts_but_for_the_masked_half_of_attention():
    rows, length = 4, 64
    tokens = jax.ShapeDtypeStruct((rows, length), np.int32)
    graph, params = nnx.graphdef(Transformer(CONFIG)), abstract_params(CONFIG)
    compiled = jax.jit(lambda p, t: nnx.merge(graph, p)(t)).lower(params, tokens).compile()
    attention = rows * length * attention_flops(CONFIG, length)
    # XLA also computes masked scores: T keys of each token where (T + 1) / 2 are seen.
    whole = attention * length / ((length + 1) / 2)
    expected = forward_flops(CONFIG, rows * length, length) - attention + whole
    # XLA also counts norms, softmax and activations.
    assert expected < compiled.cost_analysis()["flops"] < 1.1 * expected


def test_a_training_token_is_six_operations_a_weight_and_palms_attention_halved():
    length = 1001
    weights = block_weights(CONFIG) + CONFIG.vocab_size * CONFIG.hidden_size
    palm = 12 * CONFIG.num_layers * CONFIG.num_heads * CONFIG.head_dim * length
    halved = palm / 2 * (length + 1) / length
    assert training_flops(CONFIG, 10, length) == pytest.approx(10 * (6 * weights + halved))


def test_block_weights_are_the_parameters_without_embeddings_and_norms():
    norms = (2 * CONFIG.num_layers + 1) * CONFIG.hidden_size
    embedding = CONFIG.vocab_size * CONFIG.hidden_size
    assert block_weights(CONFIG) == CONFIG.num_parameters - norms - embedding


def test_a_local_layer_sees_its_window_alone():
    local = dataclasses.replace(CONFIG, sliding_window=5, local_layers=(True, False, True))
    seen = [min(i + 1, 5) for i in range(20)]
    full = [i + 1 for i in range(20)]
    keys = 2 * np.mean(seen) + np.mean(full)
    assert attention_flops(local, 20) == pytest.approx(4 * 4 * 32 * keys)


def test_adapters_spare_the_gradient_of_frozen_matrices():
    adapted = dataclasses.replace(CONFIG, lora=LoraConfig(rank=2, targets=("query",)))
    adapters = CONFIG.num_layers * 2 * (128 + 128)
    saved = 2 * block_weights(CONFIG) + 2 * CONFIG.vocab_size * CONFIG.hidden_size
    difference = training_flops(CONFIG, 1, 50) - training_flops(adapted, 1, 50)
    assert difference == pytest.approx(saved - 6 * adapters)


def test_rematerialisation_adds_a_forward_pass_of_the_blocks_or_its_attention():
    plain, dots, full = (training_flops(CONFIG, 7, 30, remat=r) for r in ("none", "dots", "full"))
    assert dots - plain == pytest.approx(7 * attention_flops(CONFIG, 30))
    assert full - plain == pytest.approx(forward_flops(CONFIG, 7, 30, scored=0))


def test_sampling_costs_as_reading_with_every_key_seen_and_every_token_scored():
    one = forward_flops(CONFIG, 1, 1)
    further = 4 * CONFIG.num_layers * CONFIG.num_heads * CONFIG.head_dim * 99
    assert decode_flops(CONFIG, 3, 100) == pytest.approx(3 * (one + further))


def test_keys_and_values_of_a_token_are_as_many_bytes_as_the_type_has():
    assert kv_bytes(CONFIG) == 2 * 3 * 2 * 32 * 4
    assert kv_bytes(dataclasses.replace(CONFIG, compute_dtype="bfloat16")) == 2 * 3 * 2 * 32 * 2
