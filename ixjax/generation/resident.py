"""Rows that stay in the decode batch from one pause to the next.

Turns are longer than the stretches between two pauses, so most rows of a batch were in the last
one, too. They are not copied again: a row of the batch is known by the tokens that it holds, and
one that holds what a context holds now is as good as a copy of it.

What a row has said of its turn stands in the side buffer, apart from what it had read before, so
that where decoding paused makes no difference (`passes.decode`). A row that comes into the batch in
the middle of its turn has it there, too.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from jax.sharding import Mesh

from ixjax.generation import cache as kv
from ixjax.generation.account import Account
from ixjax.generation.buckets import FEWEST_WEIGHTS, filled, span_of

Key = tuple[tuple[int, ...], int, int]  # tokens, adapter, how many of the tokens stand aside


class ResidentBatch:
    """A batch of a fixed number of rows, for one engine's weights.

    Args:
        size: R.
        make_side: a new side buffer, see `cache.side_buffer`.
        heads: of the model.
        apart: see `cache.Batch.past`.
        mesh: the devices, where there are several.
        account: counts compilations.
    """

    def __init__(
        self,
        size: int,
        make_side: Callable[[], Any],
        *,
        heads: int,
        apart: bool,
        mesh: Mesh | None,
        account: Account,
    ):
        self._apart, self._mesh, self._account = apart, mesh, account
        self._batch: kv.Batch | None = None
        self._held = _nobody(size)
        self._shortest = FEWEST_WEIGHTS // (size * heads)
        self._make_side = make_side
        self._side: Any = None

    def place(
        self, cache: kv.KVCache, rows: Sequence[int], keys: Sequence[Key]
    ) -> tuple[kv.Batch, np.ndarray]:
        """See to it that the batch holds these rows.

        Args:
            cache: which they are rows of.
            rows: at most R.
            keys: what each of them holds.

        Returns:
            The batch, to be given back by `keep`; and the slot of each row.
        """
        size = len(self._held)
        # Given away until `keep`: if what comes between fails, everything is copied anew.
        batch, self._batch = self._batch, None
        longest = max(self._shortest, *(len(tokens) for tokens, _, _ in keys))
        span = span_of(min(longest, cache.columns), cache.columns)
        if batch is None or not span <= batch.span < 2 * span:
            self._held = _nobody(size)
            everyone, slots = filled(rows, size), np.arange(len(rows))
            batch = self._account.call(
                kv.take, cache, everyone, span=span, apart=self._apart, mesh=self._mesh
            )
            self._put_aside(cache, rows, slots, keys)
            return batch, slots
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
            self._put_aside(cache, [rows[i] for i in new], slots[new], [keys[i] for i in new])
        return batch, slots

    def give_side(self) -> Any:
        """The side buffer, to be consumed; a new one where the last was not given back by `keep`.

        Whoever is interrupted between the two leaves nothing that was consumed behind.
        """
        side, self._side = self._side, None
        return self._make_side() if side is None else side

    def _put_aside(
        self, cache: kv.KVCache, rows: Sequence[int], slots: np.ndarray, keys: Sequence[Key]
    ) -> None:
        """What rows have said of their turns, into the side buffer."""
        begun = [i for i, (_, _, aside) in enumerate(keys) if aside]
        if not begun:
            return
        size = len(self._held)
        self._side = self._account.call(
            kv.fill_side,
            self.give_side(),
            cache,
            filled(slots[begun], size),
            filled([rows[i] for i in begun], size),
            filled([len(keys[i][0]) - keys[i][2] for i in begun], size),
            np.int32(len(begun)),
            mesh=self._mesh,
        )

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
        self, batch: kv.Batch, side: Any, logits: Any, slots: np.ndarray, keys: Sequence[Key]
    ) -> None:
        """Take the batch back, and what its rows have said since; `keys` are what they hold now."""
        self._batch, self._side = dataclasses.replace(batch, logits=logits), side
        for slot, key in zip(slots, keys, strict=True):
            self._held[slot] = key


def _nobody(size: int) -> list[Key | None]:
    return [None] * size


def _same(held: Key | None, key: Key) -> bool:
    """Whether it is the very same tuple of tokens: equal ones elsewhere are rare, and long."""
    return held is not None and held[0] is key[0] and held[1:] == key[1:]
