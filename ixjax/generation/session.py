"""A session: a person and a model in one dialogue; the model's words are shown as they are sampled.

The model's turn is decoded a few tokens at a time, which gives the same turn as decoding it at
once. Only text that no later token can change is shown: half a character, or a possible beginning
of the closing line's marker, waits for the next tokens.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence

from ixjax.dialogue.chat import View
from ixjax.dialogue.types import Dialogue, OutcomeReading
from ixjax.generation.driver import run_one
from ixjax.generation.speakers import ModelParticipant, ModelSpeaker
from ixjax.generation.turn_taking import TurnTaking

FRAGMENT_TOKENS = 2  # decoded at a time: fewer cost more calls, more make the text stutter
BYTE = re.compile(r"<0x[0-9A-Fa-f]{2}>")  # a SentencePiece token that is a byte of a character


class Session(TurnTaking):
    """A dialogue between a person and a `ModelSpeaker`; see `TurnTaking`.

    A fragment is the text of a few tokens. The joined fragments of a turn equal the text that the
    speaker's participants say.

    Args:
        speaker: the model's side.
        root: the beginning of the dialogue, with or without turns.
    """

    def __init__(self, speaker: ModelSpeaker, root: Dialogue):
        super().__init__(speaker.view.role, speaker.view.scenario, root)
        self.speaker = speaker
        self._held: ModelParticipant | None = None  # None: the dialogue has to be read first
        self._drawn = 0  # turns so far: each has its own identity

    @property
    def dropped_turns(self) -> int:
        """See `TurnTaking.dropped_turns`."""
        return self.speaker.dropped_turns

    def outcome(self) -> OutcomeReading:
        """Return the dialogue's outcome if the model is the user's side.

        Raises:
            ValueError: the model is the policy, which has no outcome.
        """
        self._held = self._participant()
        return run_one(self._held.outcome())

    def _forget(self) -> None:
        self._held = None

    def _participant(self) -> ModelParticipant:
        return self._held or self.speaker.begin(self.dialogue)

    def _answer(self, text: str | None) -> Iterator[str]:
        # Not held until the turn is complete: after an interruption the dialogue is read again.
        participant, self._held = self._participant(), None
        if text is not None:
            participant.hear(text)
        request = participant.request([self._drawn])
        self._drawn += 1
        engine, shown = self.speaker.engine, ""
        while not request.done:
            engine.step([request], most=FRAGMENT_TOKENS, pause=False)
            if request.ended:  # `settle` cuts what ended it
                break
            words = settled(self.speaker.view, request.tokens)
            words = before_stops(words, self.speaker.sampling.stop)
            if len(words) > len(shown):
                yield words[len(shown) :]
                shown = words
        said = participant.settle(request)
        if rest := said.text[len(shown) :]:
            yield rest
        self.dialogue, self.last, self._held = participant.dialogue, said, participant


def settled(view: View, tokens: Sequence[int]) -> str:
    """Return the beginning of an unfinished turn's text that no later token can change."""
    turn = view.parse(tokens)
    if turn.ended:
        return turn.text
    said = list(tokens[: turn.kept])
    # A tail that begins the marker may become the marker; only the user's side has one.
    marker = list(view.template.marker_ids) if view.role == "user" else []
    tails = (n for n in range(len(marker) - 1, 0, -1) if said[-n:] == marker[:n])
    said = said[: len(said) - next(tails, 0)]
    # A run of byte tokens is decoded once it is over; special tokens do not end it.
    said = [token for token in said if token not in view.template.special_ids]
    names = view.template.tokenizer.convert_ids_to_tokens(said)
    while said and BYTE.fullmatch(str(names[len(said) - 1])):
        said.pop()
    return view.parse(said).text


def before_stops(text: str, stops: Sequence[str]) -> str:
    """Return the text before a stop string, or before a tail that may become one."""
    # White space before a turn is not shown, so the text may be the rest of a stop string.
    if any(stop.lstrip().startswith(text) for stop in stops):
        return ""
    places = [place for stop in stops if (place := text.find(stop)) >= 0]
    begun = [n for stop in stops for n in range(1, len(stop)) if text.endswith(stop[:n])]
    kept = min(places) if places else len(text) - max(begun, default=0)
    return text[:kept].rstrip()
