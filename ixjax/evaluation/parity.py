"""Parity: whether the engine and the trainer compute the same log-probabilities.

DPO uses log-probabilities of a teacher-forced pass; dialogues are played through a KV cache, in
several passes of other shapes. Both must be the same function of the tokens, up to the rounding of
their type: otherwise a policy is not trained on its own probabilities. So turns are decoded by the
engine, scored by it, and read by the trainer, and compared token by token.

Axes: S dialogues, C candidates.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Literal

import jax.numpy as jnp
import numpy as np

from ixjax.dialogue.chat import Rendered, View
from ixjax.dialogue.types import Dialogue
from ixjax.generation import Engine, EngineConfig, Request, SamplingConfig
from ixjax.io import InputError
from ixjax.models import Transformer
from ixjax.models.config import DType
from ixjax.models.sharding import weights_by_path
from ixjax.training import example_logprobs

TOLERANCES: dict[DType, float] = {"float32": 1e-3, "bfloat16": 0.1, "float16": 0.1}
"""Largest difference of a log-probability due to rounding, in nats, by compute type."""

Way = Literal["decoded", "scored"]


@dataclasses.dataclass(frozen=True)
class Difference:
    """The log-probabilities of one token by engine and trainer.

    dialogue: its id.
    token: index in the turn that the engine sampled.
    text: the token as text.
    way: whether the engine decoded or scored the turn.
    engine: log-probability by the engine, in nats.
    trainer: log-probability by the trainer.
    """

    dialogue: str
    token: int
    text: str
    way: Way
    engine: float
    trainer: float

    @property
    def size(self) -> float:
        """Return the absolute difference; infinite if a value is not finite."""
        distance = abs(self.engine - self.trainer)
        return distance if np.isfinite(distance) else float("inf")


@dataclasses.dataclass(frozen=True)
class Parity:
    """Differences of log-probabilities between engine and trainer for one model.

    dialogues: compared turns, one per dialogue.
    tokens: tokens in them.
    largest: largest difference by way, in nats.
    mean: mean difference by way.
    worst: the token with the largest difference.
    """

    dialogues: int
    tokens: int
    largest: dict[Way, float]
    mean: dict[Way, float]
    worst: Difference


def not_finite(model: Transformer) -> list[str]:
    """Return the paths of weights with a NaN or an infinity."""
    return [
        name for name, weight in weights_by_path(model).items() if not jnp.isfinite(weight).all()
    ]


def parity(
    model: Transformer,
    view: View,
    dialogues: Sequence[Dialogue],
    *,
    sampling: SamplingConfig,
    seed: int,
    engine_config: EngineConfig | None = None,
) -> Parity:
    """Compare the engine's log-probabilities with the trainer's on turns that the engine samples.

    Args:
        model: the decoder.
        view: how it sees a dialogue.
        dialogues: each is cut before its last turn of this side, which the engine samples.
        sampling: how turns are sampled.
        seed: of the run.
        engine_config: sizes of the engine's batches, and its attention kernel.

    Raises:
        InputError: this side has no turn in any dialogue, or a context has no room.
    """
    histories = [history for d in dialogues if (history := _history(view, d)) is not None]
    if not histories:
        raise InputError(f"the {view.role} has no turn in any of {len(dialogues)} dialogues")
    room = model.config.max_length - sampling.max_new_tokens
    prompts = [view.context(history, max_tokens=room).tokens for history in histories]
    engine = Engine(model, engine_config)
    turns, decoded = _decode(engine, view, prompts, sampling=sampling, seed=seed)
    scored = _score(engine, prompts, turns)
    examples = [
        Rendered((*prompt, *turn), (False,) * len(prompt) + (True,) * len(turn), dropped_turns=0)
        for prompt, turn in zip(prompts, turns, strict=True)
    ]
    trained = example_logprobs(model, examples)

    def differences(way: Way, logprobs: Sequence[Sequence[float] | np.ndarray]) -> list[Difference]:
        compared = zip(histories, turns, logprobs, trained, strict=True)
        return [
            Difference(history.id, i, _text(view, token), way, float(mine[i]), float(theirs[i]))
            for history, turn, mine, theirs in compared
            for i, token in enumerate(turn)
        ]

    found: dict[Way, list[Difference]] = {
        "decoded": differences("decoded", decoded),
        "scored": differences("scored", scored),
    }
    return Parity(
        dialogues=len(turns),
        tokens=sum(map(len, turns)),
        largest={way: max(d.size for d in each) for way, each in found.items()},
        mean={way: float(np.mean([d.size for d in each])) for way, each in found.items()},
        worst=max((d for each in found.values() for d in each), key=lambda d: d.size),
    )


def _history(view: View, dialogue: Dialogue) -> Dialogue | None:
    """Return the dialogue before this side's last turn; None if it has no turn."""
    own = [i for i, turn in enumerate(dialogue.turns) if turn.role == view.role]
    return dialogue.before(own[-1]) if own else None


def _decode(
    engine: Engine,
    view: View,
    prompts: Sequence[Sequence[int]],
    *,
    sampling: SamplingConfig,
    seed: int,
) -> tuple[list[list[int]], list[list[float]]]:
    """Return a turn after each prompt, and the log-probability of each of its tokens."""
    requests = [
        Request(
            engine.new(prompt),
            sampling,
            seed,
            (i,),
            sampling.max_new_tokens,
            view.template.end_ids,
        )
        for i, prompt in enumerate(prompts)
    ]
    decoded = engine.decode(requests)
    return [request.tokens for request in decoded], [request.logprobs for request in decoded]


def _score(
    engine: Engine, prompts: Sequence[Sequence[int]], turns: Sequence[Sequence[int]]
) -> list[np.ndarray]:
    """Return the log-probabilities by scoring: each beginning of a turn is a candidate."""
    contexts = [engine.new(prompt[:-1]) for prompt in prompts]
    longest = max(map(len, turns))
    candidates = [[turn[: n + 1] for n in range(longest)] for turn in turns]
    sums = engine.score(contexts, [prompt[-1:] for prompt in prompts], candidates)  # [S, C]
    tokens = np.diff(sums.astype(np.float64), axis=1, prepend=0.0)
    return [row[: len(turn)] for row, turn in zip(tokens, turns, strict=True)]


def _text(view: View, token: int) -> str:
    return str(view.template.tokenizer.decode([token]))
