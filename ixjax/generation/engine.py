"""The engine: token ids in, token ids out, over rows of a KV cache.

Three operations share one forward pass. `extend` reads new tokens into rows (prefill and appending
a turn are the same thing), `decode` samples turns, and `score` gives the log-probability of given
continuations without keeping them. The engine knows no text and no roles;
`ixjax.generation.speakers` does.

Contexts may be any number of rows. The engine works on batches of a fixed number of them, so that
few shapes are ever compiled (`ixjax.generation.buckets`) and a row that has nothing to do costs
nothing. What is compiled lies in `ixjax.generation.passes`.

Axes: S cache rows, R rows of a batch, V vocabulary, C candidates.
"""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Collection, Mapping, Sequence

import jax
import numpy as np

from ixjax.generation import passes
from ixjax.generation.account import Account
from ixjax.generation.attention import Implementation
from ixjax.generation.buckets import (
    FEW,
    Group,
    bucket,
    filled,
    group,
    pad,
    span_of,
)
from ixjax.generation.cache import SIDE, KVCache
from ixjax.generation.checks import (
    check_adapters,
    check_logits,
    check_room,
    check_rows,
    check_scored,
    check_tokens,
    check_turns,
)
from ixjax.generation.config import EngineConfig
from ixjax.generation.contexts import (
    Contexts,
    Decoded,
    StopSets,
    Turns,
    draws_of,
    idle_draws,
)
from ixjax.generation.executor import Executor
from ixjax.generation.stops import StopTable
from ixjax.models import Transformer

_versions = itertools.count()  # of weights, in this process


