"""Play is paired, the batch changes nothing, and the mean is what enumeration says."""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Hashable, Sequence

import numpy as np
import pytest

from ixjax.dialogue.scenarios import sandbox
from ixjax.dialogue.types import Dialogue, Turn, UserCondition, Utterance
from ixjax.evaluation import EvaluationConfig, Played, play
from ixjax.generation import Effect, wait
from ixjax.io import InputError
from tests.search.doubles import (
    EVEN,
    MoodSide,
    MoodUser,
    TablePolicy,
    TableSide,
    even_policy,
    roots,
)

SMALL = EvaluationConfig(batch=4, max_turns=3)


def texts(played: list[Played]) -> list[tuple[str, ...]]:
    return [tuple(turn.text for turn in p.dialogue.turns) for p in played]


@dataclasses.dataclass(eq=False)
class Pause(Effect):
    """Lets every other dialogue advance first, as a turn that an engine decodes does."""

    kind = "turns"
    group: Hashable = "pause"
    fills: int = 1

    def serve(self, effects: Sequence[Pause]):
        return [(effect, None) for effect in effects]


class RecorderSide(MoodSide):
    def speak(self, identity):
        self.speaker.seen.append(tuple(identity))
        self.speaker.most_open = max(self.speaker.most_open, self.speaker.open)
        yield from wait(Pause())
        return (yield from super().speak(identity))

    def close(self):
        super().close()
        self._speaker.open -= 1


class Recorder(MoodUser):
    """Records the identities of its turns, and how many of its dialogues were open at once."""

    participant = RecorderSide

    def __init__(self):
        super().__init__()
        self.seen: list[tuple[int, ...]] = []
        self.open = self.most_open = 0

    def begin(self, dialogue, *, near=None):
        self.open += 1
        return super().begin(dialogue, near=near)


@pytest.mark.parametrize("batch", [1, 2, 4, 7, 64])
def test_batch_size_changes_nothing(batch):
    config = EvaluationConfig(batch=batch, max_turns=3, samples=2)
    expected = play(
        even_policy(), MoodUser(), roots(7), config=dataclasses.replace(config, batch=14)
    )
    assert play(even_policy(), MoodUser(), roots(7), config=config) == expected


def test_a_dialogue_does_not_depend_on_others_in_its_batch():
    together = play(even_policy(), MoodUser(), roots(5), config=SMALL)
    alone = [play(even_policy(), MoodUser(), [root], config=SMALL)[0] for root in roots(5)]
    assert together == alone


@pytest.mark.parametrize(("batch", "most"), [(1, 1), (4, 4), (64, 9)])
def test_at_most_a_batch_of_dialogues_is_open_and_each_is_read_and_closed_once(batch, most):
    user, policy = Recorder(), even_policy()
    config = dataclasses.replace(SMALL, batch=batch)
    assert len(play(policy, user, roots(9), config=config)) == 9
    assert (user.most_open, user.open) == (most, 0)
    assert [user.calls.count(call) for call in ("begin", "outcome", "close")] == [9, 9, 9]
    assert [policy.calls.count(call) for call in ("begin", "close")] == [9, 9]


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
        seen.append(sorted(user.seen))
    assert seen[0] == seen[1]
    assert len(set(seen[0])) == 8  # no two dialogues share their draws


def test_policy_and_user_never_share_an_identity():
    """Speakers of one seed would otherwise draw the same random numbers."""
    asked = []

    class AskedSide(TableSide):
        def speak(self, identity):
            asked.append(tuple(identity))
            return super().speak(identity)

    policy, user = TablePolicy(lambda dialogue: EVEN), Recorder()
    policy.participant = AskedSide
    play(policy, user, roots(3), config=SMALL)
    assert len({*asked, *user.seen}) == len(asked) + len(user.seen)


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
    class SureSide(MoodSide):
        def outcome(self):
            reading = yield from super().outcome()
            return dataclasses.replace(reading, released=0.25)

    user = MoodUser()
    user.participant = SureSide
    played = play(even_policy(), user, roots(3), config=SMALL)
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

    class SilentSide(MoodSide):
        def speak(self, identity):
            yield from ()
            self._dialogue = self._dialogue.said("user", "...")
            return Utterance("")

    user = MoodUser()
    user.participant = SilentSide
    (played,) = play(even_policy(), user, roots(1), config=SMALL)
    assert [t.text for t in played.dialogue.turns if t.role == "user"][1:] == ["...", "...", "..."]
