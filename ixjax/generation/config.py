"""How the engine lays out its work. Settings here change speed and memory, not what is said."""

from __future__ import annotations

import dataclasses
from typing import Literal, get_args

from ixjax.generation.attention import AttentionName
from ixjax.io import NO_EFFECT, InputError

Layout = Literal["auto", "contiguous", "paged"]


@dataclasses.dataclass(frozen=True)
class EngineConfig:
    """Sizes that work is padded to; each combination that occurs is compiled once."""

    attention: AttentionName = "auto"
    """Attention kernel: auto takes the fastest that the platform has."""
    layout: Layout = dataclasses.field(default="auto", metadata=NO_EFFECT)
    """How passes read the KV cache: contiguous copies a row's blocks into the batch, paged reads
    them in place; auto is contiguous on a CPU and paged elsewhere."""
    rows: int = 64
    """Rows of the decode batch: turns that are decoded at once."""
    steps: int = 32
    """Most tokens that a row is decoded by before the host looks at the batch again."""
    in_flight: int = 4
    """Dialogues played at once, per decode row, if policy and simulator have a model each."""
    prefill_tokens: int = 1024
    """Tokens read in one pass, padding included."""
    pool_tokens: int = dataclasses.field(default=0, metadata=NO_EFFECT)
    """Most tokens that the KV cache holds; beyond them the least recently used contexts are
    evicted and read again when needed. 0: no limit."""
    warm_up: bool = False
    """Compile every size that a search needs before it begins."""

    def __post_init__(self) -> None:
        """Refuse sizes below 1."""
        for name, least in (
            ("rows", 1),
            ("steps", 1),
            ("in_flight", 1),
            ("prefill_tokens", 1),
            ("pool_tokens", 0),
        ):
            value = getattr(self, name)
            if value < least:
                raise InputError(f"engine.{name} is {value}; expected {least} or more")
        if self.layout not in get_args(Layout):
            expected = ", ".join(get_args(Layout))
            raise InputError(f"engine.layout is {self.layout!r}; expected one of {expected}")


@dataclasses.dataclass(frozen=True)
class DebugConfig:
    """Checks for development and tuning."""

    forbid_recompile: bool = False
    """Warm the search up, then stop at the first program that is compiled, naming its shapes."""
