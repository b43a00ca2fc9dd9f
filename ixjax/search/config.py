"""The budget and the constants of i×MCTS, and the sizes of everything that follow from them."""

from __future__ import annotations

import math
from dataclasses import dataclass, field

from ixjax.io import NO_EFFECT, InputError


@dataclass(frozen=True)
class SearchConfig:
    """How i×MCTS searches."""

    conditions: int = 64
    """Training conditions that are searched, one tree each: the first of the split."""
    trees: int = field(default=16, metadata=NO_EFFECT)
    """Trees that grow side by side, one a condition."""
    iterations: int = 16
    """Rounds of select, expand, roll out, back-propagate."""
    leaves: int = 1
    """Leaves expanded per tree and iteration."""
    width: int = 4
    """Responses sampled at an expansion; equal ones become one child."""
    rollouts: int = 1
    """Dialogues played to their end from each new response."""
    max_turns: int = 8
    """Policy turns after which a dialogue is over."""
    c_uct: float = 1.0
    """Weight of exploration in UCT."""
    widening_factor: float = 1.0
    """k_w: a response with N visits may have ceil(k_w N^alpha_w) reactions."""
    widening_exponent: float = 0.0
    """alpha_w, from 0 (as many reactions as ceil(k_w), for good) to 1."""
    gamma: float = 1.0
    """Discount a policy turn; 1 counts the final engagement alone."""

    def __post_init__(self) -> None:
        counts = ("trees", "iterations", "leaves", "width", "rollouts", "max_turns", "conditions")
        for name in counts:
            value = getattr(self, name)
            if value < 1:
                raise InputError(f"search.{name} is {value}; expected 1 or more")
        for name, low, high in (
            ("c_uct", 0, math.inf),
            ("widening_factor", 1e-9, math.inf),
            ("widening_exponent", 0, 1),
            ("gamma", 1e-9, 1),
        ):
            if not low <= getattr(self, name) <= high:
                raise InputError(
                    f"search.{name} is {getattr(self, name)}; expected a number in [{low}, {high}]"
                )

    @property
    def expansions(self) -> int:
        """The most responses that one tree can have."""
        return self.iterations * self.leaves * self.width

    @property
    def nodes(self) -> int:
        """The most nodes that one tree can have: the root, and a response and its reaction each."""
        return 1 + 2 * self.expansions

    @property
    def reactions(self) -> int:
        """The most reactions that one response can have."""
        visits = self.expansions * self.rollouts + self.leaves
        limit = math.ceil(self.widening_factor * visits**self.widening_exponent)
        return max(1, min(limit, 1 + self.iterations * self.leaves))

    @property
    def rows(self) -> int:
        """Contexts that one tree keeps: one a decision; with widening one a node."""
        return 1 + self.expansions if self.reactions == 1 else self.nodes
