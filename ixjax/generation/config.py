"""Settings of the engine. They change speed and memory, not the sampled tokens."""

from __future__ import annotations

import dataclasses
from typing import Literal, get_args

from ixjax.generation.attention import AttentionName
from ixjax.io import NO_EFFECT, InputError

Layout = Literal["auto", "contiguous", "paged"]


@dataclasses.dataclass(frozen=True)
class EngineConfig:
    """Sizes that work is padded to; each combination in use is compiled once."""

    attention: AttentionName = "auto"
    """Attention kernel; auto picks the fastest on this platform."""
    layout: Layout = dataclasses.field(default="auto", metadata=NO_EFFECT)
    """KV cache: contiguous copies a row's blocks, paged reads in place; auto: by platform."""
    rows: int = 64
    """Rows of the decode batch: turns decoded at once."""
    steps: int = 32
    """Most tokens decoded per row before the host updates the batch."""
    in_flight: int = 4
    """Dialogues played at once, per decode row, if policy and simulator are separate models."""
    prefill_tokens: int = 1024
    """Tokens read in one pass, padding included."""
    pool_tokens: int = dataclasses.field(default=0, metadata=NO_EFFECT)
    """Most tokens in the KV cache; if it is full, old contexts are evicted. 0: no limit."""
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
    """Warm up, then stop at the first compilation during the search, and name its shapes."""
