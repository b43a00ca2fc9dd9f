"""What an engine has done so far: tokens, slots, seconds and compilations."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import jax


class RecompilationError(RuntimeError):
    """Something was compiled after warm-up, where that was forbidden."""


@dataclasses.dataclass
class Account:
    """Sums over an engine's life. A slot is a token's place in a pass, padding included."""

    prefill_tokens: int = 0
    """Tokens read."""
    prefill_slots: int = 0
    """Places for tokens in the passes that read."""
    decode_tokens: int = 0
    """Tokens sampled."""
    decode_slots: int = 0
    """Rows of the decode batch times its steps."""
    score_tokens: int = 0
    """Tokens of scored continuations."""
    prefill_seconds: float = 0.0
    """In passes that read."""
    decode_seconds: float = 0.0
    """In passes that sample."""
    score_seconds: float = 0.0
    """In passes that score."""
    compilations: int = 0
    """Compiled programs."""
    compile_seconds: float = 0.0
    """In calls that compiled; a part of the seconds above."""
    forbidden: bool = False
    """Whether to raise at the next compilation."""

    @property
    def occupancy(self) -> float:
        """Share of the decode batch's slots that sampled a token; 1 before the first."""
        return self.decode_tokens / self.decode_slots if self.decode_slots else 1.0

    @contextmanager
    def clock(self, name: str) -> Iterator[None]:
        """Add the time of the block to `NAME_seconds`."""
        start = time.perf_counter()
        try:
            yield
        finally:
            field = f"{name}_seconds"
            setattr(self, field, getattr(self, field) + time.perf_counter() - start)

    def call(self, function: Callable[..., Any], *args: Any, **static: Any) -> Any:
        """Call a jitted function, and count it if that compiled.

        Raises:
            RecompilationError: it did, and that is forbidden; names the shapes.
        """
        # The size of the function's cache is the one exact count of its compilations.
        before, start = function._cache_size(), time.perf_counter()
        result = function(*args, **static)
        compiled = function._cache_size() - before
        if compiled:
            self.compilations += compiled
            self.compile_seconds += time.perf_counter() - start
            if self.forbidden:
                shapes = sorted({str(jax.typeof(x)) for x in jax.tree.leaves(args)})
                raise RecompilationError(
                    f"{function.__name__} was compiled anew, with {static} and arrays of "
                    f"{', '.join(shapes)}; warm up with this shape, or allow it "
                    "(debug.forbid_recompile)"
                )
        return result

    def __sub__(self, earlier: Account) -> Account:
        """What was done since `earlier`, a copy made then."""
        sums = {
            field.name: getattr(self, field.name) - getattr(earlier, field.name)
            for field in dataclasses.fields(self)
            if field.name != "forbidden"
        }
        return Account(**sums)
