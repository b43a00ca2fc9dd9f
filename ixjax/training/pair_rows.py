"""Rows of preference pairs that compute shared prompts once.

A prompt is stored once, before its chosen and rejected responses, which see it and not each other
(`shared_to` in `Transformer.__call__`). The pairs of one decision, or of a path through a dialogue,
share prompts or their beginnings in the same way. Pairs that share tokens form a group, and groups
are packed into rows of one length. Loss and gradients are those of separate sequences.

Axes: R rows, T positions, S scored positions, M pairs of a row, P pairs in all.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal

import jax
import numpy as np

from ixjax.dialogue.chat import RenderedPair
from ixjax.io import InputError
from ixjax.padding import round_up
from ixjax.training.batching import Rows, RowSegment, endless_shuffle, fill_rows, first_fit

Share = Literal["none", "pair", "node", "path"]
LENGTH_STEP = 32  # of row lengths and of the number of scored positions
ROW_SIZES = 8  # different numbers of rows in a batch; each is one compilation


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class PairRows:
    """Rows of preference pairs.

    rows: prompts and responses, the responses scored.
    segments: `[R, S]` int32, index of each scored token's segment in its row, from 0.
    chosen: `[R, M]` int32, index of the segment of a pair's chosen response.
    rejected: `[R, M]` int32, that of the rejected response.
    reference: `[R, M, 2]` float32, summed log-probabilities of both under the reference.
    weights: `[R, M]` float32, 0 for a padding pair.
    """

    rows: Rows
    segments: Any  # [R, S]
    chosen: Any  # [R, M]
    rejected: Any  # [R, M]
    reference: Any  # [R, M, 2]
    weights: Any  # [R, M]


@dataclasses.dataclass(frozen=True)
class PairGroup:
    """Pairs that share tokens.

    segments: in their order; other groups see none of them.
    pairs: number, chosen and rejected segment of each pair.
    """

    segments: tuple[RowSegment, ...]
    pairs: tuple[tuple[int, int, int], ...]

    @functools.cached_property
    def length(self) -> int:
        """Number of tokens."""
        return sum(len(segment.tokens) for segment in self.segments)

    @functools.cached_property
    def scored(self) -> int:
        """Number of scored tokens."""
        return sum(len(segment.targets) for segment in self.segments)


class PairBatches:
    """Batches of pairs, as rows of few shapes.

    Args:
        pairs: P pairs.
        batches: the numbers of the pairs of each batch.
        share: tokens that are computed once: the prompt of a `pair`, of all pairs of a decision
            (`node`), the common beginnings of prompts (`path`), or `none`.
        max_length: longest prompt plus response that the model takes.
        row_length: T; 0: that of the longest pair.
        multiple: the number of rows is a multiple of it.

    Raises:
        InputError: no pair, one longer than `max_length` or than a row, or an empty prompt or
            response.
    """

    def __init__(
        self,
        pairs: Sequence[RenderedPair],
        batches: Sequence[Sequence[int] | np.ndarray],
        *,
        share: Share,
        max_length: int,
        row_length: int = 0,
        multiple: int = 1,
    ):
        check_pairs(pairs, max_length)
        self._pairs, self._share = pairs, share
        # Used when batches are planned, and again when they are made.
        self._group = functools.lru_cache(maxsize=4 * len(pairs))(self._make_group)
        longest = max(self._group((i,)).length for i in range(len(pairs)))
        if 0 < row_length < longest:
            raise InputError(
                f"row_length is {row_length}; expected {longest} or more, the tokens of the "
                "longest pair, or 0"
            )
        self._length = row_length or round_up(longest, LENGTH_STEP)
        self._keys = _keys(pairs, share)
        # Groups are held as the numbers of their pairs: their tokens for all steps would not fit.
        self._batches = [self._pack(numbers) for numbers in batches]
        counts = [len(rows) for rows in self._batches]
        groups = [[self._group(g) for g in row] for batch in self._batches for row in batch]
        self._scored = round_up(max(sum(g.scored for g in row) for row in groups), LENGTH_STEP)
        self._most_pairs = max(sum(len(g.pairs) for g in row) for row in groups)
        self._row_step = round_up(-(-max(counts) // ROW_SIZES), multiple)

    def __len__(self) -> int:
        return len(self._batches)

    def numbers(self, batch: int) -> np.ndarray:
        """Return `[R, M]` int, the number of each pair of a batch; -1 for padding."""
        rows = self._batches[batch]
        found = np.full((self._rows(batch), self._most_pairs), -1)
        for n, row in enumerate(rows):
            numbers = [i for group in row for i in group]
            found[n, : len(numbers)] = numbers
        return found

    def make(self, batch: int, reference: np.ndarray) -> PairRows:
        """Return the rows of a batch.

        Args:
            batch: its number.
            reference: `[P, 2]`.
        """
        shape = (self._rows(batch), self._most_pairs)
        chosen, rejected = (np.zeros(shape, np.int32) for _ in range(2))
        segments: list[list[RowSegment]] = [[] for _ in range(shape[0])]
        for n, row in enumerate(self._batches[batch]):
            place = 0
            for group in map(self._group, row):
                for _, first, second in group.pairs:
                    chosen[n, place] = len(segments[n]) + first
                    rejected[n, place] = len(segments[n]) + second
                    place += 1
                segments[n] += group.segments
        rows, owners = fill_rows(segments, length=self._length, scored=self._scored)
        numbers = self.numbers(batch)
        real = numbers >= 0
        known = np.where(real[..., None], reference[numbers], 0).astype(np.float32)
        return PairRows(rows, owners, chosen, rejected, known, real.astype(np.float32))

    def _rows(self, batch: int) -> int:
        return round_up(len(self._batches[batch]), self._row_step)

    def _make_group(self, numbers: tuple[int, ...]) -> PairGroup:
        chosen = [(i, self._pairs[i]) for i in numbers]  # a pair may occur twice
        return _separate(chosen) if self._share == "none" else _together(chosen)

    def _pack(self, numbers: Sequence[int] | np.ndarray) -> list[list[tuple[int, ...]]]:
        """Return the groups of each row."""
        groups: list[tuple[int, ...]] = []
        open_groups: dict[Any, int] = {}
        for i in map(int, numbers):
            key = self._keys[i]
            if key in open_groups:
                wider = (*groups[open_groups[key]], i)
                if self._group(wider).length <= self._length:
                    groups[open_groups[key]] = wider
                    continue
            open_groups[key] = len(groups)
            groups.append((i,))
        sizes = [self._group(group).length for group in groups]
        return [[groups[g] for g in row] for row in first_fit(sizes, self._length)]


def shuffled_pairs(
    pairs: Sequence[RenderedPair], *, share: Share, batch_size: int, seed: int
) -> Callable[[int], np.ndarray]:
    """Return the pairs of each step: every pair once per epoch, consecutive if they share tokens.

    Args:
        pairs: P pairs.
        share: see `PairBatches`.
        batch_size: pairs a step.
        seed: of the order.

    Returns:
        Step -> `[batch_size]` pair numbers.
    """
    units = pairs_together(pairs, share)
    order = endless_shuffle(len(units), seed)

    @functools.lru_cache(maxsize=2)
    def epoch(number: int) -> np.ndarray:
        first = number * len(units)
        return np.concatenate([units[order(first + k)] for k in range(len(units))])

    def numbers(step: int) -> np.ndarray:
        at = step * batch_size + np.arange(batch_size)
        return np.array([epoch(int(i // len(pairs)))[i % len(pairs)] for i in at])

    return numbers


def pairs_together(pairs: Sequence[RenderedPair], share: Share) -> list[list[int]]:
    """Return the numbers of the pairs that share tokens, group by group."""
    together: dict[Any, list[int]] = {}
    for i, key in enumerate(_keys(pairs, share)):
        together.setdefault(key, []).append(i)
    return list(together.values())


def check_pairs(pairs: Sequence[RenderedPair], max_length: int) -> None:
    """Raise for pairs that can't be trained on; see `PairBatches`."""
    if not pairs:
        raise InputError("there is no preference pair to train on")
    for i, pair in enumerate(pairs):
        if not (pair.prompt and pair.chosen and pair.rejected):
            raise InputError(f"pair {i} has an empty prompt or response; expected tokens in each")
    longest = max(len(p.prompt) + max(len(p.chosen), len(p.rejected)) for p in pairs)
    if longest > max_length:
        raise InputError(f"a pair has {longest} tokens; the model's max_length is {max_length}")