class Engine:
    """Reads and samples for one model.

    Args:
        model: the decoder; its parameters may be sharded over a mesh.
        config: sizes of its batches, and the attention kernel.
        stops: sets of stop strings that rows may choose from (see `stop_set`).
        account: where its work is added up; default a new one.

    Attributes:
        account: see the argument.
    """

    def __init__(
        self,
        model: Transformer,
        config: EngineConfig | None = None,
        *,
        stops: Mapping[tuple[str, ...], StopTable] | None = None,
        account: Account | None = None,
    ):
        self.model_config = model.config
        self.config = config or EngineConfig()
        self.account = account or Account()
        self._stops = StopSets(stops or {}, vocab_size=model.config.vocab_size)
        self._executor = Executor(model, self.config, self.account)
        self.update(model)

    @property
    def attention(self) -> Implementation:
        """The attention kernel that was chosen."""
        return self._executor.attention

    def __str__(self) -> str:
        config = self.config
        return (
            f"attention {self.attention}, batches of {config.rows} rows that speak and of "
            f"{config.prefill_tokens} tokens that are read"
        )

    def update(self, model: Transformer) -> None:
        """Take other weights of the same shape; contexts made with the former are refused.

        Raises:
            ValueError: the model has another shape.
        """
        if model.config != self.model_config:
            raise ValueError(
                f"this engine was made for {self.model_config}, not for {model.config}"
            )
        self._executor.use(model)
        self._version = next(_versions)
        self._spare: Contexts | None = None

    def stop_set(self, strings: tuple[str, ...]) -> int:
        """What `Turns.stops` says of a row that these strings stop; 0 where there are none."""
        return self._stops.number(strings)

    def empty(self, rows: int, *, adapters: Sequence[int] | int = 0) -> Contexts:
        """Rows that have read nothing.

        Args:
            rows: S.
            adapters: the adapter of each row, or of all; -1: the base alone.

        Raises:
            ValueError: there is no row, or no such adapter, or not one for each row.
        """
        if rows < 1:
            raise ValueError(f"rows is {rows}; it must be at least 1")
        chosen = np.asarray(adapters, np.int32)
        if chosen.ndim:
            check_rows("adapters", len(chosen), rows)
        chosen = np.broadcast_to(chosen, (rows,))
        check_adapters(chosen, self.model_config)
        cache = self._executor.allocate(rows)
        return Contexts(cache, ((),) * rows, chosen, self._version, stale=np.ones(rows, bool))

    def borrow(self, adapters: Sequence[int]) -> Contexts:
        """Rows with these adapters whose content is anything, to `give_back` when done with.

        Large caches take long to allocate; rows that were given back before are handed out again.
        """
        spare, self._spare = self._spare, None
        if spare is not None and spare.adapters.tolist() == list(adapters):
            return spare
        return self.empty(len(adapters), adapters=adapters)

    def give_back(self, contexts: Contexts) -> None:
        """Keep rows that nobody needs any more for the next `borrow`; the last ones alone."""
        if contexts.version == self._version:
            self._spare = contexts

    def extend(self, contexts: Contexts, tokens: Sequence[Sequence[int]]) -> Contexts:
        """Read `tokens[s]` into row s (an empty sequence leaves it as it is).

        The given contexts are consumed. What is long is read in pieces.

        Raises:
            ValueError: a row would outgrow the model's `max_length`, a token is none of its
                vocabulary, `tokens` has not one entry a row, or the contexts were made with other
                weights.
        """
        check_rows("tokens", len(tokens), len(contexts.tokens))
        given = dict(enumerate(tokens))
        return self.extend_some(contexts, given, needed=given, enough=len(given))[0]

    def extend_some(
        self,
        contexts: Contexts,
        tokens: Mapping[int, Sequence[int]],
        *,
        needed: Collection[int],
        enough: int,
    ) -> tuple[Contexts, dict[int, tuple[int, ...]]]:
        """As `extend`, of tokens by row, until `enough` of `needed` have nothing left to read.

        Padding takes as long as tokens do, so passes that are filled go first, whoever's they are;
        what does not fill one may wait for more of its kind.

        Returns:
            The contexts, and what rows have still to read.

        Raises:
            ValueError: see `extend`.
        """
        self._check(contexts)
        left = {row: tuple(given) for row, given in tokens.items() if len(given)}
        check_tokens(left, self.model_config)
        check_room(contexts, {row: len(given) for row, given in left.items()}, self.model_config)
        with self.account.clock("prefill"):
            while left:
                groups = group(
                    {row: len(rest) for row, rest in left.items()},
                    {row: len(contexts.tokens[row]) for row in left},
                    prefill_tokens=self.config.prefill_tokens,
                    most_rows=len(contexts.tokens),
                )
                full = [part for part in groups if part.full]
                wanted = left.keys() & set(needed)
                if not full and len(needed) - len(wanted) >= enough:
                    break
                most = max(groups, key=lambda part: len(wanted.intersection(part.rows)))
                for part in full or [most]:
                    contexts = self._read(contexts, left, part)
            # Waited for here, for the clock: whatever is asked of the rows next would wait for it.
            jax.block_until_ready(contexts.cache.lengths)
        return contexts, left

    def _read(self, contexts: Contexts, left: dict[int, tuple[int, ...]], part: Group) -> Contexts:
        """Read the next piece of some rows; `left` is what they have to read then."""
        rows = filled(part.rows, part.size)
        tokens, counts = pad([left[row][: part.piece] for row in rows.tolist()], part.piece)
        span = self._span(contexts.tokens, part.rows)
        cache = self._executor.extend(
            contexts.cache, part.rows, tokens, counts, contexts.adapters[rows], span=span
        )
        self.account.prefill_tokens += int(counts[: len(part.rows)].sum())
        self.account.prefill_slots += part.size * part.piece
        held, stale = list(contexts.tokens), contexts.stale.copy()
        stale[part.rows] = False
        for row in part.rows:
            held[row] += left[row][: part.piece]
            left[row] = left[row][part.piece :]
            if not left[row]:
                del left[row]
        return dataclasses.replace(contexts, cache=cache, tokens=tuple(held), stale=stale)

    def decode(self, contexts: Contexts, turns: Turns) -> tuple[Contexts, Decoded]:
        """Sample each row's turn to its end, from its logits on.

        The given contexts are consumed. Sampled tokens are read into the row, the end token that
        closed it is not. A row that was stopped by its limit alone can be decoded on. Of more rows
        than a batch has, those that have ended make room for others.

        Raises:
            ValueError: a row would outgrow its room or has read nothing since it was made or
                shortened, what `turns` say is not said of each of their rows, or the contexts were
                made with other weights.
        """
        check_turns(turns, len(contexts.tokens))
        limits = np.array(turns.limits, np.int32)
        said = [tuple(row) for row in turns.said or [()] * len(limits)]
        tokens: list[list[int]] = [[] for _ in said]
        logprobs: list[list[float]] = [[] for _ in said]
        running, ended = limits > 0, np.zeros(len(limits), bool)
        size = self._executor.batch_rows(len(contexts.tokens))
        while running.any():
            # As many as there are places; a pause where others wait for one of them.
            entries = np.flatnonzero(running)[:size]
            stay = size - max(size // FEW, 1) if running.sum() > size else 0
            chosen = np.isin(np.arange(len(limits)), entries)
            part = dataclasses.replace(
                turns,
                limits=np.where(chosen, limits - [len(row) for row in tokens], 0),
                said=[(*before, *row) for before, row in zip(said, tokens, strict=True)],
            )
            contexts, decoded = self.decode_chunk(contexts, part, stay=stay)
            for entry in entries:
                tokens[entry] += decoded.tokens[entry]
                logprobs[entry] += decoded.logprobs[entry]
            running[entries] = decoded.running[entries]
            ended |= decoded.ended
        return contexts, Decoded(tokens, logprobs, running, ended)

    def decode_chunk(
        self, contexts: Contexts, turns: Turns, *, stay: int = 0
    ) -> tuple[Contexts, Decoded]:
        """As `decode`, of `config.steps` tokens a row at most; those that it cut are `running`.

        Args:
            contexts: consumed.
            turns: what is to be said; rows beyond the first `config.rows` are put into further
                batches.
            stay: a batch pauses once no more than `stay` of its rows still run, so that others
                can take the places of those that have ended.

        Raises:
            ValueError: see `decode`.
        """
        self._check(contexts)
        check_turns(turns, len(contexts.tokens))
        everyone = range(len(contexts.tokens)) if turns.rows is None else turns.rows
        rows, limits = np.asarray(everyone, int), np.asarray(turns.limits, np.int32)
        active = np.flatnonzero(limits > 0)
        asked = dict(zip(rows[active].tolist(), limits[active].tolist(), strict=True))
        check_room(contexts, asked, self.model_config)
        check_logits(contexts, rows[active])
        size = self._executor.batch_rows(len(contexts.tokens))
        running, ended = limits > 0, np.zeros(len(limits), bool)
        tokens: list[list[int]] = [[] for _ in limits]
        logprobs: list[list[float]] = [[] for _ in limits]
        with self.account.clock("decode"):
            for start in range(0, len(active), size):
                entries = active[start : start + size]
                contexts, sampled, slots = self._decode_batch(contexts, turns, rows, entries, stay)
                for entry, slot in zip(entries, slots, strict=True):
                    count = int(sampled.counts[slot])
                    tokens[entry] = sampled.tokens[slot, :count].tolist()
                    logprobs[entry] = sampled.logprobs[slot, :count].tolist()
                    ended[entry] = sampled.kept[slot] < count
                    running[entry] = not ended[entry] and count < limits[entry]
        return contexts, Decoded(tokens, logprobs, running, ended)

    def _decode_batch(
        self, contexts: Contexts, turns: Turns, everyone: np.ndarray, entries: np.ndarray, stay: int
    ) -> tuple[Contexts, passes.Sampled, np.ndarray]:
        """One pass over some of the turns: contexts after it, what was sampled, each one's slot.

        Args:
            contexts: consumed.
            turns: N of them.
            everyone: `[N]` their rows.
            entries: which turns.
            stay: see `decode_chunk`.
        """
        rows = everyone[entries].tolist()
        adapters = contexts.adapters[rows].tolist()
        said = [() if turns.said is None else turns.said[entry] for entry in entries]
        aside = [len(before) % SIDE for before in said]
        before = [contexts.tokens[row] for row in rows]
        batch, slots = self._executor.place(
            contexts.cache, rows, list(zip(before, adapters, aside, strict=True))
        )
        # Slots that no row is in are padding, and limited to nothing.
        size = len(batch.lengths)
        entry_of, fills, starts = np.full(size, entries[0]), *np.zeros((2, size), np.int32)
        entry_of[slots], fills[slots] = entries, aside
        starts[slots] = [len(held) - count for held, count in zip(before, aside, strict=True)]
        used, row_of = np.isin(np.arange(size), slots), everyone[entry_of]
        held = [contexts.tokens[row] for row in row_of]
        draws = draws_of(turns, held, entry_of, used, stay=stay, stops=self._stops)
        decoded = self._executor.decode(batch, starts, fills, contexts.adapters[row_of], draws)
        found = jax.device_get(decoded[2])
        tokens = list(contexts.tokens)
        for row, slot in zip(rows, slots, strict=True):
            tokens[row] = (*tokens[row], *found.tokens[slot, : found.kept[slot]].tolist())
        keys = [
            (tokens[row], adapter, count + int(found.kept[slot]))
            for row, slot, adapter, count in zip(rows, slots, adapters, aside, strict=True)
        ]
        cache = self._executor.keep(
            contexts.cache, rows, slots, batch, decoded, fills, keys, int(found.kept.max())
        )
        self.account.decode_tokens += int(found.counts.sum())
        self.account.decode_slots += size * int(found.counts.max())
        contexts = dataclasses.replace(contexts, cache=cache, tokens=tuple(tokens))
        return contexts, found, slots

    def score(
        self,
        contexts: Contexts,
        prefixes: Sequence[Sequence[int]],
        candidates: Sequence[Sequence[Sequence[int]]],
        rows: Sequence[int] | np.ndarray | None = None,
    ) -> np.ndarray:
        """Log-probability of each candidate continuation after a forced prefix; nothing is kept.

        Args:
            contexts: the rows; still valid afterwards.
            prefixes: a token sequence of at least one token for each row, read but not scored.
            candidates: for each row, C token sequences; an empty one scores 0.
            rows: which rows; default all S.

        Returns:
            `[len(rows), C]` float32 sums of token log-probabilities.

        Raises:
            ValueError: a prefix is empty, a row would outgrow the model's `max_length`, a token is
                none of its vocabulary, there is not one entry a row or not as many candidates in
                each, or the contexts were made with other weights.
        """
        self._check(contexts)
        rows = np.arange(len(contexts.tokens)) if rows is None else np.asarray(rows)
        check_scored(contexts, prefixes, candidates, rows.tolist(), self.model_config)
        prefix, prefix_counts = pad(prefixes, bucket(max(map(len, prefixes))))
        longest = bucket(max(len(c) for row in candidates for c in row))
        padded = [pad(row, longest) for row in candidates]
        tails = np.stack([tokens for tokens, _ in padded], axis=1)  # [C, rows, n]
        tail_counts = np.stack([counts for _, counts in padded], axis=1)
        full, few = self._executor.score_rows(len(contexts.tokens))
        scores, left = [], np.arange(len(rows))
        with self.account.clock("score"):
            while len(left):
                size = full if len(left) > full // 2 else few
                part, left = left[:size], left[size:]
                places = filled(part, size)
                chosen = rows[places]
                found = self._executor.score(
                    contexts.cache,
                    chosen.tolist(),
                    prefix[places],
                    prefix_counts[places],
                    tails[:, places],
                    tail_counts[:, places],
                    contexts.adapters[chosen],
                    span=self._span(contexts.tokens, chosen),
                )
                scores.append(np.asarray(found)[: len(part)])
        self.account.score_tokens += int(prefix_counts.sum() + tail_counts.sum())
        return np.concatenate(scores)

    def fork(self, contexts: Contexts, rows: Sequence[int] | np.ndarray) -> Contexts:
        """Row i of the result is a copy of row `rows[i]`; the source stays valid."""
        empty = self.empty(len(rows))
        return self.store(empty, np.arange(len(rows)), contexts, np.asarray(rows))

    def store(
        self,
        contexts: Contexts,
        rows: Sequence[int] | np.ndarray,
        source: Contexts,
        source_rows: Sequence[int] | np.ndarray,
    ) -> Contexts:
        """Overwrite `rows` with `source_rows` of `source`. The target is consumed.

        Raises:
            ValueError: the two were not made with the same weights.
        """
        self._check(contexts)
        self._check(source)
        if not len(rows):
            return contexts
        held = [source.tokens[row] for row in source_rows]
        span = span_of(max(map(len, held)), self._executor.columns)
        cache = self._executor.copy_rows(contexts.cache, rows, source.cache, source_rows, span=span)
        return _with_rows_of(contexts, rows, source, source_rows, cache)

    def move(
        self,
        contexts: Contexts,
        rows: Sequence[int] | np.ndarray,
        source_rows: Sequence[int] | np.ndarray,
    ) -> Contexts:
        """Overwrite `rows` with `source_rows` of the same contexts, which are consumed.

        Raises:
            ValueError: a row is both.
        """
        self._check(contexts)
        if both := set(map(int, rows)) & set(map(int, source_rows)):
            raise ValueError(f"rows {sorted(both)} are both overwritten and copied")
        if not len(rows):
            return contexts
        span = self._span(contexts.tokens, source_rows)
        cache = self._executor.move_rows(contexts.cache, rows, source_rows, span=span)
        return _with_rows_of(contexts, rows, contexts, source_rows, cache)

    def warm_up(
        self,
        pools: Sequence[int],
        *,
        identity_parts: int,
        end_ids: Sequence[int] = (),
        copies: Sequence[tuple[int, int]] = (),
        moves: Sequence[int] = (),
        scored: Sequence[tuple[int, int, int]] = (),
    ) -> None:
        """Compile all that will be needed, so that nothing is compiled while there is work to do.

        Args:
            pools: numbers of rows of the contexts that will be read and spoken from.
            identity_parts: k of `Turns.identities`.
            end_ids: tokens that will end turns.
            copies: (rows of the target, rows of the source) of `store`, and of `fork`.
            moves: numbers of rows of the contexts that rows will be copied within.
            scored: (tokens of the prefix, candidates, tokens of the longest) of `score`.
        """
        for rows in sorted(set(pools)):
            draws = idle_draws(
                self._executor.batch_rows(rows),
                identity_parts,
                end_ids,
                stops=self._stops,
            )
            self._executor.warm_up_rows(rows, draws)
            for shape in sorted(set(scored)):
                self._executor.warm_up_score(rows, *shape)
        for target, source in sorted(set(copies)):
            self._executor.warm_up_copies(target, source)
        for rows in sorted(set(moves)):
            self._executor.warm_up_moves(rows)

    def shorten(self, contexts: Contexts, lengths: Mapping[int, int]) -> Contexts:
        """Forget every token of row s behind `lengths[s]`; it must read before it is decoded."""
        cut = {row: length for row, length in lengths.items() if length < len(contexts.tokens[row])}
        if not cut:
            return contexts
        tokens, stale = list(contexts.tokens), contexts.stale.copy()
        for row, length in cut.items():
            tokens[row], stale[row] = tokens[row][:length], True
        kept = np.fromiter(map(len, tokens), np.int32, len(tokens))
        cache = dataclasses.replace(
            contexts.cache, lengths=jax.device_put(kept, contexts.cache.lengths.sharding)
        )
        return dataclasses.replace(contexts, cache=cache, tokens=tuple(tokens), stale=stale)

    def _span(self, tokens: Sequence[tuple[int, ...]], rows: Sequence[int] | np.ndarray) -> int:
        """Columns that hold all of these rows: 0 where they have read nothing."""
        return span_of(max(len(tokens[row]) for row in rows), self._executor.columns)

    def _check(self, contexts: Contexts) -> None:
        if contexts.version != self._version:
            raise ValueError(
                f"these contexts were made with weights {contexts.version}, the engine holds "
                f"weights {self._version}: read them anew"
            )


def _with_rows_of(
    contexts: Contexts,
    rows: Sequence[int] | np.ndarray,
    source: Contexts,
    source_rows: Sequence[int] | np.ndarray,
    cache: KVCache,
) -> Contexts:
    """What the host knows of contexts, with some rows as they are in others, and a new cache."""
    tokens, adapters, stale = (
        list(contexts.tokens),
        contexts.adapters.copy(),
        contexts.stale.copy(),
    )
    for row, source_row in zip(rows, source_rows, strict=True):
        tokens[row], adapters[row] = source.tokens[source_row], source.adapters[source_row]
        stale[row] = source.stale[source_row]
    return Contexts(cache, tuple(tokens), adapters, contexts.version, stale)
