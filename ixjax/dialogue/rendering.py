"""The markup of a tokenizer's chat template, as strings.

The template is a program (Jinja), so its markup is found by running it: it renders placeholder
texts, and the markup is the text between them. Four kinds of templates need special treatment:
those that refuse a system message (Gemma 2) or put it into the first user turn (Gemma 3, Llama 2);
those that refuse to open with the assistant; those that add a default system text (Qwen 2); and
those that write a turn differently when another follows it (not additive).
https://huggingface.co/docs/transformers/chat_templating
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple

from ixjax.io import InputError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

NEUTRAL = "(The conversation begins.)"  # the user's turn if a template must open with the user
FOLD = "\n\n"  # between the system text and the turn that carries it
# Llama 3.2 writes today's date into every prompt by default: a run must not depend on the day.
FIXED_DATE = "26 Jul 2024"
_SLOT = re.compile(r"ixjaxslot(\d{4})end")


class SpeakerTurn(NamedTuple):
    """One turn as a speaker sees it: spoken by the speaker (`own`) or by the other side."""

    own: bool
    text: str


def slot(number: int) -> str:
    """Return the placeholder of a message; 0 is the system text, turns count from 1."""
    return f"ixjaxslot{number:04d}end"


def cut(text: str, slots: int) -> list[tuple[str, int | None]]:
    """Split a rendering at its slots into (markup, slot after it); the last has None.

    Raises:
        InputError: some slot does not occur exactly once.
    """
    pieces = _SLOT.split(text)
    markup, numbers = pieces[::2], [int(number) for number in pieces[1::2]]
    if sorted(numbers) != list(range(slots)):
        raise InputError(
            f"the tokenizer's chat template writes messages {numbers}; expected each of "
            f"0 to {slots - 1} once: it leaves out or repeats messages. Use another chat template"
        )
    return list(zip(markup, [*numbers, None], strict=True))


def build_messages(
    system: str | None,
    turns: Sequence[SpeakerTurn],
    *,
    cue: bool,
    takes_system: bool,
    opens_own: bool,
) -> list[dict[str, str]]:
    """Return a history as messages for `apply_chat_template`.

    Args:
        system: the speaker's instructions; None: there are none.
        turns: the oldest first.
        cue: whether this speaker speaks next.
        takes_system: see `Markup`.
        opens_own: see `Markup`.
    """
    own_first = turns[0].own if turns else cue
    if own_first and not opens_own:
        turns = [SpeakerTurn(False, NEUTRAL), *turns]
    messages = [{"role": "assistant" if own else "user", "content": text} for own, text in turns]
    if system is None:
        return messages
    if takes_system:
        return [{"role": "system", "content": system}, *messages]
    if not messages:
        return [{"role": "user", "content": system}]
    return [{"role": "user", "content": system + FOLD + messages[0]["content"]}, *messages[1:]]


def render(
    tokenizer: PreTrainedTokenizerFast, messages: Sequence[dict[str, str]], *, cue: bool
) -> str:
    """Render `messages` by the tokenizer's chat template.

    Raises:
        InputError: the template refuses them.
    """
    try:
        text = tokenizer.apply_chat_template(
            list(messages), tokenize=False, add_generation_prompt=cue, date_string=FIXED_DATE
        )
    except Exception as error:  # templates raise errors of any type
        roles = [message["role"] for message in messages]
        place = f"{tokenizer.name_or_path}: " if tokenizer.name_or_path else ""
        raise InputError(
            f"{place}the tokenizer's chat template refuses messages of the roles {roles}: {error}"
        ) from error
    return str(text)


@dataclasses.dataclass(frozen=True)
class Markup:
    """A chat template's markup, as `read_markup` found it."""

    takes_system: bool
    """Whether there are system messages; if not, the system text precedes the other's words."""
    opens_own: bool
    """Whether this speaker may open; if not, a neutral turn of the other precedes its opening."""
    joined: bool
    """Whether the system text and the other's first words share one message."""
    additive: bool
    """Whether the concatenated parts below equal the template's rendering."""
    system_prefix: str
    system_suffix: str
    other_prefix: str
    other_suffix: str
    own_prefix: str
    own_suffix: str


