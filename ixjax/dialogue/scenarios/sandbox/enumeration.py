"""Exact expected engagement in the sandbox, by enumeration of all responses and reactions.

The user's words determine the hidden state, so a dialogue with its condition is a Markov state and
the expectation a finite sum over responses and reactions: the oracle for search and evaluation.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Hashable, Iterable, Mapping

from ixjax.dialogue.scenarios.sandbox import world
from ixjax.dialogue.types import Dialogue

# Response texts with their probabilities, given a dialogue in which the policy moves next.
PolicyDistribution = Callable[[Dialogue], Mapping[str, float]]


def expected_engagement(
    dialogue: Dialogue,
    policy: PolicyDistribution,
    *,
    max_turns: int,
    sees: Callable[[Dialogue], Hashable] | None = None,
) -> float:
    """Return the exact expected engagement of a policy.

    Args:
        dialogue: the history; the policy moves next, or the dialogue is over.
        policy: distribution over response texts at any history.
        max_turns: most policy turns of a dialogue, those in `dialogue` included; a dialogue cut
            there has the engagement of its last state.
        sees: the part of a history that the policy's responses depend on. Histories with equal
            parts and equal states are enumerated once, so that the cost does not grow
            exponentially with the turns left. None: the whole history.

    Raises:
        ValueError: the user is to move, or the policy's probabilities don't sum to 1.
    """
    mood, taken = _waiting(dialogue)
    return _Enumeration(policy, max_turns, sees or _all_turns).value(dialogue, mood, taken)


def response_values(
    dialogue: Dialogue,
    policy: PolicyDistribution,
    *,
    max_turns: int,
    responses: Iterable[str] | None = None,
    sees: Callable[[Dialogue], Hashable] | None = None,
) -> dict[str, float]:
    """Return the exact expected engagement of each response, if the policy is followed after it.

    Args:
        dialogue: as for `expected_engagement`, not over and not at `max_turns`.
        policy: as for `expected_engagement`.
        max_turns: as for `expected_engagement`.
        responses: the responses to value; None: those of the policy.
        sees: as for `expected_engagement`.

    Raises:
        ValueError: the dialogue is over or at `max_turns`, or as in `expected_engagement`.
    """
    mood, taken = _waiting(dialogue, max_turns)
    enumeration = _Enumeration(policy, max_turns, sees or _all_turns)
    return {
        response: enumeration.response_value(dialogue, mood, taken, response)
        for response in (policy(dialogue) if responses is None else responses)
    }


def best_response_values(
    dialogue: Dialogue, responses: Iterable[str], *, max_turns: int
) -> dict[str, float]:
    """Return the exact value of each response, if the best of `responses` follows at every turn.

    The best response depends on the true state, need included. A search against one condition
    approaches these values; a policy that must find out the need can't reach them.

    Raises:
        ValueError: the dialogue is over or at `max_turns`, or the user moves next.
    """
    condition, texts = dialogue.condition, tuple(responses)
    memo: dict[tuple[world.Mood, int], dict[str, float]] = {}

    def values(mood: world.Mood, taken: int) -> dict[str, float]:
        if (mood, taken) not in memo:
            memo[mood, taken] = {text: value(mood, taken, text) for text in texts}
        return memo[mood, taken]

    def value(mood: world.Mood, taken: int, response: str) -> float:
        total = 0.0
        for probability, _, after in world.reactions(world.need_of(condition), mood, response):
            if after.over or taken + 1 >= max_turns:
                total += probability * world.engagement(condition, after)
            else:
                total += probability * max(values(after, taken + 1).values())
        return total

    return values(*_waiting(dialogue, max_turns))


@dataclasses.dataclass(frozen=True)
class _Enumeration:
    """One policy played against one user; `memo` holds the value of each visited state."""

    policy: PolicyDistribution
    max_turns: int
    sees: Callable[[Dialogue], Hashable]
    memo: dict[Hashable, float] = dataclasses.field(default_factory=dict)

    def value(self, dialogue: Dialogue, mood: world.Mood, taken: int) -> float:
        if mood.over or taken >= self.max_turns:
            return world.engagement(dialogue.condition, mood)
        key = (mood, taken, self.sees(dialogue))
        if key not in self.memo:
            distribution = self.policy(dialogue)
            total = math.fsum(distribution.values())
            if not math.isclose(total, 1, abs_tol=1e-6):
                raise ValueError(f"the policy's probabilities sum to {total}; expected 1")
            self.memo[key] = math.fsum(
                probability * self.response_value(dialogue, mood, taken, response)
                for response, probability in distribution.items()
            )
        return self.memo[key]

    def response_value(
        self, dialogue: Dialogue, mood: world.Mood, taken: int, response: str
    ) -> float:
        asked = dialogue.said("policy", response)
        need = world.need_of(dialogue.condition)
        return math.fsum(
            probability * self.value(asked.said("user", text), after, taken + 1)
            for probability, text, after in world.reactions(need, mood, response)
        )


def _all_turns(dialogue: Dialogue) -> Hashable:
    return dialogue.turns


def _waiting(dialogue: Dialogue, max_turns: int | None = None) -> tuple[world.Mood, int]:
    """Return the hidden state and the policy turns taken; `max_turns` must leave another turn."""
    if not dialogue.turns or dialogue.turns[-1].role != "user":
        raise ValueError(
            f"dialogue {dialogue.id!r} waits for the user; expected a user's turn last"
        )
    mood = world.mood_in(dialogue)
    taken = sum(turn.role == "policy" for turn in dialogue.turns)
    if max_turns is not None and (mood.over or taken >= max_turns):
        why = "it is over" if mood.over else f"it has {taken} policy turns of {max_turns}"
        raise ValueError(f"dialogue {dialogue.id!r} takes no response: {why}")
    return mood, taken
