"""Generation: an engine over token ids, speakers that put words to it, and play between them."""

from ixjax.generation.account import Account, RecompilationError
from ixjax.generation.config import DebugConfig, EngineConfig
from ixjax.generation.contexts import Contexts, Decoded, Turns
from ixjax.generation.engine import Engine
from ixjax.generation.games import Finished, Game, Spoken
from ixjax.generation.generate import generate
from ixjax.generation.in_play import InPlay
from ixjax.generation.outcomes import ReadOut
from ixjax.generation.protocols import Speaker, User
from ixjax.generation.sampling import SamplingConfig
from ixjax.generation.scheduler import play, side_by_side
from ixjax.generation.session import Session
from ixjax.generation.speakers import ModelSpeaker, speaker_engine
from ixjax.generation.turn_taking import TurnTaking

__all__ = [
    "Account",
    "Contexts",
    "DebugConfig",
    "Decoded",
    "Engine",
    "EngineConfig",
    "Finished",
    "Game",
    "InPlay",
    "ModelSpeaker",
    "ReadOut",
    "RecompilationError",
    "SamplingConfig",
    "Session",
    "Speaker",
    "Spoken",
    "TurnTaking",
    "Turns",
    "User",
    "generate",
    "play",
    "side_by_side",
    "speaker_engine",
]
