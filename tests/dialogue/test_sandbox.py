"""The sandbox: its user is the program of docs/sandbox.md, and its expectations are exact."""

from __future__ import annotations

import functools
import itertools
import math
import re
from pathlib import Path

import numpy as np
import pytest

from ixjax.dialogue.scenarios import Scenario, sandbox
from ixjax.dialogue.scenarios.sandbox import world
from ixjax.dialogue.types import Dialogue, Outcome, Turn, UserCondition, Utterance
from ixjax.generation import run_one
from ixjax.io import InputError

SCENARIO = sandbox.SandboxScenario()
PLAN, GAME, ASK, IDLE = (
    "let us make a plan .",
    "let us play a game .",
    "what do you need ?",
    "okay .",
)
MOODS = [world.Mood(d, p) for d, p in itertools.product(range(2, 6), range(1, 4))]


def user(need="advice", distress=4, patience=2, name="u") -> UserCondition:
    return UserCondition(name, {"need": need, "distress": distress, "patience": patience})


def opened(condition: UserCondition, text="hi . i feel bad today .") -> Dialogue:
    return Dialogue(condition.id, condition, (Turn("user", text),))


def always(text):
    return lambda dialogue: {text: 1.0}


def groping(dialogue: Dialogue) -> dict[str, float]:
    """Depends on the whole history: asks at first, then plans the more, the longer it goes."""
    turns = len(dialogue.turns)
    return {ASK: 0.5, IDLE: 0.2, GAME: 0.3} if turns == 1 else {PLAN: 0.4, GAME: 0.3, ASK: 0.3}


def play(starts, policy, *, seed, max_turns) -> list[tuple[Dialogue, float]]:
    """Sample dialogues of the true user with a scripted policy."""
    true_user, rng, found = sandbox.TrueUser(seed), np.random.default_rng(seed + 1), []
    for i, start in enumerate(starts):
        guest = true_user.begin(start)
        for turn in range(max_turns):
            distribution = policy(guest.dialogue)
            choice = rng.choice(len(distribution), p=list(distribution.values()))
            guest.hear(list(distribution)[choice])
            if run_one(guest.speak((i, turn))).ended:
                break
        found.append((guest.dialogue, run_one(guest.outcome()).engagement))
    return found


def within_standard_errors(values, expected: float, errors: float = 3.0) -> bool:
    return abs(np.mean(values) - expected) <= errors * np.std(values, ddof=1) / math.sqrt(
        len(values)
    )


@functools.cache
def expectation_over_users(policy, *, max_turns: int) -> float:
    """Exact mean over every condition that is sampled (all equally likely) and every opening."""
    values = []
    for need, distress, patience in itertools.product(world.NEEDS, (3, 4, 5), (2, 3)):
        condition = user(need, distress, patience)
        values.append(
            sum(
                probability
                * sandbox.expected_engagement(
                    opened(condition, text), policy, max_turns=max_turns, sees=sandbox.shown_need
                )
                for probability, text in world.openings(condition)
            )
        )
    return float(np.mean(values))


# The world


def test_responses_are_read_by_their_one_keyword():
    for act, texts in sandbox.RESPONSES.items():
        assert {sandbox.act_of(text) for text in texts} == {act}
    assert sandbox.act_of("A PLAN, perhaps?") == "advice"
    assert sandbox.act_of("a plan , or do you need a game ?") == "other"  # of several: of none
    assert sandbox.act_of("the weather is planned") == "other"


@pytest.mark.parametrize("need", world.NEEDS)
def test_reactions_are_a_distribution_and_their_words_tell_the_state(need):
    for mood, texts in itertools.product(MOODS, sandbox.RESPONSES.values()):
        before = Dialogue("d", user(need, mood.distress, mood.patience), (Turn("user", "hi"),))
        reactions = sandbox.reactions(need, mood, texts[0])
        assert math.isclose(sum(r.probability for r in reactions), 1)
        assert len({r.text for r in reactions}) == len(reactions)
        for reaction in reactions:
            after = before.said("policy", texts[0]).said("user", reaction.text)
            assert world.mood_in(after) == reaction.mood
    assert math.isclose(sum(p for p, _ in world.openings(user(need))), 1)


def test_only_the_fitting_act_relieves_and_every_other_costs_patience():
    for need, mood, (act, texts) in itertools.product(
        world.NEEDS, MOODS, sandbox.RESPONSES.items()
    ):
        expected = [(r.probability, r.mood) for r in sandbox.reactions(need, mood, texts[0])]
        distress = sum(p * (after.distress - mood.distress) for p, after in expected)
        patience = sum(p * (after.patience - mood.patience) for p, after in expected)
        assert (distress < 0) == (act == need)
        assert patience < 0
        if act == "question":
            assert patience > -0.5  # a small cost


