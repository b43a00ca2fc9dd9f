"""Drawing tokens: temperature and nucleus, with randomness that belongs to an identity.

A token is drawn by inverting the cumulative distribution at one uniform number, which is a
function of (seed, identity of the row, index of the token) and of nothing else: neither of the
batch nor of the row that a context happens to lie in (docs/algorithm.md, randomness).
"""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp

BISECTION_STEPS = 32  # halvings of [0, 1]: finer than float32 probabilities can tell apart


@dataclasses.dataclass(frozen=True)
class SamplingConfig:
    """How a speaker draws its turns."""

    temperature: float = 1.0
    """Divides the logits; 0 takes the most likely token."""
    top_p: float = 1.0
    """Smallest set of tokens with at least this probability is kept; 1 keeps all."""
    max_new_tokens: int = 48
    """Longest turn in tokens; a turn that reaches it is cut."""

    def __post_init__(self) -> None:
        """Refuse values outside their ranges."""
        if self.temperature < 0:
            raise ValueError(f"temperature is {self.temperature}; it must be 0 or more")
        if not 0 < self.top_p <= 1:
            raise ValueError(f"top_p is {self.top_p}; it must be in (0, 1]")
        if self.max_new_tokens < 1:
            raise ValueError(f"max_new_tokens is {self.max_new_tokens}; it must be at least 1")


def identity_keys(seed: jax.Array, identities: jax.Array) -> jax.Array:
    """A key per row from what the row is.

    Args:
        seed: typed key of the run.
        identities: `[S, k]` uint32, for example (condition, node, sample, turn, speaker).

    Returns:
        `[S]` typed keys.
    """

    def fold(key: jax.Array, identity: jax.Array) -> jax.Array:
        return jax.lax.scan(lambda k, part: (jax.random.fold_in(k, part), None), key, identity)[0]

    return jax.vmap(fold, in_axes=(None, 0))(seed, identities)


def sample(
    logits: jax.Array, keys: jax.Array, *, temperature: jax.Array, top_p: jax.Array
) -> tuple[jax.Array, jax.Array]:
    """Draw one token per row.

    Args:
        logits: `[S, V]` float32.
        keys: `[S]` typed keys, consumed.
        temperature: scalar, >= 0; 0 is greedy.
        top_p: scalar in (0, 1].

    Returns:
        tokens `[S]` int32 and their log-probabilities `[S]` under the untempered, full softmax.
    """
    greedy = jnp.argmax(logits, axis=-1)
    probabilities = jax.nn.softmax(logits / jnp.maximum(temperature, 1e-6), axis=-1)
    kept = jax.lax.cond(top_p < 1, lambda p: keep_nucleus(p, top_p), lambda p: p, probabilities)
    uniform = jax.vmap(jax.random.uniform)(keys)
    drawn = jnp.where(temperature == 0, greedy, invert(kept, uniform, otherwise=greedy))
    logprobs = jax.nn.log_softmax(logits, axis=-1)
    chosen = jnp.take_along_axis(logprobs, drawn[:, None], axis=-1)[:, 0]
    return drawn.astype(jnp.int32), chosen


def invert(weights: jax.Array, uniform: jax.Array, *, otherwise: jax.Array) -> jax.Array:
    """The first token of positive weight whose cumulative weight exceeds `uniform` of the total.

    Args:
        weights: `[S, V]`, not negative.
        uniform: `[S]` in [0, 1).
        otherwise: `[S]` tokens for rows where rounding leaves none.
    """
    # A parallel sum is not monotonic in its last bit, so that over a stretch of zero weights it
    # can pass the target: the weight itself must be asked, too.
    cumulative = jnp.cumsum(weights, axis=-1)
    passed = (cumulative > uniform[:, None] * cumulative[:, -1:]) & (weights > 0)
    return jnp.where(passed.any(-1), jnp.argmax(passed, axis=-1), otherwise)


def keep_nucleus(probabilities: jax.Array, top_p: jax.Array) -> jax.Array:
    """Zero all but the smallest set of most likely tokens whose mass reaches `top_p`.

    The threshold is bisected: no sort over the vocabulary. Tokens tied at it are all kept.

    References: Holtzman et al. 2020, "The Curious Case of Neural Text Degeneration".
    """

    def halve(bounds: tuple[jax.Array, jax.Array], _: None):
        low, high = bounds
        middle = (low + high) / 2
        mass = jnp.sum(jnp.where(probabilities >= middle, probabilities, 0.0), -1, keepdims=True)
        enough = mass >= top_p
        return (jnp.where(enough, middle, low), jnp.where(enough, high, middle)), None

    top = probabilities.max(-1, keepdims=True)
    # `low` always keeps enough mass, `high` (just above the top) never does.
    bounds = (jnp.zeros_like(top), top * 1.0001)
    (low, _), _ = jax.lax.scan(halve, bounds, None, length=BISECTION_STEPS)
    return jnp.where(probabilities >= low, probabilities, 0.0)
