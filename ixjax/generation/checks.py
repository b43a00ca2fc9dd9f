"""Checks of the engine's arguments.

An accelerator raises no errors: it clamps a token outside the vocabulary and a position beyond the
last, and broadcasts an array of one row. So arguments are checked once, on the host, before they
become arrays.
"""

from __future__ import annotations

import dataclasses
import numbers
from collections.abc import Mapping, Sequence

from jax import Array

from ixjax.generation.blocks import Context
from ixjax.generation.requests import MOST_PARTS, Request
from ixjax.models import ModelConfig, adapter_paths
from ixjax.models.transformer import weight_specs


def check_adapter(adapter: int, config: ModelConfig) -> None:
    """Refuse an adapter that the model lacks: the base model alone would be used instead.

    Raises:
        ValueError: names the adapter.
    """
    count = 0 if config.lora is None else config.lora.adapters
    if not -1 <= adapter < max(count, 1):
        raise ValueError(
            f"adapter is {adapter}; the model has {count} (counted from 0; -1: base model alone)"
        )


def check_adapter_weights(index: int, weights: Mapping[str, Array], config: ModelConfig) -> None:
    """Refuse an adapter of another shape than the model's, or for a place that it lacks.

    Raises:
        ValueError: names the adapter or the weight.
    """
    if config.lora is None or not 0 <= index < config.lora.adapters:
        raise ValueError(f"adapter is {index}; expected one of {config.lora or 'no adapter'}")
    one = dataclasses.replace(config, lora=dataclasses.replace(config.lora, adapters=1))
    specs = weight_specs(one)
    expected = {name: specs[name].shape for name in adapter_paths(one)}
    found = {name: weight.shape for name, weight in weights.items()}
    for name in sorted(expected.keys() | found.keys()):
        if found.get(name) != expected.get(name):
            raise ValueError(f"{name} is {found.get(name)}; expected {expected.get(name)}")


def check_owner(context: Context, engine: object) -> None:
    """Refuse a context of another engine: its keys and values are from other weights.

    Raises:
        ValueError: the context has another owner.
    """
    if context.owner is not engine:
        raise ValueError("the context was made by another engine; make one with this engine's new")


def check_tokens(tokens: Sequence[int], config: ModelConfig) -> None:
    """Refuse ids outside the vocabulary.

    Raises:
        ValueError: names the token.
    """
    if len(tokens) and not (min(tokens) >= 0 and max(tokens) < config.vocab_size):
        token = next(token for token in tokens if not 0 <= token < config.vocab_size)
        raise ValueError(f"token {token} was given; the model's vocab_size is {config.vocab_size}")


def check_room(context: Context, count: int, config: ModelConfig) -> None:
    """Refuse more tokens than a context has room for.

    Raises:
        ValueError: names the numbers.
    """
    if len(context) + count > config.max_length:
        raise ValueError(
            f"a context holds {len(context)} tokens; {count} more exceed the model's max_length "
            f"of {config.max_length}"
        )


def check_requests(requests: Sequence[Request], engine: object, config: ModelConfig) -> None:
    """Refuse turns that can't be decoded together.

    Raises:
        ValueError: names the field.
    """
    if len({id(request.context) for request in requests}) < len(requests):
        raise ValueError("two requests share a context; fork it, so that each has one to append to")
    for request in requests:
        check_owner(request.context, engine)
        if not len(request.context):
            raise ValueError("a request's context has no token; extend it first")
        if not isinstance(request.limit, numbers.Integral) or request.limit < 1:
            raise ValueError(f"Request.limit is {request.limit}; expected an integer of 1 or more")
        if not 1 <= len(request.identity) <= MOST_PARTS:
            raise ValueError(
                f"Request.identity has {len(request.identity)} numbers; expected 1 to {MOST_PARTS}"
            )
        check_tokens(request.end_ids, config)
        check_room(request.context, request.limit - len(request.tokens), config)


def check_scored(
    contexts: Sequence[Context],
    prefixes: Sequence[Sequence[int]],
    candidates: Sequence[Sequence[Sequence[int]]],
    engine: object,
    config: ModelConfig,
) -> None:
    """Refuse continuations that can't be scored, see `Engine.score`.

    Raises:
        ValueError: names the index of the context.
    """
    if not contexts or not any(map(len, candidates)):
        raise ValueError(
            f"{len(contexts)} contexts and no candidate were given; expected 1 or more of each"
        )
    for name, given in (("prefixes", prefixes), ("candidates", candidates)):
        if len(given) != len(contexts):
            raise ValueError(f"{name} has {len(given)} entries; expected {len(contexts)}")
    for i, (context, prefix, tails) in enumerate(zip(contexts, prefixes, candidates, strict=True)):
        check_owner(context, engine)
        if not len(context) or not len(prefix):
            empty = "its prefix" if len(context) else "it"
            raise ValueError(f"context {i}: {empty} has no token; expected 1 or more")
        if len(tails) != len(candidates[0]):
            raise ValueError(
                f"context {i} has {len(tails)} candidates, context 0 has {len(candidates[0])}; "
                "pad with empty ones"
            )
        for tokens in (prefix, *tails):
            check_tokens(tokens, config)
        check_room(context, len(prefix) + max(map(len, tails), default=0), config)