def test_a_question_shows_the_need_and_vague_words_do_not():
    for need in world.NEEDS:
        dialogue = opened(user(need))
        assert sandbox.shown_need(dialogue) is None
        for reaction in sandbox.reactions(need, world.Mood(4, 3), ASK):
            answered = dialogue.said("policy", ASK).said("user", reaction.text)
            assert sandbox.shown_need(answered) == need
            # Later words do not hide it again.
            assert sandbox.shown_need(answered.said("policy", IDLE).said("user", "hm")) == need


# Expectations


@pytest.mark.parametrize(
    ("distress", "policy", "max_turns", "by_hand"),
    [
        (3, always(PLAN), 1, 0.85),  # 3 -> 1: all relieved
        (4, always(PLAN), 1, 0.85 * 2 / 3),  # 4 -> 2
        (4, always(GAME), 1, 0.0),
        (4, always(IDLE), 5, 0.0),
        (4, always(PLAN), 2, 0.85 * (0.85 + 0.15 * 2 / 3) + 0.15 * 0.85 * 2 / 3),
        (5, always(PLAN), 0, 0.0),  # cut before anything is said
    ],
)
def test_expected_engagement_equals_hand_computed_values(distress, policy, max_turns, by_hand):
    found = sandbox.expected_engagement(
        opened(user(distress=distress)), policy, max_turns=max_turns
    )
    assert found == pytest.approx(by_hand, abs=1e-12)


def test_response_values_equal_hand_computed_values():
    values = sandbox.response_values(
        opened(user()), always(PLAN), max_turns=2, responses=(PLAN, GAME, ASK)
    )
    assert values == pytest.approx(
        {
            PLAN: 0.8925,  # as above
            GAME: 0.55 * 0.85 * 2 / 3 + 0.45 * 0.85 * 1 / 3,  # plan from 4, or from 5 to 3
            ASK: 0.85 * 2 / 3,  # one of the two turns is gone
        }
    )
    assert list(sandbox.response_values(opened(user()), groping, max_turns=1)) == [ASK, IDLE, GAME]


@pytest.mark.parametrize("max_turns", [1, 3])
def test_expected_engagement_is_the_mean_of_what_the_true_user_does(max_turns):
    start = opened(user(patience=3))
    exact = sandbox.expected_engagement(start, groping, max_turns=max_turns)
    played = play([start] * 3000, groping, seed=7, max_turns=max_turns)
    assert within_standard_errors([engagement for _, engagement in played], exact)


def test_enumerating_by_what_a_policy_sees_changes_nothing():
    for condition in (user("courage", 5, 3), user("listening", 3, 2)):
        start = opened(condition)
        for policy in (sandbox.average_supporter, sandbox.attentive_supporter):
            plain = sandbox.expected_engagement(start, policy, max_turns=2)
            merged = sandbox.expected_engagement(
                start, policy, max_turns=2, sees=sandbox.shown_need
            )
            assert merged == pytest.approx(plain, abs=1e-12)


def test_the_best_values_bound_those_of_every_policy():
    start, texts = opened(user()), [texts[0] for texts in sandbox.RESPONSES.values()]
    best = sandbox.best_response_values(start, texts, max_turns=2)
    assert max(best, key=best.__getitem__) == PLAN
    # To know the need is to plan twice.
    assert best == pytest.approx(
        sandbox.response_values(start, always(PLAN), max_turns=2, responses=texts)
    )
    for policy in (groping, sandbox.average_supporter, sandbox.attentive_supporter):
        values = sandbox.response_values(start, policy, max_turns=2, responses=texts)
        assert all(values[text] <= best[text] + 1e-12 for text in texts)


def test_a_dialogue_that_takes_no_response_is_refused():
    done = opened(user()).said("policy", PLAN)
    with pytest.raises(ValueError, match="waits for the user"):
        sandbox.expected_engagement(done, groping, max_turns=3)
    calm = opened(user(distress=3)).said("policy", PLAN).said("user", "thank you , that helps .")
    assert sandbox.expected_engagement(calm, groping, max_turns=3) == 1.0
    with pytest.raises(ValueError, match="takes no response: it is over"):
        sandbox.response_values(calm, groping, max_turns=3)
    with pytest.raises(ValueError, match="it has 0 policy turns of 0"):
        sandbox.best_response_values(opened(user()), [PLAN], max_turns=0)
    with pytest.raises(ValueError, match=r"sum to 0\.5; expected 1"):
        sandbox.expected_engagement(opened(user()), lambda dialogue: {PLAN: 0.5}, max_turns=3)


# The true user


def reply(true_user: sandbox.TrueUser, start: Dialogue, text: str, *identity: int) -> Utterance:
    guest = true_user.begin(start)
    guest.hear(text)
    return run_one(guest.speak(identity))


