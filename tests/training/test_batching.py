import dataclasses

import jax
import numpy as np
import pytest
from flax import nnx
from hypothesis import given, settings
from hypothesis import strategies as st

from ixjax.dialogue.chat import Rendered
from ixjax.io import InputError
from ixjax.training import sft_loss, token_logprobs
from ixjax.training.batching import (
    in_batches,
    mixed_numbers,
    num_rows,
    pack,
    pad_rows,
)
from ixjax.training.scoring import scored_logprobs
from tests.training.doubles import counting_examples, tiny_model


@nnx.jit
def jit_loss(model, rows):
    return sft_loss(scored_logprobs(model, rows), rows.weights)


@jax.jit
def _gradient(model, rows):
    graph, params = nnx.split(model)
    loss = lambda p: sft_loss(scored_logprobs(nnx.merge(graph, p), rows), rows.weights)[0]
    return jax.grad(loss)(params)


def widened(rows):
    """The same rows with S = T, so that rows of all tests have one shape."""
    missing = rows.tokens.shape[1] - rows.scored_at.shape[1]
    widen = lambda x: np.pad(x, ((0, 0), (0, missing)))
    return dataclasses.replace(
        rows,
        scored_at=widen(rows.scored_at),
        targets=widen(rows.targets),
        weights=widen(rows.weights),
    )


def jit_gradient(model, rows):
    """Gradients of the summed loss, leaf by leaf."""
    return [np.asarray(leaf) for leaf in jax.tree.leaves(_gradient(model, rows))]


examples_strategy = st.lists(
    st.lists(st.tuples(st.integers(1, 30), st.booleans()), min_size=1, max_size=16),
    min_size=1,
    max_size=30,
).map(lambda rows: [Rendered(*map(tuple, zip(*row, strict=True)), 0) for row in rows])


def scored_pairs(rows):
    """Every (token, next token) that is scored, read back from the arrays."""
    found = []
    for n, s in zip(*np.nonzero(rows.weights), strict=True):
        at = rows.scored_at[n, s]
        assert rows.segment_ids[n, at] == rows.segment_ids[n, at + 1]
        assert rows.tokens[n, at + 1] == rows.targets[n, s]
        found.append((rows.positions[n, at], rows.tokens[n, at], rows.targets[n, s]))
    return sorted(found)


@given(examples_strategy)
def test_packing_keeps_every_token_and_every_scored_target(examples):
    expected = sorted(
        (i, e.tokens[i], e.tokens[i + 1])
        for e in examples
        for i in range(len(e.tokens) - 1)
        if e.scored[i + 1]
    )
    if not expected:
        with pytest.raises(InputError, match="no token of the training examples is scored"):
            pack(examples, length=16)
        return
    rows = pack(examples, length=16)
    assert rows.num_tokens == sum(len(e.tokens) for e in examples)
    assert scored_pairs(rows) == expected
    # Positions restart in each segment and count up by one.
    for tokens, positions, segments in zip(
        rows.tokens, rows.positions, rows.segment_ids, strict=True
    ):
        for segment in range(1, segments.max() + 1):
            inside = positions[segments == segment]
            np.testing.assert_array_equal(inside, np.arange(len(inside)))
        assert not tokens[segments == 0].any()


@given(examples_strategy)
def test_first_fit_leaves_no_two_rows_that_would_fit_into_one(examples):
    # One token alone has nothing to predict it: rows with a single place left count as full.
    sizes = [max(2, len(e.tokens)) for e in examples]
    examples = [Rendered((1,) * size, (True,) * size, 0) for size in sizes]
    filled = np.sort((pack(examples, length=16).segment_ids > 0).sum(axis=1))
    assert len(filled) == 1 or filled[0] + filled[1] > 16
    assert filled.sum() == sum(sizes)


def test_packed_loss_equals_the_loss_of_each_example_alone():
    examples = counting_examples(20)
    model = tiny_model()
    rows = pack(examples, length=64)
    assert num_rows(rows) < len(examples)
    packed, weight = jit_loss(model, rows)
    alone = count = 0
    logprobs_of = nnx.jit(lambda model, t: token_logprobs(model(t)[:, :-1], t[:, 1:]))
    for example in examples:
        # Padded behind its end, where a causal model can't see: one shape, one compilation.
        tokens, scored = (
            np.array([(*values, *(0,) * (25 - len(example.tokens)))])
            for values in (example.tokens, example.scored)
        )
        alone -= float((logprobs_of(model, tokens) * scored[:, 1:]).sum())
        count += scored[:, 1:].sum()
    assert weight == count
    assert packed / weight == pytest.approx(alone / count, rel=1e-6)


