"""A conversation in the terminal: lines in, words out as they are sampled, and a few commands."""

from __future__ import annotations

import contextlib
import dataclasses
import itertools
import math
from collections.abc import Callable, Iterable
from pathlib import Path

from rich.cells import cell_len
from rich.console import Console

from ixjax.commands.printable import printable
from ixjax.dialogue.corpora import add_dialogue
from ixjax.dialogue.types import ROLES, Turn
from ixjax.generation import TurnTaking
from ixjax.io import InputError
from ixjax.search import ThinkingSession

HELP = """/undo         takes back the last exchange
/restart      begins the dialogue again
/save [FILE]  writes the dialogue, in the form of your own corpus
/why          shows what the policy considered for its last turn (with --think)
/help         shows this
/quit         ends, as Ctrl-D and Ctrl-C do
//...         says a line that begins with /"""
LONGEST_WORD = 30  # cells held back before they are shown; a longer one may be broken anywhere


class Conversation:
    """A session in a terminal.

    Args:
        session: the dialogue.
        console: where to print.
        read: asks for a line with a prompt; raises EOFError at the end, as `input` does.
        folder: where `/save` writes without a name.
        name: of the dialogue in its record; every restart numbers another.
    """

    def __init__(
        self,
        session: TurnTaking,
        console: Console,
        read: Callable[[str], str],
        *,
        folder: Path,
        name: str,
    ):
        self._session = session
        self._console = console
        self._read = read
        self._folder = folder
        self._name, self._number = name, 1
        self._commands: dict[str, Callable[[str], None]] = {
            "/undo": self._undo,
            "/restart": self._restart,
            "/save": self._save,
            "/why": self._why,
            "/help": lambda _: self._note(HELP),
            "/quit": self._quit,
        }

    def hold(self) -> None:
        """Talk until `/quit`, the end of input, or Ctrl-C."""
        try:
            self._begin()
            while True:
                line = self._line()
                if line.startswith("/") and not line.startswith("//"):
                    self._command(line)
                elif line:
                    self._say(line.removeprefix("/") if line.startswith("//") else line)
        except (EOFError, KeyboardInterrupt):
            self._console.print()

    def _prompt(self) -> str:
        # The line editor counts no columns for text between \x01 and \x02.
        return "\x01\x1b[1m\x02you:\x01\x1b[0m\x02 " if self._console.is_terminal else "you: "

    def _line(self) -> str:
        try:
            return self._read(self._prompt()).strip()
        except UnicodeDecodeError as error:
            self._note(f"not said: the line is not {error.encoding} text")
            return ""

    def _begin(self) -> None:
        for turn in self._session.dialogue.turns:
            self._show(turn)
        if self._session.dialogue.turns and self._session.person == "policy":
            self._note_outcome()
        if self._session.model_moves:
            self._hear(self._session.move())

    def _command(self, line: str) -> None:
        name, _, rest = line.partition(" ")
        if rest.strip() and name in self._commands and name != "/save":
            self._note(f"{name} takes no argument; nothing was done")
        elif name in self._commands:
            self._commands[name](rest.strip())
        else:
            self._note(f"there is no {name}; /help lists the commands, // says a line with /")

    def _say(self, text: str) -> None:
        if self._session.ended:
            self._note("the dialogue is over: /restart, /undo, /save or /quit")
        else:
            self._hear(self._session.say(text))

    def _hear(self, pieces: Iterable[str]) -> None:
        """Print the model's turn as it is sampled, and its outcome."""
        role, forgotten, coming = self._session.role, self._session.dropped_turns, iter(pieces)
        try:
            with self._console.status(f"the {role} thinks"):
                first = next(coming, "")
            self._print(role, itertools.chain([first], coming))
        except InputError as error:
            self._note(f"not said: {error}")
            return
        if self._session.dropped_turns > forgotten:
            self._note("(the context is full: the model has forgotten the oldest turns)")
        if self._session.last is not None and self._session.last.truncated:
            self._note("(cut: the turn has --sampling.max-new-tokens tokens)")
        if self._session.ended:
            self._note(f"(the {role} has left)")
        if self._session.person == "policy":
            self._note_outcome()

    def _note_outcome(self) -> None:
        reading = self._session.outcome()
        unit = self._session.scenario.outcome_unit
        if math.isnan(reading.engagement):
            self._note("(outcome: unreadable)")
        else:
            self._note(f"(engagement {reading.engagement:.2f}, {unit} {reading.value:.2f})")

    def _undo(self, _: str) -> None:
        if not self._session.undo():
            self._note("there is nothing to take back")
            return
        self._note("taken back")
        if self._session.dialogue.turns:
            self._show(self._session.dialogue.turns[-1])

    def _restart(self, _: str) -> None:
        self._session.restart()
        self._number += 1
        self._note("from the beginning")
        self._begin()

    def _save(self, name: str) -> None:
        dialogue = self._session.dialogue
        if {turn.role for turn in dialogue.turns} != set(ROLES):
            self._note("not saved: a dialogue has turns of both sides, and one has none yet")
            return
        named = dataclasses.replace(dialogue, id=f"{self._name}-{self._number}")
        path = Path(name).expanduser() if name else self._folder / f"{self._name}.jsonl"
        try:
            count = add_dialogue(path, named)
        except (InputError, OSError) as error:
            self._note(f"not saved: {error}")
            return
        self._note(f"saved as {named.id} in {path} (dialogues in it: {count})")
        if not dialogue.condition.attributes:
            self._note("its condition is empty: describe the user there before you train on it")

    def _why(self, _: str) -> None:
        if not isinstance(self._session, ThinkingSession):
            self._note("nothing was considered: --think N lets the policy search before its turns")
        elif not self._session.considered:
            self._note("nothing was considered: the policy has not spoken yet")
        else:
            self._note("mean return  visits  response (the first was said)")
            for response in self._session.considered:
                mean = f"{response.value:.2f}" if response.visits else "unreadable"
                text = " ".join(response.text.split())
                self._note(f"{mean:>11}  {response.visits:>6}  {text}")

    def _quit(self, _: str) -> None:
        raise EOFError

    def _show(self, turn: Turn) -> None:
        own = turn.role == self._session.person
        self._print("you" if own else turn.role, [turn.text])

    def _print(self, who: str, pieces: Iterable[str]) -> None:
        self._console.print(f"{who}:", style="bold" if who == "you" else "bold cyan", end=" ")
        with _Lines(self._console, indent=len(who) + 2) as lines:
            for piece in pieces:
                lines.add(piece)

    def _note(self, text: str) -> None:
        self._console.print(printable(text), style="dim", soft_wrap=True)


class _Lines(contextlib.AbstractContextManager):
    """Prints text word by word as it comes, and breaks lines between words."""

    def __init__(self, console: Console, *, indent: int):
        self._console = console
        self._indent = indent
        self._column = indent
        self._space, self._word = "", ""

    def add(self, piece: str) -> None:
        for character in printable(piece):
            if character.isspace():
                self._flush()
                self._space = "\n" if "\n" in (self._space, character) else " "
            else:
                self._word += character
                if cell_len(self._word) >= LONGEST_WORD:
                    self._flush()

    def _flush(self) -> None:
        if not self._word:
            return
        width = cell_len(self._word)
        full = self._column + len(self._space) + width >= self._console.width
        if self._space and (full or self._space == "\n"):
            self._space, self._column = "\n" + " " * self._indent, 0
        self._console.print(self._space + self._word, end="", soft_wrap=True)
        self._column += len(self._space.lstrip("\n")) + width
        self._space = self._word = ""

    def __exit__(self, *_: object) -> None:
        self._flush()
        self._console.print()