def test_what_the_user_says_depends_on_the_identity_alone():
    true_user, starts = sandbox.TrueUser(3), [opened(user(name=f"u{i}")) for i in range(6)]
    said = [reply(true_user, start, GAME, i % 3, 4) for i, start in enumerate(starts)]
    assert said[:3] == said[3:]
    # A longer identity is another one, trailing zeros included.
    draws = [
        [reply(true_user, starts[0], GAME, i, *tail) for i in range(60)] for tail in ((), (0,))
    ]
    assert draws[0] != draws[1]


def test_forks_go_on_independently_and_from_the_same_state():
    one = sandbox.TrueUser(0).begin(opened(user(patience=3)))
    one.hear(PLAN)
    said = run_one(one.speak((0,)))
    before, mood = one.dialogue, one.mood
    fork, other = run_one(one.fork(2))
    fork.hear(GAME)
    run_one(fork.speak((1,)))
    assert [turn.text for turn in fork.dialogue.turns[:-1]] == [
        *(turn.text for turn in before.turns),
        GAME,
    ]
    assert before.turns[-1].text == said.text
    assert (one.dialogue, one.mood) == (other.dialogue, other.mood) == (before, mood)


def test_the_state_of_a_started_dialogue_is_the_one_that_was_played():
    true_user = sandbox.TrueUser(0)
    starts = [opened(user(patience=3, name=f"u{i}")) for i in range(40)]
    for dialogue, engagement in play(starts, groping, seed=5, max_turns=2):
        reading = run_one(true_user.begin(dialogue).outcome())
        assert reading.engagement == engagement
        assert reading.released == float(reading.value == 1)


def test_the_user_opens_and_ends_the_dialogue():
    true_user, condition = sandbox.TrueUser(2), user(distress=3)
    guest = true_user.begin(Dialogue("d", condition, ()))
    first = run_one(guest.speak((8,)))
    assert first.text == true_user.opening(condition, (8,))
    assert not first.ended
    ends = set()
    for i in range(30):
        said = reply(true_user, guest.dialogue, PLAN, i)
        assert said.num_tokens == len(said.text.split())
        ends.add(said.ended)
    assert ends == {True, False}
    # Out of patience: the user leaves, no better than before.
    guest = true_user.begin(opened(user(patience=1)))
    guest.hear(IDLE)
    assert run_one(guest.speak((0,))).ended
    reading = run_one(guest.outcome())
    assert (reading.value, reading.engagement) == (4.0, 0.0)
    guest.hear(IDLE)
    with pytest.raises(ValueError, match="nothing to say in dialogue 'u': it is over"):
        run_one(guest.speak((1,)))
    with pytest.raises(ValueError, match="the policy is to move"):
        run_one(true_user.begin(opened(user())).speak((1,)))


# The corpus


def test_a_corpus_is_a_function_of_its_seed():
    corpus = sandbox.generate_corpus(30, seed=4)
    assert corpus == sandbox.generate_corpus(30, seed=4)
    assert corpus[:10] == sandbox.generate_corpus(10, seed=4)
    other = sandbox.generate_corpus(30, seed=5)
    assert [d.turns for d in corpus] != [d.turns for d in other]
    assert len({d.id for d in corpus + other} | {d.condition.id for d in corpus + other}) == 60


def test_a_corpus_is_what_the_true_user_and_average_supporters_say():
    corpus = sandbox.generate_corpus(300, seed=0)
    spoken = {text for texts in sandbox.RESPONSES.values() for text in texts}
    for dialogue in corpus:
        roles = [turn.role for turn in dialogue.turns]
        assert roles[0] == roles[-1] == "user"
        assert {turn.text for turn in dialogue.turns if turn.role == "policy"} <= spoken
        mood = world.mood_in(dialogue)
        assert dialogue.outcome == Outcome(
            float(mood.distress), world.engagement(dialogue.condition, mood)
        )
        assert mood.over or roles.count("policy") == 6
        assert not any(world.mood_in(dialogue.before(n)).over for n in range(1, len(roles) - 1))
    words = {word for d in corpus for turn in d.turns for word in turn.text.split()}
    longest = max(len(turn.text.split()) for d in corpus for turn in d.turns)
    assert len(words) <= 100
    assert longest <= 13