def test_gradients_of_packed_rows_equal_those_of_single_rows():
    examples = counting_examples(6)
    model = tiny_model()
    packed = pack(examples, length=64)
    assert num_rows(packed) < 6
    single = jax.tree.map(
        lambda *rows: np.concatenate(rows), *(widened(pack([e], length=64)) for e in examples)
    )
    packed = jit_gradient(model, pad_rows(widened(packed), multiple=6))
    for a, b in zip(packed, jit_gradient(model, single), strict=True):
        np.testing.assert_allclose(a, b, atol=2e-5, rtol=1e-4)


def test_what_is_not_scored_has_no_effect_on_the_gradient_as_a_target():
    scored = (False, False, True, True, False, False)
    model = tiny_model()
    six, other = (
        jit_gradient(
            model,
            pad_rows(
                widened(pack([Rendered((*range(5), last), scored, 0)], length=64)), multiple=6
            ),
        )
        for last in (6, 21)
    )
    for a, b in zip(six, other, strict=True):
        np.testing.assert_array_equal(a, b)


def test_tokens_of_outcome_lines_have_a_weight_of_their_own():
    examples = [
        Rendered((1, 2, 3, 4), (False, True, True, True), 0, line=2),
        Rendered((5, 6, 7), (False, False, True), 0),
    ]
    rows = pack(examples, length=8, outcome_weight=9.0)
    np.testing.assert_array_equal(rows.targets[0, :4], [2, 3, 4, 7])
    np.testing.assert_array_equal(rows.weights[0, :4], [1.0, 9.0, 9.0, 1.0])
    assert rows.num_scored == 4


def test_too_long_or_missing_examples_are_refused():
    with pytest.raises(InputError, match="there is no training example"):
        pack([], length=8)
    with pytest.raises(InputError, match="an example has 9 tokens; a row holds 8"):
        pack([Rendered((1,) * 9, (True,) * 9, 0)], length=8)


@pytest.mark.parametrize("size", [1, 2, 12])
def test_an_epoch_draws_every_row_once_in_an_order_of_its_own(size):
    numbers = mixed_numbers(range(size), batch_size=4, seed=5)
    drawn = np.concatenate([numbers(s) for s in range(2 * size)]).reshape(-1, size)  # 8 epochs
    assert all(sorted(epoch) == list(range(size)) for epoch in drawn)
    assert size <= 4 or len({tuple(epoch) for epoch in drawn}) > 1


@settings(max_examples=20)
@given(
    scored=st.lists(st.integers(1, 50), min_size=1, max_size=20),
    batch_size=st.integers(1, 9),
)
def test_each_batch_has_rows_of_few_scored_tokens_and_of_many(scored, batch_size):
    numbers = mixed_numbers(scored, batch_size=batch_size, seed=3)
    drawn = np.array([numbers(step) for step in range(len(scored) + 1)])
    assert set(drawn.ravel()) == set(range(len(scored)))
    chosen = np.array(scored)[drawn][:, : min(batch_size, len(scored))]
    assert (np.diff(chosen, axis=1) >= 0).all()


def test_the_batch_of_a_step_depends_on_seed_and_step_alone():
    first, second = (mixed_numbers(range(40), batch_size=4, seed=1) for _ in range(2))
    other = mixed_numbers(range(40), batch_size=4, seed=2)
    for step in (11, 3, 29):  # as after a resume: no step before it was drawn
        np.testing.assert_array_equal(first(step), second(step))
    assert any((first(s) != other(s)).any() for s in range(4))


def test_in_batches_covers_all_rows_and_pads_with_rows_of_no_weight():
    rows = pack(counting_examples(9), length=24)
    batches = in_batches(rows, batch_size=4)
    assert {num_rows(b) for b in batches} == {4}
    assert sum(b.weights.sum() for b in batches) == rows.weights.sum()
    assert sum(b.num_tokens for b in batches) == rows.num_tokens
