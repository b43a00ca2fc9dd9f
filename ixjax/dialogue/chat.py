"""Dialogues as tokens, as one of the two speakers sees them.

One rendering serves training, search and evaluation. A speaker's own turns are the assistant's,
the other side's are the user's: so the simulator reads a dialogue with the roles swapped, under a
system text that holds the user's condition.

A live context ends right after its speaker's own words; the end of that turn is read together
with the reply to it. So the simulator's closing line can be put behind any turn of the user's:
words, marker, line, end token (docs/algorithm.md, "Engagement").
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

from ixjax.dialogue.chat_template import ChatTemplate, Segment
from ixjax.dialogue.fitting import fit_history
from ixjax.dialogue.rendering import Said
from ixjax.dialogue.scenarios.base import Scenario
from ixjax.dialogue.types import Dialogue, Role, UserCondition
from ixjax.io import InputError

__all__ = [
    "ChatTemplate",
    "Context",
    "ParsedTurn",
    "Rendered",
    "RenderedPair",
    "Segment",
    "View",
]


@dataclasses.dataclass(frozen=True)
class Context:
    """A history to speak from.

    tokens: [T] from the begin token on.
    dropped_turns: oldest turns that found no room.
    """

    tokens: tuple[int, ...]
    dropped_turns: int


@dataclasses.dataclass(frozen=True)
class Rendered:
    """A dialogue to train on.

    tokens: [T] from the begin token on.
    scored: [T] whether the loss covers the token (as a target).
    dropped_turns: oldest turns that found no room.
    """

    tokens: tuple[int, ...]
    scored: tuple[bool, ...]
    dropped_turns: int


@dataclasses.dataclass(frozen=True)
class RenderedPair:
    """A preference: two ways to go on from one prompt.

    prompt: [T] history up to where the responses begin.
    chosen, rejected: [T'] the response's words and the end token, all of them scored.
    dropped_turns: oldest turns that found no room.
    """

    prompt: tuple[int, ...]
    chosen: tuple[int, ...]
    rejected: tuple[int, ...]
    dropped_turns: int


@dataclasses.dataclass(frozen=True)
class ParsedTurn:
    """What a speaker's sampled tokens say.

    text: the utterance; may be empty.
    ended: the marker was said, which closes the dialogue.
    line: what was said behind the marker; None without one.
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
        """This side's system text; only the user's holds the condition."""
        if self.role == "policy":
            return self.scenario.policy_prompt
        return self.scenario.simulator_prompt(condition)

    def conversation(self, dialogue: Dialogue) -> tuple[str, tuple[Said, ...]]:
        """System text and turns as this side has them, for what renders any conversation."""
        return self.system(dialogue.condition), tuple(self._said(dialogue))

    def messages(self, dialogue: Dialogue) -> list[dict[str, str]]:
        """The history in the chat format of `transformers` and TRL, roles as this side has them."""
        turns = self._said(dialogue)
        return self.template.messages(
            self.system(dialogue.condition), turns, cue=self._speaks_next(turns)
        )

    def context(self, dialogue: Dialogue, *, max_tokens: int) -> Context:
        """A live context: up to the cue if this side moves next, else to the end of its words.

        Before the first turn of the other side it is the opening alone.

        Args:
            dialogue: the history.
            max_tokens: whole oldest turns are left out to keep to it; never the system text, and
                never the newest turn.

        Raises:
            InputError: not even the newest turn has room.
        """
        body, dropped = self._fit(dialogue, *self._split(dialogue), max_tokens=max_tokens)
        return Context(body.tokens, dropped)

    def continuation(self, dialogue: Dialogue, text: str) -> list[int] | None:
        """Tokens that take a live context of `dialogue` past the other side's next turn.

        Args:
            dialogue: what the live context holds; the other side moves next.
            text: the other side's turn.

        Returns:
            What to append, up to the cue; None where the template is not additive, and
            `context` must render the longer history anew.
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
        """A dialogue whose own turns are scored, each with its end token.

        The rendering ends with this side's last turn: there is nothing to learn behind it. A user
        turn that ends the dialogue is closed by marker, outcome line and end token; where the
        policy had the last word, a closing without words follows it.

        Args:
            dialogue: to learn from.
            max_tokens: see `context`.
            outcome: teach the user's side the closing line. Without it, or without a recorded
                outcome, the end token of a turn that ended the dialogue is not scored: an end
                token alone means that the user is ready to go on, and this one was not.

        Raises:
            InputError: see `context`.
        """
        closing = Segment.read(())
        if self.role == "user" and outcome and dialogue.outcome is not None:
            closing = Segment.learnt((*self.template.marker_ids, *self._line(dialogue)))
        else:
            last = max((i for i, t in enumerate(dialogue.turns) if t.role == self.role), default=-1)
            ended = self.role == "user" and last == len(dialogue.turns) - 1
            dialogue = dialogue.before(last + 1)
            if last >= 0:
                closing = self.template.closing(scored=not ended)
        turns, words = self._split(dialogue)
        tail = Segment.join([words, closing])
        body, dropped = self._fit(dialogue, turns, tail, max_tokens=max_tokens)
        return Rendered(body.tokens, body.scored, dropped)

    def prefix_outcome(self, dialogue: Dialogue, turn_index: int, *, max_tokens: int) -> Rendered:
        """The recorded outcome, foretold after an earlier turn of the user's.

        Args:
            dialogue: with an outcome.
            turn_index: the user's turn behind which the dialogue is cut.
            max_tokens: see `context`.

        Returns:
            The outcome line and its end token are scored, nothing else. The marker is not: it
            says that the user leaves, which after this turn it did not, and the simulator would
            learn to leave too early. The read-out forces the marker, so nothing is missed.

        Raises:
            ValueError: this is not the user's view, the turn is not the user's, or the dialogue
                has no outcome.
            InputError: see `context`.
        """
        if self.role != "user" or dialogue.outcome is None:
            raise ValueError(
                "only the user's view of a dialogue with an outcome foretells it; this is the "
                f"{self.role}'s view of dialogue {dialogue.id!r}, outcome {dialogue.outcome}"
            )
        if dialogue.turns[turn_index].role != "user":
            raise ValueError(f"turn {turn_index} of dialogue {dialogue.id!r} is not the user's")
        turns, words = self._split(dialogue.before(turn_index + 1))
        told = [Segment.read(words.tokens), Segment.read(self.template.marker_ids)]
        tail = Segment.join([*told, Segment.learnt(self._line(dialogue))])
        body, dropped = self._fit(dialogue, turns, tail, max_tokens=max_tokens)
        scored = (False,) * (len(body.tokens) - len(tail.tokens)) + tail.scored
        return Rendered(body.tokens, scored, dropped)

    def pair(
        self, history: Dialogue, chosen: str, rejected: str, *, max_tokens: int
    ) -> RenderedPair:
        """Two responses to one history.

        Args:
            history: this side moves next.
            chosen: the better response.
            rejected: the other one.
            max_tokens: of the prompt with the longer response; see `context`.

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
        body, dropped = self._fit(history, turns, Segment.read(longest), max_tokens=max_tokens)
        prompt = body.tokens[: len(body.tokens) - len(longest)]
        return RenderedPair(prompt, better, worse, dropped)

    def parse(self, tokens: Sequence[int]) -> ParsedTurn:
        """Read one own turn as it was sampled, up to its end token or cut before it.

        Special tokens that strayed into it are left out of its text. Only the user's side can
        close the dialogue: a marker of the policy's is such a stray.
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
        # A NUL fits in no turn; a character cut in half by the last token is no character.
        return self.template.decode(tokens).replace("\0", "").rstrip("\ufffd").strip()

    def _line(self, dialogue: Dialogue) -> tuple[int, ...]:
        """The recorded outcome's closing line and its end token."""
        assert dialogue.outcome is not None
        line = self.scenario.outcome_line(dialogue.condition, dialogue.outcome)
        return (*self.template.encode(line), self.template.end_ids[0])

    def _said(self, dialogue: Dialogue) -> list[Said]:
        return [Said(turn.role == self.role, turn.text) for turn in dialogue.turns]

    def _speaks_next(self, turns: Sequence[Said]) -> bool:
        if turns:
            return not turns[-1].own
        return self.scenario.policy_opens == (self.role == "policy")

    def _split(self, dialogue: Dialogue) -> tuple[list[Said], Segment]:
        """The turns up to the cue, and this side's words behind it if it had the last word."""
        turns = self._said(dialogue)
        if not turns or not turns[-1].own:
            return turns, Segment.read(())
        words = self.template.encode(turns[-1].text.strip())
        return turns[:-1], Segment.learnt(words)

    def _fit(
        self, dialogue: Dialogue, turns: Sequence[Said], tail: Segment, *, max_tokens: int
    ) -> tuple[Segment, int]:
        """Opening, newest turns and `tail`; the number of oldest turns that had to go.

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
                f"alone need {fit.tokens} tokens, the limit is {max_tokens}; shorten the turn or "
                "the condition, or allow more (a longer model.max_length)"
            )
        return fit.body, fit.dropped_turns


def _find(tokens: Sequence[int], pattern: Sequence[int]) -> int | None:
    """Where `pattern` first occurs in `tokens`."""
    starts = range(len(tokens) - len(pattern) + 1)
    return next((i for i in starts if list(tokens[i : i + len(pattern)]) == pattern), None)
