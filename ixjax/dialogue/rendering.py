"""What a tokenizer's chat template writes, as strings.

The template is a program (Jinja) that only shows what it does by doing it: here it renders
placeholder texts, and the markup is what lies between them. Four peculiarities are met: templates
that refuse a system message (Gemma 2) or put it into the first user turn (Gemma 3, Llama 2),
that refuse to open with the assistant, that add a default system text (Qwen 2), and those that
write a turn differently once another follows it (not additive).
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

NEUTRAL = "(The conversation begins.)"  # said by nobody, where a template must open with a user
FOLD = "\n\n"  # between the system text and the turn that carries it
# Llama 3.2 writes today's date into every prompt, unless told: a run must not depend on the day.
FIXED_DATE = "26 Jul 2024"
_SLOT = re.compile(r"ixjaxslot(\d{4})end")


class Said(NamedTuple):
    """One turn as a speaker sees it: its own, or the other side's."""

    own: bool
    text: str


def slot(number: int) -> str:
    """A text that stands for what is said; 0 is the system text, turns count from 1."""
    return f"ixjaxslot{number:04d}end"


def cut(text: str, slots: int) -> list[tuple[str, int | None]]:
    """Cut a rendering at its slots into (markup, slot behind it); the last has None behind it.

    Raises:
        InputError: some slot does not occur exactly once.
    """
    pieces = _SLOT.split(text)
    markup, numbers = pieces[::2], [int(number) for number in pieces[1::2]]
    if sorted(numbers) != list(range(slots)):
        raise InputError(
            "the tokenizer's chat template leaves out or repeats messages: of "
            f"{slots} messages it writes those numbered {numbers}; give it another chat template"
        )
    return list(zip(markup, [*numbers, None], strict=True))


def build_messages(
    system: str | None, turns: Sequence[Said], *, cue: bool, takes_system: bool, opens_own: bool
) -> list[dict[str, str]]:
    """A history as `apply_chat_template` takes it.

    Args:
        system: the speaker's instructions; None: there are none.
        turns: the oldest first.
        cue: this speaker speaks next.
        takes_system: else the system text is put before the other's first words.
        opens_own: else a neutral turn of the other's goes before an opening turn of one's own.
    """
    own_first = turns[0].own if turns else cue
    if own_first and not opens_own:
        turns = [Said(False, NEUTRAL), *turns]
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
    """The chat template's text of `messages`.

    Raises:
        InputError: the template refuses them.
    """
    try:
        text = tokenizer.apply_chat_template(
            list(messages), tokenize=False, add_generation_prompt=cue, date_string=FIXED_DATE
        )
    except Exception as error:  # templates raise their own errors, and whatever Jinja does
        roles = [message["role"] for message in messages]
        place = f"{tokenizer.name_or_path}: " if tokenizer.name_or_path else ""
        raise InputError(
            f"{place}the tokenizer's chat template refuses messages of the roles {roles}: {error}"
        ) from error
    return str(text)


@dataclasses.dataclass(frozen=True)
class Markup:
    """A chat template's markup, read off its renderings by `read_markup`."""

    takes_system: bool
    opens_own: bool
    joined: bool
    """The system text and the other's first words share one message."""
    additive: bool
    """Whether the parts below, put together, are what the template writes."""
    system_prefix: str
    system_suffix: str
    other_prefix: str
    other_suffix: str
    own_prefix: str
    own_suffix: str


def read_markup(tokenizer: PreTrainedTokenizerFast) -> Markup:
    """Find how the tokenizer's chat template writes each role.

    Raises:
        InputError: it cannot render a dialogue, or leaves out what is said.
    """
    user_first = [Said(False, slot(1))]
    takes_system = _accepts(tokenizer, user_first, takes_system=True, opens_own=True)
    opens_own = takes_system and all(
        _accepts(tokenizer, turns, takes_system=True, opens_own=True)
        for turns in ([], [Said(True, slot(1)), Said(False, slot(2))])
    )

    def pieces(turns: int, *, cue: bool) -> list[str]:
        said = [Said(number % 2 == 1, slot(number + 1)) for number in range(turns)]
        messages = build_messages(
            slot(0), said, cue=cue, takes_system=takes_system, opens_own=opens_own
        )
        return [markup for markup, _ in cut(render(tokenizer, messages, cue=cue), turns + 1)]

    # Five pieces of a dialogue other, own, other: around and between its four texts.
    system_prefix, before_first, _, between, behind = pieces(3, cue=True)
    other_suffix, own_suffix = pieces(1, cue=False)[-1], pieces(2, cue=False)[-1]
    other_prefix = between.removeprefix(own_suffix)
    # A system message of its own ends where the other's turn begins as any later one does.
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
        own_prefix=behind.removeprefix(other_suffix),
        own_suffix=own_suffix,
    )
    return dataclasses.replace(markup, additive=_adds_up(tokenizer, markup))


def _accepts(
    tokenizer: PreTrainedTokenizerFast,
    turns: Sequence[Said],
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
    """Compare whole renderings with joined parts, for every way to come to this speaker's move.

    Histories end with the other's turn and the cue, since that is all that is ever spoken from;
    that some templates dress up an answer while it is the last one (Qwen 3) does no harm.
    """
    for length in range(7):
        # The turn before the cue is the other's: own and other alternate backwards from there.
        said = [Said((length - i) % 2 == 0, slot(i + 1)) for i in range(length)]
        messages = build_messages(
            slot(0), said, cue=True, takes_system=markup.takes_system, opens_own=markup.opens_own
        )
        if render(tokenizer, messages, cue=True) != _joined(markup, said):
            return False
    return True


def _joined(markup: Markup, said: Sequence[Said]) -> str:
    turns = list(said)
    if not markup.opens_own and (not turns or turns[0].own):
        turns.insert(0, Said(False, NEUTRAL))
    text = markup.system_prefix + slot(0) + markup.system_suffix
    for number, turn in enumerate(turns):
        if turn.own:
            text += markup.own_prefix + turn.text + markup.own_suffix
        else:
            prefix = "" if markup.joined and number == 0 else markup.other_prefix
            text += prefix + turn.text + markup.other_suffix
    return text + markup.own_prefix
