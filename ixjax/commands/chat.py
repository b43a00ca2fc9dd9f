"""`ixjax chat`: talk with a model in the terminal."""

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
    TurnTaking,
    speaker_engine,
)
from ixjax.io import InputError
from ixjax.models.config import DType
from ixjax.padding import bucket
from ixjax.parallel import MeshConfig, make_mesh
from ixjax.search import SearchConfig, SearchingPolicy, ThinkingSession

SUMMARY = "Talk with a model in the terminal: with the policy as its user, or the other way round."


@dataclasses.dataclass(frozen=True)
class Settings:
    """The model, the side that the person takes, and how the model speaks."""

    out: str = ""
    """The run directory that holds the model."""
    model: str = ""
    """A model of the run, Hugging Face folder or *.gguf; empty: the aligned policy (simulator)."""
    role: Annotated[Role, tyro.conf.arg(name="as")] = "user"
    """The side that you speak for; the model takes the other."""
    condition: str = ""
    """Id of the user's condition; empty: with --as policy or --think the first held-out one."""
    think: int = 0
    """Iterations of i×MCTS before each turn of the policy; 0: it speaks without a search."""
    scenario: str = ""
    """Name of the scenario; needed for a Hugging Face folder that does not name it."""
    seed: int = 0
    """Seed of the model's turns: the same words get the same answers."""
    dtype: DType | None = None
    """Type of weights and computation; default: the run's, or bfloat16 for a folder."""
    readout: ReadOut = "expected"
    """How engagement is read from the simulator: expected (scored lines) or sampled (a line)."""
    sampling: SamplingConfig = dataclasses.field(
        # A small model drifts off at a temperature of 1.
        default_factory=lambda: SamplingConfig(temperature=0.7, top_p=0.9, max_new_tokens=256)
    )
    """How the model's turns are sampled; default: as the run, or the checkpoint, says."""
    search: SearchConfig = dataclasses.field(default_factory=SearchConfig)
    """The search of --think: one tree of as many iterations as --think says."""
    engine: EngineConfig = dataclasses.field(default_factory=EngineConfig)
    """How the generation engine lays out its work, with no more rows than the chat can fill."""
    mesh: MeshConfig = dataclasses.field(default_factory=MeshConfig)
    """How devices are laid out."""

    @property
    def side(self) -> Role:
        """Return the model's side."""
        return "policy" if self.role == "user" else "user"

    @property
    def thinking(self) -> SearchConfig:
        """Return the search before each turn."""
        return dataclasses.replace(self.search, iterations=self.think, trees=1)

    @property
    def layout(self) -> EngineConfig:
        """Return the engine's settings; rows that no dialogue fills would only take time."""
        rows = bucket(self.thinking.most_rollouts) if self.think else 1
        return dataclasses.replace(self.engine, rows=min(self.engine.rows, rows))


def execute(settings: Settings, run: pipeline.Run | None, console: Console) -> None:
    """Load the model and hold the conversation until the person ends it."""
    checkpoint = pipeline.find_checkpoint(run, settings.model, role=settings.side)
    settings = _with_scenario(settings, checkpoint)
    simulator = _simulator(settings, run) if settings.think else None
    root, condition = _root(settings, run)
    with console.status(f"reading {checkpoint.name}"):
        session = _session(settings, checkpoint, simulator, root)
    where = f" of {run.directory.root}" if run is not None and checkpoint.command else ""
    console.print(f"{checkpoint.name}{where} is the {settings.side}, you are the {settings.role}.")
    scenario = session.scenario
    if condition is not None:
        prompt = scenario.simulator_prompt(condition)
        console.print(f"The user's condition, {condition.id}: {prompt}", style="dim")
    if settings.side == "user":
        console.print(f"The policy's prompt: {scenario.policy_prompt}", style="dim")
    if simulator is not None:
        console.print(
            f"Before each turn it searches, with {simulator.name} as a user in this condition; "
            "/why shows what it considered.",
            style="dim",
        )
    console.print("/help lists the commands, Ctrl-D ends the chat.\n", style="dim")
    with contextlib.suppress(ImportError):  # lines can be edited where the system has it
        import readline  # noqa: F401
    folder = Path() if run is None else run.directory.root / "chats"
    name = time.strftime("chat-%Y%m%d-%H%M%S")
    Conversation(session, console, input, folder=folder, name=name).hold()


