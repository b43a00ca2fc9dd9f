"""Tables at the end of a stage or tool."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from rich.console import Console
from rich.table import Table

from ixjax.commands.printable import printable
from ixjax.evaluation import Parity
from ixjax.pipeline import Plan
from ixjax.report.fidelity import FIDELITY_COLUMNS, baseline_rows, fidelity_figures
from ixjax.report.formats import interval, is_weak, percent, show, undecided
from ixjax.report.result import CELL_COLUMNS, cell_figures
from ixjax.report.search import pair_rules
from ixjax.report.training import DPO_COLUMNS, SFT_COLUMNS, figures_of


def print_prepare(console: Console, facts: Mapping[str, Any]) -> None:
    """Print dialogues read, merged and dropped, and the size of each split."""
    rows = [*facts["account"], *((f"split: {k}", n) for k, n in facts["splits"].items())]
    _print(console, "Corpus", ("dialogues", "count"), rows)


def print_sft(console: Console, models: Mapping[str, Mapping[str, Any]]) -> None:
    """Print the final figures of the three models."""
    _print_trainings(console, "SFT, last step", "model", SFT_COLUMNS, models)


def print_search(console: Console, facts: Mapping[str, Mapping[str, Any]]) -> None:
    """Print counts over all trees (of this process), and of the pairs."""
    trees, pairs = facts["trees"], facts.get("pairs")
    rows: list[Sequence[Any]] = [
        (key.replace("_", " "), trees[key]) for key in trees if key != "inputs"
    ]
    if pairs is not None:
        rows += pair_rules(pairs)
    _print(console, "Search", ("count", "sum"), rows)


def print_dpo(console: Console, sources: Mapping[str, Mapping[str, Any]]) -> None:
    """Print the final figures of the aligned policies."""
    _print_trainings(console, "DPO, last batch", "source", DPO_COLUMNS, sources)


def _print_trainings(
    console: Console,
    title: str,
    what: str,
    columns: Mapping[str, str],
    found: Mapping[str, Mapping[str, Any]],
) -> None:
    timed = {**columns, "seconds": "seconds"}
    rows = [(name, *figures_of(facts, timed)) for name, facts in found.items()]
    _print(console, title, (what, *timed), rows)


def print_evaluation(console: Console, result: Mapping[str, Any]) -> None:
    """Print a table for each user, and the simulators' fidelity."""
    for user in result["users"]:
        cells = [cell for cell in result["cells"] if cell["user"] == user]
        _print(
            console,
            f"Engagement with the user: {user} ({result['conditions']} held-out conditions; gains "
            "over SFT)",
            ("method", *CELL_COLUMNS),
            ((cell["method"], *cell_figures(cell)) for cell in cells),
        )
        weak = [f for f in result["fidelity"] if f["simulator"] == user and is_weak(f)]
        if weak:
            console.print(
                f"{user} predicts the outcomes of held-out dialogues no better than their mean "
                "does: gains with it mean little.\n"
            )
    _print(
        console,
        "Fidelity of the simulators, on held-out human dialogues",
        ("simulator", *FIDELITY_COLUMNS),
        [
            *((f["simulator"], *fidelity_figures(f)) for f in result["fidelity"]),
            *baseline_rows(result),
        ],
    )


def print_ratings(console: Console, result: Mapping[str, Any]) -> None:
    """Print win rates of the second method, and the raters' agreement."""
    first, second = result["methods"]
    everyone = {"rater": "all, item by item", **result}
    _print(
        console,
        f"{second} against {first}, with {result['user']}",
        ("rater", "items", "win rate", "95 % interval"),
        (
            (r["rater"], r["items"], percent(r["win_rate"]), interval(r["low"], r["high"]))
            for r in (*result["by_rater"], everyone)
        ),
    )
    rows = [
        (f"Cohen's kappa, {' and '.join(c['raters'])}", c["items"], c["kappa"])
        for c in result["cohen"]
    ]
    rows.append(("Fleiss' kappa, all raters", result["fleiss"]["items"], result["fleiss"]["kappa"]))
    _print(console, "Agreement beyond chance", ("of", "items", "kappa"), rows)
    note = undecided(result["low"], result["high"])
    console.print(f"The win rate is the share of items won; a tie counts half. {note}".rstrip())
    place = result["first_shown"]
    console.print(
        f"A, the dialogue shown first, won {percent(place['share'])} of the decided votes "
        f"({interval(place['low'], place['high'])}); far from 50 %, ratings depend on the order."
    )


def print_parity(console: Console, models: Mapping[str, Parity], tolerance: float) -> None:
    """Print the differences of engine and trainer, and the largest one."""
    _print(
        console,
        f"Log-probabilities, engine against trainer: difference in nats, {tolerance:g} allowed",
        (
            *("model", "dialogues", "tokens"),
            *("decoded: largest", "mean", "scored: largest", "mean"),
        ),
        (
            (
                name,
                found.dialogues,
                found.tokens,
                *(
                    f"{figure:.1e}"
                    for way in ("decoded", "scored")
                    for figure in (found.largest[way], found.mean[way])
                ),
            )
            for name, found in models.items()
        ),
    )
    name, found = max(models.items(), key=lambda item: item[1].worst.size)
    worst = found.worst
    console.print(
        f"largest: {worst.size:.1e}, {name} on dialogue {worst.dialogue}, token {worst.token} "
        f"({worst.text!r}) as {worst.way}: engine {worst.engine:.6f}, trainer {worst.trainer:.6f}"
    )


def print_plan(console: Console, plan: Plan) -> None:
    """Print memory and work by stage, and the stages that do not fit."""
    layout = " x ".join(f"{axis}={size}" for axis, size in plan.mesh.items())
    console.print(
        f"{plan.parameters:,} parameters; training on {layout}, "
        f"{_counted(plan.play_devices, 'device')} to each process that searches\n"
    )
    for title, stages in (("Training", plan.training), ("Play", plan.play)):
        parts = [field.name for field in dataclasses.fields(next(iter(stages.values())))]
        _print(
            console,
            f"{title}: GB on a device",
            ("part", *stages),
            (
                (part.replace("_", " "), *(_gigabytes(getattr(m, part)) for m in stages.values()))
                for part in [*parts, "peak"]
            ),
        )
    _print(
        console,
        "Work, upper bounds",
        ("stage", "tokens trained on", "read", "sampled", "PFLOP", "hours"),
        (
            (
                e.work.stage,
                *(round(n) for n in (e.work.trained, e.work.read, e.work.sampled)),
                f"{e.flops / 1e15:,.2f}",
                None if e.seconds is None else f"{e.seconds / 3600:,.2f}",
            )
            for e in plan.estimates
        ),
    )
    for line in plan.assumed:
        console.print(f"assumed: {line}")
    for line in plan.warnings:
        console.print(f"does not fit: {line}")


def _gigabytes(size: int) -> str:
    return f"{size / 1e9:,.3f}"


def _counted(count: int, what: str) -> str:
    return f"{count} {what}{'s' * (count != 1)}"


def _print(
    console: Console, title: str, columns: Sequence[str], rows: Iterable[Sequence[Any]]
) -> None:
    table = Table(title=printable(title), title_justify="left")
    for i, column in enumerate(columns):
        table.add_column(column, justify="left" if i == 0 else "right")
    for row in rows:
        table.add_row(*(printable(show(cell)) for cell in row))  # names come from files
    # On a narrow terminal long rows wrap; figures are never cut.
    needed = table.__rich_measure__(console, console.options.update(max_width=1000)).maximum
    console.print(table, width=max(console.width, needed), no_wrap=True, crop=False)
