"""Test doubles for your tests: a tiny model, a byte tokenizer, a scripted speaker.

With them, a test of a scenario or a policy needs no weights and no download, and takes no time. The
package itself does not import this module.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import jax
import numpy as np

from ixjax.dialogue.tokenizer import SPECIAL_TOKENS, train_tokenizer
from ixjax.dialogue.types import Dialogue, OutcomeReading, Role, Utterance
from ixjax.models import ModelArguments, Transformer, init_model
from ixjax.parallel import make_mesh

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

Distribution = Callable[[Dialogue], Mapping[str, float]]


def tiny_model(vocab_size: int, *, max_length: int = 128, seed: int = 0) -> Transformer:
    """Return a decoder of two layers with random weights, on one device."""
    arguments = ModelArguments(
        hidden_size=32,
        num_layers=2,
        num_heads=4,
        num_kv_heads=2,
        intermediate_size=64,
        max_length=max_length,
    )

    return init_model(
        arguments.to_config(vocab_size), seed=seed, mesh=make_mesh(devices=jax.devices()[:1])
    )


def byte_tokenizer() -> PreTrainedTokenizerFast:
    """Return a tokenizer of bytes, as `train_tokenizer` makes it, with the special tokens."""
    return train_tokenizer([""], vocab_size=256 + len(SPECIAL_TOKENS))


class ScriptedSpeaker:
    """A `Speaker` that samples from a known distribution.

    A turn is a function of the seed, the role, the identity and the dialogue so far, so any two
    searches that ask for the same turn get the same text. With `reading` it is also a `User`.

    Args:
        role: the side that it speaks for.
        distribution: from a dialogue to the probability of each text; they sum to 1.
        reading: from a dialogue to its outcome; a `User` needs it.
        ends: whether the turn just spoken ends the dialogue; default never.
        seed: of the run, 0 or more.
    """

    def __init__(
        self,
        role: Role,
        distribution: Distribution,
        *,
        reading: Callable[[Dialogue], OutcomeReading] | None = None,
        ends: Callable[[Dialogue], bool] | None = None,
        seed: int = 0,
    ):
        self.role: Role = role
        self._distribution = distribution
        self._reading = reading
        self._ends = ends
        self._seed = seed

    def begin(self, dialogue: Dialogue, *, near: object = None) -> ScriptedParticipant:
        """See `ixjax.generation.Speaker`."""
        return ScriptedParticipant(self, dialogue)

    def turn(self, dialogue: Dialogue, identity: Sequence[int]) -> Utterance:
        """Return the next turn of a dialogue."""
        # A spawn key: as entropy, [1, 5] and [1, 5, 0] would give the same stream.
        key = (int(self.role == "user"), *map(int, identity))
        draw = np.random.default_rng(np.random.SeedSequence(self._seed, spawn_key=key)).random()
        options = self._distribution(dialogue)
        place = int(np.searchsorted(np.cumsum(list(options.values())), draw, "right"))
        text = list(options)[min(place, len(options) - 1)]
        ended = self._ends is not None and self._ends(dialogue.said(self.role, text))
        return Utterance(text=text, ended=ended, num_tokens=len(text.split()))

    def read(self, dialogue: Dialogue) -> OutcomeReading:
        """Return the outcome of a dialogue.

        Raises:
            ValueError: the speaker has no `reading`.
        """
        if self._reading is None:
            raise ValueError("this speaker reads no outcomes; give it reading=...")
        return self._reading(dialogue)


class ScriptedParticipant:
    """A scripted speaker in one dialogue; see `ixjax.generation.UserParticipant`."""

    def __init__(self, speaker: ScriptedSpeaker, dialogue: Dialogue):
        self.speaker, self.dialogue = speaker, dialogue

    def speak(self, identity: Sequence[int]) -> Generator[Any, Any, Utterance]:
        """See `ixjax.generation.Participant`; it never waits."""
        yield from ()
        said = self.speaker.turn(self.dialogue, identity)
        self.dialogue = self.dialogue.said(self.speaker.role, said.text)
        return said

    def hear(self, text: str) -> None:
        """See `ixjax.generation.Participant`."""
        other: Role = "user" if self.speaker.role == "policy" else "policy"
        self.dialogue = self.dialogue.said(other, text)

    def fork(self, count: int) -> Generator[Any, Any, list[ScriptedParticipant]]:
        """See `ixjax.generation.Participant`."""
        yield from ()
        return [ScriptedParticipant(self.speaker, self.dialogue) for _ in range(count)]

    def close(self) -> None:
        """See `ixjax.generation.Participant`."""

    def outcome(self) -> Generator[Any, Any, OutcomeReading]:
        """See `ixjax.generation.UserParticipant` and `ScriptedSpeaker.read`."""
        yield from ()
        return self.speaker.read(self.dialogue)
