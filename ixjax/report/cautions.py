"""What a reader should doubt: read off the figures, then what holds for every run."""

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
ONE_SIDED_LENGTH = 0.7  # share of pairs whose chosen response is the longer one, or the shorter
LATE = 0.25  # of a training: the end of it

ALWAYS = (
    "One run is one seed. What a gain varies by from seed to seed is not in its interval.",
    "Simulated users are models of the users in one corpus. A policy can learn what such a model "
    "rewards and a person would not; the held-out simulator shows a part of that, people show the "
    "rest (`ixjax rate`).",
    "Best of n and i×MCTS at inference look ahead with the search's simulator and know the user's "
    "condition. They are no rivals of the trained policies, which do not.",
    "To optimise engagement in support or persuasion can harm people. Read the dialogues before "
    "anyone talks to the policy.",
)


def cautions(runs: Sequence[RunFiles]) -> Section:
    """Doubts, those about these figures first."""
    several = len(runs) > 1
    found = [named(several, run, text) for run in runs for text in _of_run(run)]
    blocks: list[Block] = [Text("What these figures themselves give reason to doubt:")]
    blocks.append(Items(found) if found else Text("nothing that is looked for stands out."))
    blocks += [Text("And what holds for every run:"), Items(ALWAYS)]
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
                f"{name} does not know who is helped: its error is {show(found['outcome_mae'])}, "
                f"that of always saying the mean {show(found['outcome_mae_baseline'])}, its rank "
                f"correlation {show(found['outcome_spearman'])}. Gains with it mean little."
            )
        error = found["calibration_error"]
        if error is not None and error > LARGE_CALIBRATION_ERROR:
            yield (
                f"{name} is off by {show(error)} on average (calibration error): its engagement "
                "is not on the scale of people's."
            )


def _of_methods(evaluation: Record) -> Iterator[str]:
    count = evaluation["conditions"]
    if count < FEW_CONDITIONS:
        yield f"Only {count} held-out conditions were played: intervals are wide and rough."
    for cell in evaluation["cells"]:
        rate = cell["unreadable_rate"]
        if rate is not None and rate > MANY_UNREADABLE:
            yield (
                f"{method_name(cell['method'])} with {user_name(cell['user'])}: "
                f"{percent(rate)} of the outcomes could not be read and are left out."
            )
    for method in evaluation["methods"]:
        if method.startswith("dpo_"):
            yield from _of_aligned(evaluation, method)


def _of_aligned(evaluation: Record, method: str) -> Iterator[str]:
    own = find_cell(evaluation, method, "simulator")
    heldout = find_cell(evaluation, method, "simulator_heldout")
    if own and heldout and _gains(own) and not _gains(heldout):
        yield (
            f"{method_name(method)} gains with the simulator that it was searched against and not "
            "with the held-out one: it may have learnt that simulator's faults."
        )
    reference = find_cell(evaluation, REFERENCE, "simulator")
    if not own or not reference:
        return
    ratio = _ratio(own["response_tokens"], reference["response_tokens"])
    if ratio is not None and not 1 / LENGTH_CHANGE < ratio < LENGTH_CHANGE:
        yield (
            f"{method_name(method)} says {show(own['response_tokens'])} tokens a turn, SFT "
            f"{show(reference['response_tokens'])}: a part of its gain may be length alone."
        )
    ratio = _ratio(own["distinct_2"], reference["distinct_2"])
    if ratio is not None and ratio < DIVERSITY_LOSS:
        yield (
            f"{method_name(method)} repeats itself more than SFT: distinct-2 is "
            f"{show(own['distinct_2'])} instead of {show(reference['distinct_2'])}."
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
            "lengths count half): DPO can learn length from that."
        )
    if statistics.median(pair["chosen_visits"] for pair in pairs) <= 1:
        yield (
            "Half of the chosen responses rest on a single return: much of their margin is chance. "
            "More rollouts or reactions, or `pairs.min_visits`, would tell."
        )


def _of_alignment(run: RunFiles) -> Iterator[str]:
    for stage in run.manifest.stages:
        if not stage.startswith("dpo/"):
            continue
        # One batch tells little.
        steps = run.steps(stage)
        late = [r.get("rewards/chosen") for r in steps[-max(round(LATE * len(steps)), 1) :]]
        rewards = [value for value in late if isinstance(value, (int, float))]
        if rewards and (reward := statistics.fmean(rewards)) < 0:
            yield (
                f"{method_name(stage.replace('/', '_'))} ends with the chosen responses less "
                f"likely than before (reward {show(reward)}, mean of the last quarter of what was "
                "logged): it learnt more of what to avoid than of what to say."
            )
