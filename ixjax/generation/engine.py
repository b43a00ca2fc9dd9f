"""The engine: token ids in, token ids out, over rows of a KV cache.

Three operations share one forward pass. `extend` reads up to n new tokens per row (prefill and
appending a turn are the same thing), `decode` samples a turn per row until each has ended, and
`score` gives the log-probability of given continuations without keeping them. The engine knows
no text and no roles; `ixjax.generation.speakers` does.

Shapes are static: token counts are padded to powers of two, and attention reads the cache up to
one that covers the longest row. Every jitted function takes the parameters as an argument, so two
models of one shape share their compiled code.

Axes: L layers, S cache rows, K KV heads, T columns, D head size, V vocabulary, C candidates.
"""

from __future__ import annotations

import dataclasses
import functools
import itertools
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from ixjax.generation import cache as kv
from ixjax.generation.sampling import SamplingConfig, identity_keys, sample
from ixjax.models import (
    FULL_UNROLL_LAYERS,
    Transformer,
    attend_pieces,
    in_window,
    select,
    unstack,
)

SMALLEST_BUCKET = 4
SMALLEST_SPAN = 64
CHUNK_TOKENS = 64  # most tokens read at once on top of a row that holds some already


@dataclasses.dataclass(frozen=True)
class Contexts:
    """Rows of live contexts: what the device holds, and their lengths as the host knows them.

    cache: keys and values.
    logits: `[S, V]` float32 after each row's last read token; stale after `decode`.
    lengths: `[S]` host copy of the row lengths in tokens.
    """

    cache: kv.KVCache
    logits: jax.Array  # [S, V]
    lengths: np.ndarray  # [S]


@dataclasses.dataclass(frozen=True)
class Decoded:
    """What `decode` sampled.

    tokens: `[S, n]`; row s holds `counts[s]` tokens, then garbage. An end token is included.
    counts: `[S]` tokens sampled, the end token included; 0 for inactive rows.
    logprobs: `[S, n]` log-probability of each token under the full softmax.
    """

    tokens: np.ndarray  # [S, n]
    counts: np.ndarray  # [S]
    logprobs: np.ndarray  # [S, n]


