"""A tokenizer's own chat template as token segments.

Markup (the text that the template writes around a turn) is tokenised once. The words of a turn
are tokenised alone, with every special token in them taken as plain text. Typed text can therefore
never become markup, and a new turn costs its own tokens alone:
template(history + turn) = template(history) + segment(turn). A template without this property
(`additive` is False) renders the whole history at every call and raises one warning.

A template has two speakers: "own" is the one that the model speaks as (the assistant), "other"
is the one it hears (the user). `ixjax.dialogue.chat.View` maps the roles of a dialogue to them.
"""

from __future__ import annotations

import dataclasses
import functools
import itertools
import re
import warnings
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from ixjax.dialogue.rendering import (
    NEUTRAL,
    Markup,
    SpeakerTurn,
    build_messages,
    cut,
    read_markup,
    render,
    slot,
)
from ixjax.dialogue.tokenizer import OUTCOME
from ixjax.io import InputError, fingerprint

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

OUTCOME_TEXT = "[outcome]"  # announces the closing line if the tokenizer has no token for it
CACHED_TEXTS = 1 << 16


@dataclasses.dataclass(frozen=True)
class TokenSegment:
    """A run of tokens.

    tokens: [T] token ids.
    scored: [T] whether the loss covers the token.
    """

    tokens: tuple[int, ...]
    scored: tuple[bool, ...]

    @classmethod
    def read(cls, tokens: Sequence[int]) -> TokenSegment:
        """Return a segment that the model reads; no token is scored."""
        return cls(tuple(tokens), (False,) * len(tokens))

    @classmethod
    def learnt(cls, tokens: Sequence[int]) -> TokenSegment:
        """Return a segment that the model learns to say; all tokens are scored."""
        return cls(tuple(tokens), (True,) * len(tokens))

    @classmethod
    def join(cls, segments: Sequence[TokenSegment]) -> TokenSegment:
        """Return the concatenated segments."""
        return cls(
            tuple(token for segment in segments for token in segment.tokens),
            tuple(scored for segment in segments for scored in segment.scored),
        )


