"""What a scenario is, and where scenarios are registered.

A scenario says what the two sides are told, which outcomes a dialogue can have, and how one is
written and read. Everything else (trees, training, evaluation) is the same for all of them.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Sequence
from typing import Protocol, runtime_checkable

from ixjax.dialogue.types import Outcome, UserCondition
from ixjax.io import InputError


@runtime_checkable
class Scenario(Protocol):
    """A kind of dialogue, such as emotional support.

    name: what `--scenario` says.
    policy_opens: whether the policy speaks first; else the root lies after the user's first turn.
    policy_prompt: system prompt of the policy; never contains the condition.
    outcome_pattern: the regular expression that reads an outcome line.
    outcome_unit: what `Outcome.value` counts, for tables.
    """

    name: str
    policy_opens: bool
    policy_prompt: str
    outcome_pattern: re.Pattern[str]
    outcome_unit: str

    def simulator_prompt(self, condition: UserCondition) -> str:
        """System prompt of the simulator, with the condition in words."""
        ...

    def outcome_lines(self, condition: UserCondition) -> Sequence[tuple[str, Outcome]]:
        """Every possible closing line and what it means; the expected read-out scores them all."""
        ...

    def outcome_line(self, condition: UserCondition, outcome: Outcome) -> str:
        """The possible line nearest to a recorded outcome."""
        ...

    def outcome(self, condition: UserCondition, value: float) -> Outcome | None:
        """The outcome that a value in the scenario's unit is; None out of its range."""
        ...

    def read_outcome(self, condition: UserCondition, line: str) -> Outcome | None:
        """What a closing line says; None if the regular expression finds nothing valid."""
        ...

    def released(self, condition: UserCondition, outcome_value: float) -> bool:
        """Whether this counts as a full success (final distress 1, a donation)."""
        ...


@runtime_checkable
class RewardsReactions(Protocol):
    """What a scenario has in which a reaction earns something by itself (reward shaping)."""

    def reaction_reward(self, text: str) -> float:
        """What a user's turn earns, before it is weighted; 0 for one that tells nothing."""
        ...


_SCENARIOS: dict[str, Scenario] = {}


def register_scenario(name: str, scenario: Scenario) -> None:
    """Make a scenario available as `--scenario NAME`.

    Raises:
        ValueError: the name is taken by another scenario.
        TypeError: the object lacks a part of the `Scenario` protocol.
    """
    if not isinstance(scenario, Scenario):
        missing = [part for part in _parts() if not hasattr(scenario, part)]
        raise TypeError(f"scenario {name!r} lacks {', '.join(missing)}")
    if _SCENARIOS.get(name, scenario) is not scenario:
        raise ValueError(f"scenario {name!r} is registered already")
    _SCENARIOS[name] = scenario


def get_scenario(name: str) -> Scenario:
    """The scenario of that name.

    Raises:
        InputError: there is none; names the nearest.
    """
    if name in _SCENARIOS:
        return _SCENARIOS[name]
    near = difflib.get_close_matches(name, _SCENARIOS, n=1)
    hint = f"; perhaps you meant {near[0]!r}" if near else ""
    raise InputError(
        f"scenario: unknown name {name!r}; known are {', '.join(sorted(_SCENARIOS))}{hint}"
    )


def _parts() -> list[str]:
    methods = [part for part in vars(Scenario) if not part.startswith("_")]
    return sorted({*Scenario.__annotations__, *methods})
