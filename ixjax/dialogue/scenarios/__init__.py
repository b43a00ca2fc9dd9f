"""Scenarios: the system texts of both sides and the possible outcomes of a dialogue."""

from ixjax.dialogue.scenarios.base import Scenario, get_scenario, register_scenario
from ixjax.dialogue.scenarios.esc import EmotionalSupport
from ixjax.dialogue.scenarios.p4g import Persuasion
from ixjax.dialogue.scenarios.sandbox import SandboxScenario

register_scenario("esc", EmotionalSupport())
register_scenario("p4g", Persuasion())
register_scenario("sandbox", SandboxScenario())

__all__ = ["Scenario", "get_scenario", "register_scenario"]
