"""A tokenizer's own chat template as token segments.

Markup (what the template writes around a turn) is tokenised once; what is said is tokenised
alone, with every special token in it taken as plain text. So nothing typed can become markup, and
a new turn costs its own tokens: template(history + turn) = template(history) + segment(turn).
Where a template does not add up like this, whole histories are rendered per call, with one
warning (`additive` is False).

A template knows two speakers: "own" is the one that the model speaks as (the assistant), "other"
is the one it hears (the user). Who of the dialogue is which is `ixjax.dialogue.chat.View`'s.
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
    Said,
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

OUTCOME_TEXT = "[outcome]"  # announces the closing line where the tokenizer has no token for it
CACHED_TEXTS = 1 << 16


@dataclasses.dataclass(frozen=True)
class Segment:
    """A stretch of tokens.

    tokens: [T] token ids.
    scored: [T] whether this speaker is trained on the token.
    """

    tokens: tuple[int, ...]
    scored: tuple[bool, ...]

    @classmethod
    def read(cls, tokens: Sequence[int]) -> Segment:
        """Tokens that are given, not learnt."""
        return cls(tuple(tokens), (False,) * len(tokens))

    @classmethod
    def learnt(cls, tokens: Sequence[int]) -> Segment:
        """Tokens that this speaker is trained to say."""
        return cls(tuple(tokens), (True,) * len(tokens))

    @classmethod
    def join(cls, segments: Sequence[Segment]) -> Segment:
        """The segments, one behind the other."""
        return cls(
            tuple(token for segment in segments for token in segment.tokens),
            tuple(scored for segment in segments for scored in segment.scored),
        )


@dataclasses.dataclass(frozen=True, eq=False)
class ChatTemplate:
    """How turns become tokens, for one tokenizer. Build it with `from_tokenizer`."""

    tokenizer: PreTrainedTokenizerFast = dataclasses.field(repr=False)
    """The Hugging Face tokenizer that owns the template."""
    pad_id: int
    """Fills rows; never an end token. Masks come from lengths, never from this id."""
    end_ids: tuple[int, ...]
    """What ends a turn; the first is what the template writes, any other stops a turn too."""
    marker_ids: tuple[int, ...]
    """Announces the closing outcome line."""
    own_prefix: tuple[int, ...]
    """Cue: from here on this speaker speaks."""
    own_suffix: tuple[int, ...]
    """Behind this speaker's words; contains `end_ids[0]`."""
    other_prefix: tuple[int, ...]
    """Before the other's words."""
    other_suffix: tuple[int, ...]
    """Behind the other's words."""
    system_prefix: tuple[int, ...]
    """Everything before the system text, with the begin token where the template has one."""
    system_suffix: tuple[int, ...]
    """Behind the system text; if `joined`, it leads into the words of the other's first turn."""
    joined: bool
    """The system text and the other's first words share one message."""
    takes_system: bool
    """Else the system text is put before the other's first words."""
    opens_own: bool
    """Else a neutral turn of the other's goes before an opening turn of this speaker's."""
    additive: bool
    """Whether segments add up; else a history is rendered anew to append to it."""
    special_ids: frozenset[int] = dataclasses.field(repr=False)
    """Tokens that typed text never becomes and decoded text never shows."""
    encode_text: Callable[[str], tuple[int, ...]] = dataclasses.field(repr=False)
    """`encode`, cached."""

    @classmethod
    def from_tokenizer(cls, tokenizer: PreTrainedTokenizerFast) -> ChatTemplate:
        """Read the segments off a tokenizer's chat template.

        Raises:
            InputError: the template cannot render a dialogue, leaves out what is said, or does
                not close a turn with a special token.

        Warns:
            UserWarning: the template is not additive, or the tokenizer splits markup and words
                otherwise when they stand alone.
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
        """Tokens of what somebody said; no special token is ever among them.

        Raises:
            InputError: `text` is no valid Unicode (a lone surrogate).
        """
        return list(self.encode_text(text))

    def decode(self, tokens: Sequence[int]) -> str:
        """The text of `tokens` up to the first end token, without special tokens, stripped."""
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
        """Everything before the first turn: the begin token and the system text.

        Args:
            system: the speaker's instructions.
            own_first: this speaker has the first turn; a neutral turn of the other's is put
                before it where the template demands one.
        """
        head = [*self.system_prefix, *self.encode_text(system.strip()), *self.system_suffix]
        if own_first and not self.opens_own:
            head += self.other(NEUTRAL, first=True)
        return head

    def own(self, text: str) -> Segment:
        """A turn of this speaker's, whole: its words and the end token are learnt."""
        words = Segment.learnt(self.encode_text(text.strip()))
        return Segment.join([Segment.read(self.own_prefix), words, self.closing(scored=True)])

    def closing(self, *, scored: bool) -> Segment:
        """`own_suffix`, of which nothing but the end token is ever scored."""
        end = self.own_suffix.index(self.end_ids[0])
        places = range(len(self.own_suffix))
        return Segment(self.own_suffix, tuple(scored and place == end for place in places))

    def other(self, text: str, *, first: bool = False) -> list[int]:
        """A turn of the other's, whole.

        Args:
            text: the other's words.
            first: right behind the opening, which may have begun the message already (`joined`).
        """
        prefix = () if first and self.joined else self.other_prefix
        return [*prefix, *self.encode_text(text.strip()), *self.other_suffix]

    def segments(self, system: str | None, turns: Sequence[Said], *, cue: bool) -> list[Segment]:
        """A history in segments, from the begin token on.

        Args:
            system: the speaker's instructions; None: none are given, and the template may write
                its own.
            turns: the oldest first.
            cue: this speaker speaks next; without turns, it also opens the dialogue.

        Raises:
            InputError: the template refuses these roles in this order.
        """
        adds_up = self.additive or not (turns or cue)
        if system is None or not (adds_up and _alternate(turns, cue)):
            return self._whole(system, turns, cue=cue)
        own_first = turns[0].own if turns else cue
        segments = [Segment.read(self.opening(system, own_first=own_first))]
        for number, (own, text) in enumerate(turns):
            said = self.own(text) if own else Segment.read(self.other(text, first=number == 0))
            segments.append(said)
        if cue:
            segments.append(Segment.read(self.own_prefix))
        return segments

    def messages(
        self, system: str | None, turns: Sequence[Said], *, cue: bool
    ) -> list[dict[str, str]]:
        """The same history as `tokenizer.apply_chat_template` takes it."""
        return build_messages(
            system, turns, cue=cue, takes_system=self.takes_system, opens_own=self.opens_own
        )

    def _whole(self, system: str | None, turns: Sequence[Said], *, cue: bool) -> list[Segment]:
        """Render all turns at once, where segments do not add up."""
        said = [*([] if system is None else [Said(False, system)]), *turns]
        slots = [Said(turn.own, slot(number)) for number, turn in enumerate(said)]
        given = None if system is None else slots.pop(0).text
        text = render(self.tokenizer, self.messages(given, slots, cue=cue), cue=cue)
        segments, own = [], False
        for markup, number in cut(text, len(said)):
            tokens = _markup_ids(self.tokenizer, markup)
            end = tokens.index(self.end_ids[0]) if own and self.end_ids[0] in tokens else -1
            segments.append(Segment(tokens, tuple(place == end for place in range(len(tokens)))))
            if number is not None:
                own = said[number].own
                words = self.encode_text(said[number].text.strip())
                segments.append(Segment.learnt(words) if own else Segment.read(words))
        return segments

    def _warn_of_differences(self, markup: Markup) -> None:
        if not markup.additive:
            warnings.warn(
                "the tokenizer's chat template is not additive: it writes a turn differently "
                "once others follow it. Histories are rendered whole at every turn, which is "
                "correct, but slower",
                stacklevel=3,
            )
        for turns in _SAMPLES:
            segments = Segment.join(self.segments("Be kind.", turns, cue=True))
            messages = self.messages("Be kind.", turns, cue=True)
            whole = _markup_ids(self.tokenizer, render(self.tokenizer, messages, cue=True))
            if segments.tokens != whole:
                warnings.warn(
                    "the tokenizer splits words and markup otherwise when they stand alone; a "
                    "pretrained model sees slightly other tokens than from its chat template "
                    f"({len(segments.tokens)} against {len(whole)} in a short dialogue)",
                    stacklevel=3,
                )
                return


