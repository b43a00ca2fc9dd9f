"""Doubles for your own tests: a tiny model, a byte tokenizer, a scripted speaker.

Public, and not imported by the package: tests of a scenario or of a policy need no weights, no
download and no seconds.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING

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
    """A decoder of two layers with random weights, on one device."""
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
    """Our own kind of tokenizer with bytes alone: any text, 256 tokens and the special ones."""
    return train_tokenizer([""], vocab_size=256 + len(SPECIAL_TOKENS))


class ScriptedSpeaker:
    """A `Speaker` that draws from a known distribution; its state is the dialogues themselves.

    What it says is keyed on the seed, its role and the identity it is given, and what it may say
    on the dialogue so far: any implementation that asks at the same place meets the same answer.
    With a `reading` it is a `User` too, and so a world whose every value is known.

    Args:
        role: whose turns it speaks.
        distribution: text -> probability at any dialogue; sums to 1.
        reading: the outcome that a dialogue has come to; a `User` needs it.
        ends: whether the dialogue is over with the turn just spoken; default: never.
        seed: of the run, 0 or more.
    """

    def __init__(
        self,
        role: Role,
        distribution: Distribution,
        *,
        reading: Callable[[Dialogue], OutcomeReading] | None = None,
        ends: Callable[[Dialogue], bool] = lambda dialogue: False,
        seed: int = 0,
    ):
        self._role: Role = role
        self._other: Role = "user" if role == "policy" else "policy"
        self._distribution = distribution
        self._reading = reading
        self._ends = ends
        self._seed = seed

    def empty(self, rows: int) -> list[Dialogue | None]:
        """See `ixjax.generation.Speaker`."""
        return [None] * rows

    def start(self, dialogues: Sequence[Dialogue]) -> list[Dialogue | None]:
        """See `ixjax.generation.Speaker`."""
        return list(dialogues)

    def speak(
        self, state: Sequence[Dialogue | None], identities: np.ndarray, active: np.ndarray
    ) -> tuple[list[Dialogue | None], list[Utterance | None]]:
        """See `ixjax.generation.Speaker`."""
        after = list(state)
        said: list[Utterance | None] = [None] * len(after)
        for row in map(int, np.flatnonzero(active)):
            dialogue = _held(after, row)
            text = self._draw(dialogue, identities[row])
            dialogue = dialogue.said(self._role, text)
            ended = self._ends(dialogue)
            after[row] = dialogue
            said[row] = Utterance(text=text, ended=ended, num_tokens=len(text.split()))
        return after, said

    def _draw(self, dialogue: Dialogue, identity: np.ndarray) -> str:
        # A spawn key, not more entropy: there [1, 5] and [1, 5, 0] would be the same stream.
        key = (int(self._role == "user"), *map(int, identity))
        draw = np.random.default_rng(np.random.SeedSequence(self._seed, spawn_key=key)).random()
        options = self._distribution(dialogue)
        place = int(np.searchsorted(np.cumsum(list(options.values())), draw, "right"))
        return list(options)[min(place, len(options) - 1)]

    def outcomes(
        self, state: Sequence[Dialogue | None], active: np.ndarray
    ) -> list[OutcomeReading | None]:
        """See `ixjax.generation.User`.

        Raises:
            ValueError: it was made without a `reading`, or an active row is empty.
        """
        if self._reading is None:
            raise ValueError("this speaker reads no outcomes; give it reading=...")
        return [self._reading(_held(state, row)) if on else None for row, on in enumerate(active)]

    def listen(
        self, state: Sequence[Dialogue | None], texts: Sequence[str | None]
    ) -> list[Dialogue | None]:
        """See `ixjax.generation.Speaker`."""
        return [
            dialogue if text is None or dialogue is None else dialogue.said(self._other, text)
            for dialogue, text in zip(state, texts, strict=True)
        ]

    def fork(self, state: Sequence[Dialogue | None], rows: np.ndarray) -> list[Dialogue | None]:
        """See `ixjax.generation.Speaker`."""
        return [state[row] for row in rows]

    def store(
        self,
        state: Sequence[Dialogue | None],
        rows: np.ndarray,
        source: Sequence[Dialogue | None],
        source_rows: np.ndarray,
    ) -> list[Dialogue | None]:
        """See `ixjax.generation.Speaker`."""
        stored = list(state)
        for row, source_row in zip(rows, source_rows, strict=True):
            stored[row] = source[source_row]
        return stored


def _held(state: Sequence[Dialogue | None], row: int) -> Dialogue:
    dialogue = state[row]
    if dialogue is None:
        raise ValueError(f"row {row} is active and holds no dialogue; `start` or `store` one")
    return dialogue
