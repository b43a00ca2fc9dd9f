"""Blind comparison of two methods by human raters.

An item is one held-out condition: a dialogue of each method with the same user, named A and B. The
assignment is random and balanced over the items, and recorded in the key only. Raters choose A, B
or a tie.
"""

from __future__ import annotations

import csv
import dataclasses
import io as text_io
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np

from ixjax import io
from ixjax.dialogue.types import Dialogue
from ixjax.evaluation.play import Played
from ixjax.io import InputError

RATINGS_SCHEMA = "ixjax.ratings"
CHOICES = ("A", "B", "tie")
# A possible start of a spreadsheet cell (after any delimiter), and a character of a formula.
_FORMULA = re.compile("(^|[;\t\n])(\\s*)([=+\\-@\uff1d\uff0b\uff0d\uff20])")
COLUMNS = ("task", "item", "condition", "A", "B", "choice", "comment")
DELIMITERS = ",;\t"  # of tables saved by spreadsheets, which depend on the locale

Choice = Literal["A", "B", "tie"]


@dataclasses.dataclass(frozen=True)
class RatingConfig:
    """The comparison that raters make."""

    methods: tuple[str, str] = ("sft", "dpo_imcts")
    """The two methods; win rates are of the second one."""
    user: str = "simulator_heldout"
    """The user whose dialogues with both methods are compared."""
    count: int = 50
    """Items, drawn from the held-out conditions; all if there are fewer."""
    order_seed: int = 0
    """Seed of the draw, of the order of the items, and of which dialogue is A."""
    question: str = "In which dialogue does the user get more out of it?"
    """Question that raters are asked."""

    def __post_init__(self) -> None:
        """Refuse invalid settings."""
        if self.methods[0] == self.methods[1]:
            raise InputError(f"methods are both {self.methods[0]!r}; expected two different ones")
        if self.count < 1:
            raise InputError(f"count is {self.count}; expected 1 or more")
        if self.order_seed < 0:
            raise InputError(f"order_seed is {self.order_seed}; expected 0 or more")
        if not self.question.strip():
            raise InputError("question is empty; expected a question to the raters")


@dataclasses.dataclass(frozen=True)
class Item:
    """Two dialogues under one condition.

    id: number in the order shown; it does not reveal the methods.
    dialogues: A and B.
    methods: of A and of B.
    """

    id: str
    dialogues: tuple[Dialogue, Dialogue]
    methods: tuple[str, str]


def draw_items(
    first: Sequence[Played], second: Sequence[Played], config: RatingConfig
) -> tuple[list[Item], int]:
    """Draw conditions, and assign A and B.

    Args:
        first: dialogues of `config.methods[0]`; of each condition, the first sample is taken.
        second: those of the other method with the same user.
        config: see `RatingConfig`.

    Returns:
        The items in the order shown, and the number of conditions left out because their two
        dialogues are equal.
    """
    theirs = {p.condition: p.dialogue for p in second if p.sample == 0}
    both = [
        (p.dialogue, theirs[p.condition]) for p in first if p.sample == 0 and p.condition in theirs
    ]
    differing = [pair for pair in both if pair[0].turns != pair[1].turns]
    random = np.random.default_rng(config.order_seed)
    drawn = [differing[i] for i in random.permutation(len(differing))[: config.count]]
    swapped = random.permutation(np.arange(len(drawn)) % 2 == 1)
    items = []
    one, other = config.methods
    for i, ((first_said, second_said), swap) in enumerate(zip(drawn, swapped, strict=True)):
        name = f"item-{i + 1:03d}"
        if swap:
            items.append(Item(name, (second_said, first_said), (other, one)))
        else:
            items.append(Item(name, (first_said, second_said), (one, other)))
    return items, len(both) - len(differing)


def task_of(items: Sequence[Item], question: str) -> dict[str, Any]:
    """Return the task for raters as JSON; it does not reveal the methods."""
    shown = [
        {
            "id": item.id,
            "condition": dict(item.dialogues[0].condition.attributes),
            **{
                name: [[turn.role, turn.text] for turn in dialogue.turns]
                for name, dialogue in zip("AB", item.dialogues, strict=True)
            },
        }
        for item in items
    ]
    return {
        "schema": RATINGS_SCHEMA,
        "version": io.SCHEMA_VERSION,
        "task": f"task-{io.fingerprint(question, shown)}",  # never a number to a spreadsheet
        "question": question,
        "items": shown,
    }


