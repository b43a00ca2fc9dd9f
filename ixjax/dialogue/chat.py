"""Dialogues as tokens, as one of the two speakers sees them.

Training, search and evaluation share one rendering. A speaker's own turns have the assistant's
role, the other side's turns the user's role. The simulator therefore reads a dialogue with the
roles swapped, under a system text that holds the user's condition.

A live context ends directly after its speaker's own words; the end of that turn is read together
with the reply to it. The simulator's closing line can therefore follow any turn of the user:
words, marker, line, end token (docs/algorithm.md, "Engagement").
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

from ixjax.dialogue.chat_template import ChatTemplate, TokenSegment
from ixjax.dialogue.fitting import fit_history
from ixjax.dialogue.rendering import SpeakerTurn
from ixjax.dialogue.scenarios.base import Scenario
from ixjax.dialogue.types import Dialogue, Role, UserCondition
from ixjax.io import InputError

__all__ = [
    "ChatTemplate",
    "ParsedTurn",
    "Rendered",
    "RenderedHistory",
    "RenderedPair",
    "TokenSegment",
    "View",
]


@dataclasses.dataclass(frozen=True)
class RenderedHistory:
    """A history to continue from.

    tokens: [T] from the begin token on.
    dropped_turns: oldest turns that did not fit.
    """

    tokens: tuple[int, ...]
    dropped_turns: int


@dataclasses.dataclass(frozen=True)
class Rendered:
    """A dialogue to train on.

    tokens: [T] from the begin token on.
    scored: [T] whether the loss covers the token (as a target).
    dropped_turns: oldest turns that did not fit.
    line: number of last tokens that are the outcome line and its end token.
    branches: further examples that begin as this one does; their common beginning is read once.
    """

    tokens: tuple[int, ...]
    scored: tuple[bool, ...]
    dropped_turns: int
    line: int = 0
    branches: tuple[Rendered, ...] = ()


@dataclasses.dataclass(frozen=True)
class RenderedPair:
    """A preference: two responses to one prompt.

    prompt: [T] history up to the first token of a response.
    chosen, rejected: [T'] the response's words and the end token, all of them scored.
    dropped_turns: oldest turns that did not fit.
    """

    prompt: tuple[int, ...]
    chosen: tuple[int, ...]
    rejected: tuple[int, ...]
    dropped_turns: int


@dataclasses.dataclass(frozen=True)
class ParsedTurn:
    """A speaker's sampled tokens, read.

    text: the utterance; may be empty.
    ended: whether the tokens hold the marker, which closes the dialogue.
    line: text after the marker; None without one.
    kept: number of tokens of the utterance, before the marker and the end token.
    """

    text: str
    ended: bool
    line: str | None
    kept: int


@dataclasses.dataclass(frozen=True)
class View:
    """How one side sees the dialogues of a scenario."""

    scenario: Scenario
    """Gives the system texts and the outcome lines."""
    role: Role
    """Whose view: `policy`, or `user` for the simulator."""
    template: ChatTemplate
    """How turns become tokens."""

    def system(self, condition: UserCondition) -> str:
        """Return this side's system text; only the user's holds the condition."""
        if self.role == "policy":
            return self.scenario.policy_prompt
        return self.scenario.simulator_prompt(condition)

    def conversation(self, dialogue: Dialogue) -> tuple[str, tuple[SpeakerTurn, ...]]:
        """Return system text and turns from this side, for renderers of any conversation."""
        return self.system(dialogue.condition), tuple(self._said(dialogue))

    def messages(self, dialogue: Dialogue) -> list[dict[str, str]]:
        """Return the history as `transformers` and TRL take it, in this side's roles."""
        turns = self._said(dialogue)
        return self.template.messages(
            self.system(dialogue.condition), turns, cue=self._speaks_next(turns)
        )

    def context(self, dialogue: Dialogue, *, max_tokens: int) -> RenderedHistory:
        """Return a live context: up to the cue if this side moves next, else to its last word.

        Before the first turn of the other side it is the opening alone.

        Args:
            dialogue: the history.
            max_tokens: limit; whole oldest turns are dropped to meet it, but never the system text
                and never the newest turn.

        Raises:
            InputError: system text and newest turn alone exceed the limit.
        """
        body, dropped = self._fit(dialogue, *self._split(dialogue), max_tokens=max_tokens)
        return RenderedHistory(body.tokens, dropped)

    def continuation(self, dialogue: Dialogue, text: str) -> list[int] | None:
        """Return the tokens that extend a live context of `dialogue` by the other side's turn.

        Args:
            dialogue: the history in the live context; the other side moves next.
            text: the other side's turn.

        Returns:
            The tokens to append, up to the cue; None if the template is not additive, so that
            `context` must render the longer history again.
        """
        if not self.template.additive:
            return None
        spoke = bool(dialogue.turns) and dialogue.turns[-1].role == self.role
        return [
            *(self.template.own_suffix if spoke else ()),
            *self.template.other(text, first=not dialogue.turns),
            *self.template.own_prefix,
        ]

    def training(self, dialogue: Dialogue, *, max_tokens: int, outcome: bool) -> Rendered:
        """Render a dialogue whose own turns are scored, each with its end token.

        The rendering ends with this side's last turn, since nothing after it is scored. A user
        turn that ends the dialogue is closed by marker, outcome line and end token; if the policy
        spoke last, a closing without words follows its turn.

        Args:
            dialogue: the training example.
            max_tokens: see `context`.
            outcome: score the closing line on the user's side. Without it, or without a recorded
                outcome, the end token of a turn that ended the dialogue is not scored: an end
                token alone means that the user continues, and this user left.

        Raises:
            InputError: see `context`.
        """
        closing, line = TokenSegment.read(()), ()
        if self.role == "user" and outcome and dialogue.outcome is not None:
            line = self._line(dialogue)
            closing = TokenSegment.learnt((*self.template.marker_ids, *line))
        else:
            last = max((i for i, t in enumerate(dialogue.turns) if t.role == self.role), default=-1)
            ended = self.role == "user" and last == len(dialogue.turns) - 1
            dialogue = dialogue.before(last + 1)
            if last >= 0:
                closing = self.template.closing(scored=not ended)
        turns, words = self._split(dialogue)
        tail = TokenSegment.join([words, closing])
        body, dropped = self._fit(dialogue, turns, tail, max_tokens=max_tokens)
        return Rendered(body.tokens, body.scored, dropped, len(line))

    def prefix_outcome(self, dialogue: Dialogue, turn_index: int, *, max_tokens: int) -> Rendered:
        """Render the recorded outcome as a prediction after an earlier turn of the user.

        Args:
            dialogue: a dialogue with an outcome.
            turn_index: the user's turn after which the dialogue is cut.
            max_tokens: see `context`.

        Returns:
            The cut dialogue with the outcome line; only the line and its end token are scored. The
            marker is not scored: it means that the user leaves, and after this turn the user
            stayed, so the simulator would learn to leave too early. The read-out forces the
            marker, so it need not be learnt here.

        Raises:
            ValueError: this is not the user's view, the turn is not the user's, or the dialogue
                has no outcome.
            InputError: see `context`.
        """
        if self.role != "user" or dialogue.outcome is None:
            raise ValueError(
                f"dialogue {dialogue.id!r}: found the {self.role}'s view and outcome "
                f"{dialogue.outcome}; expected the user's view and a recorded outcome"
            )
        if dialogue.turns[turn_index].role != "user":
            raise ValueError(
                f"dialogue {dialogue.id!r}: turn {turn_index} is the policy's; expected the user's"
            )
        turns, words = self._split(dialogue.before(turn_index + 1))
        given = [TokenSegment.read(words.tokens), TokenSegment.read(self.template.marker_ids)]
        line = self._line(dialogue)
        tail = TokenSegment.join([*given, TokenSegment.learnt(line)])
        body, dropped = self._fit(dialogue, turns, tail, max_tokens=max_tokens)
        scored = (False,) * (len(body.tokens) - len(tail.tokens)) + tail.scored
        return Rendered(body.tokens, scored, dropped, len(line))

    def pair(
        self, history: Dialogue, chosen: str, rejected: str, *, max_tokens: int
    ) -> RenderedPair:
        """Render two responses to one history.

        Args:
            history: a history after which this side moves.
            chosen: the better response.
            rejected: the worse response.
            max_tokens: limit of the prompt with the longer response; see `context`.

        Raises:
            ValueError: this side does not move next.
            InputError: see `context`.
        """
        turns = self._said(history)
        if not self._speaks_next(turns):
            raise ValueError(f"dialogue {history.id!r}: the {self.role} does not move next")
        end = self.template.end_ids[0]
        better, worse = ((*self.template.encode(text.strip()), end) for text in (chosen, rejected))
        longest = max(better, worse, key=len)
        body, dropped = self._fit(history, turns, TokenSegment.read(longest), max_tokens=max_tokens)
        prompt = body.tokens[: len(body.tokens) - len(longest)]
        return RenderedPair(prompt, better, worse, dropped)

    def parse(self, tokens: Sequence[int]) -> ParsedTurn:
        """Parse one sampled turn of this side, with or without its end token.

        Other special tokens are left out of the text. Only the user's side can close the dialogue,
        so a marker that the policy samples is left out like any other special token.
        """
        tokens = [int(token) for token in tokens]
        ends = (i for i, token in enumerate(tokens) if token in self.template.end_ids)
        said = tokens[: next(ends, len(tokens))]
        marker = list(self.template.marker_ids)
        place = _find(said, marker) if self.role == "user" else None
        if place is None:
            return ParsedTurn(self._text(said), ended=False, line=None, kept=len(said))
        line = self._text(said[place + len(marker) :])
        return ParsedTurn(self._text(said[:place]), ended=True, line=line, kept=place)

    def _text(self, tokens: Sequence[int]) -> str:
        # A turn can't hold a NUL; the last token may cut a character in half.
        return self.template.decode(tokens).replace("\0", "").rstrip("\ufffd").strip()

    def _line(self, dialogue: Dialogue) -> tuple[int, ...]:
        """Return the recorded outcome's closing line and its end token."""
        assert dialogue.outcome is not None
        line = self.scenario.outcome_line(dialogue.condition, dialogue.outcome)
        return (*self.template.encode(line), self.template.end_ids[0])

    def _said(self, dialogue: Dialogue) -> list[SpeakerTurn]:
        return [SpeakerTurn(turn.role == self.role, turn.text) for turn in dialogue.turns]

    def _speaks_next(self, turns: Sequence[SpeakerTurn]) -> bool:
        if turns:
            return not turns[-1].own
        return self.scenario.policy_opens == (self.role == "policy")

    def _split(self, dialogue: Dialogue) -> tuple[list[SpeakerTurn], TokenSegment]:
        """Return the turns up to the cue, and this side's words after it if it spoke last."""
        turns = self._said(dialogue)
        if not turns or not turns[-1].own:
            return turns, TokenSegment.read(())
        words = self.template.encode(turns[-1].text.strip())
        return turns[:-1], TokenSegment.learnt(words)

    def _fit(
        self,
        dialogue: Dialogue,
        turns: Sequence[SpeakerTurn],
        tail: TokenSegment,
        *,
        max_tokens: int,
    ) -> tuple[TokenSegment, int]:
        """Return opening, newest turns and `tail` joined; and the number of turns dropped.

        If `dialogue` ends with this side's turn, the newest turn is in `tail`.
        """
        newest_in_tail = bool(dialogue.turns) and dialogue.turns[-1].role == self.role
        cue = newest_in_tail or self._speaks_next(turns)
        keep = 0 if newest_in_tail or not turns else 1
        fit = fit_history(
            self.template,
            self.system(dialogue.condition),
            turns,
            tail,
            cue=cue,
            keep=keep,
            max_tokens=max_tokens,
        )
        if fit.body is None:
            raise InputError(
                f"dialogue {dialogue.id!r}: the {self.role}'s system text and the newest turn "
                f"need {fit.tokens} tokens; expected {max_tokens} or fewer. Shorten the turn or "
                "the condition, or set a larger --model.max-length"
            )
        return fit.body, fit.dropped_turns


def _find(tokens: Sequence[int], pattern: Sequence[int]) -> int | None:
    """Return where `pattern` first occurs in `tokens`; None if it does not."""
    starts = range(len(tokens) - len(pattern) + 1)
    return next((i for i in starts if list(tokens[i : i + len(pattern)]) == pattern), None)
