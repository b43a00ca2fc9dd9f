"""Engagement by hand, lines that read back, and a condition that the policy never sees."""

from __future__ import annotations

import math
import re
from types import SimpleNamespace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ixjax.dialogue.scenarios import Scenario, base, get_scenario, register_scenario
from ixjax.dialogue.scenarios.esc import relief
from ixjax.dialogue.scenarios.p4g import donated
from ixjax.dialogue.types import Outcome, UserCondition
from ixjax.io import InputError

NAMES = ("esc", "p4g", "sandbox")
words = st.text("abcdefgh ", min_size=1).filter(str.strip)
CONDITIONS = {
    "esc": st.fixed_dictionaries(
        {"emotion": words, "problem": words, "situation": words, "intensity": st.integers(1, 5)}
    ),
    "p4g": st.dictionaries(
        st.sampled_from(["extraversion", "neuroticism", "care", "benevolence"]), st.floats(1, 6)
    ),
    "sandbox": st.fixed_dictionaries(
        {
            "need": st.sampled_from(["listening", "advice", "courage", "distraction"]),
            "distress": st.integers(2, 5),
            "patience": st.integers(1, 3),
        }
    ),
}
conditions = st.one_of(
    st.tuples(st.just(get_scenario(name)), CONDITIONS[name].map(lambda a: UserCondition("c", a)))
    for name in NAMES
)


@pytest.mark.parametrize(
    ("initial", "final", "expected"),
    [
        (5, 1, 1.0), (5, 3, 0.5), (5, 5, 0.0), (4, 2, 2 / 3), (2, 1, 1.0), (1, 1, 0.0),
        (3, 5, 0.0), (1, 4, 0.0),
    ],
)  # fmt: skip
def test_relief_is_the_share_of_the_distress_that_is_gone(initial, final, expected):
    assert relief(initial, final) == pytest.approx(expected)


@pytest.mark.parametrize(
    ("dollars", "expected"), [(0, 0.0), (0.5, 0.25), (1, 0.5), (2, 1.0), (700, 1.0)]
)
def test_a_donation_counts_as_a_share_of_the_payment(dollars, expected):
    assert donated(dollars) == expected


@given(conditions)
def test_every_outcome_line_is_read_back_by_the_scenarios_own_expression(case):
    scenario, condition = case
    lines = scenario.outcome_lines(condition)
    assert len({line for line, _ in lines}) == len(lines) > 1
    for line, outcome in lines:
        assert scenario.outcome_pattern.fullmatch(line)
        assert scenario.read_outcome(condition, line) == outcome
        assert scenario.read_outcome(condition, f" {line}\n") == outcome
        assert scenario.outcome_line(condition, outcome) == line
        assert scenario.outcome(condition, outcome.value) == outcome


@given(conditions, st.floats(0, 5))
def test_any_recorded_outcome_has_a_line_among_the_possible_ones(case, value):
    scenario, condition = case
    outcome = scenario.outcome(condition, value)
    if outcome is not None:
        lines = dict(scenario.outcome_lines(condition))
        nearest = lines[scenario.outcome_line(condition, outcome)]
        assert abs(nearest.value - value) <= 0.5
        success = scenario.released(condition, value)
        assert scenario.released(condition, nearest.value) == success


@given(conditions, st.floats())
def test_outcomes_out_of_range_are_none(case, value):
    scenario, condition = case
    low, high = (0, 2) if scenario.name == "p4g" else (1, 5)
    assert (scenario.outcome(condition, value) is None) == (not low <= value <= high)


@given(conditions, st.text(max_size=30))
def test_any_line_reads_as_an_outcome_or_not_at_all(case, line):
    scenario, condition = case
    outcome = scenario.read_outcome(condition, line)
    assert outcome is None or math.isfinite(outcome.value)


