"""The files of a run directory, read and checked: the report is made of these and of nothing else.

A file that is not there is a stage that was not done, and the report says so. One that is there
but damaged, cut off or another program's raises `InputError` with its name and line.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import yaml

from ixjax import io
from ixjax.io import InputError, RunDirectory
from ixjax.report import shapes
from ixjax.report.shapes import check, check_deep, check_texts

Record = dict[str, Any]


@dataclasses.dataclass(frozen=True)
class RunFiles:
    """What a run directory holds. Files are read when they are first asked for."""

    name: str
    """Of the run, for tables and legends: that of its folder, and of more where two are alike."""
    directory: RunDirectory

    @functools.cached_property
    def config_text(self) -> str:
        """The settings as they were written."""
        return io.read_text(self.directory.config)

    @functools.cached_property
    def settings(self) -> dict[str, Any]:
        """The settings by their dotted names."""
        try:
            content = yaml.safe_load(self.config_text)
        except yaml.YAMLError as error:
            raise InputError(f"{self.directory.config}: not YAML ({error})") from None
        if not isinstance(content, dict):
            raise InputError(f"{self.directory.config}: expected settings (key: value)")
        return _flat(content)

    @functools.cached_property
    def manifest(self) -> io.Manifest:
        """What is finished."""
        found = io.Manifest.load(self.directory.manifest)
        check_deep(found.stages, str(self.directory.manifest))
        check_deep(found.made_with, str(self.directory.manifest))
        return found

    def facts(self, stage: str) -> Record | None:
        """What the manifest holds of a finished stage; None where it is not finished."""
        found = self.manifest.get(stage)
        if found is not None and not isinstance(found, dict):
            raise InputError(f"{self.directory.manifest}: {stage} is {found!r}; expected an object")
        return found

    @property
    def logged(self) -> dict[str, list[Record]]:
        """The lines of metrics.jsonl by stage, in the order written."""
        return self._log[0]

    @property
    def torn(self) -> list[int]:
        """The lines of metrics.jsonl that can't be read: whoever wrote them was stopped."""
        return self._log[1]

    @functools.cached_property
    def _log(self) -> tuple[dict[str, list[Record]], list[int]]:
        path, torn = self.directory.metrics, []
        found: dict[str, list[Record]] = {}
        if path.exists():
            for number, record in io.read_json_lines(path, torn=torn):
                check(record, shapes.LOGGED, f"{path}:{number}")
                found.setdefault(record["stage"], []).append(record)
        return found, torn

    def steps(self, stage: str) -> list[Record]:
        """The logged steps of a training by step: of one that stands twice, the later line."""
        lines = (r for r in self.logged.get(stage, []) if isinstance(r.get("step"), int))
        by_step = {record["step"]: record for record in lines}
        return [by_step[step] for step in sorted(by_step)]

    @functools.cached_property
    def evaluation(self) -> Record | None:
        """The comparison; None where there is none yet."""
        path = self.directory.evaluation
        content = _document(path, io.EVALUATION_SCHEMA, shapes.EVALUATION)
        if content is None:
            return None
        for kind in ("methods", "users"):
            check_texts(content[kind], f"{path}: {kind}")
        for kind, shape in (("cells", shapes.CELL), ("fidelity", shapes.FIDELITY)):
            for i, record in enumerate(content[kind]):
                check(record, shape, f"{path}: {kind}[{i}]")
        for i, record in enumerate(content["fidelity"]):
            for j, found in enumerate(record["calibration"]):
                check(found, shapes.BIN, f"{path}: fidelity[{i}].calibration[{j}]")
        return content

    @functools.cached_property
    def rating_scores(self) -> Record | None:
        """What people made of two methods; None where nobody was asked."""
        path = self.directory.rating_scores
        content = _document(path, io.RATING_SCORES_SCHEMA, shapes.RATING_SCORES)
        if content is not None:
            check_texts(content["methods"], f"{path}: methods", count=2)
            check_deep(content["fleiss"], f"{path}: fleiss")
        return content

    @functools.cached_property
    def pairs(self) -> list[Record] | None:
        """The pairs of the search; None where there are none yet."""
        if not self.directory.pairs.exists():
            return None
        return list(_records(self.directory.pairs, io.PAIRS_SCHEMA, shapes.PAIR))

    @property
    def has_trees(self) -> bool:
        """Whether a whole search is there."""
        return self.directory.all_trees.exists()

    def trees(self) -> Iterator[Record]:
        """The trees of a whole search, one at a time."""
        path = self.directory.all_trees
        for i, tree in enumerate(_records(path, io.TREE_SCHEMA, shapes.TREE)):
            where = f"{path}: record {i}"
            check_dialogue(tree["root"], f"{where}: root")
            if not tree["nodes"]:
                raise InputError(f"{where}: nodes is empty; expected the root at least")
            for place, node in enumerate(tree["nodes"]):
                check(node, shapes.NODE, f"{where}: node {place}")
                first, last = (-1, -1) if place == 0 else (0, place - 1)
                if node["id"] != place or not first <= node["parent"] <= last:
                    raise InputError(
                        f"{where}: node {place} has id {node['id']} and parent {node['parent']}; "
                        "expected nodes by id, below a node that stands before"
                    )
            yield tree

    def missing(self) -> Iterator[str]:
        """What is gone though other files say that it was there, a sentence each."""
        d = self.directory
        if not d.manifest.exists():
            there = [p.name for p in (d.evaluation, d.pairs, d.all_trees) if p.exists()]
            if there:
                yield (
                    f"{d.manifest.name} is missing, which tells what is finished: stages are "
                    f"called unfinished here though {', '.join(there)} is there. Put it back "
                    "before anything is run, or all is done again."
                )
            return
        stages = self.manifest.stages
        if "pairs" in stages and not d.pairs.exists():
            yield f"{d.pairs.name} is missing: what its pairs are like is not told."
        if any(stage.startswith(("sft/", "dpo/")) for stage in stages) and not d.metrics.exists():
            yield f"{d.metrics.name} is missing: there are no training curves."
        if "evaluate" in stages and self.evaluation is not None:
            gone = [
                f"{method} with {user}"
                for user in self.evaluation["users"]
                for method in self.evaluation["methods"]
                if not self._played_by(method, user).exists()
            ]
            if gone:
                yield f"The dialogues of {', '.join(gone)} are missing ({d.played.name})."

    def _played_by(self, method: str, user: str) -> Path:
        inputs = (self.facts("evaluate") or {}).get("inputs", "")
        return self.directory.played_by(method, user, inputs=inputs)

    def played(self, method: str, user: str) -> list[Record]:
        """The dialogues of one method with one user; none where they are not there."""
        path = self._played_by(method, user)
        if not path.exists():
            return []
        found = list(_records(path, io.PLAYED_SCHEMA, shapes.PLAYED))
        for i, record in enumerate(found):
            check_dialogue(record["dialogue"], f"{path}: record {i}: dialogue")
        return found


