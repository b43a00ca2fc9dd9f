"""Rows that stay in the decode batch from one pause to the next.

Turns are longer than the stretches between two pauses, so most rows of a batch were in the last
one, too. They are not copied again: a row of the batch is known by the tokens that it holds, and
one that holds what a context holds now is as good as a copy of it.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from jax.sharding import Mesh

from ixjax.generation import cache as kv
from ixjax.generation.account import Account
from ixjax.generation.buckets import filled, span_of

Key = tuple[tuple[int, ...], int]  # tokens, adapter


class ResidentBatch:
    """A batch of a fixed number of rows, for one engine's weights.

    Args:
        size: R.
        apart: see `cache.Batch.past`.
        mesh: the devices, where there are several.
        account: counts compilations.
    """

    def __init__(self, size: int, *, apart: bool, mesh: Mesh | None, account: Account):
        self._apart, self._mesh, self._account = apart, mesh, account
        self._batch: kv.Batch | None = None
        self._held = _nobody(size)

    def place(
        self, cache: kv.KVCache, rows: Sequence[int], keys: Sequence[Key], *, room: int
    ) -> tuple[kv.Batch, np.ndarray]:
        """See to it that the batch holds these rows.

        Args:
            cache: which they are rows of.
            rows: at most R.
            keys: what each of them holds.
            room: columns to be free behind each of them. (A row that stays in the batch without
                being named may have less, and be spoilt when the batch grows: it is copied anew
                when it is named again, since the span is then too small for it.)

        Returns:
            The batch, to be given back by `keep`; and the slot of each row.
        """
        size = len(self._held)
        # Given away until `keep`: if what comes between fails, everything is copied anew.
        batch, self._batch = self._batch, None
        span = span_of(max(len(tokens) for tokens, _ in keys) + room, cache.columns)
        if batch is None or not span <= batch.span < 2 * span:
            batch, self._held = None, _nobody(size)
            everyone = filled(rows, size)
            batch = self._account.call(
                kv.take, cache, everyone, span=span, apart=self._apart, mesh=self._mesh
            )
            return batch, np.arange(len(rows))
        slots = self._slots(keys)
        held = zip(slots, keys, strict=True)
        new = [i for i, (slot, key) in enumerate(held) if not _same(self._held[slot], key)]
        if new:
            batch = self._account.call(
                kv.replace_rows,
                batch,
                filled(slots[new], size),
                cache,
                filled([rows[i] for i in new], size),
                np.int32(len(new)),
                mesh=self._mesh,
            )
        return batch, slots

    def _slots(self, keys: Sequence[Key]) -> np.ndarray:
        """A slot for each key: the one that holds it, or a free one."""
        by_identity = {id(held[0]): slot for slot, held in enumerate(self._held) if held}
        slots: list[int | None] = []
        for key in keys:
            slot = by_identity.pop(id(key[0]), None)
            slots.append(slot if slot is not None and _same(self._held[slot], key) else None)
        taken = set(slots)
        free = (slot for slot in range(len(self._held)) if slot not in taken)
        return np.array([next(free) if slot is None else slot for slot in slots])

    def keep(
        self,
        batch: kv.Batch,
        new: kv.Layer,
        counts: Any,
        logits: Any,
        slots: np.ndarray,
        keys: Sequence[Key],
        *,
        width: int,
    ) -> None:
        """Take the batch back, grown by what was read; `keys` are what its rows hold now."""
        self._batch = self._account.call(
            kv.grow, batch, new, counts, logits, width=width, mesh=self._mesh
        )
        for slot, key in zip(slots, keys, strict=True):
            self._held[slot] = key


def _nobody(size: int) -> list[Key | None]:
    return [None] * size


def _same(held: Key | None, key: Key) -> bool:
    """Whether it is the very same tuple of tokens: equal ones elsewhere are rare, and long."""
    return held is not None and held[0] is key[0] and held[1] == key[1]
