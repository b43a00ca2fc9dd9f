"""Best-of-n plays by look-ahead, as a speaker among speakers."""

from __future__ import annotations

import numpy as np
import pytest

from ixjax.search import BestOfN
from tests.search.doubles import EVEN, MoodUser, TablePolicy, even_policy, roots


def best_of(candidates: int, *, rollouts: int = 8, policy=None, user=None) -> BestOfN:
    return BestOfN(
        policy or even_policy(),
        user or MoodUser(),
        candidates=candidates,
        rollouts=rollouts,
        max_turns=3,
    )


def said_first(speaker: BestOfN, dialogues, *, salt: int = 0) -> list[str]:
    identities = np.array([[salt, i, 7] for i in range(len(dialogues))], np.uint32)
    active = np.ones(len(dialogues), bool)
    _, said = speaker.speak(speaker.start(dialogues), identities, active)
    return [utterance.text for utterance in said]


def test_the_best_of_many_is_better_than_the_policy():
    """ "good" is a quarter of the policy's turns; twelve candidates almost always include it."""
    found = said_first(best_of(12, rollouts=24), roots(40))
    assert found.count("good") >= 30
    assert found.count("bad") <= 2


def test_the_best_of_one_is_the_policy():
    found = [text for salt in range(8) for text in said_first(best_of(1), roots(50), salt=salt)]
    for text, probability in EVEN.items():
        deviation = np.sqrt(probability * (1 - probability) / len(found))
        assert abs(found.count(text) / len(found) - probability) < 4 * deviation


def test_what_is_said_does_not_depend_on_the_batch():
    dialogues = roots(6)
    together = said_first(best_of(4), dialogues)
    speaker = best_of(4)
    for i in (5, 2):
        identities = np.array([[0, i, 7]], np.uint32)
        _, said = speaker.speak(speaker.start([dialogues[i]]), identities, np.ones(1, bool))
        assert said[0].text == together[i]


def test_a_whole_dialogue_is_played_with_another_user():
    """Rows that are over stay as they are; the others hear the actual user, not the look-ahead."""
    speaker, user = best_of(3), MoodUser(leaving=0.3)
    dialogues = roots(8)
    mine, theirs = speaker.start(dialogues), user.start(dialogues)
    alive = np.ones(8, bool)
    for turn in range(3):
        identities = np.array([[i, turn] for i in range(8)], np.uint32)
        mine, said = speaker.speak(mine, identities, alive)
        assert [utterance is not None for utterance in said] == alive.tolist()
        theirs = user.listen(theirs, [None if u is None else u.text for u in said])
        theirs, heard = user.speak(theirs, identities + 100, alive)
        alive = np.array([u is not None and not u.ended for u in heard])
        replies = [u.text if on else None for u, on in zip(heard, alive, strict=True)]
        mine = speaker.listen(mine, replies)
    for row, guest, on in zip(mine.dialogues, theirs.rows, alive, strict=True):
        last = None if on else -1  # the user's parting words were heard by nobody
        assert row.turns == guest.dialogue.turns[:last]


def test_forked_and_stored_rows_keep_their_dialogues():
    speaker = best_of(2)
    state = speaker.start(roots(3))
    forked = speaker.fork(state, np.array([2, 2, 0]))
    assert [d.id for d in forked.dialogues] == ["d2", "d2", "d0"]
    stored = speaker.store(speaker.empty(4), np.array([3]), forked, np.array([0]))
    assert stored.dialogues[3].id == "d2"
    assert stored.dialogues[:3] == (None, None, None)


def test_without_a_readable_outcome_the_first_sample_is_said():
    policy = TablePolicy(lambda dialogue: {"good": 0.5, "bad": 0.5})
    found = said_first(best_of(4, policy=policy), roots(12, mute="always"))
    assert found == said_first(best_of(1, policy=policy), roots(12, mute="always"))
    assert set(found) == {"good", "bad"}


def test_a_count_below_one_is_refused():
    with pytest.raises(ValueError, match="candidates=0"):
        BestOfN(even_policy(), MoodUser(), candidates=0)
