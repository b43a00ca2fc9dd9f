"""Statistics of the search and of its preference pairs."""

from __future__ import annotations

import collections
import statistics
from collections.abc import Mapping, Sequence
from typing import Any

from ixjax.report import figures
from ixjax.report.blocks import Block, Gap, Plot, Plots, Section, Table
from ixjax.report.files import Record, RunFiles
from ixjax.report.layout import named, titled

COUNTS = (
    *("trees", "nodes", "simulations", "unreadable", "duplicates", "collisions", "silent"),
    *("policy_tokens", "simulator_tokens", "context_hits", "context_misses"),
    "context_hit_rate",
)
MARGIN_BINS = 20  # over margins of 0 to 1
MARGIN_SLACK = 1e-6  # equal to that of pairs.min_margin


def search(runs: Sequence[RunFiles]) -> Section:
    """Return counts over all trees."""
    gaps: list[Block] = []
    for run in runs:
        if run.facts("search") is None:
            text = "no finished search; `ixjax search` grows the trees."
            gaps.append(Gap(named(len(runs) > 1, run, text)))
    searched = [run for run in runs if run.facts("search") is not None]
    if not searched:
        return Section("search", "Search", gaps)
    counts = Table(
        "Sums over all trees",
        ("count", *(_column(run, runs) for run in searched)),
        [
            [name.replace("_", " "), *((run.facts("search") or {}).get(name) for run in searched)]
            for name in _counts_in(searched)
        ],
    )
    plots = [_depth_plot(searched), _time_plot(searched)]
    blocks = [Plots([plot for plot in plots if plot is not None]), counts, *gaps]
    return Section("search", "Search", blocks)


def _column(run: RunFiles, runs: Sequence[RunFiles]) -> str:
    return run.name if len(runs) > 1 else "sum"


def _counts_in(runs: Sequence[RunFiles]) -> list[str]:
    """Return the counts that any of the runs has."""
    found = set().union(*(run.facts("search") or {} for run in runs))
    return [name for name in COUNTS if name in found]


def _depth_plot(runs: Sequence[RunFiles]) -> Plot | None:
    series = []
    for color, run in enumerate(runs):
        facts = run.facts("search") or {}
        prefix = "decisions_at_"
        depths = sorted(int(k.removeprefix(prefix)) for k in facts if k.startswith(prefix))
        counts = [facts[f"{prefix}{depth}"] for depth in depths]
        if depths:
            series.append(figures.Series(run.name, x=depths, y=counts, color=color))
    if not series:
        return None
    return Plot(
        "Decisions by depth",
        figures.bars(
            series, x_title="policy turns below the root", y_title="decision nodes", whole=True
        ),
        "Decision nodes at each depth of the trees.",
    )


def _time_plot(runs: Sequence[RunFiles]) -> Plot | None:
    """Return the shares of time, from the last logged line with `time`."""
    series = []
    for color, run in enumerate(runs):
        found = [line["time"] for line in run.logged.get("search", []) if "time" in line]
        shares = {
            name.removesuffix("_share"): value
            for name, value in (found[-1] if found else {}).items()
            if name.endswith("_share")
        }
        if shares:
            series.append(
                figures.Series(run.name, x=list(shares), y=list(shares.values()), color=color)
            )
    if not series:
        return None
    return Plot(
        "Time of the search",
        figures.bars(series, x_title="", y_title="share"),
        "Speakers' turns (play), selection and back-propagation (trees), the rest (host).",
    )


def pairs(runs: Sequence[RunFiles]) -> Section:
    """Return the pairs' statistics, and the number dropped by each rule."""
    several = len(runs) > 1
    blocks: list[Block] = []
    with_pairs = [run for run in runs if run.pairs]
    if with_pairs:
        blocks.append(Plots([_margin_plot(with_pairs), _pair_depth_plot(with_pairs)]))
        rows = [_pair_figures(run.pairs or []) for run in with_pairs]
        names = [_column(run, runs) if several else "value" for run in with_pairs]
        blocks.append(
            Table(
                "Pairs of the search",
                ("figure", *names),
                [[name, *(row[name] for row in rows)] for name in rows[0]],
            )
        )
    for run in runs:
        facts = run.facts("pairs")
        if facts is None:
            text = "no pairs yet; `ixjax search` takes them from its trees."
            blocks.append(Gap(named(several, run, text)))
        else:
            title = titled(several, run, "Pairs dropped by each rule")
            blocks.append(Table(title, ("rule", "count"), pair_rules(facts)))
    return Section("pairs", "Preference pairs", blocks)