def test_openings_do_not_depend_on_distress_or_patience():
    """Were conditions and openings drawn from one stream, vague words would tell the distress."""
    corpus = sandbox.generate_corpus(1500, seed=0)
    for name, values in (("distress", (3, 4, 5)), ("patience", (2, 3))):
        for value in values:
            vague = [
                d.turns[0].text.endswith(world.VAGUE)
                for d in corpus
                if d.condition.attributes[name] == value
            ]
            assert within_standard_errors(vague, 0.15, errors=3.5), (name, value, np.mean(vague))


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_the_corpus_has_its_enumerated_engagement(seed):
    exact = expectation_over_users(sandbox.average_supporter, max_turns=6)
    assert 0.3 <= exact <= 0.4
    corpus = sandbox.generate_corpus(1000, seed=seed)
    assert within_standard_errors([d.outcome.engagement for d in corpus], exact)


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_a_policy_that_reads_the_need_does_much_better_than_the_corpus(seed):
    corpus = sandbox.generate_corpus(300, seed=seed)
    starts = [d.before(1) for d in corpus]
    read = [g for _, g in play(starts, sandbox.attentive_supporter, seed=seed, max_turns=6)]
    average = [d.outcome.engagement for d in corpus]
    assert np.mean(read) >= 0.9
    assert np.mean(read) >= 2 * np.mean(average)
    exact = expectation_over_users(sandbox.attentive_supporter, max_turns=6)
    assert within_standard_errors(read, exact)


def test_the_supporters_see_the_turns_and_not_the_condition():
    for opening in ("hi . i am afraid to fail .", "hello . i feel bad today ."):
        for supporter in (sandbox.average_supporter, sandbox.attentive_supporter):
            seen = [supporter(opened(user(need), opening)) for need in world.NEEDS]
            assert all(distribution == seen[0] for distribution in seen)
            assert math.isclose(sum(seen[0].values()), 1)


# The scenario


def test_every_outcome_line_reads_back():
    assert isinstance(SCENARIO, Scenario)
    condition = user(distress=4)
    lines = SCENARIO.outcome_lines(condition)
    reliefs = [(outcome.value, outcome.engagement) for _, outcome in lines]
    assert reliefs == [(1, 1), (2, 2 / 3), (3, 1 / 3), (4, 0), (5, 0)]
    for line, outcome in lines:
        assert SCENARIO.read_outcome(condition, line) == outcome
        assert SCENARIO.outcome_line(condition, outcome) == line
        assert SCENARIO.released(condition, outcome.value) == (outcome.engagement == 1)
    for line in ("", "final distress : 6 of 5", "final distress : 2", "so final distress : 2 of 5"):
        assert SCENARIO.read_outcome(condition, line) is None
    assert SCENARIO.outcome(condition, 0) is None
    assert SCENARIO.outcome_line(condition, Outcome(7.0, 0.0)) == lines[-1][0]


def test_the_simulator_is_told_the_condition_and_the_policy_is_not():
    prompt = "you want courage . distress : 5 of 5 . patience : 3 ."
    assert SCENARIO.simulator_prompt(user("courage", 5, 3)) == prompt
    told = re.findall(r"\w+", SCENARIO.policy_prompt)
    assert not {*world.NEEDS, "distress", "patience"} & set(told)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"need": "money"}, "condition 'u': need is 'money'; expected one of listening, advice"),
        ({"need": None}, "need is missing"),
        ({"distress": 1}, "distress is 1; expected a whole number from 2 to 5"),
        ({"distress": "4"}, "distress is '4'"),
        ({"distress": 3.5}, r"distress is 3\.5"),
        ({"patience": 0}, "patience is 0; expected a whole number from 1 to 9"),
        ({"patience": None}, "patience is missing"),
    ],
)
def test_a_bad_condition_is_named(change, message):
    attributes = {"need": "advice", "distress": 4, "patience": 2, **change}
    bad = UserCondition("u", {k: v for k, v in attributes.items() if v is not None})
    with pytest.raises(InputError, match=message):
        SCENARIO.simulator_prompt(bad)


def page() -> str:
    return (Path(__file__).parents[2] / "docs" / "sandbox.md").read_text(encoding="utf-8")


def test_the_page_lists_what_the_world_says():
    rows = {
        tuple(cell.strip().strip("`") for cell in line.strip("|").split("|"))
        for line in page().splitlines()
        if line.startswith("|")
    }
    for relation, chances in (
        ("fits the need", world.FITTING),
        ("another need's", world.WRONG),
        ("question", world.ASKED),
        ("other", world.IDLE),
    ):
        for change, chance in chances.items():
            distress, patience = world.EFFECTS[change]
            row = (relation, change, f"{chance:g}", f"{distress:+d}", f"{patience:+d}")
            start = f"{world.REACTIONS[change]} …"
            assert (*(cell.replace("+0", "0") for cell in row), start) in rows, row
    for keyword, act in world.KEYWORDS.items():
        assert any(row[:2] == (act, keyword) for row in rows), keyword


def test_the_example_on_the_page_runs():
    (code,) = re.findall(r"```python\n(.*?)```", page(), re.DOTALL)
    names: dict[str, object] = {}
    exec(code, names)
    assert isinstance(names["user"], sandbox.TrueUser)
