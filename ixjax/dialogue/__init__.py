"""Dialogues: their types, corpora, scenarios and rendering as tokens. Imports no jax."""

from ixjax.dialogue.chat import ChatTemplate, View
from ixjax.dialogue.corpora import DataConfig
from ixjax.dialogue.scenarios import Scenario, get_scenario, register_scenario
from ixjax.dialogue.tokenizer import TokenizerConfig, load_tokenizer
from ixjax.dialogue.types import Dialogue, Outcome, OutcomeReading, Turn, UserCondition, Utterance

__all__ = [
    "ChatTemplate",
    "DataConfig",
    "Dialogue",
    "Outcome",
    "OutcomeReading",
    "Scenario",
    "TokenizerConfig",
    "Turn",
    "UserCondition",
    "Utterance",
    "View",
    "get_scenario",
    "load_tokenizer",
    "register_scenario",
]