def _keys(pairs: Sequence[RenderedPair], share: Share) -> Sequence[Any]:
    """Return a key per pair, equal for pairs that may form a group."""
    if share in ("none", "pair"):
        return range(len(pairs))
    if share == "node":
        return [pair.prompt for pair in pairs]
    parents = _parents({pair.prompt for pair in pairs})
    roots = {}
    for prompt in sorted(parents, key=len):
        parent = parents[prompt]
        roots[prompt] = prompt if parent is None else roots[parent]
    return [roots[pair.prompt] for pair in pairs]


Prompt = tuple[int, ...]


def _parents(prompts: set[Prompt]) -> Mapping[Prompt, Prompt | None]:
    """Return, for each prompt, the longest other prompt that it begins with."""
    lengths = sorted({len(prompt) for prompt in prompts})
    return {
        prompt: next(
            (prompt[:n] for n in reversed(lengths) if n < len(prompt) and prompt[:n] in prompts),
            None,
        )
        for prompt in prompts
    }


def _separate(pairs: Sequence[tuple[int, RenderedPair]]) -> PairGroup:
    """Return a group in which every response follows a copy of its prompt."""
    segments, found = [], []
    for number, pair in pairs:
        start = len(pair.prompt)
        for response in (pair.chosen, pair.rejected):
            targets = start + np.arange(len(response))
            segments.append(RowSegment((*pair.prompt, *response), targets))
        found.append((number, len(segments) - 2, len(segments) - 1))
    return PairGroup(tuple(segments), tuple(found))


def _together(pairs: Sequence[tuple[int, RenderedPair]]) -> PairGroup:
    """Return a group that is a tree: each prompt, its responses, and the prompts that extend it."""
    parents = _parents({pair.prompt for _, pair in pairs})
    responses: dict[Prompt, dict[Prompt, int]] = {prompt: {} for prompt in parents}
    for _, pair in pairs:
        for response in (pair.chosen, pair.rejected):
            responses[pair.prompt].setdefault(response, -1)
    segments: list[RowSegment] = []

    def add(prompt: Prompt, after: int | None) -> None:
        here, known = len(segments), 0 if after is None else len(parents[prompt] or ())
        back = 0 if after is None else here - after
        segments.append(RowSegment(prompt[known:], np.zeros(0, int), known, back))
        for response in responses[prompt]:
            responses[prompt][response] = len(segments)
            every = np.arange(len(response))
            segments.append(RowSegment(response, every, len(prompt), len(segments) - here))
        for other, parent in parents.items():
            if parent == prompt:
                add(other, here)
        shared = len(segments) - 1 - here
        segments[here] = dataclasses.replace(segments[here], shared=shared)

    for prompt, parent in parents.items():
        if parent is None:
            add(prompt, None)
    found = [(i, responses[p.prompt][p.chosen], responses[p.prompt][p.rejected]) for i, p in pairs]
    return PairGroup(tuple(segments), tuple(found))
