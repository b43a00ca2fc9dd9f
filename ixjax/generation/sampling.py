"""Token sampling: settings per row, with random numbers keyed on an identity.

A token is drawn by inverting the cumulative distribution at a uniform number, which is a function
of (seed, identity of the row, index of the token). It does not depend on the batch or on the row of
the context (docs/algorithm.md, randomness).

Top-p needs no sort and rarely a threshold. A token is in the nucleus if the mass of likelier tokens
is below top_p, which takes one sum over the vocabulary. So tokens are drawn from the whole
distribution until one is in the nucleus: rejection sampling, which is exact. Rows that have no
token after `ATTEMPTS` draws compute the threshold.

Axes: R rows, V vocabulary, E end tokens, A sets of stop strings, Q states of their automata.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

ATTEMPTS = 6  # draws before the threshold is computed: at top_p 0.9, for one row in a million
DRAWS = ATTEMPTS + 1  # random numbers per token
BLOCK = 64  # tokens that are summed before the cumulative sum
ONE_BITS = 0x3F800000  # of float32 1.0


@dataclasses.dataclass(frozen=True)
class SamplingConfig:
    """How a speaker samples its turns."""

    temperature: float = 1.0
    """Divides the logits; 0 takes the most likely token."""
    top_k: int = 0
    """Keep this many most likely tokens; 0 keeps all."""
    top_p: float = 1.0
    """Keep the smallest set of tokens with at least this probability; 1 keeps all."""
    min_p: float = 0.0
    """Drop tokens less likely than this fraction of the most likely one."""
    repetition_penalty: float = 1.0
    """Divide the logits of tokens in the context by this (multiply negative ones)."""
    max_new_tokens: int = 48
    """Longest turn in tokens; a turn that reaches it is cut."""
    stop: tuple[str, ...] = ()
    """Texts that end a turn and are cut off: a role's name, for a model without end tokens."""

    def __post_init__(self) -> None:
        """Refuse values outside their ranges."""
        if not 0 <= self.temperature < float("inf"):
            raise ValueError(
                f"temperature is {self.temperature}; expected a finite number, 0 or more"
            )
        if self.top_k < 0:
            raise ValueError(f"top_k is {self.top_k}; expected 0 or more")
        if not 0 < self.top_p <= 1:
            raise ValueError(f"top_p is {self.top_p}; expected more than 0, and 1 at most")
        if not 0 <= self.min_p <= 1:
            raise ValueError(f"min_p is {self.min_p}; expected 0 to 1")
        if not 0 < self.repetition_penalty < float("inf"):
            raise ValueError(
                f"repetition_penalty is {self.repetition_penalty}; expected a finite number above 0"
            )
        if self.max_new_tokens < 1:
            raise ValueError(f"max_new_tokens is {self.max_new_tokens}; expected 1 or more")
        # A string is a sequence of texts, too: each of its letters would be a stop string.
        if not isinstance(self.stop, tuple) or "" in self.stop:
            raise ValueError(
                f"stop is {self.stop!r}; expected a tuple of texts, none of them empty"
            )


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class RowSampling:
    """The settings of each row, as `[R]` arrays: other values need no compilation."""

    temperature: jax.Array
    top_k: jax.Array
    top_p: jax.Array
    min_p: jax.Array
    repetition_penalty: jax.Array

    @classmethod
    def of(cls, configs: Sequence[SamplingConfig]) -> RowSampling:
        """Return the settings of R rows."""

        def column(name: str, dtype: type) -> Any:
            return np.array([getattr(config, name) for config in configs], dtype)

        return cls(
            temperature=column("temperature", np.float32),
            top_k=column("top_k", np.int32),
            top_p=column("top_p", np.float32),
            min_p=column("min_p", np.float32),
            repetition_penalty=column("repetition_penalty", np.float32),
        )


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class SamplingState:
    """The sampling state of each row in `passes.decode`.

    tokens: `[R]` int32, the last token of each row's context: it is read first.
    seeds: `[R]` uint32 of the run.
    identities: `[R, k]` uint32, padded with zeros.
    parts: `[R]` int32, length of each identity.
    offsets: `[R]` int32, index in its turn of the next token.
    limits: `[R]` int32, most tokens to sample; 0 for a row that samples none.
    end_ids: `[R, E]` int32 tokens that end the row's turn, padded with -1.
    rows: the settings of each row.
    seen: `[R, V]` bool, tokens in the row's context; read only where a repetition penalty is not 1.
    stop_tables: `[A, Q, V]` see `ixjax.generation.stops`.
    stop_sets: `[R]` int32 index of the row's stop strings.
    stop_states: `[R]` int32 state of the row's turn in their automaton.
    stay: `[]` int32; decoding pauses once this many rows or fewer still run.
    """

    tokens: jax.Array  # [R]
    seeds: jax.Array  # [R]
    identities: jax.Array  # [R, k]
    parts: jax.Array  # [R]
    offsets: jax.Array  # [R]
    limits: jax.Array  # [R]
    end_ids: jax.Array  # [R, E]
    rows: RowSampling
    seen: jax.Array  # [R, V]
    stop_tables: jax.Array  # [A, Q, V]
    stop_sets: jax.Array  # [R]
    stop_states: jax.Array  # [R]
    stay: jax.Array  # []