class Engine:
    """Reads and samples for one model.

    Args:
        model: the decoder; its parameters may be sharded over a mesh.
        max_new_tokens: longest turn that `decode` will be asked for.
    """

    def __init__(self, model: Transformer, *, max_new_tokens: int):
        self.config = model.config
        self.max_new_tokens = max_new_tokens
        self._graph, self._params = nnx.split(model)
        # Behind a full row there is room for one padded chunk or turn (see cache.write).
        self._room = max(CHUNK_TOKENS, max_new_tokens)
        self._columns = self.config.max_length + self._room

    @property
    def columns(self) -> int:
        """T: tokens that a row has room for, padding included."""
        return self._columns

    def empty(self, rows: int) -> Contexts:
        """Rows that have read nothing."""
        logits = jnp.zeros((rows, self.config.vocab_size), jnp.float32)
        cache = kv.allocate(self.config, rows, self._columns)
        return Contexts(cache, logits, np.zeros(rows, np.int64))

    def extend(self, contexts: Contexts, tokens: Sequence[Sequence[int]]) -> Contexts:
        """Read `tokens[s]` into row s (an empty sequence leaves it as it is).

        The given contexts are consumed. What is long is read in chunks.

        Raises:
            ValueError: a row would outgrow the model's `max_length`.
        """
        counts = np.array([len(t) for t in tokens])
        after = contexts.lengths + counts
        if after.max() > self.config.max_length:
            row = int(after.argmax())
            raise ValueError(
                f"row {row} holds {contexts.lengths[row]} tokens and was given {counts[row]} "
                f"more; the model's max_length is {self.config.max_length}"
            )
        limit = CHUNK_TOKENS if contexts.lengths.any() else self._columns
        size = min(bucket(int(counts.max())), limit)
        for start in range(0, int(counts.max()), size):
            contexts = self._extend_chunk(contexts, tokens, start, size)
        return contexts

    def _extend_chunk(
        self, contexts: Contexts, tokens: Sequence[Sequence[int]], start: int, size: int
    ) -> Contexts:
        padded, counts = pad([t[start : start + size] for t in tokens], size)
        cache, logits = _extend(
            self._graph,
            self._params,
            contexts.cache,
            contexts.logits,
            padded,
            counts,
            span=self._span(contexts),
        )
        return Contexts(cache, logits, contexts.lengths + counts)

    def decode(
        self,
        contexts: Contexts,
        *,
        sampling: SamplingConfig,
        seed: int,
        identities: np.ndarray,
        active: np.ndarray,
        end_ids: Sequence[int],
        max_new_tokens: int | None = None,
    ) -> tuple[Contexts, Decoded]:
        """Sample a turn for each active row, from its logits on.

        The given contexts are consumed. Sampled tokens are read into the row, the end token that
        closed it is not; `contexts.logits` is stale until the next `extend`.

        Args:
            contexts: rows whose logits are fresh.
            sampling: temperature and nucleus.
            seed: of the run.
            identities: `[S, k]` uint32, what each row is (see `identity_keys`).
            active: `[S]` bool; other rows neither sample nor grow.
            end_ids: tokens that end a turn.
            max_new_tokens: a turn is cut here; default the engine's.

        Raises:
            ValueError: `max_new_tokens` is more than rows have room for.
        """
        steps = max_new_tokens or self.max_new_tokens
        if steps > self._room:
            raise ValueError(
                f"max_new_tokens is {steps}; this engine was made for turns of at most {self._room}"
            )
        cache, tokens, counts, kept, logprobs = _decode(
            self._graph,
            self._params,
            contexts.cache,
            contexts.logits,
            jax.random.key(seed),
            np.asarray(identities, np.uint32),
            np.asarray(active, bool),
            np.float32(sampling.temperature),
            np.float32(sampling.top_p),
            np.asarray(end_ids, np.int32),
            span=self._span(contexts),
            steps=steps,
        )
        tokens, counts, kept, logprobs = jax.device_get((tokens, counts, kept, logprobs))
        decoded = Decoded(tokens, counts, logprobs)
        return Contexts(cache, contexts.logits, contexts.lengths + kept), decoded

    def score(
        self,
        contexts: Contexts,
        prefixes: Sequence[Sequence[int]],
        candidates: Sequence[Sequence[Sequence[int]]],
    ) -> np.ndarray:
        """Log-probability of each candidate continuation after a forced prefix; nothing is kept.

        Args:
            contexts: the rows; still valid afterwards.
            prefixes: S token sequences of at least one token, read but not scored.
            candidates: S rows of C token sequences each.

        Returns:
            `[S, C]` float32 sums of token log-probabilities.
        """
        prefix, prefix_counts = pad(prefixes, bucket(max(map(len, prefixes))))
        longest = max(len(c) for row in candidates for c in row)
        size = bucket(longest)
        padded = [pad(column, size) for column in zip(*candidates, strict=True)]
        tails, tail_counts = (np.stack(part) for part in zip(*padded, strict=True))
        scores = _score(
            self._graph,
            self._params,
            contexts.cache,
            prefix,
            prefix_counts,
            tails,
            tail_counts,
            span=self._span(contexts),
        )
        return np.asarray(scores)

    def fork(self, contexts: Contexts, rows: np.ndarray) -> Contexts:
        """Row i of the result is a copy of row `rows[i]`; the source stays valid."""
        rows = np.asarray(rows, np.int32)
        cache, logits = _fork(contexts.cache, contexts.logits, rows)
        return Contexts(cache, logits, contexts.lengths[rows])

    def store(
        self, contexts: Contexts, rows: np.ndarray, source: Contexts, source_rows: np.ndarray
    ) -> Contexts:
        """Overwrite `rows` with `source_rows` of `source`. The target is consumed.

        Shapes stay those of the source whatever the number of rows, so that nothing recompiles.
        """
        target = np.full(source.cache.rows, contexts.cache.rows, np.int32)  # out of range: dropped
        target[np.asarray(source_rows)] = rows
        cache, logits = _store(contexts.cache, contexts.logits, target, source.cache, source.logits)
        lengths = contexts.lengths.copy()
        lengths[np.asarray(rows)] = source.lengths[np.asarray(source_rows)]
        return Contexts(cache, logits, lengths)

    def shorten(self, contexts: Contexts, lengths: np.ndarray) -> Contexts:
        """Forget every token of row s behind `lengths[s]`; its logits are stale."""
        lengths = np.minimum(lengths, contexts.lengths)
        cache = dataclasses.replace(contexts.cache, lengths=jnp.asarray(lengths, jnp.int32))
        return Contexts(cache, contexts.logits, lengths)

    def _span(self, contexts: Contexts) -> int:
        """Columns that attention must read: 0 for rows that have read nothing."""
        longest = int(contexts.lengths.max())
        if longest == 0:
            return 0
        spans = (SMALLEST_SPAN << power for power in itertools.count())
        return min(next(span for span in spans if span >= longest), self._columns)


