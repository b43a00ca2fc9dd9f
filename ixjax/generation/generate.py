"""Batch generation for whoever needs tokens and no dialogue."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from ixjax.generation.config import EngineConfig
from ixjax.generation.contexts import Turns
from ixjax.generation.engine import Engine
from ixjax.generation.sampling import SamplingConfig
from ixjax.models import Transformer


def generate(
    model: Transformer,
    prompts: Sequence[Sequence[int]],
    sampling: SamplingConfig | Sequence[SamplingConfig],
    *,
    max_new_tokens: int,
    seed: int,
    end_ids: Sequence[int] = (),
    adapters: Sequence[int] | int = 0,
    engine_config: EngineConfig | None = None,
) -> list[list[int]]:
    """Continue each prompt.

    Args:
        model: the decoder.
        prompts: token ids, one non-empty list a prompt, of any lengths.
        sampling: temperature and the like, one for all prompts or one each; its own
            `max_new_tokens` is not used. It has no `stop`: that is text, of which nothing is known
            here (`ModelSpeaker` has both).
        max_new_tokens: tokens sampled at most per prompt.
        seed: prompt i's random numbers depend on (seed, i) alone; so do its tokens, but for two of
            a probability that differs in its last bits from one number of prompts to another.
        end_ids: tokens that end a continuation; they are returned too.
        adapters: the adapter of each prompt, or of all; -1: the base alone.
        engine_config: sizes of the batches and the attention kernel.

    Returns:
        The continuations, without their prompts.

    Raises:
        ValueError: no prompt, an empty one, or one that does not fit the model with its answer; a
            negative `max_new_tokens`, stop strings, or what `Engine.extend` refuses.
    """
    if not prompts or not all(prompts):
        raise ValueError("generate needs at least one prompt, each with at least one token")
    if max_new_tokens < 0:
        raise ValueError(f"max_new_tokens is {max_new_tokens}; it must be 0 or more")
    configs = [sampling] if isinstance(sampling, SamplingConfig) else sampling
    if stops := next((config.stop for config in configs if config.stop), None):
        raise ValueError(
            f"sampling.stop is {stops}; generate knows tokens alone and would not see it: leave it "
            "out, or use a ModelSpeaker"
        )
    longest = max(map(len, prompts))
    if longest + max_new_tokens > model.config.max_length:
        raise ValueError(
            f"a prompt of {longest} tokens and max_new_tokens={max_new_tokens} exceed the "
            f"model's max_length of {model.config.max_length}"
        )
    engine = Engine(model, engine_config)
    contexts = engine.extend(engine.empty(len(prompts), adapters=adapters), prompts)
    turns = Turns(
        sampling=sampling,
        seed=seed,
        identities=np.arange(len(prompts), dtype=np.uint32)[:, None],
        limits=np.full(len(prompts), max_new_tokens),
        end_ids=end_ids,
    )
    return engine.decode(contexts, turns)[1].tokens
