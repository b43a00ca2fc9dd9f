"""Supervised fine-tuning of policy, simulator and held-out simulator on human dialogues."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from ixjax.models import Transformer, init_model, load_hf
from ixjax.pipeline.base_model import check_vocabulary
from ixjax.pipeline.reporter import Reporter
from ixjax.pipeline.run import Run
from ixjax.pipeline.stages import SPEAKERS, STAGES, speaker_seed
from ixjax.pipeline.training import report_sharding, training_arguments
from ixjax.training import is_finished, save_model, sft_examples, train_sft
from ixjax.training.saved_models import model_fingerprint

SHOWN = ("loss", "validation_loss")  # metrics in the progress line


def train_speakers(run: Run, reporter: Reporter) -> dict[str, Any]:
    """Train the three models; interrupted trainings continue.

    Returns:
        The last metrics of each model by name.
    """
    run.require("prepare")
    return {name: _train(run, name, reporter) for name in SPEAKERS}


def _train(run: Run, name: str, reporter: Reporter) -> dict[str, Any]:
    config, stage = run.config, STAGES[f"sft/{name}"]
    seed = speaker_seed(name, config.seed)
    with run.stage(stage.name) as facts:
        if facts is None:
            return run.facts(stage.name)
        assert stage.role is not None
        view = run.view(stage.role)
        learned = "train_heldout" if name == "simulator_heldout" else "train"
        train, valid = (
            sft_examples(
                run.dialogues(split),
                view,
                max_tokens=config.model.max_length,
                prefix_outcome_rate=config.sft.prefix_outcome_rate,
                seed=seed,
            )
            for split in (learned, "valid")
        )
        every = [one for example in train for one in (example, *example.branches)]
        facts["examples"] = len(every)
        facts["dropped_turns"] = sum(example.dropped_turns for example in every)
        model = initial_model(run, seed=seed)
        report_sharding(reporter, stage.title, model.config, config.sft, run.mesh)
        reporter.start(stage.title, config.sft.steps, "steps")
        train_sft(
            model,
            train,
            valid,
            config.sft,
            seed=seed,
            base=_saved_base(run, model) if config.sft.lora.rank else None,
            **training_arguments(run, stage, reporter, facts, shown=SHOWN),
        )
        reporter.finish(**{name: facts[name] for name in SHOWN if name in facts})
    return run.facts(stage.name)


def _saved_base(run: Run, model: Transformer) -> Path:
    """Return the folder of the model that the speakers adapt; write it if it is not there."""
    folder, identity = run.directory.base, model_fingerprint(model)
    if not is_finished(folder, identity):
        save_model(model, folder, inputs=identity)
    return folder


def initial_model(run: Run, *, seed: int) -> Transformer:
    """Return the initial model: a Hugging Face checkpoint, or random weights."""
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
