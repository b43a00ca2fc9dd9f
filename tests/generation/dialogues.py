"""Speakers of one tiny model with bytes as tokens, for tests of what is said."""

from __future__ import annotations

import dataclasses
import functools

from ixjax.dialogue import Dialogue, Turn, UserCondition, get_scenario
from ixjax.dialogue.chat import ChatTemplate, View
from ixjax.generation import (
    BlockPool,
    Engine,
    EngineConfig,
    EngineStats,
    ModelSpeaker,
    SamplingConfig,
    speaker_engine,
)
from ixjax.models import LoraConfig, Transformer
from ixjax.testing import byte_tokenizer, tiny_model
from tests.models.tiny import random_model

CONDITION = UserCondition("c", {"need": "advice", "distress": 4, "patience": 3})
EMPTY = Dialogue("d", CONDITION, ())
OPENED = EMPTY.said("user", "hi .")
ANSWERED = OPENED.said("policy", "okay .")
SAMPLING = SamplingConfig(max_new_tokens=12)
CONFIG = EngineConfig(rows=4, steps=5, in_flight=2, prefill_tokens=128)


@functools.lru_cache
def template() -> ChatTemplate:
    return ChatTemplate.from_tokenizer(byte_tokenizer())


@functools.lru_cache
def model(*, max_length: int = 192, adapters: int = 0) -> Transformer:
    found = tiny_model(template().vocab_size, max_length=max_length)
    if not adapters:
        return found
    lora = LoraConfig(rank=2, alpha=8, targets=("query", "up"), adapters=adapters)
    return random_model(dataclasses.replace(found.config, lora=lora))


def view(role: str, scenario: str = "sandbox", **changes) -> View:
    of = dataclasses.replace(template(), **changes)
    return View(scenario=get_scenario(scenario), role=role, template=of)


def speaker(
    role: str,
    *,
    of: Transformer | None = None,
    at: View | None = None,
    sampling: SamplingConfig = SAMPLING,
    seed: int = 0,
    stats: EngineStats | None = None,
    pool: BlockPool | None = None,
    engine: Engine | None = None,
    **settings,
) -> ModelSpeaker:
    """Return a speaker with an engine of the shared geometry, a new one by default."""
    of, at = of or model(), at or view(role)
    engine = engine or speaker_engine(of, at, sampling, CONFIG, stats=stats, pool=pool)
    return ModelSpeaker(engine, at, sampling, seed=seed, **settings)


def roots(count: int) -> list[tuple[Dialogue, tuple[int, int]]]:
    """Return dialogues that users have opened, of many lengths, with their identities."""
    found = []
    for i in range(count):
        condition = UserCondition(f"c{i}", dict(CONDITION.attributes))
        found.append((Dialogue(f"d{i}", condition, (Turn("user", "hi ." * (i + 1)),)), (i, 7)))
    return found
