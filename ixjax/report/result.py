"""The result: engagement by method and user."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from ixjax.report import figures
from ixjax.report.blocks import Block, Gap, Plot, Plots, Section, Table, Text
from ixjax.report.files import Record, RunFiles
from ixjax.report.formats import interval, percent, show, undecided
from ixjax.report.layout import named, run_table
from ixjax.report.names import (
    REFERENCE,
    aligned_method,
    believed_user,
    find_cell,
    method_name,
    user_name,
)


def result(runs: Sequence[RunFiles]) -> Section:
    """Return engagement by method, a table for each user."""
    blocks: list[Block] = []
    several = len(runs) > 1
    for run in runs:
        if run.evaluation is None:
            text = "not evaluated yet; `ixjax evaluate` compares the methods."
            blocks.append(Gap(named(several, run, text)))
        else:
            blocks.append(Text(named(several, run, _headline(run.evaluation)), lead=True))
        if run.rating_scores is not None:
            blocks.append(Text(named(several, run, _peoples_verdict(run.rating_scores))))
    evaluated = [run for run in runs if run.evaluation is not None]
    if evaluated:
        users = _in_order(run.evaluation["users"] for run in evaluated if run.evaluation)
        span = _span(evaluated)
        blocks.append(Plots([_engagement_plot(evaluated, user, span) for user in users]))
        blocks += [_cells_table(evaluated, user, several) for user in users]
        blocks.append(
            Text(
                "Intervals are 95 % bootstrap intervals over held-out conditions. A gain is the "
                "difference to SFT, paired by condition and random seed. Full success is defined "
                "by the scenario (relief, a donation). The win rate is the share of dialogues with "
                "a better outcome than SFT's; a tie counts half."
            )
        )
    return Section("result", "Result", blocks)


def _headline(evaluation: Record) -> str:
    method, user = aligned_method(evaluation), believed_user(evaluation)
    cell = find_cell(evaluation, method, user)
    reference = find_cell(evaluation, REFERENCE, user)
    if cell is None or reference is None or cell["gain"] is None or method is None:
        return (
            "No gain over SFT could be computed: engagement is unreadable or a method is missing."
        )
    sentence = (
        f"With {user_name(str(user))}, {method_name(method)} reaches an engagement of "
        f"{show(cell['engagement'])}, SFT {show(reference['engagement'])}: "
        f"a gain of {show(cell['gain'])}"
    )
    if cell["gain_low"] is None:
        return f"{sentence}, over too few conditions for an interval."
    sentence += f" (95 %: {interval(cell['gain_low'], cell['gain_high'])})"
    if cell["gain_low"] <= 0 <= cell["gain_high"]:
        sentence += "; the interval includes zero, so no gain is shown"
    elif cell["relative_gain"] is not None:
        more = "more" if cell["relative_gain"] >= 0 else "less"
        sentence += f", {percent(abs(cell['relative_gain']))} {more} than SFT"
    return f"{sentence}. {evaluation['conditions']} held-out conditions were played."


def _peoples_verdict(scores: Record) -> str:
    first, second = (method_name(method) for method in scores["methods"])
    count, kappa = scores["raters"], scores["fleiss"].get("kappa")
    agreement = "" if kappa is None else f", Fleiss' kappa {show(kappa)}"
    return (
        f"{count} {'person' if count == 1 else 'people'} compared {scores['items']} pairs of "
        f"dialogues with {user_name(scores['user'])} blindly: {second} wins "
        f"{percent(scores['win_rate'])} against {first} (95 %: "
        f"{percent(scores['low'])} to {percent(scores['high'])}; a tie counts half{agreement}). "
        f"{undecided(scores['low'], scores['high'])}"
    ).rstrip()


def _in_order(lists: Iterable[Sequence[str]]) -> list[str]:
    """Return distinct names in order of first appearance."""
    return list(dict.fromkeys(name for names in lists for name in names))


def _span(runs: Sequence[RunFiles]) -> tuple[float, float]:
    """Return the range of all engagements and intervals, the common scale of the plots."""
    ends = [
        cell[name]
        for run in runs
        for cell in (run.evaluation or {}).get("cells", [])
        for name in ("engagement", "low", "high")
        if cell[name] is not None
    ]
    return min(ends, default=0.0), max(ends, default=1.0)


def _engagement_plot(runs: Sequence[RunFiles], user: str, span: tuple[float, float]) -> Plot:
    evaluations = [run.evaluation for run in runs if run.evaluation]
    methods = _in_order(evaluation["methods"] for evaluation in evaluations)
    series = []
    for color, (run, evaluation) in enumerate(zip(runs, evaluations, strict=True)):
        found = [(i, find_cell(evaluation, method, user)) for i, method in enumerate(methods)]
        cells = [(i, cell) for i, cell in found if cell is not None]
        series.append(
            figures.Series(
                run.name,
                x=[cell["engagement"] for _, cell in cells],
                y=[i for i, _ in cells],
                low=[cell["low"] for _, cell in cells],
                high=[cell["high"] for _, cell in cells],
                color=color,
            )
        )
    return Plot(
        f"With {user_name(user)}",
        figures.dots(
            series, rows=[method_name(m) for m in methods], span=span, x_title="engagement"
        ),
        "Mean engagement, 0 to 1, with 95 % interval.",
    )


def _cells_table(runs: Sequence[RunFiles], user: str, several: bool) -> Table:
    rows = [
        (run, [method_name(cell["method"]), *cell_figures(cell)])
        for run in runs
        for cell in (run.evaluation or {}).get("cells", [])
        if cell["user"] == user
    ]
    title = f"Engagement with {user_name(user)}"
    return run_table(several, title, ("method", *CELL_COLUMNS), rows)


CELL_COLUMNS = (
    *("engagement", "95 % interval", "gain", "95 % interval", "relative"),
    *("full success", "win rate", "turns", "distinct-1/2", "tokens a turn", "unreadable"),
)


def cell_figures(cell: Mapping[str, Any]) -> list[Any]:
    """Return the cells of `CELL_COLUMNS` for a method and a user."""
    return [
        cell["engagement"],
        interval(cell["low"], cell["high"]),
        cell["gain"],
        interval(cell["gain_low"], cell["gain_high"]),
        percent(cell["relative_gain"]),
        percent(cell["release_rate"]),
        percent(cell["win_rate"]),
        cell["turns"],
        f"{show(cell['distinct_1'])}/{show(cell['distinct_2'])}",
        cell["response_tokens"],
        percent(cell["unreadable_rate"]),
    ]
