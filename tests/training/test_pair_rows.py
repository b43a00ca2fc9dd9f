"""Shared and packed rows compute what separate sequences do."""

import dataclasses
import functools
import itertools

import jax
import numpy as np
import pytest
from flax import nnx
from hypothesis import given, settings
from hypothesis import strategies as st

from ixjax.dialogue.chat import RenderedPair
from ixjax.io import InputError
from ixjax.training.dpo import PairObjective, response_logprobs
from ixjax.training.pair_rows import PairBatches, shuffled_pairs
from ixjax.training.steps import place_params
from tests.training.doubles import DPO, LENGTH, one_batch, one_device, random_pairs, tiny_model

SHARES = ("none", "pair", "node", "path")

token = st.integers(1, 9)
tokens = st.lists(token, min_size=1, max_size=4).map(tuple)


@st.composite
def dialogues(draw):
    """Pairs along a few paths: prompts that go on from each other, and share responses."""
    pairs, prompt = [], draw(tokens)
    for _ in range(draw(st.integers(1, 4))):
        responses = draw(st.lists(tokens, min_size=2, max_size=3, unique=True))
        pairs += [RenderedPair(prompt, responses[0], rejected, 0) for rejected in responses[1:]]
        if draw(st.booleans()):
            prompt = prompt + responses[0] + draw(tokens)
        elif draw(st.booleans()):
            prompt = draw(tokens)
    return pairs


@functools.cache
def _logprobs():
    return nnx.jit(lambda model, batch: response_logprobs(model, batch))


def logprobs(model, pairs, **settings):
    """`[P, 2]` in the order of the pairs, however they were packed."""
    batches = PairBatches(
        pairs, [range(len(pairs))], max_length=LENGTH, row_length=96, multiple=12, **settings
    )
    batch = batches.make(0, np.zeros((len(pairs), 2)))
    # One shape for all tests: one compilation.
    pad = 40 - batch.chosen.shape[1]
    batch = dataclasses.replace(
        batch,
        chosen=np.pad(batch.chosen, ((0, 0), (0, pad))),
        rejected=np.pad(batch.rejected, ((0, 0), (0, pad))),
        weights=np.pad(batch.weights, ((0, 0), (0, pad))),
        reference=np.pad(batch.reference, ((0, 0), (0, pad), (0, 0))),
    )
    found, numbers = np.zeros((len(pairs), 2)), batches.numbers(0)
    values = np.asarray(_logprobs()(model, batch))[: len(numbers), : numbers.shape[1]]
    found[numbers[numbers >= 0]] = values[numbers >= 0]
    return found


@given(dialogues())
@settings(max_examples=30)
def test_shared_and_packed_logprobs_equal_those_of_separate_sequences(pairs):
    model = tiny_model()
    plain = logprobs(model, pairs, share="none")
    for share in SHARES[1:]:
        np.testing.assert_allclose(logprobs(model, pairs, share=share), plain, atol=2e-5)


def test_plain_logprobs_equal_a_forward_pass_of_each_sequence_alone():
    model, pairs = tiny_model(), random_pairs(9)
    found = logprobs(model, pairs, share="none")
    forward = nnx.jit(lambda model, tokens: jax.nn.log_softmax(model(tokens)))
    for row, pair in zip(found, pairs, strict=True):
        for value, response in zip(row, (pair.chosen, pair.rejected), strict=True):
            whole = pair.prompt + response
            padded = np.zeros((1, LENGTH), np.int32)
            padded[0, : len(whole)] = whole
            said = np.asarray(forward(model, padded))[0]
            at = range(len(pair.prompt), len(whole))
            assert value == pytest.approx(sum(said[i - 1, whole[i]] for i in at), abs=2e-5)


def path_pairs():
    """Ten pairs: five decisions of one path, two pairs each."""
    rng, prompt, pairs = np.random.default_rng(0), (1, 2, 3), []
    for _ in range(5):
        good, bad, worse = ((7, *rng.integers(1, 30, 2).tolist(), i) for i in (4, 5, 6))
        pairs += [RenderedPair(prompt, good, bad, 0), RenderedPair(prompt, good, worse, 0)]
        prompt = (*prompt, *good, *rng.integers(1, 30, 3).tolist())
    return pairs


