"""`ixjax parity`: Compare log-probabilities of the engine and the trainer."""

from __future__ import annotations

import dataclasses
import math
import sys

from rich.console import Console

from ixjax import pipeline
from ixjax.commands.summary import print_parity
from ixjax.dialogue.chat import View
from ixjax.dialogue.scenarios import get_scenario
from ixjax.dialogue.scenarios.sandbox import generate_corpus
from ixjax.evaluation import TOLERANCES, not_finite, parity
from ixjax.generation import EngineConfig, SamplingConfig
from ixjax.io import InputError
from ixjax.models.config import DType
from ixjax.parallel import MeshConfig, make_mesh

SUMMARY = "Compare the engine's log-probabilities with the trainer's, token by token."


@dataclasses.dataclass(frozen=True)
class Settings:
    """The models and dialogues to compare."""

    out: str = ""
    """A run directory: its models are compared on dialogues of its test split."""
    model: str = ""
    """A model of the run, Hugging Face folder or *.gguf; default: every finished model."""
    dialogues: int = 8
    """Dialogues to compare, one turn each."""
    tolerance: float | None = None
    """Largest difference allowed, in nats; default: 1e-3 for float32, 0.1 for 16 bit."""
    dtype: DType | None = None
    """Type of weights and computation; default: a run's own type, bfloat16 for a folder."""
    seed: int = 0
    """Seed of the sampled turns."""
    sampling: SamplingConfig = dataclasses.field(default_factory=SamplingConfig)
    """How turns are sampled."""
    engine: EngineConfig = dataclasses.field(default_factory=EngineConfig)
    """How the generation engine lays out its work."""
    mesh: MeshConfig = dataclasses.field(default_factory=MeshConfig)
    """How devices are laid out."""


def execute(settings: Settings, run: pipeline.Run | None, console: Console) -> None:
    """Compare and print a table; exit with code 1 if a difference is too large."""
    if settings.dialogues < 1:
        raise InputError(f"--dialogues is {settings.dialogues}; expected 1 or more")
    if settings.tolerance is not None and not 0 <= settings.tolerance < math.inf:
        raise InputError(
            f"--tolerance is {settings.tolerance}; expected a finite number, 0 or more"
        )
    checkpoints = _chosen(settings, run)
    if run is None:
        scenario = get_scenario("sandbox")
        dialogues = generate_corpus(settings.dialogues, seed=settings.seed)
    else:
        scenario, dialogues = run.scenario, run.dialogues("test")[: settings.dialogues]
    mesh, found, allowed = make_mesh(settings.mesh), {}, settings.tolerance
    for checkpoint in checkpoints:
        model, template = checkpoint.load(mesh=mesh, dtype=settings.dtype)
        broken = not_finite(model)
        if broken:
            raise InputError(
                f"{checkpoint.path}: weight {broken[0]} holds NaN or infinite values "
                f"({len(broken)} such weights); expected finite ones"
            )
        view = View(scenario=scenario, role=checkpoint.role or "policy", template=template)
        if allowed is None:  # all models of a run have one type
            allowed = TOLERANCES[model.config.compute_dtype]
        found[checkpoint.name] = parity(
            model,
            view,
            dialogues,
            sampling=settings.sampling,
            seed=settings.seed,
            engine_config=settings.engine,
        )
    assert allowed is not None
    print_parity(console, found, allowed)
    if max(model.worst.size for model in found.values()) > allowed:
        print(f"error: engine and trainer differ by more than {allowed:g} nats", file=sys.stderr)
        sys.exit(1)


def _chosen(settings: Settings, run: pipeline.Run | None) -> list[pipeline.Checkpoint]:
    """Return the named model, or every finished one of the run."""
    if run is None or settings.model:
        return [pipeline.find_checkpoint(run, settings.model)]
    finished = [found for found in pipeline.run_checkpoints(run) if found.finished]
    return finished or [pipeline.find_checkpoint(run, "policy_sft")]  # raises: no model is finished
