"""Dialogues: their types, corpora, scenarios and rendering as tokens. Imports no jax."""

from ixjax.dialogue.corpora import DataConfig
from ixjax.dialogue.scenarios import Scenario, get_scenario, register_scenario
from ixjax.dialogue.tokenizer import TokenizerConfig
from ixjax.dialogue.types import Dialogue, Outcome, OutcomeReading, Turn, UserCondition, Utterance

__all__ = [
    "DataConfig",
    "Dialogue",
    "Outcome",
    "OutcomeReading",
    "Scenario",
    "TokenizerConfig",
    "Turn",
    "UserCondition",
    "Utterance",
    "get_scenario",
    "register_scenario",
]