@pytest.mark.parametrize("share", SHARES[1:])
@pytest.mark.parametrize("rpo_alpha", [0.0, 0.7])
def test_loss_and_gradients_of_shared_rows_equal_the_plain_ones(share, rpo_alpha):
    model, pairs = tiny_model(), path_pairs()
    objective = PairObjective.of(dataclasses.replace(DPO, rpo_alpha=rpo_alpha))
    graph, params = nnx.graphdef(model), place_params(model, one_device())
    reference = np.random.default_rng(1).normal(-20, 3, (10, 2))

    @jax.jit
    def loss_and_gradients(params, batch):
        weight = objective.weight(batch)
        return jax.value_and_grad(lambda p: objective(nnx.merge(graph, p), batch, weight)[0])(
            params
        )

    plain, shared = (
        loss_and_gradients(params, one_batch(pairs, reference, share=s)) for s in ("none", share)
    )
    assert abs(plain[0] - np.log(2)) > 1e-2
    for a, b in zip(jax.tree.leaves(shared), jax.tree.leaves(plain), strict=True):
        np.testing.assert_allclose(np.asarray(a), np.asarray(b), atol=1e-5)


def test_a_row_too_short_for_a_pair_is_refused():
    with pytest.raises(InputError, match=r"row_length is 5; expected \d+ or more"):
        one_batch(path_pairs(), np.zeros((10, 2)), share="pair", row_length=5)


def test_what_is_shared_is_computed_once():
    pairs = path_pairs()
    size = {
        share: one_batch(pairs, np.zeros((10, 2)), share=share, row_length=256).rows.num_tokens
        for share in SHARES
    }
    responses = 4 * 3 * 5
    prompts = sum(len(pair.prompt) for pair in pairs)
    assert size["none"] == 2 * prompts + 4 * 20
    assert size["pair"] == prompts + 4 * 20
    assert size["node"] == prompts // 2 + responses
    assert size["path"] == len(pairs[-1].prompt) + responses


@given(st.lists(tokens, min_size=1, max_size=30), st.integers(0, 3))
@settings(max_examples=20)
def test_an_epoch_has_every_pair_once_and_those_of_a_node_together(prompts, seed):
    pairs = [RenderedPair(p, (1,), (2,), 0) for p in prompts]
    count = len(pairs)
    numbers = shuffled_pairs(pairs, share="node", batch_size=count, seed=seed)
    epochs = [numbers(step).tolist() for step in range(3)]
    assert all(sorted(epoch) == list(range(count)) for epoch in epochs)
    for epoch in epochs:
        runs = [
            pairs[a].prompt
            for a, b in itertools.pairwise(epoch)
            if pairs[a].prompt != pairs[b].prompt
        ]
        assert len(runs) == len({pair.prompt for pair in pairs}) - 1


@given(st.lists(st.tuples(st.integers(1, 40), st.integers(1, 9)), min_size=4, max_size=40))
@settings(max_examples=20)
def test_batches_keep_all_tokens_and_have_few_shapes(sizes):
    pairs = [RenderedPair(tuple(range(1, n + 1)), (n + 1,) * m, (n + 2,) * m, 0) for n, m in sizes]
    steps = [range(i, min(i + 4, len(pairs))) for i in range(0, len(pairs), 4)]
    batches = PairBatches(pairs, steps, share="pair", max_length=64)
    shapes = set()
    for n, members in enumerate(steps):
        batch = batches.make(n, np.zeros((len(pairs), 2)))
        numbers = batches.numbers(n)
        assert sorted(numbers[numbers >= 0]) == list(members)
        expected = sum(sizes[i][0] + 2 * sizes[i][1] for i in members)
        assert batch.rows.num_tokens == expected
        shapes.add(batch.rows.tokens.shape)
    assert len({shape[1] for shape in shapes}) == 1
    assert len(shapes) <= 8


@pytest.mark.parametrize("share", SHARES)
def test_a_pair_that_is_in_a_batch_twice_counts_twice(share):
    pairs = random_pairs(3)
    numbers = [[0, 1, 2, 0, 1, 2, 0, 1]]
    batches = PairBatches(pairs, numbers, share=share, max_length=64)
    found = batches.numbers(0)
    assert sorted(found[found >= 0]) == sorted(numbers[0])
    batch, graph = batches.make(0, np.zeros((3, 2))), tiny_model()
    said = np.asarray(response_logprobs(graph, batch))
    alone = logprobs(graph, pairs, share="none")
    np.testing.assert_allclose(said[found >= 0], alone[found[found >= 0]], atol=2e-5)


def test_bad_pairs_are_refused():
    one = [range(1)]
    with pytest.raises(InputError, match="there is no preference pair"):
        PairBatches([], [], share="pair", max_length=8)
    with pytest.raises(InputError, match="a pair has 10 tokens; the model's max_length is 8"):
        PairBatches([RenderedPair((1,) * 7, (2, 3, 4), (5,), 0)], one, share="pair", max_length=8)
    with pytest.raises(InputError, match="pair 0 has an empty prompt or response"):
        PairBatches([RenderedPair((1,), (2,), (), 0)], one, share="pair", max_length=8)