def read_markup(tokenizer: PreTrainedTokenizerFast) -> Markup:
    """Find how the tokenizer's chat template writes each role.

    Raises:
        InputError: it cannot render a dialogue, or leaves out a message.
    """
    user_first = [SpeakerTurn(False, slot(1))]
    takes_system = _accepts(tokenizer, user_first, takes_system=True, opens_own=True)
    opens_own = takes_system and all(
        _accepts(tokenizer, turns, takes_system=True, opens_own=True)
        for turns in ([], [SpeakerTurn(True, slot(1)), SpeakerTurn(False, slot(2))])
    )

    def pieces(turns: int, *, cue: bool) -> list[str]:
        said = [SpeakerTurn(number % 2 == 1, slot(number + 1)) for number in range(turns)]
        messages = build_messages(
            slot(0), said, cue=cue, takes_system=takes_system, opens_own=opens_own
        )
        return [markup for markup, _ in cut(render(tokenizer, messages, cue=cue), turns + 1)]

    # Markup before, between and after the four texts of system, other, own, other.
    system_prefix, before_first, _, between, after_last = pieces(3, cue=True)
    other_suffix, own_suffix = pieces(1, cue=False)[-1], pieces(2, cue=False)[-1]
    other_prefix = between.removeprefix(own_suffix)
    # If the system text has its own message, the other's first turn begins like any later one.
    joined = not takes_system or not before_first.endswith(other_prefix)
    markup = Markup(
        takes_system=takes_system,
        opens_own=opens_own and not joined,
        joined=joined,
        additive=True,
        system_prefix=system_prefix,
        system_suffix=before_first if joined else before_first.removesuffix(other_prefix),
        other_prefix=other_prefix,
        other_suffix=other_suffix,
        own_prefix=after_last.removeprefix(other_suffix),
        own_suffix=own_suffix,
    )
    return dataclasses.replace(markup, additive=_adds_up(tokenizer, markup))


def _accepts(
    tokenizer: PreTrainedTokenizerFast,
    turns: Sequence[SpeakerTurn],
    *,
    takes_system: bool,
    opens_own: bool,
) -> bool:
    messages = build_messages(
        slot(0), turns, cue=True, takes_system=takes_system, opens_own=opens_own
    )
    try:
        cut(render(tokenizer, messages, cue=True), len(turns) + 1)
    except InputError:
        return False
    return True


def _adds_up(tokenizer: PreTrainedTokenizerFast, markup: Markup) -> bool:
    """Return whether joined parts equal the whole rendering, for histories of up to 6 turns.

    Histories end with the other's turn and the cue, the only ones that a speaker continues; some
    templates write an answer differently while it is the last message (Qwen 3), which is harmless.
    """
    for length in range(7):
        # The turn before the cue is the other's; own and other alternate before it.
        said = [SpeakerTurn((length - i) % 2 == 0, slot(i + 1)) for i in range(length)]
        messages = build_messages(
            slot(0), said, cue=True, takes_system=markup.takes_system, opens_own=markup.opens_own
        )
        if render(tokenizer, messages, cue=True) != _joined(markup, said):
            return False
    return True


def _joined(markup: Markup, said: Sequence[SpeakerTurn]) -> str:
    turns = list(said)
    if not markup.opens_own and (not turns or turns[0].own):
        turns.insert(0, SpeakerTurn(False, NEUTRAL))
    text = markup.system_prefix + slot(0) + markup.system_suffix
    for number, turn in enumerate(turns):
        if turn.own:
            text += markup.own_prefix + turn.text + markup.own_suffix
        else:
            prefix = "" if markup.joined and number == 0 else markup.other_prefix
            text += prefix + turn.text + markup.other_suffix
    return text + markup.own_prefix
