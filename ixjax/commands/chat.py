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
    TurnTaking,
    speaker_engine,
)
from ixjax.io import InputError
from ixjax.models.config import DType
from ixjax.parallel import MeshConfig, make_mesh
from ixjax.search import SearchConfig, SearchingPolicy, ThinkingSession

SUMMARY = "Talk with a model in the terminal: with the policy as its user, or the other way round."


@dataclasses.dataclass(frozen=True)
class Settings:
    """Who talks with whom, about what."""

    out: str = ""
    """The run directory that holds the model."""
    model: str = ""
    """A model of the run, or a Hugging Face folder; empty: the aligned policy (or simulator)."""
    role: Annotated[Role, tyro.conf.arg(name="as")] = "user"
    """The side that you speak for; the model has the other."""
    condition: str = ""
    """Id of the user's condition; empty: with --as policy or --think the first held-out one."""
    think: int = 0
    """Iterations of i×MCTS before each turn of the policy's; 0: it says what comes first."""
    scenario: str = ""
    """What the dialogue is about; needed for a Hugging Face folder that does not say."""
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
    search: SearchConfig = dataclasses.field(default_factory=SearchConfig)
    """The search of --think, as in the run, for one tree of so many iterations."""
    engine: EngineConfig = dataclasses.field(default_factory=EngineConfig)
    """How the generation engine lays out its work."""
    mesh: MeshConfig = dataclasses.field(default_factory=MeshConfig)
    """How devices are laid out."""

    @property
    def side(self) -> Role:
        """The model's side."""
        return "policy" if self.role == "user" else "user"


def execute(settings: Settings, run: pipeline.Run | None, console: Console) -> None:
    """Load the model, and talk until the person has enough."""
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
        told = scenario.simulator_prompt(condition)
        console.print(f"The user's condition, {condition.id}: {told}", style="dim")
    if settings.side == "user":
        console.print(f"The policy is told: {scenario.policy_prompt}", style="dim")
    if simulator is not None:
        console.print(
            f"Before each turn it searches, with {simulator.name} as a user in this condition; "
            "/why shows what it considered.",
            style="dim",
        )
    console.print("/help lists what else you can do, Ctrl-D ends.\n", style="dim")
    with contextlib.suppress(ImportError):  # lines can be edited where the system has it
        import readline  # noqa: F401
    folder = Path() if run is None else run.directory.root / "chats"
    name = time.strftime("chat-%Y%m%d-%H%M%S")
    Conversation(session, console, input, folder=folder, name=name).hold()


def _simulator(settings: Settings, run: pipeline.Run | None) -> pipeline.Checkpoint:
    """Whom the policy searches with."""
    given = f"think is {settings.think}"
    if settings.think < 0:
        raise InputError(f"{given}; expected 0 or more iterations")
    if settings.role == "policy":
        raise InputError(f"{given}, with --as policy; expected --as user: the policy searches")
    if run is None:
        raise InputError(
            f"{given}, without a simulator; expected --out RUN with one to search with"
        )
    try:
        return pipeline.find_checkpoint(run, "", role="user")
    except InputError as error:
        raise InputError(f"{given}, which takes a simulator; {error}") from None


def _session(
    settings: Settings,
    checkpoint: pipeline.Checkpoint,
    simulator: pipeline.Checkpoint | None,
    root: Dialogue,
) -> TurnTaking:
    """The dialogue with a model that speaks at once, or that searches with a simulator first."""
    speaker = _speaker(settings, checkpoint, settings.side)
    if simulator is None:
        return Session(speaker, root)
    user = _speaker(settings, simulator, "user")
    config = dataclasses.replace(settings.search, iterations=settings.think, trees=1)
    # After few iterations visits tell little: they come `width` at a time, and to some only.
    policy = SearchingPolicy(
        speaker, user, speaker.view.scenario, config, choose="value", seed=settings.seed
    )
    return ThinkingSession(policy, root)


def _with_scenario(settings: Settings, checkpoint: pipeline.Checkpoint) -> Settings:
    """The settings with the scenario that the model was trained on, where they leave it open."""
    theirs = checkpoint.scenario
    if theirs and settings.scenario not in ("", theirs):
        raise InputError(
            f"scenario is {settings.scenario!r}; {checkpoint.name} is a model of {theirs!r}: leave "
            "--scenario out"
        )
    return dataclasses.replace(settings, scenario=settings.scenario or theirs)


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
            raise InputError("scenario: the folder does not say; set --scenario, or --out RUN")
        if settings.role == "policy":
            raise InputError(
                "as: to you as the policy the model plays a user in some condition, and only a run "
                "holds conditions; set --out RUN"
            )
        if settings.condition:
            raise InputError("condition: only a run holds conditions; set --out RUN")
    elif settings.role == "policy" or settings.condition or settings.think:
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