def task_csv(task: Mapping[str, Any]) -> str:
    """Return the task as a table with two empty columns, for raters who prefer a spreadsheet.

    Dialogues are untrusted text, so no cell may be a formula, even if a spreadsheet splits the file
    at semicolons, tabs or lines. An apostrophe precedes each possible formula.
    """
    text = text_io.StringIO()
    table = csv.writer(text, lineterminator="\n", quoting=csv.QUOTE_ALL)
    table.writerow(COLUMNS)
    for item in task["items"]:
        condition = "; ".join(f"{name}: {value}" for name, value in item["condition"].items())
        said = ["\n".join(f"{role}: {line}" for role, line in item[name]) for name in "AB"]
        row = [task["task"], item["id"], f"user with {condition}", *said, "", ""]
        table.writerow([_harmless(cell) for cell in row])
    return text.getvalue()


def _harmless(cell: str) -> str:
    """Return a cell without formulas, and with line feeds as its only line ends."""
    return _FORMULA.sub(r"\1\2'\3", cell.replace("\r\n", "\n").replace("\r", "\n"))


@dataclasses.dataclass(frozen=True)
class Ratings:
    """The choices of one rater by item id, without skipped items."""

    rater: str
    choices: Mapping[str, Choice]


def read_ratings(path: str | Path, *, task: str, items: Sequence[str]) -> Ratings:
    """Read a rater's file: JSON saved by the form, or the filled-in table (CSV).

    Args:
        path: the file. One that does not begin as JSON is a table; its stem names the rater.
        task: fingerprint of the exported task.
        items: ids of its items.

    Raises:
        InputError: the file is neither, is of another task, or has an unknown item or choice.
    """
    path = Path(path)
    text = io.read_text(path)
    is_form = path.suffix.lower() == ".json" or text.lstrip().startswith("{")
    rater, rows = _from_form(path, task) if is_form else _from_table(path, text, task)
    choices: dict[str, Choice] = {}
    for where, item, choice in rows:
        if item not in items:
            raise InputError(f"{where}: item is {item!r}; expected one of those exported")
        if item in choices:
            raise InputError(f"{where}: {item} is rated twice; expected one choice")
        if choice:
            choices[item] = _choice(choice, where)
    if not choices:
        raise InputError(f"{path}: no item is rated; expected a choice for one or more")
    return Ratings(rater, choices)


def _choice(text: Any, where: str) -> Choice:
    wanted = str(text).strip().lower()
    for choice in ("A", "B", "tie"):
        if wanted == choice.lower():
            return choice
    raise InputError(f"{where}: choice is {text!r}; expected one of {', '.join(CHOICES)}")


Answers = list[tuple[str, Any, Any]]  # place in the file, item, choice


def _from_form(path: Path, task: str) -> tuple[str, Answers]:
    content = io.read_document(path, schema=RATINGS_SCHEMA)
    _check_task(content.get("task"), task, str(path))
    choices, rater = content.get("choices"), content.get("rater")
    if not isinstance(choices, dict) or not isinstance(rater, str):
        raise InputError(f"{path}: expected `rater` and `choices` as the rating form saves them")
    rows = [(f"{path}: {item}", item, choice) for item, choice in choices.items()]
    return rater.strip() or path.stem, rows


def _from_table(path: Path, text: str, task: str) -> tuple[str, Answers]:
    delimiter = max(DELIMITERS, key=text.partition("\n")[0].count)
    try:
        # Strict: an unclosed quote means that the file was cut off.
        table = list(csv.reader(text_io.StringIO(text), delimiter=delimiter, strict=True))
    except csv.Error as error:
        raise InputError(
            f"{path}: not a whole table ({error}); expected items.csv, filled in"
        ) from None
    head, *records = table or [[]]
    columns = [name.strip().lower() for name in head]
    missing = [name for name in ("task", "item", "choice") if name not in columns]
    if missing:
        raise InputError(
            f"{path}:1: no column {', '.join(missing)}; expected those exported, found {head}"
        )
    rows: Answers = []
    for number, cells in enumerate(records, start=1):
        if not "".join(cells).strip():
            continue  # spreadsheets write empty rows
        where, record = f"{path}: row {number}", dict(zip(columns, cells, strict=False))
        _check_task(record.get("task"), task, where)
        rows.append((where, record.get("item"), record.get("choice", "").strip()))
    return path.stem, rows


def _check_task(found: Any, task: str, where: str) -> None:
    if found != task:
        raise InputError(
            f"{where}: task is {found!r}; expected {task!r}, as in the run's key. The items were "
            "exported again since, or the file is of another run"
        )