def _alternate(turns: Sequence[Said], cue: bool) -> bool:
    """Whether no side speaks twice in a row."""
    own = [turn.own for turn in turns] + [True] * cue
    return all(a != b for a, b in itertools.pairwise(own))


_SAMPLES = (
    [],
    [Said(False, "Hello there.")],
    [Said(False, "I am 20, tired ..."), Said(True, "How come?"), Said(False, "(work)")],
    [Said(True, "Hi!"), Said(False, "No idea: 3 things.")],
)


def _markup_ids(tokenizer: PreTrainedTokenizerFast, text: str) -> tuple[int, ...]:
    """Tokens of markup, special tokens included; none is added around it."""
    return tuple(tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"])


def _named_id(tokenizer: PreTrainedTokenizerFast, name: str) -> int | None:
    """The id of the tokenizer's `pad`, `eos`, ... token."""
    token = getattr(tokenizer, f"{name}_token_id", None)
    return None if token is None else int(token)


def _special_ids(tokenizer: PreTrainedTokenizerFast, markup_ids: Sequence[int]) -> frozenset[int]:
    added = tokenizer.added_tokens_decoder
    special = {token for token, content in added.items() if content.special}
    # Some folders list their turn tokens as ordinary added ones: used as markup, they are markup.
    special |= set(tokenizer.all_special_ids) | (set(markup_ids) & set(added))
    special |= set(_marker_token(tokenizer))
    # An unknown character is no markup.
    return frozenset(special - {_named_id(tokenizer, "unk")})


def _end_ids(
    tokenizer: PreTrainedTokenizerFast, own_suffix: Sequence[int], special_ids: frozenset[int]
) -> tuple[int, ...]:
    end = next((token for token in own_suffix if token in special_ids), None)
    if end is None:
        raise InputError(
            "the tokenizer's chat template does not close an assistant message with a special "
            f"token (it writes {tokenizer.decode(list(own_suffix))!r}); add one to the template, "
            "so that a model can learn where its turn ends"
        )
    eos = _named_id(tokenizer, "eos")
    return (end,) if eos is None or eos == end else (end, eos)


def _pad_id(tokenizer: PreTrainedTokenizerFast, end_ids: Sequence[int]) -> int:
    """The pad token, unless it ends turns as well (a common makeshift): then any other token."""
    named = (_named_id(tokenizer, "pad"), _named_id(tokenizer, "unk"))
    candidates = (*named, *range(len(end_ids) + 1))
    return next(token for token in candidates if token is not None and token not in end_ids)


def _marker_token(tokenizer: PreTrainedTokenizerFast) -> tuple[int, ...]:
    """The one token of the marker, or nothing."""
    ids = _markup_ids(tokenizer, OUTCOME)
    return ids if len(ids) == 1 and ids[0] != _named_id(tokenizer, "unk") else ()


def _marker_ids(tokenizer: PreTrainedTokenizerFast) -> tuple[int, ...]:
    return _marker_token(tokenizer) or _markup_ids(tokenizer, OUTCOME_TEXT + " ")


def _text_encoder(
    tokenizer: PreTrainedTokenizerFast, special_ids: frozenset[int]
) -> Callable[[str], tuple[int, ...]]:
    """A function from typed text to tokens without any of `special_ids`."""
    names = [str(name) for name in tokenizer.convert_ids_to_tokens(sorted(special_ids))]
    # The empty place behind the first character of a special token's name.
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
            # Only other words can be told from a marker that is plain words to this tokenizer.
            text = text.replace(OUTCOME_TEXT, "(outcome)")
        ids = plain(text)
        if not special_ids.isdisjoint(ids):
            # Markup that the tokenizer does not call special: take its names apart. What is one
            # token even so cannot be said.
            ids = [token for part in inside.split(text) for token in plain(part)]
            ids = [token for token in ids if token not in special_ids]
        return tuple(ids)

    return encode
