"""Batch generation for token lists without a dialogue."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

from ixjax.generation.config import EngineConfig
from ixjax.generation.engine import Engine
from ixjax.generation.requests import Request
from ixjax.generation.sampling import SamplingConfig
from ixjax.models import Transformer
from ixjax.padding import bucket


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
        prompts: token ids, one non-empty list per prompt; lengths may differ.
        sampling: temperature and the like, for all prompts or one each. Its `max_new_tokens` is not
            used, and its `stop` must be empty: stop strings need a `ModelSpeaker`.
        max_new_tokens: most tokens sampled per prompt.
        seed: prompt i's random numbers depend on (seed, i) only. So do its tokens, except where two
            tokens are almost equally likely: there the number of prompts may decide.
        end_ids: tokens that end a continuation; they are returned too.
        adapters: the adapter of each prompt, or of all; -1 for the base model alone.
        engine_config: sizes of the batches and the attention kernel.

    Returns:
        The continuations, without their prompts.

    Raises:
        ValueError: there is no prompt, a prompt is empty or too long for the model,
            `max_new_tokens` is negative, there are stop strings, the number of adapters or settings
            is wrong, or the model lacks a token or adapter.
    """
    if not len(prompts) or not all(map(len, prompts)):
        raise ValueError("expected at least one prompt, each with at least one token")
    if max_new_tokens < 0:
        raise ValueError(f"max_new_tokens is {max_new_tokens}; expected 0 or more")
    count = len(prompts)
    configs = [sampling] * count if isinstance(sampling, SamplingConfig) else list(sampling)
    chosen = [adapters] * count if isinstance(adapters, int) else list(adapters)
    for name, found in (("sampling", configs), ("adapters", chosen)):
        if len(found) != count:
            raise ValueError(f"{name} has {len(found)} entries; expected {count}, one per prompt")
    if stops := next((config.stop for config in configs if config.stop), None):
        raise ValueError(
            f"sampling.stop is {stops}; expected none: generate has no text to find it in. Leave "
            "it out, or use a ModelSpeaker"
        )
    longest = max(map(len, prompts))
    if longest + max_new_tokens > model.config.max_length:
        raise ValueError(
            f"a prompt of {longest} tokens and max_new_tokens={max_new_tokens} exceed the "
            f"model's max_length of {model.config.max_length}"
        )
    if not max_new_tokens:
        return [[] for _ in prompts]
    settings = engine_config or EngineConfig()
    rows = min(settings.rows, bucket(count, smallest=1))
    engine = Engine(model, dataclasses.replace(settings, rows=rows))
    contexts = [engine.new(p, adapter=a) for p, a in zip(prompts, chosen, strict=True)]
    engine.pool.reserve(sum(len(p) + max_new_tokens + 64 for p in prompts))
    requests = [
        Request(context, config, seed, (i,), max_new_tokens, end_ids)
        for i, (context, config) in enumerate(zip(contexts, configs, strict=True))
    ]
    return [request.tokens for request in engine.decode(requests)]
