"""Drawing tokens: every setting per row, with randomness that belongs to an identity.

A token is drawn by inverting the cumulative distribution at a uniform number, which is a function
of (seed, identity of the row, index of the token) and of nothing else: neither of the batch nor of
the row that a context happens to lie in (docs/algorithm.md, randomness).

The nucleus needs no sort and hardly ever a threshold. Whether one token belongs to it is one sum
over the vocabulary (the mass of likelier tokens is below top_p), so tokens are drawn from the whole
distribution until one belongs to it, which gives the distribution over the nucleus exactly. Rows
that are still without a token after `ATTEMPTS` draws get theirs through the threshold.

Axes: S rows, V vocabulary.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

ATTEMPTS = 6  # draws before the nucleus is computed: at top_p 0.9, one row in a million gets there
DRAWS = ATTEMPTS + 1  # random numbers a token
BLOCK = 64  # tokens that are summed before the cumulative sum
ONE_BITS = 0x3F800000  # of float32 1.0


@dataclasses.dataclass(frozen=True)
class SamplingConfig:
    """How a speaker draws its turns."""

    temperature: float = 1.0
    """Divides the logits; 0 takes the most likely token."""
    top_k: int = 0
    """This many most likely tokens are kept; 0 keeps all."""
    top_p: float = 1.0
    """Smallest set of tokens with at least this probability is kept; 1 keeps all."""
    min_p: float = 0.0
    """Tokens less likely than this fraction of the most likely one are dropped."""
    repetition_penalty: float = 1.0
    """Logits of tokens that the context holds are divided (negative: multiplied) by it."""
    max_new_tokens: int = 48
    """Longest turn in tokens; a turn that reaches it is cut."""
    stop: tuple[str, ...] = ()
    """Texts that end a turn, e.g. a role's name in a model without end tokens; they are cut off."""

    def __post_init__(self) -> None:
        """Refuse values outside their ranges."""
        if not 0 <= self.temperature < float("inf"):
            raise ValueError(f"temperature is {self.temperature}; it must be 0 or more")
        if self.top_k < 0:
            raise ValueError(f"top_k is {self.top_k}; it must be 0 or more")
        if not 0 < self.top_p <= 1:
            raise ValueError(f"top_p is {self.top_p}; it must be in (0, 1]")
        if not 0 <= self.min_p <= 1:
            raise ValueError(f"min_p is {self.min_p}; it must be in [0, 1]")
        if not 0 < self.repetition_penalty < float("inf"):
            raise ValueError(
                f"repetition_penalty is {self.repetition_penalty}; it must be more than 0"
            )
        if self.max_new_tokens < 1:
            raise ValueError(f"max_new_tokens is {self.max_new_tokens}; it must be at least 1")
        if not isinstance(self.stop, tuple) or "" in self.stop:  # one text would be its letters
            raise ValueError(
                f"stop is {self.stop!r}; it must be a tuple of texts, none of them empty"
            )


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class RowSampling:
    """The settings of each row, `[S]` arrays: changing one never compiles."""

    temperature: jax.Array
    top_k: jax.Array
    top_p: jax.Array
    min_p: jax.Array
    repetition_penalty: jax.Array

    @classmethod
    def of(cls, configs: Sequence[SamplingConfig]) -> RowSampling:
        """Row s as `configs[s]` says."""

        def column(name: str, dtype: type) -> Any:
            return np.array([getattr(config, name) for config in configs], dtype)

        return cls(
            temperature=column("temperature", np.float32),
            top_k=column("top_k", np.int32),
            top_p=column("top_p", np.float32),
            min_p=column("min_p", np.float32),
            repetition_penalty=column("repetition_penalty", np.float32),
        )