@dataclasses.dataclass(frozen=True, eq=False)
class ChatTemplate:
    """The chat template of one tokenizer, as tokens. Build it with `from_tokenizer`."""

    tokenizer: PreTrainedTokenizerFast = dataclasses.field(repr=False)
    """The Hugging Face tokenizer that owns the template."""
    pad_id: int
    """Fills rows; never an end token. Masks come from lengths, never from this id."""
    end_ids: tuple[int, ...]
    """Tokens that end a turn; the template writes the first, the others stop generation too."""
    marker_ids: tuple[int, ...]
    """Tokens that announce the closing outcome line."""
    own_prefix: tuple[int, ...]
    """Cue: tokens before this speaker's words."""
    own_suffix: tuple[int, ...]
    """Tokens after this speaker's words; contains `end_ids[0]`."""
    other_prefix: tuple[int, ...]
    """Tokens before the other's words."""
    other_suffix: tuple[int, ...]
    """Tokens after the other's words."""
    system_prefix: tuple[int, ...]
    """Tokens before the system text, with the begin token if the template has one."""
    system_suffix: tuple[int, ...]
    """Tokens after the system text; if `joined`, the words of the other's first turn follow."""
    joined: bool
    """Whether the system text and the other's first words share one message."""
    takes_system: bool
    """Whether there are system messages; if not, the system text precedes the other's words."""
    opens_own: bool
    """Whether this speaker may open; if not, a neutral turn of the other precedes its opening."""
    additive: bool
    """Whether segments add up; if not, every longer history is rendered as a whole."""
    special_ids: frozenset[int] = dataclasses.field(repr=False)
    """Tokens that encoded text never holds and decoded text never shows."""
    encode_text: Callable[[str], tuple[int, ...]] = dataclasses.field(repr=False)
    """`encode`, cached."""

    @classmethod
    def from_tokenizer(cls, tokenizer: PreTrainedTokenizerFast) -> ChatTemplate:
        """Return the segments of a tokenizer's chat template.

        Raises:
            InputError: the template cannot render a dialogue, leaves out a message, or does not
                close a turn with a special token.

        Warns:
            UserWarning: the template is not additive, or the tokenizer splits a turn differently
                when its markup and words are tokenised separately.
        """
        markup = read_markup(tokenizer)
        parts = {
            name: _markup_ids(tokenizer, getattr(markup, name))
            for name in (
                "system_prefix",
                "system_suffix",
                "other_prefix",
                "other_suffix",
                "own_prefix",
                "own_suffix",
            )
        }
        special_ids = _special_ids(tokenizer, [token for ids in parts.values() for token in ids])
        end_ids = _end_ids(tokenizer, parts["own_suffix"], special_ids)
        template = cls(
            tokenizer=tokenizer,
            pad_id=_pad_id(tokenizer, end_ids),
            end_ids=end_ids,
            marker_ids=_marker_ids(tokenizer),
            **parts,
            joined=markup.joined,
            takes_system=markup.takes_system,
            opens_own=markup.opens_own,
            additive=markup.additive,
            special_ids=special_ids,
            encode_text=functools.lru_cache(CACHED_TEXTS)(_text_encoder(tokenizer, special_ids)),
        )
        template._warn_of_differences(markup)
        return template

    @property
    def vocab_size(self) -> int:
        """Number of token ids, added tokens included."""
        return len(self.tokenizer)

    @functools.cached_property
    def fingerprint(self) -> str:
        """16 hex digits that change when the tokenizer or its chat template does."""
        return fingerprint(self.tokenizer.backend_tokenizer.to_str(), self.tokenizer.chat_template)

    def encode(self, text: str) -> list[int]:
        """Return the tokens of typed text; none of them is special.

        Raises:
            InputError: `text` is not valid Unicode (a lone surrogate).
        """
        return list(self.encode_text(text))

    def decode(self, tokens: Sequence[int]) -> str:
        """Return the stripped text of `tokens` up to the first end token; special tokens vanish."""
        said = []
        for token in tokens:
            if token in self.end_ids:
                break
            if token not in self.special_ids:
                said.append(int(token))
        text = self.tokenizer.decode(
            said, skip_special_tokens=True, clean_up_tokenization_spaces=False
        )
        return str(text).strip()

    def opening(self, system: str, *, own_first: bool = False) -> list[int]:
        """Return the tokens before the first turn: the begin token and the system text.

        Args:
            system: the speaker's instructions.
            own_first: whether this speaker has the first turn; a neutral turn of the other
                precedes it if the template demands one.
        """
        head = [*self.system_prefix, *self.encode_text(system.strip()), *self.system_suffix]
        if own_first and not self.opens_own:
            head += self.other(NEUTRAL, first=True)
        return head

    def own(self, text: str) -> TokenSegment:
        """Return a whole turn of this speaker: its words and the end token are scored."""
        words = TokenSegment.learnt(self.encode_text(text.strip()))
        return TokenSegment.join(
            [TokenSegment.read(self.own_prefix), words, self.closing(scored=True)]
        )

    def closing(self, *, scored: bool) -> TokenSegment:
        """Return `own_suffix`; at most its end token is scored."""
        end = self.own_suffix.index(self.end_ids[0])
        places = range(len(self.own_suffix))
        return TokenSegment(self.own_suffix, tuple(scored and place == end for place in places))

    def other(self, text: str, *, first: bool = False) -> list[int]:
        """Return a whole turn of the other.

        Args:
            text: the other's words.
            first: whether it follows the opening, which begins its message if `joined`.
        """
        prefix = () if first and self.joined else self.other_prefix
        return [*prefix, *self.encode_text(text.strip()), *self.other_suffix]

    def segments(
        self, system: str | None, turns: Sequence[SpeakerTurn], *, cue: bool
    ) -> list[TokenSegment]:
        """Return a history in segments, from the begin token on.

        Args:
            system: the speaker's instructions; None: none are given, and the template may write
                its default.
            turns: the oldest first.
            cue: whether this speaker speaks next; without turns, it also opens the dialogue.

        Raises:
            InputError: the template refuses these roles in this order.
        """
        adds_up = self.additive or not (turns or cue)
        if system is None or not (adds_up and _alternate(turns, cue)):
            return self._whole(system, turns, cue=cue)
        own_first = turns[0].own if turns else cue
        segments = [TokenSegment.read(self.opening(system, own_first=own_first))]
        for number, (own, text) in enumerate(turns):
            said = self.own(text) if own else TokenSegment.read(self.other(text, first=number == 0))
            segments.append(said)
        if cue:
            segments.append(TokenSegment.read(self.own_prefix))
        return segments

    def messages(
        self, system: str | None, turns: Sequence[SpeakerTurn], *, cue: bool
    ) -> list[dict[str, str]]:
        """Return the same history as messages for `tokenizer.apply_chat_template`."""
        return build_messages(
            system, turns, cue=cue, takes_system=self.takes_system, opens_own=self.opens_own
        )

    def _whole(
        self, system: str | None, turns: Sequence[SpeakerTurn], *, cue: bool
    ) -> list[TokenSegment]:
        """Render all turns at once, if segments do not add up."""
        said = [*([] if system is None else [SpeakerTurn(False, system)]), *turns]
        slots = [SpeakerTurn(turn.own, slot(number)) for number, turn in enumerate(said)]
        given = None if system is None else slots.pop(0).text
        text = render(self.tokenizer, self.messages(given, slots, cue=cue), cue=cue)
        segments, own = [], False
        for markup, number in cut(text, len(said)):
            tokens = _markup_ids(self.tokenizer, markup)
            end = tokens.index(self.end_ids[0]) if own and self.end_ids[0] in tokens else -1
            segments.append(
                TokenSegment(tokens, tuple(place == end for place in range(len(tokens))))
            )
            if number is not None:
                own = said[number].own
                words = self.encode_text(said[number].text.strip())
                segments.append(TokenSegment.learnt(words) if own else TokenSegment.read(words))
        return segments

    def _warn_of_differences(self, markup: Markup) -> None:
        if not markup.additive:
            warnings.warn(
                "the tokenizer's chat template is not additive: it writes a turn differently "
                "when others follow it. The whole history is rendered at every turn, which is "
                "correct but slower",
                stacklevel=3,
            )
        for turns in _SAMPLES:
            segments = TokenSegment.join(self.segments("Be kind.", turns, cue=True))
            messages = self.messages("Be kind.", turns, cue=True)
            whole = _markup_ids(self.tokenizer, render(self.tokenizer, messages, cue=True))
            if segments.tokens != whole:
                warnings.warn(
                    "the tokenizer splits words and markup differently when they are tokenised "
                    "separately: a pretrained model reads slightly other tokens than its chat "
                    f"template gives ({len(segments.tokens)} instead of {len(whole)} in a short "
                    "dialogue)",
                    stacklevel=3,
                )
                return


