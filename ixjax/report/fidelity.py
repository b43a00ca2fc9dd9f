"""Fidelity of the simulators, on held-out human dialogues."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from ixjax.report import figures
from ixjax.report.blocks import Block, Gap, Plot, Plots, Section, Text
from ixjax.report.files import RunFiles
from ixjax.report.formats import is_weak
from ixjax.report.layout import named, run_table, titled
from ixjax.report.names import user_name


def fidelity(runs: Sequence[RunFiles]) -> Section:
    """Return how well each simulator predicts recorded outcomes."""
    several = len(runs) > 1
    rows: list[tuple[RunFiles, Sequence[Any]]] = []
    plots: list[Plot] = []
    blocks: list[Block] = []
    for run in runs:
        if run.evaluation is None:
            text = "not measured yet; `ixjax evaluate` measures it."
            blocks.append(Gap(named(several, run, text)))
            continue
        found = run.evaluation["fidelity"]
        rows += [(run, (user_name(one["simulator"]), *fidelity_figures(one))) for one in found]
        rows += [(run, row) for row in baseline_rows(run.evaluation)]
        plots.append(_calibration_plot(run, several))
    if rows:
        blocks = [
            Text(
                "The simulator's predicted outcomes of held-out human dialogues, against the "
                "recorded outcomes. A simulator that predicts no better than the mean outcome does "
                "not know what helps people: a gain with it means little."
            ),
            Plots(plots),
            run_table(
                several,
                "Simulators, on held-out human dialogues",
                ("simulator", *FIDELITY_COLUMNS),
                rows,
            ),
            *blocks,
        ]
    return Section("fidelity", "Simulator fidelity", blocks)


FIDELITY_COLUMNS = (
    *("dialogues", "utterance NLL", "outcome MAE", "MAE of the mean", "Spearman"),
    *("Spearman half-way", "calibration error", "better than the mean"),
)


BASELINE_NAMES = {
    "mean": "no simulator: the mean outcome",
    "condition": "no simulator: the user's condition (ridge)",
    "words": "no simulator: condition and words (ridge)",
}


def fidelity_figures(found: Mapping[str, Any]) -> list[Any]:
    """Return the cells of `FIDELITY_COLUMNS` for one simulator."""
    return [
        found["dialogues"],
        found["utterance_nll"],
        found["outcome_mae"],
        found["outcome_mae_baseline"],
        found["outcome_spearman"],
        found["outcome_spearman_half"],
        found["calibration_error"],
        "no" if is_weak(found) else "yes",
    ]


def baseline_rows(evaluation: Mapping[str, Any]) -> list[tuple[Any, ...]]:
    """Return the rows of the baselines; none in an evaluation by an older version."""
    found = evaluation.get("baselines", [])
    mean = next((one["outcome_mae"] for one in found if one["baseline"] == "mean"), None)
    return [
        (
            BASELINE_NAMES.get(one["baseline"], one["baseline"]),
            one["dialogues"],
            None,
            one["outcome_mae"],
            mean,
            one["outcome_spearman"],
            one["outcome_spearman_half"],
            one["calibration_error"],
            "yes" if None not in (one["outcome_mae"], mean) and one["outcome_mae"] < mean else "no",
        )
        for one in found
    ]


def _calibration_plot(run: RunFiles, several: bool) -> Plot:
    series = [
        figures.Series(
            user_name(found["simulator"]),
            x=[one["predicted"] for one in found["calibration"]],
            y=[one["recorded"] for one in found["calibration"]],
            sizes=[one["count"] for one in found["calibration"]],
            color=color,
        )
        for color, found in enumerate((run.evaluation or {})["fidelity"])
    ]
    return Plot(
        titled(several, run, "Calibration"),
        figures.calibration(series),
        "Each point is a bin of dialogues by predicted engagement; its area shows their number. "
        "On the dashed line predictions are right on average.",
    )
