"""Draws follow the distribution they should, and belong to an identity alone."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from scipy import stats

from ixjax.generation.sampling import (
    RowSampling,
    SamplingConfig,
    identity_keys,
    invert,
    keep_nucleus,
    keep_top_k,
    penalise,
    sample,
    uniforms,
)

LOGITS = np.array([1.5, -0.3, 0.8, -2.0, 0.1, 1.1, -0.9, 0.4], np.float32)
DRAWS = 20_000


@jax.jit
def keys_of(seed, identities):
    return identity_keys(jnp.broadcast_to(seed, len(identities)), identities)


@jax.jit
def draw_rows(logits, identities, rows, seen):
    uniform = uniforms(keys_of(jax.random.key(11), identities))
    return sample(logits, uniform, rows, seen)


def draw(logits, identities, *configs, seen=None, **settings):
    """Tokens and log-probabilities; one config for all rows, or one each."""
    configs = configs or [SamplingConfig(**settings)] * len(logits)
    seen = np.zeros(np.shape(logits), bool) if seen is None else seen
    return draw_rows(logits, identities, RowSampling.of(configs), seen)


def identities(count: int, *more: int) -> np.ndarray:
    rest = np.broadcast_to(np.array(more, np.uint32), (count, len(more)))
    return np.concatenate([np.arange(count, dtype=np.uint32)[:, None], rest], axis=1)


def softmax(x: np.ndarray) -> np.ndarray:
    x = np.exp(x.astype(np.float64) - x.max())
    return x / x.sum()


SETTINGS = [
    {},
    {"temperature": 0.6},
    {"temperature": 1.7},
    {"top_p": 0.8},
    {"temperature": 0.8, "top_p": 0.5},
    {"top_p": 0.2},  # most draws fall outside: rows reach the threshold
    {"top_k": 3},
    {"min_p": 0.3},
    {"top_k": 6, "top_p": 0.7, "min_p": 0.3, "temperature": 1.4},
]


def warp(logits: np.ndarray, config: SamplingConfig) -> np.ndarray:
    """Scores as transformers' own processors leave them: -inf where a token is not kept."""
    torch = pytest.importorskip("torch", reason="transformers' warpers need torch")
    processors = pytest.importorskip("transformers.generation.logits_process")
    scores = torch.tensor(logits)
    if config.temperature != 1:
        scores = processors.TemperatureLogitsWarper(config.temperature)(None, scores)
    if config.top_k:
        scores = processors.TopKLogitsWarper(config.top_k)(None, scores)
    if config.top_p < 1:
        scores = processors.TopPLogitsWarper(config.top_p)(None, scores)
    if config.min_p:
        scores = processors.MinPLogitsWarper(config.min_p)(None, scores)
    return scores.numpy()


@pytest.mark.parametrize("settings", SETTINGS)
def test_frequencies_are_those_of_transformers_distribution(settings):
    tokens, _ = draw(np.tile(LOGITS, (DRAWS, 1)), identities(DRAWS, 3), **settings)
    expected = DRAWS * softmax(warp(LOGITS[None], SamplingConfig(**settings))[0])
    counts = np.bincount(tokens, minlength=len(LOGITS))
    kept = expected > 0
    assert counts[kept].sum() == DRAWS
    if kept.sum() > 1:  # 1 in 1000 seeds would fail; the seed is fixed
        assert stats.chisquare(counts[kept], expected[kept]).pvalue > 1e-3


def test_every_row_has_its_own_settings():
    configs = [SamplingConfig(**settings) for settings in SETTINGS]
    logits = np.tile(LOGITS, (len(SETTINGS), 1))
    together, _ = draw(logits, identities(len(SETTINGS), 3), *configs)
    alone = [
        draw(LOGITS[None], identities(len(SETTINGS), 3)[[row]], config)[0][0]
        for row, config in enumerate(configs)
    ]
    np.testing.assert_array_equal(together, alone)


