"""Dialogues of the evaluation: two methods side by side, with the same user and condition."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from ixjax.report.blocks import Block, Gap, Section, Text, Transcript, Widget
from ixjax.report.files import Record, RunFiles
from ixjax.report.formats import show
from ixjax.report.layout import named, titled
from ixjax.report.limits import Limits
from ixjax.report.names import REFERENCE, aligned_method, believed_user, method_name, user_name

TRANSCRIPTS = 2  # of a run, in Markdown


def dialogues(runs: Sequence[RunFiles], limits: Limits) -> Section:
    """Return dialogues of the first held-out conditions."""
    several = len(runs) > 1
    blocks: list[Block] = []
    shown: list[Mapping[str, Any]] = []
    transcripts: list[Transcript] = []
    for run in runs:
        found = _of_run(run, limits)
        if found is None:
            text = "no evaluated dialogues; `ixjax evaluate` plays them."
            blocks.append(Gap(named(several, run, text)))
            continue
        shown.append(found)
        transcripts += _transcripts(run, found, several)
        text = (
            f"The first {len(found['conditions'])} of {found['total']} held-out conditions, not "
            "selected by result. Engagement is between 0 and 1, higher is better; it is computed "
            "from the outcome, which has the scenario's unit."
        )
        blocks.append(Text(named(several, run, text)))
    if shown:
        blocks += [Widget("dialogues", {"runs": shown}), *transcripts]
    return Section("dialogues", "Sample dialogues", blocks)


def _of_run(run: RunFiles, limits: Limits) -> dict[str, Any] | None:
    """Return the data of one run for the page's script; None without dialogues."""
    evaluation = run.evaluation
    if evaluation is None:
        return None
    played: dict[str, dict[str, list[Record]]] = {}
    for user in evaluation["users"]:
        for method in evaluation["methods"]:
            found = [record for record in run.played(method, user) if record["sample"] == 0]
            if found:
                played.setdefault(user, {})[method] = found[: limits.conditions]
    if not played:
        return None
    first = next(iter(next(iter(played.values())).values()))
    return {
        "name": run.name,
        "total": evaluation["conditions"],
        "conditions": [
            {"id": one["condition"], "condition": one["dialogue"]["condition"]} for one in first
        ],
        "methods": {method: method_name(method) for method in evaluation["methods"]},
        "users": {user: user_name(user) for user in played},
        "first": {
            "user": believed_user(evaluation),
            "methods": [REFERENCE, aligned_method(evaluation)],
        },
        "played": {
            user: {m: [_short(one) for one in found] for m, found in by_method.items()}
            for user, by_method in played.items()
        },
    }


def _short(record: Record) -> dict[str, Any]:
    turns = [[turn["role"], turn["text"]] for turn in record["dialogue"]["turns"]]
    played = len(record["response_tokens"])
    return {
        "id": record["condition"],
        "turns": turns,
        "given": _given(turns, played),
        "engagement": record["engagement"],
        "value": record["value"],
        "ended": record["ended"],
    }


def _given(turns: Sequence[Sequence[str]], played: int) -> int:
    """Return the number of turns before the policy's first sampled turn."""
    spoken = [i for i, (role, _) in enumerate(turns) if role == "policy"]
    return spoken[len(spoken) - played] if 0 < played <= len(spoken) else len(turns)


def _transcripts(run: RunFiles, found: Mapping[str, Any], several: bool) -> list[Transcript]:
    """Return transcripts of the first conditions, for Markdown."""
    user, methods = found["first"]["user"], found["first"]["methods"]
    sides = found["played"].get(user, {})
    if any(method not in sides for method in methods):
        return []
    transcripts = []
    for i, condition in enumerate(found["conditions"][:TRANSCRIPTS]):
        both = [sides[method][i] for method in methods if i < len(sides[method])]
        title = titled(several, run, f"Condition {condition['id']}, with {user_name(user)}")
        transcripts.append(
            Transcript(
                title,
                [
                    (
                        f"{method_name(method)}: engagement {show(one['engagement'])}",
                        [(role, text) for role, text in one["turns"]],
                    )
                    for method, one in zip(methods, both, strict=False)
                ],
            )
        )
    return transcripts
