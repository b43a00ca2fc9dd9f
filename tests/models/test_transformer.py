"""Visibility in the teacher-forced pass; test_hf.py compares logits with transformers."""

from __future__ import annotations

import dataclasses
import math

import jax
import numpy as np
import pytest
from flax import nnx

from ixjax.models import ModelConfig, Transformer, abstract_params, attend_pieces
from tests.models.tiny import random_model

CONFIG = ModelConfig(
    vocab_size=48,
    hidden_size=32,
    num_layers=2,
    num_heads=4,
    num_kv_heads=2,
    head_dim=6,
    intermediate_size=40,
    max_length=64,
)
LENGTH = 12


@jax.jit
def logits(model, tokens, positions, segment_ids):
    return model(tokens, positions, segment_ids)


@pytest.fixture(scope="module")
def model():
    return random_model(CONFIG)


def rows(*sequences_of_row: list[np.ndarray]):
    """Rows of tokens, positions and segment ids; each row packs some sequences, then padding."""
    tokens, positions, segments = (np.zeros((len(sequences_of_row), LENGTH), int) for _ in range(3))
    for row, sequences in enumerate(sequences_of_row):
        at = 0
        for number, sequence in enumerate(sequences, start=1):
            here = slice(at, at + len(sequence))
            tokens[row, here] = sequence
            positions[row, here] = np.arange(len(sequence))
            segments[row, here] = number
            at += len(sequence)
    return tokens, positions, segments


def draw(*lengths: int) -> list[np.ndarray]:
    rng = np.random.default_rng(lengths)
    return [rng.integers(1, CONFIG.vocab_size, n) for n in lengths]


def test_packed_sequences_equal_separate_ones(model):
    a, b, c = draw(5, 4, 3)
    packed = logits(model, *rows([a, b, c], [], []))[0]
    separate = logits(model, *rows([a], [b], [c]))
    np.testing.assert_allclose(packed[:5], separate[0, :5], atol=1e-5)
    np.testing.assert_allclose(packed[5:9], separate[1, :4], atol=1e-5)
    np.testing.assert_allclose(packed[9:12], separate[2, :3], atol=1e-5)


def test_what_padding_holds_changes_nothing(model):
    (a,) = draw(7)
    tokens, positions, segments = rows([a], [], [])
    expected = logits(model, tokens, positions, segments)[0, :7]
    tokens[0, 7:] = 31
    np.testing.assert_array_equal(logits(model, tokens, positions, segments)[0, :7], expected)


def test_padding_alone_gives_finite_logits(model):
    assert np.isfinite(logits(model, *rows([], [], []))).all()


def test_a_token_sees_none_that_follow(model):
    tokens = np.stack(draw(LENGTH, LENGTH, LENGTH))
    changed = tokens.copy()
    changed[:, 6:] = 1 + changed[:, 6:] % 40
    _, positions, segments = rows([tokens[0]], [tokens[1]], [tokens[2]])
    before, after = (np.asarray(logits(model, t, positions, segments)) for t in (tokens, changed))
    np.testing.assert_allclose(before[:, :6], after[:, :6], atol=1e-6)
    assert np.abs(before[:, 6:] - after[:, 6:]).max() > 0.01


def test_default_positions_count_from_zero(model):
    a, b, c = draw(LENGTH, LENGTH, LENGTH)
    explicit = logits(model, *rows([a], [b], [c]))
    default = jax.jit(model.__call__)(np.stack([a, b, c]))
    np.testing.assert_allclose(default, explicit, atol=1e-5)


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("bias", [True, False])
def test_parameter_count_is_that_of_the_tree(tied, bias):
    config = dataclasses.replace(CONFIG, tie_embeddings=tied, attention_bias=bias)
    leaves = jax.tree.leaves(abstract_params(config))
    assert config.num_parameters == sum(math.prod(leaf.shape) for leaf in leaves)


def test_low_precision_keeps_its_parameters_and_gives_float32_logits():
    config = dataclasses.replace(CONFIG, param_dtype="bfloat16", compute_dtype="bfloat16")
    model = nnx.eval_shape(lambda: Transformer(config, rngs=nnx.Rngs(0)))
    assert {leaf.dtype.name for leaf in jax.tree.leaves(nnx.state(model))} == {"bfloat16"}
    shape = jax.eval_shape(lambda m: m(np.zeros((2, 5), int)), model)
    assert (shape.shape, shape.dtype.name) == ((2, 5, 48), "float32")


def test_tokens_of_one_sequence_must_be_a_batch(model):
    with pytest.raises(ValueError, match=r"tokens has shape \(5,\); expected \[B, T\]"):
        model(np.zeros(5, int))


def test_attention_over_pieces_equals_attention_over_their_concatenation():
    rng = np.random.default_rng(0)
    q = rng.normal(size=(2, 4, 3, 6)).astype(np.float32)
    k, v = rng.normal(size=(2, 2, 2, 9, 6)).astype(np.float32)
    visible = rng.random((2, 3, 9)) < 0.7
    visible[:, :, 8] = True  # every query sees something
    cuts = [slice(0, 2), slice(2, 7), slice(7, 9)]
    pieces = [(k[:, :, cut].swapaxes(2, 3), v[:, :, cut], visible[:, :, cut]) for cut in cuts]
    # The first piece in two blocks of one column.
    pieces[0] = (k[:, :, cuts[0], :, None], *pieces[0][1:])
    out = attend_pieces(q, pieces)
    for b, h, t in np.ndindex(2, 4, 3):  # softmax by its definition; two query heads a KV head
        weights = np.exp(k[b, h // 2] @ q[b, h, t]) * visible[b, t]
        expected = weights @ v[b, h // 2] / weights.sum()
        np.testing.assert_allclose(out[b, h, t], expected, rtol=1e-4, atol=1e-5)
