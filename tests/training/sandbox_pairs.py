"""Preference pairs of the sandbox's dialogues: what was said, and what was said elsewhere."""

from __future__ import annotations

from ixjax.dialogue.chat import ChatTemplate, RenderedPair, View
from ixjax.dialogue.scenarios import get_scenario
from ixjax.dialogue.scenarios.sandbox.corpus import generate_corpus


def sandbox_pairs(tokenizer, count: int) -> list[RenderedPair]:
    """The first `count` pairs in which the two differ."""
    scenario = get_scenario("sandbox")
    view = View(scenario, "policy", ChatTemplate.from_tokenizer(tokenizer))
    found, other = [], "I see."
    for dialogue in generate_corpus(count, seed=0):
        for i, turn in enumerate(dialogue.turns):
            if turn.role == "policy":
                if turn.text != other:
                    found.append(view.pair(dialogue.before(i), turn.text, other, max_tokens=512))
                other = turn.text
    return found[:count]
