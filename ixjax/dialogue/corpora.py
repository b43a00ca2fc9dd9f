"""Corpora: choose a reader, divide dialogues into splits, read and write our dialogue files.

Training, validation and test share no situation and no participant: dialogues that share a group
are connected, and a connected set goes into one split as a whole.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Literal, get_args

import numpy as np

from ixjax import io
from ixjax.dialogue.readers import ReadingAccount, read_esconv, read_p4g, read_user_jsonl
from ixjax.dialogue.readers.jsonl import SCHEMA
from ixjax.dialogue.scenarios import get_scenario
from ixjax.dialogue.scenarios.sandbox import generate_corpus
from ixjax.dialogue.types import Dialogue

Format = Literal["auto", "esconv", "p4g", "jsonl", "sandbox"]
FORMAT_OF_SCENARIO: Mapping[str, Format] = {"esc": "esconv", "p4g": "p4g", "sandbox": "sandbox"}


@dataclasses.dataclass(frozen=True)
class DataConfig:
    """The corpus and its splits."""

    path: str = dataclasses.field(default="", metadata=io.NO_EFFECT)
    """File or folder of the corpus; the sandbox needs none."""
    format: Format = "auto"
    """Format of the corpus: esconv, p4g, jsonl (your own), sandbox; auto: by scenario and path."""
    valid_fraction: float = 0.1
    """Share of the dialogues for validation, if the corpus has no official split."""
    test_fraction: float = 0.15
    """Share of the dialogues for the test, if the corpus has no official split."""
    heldout_fraction: float = 0.4
    """Share of the training dialogues that only the held-out simulator is trained on."""
    max_dialogues: int = 0
    """Most dialogues to read, drawn by the seed; 0: all."""
    sandbox_dialogues: int = 1200
    """Dialogues that the sandbox generates."""

    def __post_init__(self) -> None:
        """Refuse fractions that leave no dialogue to train on."""
        if self.format not in get_args(Format):
            raise ValueError(
                f"format is {self.format!r}; expected one of {', '.join(get_args(Format))}"
            )
        for name in ("valid_fraction", "test_fraction", "heldout_fraction"):
            if not 0 < getattr(self, name) < 1:
                raise ValueError(
                    f"{name} is {getattr(self, name)}; expected a number above 0 and below 1"
                )
        if self.max_dialogues < 0:
            raise ValueError(f"max_dialogues is {self.max_dialogues}; expected 0 (all) or more")
        if self.sandbox_dialogues < 1:
            raise ValueError(f"sandbox_dialogues is {self.sandbox_dialogues}; expected 1 or more")
        if self.valid_fraction + self.test_fraction >= 1:
            raise ValueError(
                f"valid_fraction is {self.valid_fraction} and test_fraction {self.test_fraction}; "
                "expected a sum below 1, or nothing is left to train on"
            )


@dataclasses.dataclass(frozen=True)
class Splits:
    """A corpus divided into splits.

    train: dialogues that policy and simulator are trained on.
    train_heldout: dialogues that the held-out simulator is trained on.
    valid: dialogues for early stopping.
    test: dialogues that no model is trained on.
    moved: number of dialogues moved out of their official split, since another split shares their
        group.
    """

    train: list[Dialogue]
    train_heldout: list[Dialogue]
    valid: list[Dialogue]
    test: list[Dialogue]
    moved: int = 0


def read_corpus(
    config: DataConfig, scenario_name: str, *, seed: int
) -> tuple[list[Dialogue], ReadingAccount, dict[str, str]]:
    """Read the corpus that the configuration names.

    Returns:
        The dialogues, the account of the reading, and the official split of each id that has one.

    Raises:
        InputError: a path is missing or does not exist, or a file can't be read.
    """
    account = ReadingAccount()
    scenario = get_scenario(scenario_name)
    format_ = _format(config, scenario_name)
    official: dict[str, str] = {}
    if format_ == "sandbox":
        if config.path:
            raise io.InputError(
                f"data.path is {config.path!r}; expected none, since the sandbox generates its "
                "dialogues. Leave it out, or set --data.format jsonl for your own dialogues"
            )
        dialogues = generate_corpus(config.sandbox_dialogues, seed=seed)
        account.read = account.kept = len(dialogues)
    else:
        path = Path(config.path)
        if not config.path or not path.exists():
            found = f"{config.path}: no such file or folder" if config.path else "none is given"
            raise io.InputError(f"data.path: {found}; set --data.path to the {format_} corpus")
        if format_ == "jsonl":
            dialogues = read_user_jsonl(path, account=account, scenario=scenario)
        else:
            reader = read_esconv if format_ == "esconv" else read_p4g
            dialogues, official = reader(path, account=account)
    if config.max_dialogues and len(dialogues) > config.max_dialogues:
        order = np.random.default_rng(seed).permutation(len(dialogues))[: config.max_dialogues]
        account.dropped["above data.max_dialogues"] += len(dialogues) - len(order)
        account.kept = len(order)
        dialogues = [dialogues[i] for i in sorted(order)]
    return dialogues, account, official


def _format(config: DataConfig, scenario_name: str) -> Format:
    if config.format != "auto":
        return config.format
    if config.path.endswith(".jsonl"):
        return "jsonl"
    return FORMAT_OF_SCENARIO.get(scenario_name, "jsonl")


def split_corpus(
    dialogues: Sequence[Dialogue],
    config: DataConfig,
    *,
    seed: int,
    official: Mapping[str, str] | None = None,
) -> Splits:
    """Divide a corpus without leakage; a function of (dialogues, config, seed).

    A connected set with official dialogues goes to test if one of them is a test dialogue, else to
    validation if one is a validation dialogue, else to training. The other sets are drawn so that
    each split has its share; a set larger than the split it is drawn for goes to training.
    """
    official = official or {}
    placed: dict[str, list[list[Dialogue]]] = {"train": [], "valid": [], "test": []}
    free, moved = [], 0
    for members in connected(dialogues):
        splits = {official.get(dialogue.id) for dialogue in members}
        home = next((name for name in ("test", "valid", "train") if name in splits), None)
        (free if home is None else placed[home]).append(members)
        moved += sum(official.get(dialogue.id, home) != home for dialogue in members)
    rng = np.random.default_rng([seed, 0])
    fractions = _fractions(config, placed)
    unplaced = sum(len(members) for members in free)
    for i in rng.permutation(len(free)):
        home = "train"
        for name in ("test", "valid"):
            target = fractions[name] * unplaced
            now = sum(len(m) for m in placed[name] if official.get(m[0].id) is None)
            if now + len(free[i]) <= max(target, 1):
                home = name
                break
        placed[home].append(free[i])
    train, heldout = _halve(placed["train"], config.heldout_fraction, seed)
    valid, test = (
        _in_order(dialogue for members in placed[name] for dialogue in members)
        for name in ("valid", "test")
    )
    return Splits(train, heldout, valid, test, moved)


def _fractions(config: DataConfig, placed: Mapping[str, Sequence]) -> dict[str, float]:
    """Return the shares of valid and test: the official split's, if there is one."""
    sizes = {name: sum(len(members) for members in sets) for name, sets in placed.items()}
    total = sum(sizes.values())
    if not total:
        return {"valid": config.valid_fraction, "test": config.test_fraction}
    return {name: sizes[name] / total for name in ("valid", "test")}


