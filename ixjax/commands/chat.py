"""`ixjax chat`: Talk with a model in the terminal."""

from __future__ import annotations

import contextlib
import dataclasses
import difflib
import time
from pathlib import Path
from typing import Annotated

import tyro
from rich.console import Console

from ixjax import pipeline
from ixjax.commands.conversation import Conversation
from ixjax.dialogue import Dialogue, UserCondition, get_scenario
from ixjax.dialogue.chat import View
from ixjax.dialogue.types import Role
from ixjax.generation import (
    EngineConfig,
    ModelSpeaker,
    ReadOut,
    SamplingConfig,
    Session,
    speaker_engine,
)
from ixjax.io import InputError
from ixjax.models.config import DType
from ixjax.parallel import MeshConfig, make_mesh

SUMMARY = "Talk with a model in the terminal: with the policy as its user, or the other way round."


@dataclasses.dataclass(frozen=True)
class Settings:
    """Who talks with whom, about what."""

    out: str = ""
    """The run directory that holds the model."""
    model: str = ""
    """Which of its models, such as policy_dpo/imcts, or a Hugging Face folder; default: the aligned
    policy, or policy_sft; the simulator with --as policy."""
    role: Annotated[Role, tyro.conf.arg(name="as")] = "user"
    """The side that you speak for; the model has the other."""
    condition: str = ""
    """Id of the run's condition that the user is in; default: with --as policy the first held-out
    one, else none."""
    scenario: str = ""
    """What the dialogue is about; needed for a Hugging Face folder without a run."""
    seed: int = 0
    """Of what the model says: the same words get the same answers."""
    dtype: DType | None = None
    """Of weights and computation; default: as a run wrote them, bfloat16 for a folder."""
    readout: ReadOut = "expected"
    """How engagement is read from the simulator: expected (scored lines) or sampled (a line)."""
    sampling: SamplingConfig = dataclasses.field(
        default_factory=lambda: SamplingConfig(max_new_tokens=256)
    )
    """How the model draws its turns."""
    engine: EngineConfig = dataclasses.field(default_factory=EngineConfig)
    """How the generation engine lays out its work."""
    mesh: MeshConfig = dataclasses.field(default_factory=MeshConfig)
    """How devices are laid out."""


def execute(settings: Settings, run: pipeline.Run | None, console: Console) -> None:
    """Load the model, and talk until the person has enough."""
    side: Role = "policy" if settings.role == "user" else "user"
    checkpoint = pipeline.find_checkpoint(run, settings.model, role=side)
    root, condition = _root(settings, run)
    with console.status(f"reading {checkpoint.name}"):
        speaker = _speaker(settings, checkpoint, side)
    where = f" of {run.directory.root}" if run is not None and checkpoint.command else ""
    console.print(f"{checkpoint.name}{where} is the {side}, you are the {settings.role}.")
    scenario = speaker.view.scenario
    if condition is not None:
        told = scenario.simulator_prompt(condition)
        console.print(f"The user's condition, {condition.id}: {told}", style="dim")
    if side == "user":
        console.print(f"The policy is told: {scenario.policy_prompt}", style="dim")
    console.print("/help lists what else you can do, Ctrl-D ends.\n", style="dim")
    with contextlib.suppress(ImportError):  # lines can be edited where the system has it
        import readline  # noqa: F401
    folder = Path() if run is None else run.directory.root / "chats"
    name = time.strftime("chat-%Y%m%d-%H%M%S")
    Conversation(Session(speaker, root), console, input, folder=folder, name=name).hold()


def _speaker(settings: Settings, checkpoint: pipeline.Checkpoint, side: Role) -> ModelSpeaker:
    model, template = checkpoint.load(mesh=make_mesh(settings.mesh), dtype=settings.dtype)
    view = View(scenario=get_scenario(settings.scenario), role=side, template=template)
    try:
        return ModelSpeaker(
            model,
            view,
            settings.sampling,
            seed=settings.seed,
            readout=settings.readout,
            engine=speaker_engine(model, view, settings.sampling, settings.engine),
        )
    except ValueError as error:  # turns as long as the context
        raise InputError(f"sampling: {error}; set a smaller --sampling.max-new-tokens") from None


def _root(settings: Settings, run: pipeline.Run | None) -> tuple[Dialogue, UserCondition | None]:
    """Where the dialogue begins, and the condition that the user is in, if any."""
    if run is None:
        if not settings.scenario:
            raise InputError("scenario: a folder does not say; set --scenario, or --out RUN")
        if settings.role == "policy" or settings.condition:
            raise InputError("condition: only a run holds conditions; set --out RUN")
    elif settings.role == "policy" or settings.condition:
        root = _find(run, settings.condition)
        if settings.role == "policy":
            return root, root.condition
        # The person opens as it likes: a root holds the words of another user.
        return root.before(0), root.condition
    return Dialogue("chat", UserCondition("chat", {}), ()), None


def _find(run: pipeline.Run, name: str) -> Dialogue:
    """The root of a condition; the first held-out one by default."""
    roots = [*run.roots("test"), *run.roots("train")]
    by_id = {root.condition.id: root for root in roots}
    if name and name not in by_id:
        near = difflib.get_close_matches(name, by_id, n=1)
        raise InputError(
            f"condition: {name!r} is none of the {len(by_id)} of {run.directory.conditions} (such "
            f"as {roots[0].condition.id})" + (f"; perhaps you meant {near[0]}" if near else "")
        )
    return by_id[name] if name else roots[0]