def test_changing_a_setting_compiles_nothing():
    rows = np.tile(LOGITS, (4, 1))
    draw(rows, identities(4))
    before = draw_rows._cache_size()
    for changes in SETTINGS:
        draw(rows, identities(4), repetition_penalty=1.3, **changes)
    assert draw_rows._cache_size() == before


def test_zero_temperature_takes_the_most_likely_token():
    logits = np.random.default_rng(0).normal(size=(64, 33)).astype(np.float32)
    tokens, _ = draw(logits, identities(64), temperature=0.0)
    np.testing.assert_array_equal(tokens, logits.argmax(-1))


@pytest.mark.parametrize(("temperature", "top_p"), [(0.0, 1.0), (0.5, 0.7), (1.0, 1.0)])
def test_log_probabilities_are_those_of_the_plain_softmax(temperature, top_p):
    logits = np.random.default_rng(1).normal(size=(64, 33)).astype(np.float32)
    tokens, logprobs = draw(logits, identities(64), temperature=temperature, top_p=top_p)
    expected = [np.log(softmax(row))[token] for row, token in zip(logits, tokens, strict=True)]
    np.testing.assert_allclose(logprobs, expected, atol=1e-5)


@settings(max_examples=40)
@given(st.integers(0, 2**32 - 1), st.floats(0.05, 0.99), st.floats(0.3, 4.0))
def test_the_nucleus_is_that_of_transformers(seed, top_p, scale):
    logits = (scale * np.random.default_rng(seed).normal(size=(4, 50))).astype(np.float32)
    probabilities = np.stack([softmax(row) for row in logits])
    mass = np.cumsum(-np.sort(-probabilities, axis=-1), axis=-1)
    assume(np.abs(mass - top_p).min() > 1e-5)  # float32 sums may fall on either side
    weights = (probabilities / probabilities.max(-1, keepdims=True)).astype(np.float32)
    kept = jax.jit(keep_nucleus)(weights, np.full(4, top_p, np.float32))
    expected = np.isfinite(warp(logits, SamplingConfig(top_p=top_p)))
    np.testing.assert_array_equal(np.asarray(kept) > 0, expected)


@settings(max_examples=40)
@given(st.integers(0, 2**32 - 1), st.integers(1, 60), st.booleans())
def test_the_top_k_are_those_of_transformers(seed, top_k, ties):
    logits = np.random.default_rng(seed).normal(size=(4, 50)).astype(np.float32)
    logits = logits.round(1) if ties else logits
    weights = np.exp(logits - logits.max(-1, keepdims=True))
    kept = jax.jit(keep_top_k)(weights, np.full(4, top_k, np.int32))
    expected = np.isfinite(warp(logits, SamplingConfig(top_k=top_k)))
    np.testing.assert_array_equal(np.asarray(kept) > 0, expected)


@settings(max_examples=20)
@given(
    st.integers(0, 2**32 - 1),
    st.integers(0, 20),
    st.floats(0.1, 1.0),
    st.floats(0.0, 0.5),
    st.floats(0.5, 2.0),
)
def test_only_what_transformers_keeps_is_drawn(seed, top_k, top_p, min_p, temperature):
    logits = np.random.default_rng(seed).normal(scale=2, size=(1, 50)).astype(np.float32)
    config = SamplingConfig(temperature=temperature, top_k=top_k, top_p=top_p, min_p=min_p)
    kept = np.flatnonzero(np.isfinite(warp(logits, config)[0]))
    tokens, _ = draw(np.tile(logits, (200, 1)), identities(200), *[config] * 200)
    assert set(np.asarray(tokens).tolist()) <= set(kept.tolist())


