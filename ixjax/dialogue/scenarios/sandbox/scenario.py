"""The sandbox as a scenario, and a corpus of it from a seed."""

from __future__ import annotations

import re
from collections.abc import Sequence

import numpy as np

from ixjax.dialogue.scenarios.esc import relief
from ixjax.dialogue.scenarios.sandbox import world
from ixjax.dialogue.scenarios.sandbox.user import TrueUser, outcome_of
from ixjax.dialogue.types import Dialogue, Outcome, UserCondition

MAX_EXCHANGES = 6
# How the corpus's supporters choose: they rarely read what the user needs.
SUPPORTER_FITTING = 0.3
SUPPORTER_ASKS = 0.1
SUPPORTER_IDLES = 0.1


class SandboxScenario:
    """Emotional support in the sandbox world; engagement is the relief, as in ESConv."""

    name = "sandbox"
    policy_opens = False
    policy_prompt = "help the user to feel better ."
    outcome_pattern = re.compile(r"^final distress : ([1-5]) of 5$")
    outcome_unit = "final distress"

    def simulator_prompt(self, condition: UserCondition) -> str:
        """See `Scenario`."""
        have = condition.attributes
        return (
            f"you want {have['need']} . distress : {have['distress']} of {world.SCALE} . "
            f"patience : {have['patience']} ."
        )

    def outcome_lines(self, condition: UserCondition) -> Sequence[tuple[str, Outcome]]:
        """See `Scenario`."""
        outcomes = [Outcome(float(n), self._relief(condition, n)) for n in range(1, world.SCALE + 1)]
        return [(self.outcome_line(condition, outcome), outcome) for outcome in outcomes]

    def outcome_line(self, condition: UserCondition, outcome: Outcome) -> str:
        """See `Scenario`."""
        return f"final distress : {round(outcome.value)} of {world.SCALE}"

    def read_outcome(self, condition: UserCondition, line: str) -> Outcome | None:
        """See `Scenario`."""
        found = self.outcome_pattern.search(line.strip())
        return self.outcome(condition, int(found[1])) if found else None

    def released(self, condition: UserCondition, outcome_value: float) -> bool:
        """Whether no distress is left."""
        return round(outcome_value) == 1

    def outcome(self, condition: UserCondition, value: float) -> Outcome | None:
        """See `Scenario`."""
        if not 1 <= value <= world.SCALE:
            return None
        return Outcome(float(value), self._relief(condition, value))

    def _relief(self, condition: UserCondition, final: float) -> float:
        return relief(float(condition.attributes["distress"]), final)


def sample_condition(name: str, rng: np.random.Generator) -> UserCondition:
    """A user: need, distress 3..5, patience 2..3, all uniform."""
    return UserCondition(
        name,
        {
            "need": world.NEEDS[rng.integers(len(world.NEEDS))],
            "distress": int(rng.integers(3, 6)),
            "patience": int(rng.integers(2, 4)),
        },
    )


def generate_corpus(count: int, *, seed: int) -> list[Dialogue]:
    """`count` dialogues of the true user with average supporters; a function of (count, seed)."""
    return [_generate(f"sandbox-{seed}-{i}", i, seed) for i in range(count)]


def _generate(name: str, index: int, seed: int) -> Dialogue:
    rng = np.random.default_rng([seed, index])
    condition = sample_condition(name, rng)
    user = TrueUser(seed)
    state = user.start([Dialogue(id=name, condition=condition, turns=())])
    active = np.ones(1, bool)
    for exchange in range(MAX_EXCHANGES + 1):
        state, said = user.speak(state, np.array([[index, exchange]]), active)
        if said[0].ended or exchange == MAX_EXCHANGES:
            break
        state = user.listen(state, [_supporter_says(world.need_of(condition), rng)])
    row = state[0]
    return Dialogue(
        id=name, condition=condition, turns=row.dialogue.turns,
        outcome=outcome_of(row.dialogue, row.mood),
    )


def _supporter_says(need: world.Need, rng: np.random.Generator) -> str:
    draw = rng.random()
    if draw < SUPPORTER_FITTING:
        act: world.Act = need
    elif draw < SUPPORTER_FITTING + SUPPORTER_ASKS:
        act = "question"
    elif draw < SUPPORTER_FITTING + SUPPORTER_ASKS + SUPPORTER_IDLES:
        act = "other"
    else:
        wrong = [other for other in world.NEEDS if other != need]
        act = wrong[rng.integers(len(wrong))]
    texts = world.RESPONSES[act]
    return texts[rng.integers(len(texts))]
