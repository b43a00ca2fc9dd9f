"""Requests for turns, their progress, and the sampling state of a batch of them.

Axes: R rows of a batch, E end tokens, A sets of stop strings, Q states of their automata,
V vocabulary.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import numpy as np

from ixjax.generation.blocks import Context
from ixjax.generation.sampling import RowSampling, SamplingConfig, SamplingState
from ixjax.generation.stops import START, StopTable, stack_stops, state_after
from ixjax.generation.turns import as_uint32
from ixjax.padding import bucket, pad

NO_TOKEN = -1
MOST_PARTS = 8  # of an identity


@dataclasses.dataclass(eq=False)
class Request:
    """One turn to decode.

    context: the tokens before the turn; the sampled tokens are appended to it.
    sampling: temperature and the like; its `max_new_tokens` and `stop` are not used.
    seed: of the run; its last 32 bits count.
    identity: at most `MOST_PARTS` uint32 numbers; the turn is a function of them, the seed and the
        context.
    limit: most tokens to sample, 1 or more.
    end_ids: tokens that end the turn.
    stop: stop strings that end it: one of the engine's sets, or none.
    turns: turns of its dialogue so far; requests with fewer enter the batch first.

    The engine fills in:

    tokens: sampled so far, the end token included.
    logprobs: of each token under the full softmax.
    ended: whether an end token or a stop string ended the turn.
    done: whether it ended or reached its limit.
    """

    context: Context
    sampling: SamplingConfig
    seed: int
    identity: tuple[int, ...]
    limit: int
    end_ids: Sequence[int] = ()
    stop: tuple[str, ...] = ()
    turns: int = 0
    tokens: list[int] = dataclasses.field(default_factory=list, init=False)
    logprobs: list[float] = dataclasses.field(default_factory=list, init=False)
    ended: bool = dataclasses.field(default=False, init=False)
    done: bool = dataclasses.field(default=False, init=False)


class StopSets:
    """Sets of stop strings that requests choose from.

    Args:
        tables: the automaton of each set.
        vocab_size: V.

    Attributes:
        vocab_size: see the argument.
        array: `[A, Q, V]` all tables (see `stack_stops`).
    """

    def __init__(self, tables: Mapping[tuple[str, ...], StopTable], *, vocab_size: int):
        self.vocab_size = vocab_size
        self._tables = [None, *tables.values()]
        self._numbers = {strings: i for i, strings in enumerate(tables, start=1)}
        self.array = jax.numpy.asarray(stack_stops([*tables.values()], vocab_size=vocab_size))

    def number(self, strings: tuple[str, ...]) -> int:
        """Return the index of a set in `array`; 0 for no strings.

        Raises:
            ValueError: the engine was made without this set.
        """
        if strings and strings not in self._numbers:
            known = ", ".join(map(str, self._numbers)) or "none"
            raise ValueError(
                f"stop strings {strings} are unknown to this engine; expected one of its sets: "
                f"{known}. Make it with the sampling of every speaker that shares it"
            )
        return self._numbers[strings] if strings else 0

    def state(self, number: int, said: Sequence[int]) -> int:
        """Return the state of a set's automaton after the tokens of a turn."""
        table = self._tables[number]
        return START if table is None else state_after(table, said)


def sampling_state(
    rows: Sequence[Request | None], *, steps: int, room: np.ndarray, stay: int, stops: StopSets
) -> SamplingState:
    """Return the sampling state of a decode pass.

    Args:
        rows: R requests; None for a row that is padding. At least one is a request.
        steps: most tokens to sample.
        room: `[R]` columns of each row's turn buffer that are free.
        stay: see `SamplingState`.
        stops: the engine's.
    """
    first = next(request for request in rows if request is not None)
    every = [first if request is None else request for request in rows]
    sets = [stops.number(request.stop) for request in every]
    states = [stops.state(n, request.tokens) for n, request in zip(sets, every, strict=True)]
    limits = [
        0 if request is None else min(request.limit - len(request.tokens), steps, int(free))
        for request, free in zip(rows, room, strict=True)
    ]
    arrays: dict[str, Any] = {
        "tokens": np.array([request.context.tokens[-1] for request in every], np.int32),
        "seeds": as_uint32([request.seed for request in every]),
        "identities": _identities([request.identity for request in every]),
        "parts": np.array([len(request.identity) for request in every], np.int32),
        "offsets": np.array([len(request.tokens) for request in every], np.int32),
        "limits": np.array(limits, np.int32),
        "end_ids": _end_ids([request.end_ids for request in every]),
        "seen": _seen(every, stops.vocab_size),
        "stop_sets": np.array(sets, np.int32),
        "stop_states": np.array(states, np.int32),
        "stay": np.int32(stay),
    }
    settings = RowSampling.of([request.sampling for request in every])
    return SamplingState(rows=settings, stop_tables=stops.array, **arrays)


def idle_state(rows: int, ends: int, *, stops: StopSets) -> SamplingState:
    """Return a state of the same shapes in which no row samples.

    Args:
        rows: R.
        ends: E, before padding.
        stops: the engine's.
    """
    none: Any = np.zeros(rows, np.int32)
    identities: Any = np.zeros((rows, MOST_PARTS), np.uint32)
    return SamplingState(
        tokens=none,
        seeds=none.astype(np.uint32),
        identities=identities,
        parts=none,
        offsets=none,
        limits=none,
        end_ids=_end_ids([[0] * ends] * rows),
        rows=RowSampling.of([SamplingConfig()] * rows),
        seen=_nothing(rows, stops.vocab_size),
        stop_tables=stops.array,
        stop_sets=none,
        stop_states=none,
        stay=none[0],
    )


def _identities(identities: Sequence[tuple[int, ...]]) -> np.ndarray:
    """Return `[R, MOST_PARTS]` uint32, padded with zeros."""
    filled = np.zeros((len(identities), MOST_PARTS), np.int64)
    for row, parts in enumerate(identities):
        filled[row, : len(parts)] = parts
    return as_uint32(filled)


def _seen(requests: Sequence[Request], vocab_size: int) -> jax.Array:
    """Return `[R, V]` bool: tokens in the contexts of rows with a repetition penalty."""
    if all(request.sampling.repetition_penalty == 1 for request in requests):
        return _nothing(len(requests), vocab_size)
    seen = np.zeros((len(requests), vocab_size), bool)
    for i, request in enumerate(requests):
        if request.sampling.repetition_penalty != 1:
            seen[i, request.context.tokens] = True
    # A JAX array, as `_nothing` returns: jit would compile again for a NumPy array.
    return jax.numpy.asarray(seen)


@functools.lru_cache(maxsize=8)
def _nothing(rows: int, vocab_size: int) -> jax.Array:
    """Return `[R, V]` false; cached, since it is large and the usual case."""
    return jax.numpy.zeros((rows, vocab_size), bool)


def _end_ids(end_ids: Sequence[Sequence[int]]) -> Any:
    """Return `[R, E]`, padded with `NO_TOKEN`."""
    return pad(end_ids, bucket(max(map(len, end_ids))), NO_TOKEN)[0]