def bucket(size: int) -> int:
    """The power of two, `SMALLEST_BUCKET` or more, that holds `size` tokens."""
    return max(SMALLEST_BUCKET, 1 << max(size - 1, 0).bit_length())


def pad(sequences: Sequence[Sequence[int]], size: int) -> tuple[np.ndarray, np.ndarray]:
    """Right-pad with zeros to `[S, size]` int32; also the `[S]` int32 true lengths."""
    padded = np.zeros((len(sequences), size), np.int32)
    for row, sequence in enumerate(sequences):
        padded[row, : len(sequence)] = sequence
    return padded, np.array([len(s) for s in sequences], np.int32)


def _causal(counts: jax.Array, size: int) -> jax.Array:
    """`[S, size, size]` bool: earlier new tokens and itself, padding excluded."""
    order = jnp.tril(jnp.ones((size, size), bool))[None]
    return order & (jnp.arange(size)[None, :] < counts[:, None])[:, None, :]


class _Piece(NamedTuple):
    """Keys and values that were read before, and who may see them.

    stored: (keys, values), each `[L, S, K, m, D]`.
    visible: `[S, 1, m]` bool.
    positions: `[S or 1, m]` of the tokens in their rows.
    """

    stored: Any
    visible: jax.Array  # [S, 1, m]
    positions: jax.Array  # [S, m]


def _read(model, tokens, first, counts, pieces, layers=None):
    """Run new tokens `[S, n]` on top of pieces of a cache.

    Args:
        model: the decoder.
        tokens: `[S, n]`, of which row s has `counts[s]`.
        first: `[S]` position of each row's first new token.
        counts: `[S]`.
        pieces: a sequence of `_Piece`.
        layers: see `Transformer.run`; keys and values are then lists of L pairs.

    Returns:
        Hidden states `[S, n, hidden]`; keys and values of the new tokens.
    """
    config = model.config
    positions = _behind(first, tokens.shape[1])
    causal = _causal(counts, tokens.shape[1])
    visible = [*(piece.visible for piece in pieces), causal]
    near = [
        seen & in_window(config, positions, keys)
        for seen, keys in zip(visible, [*(p.positions for p in pieces), positions], strict=True)
    ]

    def attend(layer, local, q, k, v):
        masks = [select(local, a, b) for a, b in zip(near, visible, strict=True)]
        read = [(*kv, mask) for kv, mask in zip([*layer, (k, v)], masks, strict=True)]
        return attend_pieces(q, read, softcap=config.attention_softcap), (k, v)

    stored = [piece.stored for piece in pieces]
    cache = stored if layers is None else list(zip(*stored, strict=True))
    return model.run(tokens, positions, attend, cache, layers=layers)


def _past(cache: kv.KVCache, span: int) -> list[_Piece]:
    """The first `span` columns of a cache as pieces for `_read`: one, or none of an empty cache."""
    if not span:
        return []
    stored = (cache.keys[:, :, :, :span], cache.values[:, :, :, :span])
    return [_Piece(stored, _below(cache.lengths, span), jnp.arange(span)[None])]


def _behind(first: jax.Array, count: int) -> jax.Array:
    """`[S, count]` positions from `first` `[S]` on."""
    return first[:, None] + jnp.arange(count)[None, :]


def _below(counts: jax.Array, size: int) -> jax.Array:
    """`[S, 1, size]` bool: the first `counts[s]` columns of each row."""
    return (jnp.arange(size)[None, :] < counts[:, None])[:, None, :]


@functools.partial(jax.jit, static_argnames=("graph", "span"), donate_argnames=("cache", "logits"))
def _extend(graph, params, cache, logits, tokens, counts, *, span):
    model = nnx.merge(graph, params)
    hidden, (keys, values) = _read(model, tokens, cache.lengths, counts, _past(cache, span))
    last = jnp.take_along_axis(hidden, jnp.maximum(counts - 1, 0)[:, None, None], axis=1)[:, 0]
    logits = jnp.where((counts > 0)[:, None], model.logits(last), logits)
    return kv.write(cache, keys, values, counts), logits


