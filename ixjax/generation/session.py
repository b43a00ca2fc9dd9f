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
from ixjax.dialogue.types import Dialogue, OutcomeReading, Role, Utterance, text_problem
from ixjax.generation.contexts import Contexts
from ixjax.generation.speakers import ModelSpeaker, Rows
from ixjax.io import InputError

PIECE_TOKENS = 2  # decoded between two pieces: fewer cost more calls, more are seen to stutter
BYTE = re.compile(r"<0x[0-9A-Fa-f]{2}>")  # a token of SentencePiece that is a part of a character


class Session:
    """A dialogue between a model and whoever calls this.

    An iterator of pieces that is left before its end leaves the dialogue as it was.

    Args:
        speaker: the model's side.
        root: where the dialogue begins: without a turn, or with some that were given.
    """

    def __init__(self, speaker: ModelSpeaker, root: Dialogue):
        self.speaker = speaker
        self.dialogue = root
        self.last: Utterance | None = None
        """The model's last turn; None before it, and after one was taken back."""
        self._root = root
        self._state: Rows | None = None  # None: the dialogue has to be read first
        self._drawn = 0  # turns, of which each has another identity

    @property
    def person(self) -> Role:
        """The side that the caller plays."""
        return "user" if self.speaker.view.role == "policy" else "policy"

    @property
    def ended(self) -> bool:
        """Whether the model has closed the dialogue."""
        return self.last is not None and self.last.ended

    @property
    def model_moves(self) -> bool:
        """Whether the next turn is the model's: it opens, or the root ends with the person's."""
        if self.ended or self.dialogue.turns:
            return not self.ended and self.dialogue.turns[-1].role == self.person
        opener: Role = "policy" if self.speaker.view.scenario.policy_opens else "user"
        return opener != self.person

    def move(self) -> Iterator[str]:
        """The model's turn, where `model_moves`."""
        if not self.model_moves:
            raise ValueError(f"the {self.person} moves next; `say` something")
        yield from self._answer(None)

    def say(self, text: str) -> Iterator[str]:
        """Say a turn to the model.

        Returns:
            Pieces of its answer; joined, they are the text that `ModelSpeaker.speak` gives.

        Raises:
            InputError: the text is empty, no valid Unicode, or too long for the model's context.
            ValueError: the dialogue is over, or the model moves first.
        """
        if self.ended or self.model_moves:
            state = "the dialogue is over" if self.ended else "the model moves next"
            raise ValueError(f"{state}; nothing can be said now")
        if problem := text_problem(text):
            raise InputError(f"what was said {problem}")
        yield from self._answer(text)

    def undo(self) -> bool:
        """Take back the last exchange; whether there was one.

        What is said next is answered by other draws, also if it is the same.
        """
        said = [
            i
            for i, turn in enumerate(self.dialogue.turns)
            if turn.role == self.person and i >= len(self._root.turns)
        ]
        if said:
            self._go_to(self.dialogue.before(said[-1]))
        return bool(said)

    def restart(self) -> None:
        """Begin again at the root."""
        self._go_to(self._root)

    def outcome(self) -> OutcomeReading:
        """What the dialogue has come to, if the model is the user's side.

        Raises:
            ValueError: the model is the policy, which has no outcome.
        """
        self._state = self._read()
        [reading] = self.speaker.outcomes(self._state, np.ones(1, bool))
        assert reading is not None
        return reading

    def _go_to(self, dialogue: Dialogue) -> None:
        self.dialogue, self.last, self._state = dialogue, None, None

    def _read(self) -> Rows:
        return self._state or self.speaker.start([self.dialogue])

    def _answer(self, text: str | None) -> Iterator[str]:
        state, self._state = self._read(), None  # consumed: broken off, it is read anew
        if text is not None:
            state = self.speaker.listen(state, [text])
        identity = np.array([[self._drawn]], np.uint32)
        self._drawn += 1
        starts, tokens, told = state.contexts.lengths, [], ""
        for contexts, part in self._parts(state.contexts, identity):
            state = dataclasses.replace(state, contexts=contexts)
            tokens += part
            words = settled(self.speaker.view, tokens)
            words = before_stops(words, self.speaker.sampling.stop)
            if len(words) > len(told):
                yield words[len(told) :]
                told = words
        state, [said] = self.speaker.settle(state, starts, [tokens], identity, np.ones(1, bool))
        [dialogue] = state.dialogues
        assert said is not None  # of an active row
        assert dialogue is not None
        if rest := said.text[len(told) :]:
            yield rest
        self.dialogue, self.last, self._state = dialogue, said, state

    def _parts(
        self, contexts: Contexts, identity: np.ndarray
    ) -> Iterator[tuple[Contexts, list[int]]]:
        """Contexts and what was decoded into them, `PIECE_TOKENS` at a time, to the turn's end."""
        left, said = self.speaker.longest_turn(identity[0]), []
        while left:
            turns = self.speaker.turns(identity, [min(PIECE_TOKENS, left)])
            turns = dataclasses.replace(turns, said=[said])
            contexts, part = self.speaker.engine.decode_chunk(contexts, turns)
            [tokens] = part.tokens
            yield contexts, tokens
            left, said = left - len(tokens), [*said, *tokens]
            if part.ended[0]:
                return


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
    places = [place for stop in stops if (place := text.find(stop)) >= 0]
    begun = [n for stop in stops for n in range(1, len(stop)) if text.endswith(stop[:n])]
    kept = min(places) if places else len(text) - max(begun, default=0)
    return text[:kept].rstrip()
