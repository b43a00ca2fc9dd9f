"""Generation: an engine over token ids, speakers that put words to it, and play between them."""

from ixjax.generation.account import Account, RecompilationError
from ixjax.generation.config import DebugConfig, EngineConfig
from ixjax.generation.contexts import Contexts, Decoded, Turns
from ixjax.generation.engine import Engine
from ixjax.generation.games import Finished, Game
from ixjax.generation.generate import generate
from ixjax.generation.protocols import Speaker, User
from ixjax.generation.sampling import SamplingConfig
from ixjax.generation.scheduler import play
from ixjax.generation.session import Session
from ixjax.generation.speakers import ModelSpeaker, ReadOut, speaker_engine

__all__ = [
    "Account",
    "Contexts",
    "DebugConfig",
    "Decoded",
    "Engine",
    "EngineConfig",
    "Finished",
    "Game",
    "ModelSpeaker",
    "ReadOut",
    "RecompilationError",
    "SamplingConfig",
    "Session",
    "Speaker",
    "Turns",
    "User",
    "generate",
    "play",
    "speaker_engine",
]
