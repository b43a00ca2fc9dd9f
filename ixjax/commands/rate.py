"""`ixjax rate`: Let people compare two methods of a run blindly."""

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
    "reads their ratings."
)


@dataclasses.dataclass(frozen=True)
class Settings:
    """The action, and the run."""

    action: tyro.conf.Positional[Literal["export", "score"]] = "export"
    """export writes the items, score reads the ratings."""
    paths: tyro.conf.Positional[tuple[str, ...]] = ()
    """The run directory (unless --out is given); for score, then the raters' files."""
    out: str = ""
    """The run directory, as in other tools."""
    items: RatingConfig = dataclasses.field(default_factory=RatingConfig)
    """Export: the items to compare."""
    overwrite: bool = False
    """Export: replace previously exported items."""


def execute(settings: Settings, run: pipeline.Run | None, console: Console) -> None:
    """Export items, or score ratings and print tables."""
    paths = [*([settings.out] if settings.out else []), *settings.paths]
    if not paths:
        raise InputError("--out is missing; expected a run directory")
    root, *files = paths
    if settings.action == "score":
        print_ratings(console, pipeline.score_ratings(root, files))
        return
    if files:
        raise InputError(f"found another argument, {files[0]!r}; export expects one run directory")
    made = pipeline.export_rating(root, settings.items, overwrite=settings.overwrite)
    console.print(
        f"{made['items']} items in {root}/rating: give raters form.html or items.csv. The key to "
        f"the methods is {root}/rating_key.json; raters must not see it."
    )
    if made["equal"]:
        console.print(f"{made['equal']} conditions with equal dialogues are left out.")
    console.print(f"Next: ixjax rate score {root} FILE ...")
