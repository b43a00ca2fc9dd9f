"""How the models learned: losses of fine-tuning, and what DPO did to the margins."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from ixjax.report import figures
from ixjax.report.blocks import Block, Gap, Plot, Plots, Section, Text
from ixjax.report.files import Record, RunFiles
from ixjax.report.layout import named, run_table

SPEAKERS = ("policy", "simulator", "simulator_heldout")
SOURCES = ("human", "imcts", "mix")
SPEAKER_TITLES = {
    "policy": "Policy",
    "simulator": "Simulator of the search",
    "simulator_heldout": "Held-out simulator",
}
SOURCE_TITLES = {"human": "human pairs", "imcts": "i×MCTS pairs", "mix": "both"}
DPO_CURVES = (
    ("loss", "Loss", "Starts at 0.69 (log 2), where the policy equals the reference."),
    (
        "rewards/accuracies",
        "Accuracy",
        "Share of pairs whose chosen response gained more probability than the rejected one.",
    ),
    (
        "rewards/margins",
        "Reward margin",
        "Implicit reward of the chosen less that of the rejected response.",
    ),
)


def training(runs: Sequence[RunFiles]) -> Section:
    """Curves of both kinds of training, and their last figures."""
    blocks = [*_sft(runs), *_dpo(runs)]
    return Section("training", "Training curves", blocks)


def _sft(runs: Sequence[RunFiles]) -> list[Block]:
    several = len(runs) > 1
    gaps = _gaps(runs, [f"sft/{name}" for name in SPEAKERS], "ixjax sft")
    plots = [_loss_plot(runs, name) for name in SPEAKERS if _any_steps(runs, f"sft/{name}")]
    fields = ("examples", "dropped_turns", "step", "loss", "validation_loss")
    rows = [
        (run, [SPEAKER_TITLES[name], *(facts.get(field) for field in fields)])
        for run in runs
        for name in SPEAKERS
        if (facts := run.facts(f"sft/{name}")) is not None
    ]
    columns = ("model", "examples", "turns dropped", "steps", "loss", "validation loss")
    blocks: list[Block] = []
    if plots:
        blocks += [Text("Fine-tuning on the human dialogues, cross-entropy in nats per token.")]
        blocks += [Plots(plots)]
    if rows:
        blocks.append(run_table(several, "Fine-tuning, at the end", columns, rows))
    return [*blocks, *gaps]


def _dpo(runs: Sequence[RunFiles]) -> list[Block]:
    several = len(runs) > 1
    gaps = _gaps(runs, [f"dpo/{name}" for name in SOURCES], "ixjax dpo")
    blocks: list[Block] = []
    if any(_any_steps(runs, f"dpo/{name}") for name in SOURCES):
        blocks.append(Text("Alignment by DPO, a curve for each source of pairs."))
        blocks.append(Plots(_dpo_plots(runs)))
    fields = (
        *("pairs", "step", "loss", "rewards/accuracies", "rewards/margins"),
        *("rewards/chosen", "rewards/rejected"),
    )
    rows = [
        (run, [SOURCE_TITLES[name], *(facts.get(field) for field in fields)])
        for run in runs
        for name in SOURCES
        if (facts := run.facts(f"dpo/{name}")) is not None
    ]
    columns = (
        *("pairs of", "pairs", "steps", "loss", "accuracy", "margin"),
        *("reward of the chosen", "of the rejected"),
    )
    if rows:
        blocks.append(run_table(several, "Alignment, at the end", columns, rows))
    return [*blocks, *gaps]


def _gaps(runs: Sequence[RunFiles], stages: Sequence[str], command: str) -> list[Block]:
    """What is not finished, run by run."""
    several, found = len(runs) > 1, []
    for run in runs:
        missing = [stage for stage in stages if run.facts(stage) is None]
        if missing:
            text = f"{', '.join(missing)} not finished; `{command}` does it."
            found.append(Gap(named(several, run, text)))
    return found


def _any_steps(runs: Sequence[RunFiles], stage: str) -> bool:
    return any(run.steps(stage) for run in runs)


def _loss_plot(runs: Sequence[RunFiles], name: str) -> Plot:
    """Training and validation; of several runs the latter is dotted, and not in the legend."""
    several, series = len(runs) > 1, []
    for i, run in enumerate(runs):
        steps = run.steps(f"sft/{name}")
        title = run.name if several else "training"
        series.append(_curve(steps, "loss", title, color=i))
        look = {"color": i, "dotted": True, "listed": False} if several else {"color": 1}
        series.append(_curve(steps, "validation_loss", "validation", **look))
    return Plot(
        SPEAKER_TITLES[name],
        figures.lines(series, x_title="step", y_title="loss", log=True),
        f"{'Dotted: validation. ' if several else ''}Where validation rises while training falls, "
        "the model learns its examples by heart.",
    )


def _dpo_plots(runs: Sequence[RunFiles]) -> list[Plot]:
    """A plot for each figure with a curve a source; of several runs, one for each source too."""
    plots = []
    for field, title, says in DPO_CURVES:
        curves = {
            source: [
                _curve(
                    run.steps(f"dpo/{source}"),
                    field,
                    run.name if len(runs) > 1 else SOURCE_TITLES[source],
                    color=i if len(runs) > 1 else j,
                )
                for i, run in enumerate(runs)
            ]
            for j, source in enumerate(SOURCES)
        }
        groups = (
            {f"{title}, {SOURCE_TITLES[source]}": curves[source] for source in SOURCES}
            if len(runs) > 1
            else {title: [curve for found in curves.values() for curve in found]}
        )
        for name, series in groups.items():
            drawn = [one for one in series if one.x]
            figure = figures.lines(drawn, x_title="step", y_title=title.lower())
            plots.append(Plot(name, figure, says))
    return plots


def _is_finite(value: Any) -> bool:
    return isinstance(value, (int, float)) and math.isfinite(value)


def _curve(steps: Sequence[Record], field: str, name: str, **look: Any) -> figures.Series:
    known = [record for record in steps if _is_finite(record.get(field))]
    return figures.Series(
        name, x=[record["step"] for record in known], y=[record[field] for record in known], **look
    )