@functools.partial(jax.jit, static_argnames=("graph", "span", "steps"), donate_argnames=("cache",))
def _decode(
    graph,
    params,
    cache,
    logits,
    seed,
    identities,
    active,
    temperature,
    top_p,
    end_ids,
    *,
    span,
    steps,
):
    model = nnx.merge(graph, params)
    rows, depth = cache.rows, model.config.num_layers
    keys = identity_keys(seed, identities)
    # What the loop reads but does not change is sliced once, in front of it.
    few = depth <= FULL_UNROLL_LAYERS
    apart = functools.partial(unstack, layers=depth) if few else lambda tree: tree
    layers = unstack(nnx.state(model.layers), depth) if few else None
    past = [piece._replace(stored=apart(piece.stored)) for piece in _past(cache, span)]
    side_positions = _behind(cache.lengths, steps)
    empty = jnp.zeros((*cache.keys.shape[:3], steps, cache.keys.shape[4]), cache.keys.dtype)

    def unfinished(state):
        return (state["step"] < steps) & jnp.any(state["running"])

    def step(state):
        t, running = state["step"], state["running"]
        draw_keys = jax.vmap(jax.random.fold_in, in_axes=(0, None))(keys, t)
        token, logprob = sample(state["logits"], draw_keys, temperature=temperature, top_p=top_p)
        ends = jnp.any(token[:, None] == end_ids[None, :], axis=-1)
        running_after = running & ~ends
        hidden, new = _read(
            model,
            token[:, None],
            cache.lengths + t,
            jnp.ones(rows, jnp.int32),
            [*past, _Piece(state["new"], _below(jnp.full(rows, t), steps), side_positions)],
            layers,
        )
        into = functools.partial(jax.lax.dynamic_update_slice_in_dim, start_index=t)
        return {
            "step": t + 1,
            "running": running_after,
            "logits": model.logits(hidden[:, 0]),
            "tokens": into(state["tokens"], token[:, None], axis=1),
            "logprobs": into(state["logprobs"], logprob[:, None], axis=1),
            "counts": state["counts"] + running,
            "kept": state["kept"] + running_after,
            "new": jax.tree.map(lambda side, k: into(side, k, axis=-2), state["new"], new),
        }

    state = jax.lax.while_loop(
        unfinished,
        step,
        {
            "step": jnp.int32(0),
            "running": active,
            "logits": logits,
            "tokens": jnp.zeros((rows, steps), jnp.int32),
            "logprobs": jnp.zeros((rows, steps), jnp.float32),
            "counts": jnp.zeros(rows, jnp.int32),
            "kept": jnp.zeros(rows, jnp.int32),
            "new": apart((empty, empty)),
        },
    )
    new = state["new"]
    new_keys, new_values = jax.tree.map(lambda *parts: jnp.stack(parts), *new) if few else new
    cache = kv.write(cache, new_keys, new_values, state["kept"])
    return cache, state["tokens"], state["counts"], state["kept"], state["logprobs"]


@functools.partial(jax.jit, static_argnames=("graph", "span"))
def _score(graph, params, cache, prefix, prefix_counts, tails, tail_counts, *, span):
    model = nnx.merge(graph, params)
    past = _past(cache, span)
    hidden, read = _read(model, prefix, cache.lengths, prefix_counts, past)
    last = jnp.take_along_axis(hidden, (prefix_counts - 1)[:, None, None], axis=1)[:, 0]
    first_logits = model.logits(last)  # [S, V]
    size = prefix.shape[1]
    pieces = [*past, _Piece(read, _below(prefix_counts, size), _behind(cache.lengths, size))]

    def one(candidate):
        tokens, counts = candidate  # [S, n], [S]
        hidden, _ = _read(model, tokens, cache.lengths + prefix_counts, counts, pieces)
        # Token i is predicted by what stands before it: the prefix, then tokens 0..i-1.
        logits = jnp.concatenate([first_logits[:, None], model.logits(hidden[:, :-1])], axis=1)
        logprobs = jax.nn.log_softmax(logits, axis=-1)
        taken = jnp.take_along_axis(logprobs, tokens[:, :, None], axis=-1)[:, :, 0]
        given = jnp.arange(tokens.shape[1])[None] < counts[:, None]
        return jnp.sum(jnp.where(given, taken, 0.0), -1)

    return jax.lax.map(one, (tails, tail_counts)).T


@jax.jit
def _fork(cache, logits, rows):
    return kv.fork(cache, rows), logits[rows]


@functools.partial(jax.jit, donate_argnames=("cache", "logits"))
def _store(cache, logits, rows, source, source_logits):
    return kv.store(cache, rows, source), logits.at[rows].set(source_logits, mode="drop")
