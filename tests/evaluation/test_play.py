"""Play is paired, lockstep changes nothing, and the mean is what enumeration says."""

from __future__ import annotations

import dataclasses
import json
import math

import numpy as np
import pytest

from ixjax.dialogue.scenarios import sandbox
from ixjax.dialogue.types import Dialogue, Turn, UserCondition, Utterance
from ixjax.evaluation import EvaluationConfig, Played, play
from ixjax.io import InputError
from tests.search.doubles import EVEN, MoodUser, State, TablePolicy, even_policy, roots

SMALL = EvaluationConfig(batch=4, max_turns=3)


def texts(played: list[Played]) -> list[tuple[str, ...]]:
    return [tuple(turn.text for turn in p.dialogue.turns) for p in played]


class Recorder(MoodUser):
    """Keeps what it was asked: identities, and which rows were active."""

    def __init__(self):
        super().__init__()
        self.seen: list[tuple[np.ndarray, np.ndarray]] = []
        self.read: list[np.ndarray] = []

    def speak(self, state, identities, active):
        self.seen.append((identities.copy(), active.copy()))
        return super().speak(state, identities, active)

    def outcomes(self, state, active):
        self.read.append(active.copy())
        return super().outcomes(state, active)


@pytest.mark.parametrize("batch", [1, 2, 4, 7, 64])
def test_batch_size_changes_nothing(batch):
    config = EvaluationConfig(batch=batch, max_turns=3, samples=2)
    expected = play(
        even_policy(), MoodUser(), roots(7), config=dataclasses.replace(config, batch=14)
    )
    assert play(even_policy(), MoodUser(), roots(7), config=config) == expected


def test_a_dialogue_does_not_depend_on_what_is_played_beside_it():
    together = play(even_policy(), MoodUser(), roots(5), config=SMALL)
    alone = [play(even_policy(), MoodUser(), [root], config=SMALL)[0] for root in roots(5)]
    assert together == alone


def test_every_batch_has_one_size_and_padding_never_speaks():
    user, policy = Recorder(), even_policy()
    played = play(policy, user, roots(9), config=SMALL)
    assert len(played) == 9
    # 9 dialogues, at most 4 at once: three batches of three, in as many rows as four take.
    assert {rows for _, rows in (*policy.calls, *user.calls)} == {4}
    assert [active.tolist() for active in user.read] == [[True] * 3 + [False]] * 3
    user = Recorder()
    played = play(even_policy(), user, roots(7), config=SMALL)
    assert len(played) == 7
    # Two batches of four; the eighth row is padding.
    assert [active.tolist() for active in user.read] == [[True] * 4, [True] * 3 + [False]]
    last = next(
        i
        for i, (identities, _) in enumerate(user.seen)
        if identities[0, 0] not in user.seen[0][0][:, 0]
    )
    assert not any(active[3] for _, active in user.seen[last:])


def test_users_meet_every_method_with_the_same_identities():
    """Methods differ in what they say, never in the draws that the user answers with."""
    seen = []
    for word in ("good", "bad"):
        user = Recorder()
        play(
            TablePolicy(lambda dialogue, word=word: {word: 1.0}),
            user,
            roots(4),
            config=EvaluationConfig(max_turns=1, samples=2),
        )
        seen.append(user.seen[0][0])
    np.testing.assert_array_equal(*seen)
    assert len(np.unique(seen[0], axis=0)) == 8  # no two dialogues share their draws


def test_policy_and_user_never_share_an_identity():
    """Speakers of one seed would otherwise draw the same random numbers."""
    asked = []

    class Asked(TablePolicy):
        def speak(self, state, identities, active):
            asked.extend(map(tuple, identities[active].tolist()))
            return super().speak(state, identities, active)

    user = Recorder()
    play(Asked(lambda dialogue: EVEN), user, roots(3), config=SMALL)
    heard = [tuple(row) for ids, active in user.seen for row in ids[active].tolist()]
    assert len({*asked, *heard}) == len(asked) + len(heard)


def test_dialogues_are_cut_at_max_turns_and_read_all_the_same():
    played = play(even_policy(), MoodUser(leaving=0.0), roots(6), config=SMALL)
    assert {p.turns for p in played} == {3}
    assert not any(p.ended for p in played)
    for root, p in zip(roots(6), played, strict=True):
        final = p.dialogue.turns[-1].text  # "my mood is N"
        assert p.engagement == int(final[-1]) / MoodUser.TOP
        assert p.dialogue.turns[:1] == root.turns
        assert p.responses == [t.text for t in p.dialogue.turns[1::2]]
        assert p.response_tokens == (2, 2, 2)


def test_a_user_who_leaves_without_a_word_says_nothing():
    played = play(even_policy(), MoodUser(leaving=1.0, silent_exit=True), roots(3), config=SMALL)
    assert all(p.ended and p.turns == 1 and len(p.dialogue.turns) == 2 for p in played)


