"""Rendered examples packed into rows of one shape.

Several examples share a row and are separated by segment ids, so that few positions are padding. A
row lists the positions whose next token is scored, so that the LM head is applied to these only.
The batch of a step is a function of (seed, step), through grain's random access: a resumed training
takes the same batches. `ixjax.training.pair_rows` makes rows of preference pairs.

Axes: N rows, T positions, S scored positions.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import grain
import jax
import numpy as np

from ixjax.dialogue.chat import Rendered
from ixjax.io import InputError
from ixjax.padding import common_beginning, round_up


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Rows:
    """Token sequences and their scored positions; `N` may have leading axes.

    tokens: `[N, T]` int32.
    positions: `[N, T]` int32, restarting with each segment.
    segment_ids: `[N, T]` int32 from 1; 0 is padding.
    shared_to: `[N, T]` int32, the last segment that sees a token (see `Transformer.__call__`).
    scored_at: `[N, S]` int32 positions whose next token is scored, ascending; padded with 0.
    targets: `[N, S]` int32 those next tokens.
    weights: `[N, S]` float32 of these tokens in the loss, 0 in the padding of `scored_at`.
    """

    tokens: Any  # [N, T]
    positions: Any  # [N, T]
    segment_ids: Any  # [N, T]
    shared_to: Any  # [N, T]
    scored_at: Any  # [N, S]
    targets: Any  # [N, S]
    weights: Any  # [N, S]

    @property
    def num_tokens(self) -> int:
        """Number of tokens without padding (host arrays only)."""
        return int(np.count_nonzero(self.segment_ids))

    @property
    def num_scored(self) -> int:
        """Number of scored tokens (host arrays only)."""
        return int(np.count_nonzero(self.weights))


@dataclasses.dataclass(frozen=True)
class RowSegment:
    """Consecutive tokens of a row.

    tokens: the tokens.
    targets: indices of the scored tokens, ascending; index 0 needs a segment to continue.
    start: position of the first token.
    continues: how many segments back the one is that this segment continues; 0: none.
    shared: number of following segments that also see this one.
    weights: of the targets in the loss; None: 1 each.
    """

    tokens: Sequence[int]
    targets: np.ndarray
    start: int = 0
    continues: int = 0
    shared: int = 0
    weights: np.ndarray | None = None


def pack(examples: Sequence[Rendered], *, length: int, outcome_weight: float = 1.0) -> Rows:
    """Pack examples by first-fit decreasing: each goes to the first row with room for it.

    Args:
        examples: the training examples.
        length: T, tokens a row.
        outcome_weight: weight of the tokens of outcome lines; other scored tokens have 1.

    Raises:
        InputError: no example, one longer than a row, or no scored token at all.
    """
    if not examples:
        raise InputError("there is no training example: no dialogue has a turn to learn from")
    found = [_segments(example, outcome_weight) for example in examples]
    sizes = [sum(len(segment.tokens) for segment in segments) for segments in found]
    longest = max(sizes)
    if longest > length:
        raise InputError(f"an example has {longest} tokens; a row holds {length}")
    rows = first_fit(sizes, length)
    scores = [sum(len(segment.targets) for segment in segments) for segments in found]
    most = max(sum(scores[i] for i in members) for members in rows)
    if not most:
        raise InputError("no token of the training examples is scored: there is nothing to learn")
    # A quarter of a row as the step: both speakers' sets are then likely to share a shape.
    scored = min(round_up(most, max(1, length // 4)), length)
    in_rows = [[segment for i in members for segment in found[i]] for members in rows]
    return fill_rows(in_rows, length=length, scored=scored)[0]


def _segments(example: Rendered, outcome_weight: float) -> list[RowSegment]:
    """Return an example and its branches: pieces of the example, each followed by what leaves it.

    A piece is seen by all later segments, which continue it; a branch by itself alone.
    """
    leaving = [(common_beginning(one.tokens, example.tokens), one) for one in example.branches]
    leaving.sort(key=lambda found: found[0])
    segments: list[RowSegment] = []
    pieces: list[int] = []

    def add(one: Rendered, start: int, stop: int) -> None:
        targets = np.flatnonzero(one.scored[start:stop])
        if not start:
            targets = targets[targets > 0]  # nothing predicts the first token
        of_line = start + targets >= len(one.tokens) - one.line
        weights = np.where(of_line, outcome_weight, 1.0)
        back = len(segments) - pieces[-1] if pieces else 0
        tokens = one.tokens[start:stop]
        segments.append(RowSegment(tokens, targets, start, back, weights=weights))

    read = 0
    for place, one in [*leaving, (len(example.tokens), None)]:
        if place > read:
            add(example, read, place)
            pieces.append(len(segments) - 1)
            read = place
        if one is not None and len(one.tokens) > place:
            add(one, place, len(one.tokens))
    for piece in pieces:
        shared = len(segments) - 1 - piece
        segments[piece] = dataclasses.replace(segments[piece], shared=shared)
    return segments


def first_fit(sizes: Sequence[int], length: int) -> list[list[int]]:
    """Return the members of each row of `length`, by first-fit decreasing."""
    room: list[int] = []
    rows: list[list[int]] = []
    first_open = 0  # all rows before it are full
    for i in sorted(range(len(sizes)), key=lambda i: -sizes[i]):
        row = next((r for r in range(first_open, len(rows)) if room[r] >= sizes[i]), len(rows))
        if row == len(rows):
            rows.append([])
            room.append(length)
        rows[row].append(i)
        room[row] -= sizes[i]
        while first_open < len(rows) and room[first_open] < 2:
            first_open += 1
    return rows


def fill_rows(
    rows: Sequence[Sequence[RowSegment]], *, length: int, scored: int
) -> tuple[Rows, np.ndarray]:
    """Write segments into arrays.

    Args:
        rows: the segments of each row, in order.
        length: T.
        scored: S.

    Returns:
        The rows, and `[N, S]` int32: the index, from 0, of each scored token's segment in its row.
    """
    tokens, positions, segment_ids, shared_to = (
        np.zeros((len(rows), length), np.int32) for _ in range(4)
    )
    scored_at, targets, owners = (np.zeros((len(rows), scored), np.int32) for _ in range(3))
    weights = np.zeros((len(rows), scored), np.float32)
    for n, row in enumerate(rows):
        start = filled = 0
        ends: list[int] = []
        for number, segment in enumerate(row):
            end = start + len(segment.tokens)
            tokens[n, start:end] = segment.tokens
            positions[n, start:end] = segment.start + np.arange(end - start)
            segment_ids[n, start:end] = number + 1
            shared_to[n, start:end] = number + 1 + segment.shared
            at = segment.targets
            new = slice(filled, filled + len(at))
            scored_at[n, new] = start + at - 1
            if len(at) and at[0] == 0:
                scored_at[n, filled] = ends[number - segment.continues] - 1
            targets[n, new] = tokens[n, start + at]
            weights[n, new] = 1.0 if segment.weights is None else segment.weights
            owners[n, new] = number
            ends.append(end)
            start, filled = end, filled + len(at)
    return Rows(tokens, positions, segment_ids, shared_to, scored_at, targets, weights), owners


def num_rows(batch: Any) -> int:
    """Return the size of the leading axis."""
    return len(jax.tree.leaves(batch)[0])


def pad_rows(batch: Any, *, multiple: int) -> Any:
    """Append rows of zeros, which have no weight, up to a multiple."""
    missing = -num_rows(batch) % multiple
    return jax.tree.map(
        lambda x: np.concatenate([x, np.zeros((missing, *x.shape[1:]), x.dtype)]), batch
    )


def tree_bytes(tree: Any) -> list[bytes]:
    """Return the bytes of every array, for a fingerprint."""
    return [np.ascontiguousarray(leaf).tobytes() for leaf in jax.tree.leaves(tree)]


def take(batch: Any, index: np.ndarray) -> Any:
    """Return the rows of a batch at these indices."""
    return jax.tree.map(lambda x: x[index], batch)


def in_batches(rows: Any, *, batch_size: int) -> list[Any]:
    """Return all rows in order; rows without weight complete the last batch."""
    rows = pad_rows(rows, multiple=batch_size)
    starts = range(0, num_rows(rows), batch_size)
    return [take(rows, np.arange(start, start + batch_size)) for start in starts]


def mixed_numbers(
    scored: Sequence[int], *, batch_size: int, seed: int
) -> Callable[[int], np.ndarray]:
    """Return the rows of each step: one of few scored tokens, one of more, up to one of the most.

    The mean over a batch's scored tokens is then over similar numbers of tokens at each step.
    Packing puts examples of equal length together, so in a plain shuffle some batches would hold
    outcome lines only. A part of the rows is shuffled anew once all its rows have been taken.

    Args:
        scored: number of scored tokens of each row.
        batch_size: rows a step.
        seed: of the order.

    Returns:
        Step -> `[batch_size]` row numbers.
    """
    by_number = np.argsort(np.asarray(scored), kind="stable")
    parts = np.array_split(by_number, min(batch_size, len(by_number)))
    seeds = np.random.SeedSequence(seed).generate_state(len(parts))
    orders = [endless_shuffle(len(p), int(s)) for p, s in zip(parts, seeds, strict=True)]

    def numbers(step: int) -> np.ndarray:
        chosen = []
        for place in range(batch_size):
            turn, part = divmod(place, len(parts))
            a_step = len(range(part, batch_size, len(parts)))  # rows of this part in each step
            chosen.append(parts[part][orders[part](step * a_step + turn)])
        return np.array(chosen)

    return numbers


def endless_shuffle(size: int, seed: int) -> Callable[[int], int]:
    """Return index -> number in 0 .. size-1, shuffled anew each epoch."""
    order: Any = grain.MapDataset.range(size).seed(seed % 2**32).shuffle().repeat()
    return lambda index: int(order[index])
