"""How the engine lays out its work. Nothing here is meant to change what is said, only how fast."""

from __future__ import annotations

import dataclasses

from ixjax.generation.attention import AttentionName


@dataclasses.dataclass(frozen=True)
class EngineConfig:
    """Sizes that everything is padded to: each combination that occurs is compiled once."""

    attention: AttentionName = "auto"
    """Attention kernel: auto takes the best that the platform has."""
    rows: int = 64
    """Rows of a decode batch: turns that are spoken at once."""
    steps: int = 32
    """Tokens a row is decoded by before the host looks at the batch again, at most."""
    in_flight: int = 4
    """Dialogues in play for each of the rows, where policy and simulator have a model each."""
    prefill_tokens: int = 1024
    """Tokens read in one pass, padding included."""
    warm_up: bool = False
    """Compile every size that a search needs before it begins."""

    def __post_init__(self) -> None:
        """Refuse sizes below 1."""
        for name in ("rows", "steps", "in_flight", "prefill_tokens"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} is {getattr(self, name)}; it must be at least 1")


@dataclasses.dataclass(frozen=True)
class DebugConfig:
    """Checks for whoever develops or tunes."""

    forbid_recompile: bool = False
    """Warm the search up, then stop with the shapes at whatever is compiled after that."""