def identity_keys(
    seeds: jax.Array, identities: jax.Array, parts: jax.Array | None = None
) -> jax.Array:
    """Return a key per row from the row's identity.

    Args:
        seeds: `[R]` typed keys of the run.
        identities: `[R, k]` uint32, for example (condition, node, sample, turn, speaker).
        parts: `[R]` length of each identity, k at most; default k.

    Returns:
        `[R]` typed keys.
    """
    count = jnp.full(seeds.shape, identities.shape[1]) if parts is None else parts

    def fold(key: jax.Array, identity: jax.Array, count: jax.Array) -> jax.Array:
        def one(key: jax.Array, part: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, None]:
            index, number = part
            return jnp.where(index < count, jax.random.fold_in(key, number), key), None

        return jax.lax.scan(one, key, (jnp.arange(len(identity)), identity))[0]

    return jax.vmap(fold)(seeds, identities, count)


def uniforms(keys: jax.Array) -> jax.Array:
    """Return the uniform numbers in [0, 1) to draw one token each, `[..., DRAWS]`. Consumes `keys`.

    Call it for many tokens at once: in the loop over tokens it takes a sixth of decoding.
    """
    later = jax.vmap(jax.random.fold_in, in_axes=(None, 0))
    each = lambda key: jnp.append(
        jax.random.uniform(key), jax.vmap(jax.random.uniform)(later(key, jnp.arange(1, DRAWS)))
    )
    return jax.vmap(each)(keys.reshape(-1)).reshape(*keys.shape, DRAWS)


def sample(
    logits: jax.Array, uniform: jax.Array, rows: RowSampling, seen: jax.Array
) -> tuple[jax.Array, jax.Array]:
    """Sample one token per row.

    Settings apply in the order of transformers: repetition penalty, temperature, top-k, top-p,
    min-p.

    Args:
        logits: `[R, V]` float32.
        uniform: `[R, DRAWS]` from `uniforms`.
        rows: settings.
        seen: `[R, V]` bool, tokens in the row's context; read only where a penalty is not 1.

    Returns:
        Tokens `[R]` int32, and their log-probabilities `[R]` under the full softmax of `logits`,
        without any setting.
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
    """Lower the logits of seen tokens by the repetition penalty (Keskar et al. 2019, "CTRL")."""
    penalty = rows.repetition_penalty[:, None]
    return jnp.where(seen, jnp.where(logits < 0, logits * penalty, logits / penalty), logits)


def _draw(weights: jax.Array, uniform: jax.Array, rows: RowSampling) -> jax.Array:
    """Sample `[R]` tokens from `[R, V]` weights with a maximum of 1; apply min-p and top-p."""
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
    """Return the first token whose cumulative weight exceeds `uniform` times the total.

    Its weight is positive. The cumulative sum runs over blocks, then within one block.

    Args:
        weights: `[R, V]`, 0 or more.
        uniform: `[R]` in [0, 1).
    """
    count, size = weights.shape
    blocks = jnp.pad(weights, ((0, 0), (0, -size % BLOCK))).reshape(count, -1, BLOCK)
    sums = blocks.sum(-1)
    ends = jnp.cumsum(sums, axis=-1)
    target = uniform[:, None] * ends[:, -1:]
    # The last bit of a parallel sum is not monotonic, so blocks without weight are excluded, too.
    block = _first(ends > target, sums > 0)[:, None]
    inside = jnp.take_along_axis(blocks, block[:, :, None], axis=1)[:, 0]
    before = jnp.take_along_axis(ends - sums, block, axis=1)
    within = _first(before + jnp.cumsum(inside, axis=-1) > target, inside > 0)
    return block[:, 0] * BLOCK + within


def _first(passed: jax.Array, possible: jax.Array | bool = True) -> jax.Array:
    """Return `[R]` the first column that is passed and possible; if none, the last possible."""
    size = passed.shape[-1]
    order = jnp.arange(size, dtype=jnp.int32)[None]
    possible = jnp.broadcast_to(possible, passed.shape)
    first = jnp.min(jnp.where(passed & possible, order, size), axis=-1)
    last = jnp.max(jnp.where(possible, order, 0), axis=-1)
    return jnp.where(first < size, first, last)


def keep_top_k(weights: jax.Array, top_k: jax.Array) -> jax.Array:
    """Zero all but the `top_k` largest weights of each row; keep all that tie at the limit."""

    def enough(kept: jax.Array) -> jax.Array:
        return jnp.sum(kept, axis=-1, keepdims=True) >= top_k[:, None]

    return jnp.where((top_k > 0)[:, None], _keep_largest(weights, enough), weights)


def keep_nucleus(weights: jax.Array, top_p: jax.Array) -> jax.Array:
    """Zero all but the fewest largest weights whose sum reaches `top_p` of the total.

    Weights that tie at the limit are all kept.

    References: Holtzman et al. 2020, "The Curious Case of Neural Text Degeneration".
    """
    needed = top_p[:, None] * weights.sum(-1, keepdims=True)

    def enough(kept: jax.Array) -> jax.Array:
        return jnp.sum(jnp.where(kept, weights, 0.0), axis=-1, keepdims=True) >= needed

    return jnp.where((top_p < 1)[:, None], _keep_largest(weights, enough), weights)


def _keep_largest(weights: jax.Array, enough: Callable[[jax.Array], jax.Array]) -> jax.Array:
    """Zero the weights below the highest threshold at which `enough(kept)` holds.

    Positive floats are ordered as their bits are, so bisection over the bits of [0, 1] finds the
    exact float without a sort over the vocabulary.
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
