"""The head in pieces, and blocks computed again, give what they give at once."""

import jax
import numpy as np
import pytest
from flax import nnx

from ixjax.training.batching import pack
from ixjax.training.scoring import head_logprobs, scored_logprobs
from tests.training.doubles import counting_examples, tiny_model


def assert_close(first, second, *, atol):
    for a, b in zip(jax.tree.leaves(first), jax.tree.leaves(second), strict=True):
        np.testing.assert_allclose(np.asarray(a), np.asarray(b), atol=atol)


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
