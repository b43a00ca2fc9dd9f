"""A tiny model and engine that the tests of generation share, and the model's plain answers.

One geometry for all of them: each shape is compiled once. The reference is `Transformer.__call__`
over whole sequences, which knows no cache.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence

import jax
import numpy as np

from ixjax.generation import BlockPool, Context, Engine, EngineConfig, Request, SamplingConfig
from ixjax.generation.stops import StopTable
from ixjax.models import LoraConfig, ModelConfig, Transformer
from tests.models.tiny import random_model

CONFIG = ModelConfig(
    vocab_size=96,
    hidden_size=32,
    num_layers=2,
    num_heads=4,
    num_kv_heads=2,
    head_dim=8,
    intermediate_size=64,
    max_length=192,
    attention_bias=True,
)
LORA = LoraConfig(rank=2, alpha=4, targets=("query", "up"), adapters=2)
ROWS, STEPS = 4, 8
SIZES = EngineConfig(rows=ROWS, steps=STEPS, prefill_tokens=128)
LAYOUTS = ("contiguous", "paged")
GREEDY, FREE = SamplingConfig(temperature=0.0), SamplingConfig(temperature=1.0, top_p=0.9)
SEED = 5


@functools.lru_cache
def model(seed: int = 0, *, config: ModelConfig = CONFIG) -> Transformer:
    """Return a model with random weights."""
    return random_model(config, seed=seed)


def engine(
    of: Transformer | None = None,
    *,
    layout: str = "contiguous",
    pool_tokens: int = 0,
    pool: BlockPool | None = None,
    stops: dict[tuple[str, ...], StopTable] | None = None,
) -> Engine:
    """Return a new engine; those of one layout share what is compiled."""
    config = EngineConfig(
        layout=layout,
        rows=SIZES.rows,
        steps=SIZES.steps,
        prefill_tokens=SIZES.prefill_tokens,
        pool_tokens=pool_tokens,
    )
    return Engine(of or model(), config, pool=pool, stops=stops)


def draw(*lengths: int, seed: int = 0) -> list[list[int]]:
    """Return random token sequences of these lengths."""
    rng = np.random.default_rng([seed, *lengths])
    return [rng.integers(0, CONFIG.vocab_size, n).tolist() for n in lengths]


def joined(*parts: Sequence[Sequence[int]]) -> list[list[int]]:
    """Return the sequences of several lists, concatenated one by one."""
    return [[token for part in row for token in part] for row in zip(*parts, strict=True)]


def requests(
    contexts: Sequence[Context],
    *,
    sampling: SamplingConfig | Sequence[SamplingConfig] = FREE,
    limits: int | Sequence[int] = STEPS,
    ids: Sequence[int] | None = None,
    ends: Sequence[Sequence[int]] | None = None,
    **more,
) -> list[Request]:
    """Return a turn to decode for each context; settings are for all of them or one each."""
    count = len(contexts)
    samplings = [sampling] * count if isinstance(sampling, SamplingConfig) else sampling
    limits = [limits] * count if isinstance(limits, int) else limits
    return [
        Request(context, s, SEED, (i,), limit, tuple(end), **more)
        for context, s, i, limit, end in zip(
            contexts, samplings, ids or range(count), limits, ends or [()] * count, strict=True
        )
    ]


def say(own: Engine, contexts: Sequence[Context], **settings) -> list[list[int]]:
    """Return the tokens of a turn after each context."""
    return [request.tokens for request in own.decode(requests(contexts, **settings))]


_full = jax.jit(lambda model, tokens: jax.nn.log_softmax(model(tokens)))
_adapted = jax.jit(lambda model, tokens, of: jax.nn.log_softmax(model(tokens, adapters=of)))


def full_logprobs(
    sequences: Sequence[Sequence[int]],
    of: Transformer | None = None,
    *,
    adapters: Sequence[int] | None = None,
) -> list[np.ndarray]:
    """Return log-probabilities `[n, V]` after each token of each sequence, without a cache."""
    of, found = of or model(), []
    for first in range(0, len(sequences), ROWS):
        part = sequences[first : first + ROWS]
        padded = np.zeros((ROWS, of.config.max_length), np.int32)
        for row, sequence in enumerate(part):
            padded[row, : len(sequence)] = sequence
        if adapters is None:
            logprobs = np.asarray(_full(of, padded))
        else:
            chosen = np.zeros(ROWS, np.int32)
            chosen[: len(part)] = adapters[first : first + ROWS]
            logprobs = np.asarray(_adapted(of, padded, chosen))
        found += [logprobs[row, : len(sequence)] for row, sequence in enumerate(part)]
    return found


def greedy(
    sequences: Sequence[Sequence[int]],
    of: Transformer | None = None,
    *,
    steps: int = STEPS,
    adapters: Sequence[int] | None = None,
) -> list[list[int]]:
    """Return the argmax after each sequence, one full pass a token."""
    grown = [list(s) for s in sequences]
    for _ in range(steps):
        for row, logprobs in zip(grown, full_logprobs(grown, of, adapters=adapters), strict=True):
            row.append(int(logprobs[-1].argmax()))
    return [row[len(s) :] for row, s in zip(grown, sequences, strict=True)]


def assert_predicts(
    own: Engine,
    contexts: Sequence[Context],
    sequences: Sequence[Sequence[int]],
    of: Transformer | None = None,
    *,
    atol: float = 1e-4,
) -> None:
    """Assert that contexts hold sequences, and that one more token is followed as in a full pass.

    The log-probabilities of eight tokens after token 1 are compared.
    """
    assert [context.tokens for context in contexts] == [list(s) for s in sequences]
    asked = np.random.default_rng(0).integers(0, CONFIG.vocab_size, (len(contexts), 8))
    found = own.score(contexts, [[1]] * len(contexts), [[[t] for t in row] for row in asked])
    expected = full_logprobs([[*s, 1] for s in sequences], of)
    for row, logprobs, tokens in zip(found, expected, asked, strict=True):
        np.testing.assert_allclose(row, logprobs[-1][tokens], atol=atol)
