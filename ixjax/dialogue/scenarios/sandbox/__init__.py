"""A world whose user is a known program: the quickstart's corpus and the oracle of tests."""

from ixjax.dialogue.scenarios.sandbox.scenario import (
    SandboxScenario,
    generate_corpus,
    sample_condition,
)
from ixjax.dialogue.scenarios.sandbox.user import TrueUser, expected_engagement, response_values
from ixjax.dialogue.scenarios.sandbox.world import RESPONSES, act_of, need_of, reactions

__all__ = [
    "RESPONSES",
    "SandboxScenario",
    "TrueUser",
    "act_of",
    "expected_engagement",
    "generate_corpus",
    "need_of",
    "reactions",
    "response_values",
    "sample_condition",
]
