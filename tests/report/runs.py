"""A small hand-written run directory, whose figures can be checked by reading."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

METHODS = ("sft", "dpo_imcts")
USERS = ("simulator", "simulator_heldout", "true")
INPUTS = "0123456789abcdef"
CONDITIONS = 60
RATING_SCORES = {
    "schema": "ixjax.rating_scores", "version": 1, "user": "true", "raters": 2, "items": 50,
    "methods": ["sft", "dpo_imcts"], "win_rate": 0.61, "low": 0.47, "high": 0.73,
    "fleiss": {"items": 50, "kappa": 0.3},
}  # fmt: skip
HOSTILE_NAME = "<img src=x onerror=alert(3)>&lt;b&gt; | [a](b) #"  # a folder's, too: no slash
HOSTILE = "</script><script>alert(1)</script><img src=x onerror=alert(2)> | [a](http://b) `c` #"
STAGES = ("sft", "search", "pairs", "dpo", "evaluate")


def write_run(
    root: Path,
    *,
    say: Callable[[str], str] = str,
    name: Callable[[str], str] = str,
    stages: Iterable[str] = STAGES,
    nodes: int = 7,
    users: tuple[str, ...] = USERS,
    opens: bool = False,
    conditions: int = 3,
) -> Path:
    """Write a run.

    Args:
        root: its folder.
        say: maps utterances and values of conditions.
        name: maps the names of the aligned method, of conditions, of a stage and of a setting.
        stages: the finished ones.
        nodes: of the first tree, 7 or more; the second has 7.
        users: of the evaluation.
        opens: whether the policy speaks first, so that the root has no turn.
        conditions: with played dialogues.
    """
    stages = set(stages)
    settings = {
        "scenario": "sandbox",
        "seed": 0,
        "search": {"width": 3},
        "data": {"path": name("")},
    }
    _write(root / "config.yaml", json.dumps(settings))  # YAML, too
    methods = ("sft", name("dpo_imcts"))
    if "sft" in stages or "dpo" in stages:
        steps = [line for stage in sorted(stages & {"sft", "dpo"}) for line in _steps(stage)]
        _write(root / "metrics.jsonl", "".join(json.dumps(line) + "\n" for line in steps))
    if "search" in stages:
        sizes = {name("user-0"): nodes, name("user-1"): 7}
        trees = [tree(one, size, say, opens=opens) for one, size in sizes.items()]
        lines(root / "trees" / "trees-00000-of-00001.jsonl", "ixjax.tree", trees)
    if "pairs" in stages:
        lines(root / "pairs.jsonl", "ixjax.pairs", [pair(say, name("user-0"), opens=opens)])
    if "evaluate" in stages:
        _write(root / "evaluation.json", json.dumps(evaluation(methods, users)))
        for method in methods:
            for user in users:
                path = root / "evaluation" / f"{INPUTS}-{method}-{user}.jsonl"
                found = [
                    played(name(f"user-{i}"), method, say, opens=opens) for i in range(conditions)
                ]
                lines(path, "ixjax.played", found)
    found = manifest(stages)
    if "evaluate" in stages:
        found["stages"][name("evaluate")] = found["stages"]["evaluate"]
    _write(root / "manifest.json", json.dumps(found))
    return root


def hostile(text: str) -> str:
    """For `say`: a text that is harmful as markup."""
    return f"{text} {HOSTILE}"


def hostile_name(text: str) -> str:
    """For `name`: a name that is harmful as markup."""
    return f"{text} {HOSTILE_NAME}"


def _write(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)


def lines(path: Path, schema: str, records: Iterable[Any]) -> None:
    head = {"schema": schema, "version": 1}
    _write(path, "".join(json.dumps(record) + "\n" for record in (head, *records)))


def _steps(stage: str) -> list[dict[str, Any]]:
    if stage == "sft":
        return [
            {
                "stage": f"sft/{name}",
                "step": step,
                "loss": 2.0 / step,
                "validation_loss": 2.5 / step,
            }
            for name in ("policy", "simulator", "simulator_heldout")
            for step in (1, 2, 2)
        ]
    return [
        {"stage": f"dpo/{source}", "step": step, "loss": 0.69 / step,
         "rewards/accuracies": 0.5, "rewards/margins": 0.1 * step}
        for source in ("human", "imcts", "mix")
        for step in (1, 2)
    ]  # fmt: skip


def manifest(stages: set[str]) -> dict[str, Any]:
    """Of the finished stages; every one took 90 seconds."""
    names = {
        "sft": ["sft/policy", "sft/simulator", "sft/simulator_heldout"],
        "dpo": ["dpo/human", "dpo/imcts", "dpo/mix"],
    }
    facts: dict[str, dict[str, Any]] = {
        "search": {"trees": 2, "nodes": 14, "policy_tokens": 1000, "simulator_tokens": 234,
                   "decisions_at_0": 2, "decisions_at_1": 6},
        "pairs": {"considered": 9, "imcts": 1, "dropped": {"small_margin": 8}, "human": 4},
    }  # fmt: skip
    found = {
        name: {"inputs": INPUTS, "seconds": 90.0, **facts.get(name, {})}
        for stage in STAGES
        if stage in stages
        for name in names.get(stage, [stage])
    }
    made_with = {name: {"python": "3.12.1", "jax": "0.10.2"} for name in found}
    return {"schema": "ixjax.manifest", "version": 1, "stages": found, "made_with": made_with}


def evaluation(
    methods: tuple[str, ...] = METHODS, users: tuple[str, ...] = USERS
) -> dict[str, Any]:
    """DPO gains 0.2 with every user; the held-out simulator predicts nothing."""
    cells = [
        {"method": method, "user": user, "dialogues": CONDITIONS,
         "engagement": 0.4 + gain, "low": 0.3 + gain, "high": 0.5 + gain, "release_rate": 0.25,
         "win_rate": 0.5, "turns": 3.0, "distinct_1": 0.1, "distinct_2": 0.2,
         "response_tokens": 7.0, "unreadable_rate": 0.0, "gain": gain, "gain_low": gain / 2,
         "gain_high": 1.5 * gain, "relative_gain": gain / 0.4}
        for method, gain in zip(methods, (0.0, 0.2), strict=True)
        for user in users
    ]  # fmt: skip
    fidelity = [
        {"simulator": name, "dialogues": 40, "utterance_nll": 1.5, "outcome_mae": error,
         "outcome_mae_baseline": 0.3, "outcome_spearman": rank, "outcome_spearman_half": None,
         "calibration_error": 0.05, "unreadable_rate": 0.0,
         "calibration": [
             {"low": 0.1, "high": 0.2, "count": 30, "predicted": 0.15, "recorded": 0.2},
             {"low": 0.7, "high": 0.8, "count": 10, "predicted": 0.75, "recorded": 0.7}]}
        for name, error, rank in (("simulator", 0.1, 0.8), ("simulator_heldout", 0.35, 0.02))
    ]  # fmt: skip
    return {
        "schema": "ixjax.evaluation", "version": 1, "conditions": CONDITIONS,
        "methods": list(methods), "users": list(users), "cells": cells, "fidelity": fidelity,
    }  # fmt: skip


def dialogue(
    name: str, texts: Iterable[str], say: Callable[[str], str], *, opens: bool = False
) -> dict[str, Any]:
    """A dialogue of alternating turns; if the policy `opens`, without the user's first turn."""
    turns = [{"role": ("user", "policy")[i % 2], "text": say(text)} for i, text in enumerate(texts)]
    turns = turns[1:] if opens else turns
    condition = {"need": say("advice"), "distress": 4}
    return {"id": name, "condition": condition, "turns": turns, "outcome": None, "groups": []}


