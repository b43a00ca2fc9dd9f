"""SIGTERM in a training: a machine that is taken away says so half a minute before.

The signal sets a flag. Once a step the training looks at it, and all processes get the same answer
at the same step, so that they save one state together and leave.
"""

from __future__ import annotations

import collections
import contextlib
import signal
import threading
from collections.abc import Callable, Iterator

import jax

from ixjax.distributed import in_any

# Answers are read so many steps after they were asked for, or the host would wait for each step.
LAG_STEPS = 2


class Preempted(Exception):
    """A training was told to end, and has saved all that it needs to continue."""


@contextlib.contextmanager
def noted_sigterm() -> Iterator[Callable[[], bool]]:
    """A block in which SIGTERM ends nothing by itself.

    Outside of the main thread, where Python takes no signals, it stays as it is.

    Yields:
        A function to call once a step, in every process: whether to save and leave.

    Raises:
        Preempted: after the block, if it came and was not asked for any more.
    """
    told = threading.Event()
    asked: collections.deque = collections.deque()
    lag = LAG_STEPS if jax.process_count() > 1 else 0

    def leave() -> bool:
        asked.append(in_any(told.is_set()))
        return len(asked) > lag and bool(asked.popleft())

    if threading.current_thread() is not threading.main_thread():
        yield lambda: False
        return
    before = signal.signal(signal.SIGTERM, lambda number, frame: told.set())
    try:
        yield leave
    finally:
        signal.signal(signal.SIGTERM, before or signal.SIG_DFL)
    if in_any(told.is_set()):
        raise Preempted("told to end (SIGTERM) while the model was written; nothing is lost")
