"""Alignment of one policy per source of pairs: human, i×MCTS, their mix, a file."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from ixjax import io
from ixjax.dialogue.chat import RenderedPair
from ixjax.dialogue.preference_tokens import pair_lengths
from ixjax.dialogue.preferences import SHOWN_LINES
from ixjax.distributed import is_first
from ixjax.models import Transformer
from ixjax.pipeline.checkpoints import find_checkpoint
from ixjax.pipeline.export import export
from ixjax.pipeline.preferences import given_pairs
from ixjax.pipeline.reporter import Reporter
from ixjax.pipeline.run import Run
from ixjax.pipeline.stages import PREFERENCES, STAGES, Stage, pair_sources
from ixjax.pipeline.training import report_sharding, training_arguments
from ixjax.search import PAIRS_SCHEMA, PreferencePair
from ixjax.training import (
    ReferenceIdentity,
    get_loss,
    load_reference,
    reference_logprobs,
    save_reference,
    train_dpo,
)
from ixjax.training.saved_models import base_of

SHOWN = ("loss", "rewards/accuracies")  # metrics in the progress line


def align(run: Run, reporter: Reporter) -> dict[str, Any]:
    """Train one policy on each source of pairs, all from the SFT policy.

    Returns:
        The last metrics by source.
    """
    run.require("prepare", "sft/policy")
    sources = pair_sources(run.config)
    if sources != (PREFERENCES,):
        run.require("pairs")
    return {source: _align(run, source, reporter) for source in sources}


def _align(run: Run, source: str, reporter: Reporter) -> dict[str, Any]:
    config, stage = run.config, STAGES[f"dpo/{source}"]
    with run.stage(stage.name) as facts:
        if facts is None:
            return run.facts(stage.name)
        rendered, account = _rendered(run, source)
        facts.update(account)
        _report_pairs(reporter, source, facts)
        policy = run.load(run.directory.policy_sft)
        report_sharding(reporter, stage.title, policy.config, config.dpo, run.mesh)
        reference = None
        if get_loss(config.dpo.variant).has_reference:
            reference = _reference(run, stage, policy, rendered, reporter)
        reporter.start(stage.title, config.dpo.steps, "steps")
        train_dpo(
            policy,
            rendered,
            config.dpo,
            seed=config.seed,
            reference=reference,
            # A new adapter is trained on a policy whose own is merged: that is another base.
            base=None if config.dpo.lora.rank else base_of(run.directory.policy_sft),
            **training_arguments(run, stage, reporter, facts, shown=SHOWN),
        )
        if config.export:
            _export(run, source, reporter)
        reporter.finish(pairs=len(rendered))
    return run.facts(stage.name)


def _rendered(run: Run, source: str) -> tuple[list[RenderedPair], dict[str, Any]]:
    """Return the pairs of one source, at most `dpo.max_pairs` drawn by the seed, and facts."""
    facts: dict[str, Any] = {}
    if source == PREFERENCES:
        found, rows = given_pairs(run)
        facts = {"file": run.preferences_fingerprint, "rows": rows}
        rendered = _draw(run, found)
    else:
        view, room = run.view("policy"), run.config.model.max_length
        rendered = [
            view.pair(p.history, p.chosen, p.rejected, max_tokens=room)
            for p in _draw(run, _pairs(run, source))
        ]
    facts |= {
        "pairs": len(rendered),
        "lengths": pair_lengths(rendered),
        "dropped_turns": sum(pair.dropped_turns for pair in rendered),
    }
    return rendered, facts


def _pairs(run: Run, source: str) -> list[PreferencePair]:
    """Return the pairs that the run made, of one source."""
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
            f"{run.directory.human_pairs}: no {source} pair; expected one or more: the policy "
            "repeated every human turn"
        )
    return found


def _draw(run: Run, found: Sequence[Any]) -> list[Any]:
    order = np.random.default_rng(run.config.seed).permutation(len(found))
    return [found[i] for i in order[: run.config.dpo.max_pairs]]


def _report_pairs(reporter: Reporter, source: str, facts: Mapping[str, Any]) -> None:
    """Report the pairs of a source before the training."""
    lengths = "; ".join(
        f"{name} {size['median']} / {size['p95']} / {size['longest']}"
        for name, size in facts["lengths"].items()
    )
    reporter.note(
        f"dpo {source}: {facts['pairs']:,} pairs, tokens (median / 95 % / longest): {lengths}; "
        f"{facts['dropped_turns']:,} oldest turns dropped"
    )
    rows = facts.get("rows")
    if rows is None:
        return
    reporter.note(
        f"dpo {source}: {rows['format']}, {rows['read']:,} rows, {rows['kept']:,} of them pairs, "
        f"{rows['shortened_prompts']:,} prompts shortened (by {rows['dropped_turns']:,} turns and "
        f"{rows['cut_tokens']:,} tokens)"
    )
    for rule, count in rows["dropped"].items():
        places = ", ".join(rows["dropped_at"][rule]) + (", ..." if count > SHOWN_LINES else "")
        reporter.note(f"dpo {source}: left out as {rule.replace('_', ' ')}: {count:,} ({places})")


def _reference(
    run: Run,
    stage: Stage,
    policy: Transformer,
    rendered: Sequence[RenderedPair],
    reporter: Reporter,
) -> Any:
    """Return reference log-probabilities, from disk if they are of this policy and tokens."""
    path = stage.model(run.directory) / "reference.json"
    identity = ReferenceIdentity.of(policy, rendered, tokenizer=run.template.fingerprint)
    stored, reason = load_reference(path, identity, strict=run.config.reference.strict)
    if stored is not None:
        return stored
    reporter.note(f"dpo {stage.member}: computing reference log-probabilities ({reason})")
    reference = reference_logprobs(policy, rendered, run.config.dpo, mesh=run.mesh)
    if is_first():
        save_reference(path, reference, identity)
    return reference


def _export(run: Run, source: str, reporter: Reporter) -> None:
    """Write an aligned policy as a Hugging Face folder; a failure is reported, not raised."""
    name, folder = f"policy_dpo/{source}", run.directory.exported / source
    try:
        export(run, find_checkpoint(run, name), folder, overwrite=True, mesh=run.mesh)
    except Exception as error:  # any failure: the training is finished
        reporter.note(
            f"dpo {source}: the policy could not be exported ({error}). Run `ixjax export "
            f"--out {run.directory.root} --model {name} --to FOLDER`."
        )
    else:
        reporter.note(f"dpo {source}: the policy is exported to {folder}")
