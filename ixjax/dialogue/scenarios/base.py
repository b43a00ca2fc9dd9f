"""The protocol of a scenario, and the registry of scenarios.

A scenario gives the system texts of both sides, the possible outcomes of a dialogue, and the
closing lines that state them. Search, training and evaluation are the same for all scenarios.
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

    name: value of `--scenario`.
    policy_opens: whether the policy speaks first; if not, the root follows the user's first turn.
    policy_prompt: system prompt of the policy; never contains the condition.
    outcome_pattern: regular expression that reads an outcome line.
    outcome_unit: unit of `Outcome.value`, for tables.
    """

    name: str
    policy_opens: bool
    policy_prompt: str
    outcome_pattern: re.Pattern[str]
    outcome_unit: str

    def simulator_prompt(self, condition: UserCondition) -> str:
        """Return the system prompt of the simulator, with the condition in words."""
        ...

    def outcome_lines(self, condition: UserCondition) -> Sequence[tuple[str, Outcome]]:
        """Return every possible closing line with its outcome; the expected read-out scores all."""
        ...

    def outcome_line(self, condition: UserCondition, outcome: Outcome) -> str:
        """Return the possible line nearest to a recorded outcome."""
        ...

    def outcome(self, condition: UserCondition, value: float) -> Outcome | None:
        """Return the outcome of a value in the scenario's unit; None if it is out of range."""
        ...

    def read_outcome(self, condition: UserCondition, line: str) -> Outcome | None:
        """Return the outcome of a closing line; None if the line states no valid one."""
        ...

    def released(self, condition: UserCondition, outcome_value: float) -> bool:
        """Return whether this counts as a full success (final distress 1, a donation)."""
        ...


@runtime_checkable
class RewardsReactions(Protocol):
    """A scenario that also rewards single reactions of the user (reward shaping)."""

    def reaction_reward(self, text: str) -> float:
        """Return the unweighted reward of a user's turn; 0 for a turn without information."""
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
        raise TypeError(f"scenario {name!r} lacks {', '.join(missing)}; expected all of `Scenario`")
    if _SCENARIOS.get(name, scenario) is not scenario:
        raise ValueError(f"scenario {name!r} is already registered; choose another name")
    _SCENARIOS[name] = scenario


def get_scenario(name: str) -> Scenario:
    """Return the scenario of that name.

    Raises:
        InputError: no scenario has it; names the nearest.
    """
    if name in _SCENARIOS:
        return _SCENARIOS[name]
    near = difflib.get_close_matches(name, _SCENARIOS, n=1)
    hint = (
        f"perhaps you meant {near[0]!r}"
        if near
        else "for your own scenario, start with the file that registers it: "
        "`python FILE.py STAGE ...`"
    )
    raise InputError(
        f"scenario is {name!r}; expected one of {', '.join(sorted(_SCENARIOS))}; {hint}"
    )


def _parts() -> list[str]:
    methods = [part for part in vars(Scenario) if not part.startswith("_")]
    return sorted({*Scenario.__annotations__, *methods})
