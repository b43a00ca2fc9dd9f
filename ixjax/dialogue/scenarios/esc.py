"""Emotional support (ESConv): a supporter relieves a seeker's distress.

Engagement is the relief over ESConv's 1-5 emotion intensities; "released" means a final intensity
of 1 (docs/algorithm.md, engagement).
"""

from __future__ import annotations

import re
from collections.abc import Sequence

from ixjax.dialogue.types import Outcome, UserCondition

SCALE = 5
SITUATION_WORDS = 60  # most words of a situation in the prompt, so that the dialogue fits


def relief(initial: float, final: float) -> float:
    """Return the relieved share of distress above 1: clip((i - f) / max(1, i - 1), 0, 1)."""
    return min(1.0, max(0.0, (initial - final) / max(1, initial - 1)))


class EmotionalSupport:
    """ESConv's scenario."""

    name = "esc"
    policy_opens = False
    policy_prompt = "You are a supporter. Comfort the person who talks to you and help them."
    outcome_pattern = re.compile(r"^final distress: ([1-5]) of 5$")
    outcome_unit = "final distress"

    def simulator_prompt(self, condition: UserCondition) -> str:
        """See `Scenario`."""
        have = condition.attributes
        situation = " ".join(str(have["situation"]).split()[:SITUATION_WORDS])
        return (
            f"You seek support. You feel {have['emotion']}, distress {_initial(condition):g} of "
            f"{SCALE}, about {have['problem']}: {situation}"
        )

    def outcome_lines(self, condition: UserCondition) -> Sequence[tuple[str, Outcome]]:
        """See `Scenario`."""
        initial = _initial(condition)
        outcomes = [Outcome(float(n), relief(initial, n)) for n in range(1, SCALE + 1)]
        return [(self.outcome_line(condition, outcome), outcome) for outcome in outcomes]

    def outcome_line(self, condition: UserCondition, outcome: Outcome) -> str:
        """See `Scenario`."""
        return f"final distress: {round(outcome.value)} of {SCALE}"

    def read_outcome(self, condition: UserCondition, line: str) -> Outcome | None:
        """See `Scenario`."""
        found = self.outcome_pattern.search(line.strip())
        return self.outcome(condition, int(found[1])) if found else None

    def released(self, condition: UserCondition, outcome_value: float) -> bool:
        """Return whether the final intensity is 1."""
        return round(outcome_value) == 1

    def outcome(self, condition: UserCondition, value: float) -> Outcome | None:
        """See `Scenario`."""
        if not 1 <= value <= SCALE:
            return None
        return Outcome(float(value), relief(_initial(condition), value))


def _initial(condition: UserCondition) -> float:
    """Return the intensity at the start, 1 to 5."""
    intensity = condition.attributes["intensity"]
    if isinstance(intensity, str) or not 1 <= intensity <= SCALE:
        raise ValueError(f"intensity is {intensity!r}; expected a number from 1 to {SCALE}")
    return float(intensity)
