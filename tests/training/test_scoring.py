"""The head in pieces, and blocks computed again, give what they give at once."""

import dataclasses

import jax
import numpy as np
import pytest
from flax import nnx

from ixjax.models import init_model
from ixjax.training.batching import pack
from ixjax.training.scoring import head_logprobs, scored_logprobs
from tests.training.doubles import (
    CONFIG,
    assert_close,
    counting_examples,
    one_device,
    tiny_model,
)


@pytest.mark.parametrize("most_logits", [1, 32 * 3 * 4, 32 * 3 * 5])
def test_pieces_of_the_head_give_the_logprobs_and_gradients_of_the_whole(most_logits):
    model = tiny_model()
    graph, params = nnx.split(model)
    hidden = jax.random.normal(jax.random.key(0), (3, 13, 32))
    targets = jax.random.randint(jax.random.key(1), (3, 13), 0, 32)

    def values(most_logits):
        def total(params, hidden):
            found = head_logprobs(
                nnx.merge(graph, params), hidden, targets, most_logits=most_logits
            )
            return (found * np.arange(13.0)[None]).sum(), found

        return jax.jit(jax.value_and_grad(total, (0, 1), has_aux=True))(params, hidden)

    assert_close(values(most_logits), values(2**20), atol=1e-5)


@pytest.mark.parametrize("remat", ["dots", "full"])
def test_blocks_that_are_computed_again_change_nothing(remat):
    rows = pack(counting_examples(6), length=64)
    graph, params = nnx.split(tiny_model())

    def values(remat):
        def total(params):
            return (scored_logprobs(nnx.merge(graph, params), rows, remat=remat)).sum()

        return jax.jit(jax.value_and_grad(total))(params)

    assert_close(values(remat), values("none"), atol=2e-4)


@pytest.mark.parametrize("layers", [2, 9])  # unrolled, scanned
@pytest.mark.slow
def test_blocks_are_computed_again(layers):
    config = dataclasses.replace(CONFIG, num_layers=layers)
    model = init_model(config, seed=0, mesh=one_device())
    rows, (graph, params) = pack(counting_examples(6), length=64), nnx.split(model)

    def operations(remat):
        def total(params):
            return scored_logprobs(nnx.merge(graph, params), rows, remat=remat).sum()

        compiled = jax.jit(jax.grad(total)).lower(params).compile()
        return compiled.cost_analysis()["flops"]

    none, dots, full = map(operations, ("none", "dots", "full"))
    assert none < dots < full
