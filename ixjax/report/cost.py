"""The cost of a run, its settings and its versions."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from ixjax.report import figures
from ixjax.report.blocks import Block, Code, Gap, Plot, Section, Table, Text
from ixjax.report.files import RunFiles
from ixjax.report.formats import percent
from ixjax.report.layout import named, run_table, titled


def cost(runs: Sequence[RunFiles]) -> Section:
    """Return seconds and tokens by stage."""
    several, blocks = len(runs) > 1, []
    rows = [(run, row) for run in runs for row in _stage_rows(run)]
    if not rows:
        gap = Gap("no stage is finished; `ixjax pipeline` runs all of them.")
        return Section("cost", "Cost", [gap])
    for run in runs:
        seconds = sum(_seconds(run).values())
        text = f"{len(_seconds(run))} finished stages took {_duration(seconds)}."
        blocks.append(Text(named(several, run, text)))
    columns = ("stage", "seconds", "share", "tokens sampled", "tokens/s", "compile seconds")
    return Section(
        "cost",
        "Cost",
        [
            *blocks,
            _seconds_plot(runs),
            run_table(several, "Stages", columns, rows),
            Text(
                "Seconds count from a stage's last start: they leave out work before an "
                "interruption. Tokens/s counts trained tokens at the end of a training, and "
                "sampled tokens in play."
            ),
        ],
    )


def _seconds(run: RunFiles) -> dict[str, float]:
    return {
        stage: facts["seconds"]
        for stage, facts in run.manifest.stages.items()
        if isinstance(facts, dict) and isinstance(facts.get("seconds"), (int, float))
    }


def _stage_rows(run: RunFiles) -> list[list[Any]]:
    seconds = _seconds(run)
    total = sum(seconds.values())
    rows = []
    for stage, spent in seconds.items():
        facts, engine = run.facts(stage) or {}, _engine(run, stage)
        sampled = [facts[f"{side}_tokens"] for side in ("policy", "simulator") if _has(facts, side)]
        rows.append(
            [
                stage,
                f"{spent:,.1f}",
                percent(spent / total if total else None),
                f"{sum(sampled):,}" if sampled else "",
                _rate(facts.get("tokens_per_second", engine.get("tokens_per_second"))),
                f"{engine['compile_seconds']:,.1f}" if "compile_seconds" in engine else "",
            ]
        )
    return rows


def _has(facts: dict[str, Any], side: str) -> bool:
    return isinstance(facts.get(f"{side}_tokens"), int)


def _rate(value: Any) -> str:
    return f"{value:,.0f}" if isinstance(value, (int, float)) else ""


def _engine(run: RunFiles, stage: str) -> dict[str, Any]:
    """Return the last statistics of the generation engine in a stage."""
    lines = [line["engine"] for line in run.logged.get(stage, []) if "engine" in line]
    return lines[-1] if lines and isinstance(lines[-1], dict) else {}


def _duration(seconds: float) -> str:
    minutes, left = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes} min" if hours else f"{minutes} min {left} s"


def _seconds_plot(runs: Sequence[RunFiles]) -> Plot:
    series = [
        figures.Series(run.name, x=list(_seconds(run)), y=list(_seconds(run).values()), color=i)
        for i, run in enumerate(runs)
    ]
    return Plot("Seconds by stage", figures.bars(series, x_title="", y_title="seconds"), "")


def settings(runs: Sequence[RunFiles]) -> Section:
    """Return every setting and every version."""
    several = len(runs) > 1
    blocks: list[Block] = []
    if several:
        blocks.append(_differences(runs))
    for run in runs:
        blocks.append(_versions(run, several))
    for run in runs:
        blocks.append(Code(titled(several, run, "config.yaml"), run.config_text, "yaml"))
    return Section("settings", "Settings and versions", blocks)


def _differences(runs: Sequence[RunFiles]) -> Block:
    keys = sorted(set().union(*(run.settings for run in runs)))
    rows = [
        [key, *(_as_written(run.settings, key) for run in runs)]
        for key in keys
        if len({_as_written(run.settings, key) for run in runs}) > 1
    ]
    if not rows:
        return Text("All settings are the same.")
    return Table("Settings that differ", ("setting", *(r.name for r in runs)), rows, words=True)


def _as_written(found: dict[str, Any], key: str) -> str:
    return repr(found[key]) if key in found else "absent"


def _versions(run: RunFiles, several: bool) -> Block:
    """Return versions and devices; stages with equal ones share a column."""
    groups: dict[tuple[tuple[str, str], ...], list[str]] = {}
    for stage, found in run.manifest.made_with.items():
        groups.setdefault(tuple(sorted(found.items())), []).append(stage)
    if not groups:
        text = "an older ixjax made this run and did not record versions."
        return Gap(named(several, run, text))
    names = sorted({name for group in groups for name, _ in group})
    columns = ["all stages"] if len(groups) == 1 else [", ".join(s) for s in groups.values()]
    rows = [[name, *(dict(group).get(name, "") for group in groups)] for name in names]
    return Table(titled(several, run, "Made with"), ("version", *columns), rows, words=True)