def _simulator(settings: Settings, run: pipeline.Run | None) -> pipeline.Checkpoint:
    """Return the simulator that the policy searches with."""
    given = f"--think is {settings.think}"
    if settings.think < 0:
        raise InputError(f"{given}; expected 0 or more")
    if settings.role == "policy":
        raise InputError(f"{given} with --as policy; expected --as user, as the policy searches")
    if run is None:
        raise InputError(f"{given} without a run; expected --out RUN, which has a simulator")
    try:
        return pipeline.find_checkpoint(run, "", role="user")
    except InputError as error:
        raise InputError(f"{given}, which needs a simulator; {error}") from None


def _session(
    settings: Settings,
    checkpoint: pipeline.Checkpoint,
    simulator: pipeline.Checkpoint | None,
    root: Dialogue,
) -> TurnTaking:
    """Return a session with a model that speaks at once, or searches with a simulator first."""
    speaker = _speaker(settings, checkpoint, settings.side)
    if simulator is None:
        return Session(speaker, root)
    user = _speaker(settings, simulator, "user")
    # Few iterations visit few responses, so visits say less than mean returns.
    policy = SearchingPolicy(
        speaker,
        user,
        speaker.view.scenario,
        settings.thinking,
        choose="value",
        seed=settings.seed,
    )
    return ThinkingSession(policy, root)


def _with_scenario(settings: Settings, checkpoint: pipeline.Checkpoint) -> Settings:
    """Return the settings with the model's scenario if they name none."""
    theirs = checkpoint.scenario
    if theirs and settings.scenario not in ("", theirs):
        raise InputError(
            f"--scenario is {settings.scenario!r}; expected {theirs!r}, the scenario of "
            f"{checkpoint.name}. Leave --scenario out"
        )
    return dataclasses.replace(settings, scenario=settings.scenario or theirs)


def _speaker(settings: Settings, checkpoint: pipeline.Checkpoint, side: Role) -> ModelSpeaker:
    model, template = checkpoint.load(mesh=make_mesh(settings.mesh), dtype=settings.dtype)
    view = View(scenario=get_scenario(settings.scenario), role=side, template=template)
    try:
        return ModelSpeaker(
            speaker_engine(model, view, settings.sampling, settings.layout),
            view,
            settings.sampling,
            seed=settings.seed,
            readout=settings.readout,
        )
    except ValueError as error:  # turns as long as the context
        raise InputError(f"{error}; set a smaller --sampling.max-new-tokens") from None


def _root(settings: Settings, run: pipeline.Run | None) -> tuple[Dialogue, UserCondition | None]:
    """Return the dialogue's beginning, and the user's condition if there is one."""
    if run is None:
        if not settings.scenario:
            raise InputError(
                "--scenario is not set; the folder names none. Set --scenario, or --out RUN"
            )
        if settings.role == "policy":
            raise InputError(
                "--as is policy without a run; expected --out RUN, as only a run holds conditions"
            )
        if settings.condition:
            raise InputError(
                f"--condition is {settings.condition!r} without a run; expected --out RUN, as only "
                "a run holds conditions"
            )
    elif settings.role == "policy" or settings.condition or settings.think:
        root = _find(run, settings.condition)
        if settings.role == "policy":
            return root, root.condition
        # The person opens the dialogue: the root's turns are another user's.
        return root.before(0), root.condition
    return Dialogue("chat", UserCondition("chat", {}), ()), None


def _find(run: pipeline.Run, name: str) -> Dialogue:
    """Return the root of a condition, by default the first held-out one."""
    roots = [*run.roots("test"), *run.roots("train")]
    by_id = {root.condition.id: root for root in roots}
    if name and name not in by_id:
        near = difflib.get_close_matches(name, by_id, n=1)
        raise InputError(
            f"--condition is {name!r}; expected one of the {len(by_id)} ids in "
            f"{run.directory.conditions}, such as {roots[0].condition.id}"
            + (f"; perhaps you meant {near[0]}" if near else "")
        )
    return by_id[name] if name else roots[0]
