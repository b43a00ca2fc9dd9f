"""Rendered examples into arrays of few shapes.

SFT examples are packed: several share a row, told apart by segment ids, so that no position is
wasted and there is one shape. Pairs are sorted into a few buckets of equal length. In both, a row
lists the positions whose next token is scored, so that the LM head is applied there alone. The
batch of a step is a function of (seed, step), through grain's random access: a resumed training
sees what it would have seen.

Axes: N rows, P pairs, T positions, S scored positions, B rows or pairs of one batch.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Sequence
from typing import Any

import grain
import jax
import numpy as np

from ixjax.dialogue.chat import Rendered, RenderedPair
from ixjax.generation.buckets import round_up
from ixjax.io import InputError

MAX_BUCKETS = 4  # of pairs; each costs a compilation
LENGTH_STEP = 128  # their lengths are multiples of it: data that differ a little share shapes
RESPONSE_STEP = 32  # the same for the number of scored positions


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Rows:
    """Token sequences and which of their tokens are scored; axes may stand before `N`.

    tokens: `[N, T]` int32.
    positions: `[N, T]` int32, restarting with each segment.
    segment_ids: `[N, T]` int32 from 1; 0 is padding.
    scored_at: `[N, S]` int32 positions whose next token is scored, ascending; padded with 0.
    targets: `[N, S]` int32 those next tokens.
    weights: `[N, S]` float32, 0 in the padding of `scored_at`.
    """

    tokens: Any  # [N, T]
    positions: Any  # [N, T]
    segment_ids: Any  # [N, T]
    scored_at: Any  # [N, S]
    targets: Any  # [N, S]
    weights: Any  # [N, S]

    @property
    def num_tokens(self) -> int:
        """Tokens, padding left out (host arrays only)."""
        return int(np.count_nonzero(self.segment_ids))


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Pairs:
    """Preference pairs of one bucket; side 0 is the chosen response, side 1 the rejected.

    rows: fields `[P, 2, T]` and `[P, 2, S]`: prompt and response, the response scored.
    weights: `[P]` float32, 0 for a padding pair.
    """

    rows: Rows  # [P, 2, ...]
    weights: Any  # [P]


@dataclasses.dataclass(frozen=True)
class Bucket:
    """Pairs of similar length: members `[P]`, their places in the caller's list."""

    members: np.ndarray
    pairs: Pairs


