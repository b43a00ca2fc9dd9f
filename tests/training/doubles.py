"""A tiny model and data in which there is something to learn."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from ixjax.dialogue.chat import Rendered, RenderedPair
from ixjax.models import ModelArguments, init_model
from ixjax.parallel import MeshConfig, make_mesh
from ixjax.training import DPOConfig, OptimizerConfig, SFTConfig
from ixjax.training.pair_rows import PairBatches

VOCABULARY = 32
LENGTH = 64
CONFIG = ModelArguments(
    hidden_size=32, num_layers=2, num_heads=4, num_kv_heads=2, intermediate_size=64,
    max_length=LENGTH,
).to_config(VOCABULARY)  # fmt: skip

SFT = SFTConfig(
    steps=12, batch_size=8, eval_every=4, patience=0, checkpoint_every=3, log_every=1,
    optimizer=OptimizerConfig(learning_rate=1e-2, weight_decay=0.0),
)  # fmt: skip
DPO = DPOConfig(
    steps=12, batch_size=8, checkpoint_every=3, log_every=1,
    optimizer=OptimizerConfig(learning_rate=3e-3, weight_decay=0.0),
)  # fmt: skip


def one_device():
    return make_mesh(devices=jax.devices()[:1])


def mesh_of_eight(data, fsdp, tensor):
    return make_mesh(MeshConfig(data, fsdp, tensor), devices=jax.devices()[:8])


def tiny_model(seed=0):
    """A fresh copy, on one device: what a test does to it stays in that test."""
    graph, params = _drawn(seed)
    return nnx.merge(graph, jax.tree.map(jnp.copy, params))


@functools.lru_cache
def _drawn(seed):
    return nnx.split(init_model(CONFIG, seed=seed, mesh=one_device()))


def counting_example(rng, *, low=4, high=24, unscored=2):
    """Tokens that count up by one: after the first, each follows from the one before."""
    size = int(rng.integers(low, high))
    tokens = (int(rng.integers(VOCABULARY)) + np.arange(size)) % VOCABULARY
    return Rendered(tuple(tokens.tolist()), (False,) * unscored + (True,) * (size - unscored), 0)


def counting_examples(count, *, seed=0):
    rng = np.random.default_rng(seed)
    return [counting_example(rng) for _ in range(count)]


def random_pairs(count, *, seed=0, longest=20):
    """Prompt and responses of random tokens; the chosen one always starts with token 7."""
    rng = np.random.default_rng(seed)

    def draw(low, high):
        return tuple(rng.integers(VOCABULARY, size=rng.integers(low, high)).tolist())

    return [
        RenderedPair(draw(2, longest), (7, *draw(0, 8)), (9, *draw(0, 8)), 0) for _ in range(count)
    ]


def one_batch(pairs, reference, *, share="pair", max_length=LENGTH, **settings):
    """All pairs as one batch."""
    everyone = [range(len(pairs))]
    batches = PairBatches(pairs, everyone, share=share, max_length=max_length, **settings)
    return batches.make(0, np.asarray(reference, np.float32))


def assert_close(first, second, *, atol):
    for a, b in zip(jax.tree.leaves(first), jax.tree.leaves(second), strict=True):
        np.testing.assert_allclose(np.asarray(a), np.asarray(b), atol=atol)


def params(model):
    return [np.asarray(leaf) for leaf in jax.tree.leaves(model)]


def ignore(metrics):
    """An `on_step` that nobody listens to."""
