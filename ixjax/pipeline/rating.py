"""Items for human raters from a run's evaluation, and scores of their ratings.

Raters receive the folder `rating/`; the key, which names the methods, is stored outside it.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ixjax import io
from ixjax.evaluation.play import Played, read_played
from ixjax.evaluation.rating import (
    RatingConfig,
    draw_items,
    read_ratings,
    task_csv,
    task_of,
)
from ixjax.evaluation.rating_scores import score
from ixjax.io import InputError, RunDirectory
from ixjax.report import rating_form
from ixjax.report.shapes import COUNT, LIST, OBJECT, TEXT, Shape, check, check_texts

KEY_SCHEMA = "ixjax.rating_key"
KEY: Shape = {"task": TEXT, "methods": LIST, "user": TEXT, "equal": COUNT, "items": OBJECT}
KEY_ITEM: Shape = {"A": TEXT, "B": TEXT}


def export_rating(
    root: str | Path, config: RatingConfig, *, overwrite: bool = False
) -> dict[str, Any]:
    """Write `rating/items.csv`, `rating/form.html` and `rating_key.json` of a run.

    Args:
        root: the run directory.
        config: the methods to compare.
        overwrite: replace items of an earlier export; their ratings and `rating_scores.json` become
            invalid, and the scores are removed.

    Returns:
        The number of items, and of conditions with two equal dialogues.

    Raises:
        InputError: the dialogues are missing, none differ, or other items were exported before.
    """
    directory = RunDirectory.existing(root)
    first, second = (_played(directory, method, config.user) for method in config.methods)
    items, equal = draw_items(first, second, config)
    if not items:
        raise InputError(
            f"{directory.played}: {' and '.join(config.methods)} said the same under all "
            f"{equal} conditions; expected dialogues that differ"
        )
    task = task_of(items, config.question)
    key = {
        "schema": KEY_SCHEMA,
        "version": io.SCHEMA_VERSION,
        "task": task["task"],
        "methods": list(config.methods),
        "user": config.user,
        "order_seed": config.order_seed,
        "equal": equal,
        "items": {
            item.id: {
                "condition": item.dialogues[0].condition.id,
                **dict(zip("AB", item.methods, strict=True)),
            }
            for item in items
        },
    }
    if not directory.rating_key.exists() or io.read_json(directory.rating_key) != key:
        if directory.rating_key.exists() and not overwrite:
            raise InputError(
                f"{directory.rating_key}: the key of other exported items; their ratings need it. "
                "Set --overwrite to replace it."
            )
        directory.rating_scores.unlink(missing_ok=True)  # before their key
    io.write_json(directory.rating_key, key)
    # Spreadsheets recognise UTF-8 by its byte order mark only.
    io.write_text(directory.rating / "items.csv", "\ufeff" + task_csv(task))
    io.write_text(directory.rating / "form.html", rating_form(task))
    return {"items": len(items), "equal": equal}


def score_ratings(root: str | Path, files: Sequence[str | Path]) -> dict[str, Any]:
    """Return win rates and agreement of raters; also write `rating_scores.json`.

    Raises:
        InputError: there is no key, or a file is not a rating of these items.
    """
    directory = RunDirectory.existing(root)
    if not files:
        raise InputError("no ratings given; expected the files that raters returned")
    key = _key(directory.rating_key)
    items = key["items"]
    ratings = [read_ratings(file, task=key["task"], items=list(items)) for file in files]
    sides = {name: (item["A"], item["B"]) for name, item in items.items()}
    first, second = key["methods"]
    found = score(ratings, sides, (first, second))
    result = {
        "schema": io.RATING_SCORES_SCHEMA,
        "version": io.SCHEMA_VERSION,
        "task": key["task"],
        "user": key["user"],
        "equal": key["equal"],
        **found,
    }
    io.write_json(directory.rating_scores, result)
    return result


def _key(path: Path) -> dict[str, Any]:
    """Read the methods of the rated dialogues; all is checked: a wrong key gives wrong scores."""
    if not path.exists():
        raise InputError(f"{path}: no such file. Run `ixjax rate export` to write it.")
    key = io.read_document(path, schema=KEY_SCHEMA)
    check(key, KEY, str(path))
    check_texts(key["methods"], f"{path}: methods", count=2)
    for name, item in key["items"].items():
        where = f"{path}: items: {name}"
        check(item, KEY_ITEM, where)
        if sorted((item["A"], item["B"])) != sorted(key["methods"]):
            found, expected = (item["A"], item["B"]), " and ".join(key["methods"])
            raise InputError(f"{where}: A and B are {found}; expected {expected}")
    return key


def _played(directory: RunDirectory, method: str, user: str) -> list[Played]:
    """Return the dialogues of a method with a user in the evaluation.

    Raises:
        InputError: there is no evaluation, or it lacks the method or user (names the others).
    """
    manifest = io.Manifest.load(directory.manifest)
    done = manifest.get("evaluate")
    if done is None:
        raise InputError(f"{directory.root}: no evaluation. Run `ixjax evaluate` first.")
    there = io.read_document(directory.evaluation, schema=io.EVALUATION_SCHEMA)
    for field, name, known in (("methods", method, "methods"), ("user", user, "users")):
        if name not in there[known]:
            raise InputError(
                f"--items.{field} is {name!r}; expected one of the run's evaluation: "
                f"{', '.join(there[known])}"
            )
    return read_played(directory.played_by(method, user, inputs=done["inputs"]))