def identity_keys(
    seeds: jax.Array, identities: jax.Array, parts: jax.Array | None = None
) -> jax.Array:
    """Return a key per row from the row's identity.

    Args:
        seeds: `[S]` typed keys of the run.
        identities: `[S, k]` uint32, for example (condition, node, sample, turn, speaker).
        parts: `[S]` how many of the k count; default all.

    Returns:
        `[S]` typed keys.
    """
    count = jnp.full(seeds.shape, identities.shape[1]) if parts is None else parts

    def fold(key: jax.Array, identity: jax.Array, count: jax.Array) -> jax.Array:
        def one(key: jax.Array, part: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, None]:
            index, number = part
            return jnp.where(index < count, jax.random.fold_in(key, number), key), None

        return jax.lax.scan(one, key, (jnp.arange(len(identity)), identity))[0]

    return jax.vmap(fold)(seeds, identities, count)


def uniforms(keys: jax.Array) -> jax.Array:
    """The numbers in [0, 1) that one token is drawn with, `[..., DRAWS]`; consumes the keys.

    Computed for many tokens at once: one by one, in a loop, they take a sixth of decoding.
    """
    later = jax.vmap(jax.random.fold_in, in_axes=(None, 0))
    each = lambda key: jnp.append(
        jax.random.uniform(key), jax.vmap(jax.random.uniform)(later(key, jnp.arange(1, DRAWS)))
    )
    return jax.vmap(each)(keys.reshape(-1)).reshape(*keys.shape, DRAWS)


def sample(
    logits: jax.Array, uniform: jax.Array, rows: RowSampling, seen: jax.Array
) -> tuple[jax.Array, jax.Array]:
    """Draw one token per row.

    Settings act in transformers' order: repetition penalty, temperature, top-k, top-p, min-p.

    Args:
        logits: `[S, V]` float32.
        uniform: `[S, DRAWS]` from `uniforms`.
        rows: settings.
        seen: `[S, V]` bool, tokens that the row's context holds; read where a penalty is not 1.

    Returns:
        tokens `[S]` int32 and their log-probabilities `[S]` under the untempered, full softmax of
        the logits as given.
    """
    scores = jax.lax.cond(
        jnp.any(rows.repetition_penalty != 1), penalise, lambda x, *_: x, logits, seen, rows
    )
    scaled = scores / jnp.maximum(rows.temperature, 1e-6)[:, None]
    weights = jnp.exp(scaled - scaled.max(-1, keepdims=True))
    weights = jax.lax.cond(jnp.any(rows.top_k > 0), keep_top_k, lambda w, _: w, weights, rows.top_k)
    drawn = _draw(weights, uniform, rows)
    token = jnp.where(rows.temperature == 0, _first(scores == scores.max(-1, keepdims=True)), drawn)
    chosen = jnp.take_along_axis(logits, token[:, None], axis=-1)[:, 0]
    return token, chosen - jax.nn.logsumexp(logits, axis=-1)


def penalise(logits: jax.Array, seen: jax.Array, rows: RowSampling) -> jax.Array:
    """Scores of tokens that were seen, made smaller (Keskar et al. 2019, "CTRL")."""
    penalty = rows.repetition_penalty[:, None]
    return jnp.where(seen, jnp.where(logits < 0, logits * penalty, logits / penalty), logits)


def _draw(weights: jax.Array, uniform: jax.Array, rows: RowSampling) -> jax.Array:
    """`[S]` tokens from `[S, V]` weights of which the largest is 1, min-p and top-p applied."""
    possible = jnp.where(weights >= rows.min_p[:, None], weights, 0.0)
    needed = rows.top_p * weights.sum(-1)
    whole = (rows.top_p >= 1) | (rows.temperature == 0)

    def belongs(token):
        weight = jnp.take_along_axis(weights, token[:, None], axis=-1)
        likelier = jnp.sum(jnp.where(weights > weight, weights, 0.0), axis=-1)
        return whole | (likelier < needed)

    def attempt(state):
        i, token, accepted = state
        new = invert(possible, uniform[:, i])
        return i + 1, jnp.where(accepted, token, new), accepted | belongs(new)

    def unfinished(state):
        i, _, accepted = state
        return (i < ATTEMPTS) & ~jnp.all(accepted)

    first = invert(possible, uniform[:, 0])
    accepted = jax.lax.cond(jnp.all(whole), lambda _: whole, belongs, first)
    _, token, accepted = jax.lax.while_loop(unfinished, attempt, (1, first, accepted))

    def by_threshold(token):
        kept = jnp.where(keep_nucleus(weights, rows.top_p) > 0, possible, 0.0)
        last = invert(kept, uniform[:, ATTEMPTS])
        return jnp.where(accepted, token, last)

    return jax.lax.cond(jnp.all(accepted), lambda token: token, by_threshold, token)