def open_runs(roots: list[str]) -> list[RunFiles]:
    """The runs at these folders, named so that a reader can tell them apart.

    Raises:
        InputError: one is no run directory, its settings can't be read, or one is given twice.
    """
    places = [Path(root).resolve() for root in roots]
    for root, place in zip(roots, places, strict=True):
        RunDirectory.existing(root)
        if places.count(place) > 1:
            raise InputError(f"{root}: given twice; expected runs to compare")
    runs = [
        RunFiles(name, RunDirectory(Path(root)))
        for name, root in zip(_names(places), roots, strict=True)
    ]
    for run in runs:
        if "scenario" not in run.settings:
            raise InputError(f"{run.directory.config}: scenario is missing; cut off, or no run's?")
    return runs


def _names(places: list[Path]) -> list[str]:
    """The shortest ends of paths that tell them apart."""
    for length in range(1, max(len(place.parts) for place in places) + 1):
        names = ["/".join(place.parts[-length:]) for place in places]
        if len(set(names)) == len(names):
            return names
    return [str(place) for place in places]


def check_dialogue(dialogue: Record, where: str) -> None:
    """Refuse what is not a dialogue in the form of docs/data-formats.md."""
    check(dialogue, shapes.DIALOGUE, where)
    check_deep(dialogue["condition"], f"{where}: condition")
    for i, turn in enumerate(dialogue["turns"]):
        check(turn, shapes.TURN, f"{where}: turn {i}")


def _document(path: Path, schema: str, shape: shapes.Shape) -> Record | None:
    """A file that is one object of ours; None where there is none."""
    if not path.exists():
        return None
    content = io.read_document(path, schema=schema)
    check(content, shape, str(path))
    return content


def _records(path: Path, schema: str, shape: shapes.Shape) -> Iterator[Record]:
    """The records of a file of ours, each with the fields that a report needs."""
    for i, record in enumerate(io.read_jsonl(path, schema=schema)):
        check(record, shape, f"{path}: record {i}")
        yield record


def _flat(content: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in content.items():
        if isinstance(value, Mapping):
            flat |= _flat(value, f"{prefix}{key}.")
        else:
            flat[f"{prefix}{key}"] = value
    return flat