def test_turns_of_the_root_are_not_the_policy_s_own():
    root = roots(1)[0].said("policy", "from the corpus").said("user", "oh")
    (played,) = play(even_policy(), MoodUser(), [root], config=EvaluationConfig(max_turns=1))
    assert played.turns == 1
    assert played.responses == [played.dialogue.turns[3].text]


def test_a_policy_that_opens_starts_from_no_turn():
    root = Dialogue("d", UserCondition("c", {"mood": 2}), turns=())
    (played,) = play(even_policy(), MoodUser(), [root], config=SMALL)
    assert played.dialogue.turns[0].role == "policy"


def test_unreadable_dialogues_are_nan_and_survive_their_file():
    played = play(even_policy(), MoodUser(), roots(3, mute="always"), config=SMALL)
    assert all(math.isnan(p.engagement) and math.isnan(p.value) for p in played)
    records = json.loads(json.dumps([p.to_json() for p in played], allow_nan=False))
    again = [Played.from_json(record) for record in records]
    assert texts(again) == texts(played)
    assert all(math.isnan(p.engagement) and p.released is None for p in again)


def test_a_finished_cell_reads_back_as_it_was_played():
    class Sure(MoodUser):
        def _read(self, guest):
            reading = super()._read(guest)
            return dataclasses.replace(reading, released=0.25)

    played = play(even_policy(), Sure(), roots(3), config=SMALL)
    assert [p.released for p in played] == [0.25] * 3
    again = [Played.from_json(p.to_json()) for p in played]
    # A read-out without the probability leaves it open.
    usual = play(even_policy(), MoodUser(), roots(2), config=SMALL)
    assert all(p.released is None for p in usual)
    assert again == played
    assert again[0].dialogue.condition == roots(1)[0].condition


def test_bad_input_is_named():
    with pytest.raises(InputError, match="no held-out condition"):
        play(even_policy(), MoodUser(), [], config=SMALL)
    with pytest.raises(ValueError, match="2 roots have the condition id 'c0'"):
        play(even_policy(), MoodUser(), [*roots(1), *roots(2)], config=SMALL)
    with pytest.raises(InputError, match=r"evaluation\.batch is 0; expected 1 or more"):
        EvaluationConfig(batch=0)

    class Mute(TablePolicy):
        def speak(self, state, identities, active):
            return State(state.consume()), [None] * len(active)

    with pytest.raises(ValueError, match="said nothing for a row that is active"):
        play(Mute(lambda dialogue: EVEN), MoodUser(), roots(1), config=SMALL)


def within_three_standard_errors(values, expected: float) -> bool:
    return abs(np.mean(values) - expected) <= 3 * np.std(values, ddof=1) / math.sqrt(len(values))


def test_mean_engagement_is_the_enumerated_expectation():
    config = EvaluationConfig(samples=1500, batch=3000, max_turns=3)
    user = MoodUser()
    played = play(even_policy(), user, roots(2), config=config)
    for name, mood in (("c0", 0), ("c1", 1)):
        values = [p.engagement for p in played if p.condition == name]
        assert within_three_standard_errors(values, user.expected(mood, None, EVEN, 3))


def asker(dialogue: Dialogue) -> dict[str, float]:
    """Asks first, then guesses: a policy that the sandbox's corpus could have."""
    if len(dialogue.turns) == 1:
        return {"what do you need ?": 0.5, "i hear you .": 0.5}
    return {"i hear you .": 0.4, "let us make a plan .": 0.3, "you are strong .": 0.3}


def test_a_scripted_policy_meets_the_true_sandbox_user_as_enumerated():
    conditions = [
        UserCondition("listener", {"need": "listening", "distress": 4, "patience": 3}),
        UserCondition("planner", {"need": "advice", "distress": 5, "patience": 2}),
    ]
    starts = [Dialogue(c.id, c, (Turn("user", "i feel bad today ."),)) for c in conditions]
    config = EvaluationConfig(samples=1500, batch=1000, max_turns=3)
    played = play(TablePolicy(asker), sandbox.TrueUser(0), starts, config=config)
    for start in starts:
        values = [p.engagement for p in played if p.condition == start.condition.id]
        expected = sandbox.expected_engagement(start, asker, max_turns=3)
        assert within_three_standard_errors(values, expected), (start.id, np.mean(values), expected)
    assert any(p.ended for p in played)
    assert any(not p.ended for p in played)


def test_words_are_put_in_the_mouth_of_a_silent_reply():
    """A turn without words that does not end the dialogue is heard, so that turns alternate."""

    class Silent(MoodUser):
        def speak(self, state, identities, active):
            rows = state.consume()
            said = [Utterance("") if on else None for on in active]
            rows = [
                dataclasses.replace(row, dialogue=row.dialogue.said("user", "...")) if on else row
                for row, on in zip(rows, active, strict=True)
            ]
            return State(rows), said

    (played,) = play(even_policy(), Silent(), roots(1), config=SMALL)
    assert [t.text for t in played.dialogue.turns if t.role == "user"][1:] == ["...", "...", "..."]