def pack(examples: Sequence[Rendered], *, length: int) -> Rows:
    """First-fit decreasing: each example goes to the first row that has room for it.

    Args:
        examples: what to train on.
        length: T, tokens a row.

    Raises:
        InputError: no example, one longer than a row, or no scored token at all.
    """
    if not examples:
        raise InputError("there is no training example: no dialogue has a turn to learn from")
    longest = max(len(example.tokens) for example in examples)
    if longest > length:
        raise InputError(f"an example has {longest} tokens; a row holds {length}")
    rows = _first_fit([len(example.tokens) for example in examples], length)
    sequences = [[(examples[i].tokens, examples[i].scored) for i in members] for members in rows]
    if not any(any(scored[1:]) for row in sequences for _, scored in row):
        raise InputError("no token of the training examples is scored: there is nothing to learn")
    # A quarter of a row as the step: both speakers' sets are then likely to share a shape.
    return _fill_rows(sequences, length=length, scored_step=max(1, length // 4))


def _first_fit(sizes: Sequence[int], length: int) -> list[list[int]]:
    """Members of each row, the longest example first."""
    room: list[int] = []
    rows: list[list[int]] = []
    first_open = 0  # rows in front are full long before the last are opened
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


def _fill_rows(
    rows: Sequence[Sequence[tuple[Sequence[int], Sequence[bool]]]], *, length: int, scored_step: int
) -> Rows:
    """Rows of (tokens, scored) segments into arrays; S is rounded up to `scored_step`."""
    # A segment's first token is predicted by nothing, so it is never a target.
    counts = [sum(sum(scored[1:]) for _, scored in row) for row in rows]
    size = min(round_up(max(*counts, 1), scored_step), length)
    tokens, positions, segments = (np.zeros((len(rows), length), np.int32) for _ in range(3))
    scored_at, targets = (np.zeros((len(rows), size), np.int32) for _ in range(2))
    weights = np.zeros((len(rows), size), np.float32)
    for n, row in enumerate(rows):
        start = filled = 0
        for segment, (ids, scored) in enumerate(row, start=1):
            end = start + len(ids)
            tokens[n, start:end] = ids
            positions[n, start:end] = np.arange(len(ids))
            segments[n, start:end] = segment
            at = np.flatnonzero(np.asarray(scored[1:], bool))
            scored_at[n, filled : filled + len(at)] = start + at
            targets[n, filled : filled + len(at)] = np.asarray(ids, np.int32)[1 + at]
            weights[n, filled : filled + len(at)] = 1.0
            start, filled = end, filled + len(at)
    return Rows(tokens, positions, segments, scored_at, targets, weights)


def bucket_pairs(
    pairs: Sequence[RenderedPair], *, max_length: int, batch_size: int
) -> list[Bucket]:
    """Sort pairs by the length of their longer side into at most `MAX_BUCKETS` padded lengths.

    The longest pairs that do not fill a batch take the next shorter ones in, so that every bucket
    but the shortest holds a whole number of batches.

    Args:
        pairs: P pairs.
        max_length: longest sequence that the model takes.
        batch_size: pairs a step.

    Raises:
        InputError: no pair, one longer than `max_length`, or an empty prompt or response.
    """
    if not pairs:
        raise InputError("there is no preference pair to train on")
    lengths = np.array([len(p.prompt) + max(len(p.chosen), len(p.rejected)) for p in pairs])
    if lengths.max() > max_length:
        raise InputError(
            f"a pair has {lengths.max()} tokens; the model's max_length is {max_length}"
        )
    for i, pair in enumerate(pairs):
        if not (pair.prompt and pair.chosen and pair.rejected):
            raise InputError(f"pair {i} has an empty prompt or response; expected tokens in each")
    by_length = np.argsort(-lengths, kind="stable")
    padded = bucket_lengths(int(lengths.max()), max_length)
    buckets: list[Bucket] = []
    start = 0
    for length, shorter in zip(padded[::-1], [*padded[-2::-1], 0], strict=True):
        longer = int(np.sum(lengths > shorter)) - start  # may be negative: all are placed
        end = min(start + round_up(max(longer, 0), batch_size), len(pairs))
        if end > start:
            members = np.sort(by_length[start:end])
            filled = _fill_pairs([pairs[i] for i in members], length=length)
            buckets.append(Bucket(members, filled))
        start = end
    return buckets


def bucket_lengths(longest: int, max_length: int) -> list[int]:
    """At most `MAX_BUCKETS` padded lengths, ascending, the last with room for `longest`."""
    step = round_up(math.ceil(longest / MAX_BUCKETS), LENGTH_STEP)
    count = math.ceil(longest / step)
    return [min(step * (i + 1), max_length) for i in range(count)]


def _fill_pairs(pairs: Sequence[RenderedPair], *, length: int) -> Pairs:
    sides = [
        [(p.prompt + response, (False,) * len(p.prompt) + (True,) * len(response))]
        for p in pairs
        for response in (p.chosen, p.rejected)
    ]
    rows = _fill_rows(sides, length=length, scored_step=RESPONSE_STEP)
    rows = jax.tree.map(lambda x: x.reshape(len(pairs), 2, *x.shape[1:]), rows)
    return Pairs(rows=rows, weights=np.ones(len(pairs), np.float32))


def num_rows(batch: Any) -> int:
    """Size of the leading axis."""
    return len(jax.tree.leaves(batch)[0])


def pad_rows(batch: Any, *, multiple: int) -> Any:
    """Append rows of zeros (no weight) until their number is a multiple."""
    missing = -num_rows(batch) % multiple
    return jax.tree.map(
        lambda x: np.concatenate([x, np.zeros((missing, *x.shape[1:]), x.dtype)]), batch
    )


def tree_bytes(tree: Any) -> list[bytes]:
    """Content of every array, for a fingerprint."""
    return [np.ascontiguousarray(leaf).tobytes() for leaf in jax.tree.leaves(tree)]


def take(batch: Any, index: np.ndarray) -> Any:
    """Some rows of a batch."""
    return jax.tree.map(lambda x: x[index], batch)


def in_batches(rows: Any, *, batch_size: int) -> list[Any]:
    """All rows in order; the last batch is filled up with rows that have no weight."""
    rows = pad_rows(rows, multiple=batch_size)
    starts = range(0, num_rows(rows), batch_size)
    return [take(rows, np.arange(start, start + batch_size)) for start in starts]


def shuffled_batches(buckets: Sequence[Any], *, batch_size: int, seed: int) -> Callable[[int], Any]:
    """The batch of a step: every row once an epoch, in an order of its own each epoch.

    One bucket is read without a gap, batches crossing from epoch to epoch. Several are each
    filled up to whole batches with rows that have no weight, and take turns at random.

    Args:
        buckets: batches of rows.
        batch_size: rows a step.
        seed: of the order.
    """
    if len(buckets) > 1:
        buckets = [pad_rows(bucket, multiple=batch_size) for bucket in buckets]
    counts = [max(1, num_rows(bucket) // batch_size) for bucket in buckets]
    # (bucket, number within it) of each batch of an epoch, before the shuffle
    slots = [(b, i) for b, count in enumerate(counts) for i in range(count)]
    slot_order = _endless_shuffle(len(slots), seed)
    row_orders = [_endless_shuffle(num_rows(b), seed + 1 + n) for n, b in enumerate(buckets)]

    def batch(step: int) -> Any:
        bucket, nth = 0, step
        if len(buckets) > 1:
            bucket, number = slots[slot_order(step)]
            nth = step // len(slots) * counts[bucket] + number
        order, first = row_orders[bucket], nth * batch_size
        return take(buckets[bucket], np.array([order(first + i) for i in range(batch_size)]))

    return batch


def _endless_shuffle(size: int, seed: int) -> Callable[[int], int]:
    """0 .. size-1 in an order of its own each epoch, random access by index."""
    order: Any = grain.MapDataset.range(size).seed(seed % 2**32).shuffle().repeat()
    return lambda index: int(order[index])
