"""Cautions: doubts that the figures raise, then limits of every run."""

from __future__ import annotations

import statistics
from collections.abc import Iterator, Sequence

from ixjax.report.blocks import Block, Items, Section, Text
from ixjax.report.files import Record, RunFiles
from ixjax.report.formats import is_weak, percent, show
from ixjax.report.layout import named
from ixjax.report.names import REFERENCE, find_cell, method_name, user_name
from ixjax.report.search import longer_share

FEW_CONDITIONS = 50
MANY_UNREADABLE = 0.05
LARGE_CALIBRATION_ERROR = 0.1
LENGTH_CHANGE = 1.5  # as a factor, either way
DIVERSITY_LOSS = 0.7  # of distinct-2, as a factor
ONE_SIDED_LENGTH = 0.7  # share of pairs whose chosen response is longer (or shorter)
LATE = 0.25  # last share of the logged steps

ALWAYS = (
    "One run is one seed. The interval of a gain does not cover variation between seeds.",
    "Simulated users are models of the users in one corpus. A policy can learn to please the model "
    "and not people. The held-out simulator shows part of that difference; human ratings show the "
    "rest (`ixjax rate`).",
    "Best of n and i×MCTS at inference look ahead with the search's simulator and know the user's "
    "condition. The trained policies do neither, so the methods are not comparable.",
    "Optimising engagement in support or persuasion can harm people. Read the dialogues before "
    "anyone talks to the policy.",
)


def cautions(runs: Sequence[RunFiles]) -> Section:
    """Return the section; doubts about these figures come first."""
    several = len(runs) > 1
    found = [named(several, run, text) for run in runs for text in _of_run(run)]
    blocks: list[Block] = [Text("Doubts that these figures raise:")]
    blocks.append(Items(found) if found else Text("None of the checks found anything."))
    blocks += [Text("Limits of every run:"), Items(ALWAYS)]
    return Section("cautions", "What to be careful about", blocks)


def _of_run(run: RunFiles) -> Iterator[str]:
    yield from run.missing()
    if run.evaluation is not None:
        yield from _of_simulators(run.evaluation)
        yield from _of_methods(run.evaluation)
    if run.pairs:
        yield from _of_pairs(run.pairs)
    yield from _of_alignment(run)


def _of_simulators(evaluation: Record) -> Iterator[str]:
    for found in evaluation["fidelity"]:
        name = user_name(found["simulator"])
        if is_weak(found):
            yield (
                f"{name} hardly predicts outcomes: its mean absolute error is "
                f"{show(found['outcome_mae'])}, that of the mean outcome "
                f"{show(found['outcome_mae_baseline'])}, its rank correlation "
                f"{show(found['outcome_spearman'])}. Gains with it mean little."
            )
        error = found["calibration_error"]
        if error is not None and error > LARGE_CALIBRATION_ERROR:
            yield (
                f"{name} has a calibration error of {show(error)}: its engagement is on another "
                "scale than people's."
            )


def _of_methods(evaluation: Record) -> Iterator[str]:
    count = evaluation["conditions"]
    if count < FEW_CONDITIONS:
        yield f"Only {count} held-out conditions were played; intervals are wide and rough."
    for cell in evaluation["cells"]:
        rate = cell["unreadable_rate"]
        if rate is not None and rate > MANY_UNREADABLE:
            yield (
                f"{method_name(cell['method'])} with {user_name(cell['user'])}: "
                f"{percent(rate)} of the outcomes were unreadable and are left out."
            )
    for method in evaluation["methods"]:
        if method.startswith("dpo_"):
            yield from _of_aligned(evaluation, method)


def _of_aligned(evaluation: Record, method: str) -> Iterator[str]:
    own = find_cell(evaluation, method, "simulator")
    heldout = find_cell(evaluation, method, "simulator_heldout")
    if own and heldout and _gains(own) and not _gains(heldout):
        yield (
            f"{method_name(method)} gains with the search's simulator and not with the held-out "
            "one: it may exploit faults of the search's simulator."
        )
    reference = find_cell(evaluation, REFERENCE, "simulator")
    if not own or not reference:
        return
    ratio = _ratio(own["response_tokens"], reference["response_tokens"])
    if ratio is not None and not 1 / LENGTH_CHANGE < ratio < LENGTH_CHANGE:
        yield (
            f"{method_name(method)} samples {show(own['response_tokens'])} tokens a turn, SFT "
            f"{show(reference['response_tokens'])}: part of its gain may come from length."
        )
    ratio = _ratio(own["distinct_2"], reference["distinct_2"])
    if ratio is not None and ratio < DIVERSITY_LOSS:
        yield (
            f"{method_name(method)} repeats itself more than SFT: distinct-2 is "
            f"{show(own['distinct_2'])}, SFT's {show(reference['distinct_2'])}."
        )


def _gains(cell: Record) -> bool:
    return cell["gain_low"] is not None and cell["gain_low"] > 0


def _ratio(value: float | None, reference: float | None) -> float | None:
    return value / reference if value is not None and reference else None


def _of_pairs(pairs: Sequence[Record]) -> Iterator[str]:
    share = longer_share(pairs)
    if share is not None and not 1 - ONE_SIDED_LENGTH <= share <= ONE_SIDED_LENGTH:
        which, how_many = ("longer", share) if share > 0.5 else ("shorter", 1 - share)
        yield (
            f"The chosen response is the {which} one in {percent(how_many)} of the pairs (equal "
            "lengths count half): DPO can learn length from them."
        )
    if statistics.median(pair["chosen_visits"] for pair in pairs) <= 1:
        yield (
            "Half of the chosen responses have a single return, so much of their margin is chance. "
            "Raise `search.rollouts`, `search.reactions` or `pairs.min_visits`."
        )


def _of_alignment(run: RunFiles) -> Iterator[str]:
    for stage in run.manifest.stages:
        if not stage.startswith("dpo/"):
            continue
        # A single batch is too noisy.
        steps = run.steps(stage)
        late = [r.get("rewards/chosen") for r in steps[-max(round(LATE * len(steps)), 1) :]]
        rewards = [value for value in late if isinstance(value, (int, float))]
        if rewards and (reward := statistics.fmean(rewards)) < 0:
            yield (
                f"{method_name(stage.replace('/', '_'))} ends with chosen responses less likely "
                f"than before (mean reward {show(reward)} over the last quarter of the logged "
                "steps). Try `--dpo.rpo-alpha 0.5`."
            )
