"""Generation: an engine over token ids, speakers that turn its tokens into text, and rollouts."""

from ixjax.generation.blocks import BlockPool, Context
from ixjax.generation.config import DebugConfig, EngineConfig
from ixjax.generation.driver import Driver, Effect, Task, run_all, run_one, together, wait
from ixjax.generation.engine import Engine
from ixjax.generation.generate import generate
from ixjax.generation.outcomes import ReadOut
from ixjax.generation.protocols import Participant, Speaker, User, UserParticipant
from ixjax.generation.requests import Request
from ixjax.generation.rollouts import Rollout, play, rollout
from ixjax.generation.sampling import SamplingConfig
from ixjax.generation.session import Session
from ixjax.generation.speakers import ModelSpeaker, speaker_engine
from ixjax.generation.stats import EngineStats, RecompilationError
from ixjax.generation.turn_taking import TurnTaking

__all__ = [
    "BlockPool",
    "Context",
    "DebugConfig",
    "Driver",
    "Effect",
    "Engine",
    "EngineConfig",
    "EngineStats",
    "ModelSpeaker",
    "Participant",
    "ReadOut",
    "RecompilationError",
    "Request",
    "Rollout",
    "SamplingConfig",
    "Session",
    "Speaker",
    "Task",
    "TurnTaking",
    "User",
    "UserParticipant",
    "generate",
    "play",
    "rollout",
    "run_all",
    "run_one",
    "speaker_engine",
    "together",
    "wait",
]
