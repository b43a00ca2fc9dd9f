"""Generation: an engine over token ids, and speakers that put words to it."""

from ixjax.generation.engine import Engine
from ixjax.generation.generate import generate
from ixjax.generation.sampling import SamplingConfig
from ixjax.generation.session import Session
from ixjax.generation.speakers import ModelSpeaker, ReadOut, Speaker, User

__all__ = [
    "Engine",
    "ModelSpeaker",
    "ReadOut",
    "SamplingConfig",
    "Session",
    "Speaker",
    "User",
    "generate",
]
