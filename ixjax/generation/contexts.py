"""What the engine is given and what it gives: rows of contexts, turns to be said, turns said.

Axes: S cache rows, N of them that speak, R rows of a batch, V vocabulary.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import numpy as np

from ixjax.generation.buckets import bucket, pad
from ixjax.generation.cache import KVCache
from ixjax.generation.passes import Draws
from ixjax.generation.sampling import RowSampling, SamplingConfig
from ixjax.generation.stops import START, StopTable, stack_stops, state_after
from ixjax.generation.turns import as_uint32

NO_TOKEN = -1


@dataclasses.dataclass(frozen=True)
class Contexts:
    """Rows of live contexts: what the device holds, and what the host knows of it.

    cache: keys, values, and the logits behind the last token of each row.
    tokens: S tuples, what each row has read.
    adapters: `[S]` the adapter that each row is read with (-1: the base alone).
    version: the weights that it was made with.
    stale: `[S]` bool, rows that have read nothing since they were made or shortened: what lies
        there of logits is not theirs.
    """

    cache: KVCache
    tokens: tuple[tuple[int, ...], ...]
    adapters: np.ndarray  # [S]
    version: int
    stale: np.ndarray  # [S]

    @property
    def lengths(self) -> np.ndarray:
        """`[S]` tokens in each row."""
        return np.fromiter(map(len, self.tokens), int, len(self.tokens))

    @property
    def logits(self) -> jax.Array:
        """`[S, V]` float32 behind each row's last token, where it is not stale."""
        return self.cache.logits


@dataclasses.dataclass(frozen=True)
class Turns:
    """What rows are to say: how it is drawn and where it ends.

    Each array has one entry for each of the N `rows`.

    sampling: temperature and the like; its own `max_new_tokens` and `stop` are not used.
    seed: of the run, for all rows or for each; its last 32 bits count.
    identities: `[N, k]` uint32, what each row is (see `sampling.identity_keys`).
    limits: `[N]` tokens sampled at most; a row with 0 neither samples nor grows.
    end_ids: tokens that end a turn, for all rows or for each.
    stops: which of the engine's sets of stop strings ends a turn, counted from 1; 0: none.
    said: N sequences, what each row has said of its turn before; None: nothing.
    rows: which rows of the contexts, all different; None: all of them.
    """

    sampling: SamplingConfig | Sequence[SamplingConfig]
    seed: int | Sequence[int]
    identities: np.ndarray
    limits: Sequence[int] | np.ndarray
    end_ids: Sequence[int] | Sequence[Sequence[int]] = ()
    stops: int | Sequence[int] = 0
    said: Sequence[Sequence[int]] | None = None
    rows: Sequence[int] | np.ndarray | None = None


@dataclasses.dataclass(frozen=True)
class Decoded:
    """What was sampled, one entry for each of the N rows of `Turns`.

    tokens: N lists; the token that ended a turn is included.
    logprobs: N lists, the log-probability of each under the full softmax.
    running: `[N]` whether the row's turn can go on: it neither ended nor reached its limit. After
        `Engine.decode`, which leaves no turn unfinished, none can.
    ended: `[N]` whether an end token or a stop string ended it.
    """

    tokens: list[list[int]]
    logprobs: list[list[float]]
    running: np.ndarray  # [N]
    ended: np.ndarray  # [N]

    @property
    def counts(self) -> np.ndarray:
        """`[N]` tokens sampled, an end token included; 0 for rows that sampled none."""
        return np.array([len(row) for row in self.tokens])


class StopSets:
    """Sets of stop strings that rows choose from by number.

    Args:
        tables: the automaton of each set.
        vocab_size: V.

    Attributes:
        vocab_size: see the argument.
        array: `[A, Q, V]`, all of them (see `stack_stops`).
    """

    def __init__(self, tables: Mapping[tuple[str, ...], StopTable], *, vocab_size: int):
        self.vocab_size = vocab_size
        self._tables = [None, *tables.values()]
        self._numbers = {strings: i for i, strings in enumerate(tables, start=1)}
        self.array = jax.numpy.asarray(stack_stops([*tables.values()], vocab_size=vocab_size))

    def number(self, strings: tuple[str, ...]) -> int:
        """What `Turns.stops` says of a row that these strings stop; 0 where there are none."""
        if strings and strings not in self._numbers:
            known = ", ".join(map(str, self._numbers)) or "none"
            raise ValueError(
                f"stop strings {strings} are unknown to this engine (it has {known}); make it with "
                "the sampling of every speaker that shares it"
            )
        return self._numbers[strings] if strings else 0

    def state(self, number: int, said: Sequence[int]) -> int:
        """Where a turn stands in its set's automaton."""
        table = self._tables[number]
        return START if table is None else state_after(table, said)


