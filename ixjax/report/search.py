"""What the search did and what became of it: its account, its trees, its pairs."""

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
MARGIN_SLACK = 1e-6  # as the rule of least margins has it


def search(runs: Sequence[RunFiles]) -> Section:
    """Sums over all trees."""
    gaps: list[Block] = []
    for run in runs:
        if run.facts("search") is None:
            text = "no finished search; `ixjax search` grows the trees."
            gaps.append(Gap(named(len(runs) > 1, run, text)))
    searched = [run for run in runs if run.facts("search") is not None]
    if not searched:
        return Section("search", "Search", gaps)
    account = Table(
        "Sums over all trees",
        ("what", *(_column(run, runs) for run in searched)),
        [
            [name.replace("_", " "), *((run.facts("search") or {}).get(name) for run in searched)]
            for name in _counts_in(searched)
        ],
    )
    plots = [_depth_plot(searched), _time_plot(searched)]
    blocks = [Plots([plot for plot in plots if plot is not None]), account, *gaps]
    return Section("search", "Search", blocks)


def _column(run: RunFiles, runs: Sequence[RunFiles]) -> str:
    return run.name if len(runs) > 1 else "count"


def _counts_in(runs: Sequence[RunFiles]) -> list[str]:
    """The counts that any of the accounts has."""
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
        "How deep the trees reach.",
    )


def _time_plot(runs: Sequence[RunFiles]) -> Plot | None:
    """Where the search's time went, as the last line with `time` says."""
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
        "Where its time went",
        figures.bars(series, x_title="", y_title="share"),
        "Speakers' turns (play), selection and back-propagation (trees), and the rest (host).",
    )


def pairs(runs: Sequence[RunFiles]) -> Section:
    """What was compared, what was kept, and what the pairs are like."""
    several = len(runs) > 1
    blocks: list[Block] = []
    with_pairs = [run for run in runs if run.pairs]
    if with_pairs:
        blocks.append(Plots([_margin_plot(with_pairs), _pair_depth_plot(with_pairs)]))
        rows = [_pair_figures(run.pairs or []) for run in with_pairs]
        names = [_column(run, runs) if several else "value" for run in with_pairs]
        blocks.append(
            Table(
                "What the pairs of the search are like",
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
            title = titled(several, run, "Which rule kept how many out")
            blocks.append(Table(title, ("what", "count"), pair_rules(facts)))
    return Section("pairs", "Preference pairs", blocks)


def pair_rules(facts: Mapping[str, Any]) -> list[list[Any]]:
    """How many pairs there are, and what kept others out.

    Args:
        facts: of the stage `pairs`, as the manifest has them.
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
    """By how much the chosen responses earned more."""
    return [
        pair["chosen_value"] - pair["rejected_value"]
        for pair in found
        if pair["chosen_value"] is not None and pair["rejected_value"] is not None
    ]


def longer_share(found: Sequence[Record]) -> float | None:
    """Share of pairs whose chosen response has more words, equal lengths counting half."""
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
        "median returns behind the chosen": statistics.median(visits),
        "words of the chosen, mean": _mean_words(found, "chosen"),
        "words of the rejected, mean": _mean_words(found, "rejected"),
        "chosen is longer (share; equal lengths half)": longer_share(found),
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
        "How much more the chosen response earned than the rejected one. Margins beyond 0 and 1, "
        "which rewards of reactions can make, are in the first and the last bar.",
    )


def margin_bin(margin: float) -> int:
    """Which bar a margin is in; 0.6 - 0.5 is a little less than 0.1 only as floats go."""
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
        "From which moment of the dialogues the pairs come.",
    )
