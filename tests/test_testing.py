"""The public doubles: small, deterministic, and usable in place of the real ones."""

from __future__ import annotations

from collections import Counter

import jax.numpy as jnp
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ixjax.dialogue import Dialogue, Turn, UserCondition, get_scenario
from ixjax.dialogue.tokenizer import SPECIAL_TOKENS
from ixjax.dialogue.types import OutcomeReading
from ixjax.generation import run_one
from ixjax.search import PairsConfig, SearchConfig, extract_pairs, run
from ixjax.testing import ScriptedSpeaker, byte_tokenizer, tiny_model

ROOT = Dialogue("d", UserCondition("c", {"need": "advice"}), (Turn("user", "hi"),))
LONGER = ROOT.said("policy", "a").said("user", "go on")


def echo(role="policy", **settings) -> ScriptedSpeaker:
    """Return a speaker of two words, 3 to 1; after a longer dialogue 1 to 3."""

    def distribution(dialogue):
        return {"a": 0.75, "b": 0.25} if len(dialogue.turns) < 3 else {"b": 0.75, "a": 0.25}

    return ScriptedSpeaker(role, distribution, **settings)


def said(speaker: ScriptedSpeaker, dialogue: Dialogue, numbers) -> list[str]:
    return [run_one(speaker.begin(dialogue).speak((7, number))).text for number in numbers]


def test_the_tiny_model_gives_logits_of_the_vocabulary_asked_for():
    logits = tiny_model(40)(jnp.zeros((1, 3), jnp.int32))
    assert logits.shape == (1, 3, 40)
    assert jnp.isfinite(logits).all()


@given(st.text(st.characters(codec="utf-8"), max_size=12))
def test_any_text_survives_the_byte_tokenizer(tokenizer, text):
    ids = tokenizer.encode(text, add_special_tokens=False)
    assert len(ids) == len(text.encode())
    assert tokenizer.decode(ids, clean_up_tokenization_spaces=False) == text


@pytest.fixture(scope="module")
def tokenizer():
    return byte_tokenizer()


def test_the_byte_tokenizer_has_256_bytes_and_the_special_tokens(tokenizer):
    assert len(tokenizer) == 256 + len(SPECIAL_TOKENS)


def test_what_is_said_depends_on_the_identity_and_not_on_the_order():
    forwards = said(echo(), ROOT, range(30))
    assert forwards == said(echo(), ROOT, reversed(range(30)))[::-1]
    assert set(forwards) == {"a", "b"}


def test_it_draws_from_the_distribution_of_the_dialogue_so_far():
    for dialogue, frequent in ((ROOT, "a"), (LONGER, "b")):
        share = Counter(said(echo(), dialogue, range(2000)))[frequent] / 2000
        assert abs(share - 0.75) < 4 * (0.75 * 0.25 / 2000) ** 0.5  # four standard errors


def test_another_seed_and_the_other_role_draw_otherwise():
    blank = Dialogue("d", ROOT.condition, ())
    first = said(echo(), blank, range(30))
    assert first != said(echo(seed=1), blank, range(30))
    assert first != said(echo("user"), blank, range(30))


def test_forks_go_on_independently_as_their_origin_would():
    one = echo().begin(ROOT)
    fork, other = run_one(one.fork(2))
    assert run_one(fork.speak((7, 1))) == run_one(one.speak((7, 1)))
    assert fork.dialogue == one.dialogue == ROOT.said("policy", one.dialogue.turns[-1].text)
    fork.hear("go on")
    assert len(one.dialogue.turns) == 2
    assert other.dialogue == ROOT
    assert fork.dialogue == one.dialogue.said("user", "go on")


def test_outcomes_need_a_reading():
    with pytest.raises(ValueError, match="reads no outcomes; give it reading="):
        run_one(echo("user").begin(ROOT).outcome())


def test_search_in_a_scripted_world_finds_the_response_that_pays():
    def paid(dialogue):
        good = float(dialogue.turns[1].text == "good")
        return OutcomeReading(good, good)

    policy = ScriptedSpeaker("policy", lambda dialogue: {"good": 0.5, "bad": 0.5})
    user = ScriptedSpeaker(
        "user", lambda dialogue: {"bye": 1.0}, reading=paid, ends=lambda dialogue: True
    )
    config = SearchConfig(trees=1, iterations=2, width=6, max_turns=1)
    [tree] = run(policy, user, get_scenario("sandbox"), [ROOT], config)
    [pair] = extract_pairs(tree, PairsConfig(min_margin=0.5))
    assert (pair.chosen, pair.rejected) == ("good", "bad")
