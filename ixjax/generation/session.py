"""A session: a person and a model in one dialogue, the model's words told as they are sampled.

The model is a `ModelSpeaker` with a single row; its turn is decoded a few tokens at a time, which
gives the same turn as at once. What is told is settled: no later token can change it. So half a
character, or what may yet become the marker of the closing line, waits for the tokens behind it.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Iterator, Sequence

import numpy as np

from ixjax.dialogue.chat import View
from ixjax.dialogue.types import Dialogue, OutcomeReading
from ixjax.generation.contexts import Contexts, Decoded
from ixjax.generation.rows import Rows
from ixjax.generation.speakers import ModelSpeaker
from ixjax.generation.turn_taking import TurnTaking

PIECE_TOKENS = 2  # decoded between two pieces: fewer cost more calls, more are seen to stutter
BYTE = re.compile(r"<0x[0-9A-Fa-f]{2}>")  # a token of SentencePiece that is a part of a character


class Session(TurnTaking):
    """A dialogue with a `ModelSpeaker`, in pieces that are a few tokens each; see `TurnTaking`.

    Joined, the pieces of a turn are the text that `ModelSpeaker.speak` gives.

    Args:
        speaker: the model's side.
        root: where the dialogue begins: without a turn, or with some that were given.
    """

    def __init__(self, speaker: ModelSpeaker, root: Dialogue):
        super().__init__(speaker.view.role, speaker.view.scenario, root)
        self.speaker = speaker
        self._state: Rows | None = None  # None: the dialogue has to be read first
        self._drawn = 0  # turns, of which each has another identity

    @property
    def dropped_turns(self) -> int:
        """Of the speaker; see `TurnTaking`."""
        return self.speaker.dropped_turns

    def outcome(self) -> OutcomeReading:
        """What the dialogue has come to, if the model is the user's side.

        Raises:
            ValueError: the model is the policy, which has no outcome.
        """
        self._state = self._read()
        [reading] = self.speaker.outcomes(self._state, np.ones(1, bool))
        assert reading is not None
        return reading

    def _forget(self) -> None:
        self._state = None

    def _read(self) -> Rows:
        return self._state or self.speaker.start([self.dialogue])

    def _answer(self, text: str | None) -> Iterator[str]:
        state, self._state = self._read(), None  # consumed: broken off, it is read anew
        if text is not None:
            state = self.speaker.listen(state, [text])
        identity = np.array([[self._drawn]], np.uint32)
        self._drawn += 1
        [start], tokens, told = state.contexts.lengths.tolist(), [], ""
        logprob = 0.0
        for contexts, part in self._parts(state.contexts, identity):
            state = dataclasses.replace(state, contexts=contexts)
            tokens, logprob = [*tokens, *part.tokens[0]], logprob + sum(part.logprobs[0])
            if part.ended[0]:  # what of it is said, `settle` knows
                break
            words = settled(self.speaker.view, tokens)
            words = before_stops(words, self.speaker.sampling.stop)
            if len(words) > len(told):
                yield words[len(told) :]
                told = words
        state, [said] = self.speaker.settle(
            state, [0], [start], [tokens], [logprob], identity.tolist()
        )
        state = self.speaker.read(state)
        [dialogue] = state.dialogues
        assert dialogue is not None
        if rest := said.text[len(told) :]:
            yield rest
        self.dialogue, self.last, self._state = dialogue, said, state

    def _parts(
        self, contexts: Contexts, identity: np.ndarray
    ) -> Iterator[tuple[Contexts, Decoded]]:
        """Contexts and what was decoded into them.

        `PIECE_TOKENS` at a time, up to the end of the turn or its limit.
        """
        left, said = self.speaker.longest_turn(identity[0]), []
        while left:
            turns = self.speaker.turns(identity, [min(PIECE_TOKENS, left)])
            turns = dataclasses.replace(turns, said=[said])
            contexts, part = self.speaker.engine.decode_chunk(contexts, turns)
            [tokens] = part.tokens
            yield contexts, part
            left, said = left - len(tokens), [*said, *tokens]


def settled(view: View, tokens: Sequence[int]) -> str:
    """What an unfinished turn says whatever follows: a beginning of what the finished one says."""
    turn = view.parse(tokens)
    if turn.ended:
        return turn.text
    said = list(tokens[: turn.kept])
    # A tail that the marker begins with may become the marker; only the user's side has one.
    marker = list(view.template.marker_ids) if view.role == "user" else []
    tails = (n for n in range(len(marker) - 1, 0, -1) if said[-n:] == marker[:n])
    said = said[: len(said) - next(tails, 0)]
    # Bytes become characters, or not, once their run is over; special tokens do not end it.
    said = [token for token in said if token not in view.template.special_ids]
    names = view.template.tokenizer.convert_ids_to_tokens(said)
    while said and BYTE.fullmatch(str(names[len(said) - 1])):
        said.pop()
    return view.parse(said).text


def before_stops(text: str, stops: Sequence[str]) -> str:
    """The text up to a stop string, or up to what at its end may become one."""
    # White space in front of a turn is not told: all of it may be the rest of a stop string.
    if any(stop.lstrip().startswith(text) for stop in stops):
        return ""
    places = [place for stop in stops if (place := text.find(stop)) >= 0]
    begun = [n for stop in stops for n in range(1, len(stop)) if text.endswith(stop[:n])]
    kept = min(places) if places else len(text) - max(begun, default=0)
    return text[:kept].rstrip()