def _halve(
    sets: Sequence[list[Dialogue]], fraction: float, seed: int
) -> tuple[list[Dialogue], list[Dialogue]]:
    """Return the dialogues of policy and simulator, and those of the held-out simulator.

    Connected sets stay whole, except sets larger than half of the held-out share: their dialogues
    are divided one by one. The held-out simulator needs other dialogues, not other participants.
    """
    total = sum(len(members) for members in sets)
    limit = fraction * total
    units = [
        unit
        for members in sets
        for unit in ([members] if len(members) <= limit / 2 else [[d] for d in members])
    ]
    train, heldout = [], []
    for i in np.random.default_rng([seed, 1]).permutation(len(units)):
        (heldout if len(heldout) + len(units[i]) <= limit else train).extend(units[i])
    return _shuffled(train, seed), _shuffled(heldout, seed)


def _shuffled(dialogues: Sequence[Dialogue], seed: int) -> list[Dialogue]:
    """Return dialogues in seeded order, so that a search's first n conditions are a fair draw."""
    ordered = _in_order(dialogues)
    return [ordered[i] for i in np.random.default_rng([seed, 2]).permutation(len(ordered))]


def _in_order(dialogues: Iterable[Dialogue]) -> list[Dialogue]:
    return sorted(dialogues, key=lambda dialogue: dialogue.id)


def connected(dialogues: Sequence[Dialogue]) -> list[list[Dialogue]]:
    """Return sets of dialogues that share a group, directly or through others (union-find)."""
    parent = list(range(len(dialogues)))

    def root(i: int) -> int:
        while parent[i] != i:
            parent[i] = parent[parent[i]]
            i = parent[i]
        return i

    first_with: dict[str, int] = {}
    for i, dialogue in enumerate(dialogues):
        for group in dialogue.groups:
            parent[root(i)] = root(first_with.setdefault(group, i))
    sets: dict[int, list[Dialogue]] = {}
    for i, dialogue in enumerate(dialogues):
        sets.setdefault(root(i), []).append(dialogue)
    return list(sets.values())


def write_dialogues(path: str | Path, dialogues: Iterable[Dialogue]) -> None:
    """Write dialogues in the form of docs/data-formats.md."""
    io.write_jsonl(path, (dialogue.to_json() for dialogue in dialogues), schema=SCHEMA)


def read_dialogues(path: str | Path) -> list[Dialogue]:
    """Read what `write_dialogues` wrote."""
    return [Dialogue.from_json(record) for record in io.read_jsonl(path, schema=SCHEMA)]


def add_dialogue(path: str | Path, dialogue: Dialogue) -> int:
    """Add a dialogue to a corpus file, or replace the dialogue with its id; return the new count.

    The file is rewritten atomically; a file without a schema line stays without.

    Raises:
        InputError: the file holds a line that is not a dialogue, or an id twice.
    """
    schema, by_id = SCHEMA, {}
    if Path(path).exists():
        first = next(io.read_json_lines(path), (0, {}))[1]
        schema = SCHEMA if not first or "schema" in first else None
        by_id = _records_by_id(path, schema)
    by_id[dialogue.id] = dialogue.to_json()
    io.write_jsonl(path, by_id.values(), schema=schema)
    return len(by_id)


def _records_by_id(path: str | Path, schema: str | None) -> dict[str, dict]:
    if schema is not None:
        numbered = io.read_numbered_jsonl(path, schema=schema)
    else:
        numbered = io.read_json_lines(path)
    by_id: dict[str, dict] = {}
    for line, record in numbered:
        name = record.get("id")
        if not isinstance(name, str) or not isinstance(record.get("turns"), list):
            raise io.InputError(f"{path}:{line}: expected a dialogue with `id` and `turns`")
        if name in by_id:
            raise io.InputError(
                f"{path}:{line}: id is {name!r}, as on an earlier line; expected another"
            )
        by_id[name] = record
    return by_id
