"""The public doubles: small, deterministic, and fit to stand where the real ones do."""

from __future__ import annotations

from collections import Counter

import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ixjax.dialogue import Dialogue, Turn, UserCondition, get_scenario
from ixjax.dialogue.tokenizer import SPECIAL_TOKENS
from ixjax.dialogue.types import OutcomeReading
from ixjax.search import PairsConfig, SearchConfig, extract_pairs, run
from ixjax.testing import ScriptedSpeaker, byte_tokenizer, tiny_model

ROOT = Dialogue("d", UserCondition("c", {"need": "advice"}), (Turn("user", "hi"),))
EVERYONE = np.ones(2, bool)


def echo(role="policy", **settings) -> ScriptedSpeaker:
    """Says one of two words with 3 : 1, in another order behind a longer dialogue."""

    def distribution(dialogue):
        return {"a": 0.75, "b": 0.25} if len(dialogue.turns) < 3 else {"b": 0.75, "a": 0.25}

    return ScriptedSpeaker(role, distribution, **settings)


def identities(*numbers: int) -> np.ndarray:
    return np.array([[7, number] for number in numbers], np.uint32)


def said(speaker, dialogues, asked) -> list[str]:
    _, turns = speaker.speak(speaker.start(dialogues), asked, np.ones(len(dialogues), bool))
    return [turn.text for turn in turns]


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


def test_what_is_said_depends_on_the_identity_and_not_on_the_row():
    numbers = list(range(30))
    forwards = said(echo(), [ROOT] * 30, identities(*numbers))
    backwards = said(echo(), [ROOT] * 30, identities(*reversed(numbers)))
    assert forwards == backwards[::-1]
    assert set(forwards) == {"a", "b"}


def test_it_draws_from_the_distribution_of_the_dialogue_so_far():
    longer = ROOT.said("policy", "a").said("user", "go on")
    for dialogue, frequent in ((ROOT, "a"), (longer, "b")):
        share = Counter(said(echo(), [dialogue] * 2000, identities(*range(2000))))[frequent] / 2000
        assert abs(share - 0.75) < 4 * (0.75 * 0.25 / 2000) ** 0.5  # four standard errors


def test_another_seed_and_the_other_role_draw_otherwise():
    asked, dialogues = identities(*range(30)), [Dialogue("d", ROOT.condition, ())] * 30
    first = said(echo(), dialogues, asked)
    assert first != said(echo(seed=1), dialogues, asked)
    assert first != said(echo("user"), dialogues, asked)


def test_forked_and_stored_rows_go_on_as_their_sources_would():
    speaker = echo()
    state = speaker.start([ROOT, ROOT.said("policy", "a").said("user", "go on")])
    copy = speaker.store(speaker.empty(2), np.array([1, 0]), speaker.fork(state, np.arange(2)),
                         np.array([0, 1]))  # fmt: skip
    there, _ = speaker.speak(state, identities(0, 1), EVERYONE)
    here, _ = speaker.speak(copy, identities(1, 0), EVERYONE)
    assert here == there[::-1]


def test_an_empty_row_cannot_be_asked():
    speaker = echo(reading=lambda dialogue: OutcomeReading(0.0, 0.0))
    with pytest.raises(ValueError, match="row 1 is active and holds no dialogue"):
        speaker.speak([ROOT, None], identities(0, 1), EVERYONE)
    with pytest.raises(ValueError, match="row 1 is active and holds no dialogue"):
        speaker.outcomes([ROOT, None], EVERYONE)
    assert speaker.outcomes([ROOT, None], np.array([True, False]))[1] is None


def test_outcomes_need_a_reading():
    with pytest.raises(ValueError, match="reads no outcomes; give it reading="):
        echo("user").outcomes([ROOT], np.ones(1, bool))


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