def draws_of(
    turns: Turns,
    held: Sequence[tuple[int, ...]],
    entries: np.ndarray,
    used: np.ndarray,
    *,
    stay: int,
    stops: StopSets,
) -> Draws:
    """Some of the N `Turns`, as a pass takes them.

    Args:
        turns: what is to be said.
        held: R tuples, the tokens that each row of the batch holds.
        entries: `[R]` which of the turns each row is to say.
        used: `[R]` bool; the others are padding, and limited to nothing.
        stay: see `Draws`.
        stops: the engine's.
    """
    sampling, count = turns.sampling, len(turns.limits)
    if isinstance(sampling, SamplingConfig):
        sampling = [sampling] * count
    configs = [sampling[entry] for entry in entries]
    said = [() if turns.said is None else turns.said[entry] for entry in entries]
    sets = np.broadcast_to(np.asarray(turns.stops, np.int32), count)[entries]
    states = [stops.state(number, before) for number, before in zip(sets, said, strict=True)]
    limits = np.asarray(turns.limits, np.int32)[entries]
    arrays: dict[str, Any] = {
        "seeds": np.broadcast_to(as_uint32(turns.seed), count)[entries],
        "identities": as_uint32(turns.identities)[entries],
        "offsets": np.array([len(before) for before in said], np.int32),
        "limits": np.where(used, limits, 0),
        "end_ids": _end_ids(turns.end_ids, entries),
        "seen": _seen(held, configs, stops.vocab_size),
        "stop_sets": sets,
        "stop_states": np.array(states, np.int32),
        "stay": np.int32(stay),
    }
    return Draws(rows=RowSampling.of(configs), stop_tables=stops.array, **arrays)


def idle_draws(rows: int, parts: int, end_ids: Sequence[int], *, stops: StopSets) -> Draws:
    """Draws of which none is made, in the shapes of those of a batch.

    Args:
        rows: R.
        parts: of an identity.
        end_ids: as many as will end a turn.
        stops: the engine's.
    """
    turns = Turns(SamplingConfig(), 0, np.zeros((1, parts)), [0], end_ids)
    everyone = np.zeros(rows, np.int32)
    return draws_of(turns, [()] * rows, everyone, everyone > 0, stay=0, stops=stops)


def _seen(
    tokens: Sequence[tuple[int, ...]], configs: Sequence[SamplingConfig], vocab_size: int
) -> jax.Array:
    """`[R, V]` bool: tokens that rows with a repetition penalty hold."""
    if all(config.repetition_penalty == 1 for config in configs):
        return _nothing(len(configs), vocab_size)
    seen = np.zeros((len(configs), vocab_size), bool)
    for i, (held, config) in enumerate(zip(tokens, configs, strict=True)):
        if config.repetition_penalty != 1:
            seen[i, list(held)] = True
    # An array of NumPy's would be another signature to jit than that of `_nothing`.
    return jax.numpy.asarray(seen)


@functools.lru_cache(maxsize=8)
def _nothing(rows: int, vocab_size: int) -> jax.Array:
    """`[R, V]` of no token seen, made once: it is large, and hardly ever anything else."""
    return jax.numpy.zeros((rows, vocab_size), bool)


def _end_ids(end_ids: Sequence[int] | Sequence[Sequence[int]], entries: np.ndarray) -> np.ndarray:
    """`[R, E]`, filled up with a token that no row samples."""
    per_row = any(isinstance(ids, Sequence) for ids in end_ids)
    each: Any = [end_ids[entry] for entry in entries] if per_row else [end_ids] * len(entries)
    return pad(each, bucket(max(map(len, each))), NO_TOKEN)[0]
