"""Dialogues of the evaluation, two methods side by side with the same user.

Those of the first held-out conditions: chosen by their place, never by how they turned out.
"""

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
    """What the methods said, under the same conditions."""
    several = len(runs) > 1
    blocks: list[Block] = []
    shown: list[Mapping[str, Any]] = []
    transcripts: list[Transcript] = []
    for run in runs:
        found = _of_run(run, limits)
        if found is None:
            text = "no dialogues of an evaluation; `ixjax evaluate` plays them."
            blocks.append(Gap(named(several, run, text)))
            continue
        shown.append(found)
        transcripts += _transcripts(run, found, several)
        text = (
            f"The first {len(found['conditions'])} of {found['total']} held-out conditions, "
            "chosen by their place and not by how they turned out. Engagement is 0 to 1, the more "
            "the better; the outcome is what it was read from, in the scenario's own unit."
        )
        blocks.append(Text(named(several, run, text)))
    if shown:
        blocks += [Widget("dialogues", {"runs": shown}), *transcripts]
    return Section("dialogues", "Sample dialogues", blocks)


def _of_run(run: RunFiles, limits: Limits) -> dict[str, Any] | None:
    """What the page's script reads of one run; None where nothing was played."""
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
    """How many turns were there before the policy's first own one."""
    spoken = [i for i, (role, _) in enumerate(turns) if role == "policy"]
    return spoken[len(spoken) - played] if 0 < played <= len(spoken) else len(turns)


def _transcripts(run: RunFiles, found: Mapping[str, Any], several: bool) -> list[Transcript]:
    """The first conditions with the most telling user, for who reads without a browser."""
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
