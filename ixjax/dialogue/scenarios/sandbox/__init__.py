"""A world whose user is a known program: corpus of the quickstart and oracle of the tests."""

from ixjax.dialogue.scenarios.sandbox.corpus import (
    attentive_supporter,
    average_supporter,
    generate_corpus,
    sample_condition,
)
from ixjax.dialogue.scenarios.sandbox.enumeration import (
    PolicyDistribution,
    best_response_values,
    expected_engagement,
    response_values,
)
from ixjax.dialogue.scenarios.sandbox.scenario import SandboxScenario
from ixjax.dialogue.scenarios.sandbox.user import TrueUser
from ixjax.dialogue.scenarios.sandbox.world import (
    RESPONSES,
    act_of,
    need_of,
    reactions,
    shown_need,
)

__all__ = [
    "RESPONSES",
    "PolicyDistribution",
    "SandboxScenario",
    "TrueUser",
    "act_of",
    "attentive_supporter",
    "average_supporter",
    "best_response_values",
    "expected_engagement",
    "generate_corpus",
    "need_of",
    "reactions",
    "response_values",
    "sample_condition",
    "shown_need",
]
