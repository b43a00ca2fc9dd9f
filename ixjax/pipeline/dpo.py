"""Pairs in; aligned policies out: on human pairs, on i×MCTS pairs, and on the mix."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ixjax import io
from ixjax.dialogue.chat import RenderedPair
from ixjax.pipeline.run import Reporter, Run
from ixjax.search import PAIRS_SCHEMA, PreferencePair
from ixjax.training import load_reference, reference_logprobs, save_reference, train_dpo

SOURCES = ("human", "imcts", "mix")


def align(run: Run, reporter: Reporter) -> dict[str, Any]:
    """Train one policy on each source of pairs, all from the SFT policy.

    Returns:
        The last metrics by source.
    """
    inputs = {
        "pairs": run.require("pairs", "search")["inputs"],
        "policy": run.require("sft/policy", "sft")["inputs"],
    }
    return {source: _align(run, source, inputs, reporter) for source in SOURCES}


def policy_directory(run: Run, source: str) -> Path:
    """Where the policy aligned on `source` lies."""
    return run.directory.policy_dpo / source


def _align(run: Run, source: str, upstream: dict[str, str], reporter: Reporter) -> dict[str, Any]:
    config, stage = run.config, f"dpo/{source}"
    inputs = io.fingerprint(upstream, config.dpo, config.pairs, source)
    with run.stage(stage, inputs) as facts:
        if facts is None:
            return dict(run.require(stage, "dpo"))
        pairs = _pairs(run, source)
        view = run.view("policy")
        rendered = [
            view.pair(p.history, p.chosen, p.rejected, max_tokens=config.model.max_length)
            for p in pairs
        ]
        directory = policy_directory(run, source)
        reference = _reference(run, source, rendered, inputs, reporter)
        reporter.start(f"dpo {source}", config.dpo.steps, "steps")

        def on_step(metrics: dict[str, Any]) -> None:
            shown = {k: metrics[k] for k in ("loss", "rewards/accuracies") if k in metrics}
            reporter.advance(metrics.get("steps_since", 1), **shown)
            run.log(stage, metrics)
            facts.update(metrics)

        train_dpo(
            run.load(run.directory.policy_sft),
            rendered,
            config.dpo,
            mesh=run.mesh,
            seed=config.seed,
            directory=directory,
            on_step=on_step,
            reference=reference,
        )
        facts["pairs"] = len(pairs)
        reporter.finish(pairs=len(pairs))
    return dict(run.require(stage, "dpo"))


def _pairs(run: Run, source: str) -> list[PreferencePair]:
    """The pairs of one source, cut to `dpo.max_pairs` by a seeded draw."""
    searched, human = (
        [PreferencePair.from_json(r) for r in io.read_jsonl(path, schema=PAIRS_SCHEMA)]
        for path in (run.directory.pairs, run.directory.human_pairs)
    )
    if source == "mix":
        count = round(run.config.pairs.human_pair_ratio * len(searched))
        found = searched + human[:count]
    else:
        found = searched if source == "imcts" else human
    if not found:
        raise io.InputError(
            f"{run.directory.human_pairs}: no {source} pair: the policy repeated every human turn"
        )
    order = np.random.default_rng(run.config.seed).permutation(len(found))
    return [found[i] for i in order[: run.config.dpo.max_pairs]]


def _reference(
    run: Run, source: str, rendered: Sequence[RenderedPair], inputs: str, reporter: Reporter
) -> Any:
    """Reference log-probabilities: from disk if they belong to these pairs, else computed now."""
    path = policy_directory(run, source) / "reference.json"
    stored, reason = load_reference(path, inputs)
    if stored is not None:
        return stored
    reporter.note(f"dpo {source}: reference log-probabilities are computed ({reason})")
    reference = reference_logprobs(
        run.load(run.directory.policy_sft), rendered, run.config.dpo, mesh=run.mesh
    )
    save_reference(path, reference, inputs)
    return reference
