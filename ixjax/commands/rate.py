"""`ixjax rate`: People compare two methods of a run, blindly."""

from __future__ import annotations

import dataclasses
from typing import Literal

import tyro
from rich.console import Console

from ixjax import pipeline
from ixjax.commands.summary import print_ratings
from ixjax.evaluation import RatingConfig
from ixjax.io import InputError

SUMMARY = (
    "`export RUN` writes dialogues of two methods for people to compare, `score RUN FILE ...` "
    "reads what they sent back."
)


@dataclasses.dataclass(frozen=True)
class Settings:
    """What is to be done, and with which run."""

    action: tyro.conf.Positional[Literal["export", "score"]] = "export"
    """export writes the items, score reads the ratings."""
    paths: tyro.conf.Positional[tuple[str, ...]] = ()
    """The run directory (where --out is not given); then, to score, the raters' files."""
    out: str = ""
    """The run directory, as other tools take it."""
    items: RatingConfig = dataclasses.field(default_factory=RatingConfig)
    """Export: what is compared."""
    overwrite: bool = False
    """Export: replace other items that were exported before."""


def execute(settings: Settings, run: pipeline.Run | None, console: Console) -> None:
    """Export, or score and print the tables."""
    paths = [*([settings.out] if settings.out else []), *settings.paths]
    if not paths:
        raise InputError("no run directory given; name it, or set --out RUN")
    root, *files = paths
    if settings.action == "score":
        print_ratings(console, pipeline.score_ratings(root, files))
        return
    if files:
        raise InputError(f"export takes one run directory; found {files[0]!r} too")
    made = pipeline.export_rating(root, settings.items, overwrite=settings.overwrite)
    console.print(
        f"{made['items']} items in {root}/rating: give raters form.html, or items.csv. The key is "
        f"{root}/rating_key.json: keep it to yourself."
    )
    if made["equal"]:
        console.print(f"{made['equal']} conditions are left out: both methods said the same.")
    console.print(f"Then: ixjax rate score {root} FILE ...")
