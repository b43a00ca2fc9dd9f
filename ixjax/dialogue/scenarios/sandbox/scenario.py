"""The sandbox as a scenario: the system texts of both sides, and the closing lines."""

from __future__ import annotations

import re
from collections.abc import Sequence

from ixjax.dialogue.scenarios.esc import relief
from ixjax.dialogue.scenarios.sandbox import world
from ixjax.dialogue.types import Outcome, UserCondition


class SandboxScenario:
    """Emotional support in the sandbox world; engagement is the relief, as in ESConv."""

    name = "sandbox"
    policy_opens = False
    policy_prompt = "help the user to feel better ."
    outcome_pattern = re.compile(r"^final distress : ([1-5]) of 5$")
    outcome_unit = "final distress"

    def simulator_prompt(self, condition: UserCondition) -> str:
        """See `Scenario`."""
        mood = world.initial_mood(condition)
        return (
            f"you want {world.need_of(condition)} . distress : {mood.distress} of {world.SCALE} . "
            f"patience : {mood.patience} ."
        )

    def outcome_lines(self, condition: UserCondition) -> Sequence[tuple[str, Outcome]]:
        """See `Scenario`."""
        initial = world.initial_mood(condition).distress
        outcomes = [Outcome(float(n), relief(initial, n)) for n in range(1, world.SCALE + 1)]
        return [(self.outcome_line(condition, outcome), outcome) for outcome in outcomes]

    def outcome_line(self, condition: UserCondition, outcome: Outcome) -> str:
        """See `Scenario`."""
        nearest = min(world.SCALE, max(1, round(outcome.value)))
        return f"final distress : {nearest} of {world.SCALE}"

    def read_outcome(self, condition: UserCondition, line: str) -> Outcome | None:
        """See `Scenario`."""
        found = self.outcome_pattern.search(line.strip())
        return self.outcome(condition, int(found[1])) if found else None

    def released(self, condition: UserCondition, outcome_value: float) -> bool:
        """Return whether the final distress is 1."""
        return round(outcome_value) == 1

    def outcome(self, condition: UserCondition, value: float) -> Outcome | None:
        """See `Scenario`."""
        if not 1 <= value <= world.SCALE:
            return None
        return Outcome(float(value), relief(world.initial_mood(condition).distress, value))
