import dataclasses
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from ixjax.dialogue.chat import RenderedPair
from ixjax.io import InputError
from ixjax.models import param_shardings
from ixjax.parallel import batch_sharding
from ixjax.training import reference_logprobs, train_dpo
from ixjax.training.dpo import PairObjective
from ixjax.training.steps import place_params
from tests.training.doubles import (
    DPO,
    ignore,
    mesh_of_eight,
    one_batch,
    one_device,
    params,
    random_pairs,
    tiny_model,
)


def align(directory, *, pairs=None, config=DPO, on_step=ignore, model=None, **settings):
    return train_dpo(
        model or tiny_model(),
        pairs or random_pairs(20),
        config,
        mesh=settings.pop("mesh", None) or one_device(),
        seed=3,
        directory=directory,
        on_step=on_step,
        **settings,
    )


def test_first_loss_is_log_2_and_margins_rise(tmp_path):
    reports = []
    align(tmp_path, on_step=reports.append)
    first, last = reports[0], reports[-1]
    assert first["loss"] == pytest.approx(math.log(2), abs=1e-5)
    assert first["rewards/margins"] == pytest.approx(0.0, abs=1e-5)
    assert last["loss"] < 0.6
    assert last["rewards/margins"] > 0.1
    assert last["rewards/accuracies"] > 0.9
    margin = last["rewards/chosen"] - last["rewards/rejected"]
    assert last["rewards/margins"] == pytest.approx(margin, abs=1e-5)


def test_reports_have_the_names_of_trl(tmp_path):
    reports = []
    align(tmp_path, on_step=reports.append)
    assert set(reports[-1]) == {
        "step", "steps", "steps_since", "loss", "learning_rate", "grad_norm", "tokens_per_second",
        "rewards/chosen", "rewards/rejected", "rewards/margins", "rewards/accuracies",
        "logps/chosen", "logps/rejected",
    }  # fmt: skip


@pytest.mark.parametrize(
    ("variant", "smoothing", "first"),
    [("ipo", 0.0, 25.0), ("hinge", 0.0, 1.0), ("robust", 0.1, math.log(2))],
)
@pytest.mark.slow
def test_every_variant_starts_where_its_margin_is_zero_and_trains(
    tmp_path, variant, smoothing, first
):
    reports = []
    config = dataclasses.replace(DPO, variant=variant, label_smoothing=smoothing)
    align(tmp_path, config=config, on_step=reports.append)
    assert reports[0]["loss"] == pytest.approx(first, rel=1e-4)
    assert reports[-1]["rewards/margins"] > 0


def test_reference_of_other_weights_is_refused_before_anything_is_kept(tmp_path):
    pairs = random_pairs(20)
    # A model whose logits are ten times larger: far from the policy's.
    other = tiny_model(seed=5)
    other.norm[...] = other.norm[...] * 10
    wrong = reference_logprobs(other, pairs, DPO, mesh=one_device())
    config = dataclasses.replace(DPO, checkpoint_every=1)
    with pytest.raises(ValueError, match=r"the first DPO loss is .* expected 0.693147"):
        align(tmp_path, pairs=pairs, config=config, reference=wrong)
    assert not list(tmp_path.glob("steps/*"))
    with pytest.raises(ValueError, match=r"reference has shape \(19, 2\); expected \(20, 2\)"):
        align(tmp_path, pairs=pairs, reference=wrong[:19])


def test_reference_logprobs_equal_the_plain_forward_pass_pair_by_pair():
    model = tiny_model()
    model.config = dataclasses.replace(model.config, max_length=256)
    pairs = random_pairs(21, longest=200)
    found = reference_logprobs(model, pairs, DPO, mesh=one_device())
    forward = nnx.jit(lambda model, tokens: jax.nn.log_softmax(model(tokens)))
    for row, pair in zip(found, pairs, strict=True):
        for value, response in zip(row, (pair.chosen, pair.rejected), strict=True):
            whole = pair.prompt + response
            padded = np.zeros((1, 256), np.int32)
            padded[0, : len(whole)] = whole
            logprobs = np.asarray(forward(model, padded))[0]
            at = range(len(pair.prompt), len(whole))
            assert value == pytest.approx(sum(logprobs[i - 1, whole[i]] for i in at), rel=1e-5)


@pytest.mark.slow
def test_pairs_of_several_lengths_train_together(tmp_path):
    model = tiny_model()
    model.config = dataclasses.replace(model.config, max_length=256)
    reports = []
    align(tmp_path, model=model, pairs=random_pairs(40, longest=200), on_step=reports.append)
    assert reports[0]["loss"] == pytest.approx(math.log(2), abs=1e-5)
    assert np.mean([r["rewards/margins"] for r in reports[-4:]]) > 0.05


