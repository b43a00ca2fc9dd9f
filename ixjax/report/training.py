"""Training curves: losses of SFT; loss, accuracy and margins of DPO."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
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
SOURCE_TITLES = {
    "human": "human pairs",
    "imcts": "i×MCTS pairs",
    "mix": "both",
    "preferences": "given pairs",
}
# Column -> name in the manifest.
SFT_COLUMNS = {
    "examples": "examples",
    "turns dropped": "dropped_turns",
    "steps": "step",
    "loss": "loss",
    "validation loss": "validation_loss",
}
DPO_COLUMNS = {
    "pairs": "pairs",
    "steps": "step",
    "loss": "loss",
    "accuracy": "rewards/accuracies",
    "margin": "rewards/margins",
    "reward of the chosen": "rewards/chosen",
    "reward of the rejected": "rewards/rejected",
}
DPO_CURVES = (
    ("loss", "Loss", "Starts at 0.69 (log 2): the policy equals the reference."),
    (
        "rewards/accuracies",
        "Accuracy",
        "Share of pairs in which the chosen response has the higher implicit reward.",
    ),
    (
        "rewards/margins",
        "Reward margin",
        "Implicit reward of the chosen response less that of the rejected one.",
    ),
)


def training(runs: Sequence[RunFiles]) -> Section:
    """Return curves and final figures of SFT and DPO."""
    blocks = [*_sft(runs), *_dpo(runs), *_torn(runs)]
    return Section("training", "Training curves", blocks)


def figures_of(facts: Mapping[str, Any], columns: Mapping[str, str]) -> list[Any]:
    """Return the cells of a table for a finished training."""
    return [facts.get(name) for name in columns.values()]


def _sft(runs: Sequence[RunFiles]) -> list[Block]:
    several = len(runs) > 1
    expected = [f"sft/{name}" for name in SPEAKERS]
    gaps = [gap for run in runs for gap in _gaps(several, run, expected, "ixjax sft")]
    plots = [_loss_plot(runs, name) for name in SPEAKERS if _any_steps(runs, f"sft/{name}")]
    rows = [
        (run, [SPEAKER_TITLES[name], *figures_of(facts, SFT_COLUMNS)])
        for run in runs
        for name in SPEAKERS
        if (facts := run.facts(f"sft/{name}")) is not None
    ]
    blocks: list[Block] = []
    if plots:
        blocks += [Text("SFT on the human dialogues: cross-entropy in nats per token.")]
        blocks += [Plots(plots)]
    if rows:
        blocks.append(run_table(several, "SFT, last step", ("model", *SFT_COLUMNS), rows))
    return [*blocks, *gaps]


def _dpo(runs: Sequence[RunFiles]) -> list[Block]:
    several = len(runs) > 1
    sources = _sources(runs)
    gaps = [gap for run in runs for gap in _gaps(several, run, _expected(run), "ixjax dpo")]
    blocks: list[Block] = []
    if any(_any_steps(runs, f"dpo/{name}") for name in sources):
        blocks.append(Text("DPO, a curve for each source of pairs."))
        blocks.append(Plots(_dpo_plots(runs, sources)))
    rows = [
        (run, [_title(name), *figures_of(facts, DPO_COLUMNS)])
        for run in runs
        for name in sources
        if (facts := run.facts(f"dpo/{name}")) is not None
    ]
    if rows:
        columns = ("source", *DPO_COLUMNS)
        blocks.append(run_table(several, "DPO, last batch", columns, rows))
    return [*blocks, *gaps]


def _torn(runs: Sequence[RunFiles]) -> list[Block]:
    """Return a gap for the unreadable lines of each log."""
    return [
        Gap(
            named(
                len(runs) > 1,
                run,
                f"line {', '.join(map(str, run.torn))} of {run.directory.metrics.name}: cut off "
                "when a process was stopped, and skipped.",
            )
        )
        for run in runs
        if run.torn
    ]


def _sources(runs: Sequence[RunFiles]) -> list[str]:
    """Return the sources of pairs that any run has trained on."""
    stages = [stage for run in runs for stage in (*run.manifest.stages, *run.logged)]
    found = {stage.removeprefix("dpo/") for stage in stages if stage.startswith("dpo/")}
    return [*(name for name in SOURCES if name in found), *sorted(found.difference(SOURCES))]


def _expected(run: RunFiles) -> list[str]:
    """Return the expected DPO stages; a run may have trained on given pairs only."""
    found = _sources([run])
    others = [name for name in found if name not in SOURCES]
    names = others if found and found == others else [*SOURCES, *others]
    return [f"dpo/{name}" for name in names]


def _title(source: str) -> str:
    return SOURCE_TITLES.get(source, source)


def _gaps(several: bool, run: RunFiles, stages: Sequence[str], command: str) -> list[Block]:
    """Return a gap for unfinished stages."""
    missing = [stage for stage in stages if run.facts(stage) is None]
    text = f"{', '.join(missing)} not finished; `{command}` trains them."
    return [Gap(named(several, run, text))] if missing else []


def _any_steps(runs: Sequence[RunFiles], stage: str) -> bool:
    return any(run.steps(stage) for run in runs)


def _loss_plot(runs: Sequence[RunFiles], name: str) -> Plot:
    """Return training and validation loss; with several runs validation is dotted."""
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
        f"{'Dotted: validation. ' if several else ''}A rising validation loss with a falling "
        "training loss means overfitting.",
    )


def _dpo_plots(runs: Sequence[RunFiles], sources: Sequence[str]) -> list[Plot]:
    """Return a plot for each figure; with several runs, one for each figure and source."""
    plots = []
    for field, title, says in DPO_CURVES:
        curves = {
            source: [
                _curve(
                    run.steps(f"dpo/{source}"),
                    field,
                    run.name if len(runs) > 1 else _title(source),
                    color=i if len(runs) > 1 else j,
                )
                for i, run in enumerate(runs)
            ]
            for j, source in enumerate(sources)
        }
        groups = (
            {f"{title}, {_title(source)}": curves[source] for source in sources}
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