def test_the_repetition_penalty_is_that_of_transformers():
    torch = pytest.importorskip("torch", reason="transformers' processors need torch")
    processors = pytest.importorskip("transformers.generation.logits_process")
    rng = np.random.default_rng(0)
    logits = rng.normal(size=(3, 20)).astype(np.float32)
    context = rng.integers(0, 20, (3, 7))
    seen = np.zeros((3, 20), bool)
    np.put_along_axis(seen, context, values=True, axis=1)
    config = SamplingConfig(repetition_penalty=1.4)
    processor = processors.RepetitionPenaltyLogitsProcessor(1.4)
    expected = processor(torch.tensor(context), torch.tensor(logits)).numpy()
    found = penalise(logits, seen, RowSampling.of([config] * 3))
    np.testing.assert_allclose(found, expected, rtol=1e-6)
    greedy, _ = draw(logits, identities(3), seen=seen, repetition_penalty=1.4, temperature=0.0)
    np.testing.assert_array_equal(greedy, expected.argmax(-1))


def test_a_peaked_nucleus_is_one_token():
    kept = keep_nucleus(jnp.array([[0.05, 1.0, 0.05]]), jnp.array([0.5]))
    np.testing.assert_allclose(kept, [[0.0, 1.0, 0.0]])


def test_a_token_of_zero_weight_is_never_drawn():
    # Targets on the cumulative sums themselves, where a parallel sum is not monotonic.
    rng = np.random.default_rng(0)
    weights = rng.random(20_000, np.float32) * (rng.random(20_000) < 0.3)
    weights = (weights / weights.sum()).astype(np.float32)
    cumulative = np.asarray(jnp.cumsum(weights))
    uniform = (cumulative / cumulative[-1])[rng.integers(0, 19_900, 400)]
    rows = np.broadcast_to(weights, (400, 20_000))
    tokens = jax.jit(invert)(rows, uniform)
    assert (weights[tokens] > 0).all()


def test_the_ends_of_the_unit_interval_give_the_first_and_last_possible_token():
    weights = jnp.array([[0.0, 0.5, 0.0, 0.5, 0.0]] * 2)
    last = np.nextafter(np.float32(1), np.float32(0))
    tokens = invert(weights, jnp.array([0.0, last]))
    np.testing.assert_array_equal(tokens, [1, 3])


def test_the_same_identity_draws_the_same_token_in_any_row_of_any_batch():
    logits = np.tile(LOGITS, (500, 1))
    tokens, _ = draw(logits, identities(500, 7))
    order = np.random.default_rng(2).permutation(500)
    shuffled, _ = draw(logits, identities(500, 7)[order])
    np.testing.assert_array_equal(shuffled, tokens[order])
    few, _ = draw(logits[:3], identities(500, 7)[100:103])
    np.testing.assert_array_equal(few, tokens[100:103])


def test_keys_differ_in_every_part_of_an_identity_their_order_and_the_seed():
    rows = np.array([[1, 2], [2, 1], [1, 3], [2, 2], [0, 0], [2**32 - 1, 0]], np.uint32)
    seeds = [jax.random.key(s) for s in (0, 1)]
    keys = {tuple(k.tolist()) for s in seeds for k in jax.random.key_data(keys_of(s, rows))}
    assert len(keys) == 12


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("temperature", -0.1, "temperature is -0.1; expected .*0 or more"),
        ("temperature", float("nan"), "temperature is nan; expected .*0 or more"),
        ("top_k", -1, "top_k is -1; expected .*0 or more"),
        ("min_p", 1.5, r"min_p is 1.5; expected 0 to 1"),
        ("repetition_penalty", 0.0, "repetition_penalty is 0.0; expected .*above 0"),
        ("top_p", 0.0, r"top_p is 0.0; expected .*1 at most"),
        ("top_p", 1.1, r"top_p is 1.1; expected .*1 at most"),
        ("max_new_tokens", 0, "max_new_tokens is 0; expected 1 or more"),
        (
            "stop",
            ("User:", ""),
            r"stop is \('User:', ''\); expected a tuple of texts, none .* empty",
        ),
        ("stop", "User:", "stop is 'User:'; expected a tuple of texts"),
    ],
)
def test_values_out_of_range_are_refused(field, value, message):
    with pytest.raises(ValueError, match=message):
        SamplingConfig(**{field: value})