def pair_rules(facts: Mapping[str, Any]) -> list[list[Any]]:
    """Return the number of pairs, and of those dropped by each rule.

    Args:
        facts: of the stage `pairs`, from the manifest.
    """
    rows: list[list[Any]] = []
    for name in ("considered", "dropped", "imcts", "left_out", "human", "human_dropped"):
        value = facts.get(name)
        if isinstance(value, dict):
            for rule, count in value.items():
                rows.append([f"{_WHAT[name]}: {rule.replace('_', ' ')}", count])
        elif value is not None:
            rows.append([_WHAT[name], value])
    return rows


_WHAT = {
    "considered": "pairs considered",
    "dropped": "dropped",
    "imcts": "pairs from trees",
    "left_out": "responses not compared",
    "human": "pairs from people",
    "human_dropped": "human turns without a pair",
}


def margins(found: Sequence[Record]) -> list[float]:
    """Return the differences of the chosen and the rejected values."""
    return [
        pair["chosen_value"] - pair["rejected_value"]
        for pair in found
        if pair["chosen_value"] is not None and pair["rejected_value"] is not None
    ]


def longer_share(found: Sequence[Record]) -> float | None:
    """Return the share of pairs whose chosen response has more words; ties count half."""
    wins = [_longer(pair["chosen"], pair["rejected"]) for pair in found]
    return statistics.fmean(wins) if wins else None


def _longer(chosen: str, rejected: str) -> float:
    difference = len(chosen.split()) - len(rejected.split())
    return 0.5 if difference == 0 else float(difference > 0)


def _pair_figures(found: Sequence[Record]) -> dict[str, Any]:
    wide, visits = margins(found), [pair["chosen_visits"] for pair in found]
    return {
        "pairs": len(found),
        "conditions with a pair": len({pair["condition_id"] for pair in found}),
        "median margin": statistics.median(wide) if wide else None,
        "median returns of the chosen": statistics.median(visits),
        "words of the chosen, mean": _mean_words(found, "chosen"),
        "words of the rejected, mean": _mean_words(found, "rejected"),
        "share with the longer one chosen (ties half)": longer_share(found),
    }


def _mean_words(found: Sequence[Record], side: str) -> float:
    return statistics.fmean(len(pair[side].split()) for pair in found)


def _margin_plot(runs: Sequence[RunFiles]) -> Plot:
    series = []
    for color, run in enumerate(runs):
        counts = collections.Counter(margin_bin(margin) for margin in margins(run.pairs or []))
        centres = [(i + 0.5) / MARGIN_BINS for i in range(MARGIN_BINS)]
        heights = [counts[i] for i in range(MARGIN_BINS)]
        series.append(figures.Series(run.name, x=centres, y=heights, color=color))
    return Plot(
        "Margins",
        figures.bars(series, x_title="difference of the mean returns", y_title="pairs"),
        "Value of the chosen response less that of the rejected one. The first and the last bar "
        "include margins outside 0 to 1, which rewards of reactions can cause.",
    )


def margin_bin(margin: float) -> int:
    """Return the bin of a margin; the slack absorbs rounding, as in 0.6 - 0.5 < 0.1."""
    return min(max(int((margin + MARGIN_SLACK) * MARGIN_BINS), 0), MARGIN_BINS - 1)


def _pair_depth_plot(runs: Sequence[RunFiles]) -> Plot:
    series = []
    for color, run in enumerate(runs):
        counts = collections.Counter(pair["depth"] for pair in run.pairs or [])
        depths = sorted(counts)
        series.append(
            figures.Series(run.name, x=depths, y=[counts[d] for d in depths], color=color)
        )
    return Plot(
        "Pairs by depth",
        figures.bars(series, x_title="policy turns below the root", y_title="pairs", whole=True),
        "Pairs at each depth of the trees.",
    )
