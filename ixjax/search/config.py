"""The budget and constants of i×MCTS, and the sizes that follow from them."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Literal

from ixjax.io import NO_EFFECT, InputError
from ixjax.search.selection import RULES, Rule

COUNTS = (
    "trees",
    "iterations",
    "leaves",
    "width",
    "reactions",
    "rollouts",
    "max_turns",
    "conditions",
)


@dataclass(frozen=True)
class SearchConfig:
    """How i×MCTS searches."""

    conditions: int = 64
    """Training conditions to search, the first ones of the split; one tree each."""
    trees: int = field(default=16, metadata=NO_EFFECT)
    """Trees that grow at once."""
    iterations: int = 16
    """Rounds of select, expand, roll out, back-propagate, per tree."""
    leaves: int = 1
    """Leaves expanded per tree and iteration."""
    width: int = 4
    """Responses sampled per expansion; equal ones become one child."""
    reactions: int = 1
    """Reactions sampled to each new response."""
    rollouts: int = 1
    """Dialogues played to their end from each new reaction."""
    max_turns: int = 8
    """Policy turns after which a dialogue is over."""
    rule: Rule = "uct"
    """Selection rule: `uct` explores by visits, `puct` also by the policy's likelihood."""
    c_uct: float = 1.0
    """Weight of exploration."""
    backup: Literal["mean", "max"] = "mean"
    """Value of a decision: mean of its returns, or max over its responses."""
    widening_factor: float = 1.0
    """k_w: a response with N visits may have ceil(k_w N^alpha_w) reactions."""
    widening_exponent: float = 0.0
    """alpha_w, 0 to 1; at 0 a response has at most ceil(k_w) reactions."""
    gamma: float = 1.0
    """Discount per policy turn; 1: no discount."""
    reaction_weight: float = 0.0
    """lambda: weight of the reward for each reaction, in scenarios that define one."""
    stop_gap: float = 0.0
    """Stop a tree once the root's responses differ by this many standard errors; 0: never."""
    max_nodes: int = 0
    """Most nodes of a tree (twice that for a tree reused in a chat); 0: no limit."""
    max_tokens: int = 0
    """Stop a tree after this many sampled tokens; 0: no limit."""
    contexts: int = 64
    """Nodes of a tree whose contexts are kept; others are read again from an ancestor."""

    def __post_init__(self) -> None:
        for name in COUNTS:
            value = getattr(self, name)
            if value < 1:
                raise InputError(f"search.{name} is {value}; expected 1 or more")
        for name in ("max_nodes", "max_tokens", "contexts"):
            if getattr(self, name) < 0:
                raise InputError(f"search.{name} is {getattr(self, name)}; expected 0 or more")
        for name, options in (("rule", tuple(RULES)), ("backup", ("mean", "max"))):
            if getattr(self, name) not in options:
                expected = " or ".join(options)
                raise InputError(f"search.{name} is {getattr(self, name)!r}; expected {expected}")
        if 0 < self.max_nodes < 1 + self.growth:
            raise InputError(
                f"search.max_nodes is {self.max_nodes}; expected {1 + self.growth} or more: the "
                f"root, and {self.growth} nodes of one iteration (search.leaves, search.width, "
                "search.reactions)"
            )
        for name, low, high in (
            ("c_uct", 0, None),
            ("reaction_weight", 0, None),
            ("stop_gap", 0, None),
            ("widening_factor", 1e-9, None),
            ("widening_exponent", 0, 1),
            ("gamma", 1e-9, 1),
        ):
            value = getattr(self, name)
            if not (math.isfinite(value) and low <= value <= (value if high is None else high)):
                expected = f"a finite number, {low} or more" if high is None else f"{low} to {high}"
                raise InputError(f"search.{name} is {value}; expected {expected}")
        if self.stop_gap and self.reaction_weight:
            raise InputError(
                f"search.stop_gap is {self.stop_gap} and search.reaction_weight "
                f"{self.reaction_weight}; expected one of them to be 0: the standard error assumes "
                "returns in [0, 1], and rewards of reactions may exceed that"
            )

    @property
    def expansions(self) -> int:
        """Return the most responses of one tree."""
        return self.iterations * self.leaves * self.width

    @property
    def samples(self) -> int:
        """Return the most reactions that one iteration adds to a tree."""
        return self.leaves * self.width * self.reactions

    @property
    def growth(self) -> int:
        """Return the most nodes that one iteration adds to a tree."""
        return self.leaves * self.width + self.samples

    @property
    def nodes(self) -> int:
        """Return the most nodes of one tree: the root, responses and reactions."""
        most = 1 + self.iterations * self.growth
        return min(most, self.max_nodes) if self.max_nodes else most

    @property
    def most_reactions(self) -> int:
        """Return the most reactions of one response."""
        visits = self.expansions * self.reactions * self.rollouts + self.leaves
        limit = math.ceil(self.widening_factor * visits**self.widening_exponent)
        widened = max(1, min(limit, self.reactions + self.iterations * self.leaves))
        return max(widened, self.reactions)

    @property
    def most_rollouts(self) -> int:
        """Return the most rollouts that one iteration of a tree plays at once."""
        return self.samples * self.rollouts

    @property
    def kept(self) -> int:
        """Return the most nodes of one tree whose contexts are kept.

        That is `contexts`, but at least the number that one iteration needs (the root, its leaves
        and its new nodes) and at most the number of nodes.
        """
        made = self.samples if self.most_reactions == 1 else self.growth
        needed = 1 + self.leaves + made
        return min(max(self.contexts, needed), 1 + self.iterations * made)