def played(
    name: str, method: str, say: Callable[[str], str], *, opens: bool = False
) -> dict[str, Any]:
    texts = ("hello", f"{method} answers", "thanks")
    return {
        "condition": name, "sample": 0, "dialogue": dialogue(name, texts, say, opens=opens),
        "engagement": 0.5, "value": 2.0, "released": 0.1, "ended": True, "response_tokens": [4],
    }  # fmt: skip


def tree(name: str, size: int, say: Callable[[str], str], *, opens: bool = False) -> dict[str, Any]:
    """The root (0), responses 1 to 3, and a reaction to each (4 to 6); further nodes in a chain."""
    nodes = [_node(0, -1, "", 0, 12, 6.0)]
    values = (0.9, 0.5, 0.1)
    nodes += [_node(1 + i, 0, say(f"response {i}"), 1, 4, 4 * v) for i, v in enumerate(values)]
    nodes += [_node(4 + i, 1 + i, say(f"reaction {i}"), 2, 4, 4 * v) for i, v in enumerate(values)]
    for at in range(7, size):
        nodes.append(_node(at, at - 3, say(f"more {at}"), nodes[at - 3]["depth"] + 1, 1, 0.5))
    return {"condition_id": name, "scenario": "sandbox", "nodes": nodes,
            "root": dialogue(name, ("hello",), say, opens=opens),
            "account": {"nodes": size}}  # fmt: skip


def _node(at: int, parent: int, text: str, depth: int, visits: int, total: float) -> dict[str, Any]:
    return {
        "id": at, "parent": parent, "kind": ("decision", "response")[depth % 2], "text": text,
        "depth": depth, "visits": visits, "value_sum": total, "unread": 0, "terminal": depth == 2,
        "outcome": None, "multiplicity": 1, "truncated": False,
    }  # fmt: skip


def pair(say: Callable[[str], str], name: str = "user-0", *, opens: bool = False) -> dict[str, Any]:
    return {
        "condition_id": name, "history": dialogue(name, ("hello",), say, opens=opens),
        "chosen": say("response 0"), "rejected": say("response 2"), "source": "imcts",
        "chosen_value": 0.9, "rejected_value": 0.1, "chosen_visits": 4, "rejected_visits": 4,
        "node_id": 0, "depth": 0,
    }  # fmt: skip
