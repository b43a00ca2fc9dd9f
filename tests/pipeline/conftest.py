"""The fixtures of a run that stages and plans share."""

from tests.commands.conftest import untrained

__all__ = ["untrained"]