def invert(weights: jax.Array, uniform: jax.Array) -> jax.Array:
    """The first token of positive weight whose cumulative weight exceeds `uniform` of the total.

    Summed block by block, so that the cumulative sum runs over blocks and then within one.

    Args:
        weights: `[S, V]`, not negative.
        uniform: `[S]` in [0, 1).
    """
    count, size = weights.shape
    blocks = jnp.pad(weights, ((0, 0), (0, -size % BLOCK))).reshape(count, -1, BLOCK)
    sums = blocks.sum(-1)
    ends = jnp.cumsum(sums, axis=-1)
    target = uniform[:, None] * ends[:, -1:]
    # A parallel sum is not monotonic in its last bit: whether there is weight must be asked, too.
    block = _first(ends > target, sums > 0)[:, None]
    inside = jnp.take_along_axis(blocks, block[:, :, None], axis=1)[:, 0]
    before = jnp.take_along_axis(ends - sums, block, axis=1)
    within = _first(before + jnp.cumsum(inside, axis=-1) > target, inside > 0)
    return block[:, 0] * BLOCK + within


def _first(passed: jax.Array, possible: jax.Array | bool = True) -> jax.Array:
    """`[S]` index of the first column both passed and possible; if none is, the last possible."""
    size = passed.shape[-1]
    order = jnp.arange(size, dtype=jnp.int32)[None]
    possible = jnp.broadcast_to(possible, passed.shape)
    first = jnp.min(jnp.where(passed & possible, order, size), axis=-1)
    last = jnp.max(jnp.where(possible, order, 0), axis=-1)
    return jnp.where(first < size, first, last)


def keep_top_k(weights: jax.Array, top_k: jax.Array) -> jax.Array:
    """Zero all but the `top_k` largest of each row; those tied at the limit are all kept."""

    def enough(kept: jax.Array) -> jax.Array:
        return jnp.sum(kept, axis=-1, keepdims=True) >= top_k[:, None]

    return jnp.where((top_k > 0)[:, None], _keep_largest(weights, enough), weights)


def keep_nucleus(weights: jax.Array, top_p: jax.Array) -> jax.Array:
    """Zero all but the smallest set of largest weights whose mass reaches `top_p` of all.

    Weights tied at the limit are all kept.

    References: Holtzman et al. 2020, "The Curious Case of Neural Text Degeneration".
    """
    needed = top_p[:, None] * weights.sum(-1, keepdims=True)

    def enough(kept: jax.Array) -> jax.Array:
        return jnp.sum(jnp.where(kept, weights, 0.0), axis=-1, keepdims=True) >= needed

    return jnp.where((top_p < 1)[:, None], _keep_largest(weights, enough), weights)


def _keep_largest(weights: jax.Array, enough: Callable[[jax.Array], jax.Array]) -> jax.Array:
    """Zero all below the highest threshold at which what is kept is `enough`.

    Floats of one sign are ordered as their bits are, so that bisection over the bits of [0, 1] ends
    at the very float; no sort over the vocabulary.
    """
    bits = jax.lax.bitcast_convert_type(weights, jnp.int32)

    def halve(bounds: tuple[jax.Array, jax.Array], _: None):
        low, high = bounds
        middle = (low + high) // 2
        ok = enough(bits >= middle)
        return (jnp.where(ok, middle, low), jnp.where(ok, high, middle)), None

    low = jnp.zeros((weights.shape[0], 1), jnp.int32)
    steps = ONE_BITS.bit_length()
    (low, _), _ = jax.lax.scan(halve, (low, low + ONE_BITS + 1), None, length=steps)
    return jnp.where(bits >= low, weights, 0.0)
