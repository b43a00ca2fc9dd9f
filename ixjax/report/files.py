"""The files of a run directory, read and checked.

A missing file is a stage that was not run; the report says so. A damaged file raises `InputError`
with its name and line.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Iterator
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
    """The content of a run directory; each file is read on first use."""

    name: str
    """Shortest end of the path that is unique among the runs."""
    directory: RunDirectory

    @functools.cached_property
    def config_text(self) -> str:
        """Return config.yaml."""
        return io.read_text(self.directory.config)

    @functools.cached_property
    def settings(self) -> dict[str, Any]:
        """Return the settings by dotted name."""
        try:
            content = yaml.safe_load(self.config_text)
        except yaml.YAMLError as error:
            problem = getattr(error, "problem", None) or error
            raise InputError(f"{self.directory.config}: not YAML ({problem})") from None
        if not isinstance(content, dict):
            found = type(content).__name__
            raise InputError(
                f"{self.directory.config}: found {found}; expected settings (key: value)"
            )
        return io.flatten(content)

    @functools.cached_property
    def manifest(self) -> io.Manifest:
        """Return the finished stages."""
        found = io.Manifest.load(self.directory.manifest)
        check_deep(found.stages, str(self.directory.manifest))
        check_deep(found.made_with, str(self.directory.manifest))
        return found

    def facts(self, stage: str) -> Record | None:
        """Return the manifest's facts of a stage; None if it is not finished."""
        found = self.manifest.get(stage)
        if found is not None and not isinstance(found, dict):
            raise InputError(f"{self.directory.manifest}: {stage} is {found!r}; expected an object")
        return found

    @property
    def logged(self) -> dict[str, list[Record]]:
        """Return the lines of metrics.jsonl by stage, in order."""
        return self._log[0]

    @property
    def torn(self) -> list[int]:
        """Return the numbers of unreadable lines of metrics.jsonl, left by a killed process."""
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
        """Return a training's logged lines by step; the later line wins."""
        lines = (r for r in self.logged.get(stage, []) if isinstance(r.get("step"), int))
        by_step = {record["step"]: record for record in lines}
        return [by_step[step] for step in sorted(by_step)]

    @functools.cached_property
    def evaluation(self) -> Record | None:
        """Return evaluation.json; None before the evaluation."""
        path = self.directory.evaluation
        content = _document(path, io.EVALUATION_SCHEMA, shapes.EVALUATION)
        if content is None:
            return None
        for kind in ("methods", "users"):
            check_texts(content[kind], f"{path}: {kind}")
        lists = {"cells": shapes.CELL, "fidelity": shapes.FIDELITY, "baselines": shapes.BASELINE}
        for kind, shape in lists.items():
            for i, record in enumerate(content.get(kind, [])):  # older ones have no baselines
                check(record, shape, f"{path}: {kind}[{i}]")
        for i, record in enumerate(content["fidelity"]):
            for j, found in enumerate(record["calibration"]):
                check(found, shapes.BIN, f"{path}: fidelity[{i}].calibration[{j}]")
        return content

    @functools.cached_property
    def rating_scores(self) -> Record | None:
        """Return rating_scores.json; None without ratings."""
        path = self.directory.rating_scores
        content = _document(path, io.RATING_SCORES_SCHEMA, shapes.RATING_SCORES)
        if content is not None:
            check_texts(content["methods"], f"{path}: methods", count=2)
            check_deep(content["fleiss"], f"{path}: fleiss")
        return content

    @functools.cached_property
    def pairs(self) -> list[Record] | None:
        """Return the pairs of the search; None before it."""
        if not self.directory.pairs.exists():
            return None
        return list(_records(self.directory.pairs, io.PAIRS_SCHEMA, shapes.PAIR))

    @property
    def has_trees(self) -> bool:
        """Return whether the search is complete."""
        return self.directory.all_trees.exists()

    def trees(self) -> Iterator[Record]:
        """Yield the trees of a complete search."""
        path = self.directory.all_trees
        for i, tree in enumerate(_records(path, io.TREE_SCHEMA, shapes.TREE)):
            where = f"{path}: record {i}"
            check_dialogue(tree["root"], f"{where}: root")
            if not tree["nodes"]:
                raise InputError(f"{where}: nodes is empty; expected at least the root")
            for place, node in enumerate(tree["nodes"]):
                check(node, shapes.NODE, f"{where}: node {place}")
                first, last = (-1, -1) if place == 0 else (0, place - 1)
                if node["id"] != place or not first <= node["parent"] <= last:
                    raise InputError(
                        f"{where}: node {place} has id {node['id']} and parent {node['parent']}; "
                        "expected nodes in order of id, each after its parent"
                    )
            yield tree

    def missing(self) -> Iterator[str]:
        """Yield a sentence for each missing file that other files refer to."""
        d = self.directory
        if not d.manifest.exists():
            there = [p.name for p in (d.evaluation, d.pairs, d.all_trees) if p.exists()]
            if there:
                yield (
                    f"{d.manifest.name} is missing, so all stages appear unfinished; found "
                    f"{', '.join(there)}. Restore it, or the next command repeats every stage."
                )
            return
        stages = self.manifest.stages
        if "pairs" in stages and not d.pairs.exists():
            yield f"{d.pairs.name} is missing: the report has no figures of the pairs."
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
        """Return the dialogues of a method with a user; empty if the file is missing."""
        path = self._played_by(method, user)
        if not path.exists():
            return []
        found = list(_records(path, io.PLAYED_SCHEMA, shapes.PLAYED))
        for i, record in enumerate(found):
            check_dialogue(record["dialogue"], f"{path}: record {i}: dialogue")
        return found


def open_runs(roots: list[str]) -> list[RunFiles]:
    """Return the runs in these folders, with unique names.

    Raises:
        InputError: a folder is not a run directory or is given twice, or its settings are damaged.
    """
    places = [Path(root).resolve() for root in roots]
    for root, place in zip(roots, places, strict=True):
        RunDirectory.existing(root)
        if places.count(place) > 1:
            raise InputError(f"{root}: given twice; expected different runs")
    runs = [
        RunFiles(name, RunDirectory(Path(root)))
        for name, root in zip(_names(places), roots, strict=True)
    ]
    for run in runs:
        if "scenario" not in run.settings:
            raise InputError(
                f"{run.directory.config}: scenario is missing; expected the settings of a run"
            )
    return runs


def _names(places: list[Path]) -> list[str]:
    """Return the shortest ends of the paths that are unique."""
    for length in range(1, max(len(place.parts) for place in places) + 1):
        names = ["/".join(place.parts[-length:]) for place in places]
        if len(set(names)) == len(names):
            return names
    return [str(place) for place in places]


def check_dialogue(dialogue: Record, where: str) -> None:
    """Raise `InputError` unless a record is a dialogue (docs/data-formats.md)."""
    check(dialogue, shapes.DIALOGUE, where)
    check_deep(dialogue["condition"], f"{where}: condition")
    for i, turn in enumerate(dialogue["turns"]):
        check(turn, shapes.TURN, f"{where}: turn {i}")


def _document(path: Path, schema: str, shape: shapes.Shape) -> Record | None:
    """Return a file that holds one object; None if it is missing."""
    if not path.exists():
        return None
    content = io.read_document(path, schema=schema)
    check(content, shape, str(path))
    return content


def _records(path: Path, schema: str, shape: shapes.Shape) -> Iterator[Record]:
    """Yield checked records of a JSONL file."""
    for i, record in enumerate(io.read_jsonl(path, schema=schema)):
        check(record, shape, f"{path}: record {i}")
        yield record