def _alternate(turns: Sequence[SpeakerTurn], cue: bool) -> bool:
    """Return whether no side speaks twice in a row."""
    own = [turn.own for turn in turns] + [True] * cue
    return all(a != b for a, b in itertools.pairwise(own))


_SAMPLES = (
    [],
    [SpeakerTurn(False, "Hello there.")],
    [
        SpeakerTurn(False, "I am 20, tired ..."),
        SpeakerTurn(True, "How come?"),
        SpeakerTurn(False, "(work)"),
    ],
    [SpeakerTurn(True, "Hi!"), SpeakerTurn(False, "No idea: 3 things.")],
)


def _markup_ids(tokenizer: PreTrainedTokenizerFast, text: str) -> tuple[int, ...]:
    """Return the tokens of markup, special tokens included; none is added around it."""
    return tuple(tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"])


def _named_id(tokenizer: PreTrainedTokenizerFast, name: str) -> int | None:
    """Return the id of the tokenizer's `pad`, `eos`, ... token."""
    token = getattr(tokenizer, f"{name}_token_id", None)
    return None if token is None else int(token)


def _special_ids(tokenizer: PreTrainedTokenizerFast, markup_ids: Sequence[int]) -> frozenset[int]:
    added = tokenizer.added_tokens_decoder
    special = {token for token, content in added.items() if content.special}
    # Some folders list their turn tokens as ordinary added tokens.
    special |= set(tokenizer.all_special_ids) | (set(markup_ids) & set(added))
    special |= set(_marker_token(tokenizer))
    # Unknown characters are text, not markup.
    return frozenset(special - {_named_id(tokenizer, "unk")})


def _end_ids(
    tokenizer: PreTrainedTokenizerFast, own_suffix: Sequence[int], special_ids: frozenset[int]
) -> tuple[int, ...]:
    end = next((token for token in own_suffix if token in special_ids), None)
    if end is None:
        raise InputError(
            "the tokenizer's chat template closes an assistant message with "
            f"{tokenizer.decode(list(own_suffix))!r}; expected a special token. Add one to the "
            "template, so that a model can learn where its turn ends"
        )
    eos = _named_id(tokenizer, "eos")
    return (end,) if eos is None or eos == end else (end, eos)


def _pad_id(tokenizer: PreTrainedTokenizerFast, end_ids: Sequence[int]) -> int:
    """Return the pad token; any other token if the pad token also ends turns."""
    named = (_named_id(tokenizer, "pad"), _named_id(tokenizer, "unk"))
    candidates = (*named, *range(len(end_ids) + 1))
    return next(token for token in candidates if token is not None and token not in end_ids)


def _marker_token(tokenizer: PreTrainedTokenizerFast) -> tuple[int, ...]:
    """Return the single token of the marker; empty if the tokenizer has none."""
    ids = _markup_ids(tokenizer, OUTCOME)
    return ids if len(ids) == 1 and ids[0] != _named_id(tokenizer, "unk") else ()


def _marker_ids(tokenizer: PreTrainedTokenizerFast) -> tuple[int, ...]:
    return _marker_token(tokenizer) or _markup_ids(tokenizer, OUTCOME_TEXT + " ")


def _text_encoder(
    tokenizer: PreTrainedTokenizerFast, special_ids: frozenset[int]
) -> Callable[[str], tuple[int, ...]]:
    """Return a function from typed text to tokens without any of `special_ids`."""
    names = [str(name) for name in tokenizer.convert_ids_to_tokens(sorted(special_ids))]
    # Matches the empty place after the first character of a special token's name.
    places = (f"(?<={re.escape(name[0])})(?={re.escape(name[1:])})" for name in names if name)
    inside = re.compile("|".join(places))
    marker_is_text = not _marker_token(tokenizer)

    def plain(text: str) -> list[int]:
        return tokenizer(text, add_special_tokens=False, split_special_tokens=True, verbose=False)[
            "input_ids"
        ]

    def encode(text: str) -> tuple[int, ...]:
        try:
            text.encode()
        except UnicodeEncodeError as error:
            raise InputError(f"text {text[:40]!r} is not valid Unicode: {error}") from error
        if marker_is_text:
            # This tokenizer reads the marker as plain words, so typed text must not hold them.
            text = text.replace(OUTCOME_TEXT, "(outcome)")
        ids = plain(text)
        if not special_ids.isdisjoint(ids):
            # Markup that the tokenizer does not call special: split its names into two texts.
            # A name that is one token nevertheless is dropped.
            ids = [token for part in inside.split(text) for token in plain(part)]
            ids = [token for token in ids if token not in special_ids]
        return tuple(ids)

    return encode