@pytest.mark.parametrize(
    ("name", "line"),
    [
        ("esc", "final distress: 6 of 5"), ("esc", "final distress: 3"), ("esc", "distress 3 of 5"),
        ("esc", "so my final distress: 3 of 5"), ("esc", "final distress: 3 of 5 ."),
        ("p4g", "donation: $3.00"), ("p4g", "donation: 1.00"), ("p4g", "donation: $1"),
        ("p4g", "donation: $٣.٠٠"), ("sandbox", "final distress : 0 of 5"), ("sandbox", ""),
    ],
)  # fmt: skip
def test_lines_that_say_something_else_are_unreadable(name, line):
    condition = UserCondition("c", {"intensity": 5, "distress": 5})
    assert get_scenario(name).read_outcome(condition, line) is None


@given(conditions)
def test_the_condition_is_in_the_simulators_prompt_and_never_in_the_policys(case):
    """The policy's prompt is one text for all: it can't depend on the condition."""
    scenario, condition = case
    assert isinstance(scenario.policy_prompt, str)
    prompt = scenario.simulator_prompt(condition)
    values = {
        "esc": [condition.attributes.get("emotion"), condition.attributes.get("problem")],
        "p4g": list(condition.attributes),
        "sandbox": [condition.attributes.get("need")],
    }[scenario.name]
    for value in values:
        assert str(value) in prompt
    assert not prompt.isspace()


def test_the_prompts_are_those_of_the_documentation():
    condition = UserCondition("c", {
        "emotion": "anxiety", "problem": "job crisis", "intensity": 4,
        "situation": "word " * 100,
    })  # fmt: skip
    assert get_scenario("esc").simulator_prompt(condition) == (
        "You seek support. You feel anxiety, distress 4 of 5, about job crisis: "
        + " ".join(["word"] * 60)
    )
    condition = UserCondition("c", {"age": 34, "sex": "Female", "openness": 4.2, "care": 2.0})
    assert get_scenario("p4g").simulator_prompt(condition) == (
        "You were paid $2 and may donate some of it. About you: age 34, sex Female, high openness, "
        "low care."
    )
    assert get_scenario("p4g").simulator_prompt(UserCondition("c", {})) == (
        "You were paid $2 and may donate some of it."
    )


@pytest.mark.parametrize(
    ("name", "value", "full"),
    [
        ("esc", 1, True), ("esc", 2, False), ("sandbox", 1, True), ("sandbox", 3, False),
        ("p4g", 0, False), ("p4g", 0.01, True), ("p4g", 2, True),
    ],
)  # fmt: skip
def test_a_full_success(name, value, full):
    assert get_scenario(name).released(UserCondition("c", {}), value) is full


def test_a_cent_is_written_as_a_donation():
    condition = UserCondition("c", {})
    line = get_scenario("p4g").outcome_line(condition, Outcome(0.01, 0.005))
    assert line == "donation: $0.10"


# --- the registry -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "remedy"),
    [
        ("sandbxo", "perhaps you meant 'sandbox'"),
        ("parcels", "start with the file that registers it: `python FILE.py"),
    ],
)
def test_an_unknown_scenario_is_refused_with_a_remedy(name, remedy):
    message = f"scenario is {name!r}; expected one of esc, p4g, sandbox; "
    with pytest.raises(InputError, match=f"{message}.*{remedy}"):
        get_scenario(name)


def complete() -> SimpleNamespace:
    return SimpleNamespace(**dict.fromkeys(base._parts(), lambda *_: None))


def test_a_registered_scenario_is_found(monkeypatch):
    monkeypatch.setattr(base, "_SCENARIOS", dict(base._SCENARIOS))
    mine = complete()
    register_scenario("mine", mine)
    assert get_scenario("mine") is mine
    register_scenario("mine", mine)
    with pytest.raises(ValueError, match="scenario 'mine' is already registered"):
        register_scenario("mine", complete())


def test_an_object_that_is_no_scenario_is_refused_with_what_it_lacks():
    half = complete()
    del half.read_outcome, half.policy_opens
    with pytest.raises(TypeError, match="scenario 'half' lacks policy_opens, read_outcome"):
        register_scenario("half", half)


@pytest.mark.parametrize("name", NAMES)
def test_ours_satisfy_the_protocol(name):
    scenario = get_scenario(name)
    assert isinstance(scenario, Scenario)
    assert scenario.name == name
    assert isinstance(scenario.outcome_pattern, re.Pattern)
    assert scenario.policy_opens is (name == "p4g")
