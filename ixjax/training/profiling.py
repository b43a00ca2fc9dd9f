"""A trace of some steps of a training, for TensorBoard's profiler or Perfetto (`jax.profiler`)."""

from __future__ import annotations

import contextlib
import dataclasses
import re
from collections.abc import Iterator
from pathlib import Path

import jax

from ixjax.io import InputError


@dataclasses.dataclass(frozen=True)
class ProfileConfig:
    """Steps of every training to trace."""

    steps: str = ""
    """FIRST:LAST, both included, such as 10:15; empty: none. Step 1 includes compilation."""

    def __post_init__(self) -> None:
        """Refuse text that names no steps."""
        self.bounds()

    def bounds(self) -> tuple[int, int] | None:
        """Return the first and last step, from 1; None if there are none.

        Raises:
            InputError: `steps` is not of the form FIRST:LAST.
        """
        if not self.steps:
            return None
        found = re.fullmatch(r"(\d+):(\d+)", self.steps, re.ASCII)
        first, last = map(int, found.groups()) if found else (0, 0)
        if not 1 <= first <= last:
            raise InputError(
                f"profile.steps is {self.steps!r}; expected FIRST:LAST, such as 10:15; the first "
                "step is 1"
            )
        return first, last


class Profiler:
    """Traces steps of a training; `close`, or the end of a `with`, ends an open trace.

    Args:
        config: the steps.
        directory: folder of the trace, such as RUN/profile/STAGE.
    """

    def __init__(self, config: ProfileConfig, directory: str | Path):
        self._first, self._last = config.bounds() or (1, 0)
        self._directory = Path(directory)
        self._tracing = False

    @contextlib.contextmanager
    def step(self, number: int) -> Iterator[None]:
        """Trace a block that dispatches step `number`, counted from 1.

        The trace ends once the devices have finished its last step.
        """
        if not self._first <= number <= self._last:
            yield
            return
        if not self._tracing:
            jax.profiler.start_trace(self._directory)
            self._tracing = True
        with jax.profiler.StepTraceAnnotation("train", step_num=number):
            yield
        if number == self._last:
            self.close()

    def close(self) -> None:
        """End the trace, also if a training ends before the last step to trace."""
        if self._tracing:
            self._tracing = False
            try:
                jax.block_until_ready(jax.live_arrays())  # steps are dispatched ahead of their work
            finally:
                jax.profiler.stop_trace()

    def __enter__(self) -> Profiler:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()
