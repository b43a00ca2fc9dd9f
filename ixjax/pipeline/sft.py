"""Human dialogues in; policy, simulator and held-out simulator out."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

from ixjax.dialogue.types import Role
from ixjax.models import Transformer, init_model, load_hf
from ixjax.pipeline.bases import check_vocabulary
from ixjax.pipeline.inputs import speaker_seed
from ixjax.pipeline.run import Reporter, Run, tell_steps
from ixjax.pipeline.sharding import tell_sharding
from ixjax.training import sft_examples, train_sft

SHOWN = ("loss", "validation_loss")  # to who watches a training


@dataclasses.dataclass(frozen=True)
class SpeakerPlan:
    """One of the three models that SFT trains."""

    name: str
    directory: Path
    role: Role
    split: str


def speaker_plans(run: Run) -> list[SpeakerPlan]:
    """Policy and simulator learn from the same dialogues, the held-out simulator from others."""
    directory = run.directory
    return [
        SpeakerPlan("policy", directory.policy_sft, "policy", "train"),
        SpeakerPlan("simulator", directory.simulator, "user", "train"),
        SpeakerPlan("simulator_heldout", directory.simulator_heldout, "user", "train_heldout"),
    ]


def train_speakers(run: Run, reporter: Reporter) -> dict[str, Any]:
    """Train the three models, each continued from its checkpoint where it was interrupted.

    Returns:
        The last metrics of each model by name.
    """
    run.require("prepare")
    return {plan.name: _train(run, plan, reporter) for plan in speaker_plans(run)}


def _train(run: Run, plan: SpeakerPlan, reporter: Reporter) -> dict[str, Any]:
    config = run.config
    stage, seed = f"sft/{plan.name}", speaker_seed(plan.name, config.seed)
    with run.stage(stage) as facts:
        if facts is None:
            return run.facts(stage)
        view = run.view(plan.role)
        rate = config.sft.prefix_outcome_rate
        train, valid = (
            sft_examples(
                run.dialogues(split),
                view,
                max_tokens=config.model.max_length,
                prefix_outcome_rate=rate,
                seed=seed,
            )
            for split in (plan.split, "valid")
        )

        def on_step(metrics: dict[str, Any]) -> None:
            tell_steps(reporter, f"sft {plan.name}", metrics, shown=SHOWN)
            run.log(stage, metrics)
            facts.update(metrics)

        facts["examples"] = len(train)
        facts["dropped_turns"] = sum(example.dropped_turns for example in train)
        model = initial_model(run, seed=seed)
        tell_sharding(reporter, f"sft {plan.name}", model.config, config.sft, run.mesh)
        reporter.start(f"sft {plan.name}", config.sft.steps, "steps")
        train_sft(
            model,
            train,
            valid,
            config.sft,
            mesh=run.mesh,
            seed=seed,
            directory=plan.directory,
            on_step=on_step,
            checkpoints=config.checkpoints,
            resume=config.resume,
            profiler=run.profiler(stage),
        )
        reporter.finish(**{name: facts[name] for name in SHOWN if name in facts})
    return run.facts(stage)


def initial_model(run: Run, *, seed: int) -> Transformer:
    """What SFT starts from: a Hugging Face checkpoint, or fresh weights."""
    arguments = run.config.model
    if arguments.path:
        model = load_hf(
            arguments.path,
            mesh=run.mesh,
            dtype=arguments.param_dtype,
            compute_dtype=arguments.compute_dtype,
            max_length=arguments.max_length,
        )
        check_vocabulary(arguments.path, model.config, run.template)
        return model
    vocabulary = run.template.vocab_size
    return init_model(arguments.to_config(vocabulary), seed=seed, mesh=run.mesh)