def loss_and_gradients(mesh, batch):
    model = tiny_model()
    graph = nnx.graphdef(model)
    shardings = nnx.to_pure_dict(param_shardings(model.config, mesh))
    objective = PairObjective.of(DPO)

    def mean(params, batch):
        return objective(nnx.merge(graph, params), batch, objective.weight(batch))[0]

    step = jax.jit(
        jax.value_and_grad(mean),
        in_shardings=(shardings, batch_sharding(mesh)),
        out_shardings=(None, shardings),
    )
    return step(place_params(model, mesh), batch)


@pytest.mark.parametrize("shape", [(8, 1, 1), (2, 4, 1), (2, 2, 2)])
def test_loss_and_gradients_on_eight_devices_equal_those_on_one(shape):
    pairs = random_pairs(16)
    # A reference other than the policy, so that the loss is not log 2 whatever happens.
    reference = reference_logprobs(tiny_model(seed=1), pairs, DPO, mesh=one_device())
    batch = one_batch(pairs, reference * 2, multiple=8)
    loss, gradients = loss_and_gradients(mesh_of_eight(*shape), batch)
    expected_loss, expected = loss_and_gradients(one_device(), batch)
    assert abs(float(loss) - math.log(2)) > 1e-3
    assert loss == pytest.approx(float(expected_loss), abs=1e-5)
    for a, b in zip(jax.tree.leaves(gradients), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(np.asarray(a), np.asarray(b), atol=1e-5)


@pytest.mark.slow
def test_training_on_eight_devices_follows_training_on_one(tmp_path):
    losses = {}
    for name, mesh in (("one", one_device()), ("eight", mesh_of_eight(2, 2, 2))):
        reports = []
        align(tmp_path / name, mesh=mesh, on_step=reports.append)
        losses[name] = [r["loss"] for r in reports]
    np.testing.assert_allclose(losses["eight"], losses["one"], atol=1e-4)


def test_padding_pairs_change_nothing():
    model, pairs = tiny_model(), random_pairs(8)
    batch, objective = one_batch(pairs, np.zeros((8, 2))), PairObjective.of(DPO)
    padded = jax.tree.map(lambda x: np.concatenate([x, np.zeros_like(x)]), batch)
    loss = nnx.jit(lambda model, batch: objective(model, batch, objective.weight(batch)))
    for a, b in zip(
        jax.tree.leaves(loss(model, batch)), jax.tree.leaves(loss(model, padded)), strict=True
    ):
        assert a == pytest.approx(float(b), rel=1e-6)


def test_no_pair_or_one_too_long_is_refused(tmp_path):
    config = dataclasses.replace(DPO, steps=1)
    with pytest.raises(InputError, match="there is no preference pair to train on"):
        train_dpo(
            tiny_model(), [], config, mesh=one_device(), seed=0, directory=tmp_path, on_step=ignore
        )
    with pytest.raises(InputError, match="a pair has 66 tokens; the model's max_length is 64"):
        align(tmp_path, pairs=[RenderedPair((1,) * 64, (2, 3), (4,), 0)], config=config)


def test_gradient_moves_the_responses_apart_and_leaves_the_prompt_alone():
    # Gradients of log-probabilities by finite differences along a random direction.
    model, pairs = tiny_model(), random_pairs(4)
    batch = one_batch(pairs, np.full((4, 2), -20))
    graph, state = nnx.graphdef(model), place_params(model, one_device())
    objective = PairObjective.of(dataclasses.replace(DPO, beta=0.5))
    mean = jax.jit(lambda p: 4 * objective(nnx.merge(graph, p), batch, {"pairs": 4.0})[0])
    direction = jax.tree.map(
        lambda p: jnp.asarray(np.random.default_rng(p.size).normal(size=p.shape), p.dtype), state
    )
    step = 1e-3
    up, down = (
        mean(jax.tree.map(lambda p, d, s=sign: p + s * step * d, state, direction))
        for sign in (1, -1)
    )
    grads = jax.jit(jax.grad(mean))(state)
    slope = sum(
        jnp.sum(g * d) for g, d in zip(*map(jax.tree.leaves, (grads, direction)), strict=True)
    )
    assert float(up - down) / (2 * step) == pytest.approx(float(slope), rel=2e-2)


def test_aligned_model_differs_from_its_reference(tmp_path):
    model = tiny_model()
    aligned = align(tmp_path, model=model)
    assert any((a != b).any() for a, b in zip(params(model), params(aligned), strict=True))
