"""SIGTERM during a training: preempted machines send it about half a minute in advance.

The signal sets a flag. The training reads it once per step, and all processes get the same answer
at the same step, so that they save one state together and end.
"""

from __future__ import annotations

import collections
import contextlib
import signal
import threading
from collections.abc import Callable, Iterator

import jax

from ixjax.distributed import in_any

# Steps between a question and its answer; without them the host would wait for each step.
LAG_STEPS = 2


class Agreement:
    """A question asked once per step in every process; all get one answer, at the same step."""

    def __init__(self):
        self._asked: collections.deque = collections.deque()
        self._lag = LAG_STEPS if jax.process_count() > 1 else 0

    def __call__(self, mine: bool) -> bool:
        """Return whether any process said yes."""
        self._asked.append(in_any(mine))
        return len(self._asked) > self._lag and bool(self._asked.popleft())

    def forget(self) -> None:
        """Drop the answers that are still to come."""
        self._asked.clear()


class Preempted(Exception):
    """SIGTERM ended a training, which has saved its state and can continue."""


@contextlib.contextmanager
def noted_sigterm() -> Iterator[Callable[[], bool]]:
    """Note SIGTERM in a block instead of ending the process.

    Outside the main thread Python receives no signals, and nothing changes.

    Yields:
        A function to call once per step, in every process; returns whether to save and end.

    Raises:
        Preempted: after the block, if the signal came after the last call.
    """
    noted, agreed = threading.Event(), Agreement()

    def leave() -> bool:
        return agreed(noted.is_set())

    if threading.current_thread() is not threading.main_thread():
        yield lambda: False
        return
    before = signal.signal(signal.SIGTERM, lambda number, frame: noted.set())
    try:
        yield leave
    finally:
        signal.signal(signal.SIGTERM, before or signal.SIG_DFL)
    if in_any(noted.is_set()):
        raise Preempted("SIGTERM came while the model was written; nothing is lost")
