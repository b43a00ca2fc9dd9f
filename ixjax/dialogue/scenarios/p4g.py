"""Persuasion (Persuasion-for-Good): a persuader asks for a donation to Save the Children.

Engagement is the actual donation as a share of the 2-dollar task payment.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

from ixjax.dialogue.types import Outcome, UserCondition

PAYMENT = 2.0  # dollars that a participant was paid and could donate
# Amounts that a closing line may name: nearly half donate nothing, the others mostly one of these.
AMOUNTS = (0.0, 0.1, 0.25, 0.5, 1.0, 1.5, 2.0)
SPOKEN = ("age", "sex", "education", "employment", "religion", "ideology")
TRAITS = ("extraversion", "agreeableness", "conscientiousness", "neuroticism", "openness")
VALUES = ("care", "benevolence")


def donated(dollars: float) -> float:
    """Return the donation as a share of the payment, in [0, 1]."""
    return min(dollars, PAYMENT) / PAYMENT


class Persuasion:
    """Persuasion-for-Good's scenario."""

    name = "p4g"
    policy_opens = True
    policy_prompt = (
        "You are a persuader. Convince the person to donate part of their $2 payment to the "
        "charity Save the Children."
    )
    outcome_pattern = re.compile(r"^donation: \$(\d+\.\d\d)$")
    outcome_unit = "dollars donated"

    def simulator_prompt(self, condition: UserCondition) -> str:
        """See `Scenario`."""
        have = condition.attributes
        facts = [f"{name} {have[name]}" for name in SPOKEN if name in have]
        facts += [
            f"{_level(float(have[name]), low=low, high=high)} {name}"
            for names, low, high in ((TRAITS, 2.5, 3.75), (VALUES, 3.0, 4.5))
            for name in names
            if name in have
        ]
        about = f" About you: {', '.join(facts)}." if facts else ""
        return f"You were paid $2 and may donate some of it.{about}"

    def outcome_lines(self, condition: UserCondition) -> Sequence[tuple[str, Outcome]]:
        """See `Scenario`."""
        outcomes = [Outcome(amount, donated(amount)) for amount in AMOUNTS]
        return [(self.outcome_line(condition, outcome), outcome) for outcome in outcomes]

    def outcome_line(self, condition: UserCondition, outcome: Outcome) -> str:
        """See `Scenario`."""
        nearest = min(AMOUNTS, key=lambda amount: abs(amount - outcome.value))
        if outcome.value > 0 and nearest == 0:
            nearest = AMOUNTS[1]  # a cent is a donation
        return f"donation: ${nearest:.2f}"

    def read_outcome(self, condition: UserCondition, line: str) -> Outcome | None:
        """See `Scenario`."""
        found = self.outcome_pattern.search(line.strip())
        return self.outcome(condition, float(found[1])) if found else None

    def released(self, condition: UserCondition, outcome_value: float) -> bool:
        """Return whether the user donated at least a cent."""
        return outcome_value > 0

    def outcome(self, condition: UserCondition, value: float) -> Outcome | None:
        """See `Scenario`."""
        return Outcome(float(value), donated(value)) if 0 <= value <= PAYMENT else None


def _level(score: float, *, low: float, high: float) -> str:
    return "low" if score < low else "high" if score > high else "medium"
