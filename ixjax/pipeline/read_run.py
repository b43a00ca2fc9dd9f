"""A run from Python: its settings, and its models as speakers. Nothing is written."""

from __future__ import annotations

import dataclasses
from pathlib import Path

from ixjax.generation import ModelSpeaker
from ixjax.io import RunDirectory
from ixjax.pipeline.checkpoints import find_checkpoint
from ixjax.pipeline.config import RunConfig
from ixjax.pipeline.run import Run
from ixjax.pipeline.settings import load


def read_run(out: str | Path) -> Run:
    """Return the run in a directory, with its recorded settings.

    Raises:
        InputError: there is no run, or config.yaml is damaged.
    """
    directory = RunDirectory.existing(str(out))
    config = load(RunConfig, str(directory.config))
    return Run(dataclasses.replace(config, out=str(out)), directory)


def speakers(
    run: Run, *, policy: str = "", simulator: str = "simulator"
) -> tuple[ModelSpeaker, ModelSpeaker]:
    """Return a policy and a simulator of a run, ready for `search.run` and `generation.play`.

    Args:
        run: with finished models.
        policy: its name, such as `policy_sft`; default the aligned policy, or else the SFT policy.
        simulator: its name, `simulator` or `simulator_heldout`.

    Raises:
        InputError: a model does not exist or is not finished, or it speaks for the other side.
    """
    moves = find_checkpoint(run, policy, role="policy")
    answers = find_checkpoint(run, simulator, role="user")
    return run.speaker(moves.path, "policy"), run.speaker(answers.path, "user")
