"""Counts of an engine's work: tokens, slots, seconds and compilations."""

from __future__ import annotations

import ctypes
import dataclasses
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import jax

from ixjax.io import InputError

COMPILED = "/jax/core/compile/backend_compile_duration"


class RecompilationError(InputError):
    """A program was compiled after warm-up, and `debug.forbid_recompile` forbids it."""


class _Compilations:
    """Compilations of this process, as JAX reports them."""

    number = 0

    @classmethod
    def note(cls, event: str, duration_secs: float, **_: Any) -> None:
        cls.number += event == COMPILED


jax.monitoring.register_event_duration_secs_listener(_Compilations.note)
# Of glibc, which keeps memory that the compiler has freed: 0.2 GB after a search's programs.
_trim = getattr(ctypes.CDLL(None), "malloc_trim", None) if sys.platform == "linux" else None


@dataclasses.dataclass
class EngineStats:
    """Sums over the life of one or more engines.

    A slot is the place of one token in a pass; padding takes slots, too.
    """

    prefill_tokens: int = 0
    """Tokens read."""
    prefill_slots: int = 0
    """Slots of the passes that read."""
    decode_tokens: int = 0
    """Tokens sampled."""
    decode_slots: int = 0
    """Rows of the decode batch times its steps."""
    score_tokens: int = 0
    """Tokens of scored continuations and of their prefixes."""
    evictions: int = 0
    """Contexts that lost their blocks because the pool was full."""
    prefill_seconds: float = 0.0
    """Seconds in passes that read."""
    decode_seconds: float = 0.0
    """Seconds in passes that sample."""
    score_seconds: float = 0.0
    """Seconds in passes that score."""
    compilations: int = 0
    """Compiled programs."""
    compile_seconds: float = 0.0
    """Seconds in calls that compiled; a part of those above."""
    forbidden: bool = False
    """Whether to raise at the next compilation."""

    @property
    def occupancy(self) -> float:
        """Return the share of decode slots that sampled a token; 1 before the first."""
        return self.decode_tokens / self.decode_slots if self.decode_slots else 1.0

    @contextmanager
    def clock(self, name: str) -> Iterator[None]:
        """Add the time of the `with` block to `NAME_seconds`."""
        start = time.perf_counter()
        try:
            yield
        finally:
            field = f"{name}_seconds"
            setattr(self, field, getattr(self, field) + time.perf_counter() - start)

    def call(self, function: Any, *args: Any, **static: Any) -> Any:
        """Call a jitted function and count what it compiles.

        Raises:
            RecompilationError: it compiled, which is forbidden; names the shapes.
        """
        before, start = _Compilations.number, time.perf_counter()
        result = function(*args, **static)
        compiled = _Compilations.number - before
        if compiled:
            self.compilations += compiled
            if _trim is not None:
                _trim(0)
            self.compile_seconds += time.perf_counter() - start
            if self.forbidden:
                arrays = [x for x in jax.tree.leaves(args) if hasattr(x, "shape")]
                shapes = sorted({str(jax.typeof(x)) for x in arrays})
                raise RecompilationError(
                    f"{function.__name__} was compiled again, with {static} and arrays of "
                    f"{', '.join(shapes)}. Warm up with these shapes, or turn off "
                    "debug.forbid_recompile"
                )
        return result

    def copy(self) -> EngineStats:
        """Return the sums up to now."""
        return dataclasses.replace(self)

    def report(self, seconds: float) -> dict[str, float]:
        """Return a summary of work that took `seconds` in total.

        Returns:
            Tokens sampled per second, occupancy, evictions, compilations and their seconds, and the
            shares of the time spent reading, sampling, scoring, and on the host.
        """
        busy = (self.prefill_seconds, self.decode_seconds, self.score_seconds)
        shares = [part / max(seconds, 1e-9) for part in busy]
        return {
            "tokens_per_second": self.decode_tokens / max(seconds, 1e-9),
            "occupancy": self.occupancy,
            "prefill_share": shares[0],
            "decode_share": shares[1],
            "score_share": shares[2],
            "host_share": 1 - sum(shares),
            "evictions": self.evictions,
            "compilations": self.compilations,
            "compile_seconds": self.compile_seconds,
        }

    def __sub__(self, earlier: EngineStats) -> EngineStats:
        """Return the work since `earlier`, a copy made then."""
        names = [field.name for field in dataclasses.fields(self) if field.name != "forbidden"]
        return EngineStats(**{name: getattr(self, name) - getattr(earlier, name) for name in names})
