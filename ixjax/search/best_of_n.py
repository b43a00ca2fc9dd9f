"""Best of n by simulated look-ahead, as a policy for evaluation.

At each of its turns it samples `candidates` responses, lets its own copy of a simulator react and
plays every one on to the dialogue's end; the response with the best mean engagement is said. It is
one expansion of the search at every turn, without a tree. Like the search, the look-ahead knows
the user's condition, which the policy itself never sees: read its score as what look-ahead could
buy, not as what a policy without a simulator can do.
"""

from __future__ import annotations

import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from ixjax.dialogue.types import Dialogue, Utterance
from ixjax.generation import Game, Speaker, User, play
from ixjax.generation.turns import (
    POLICY,
    USER,
    engagements,
    heard,
    identity_base,
    turn_identities,
    words,
)


@dataclass(frozen=True)
class LookAhead:
    """State of a `BestOfN`: `S` dialogues as the policy holds them, and their words.

    policy: the wrapped policy's state.
    dialogues: `[S]` what was said; None for an empty row. The look-ahead's simulator starts from
        these, because what the actual user says is not its own sample.
    """

    policy: Any
    dialogues: tuple[Dialogue | None, ...]


class BestOfN:
    """A `Speaker` that says the best of n sampled responses.

    Args:
        policy: samples the responses, and plays on in the look-ahead.
        simulator: the user of the look-ahead; not the one that the policy is evaluated with.
        candidates: responses sampled a turn, n.
        rollouts: looks ahead from each.
        max_turns: policy turns after which a dialogue is over.
    """

    def __init__(
        self,
        policy: Speaker,
        simulator: User,
        *,
        candidates: int = 4,
        rollouts: int = 1,
        max_turns: int = 8,
    ):
        if min(candidates, rollouts, max_turns) < 1:
            raise ValueError(
                f"expected 1 or more of each, got candidates={candidates}, rollouts={rollouts}, "
                f"max_turns={max_turns}"
            )
        self.policy, self.simulator = policy, simulator
        self.candidates, self.rollouts, self.max_turns = candidates, rollouts, max_turns

    def empty(self, rows: int) -> LookAhead:
        """See `Speaker.empty`."""
        return LookAhead(self.policy.empty(rows), (None,) * rows)

    def start(self, dialogues: Sequence[Dialogue]) -> LookAhead:
        """See `Speaker.start`."""
        return LookAhead(self.policy.start(dialogues), tuple(dialogues))

    def listen(self, state: LookAhead, texts: Sequence[str | None]) -> LookAhead:
        """See `Speaker.listen`."""
        dialogues = tuple(
            dialogue if text is None or dialogue is None else dialogue.said("user", text)
            for dialogue, text in zip(state.dialogues, texts, strict=True)
        )
        return LookAhead(self.policy.listen(state.policy, texts), dialogues)

    def fork(self, state: LookAhead, rows: np.ndarray) -> LookAhead:
        """See `Speaker.fork`."""
        return LookAhead(
            self.policy.fork(state.policy, rows), tuple(state.dialogues[row] for row in rows)
        )

    def store(
        self, state: LookAhead, rows: np.ndarray, source: LookAhead, source_rows: np.ndarray
    ) -> LookAhead:
        """See `Speaker.store`."""
        dialogues = list(state.dialogues)
        for row, source_row in zip(rows, source_rows, strict=True):
            dialogues[row] = source.dialogues[source_row]
        policy = self.policy.store(state.policy, rows, source.policy, source_rows)
        return LookAhead(policy, tuple(dialogues))

    def speak(
        self, state: LookAhead, identities: np.ndarray, active: np.ndarray
    ) -> tuple[LookAhead, list[Utterance | None]]:
        """See `Speaker.speak`; candidates and their futures depend on `identities` alone."""
        if not active.any():
            return state, [None] * len(active)
        copies = np.repeat(np.arange(len(active)), self.candidates)
        candidate = np.tile(np.arange(self.candidates), len(active))
        hashes = np.array([zlib.crc32(np.ascontiguousarray(row).tobytes()) for row in identities])
        turns = np.array([_policy_turns(dialogue) for dialogue in state.dialogues])[copies]
        base = identity_base(
            seed=0, condition=hashes[copies], node=candidate, sample=np.zeros_like(copies)
        )
        drawn, responses = self.policy.speak(
            self.policy.fork(state.policy, copies),
            turn_identities(base, turns, POLICY),
            active[copies],
        )
        scores = self._look_ahead(state, active, drawn, responses, base=base, turns=turns)
        best = np.arange(len(active)) * self.candidates + np.argmax(scores, axis=1)
        said = [responses[row] for row in best]
        dialogues = tuple(
            dialogue
            if dialogue is None or utterance is None
            else dialogue.said("policy", words(utterance))
            for dialogue, utterance in zip(state.dialogues, said, strict=True)
        )
        return LookAhead(self.policy.fork(drawn, best), dialogues), said

    def _look_ahead(
        self,
        state: LookAhead,
        active: np.ndarray,
        drawn: Any,
        responses: Sequence[Utterance | None],
        *,
        base: np.ndarray,
        turns: np.ndarray,
    ) -> np.ndarray:
        """`[S, n]` mean engagement after each response, -inf where there is nothing to compare.

        Takes the policy's state after its responses, `drawn`, and leaves it valid.
        """
        stand_in = state.dialogues[int(np.argmax(active))]  # inactive rows need a history as well
        assert stand_in is not None
        histories = [
            dialogue if on and dialogue is not None else stand_in
            for dialogue, on in zip(state.dialogues, active, strict=True)
        ]
        playing = _first_of_equals(responses, self.candidates)
        candidates = np.arange(len(responses))
        simulator_state = self.simulator.fork(
            self.simulator.start(histories), candidates // self.candidates
        )
        simulator_state = self.simulator.listen(simulator_state, heard(responses, playing))
        games = [
            Game(
                identity=(*base[row, :3].tolist(), rollout),
                row=int(row),
                turns=int(turns[row]),
                first=USER,
            )
            for row in np.flatnonzero(playing)
            for rollout in range(self.rollouts)
        ]
        finished = play(
            self.policy,
            self.simulator,
            games,
            max_turns=self.max_turns,
            rows=len(responses) * self.rollouts,
            states=(drawn, simulator_state),
        )
        found = np.full((len(responses), self.rollouts), np.nan)
        found[playing] = engagements([g.reading for g in finished]).reshape(-1, self.rollouts)
        return _mean_readable(found.reshape(len(active), self.candidates, self.rollouts))


def _mean_readable(found: np.ndarray) -> np.ndarray:
    """Means over the last axis of what is not nan; -inf where all of it is."""
    readable = ~np.isnan(found)
    total = np.where(readable, found, 0.0).sum(axis=-1)
    count = readable.sum(axis=-1)
    return np.where(count > 0, total / np.maximum(count, 1), -np.inf)


def _policy_turns(dialogue: Dialogue | None) -> int:
    return 0 if dialogue is None else sum(turn.role == "policy" for turn in dialogue.turns)


def _first_of_equals(responses: Sequence[Utterance | None], candidates: int) -> np.ndarray:
    """Whether each response is the first of its dialogue's candidates with its text."""
    first = np.zeros(len(responses), bool)
    seen: set[tuple[int, str]] = set()
    for row, said in enumerate(responses):
        if said is not None:
            key = (row // candidates, words(said))
            first[row] = key not in seen
            seen.add(key)
    return first
