"""Losses against the papers' formulas in NumPy, TRL's own code, and finite differences."""

from __future__ import annotations

import collections
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ixjax.training.objectives import (
    LOSSES,
    LossSettings,
    PreferenceLoss,
    dpo_loss,
    preference_loss,
    register_loss,
    sft_loss,
    token_logprobs,
)
from tests.reference.dpo_losses import dpo, dpo_gradient

SETTINGS = [
    ("sigmoid", 0.0), ("sigmoid", 0.2), ("robust", 0.0), ("robust", 0.3), ("ipo", 0.0),
    ("hinge", 0.0),
]  # fmt: skip
PAIRS = 16
LOGPROBS = -np.random.default_rng(0).uniform(0.0, 40.0, (4, PAIRS)).astype(np.float32)


def ours(logprobs, *, variant="sigmoid", **settings):
    return preference_loss(
        *map(jnp.asarray, logprobs), loss=variant, settings=LossSettings(**settings)
    )


@pytest.mark.parametrize("beta", [0.05, 0.1, 1.0])
@pytest.mark.parametrize(("variant", "epsilon"), SETTINGS)
def test_losses_equal_the_papers_formulas(variant, epsilon, beta):
    losses, chosen, rejected = ours(LOGPROBS, beta=beta, variant=variant, label_smoothing=epsilon)
    by_hand = [
        dpo(*map(float, pair), beta=beta, variant=variant, epsilon=epsilon) for pair in LOGPROBS.T
    ]
    np.testing.assert_allclose(losses, by_hand, rtol=1e-5, atol=1e-5)
    named = dpo_loss(
        *map(jnp.asarray, LOGPROBS), beta=beta, variant=variant, label_smoothing=epsilon
    )
    np.testing.assert_array_equal(named[0], losses)
    np.testing.assert_allclose(chosen, beta * (LOGPROBS[0] - LOGPROBS[2]), rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(rejected, beta * (LOGPROBS[1] - LOGPROBS[3]), rtol=1e-5, atol=1e-5)


@pytest.fixture(scope="module")
def trl_loss():
    """TRL's `DPOTrainer._compute_loss` of one pair of one-token responses.

    The trainer around it is a stand-in that hands the method log-probabilities where a model
    would be. With one token a response, TRL's length-normalised IPO is the paper's.
    """
    torch = pytest.importorskip("torch")
    trainer = pytest.importorskip("trl").DPOTrainer

    def loss(pair, *, loss_type: str, beta: float, epsilon: float) -> float:
        everything = torch.zeros(2, 1, dtype=torch.float64)
        output = SimpleNamespace(
            log_probs=torch.tensor(pair[:2], dtype=torch.float64)[:, None],
            entropy=everything, mean_logits=everything, is_top1=everything.bool(),
        )  # fmt: skip
        stand_in = SimpleNamespace(
            model=SimpleNamespace(training=False),
            accelerator=SimpleNamespace(
                device="cpu", gather=lambda x: x, gather_for_metrics=lambda x: x
            ),
            aux_loss_enabled=False, ld_alpha=None, precompute_ref_logps=True,
            f_divergence_type="reverse_kl", loss_types=[loss_type], loss_weights=[1.0],
            beta=beta, label_smoothing=epsilon, use_weighting=False,
            _metrics={"eval": collections.defaultdict(list)}, _total_train_tokens=0, _tp_size=1,
        )  # fmt: skip
        inputs = {
            "input_ids": torch.zeros(2, 2, dtype=torch.long),
            "attention_mask": torch.ones(2, 2, dtype=torch.long),
            "completion_mask": torch.tensor([[0, 1], [0, 1]]),
            "ref_chosen_logps": torch.tensor(pair[2:3], dtype=torch.float64),
            "ref_rejected_logps": torch.tensor(pair[3:4], dtype=torch.float64),
        }
        return float(trainer._compute_loss(stand_in, lambda **_: output, inputs, False))

    return loss


# TRL knows conservative DPO as the `aot` of a single pair, where there is nothing to sort.
@pytest.mark.parametrize(
    ("variant", "epsilon", "loss_type"),
    [
        ("sigmoid", 0.0, "sigmoid"), ("ipo", 0.0, "ipo"), ("hinge", 0.0, "hinge"),
        ("robust", 0.3, "robust"), ("sigmoid", 0.2, "aot"),
    ],
)  # fmt: skip
def test_losses_equal_those_of_trl(trl_loss, variant, epsilon, loss_type):
    losses, *_ = ours(LOGPROBS, beta=0.1, variant=variant, label_smoothing=epsilon)
    theirs = [
        trl_loss(pair, loss_type=loss_type, beta=0.1, epsilon=epsilon)
        for pair in LOGPROBS.T.tolist()
    ]
    np.testing.assert_allclose(losses, theirs, rtol=1e-6, atol=1e-6)


def test_simpo_equals_that_of_trl():
    torch = pytest.importorskip("torch")
    trainer = pytest.importorskip("trl.experimental.cpo").CPOTrainer
    stand_in = SimpleNamespace(
        accelerator=SimpleNamespace(device="cpu"), loss_type="simpo", beta=2.0, simpo_gamma=0.7,
        label_smoothing=0.1, alpha=0.0,
    )  # fmt: skip
    means = LOGPROBS[:2] / 20
    theirs = trainer.cpo_loss(stand_in, *(torch.tensor(x, dtype=torch.float64) for x in means))
    found = ours(means, variant="simpo", beta=2.0, gamma=0.7, label_smoothing=0.1)
    for ours_, other in zip(found, theirs, strict=True):
        np.testing.assert_allclose(ours_, other, rtol=1e-6, atol=1e-6)


def test_gradients_of_simpo_equal_finite_differences():
    means = LOGPROBS[:2].astype(np.float64) / 20

    def by_hand(chosen, rejected):
        return np.logaddexp(0, -(2.0 * (chosen - rejected) - 0.5))

    gradients = jax.grad(lambda *x: ours(x, variant="simpo", beta=2.0, gamma=0.5)[0].sum(), (0, 1))(
        *jnp.asarray(means, jnp.float32)
    )
    step = 1e-6
    for side, gradient in enumerate(gradients):
        shift = step * np.eye(2)[side][:, None]
        slope = (by_hand(*(means + shift)) - by_hand(*(means - shift))) / (2 * step)
        np.testing.assert_allclose(gradient, slope, atol=1e-4)


def test_equal_models_give_log_two_and_no_reward():
    losses, chosen, rejected = ours(LOGPROBS[[0, 1, 0, 1]], beta=0.3)
    np.testing.assert_allclose(losses, np.log(2), rtol=1e-6)
    np.testing.assert_array_equal(chosen, 0.0)
    np.testing.assert_array_equal(rejected, 0.0)


@pytest.mark.parametrize(("variant", "epsilon"), SETTINGS)
def test_gradients_equal_finite_differences(variant, epsilon):
    """Central differences of the NumPy reference, in float64, where a small step is exact."""
    logprobs = LOGPROBS.astype(np.float64) / 8
    settings = {"beta": 0.5, "variant": variant}

    def total(chosen, rejected):
        logprobs_ = (chosen, rejected, *logprobs[2:])
        return ours(logprobs_, label_smoothing=epsilon, **settings)[0].sum()

    gradients = jax.grad(total, (0, 1))(*jnp.asarray(logprobs[:2], jnp.float32))
    step = 1e-6
    for side, gradient in enumerate(gradients):
        for pair, slope in zip(logprobs.T, gradient, strict=True):
            up, down = pair.copy(), pair.copy()
            up[side] += step
            down[side] -= step
            ends = [dpo(*x.tolist(), epsilon=epsilon, **settings) for x in (up, down)]
            assert float(slope) == pytest.approx((ends[0] - ends[1]) / (2 * step), abs=1e-4)


def test_the_gradient_is_the_papers():
    gradients = jax.grad(lambda w, l: ours((w, l, *LOGPROBS[2:]), beta=0.1)[0].sum(), (0, 1))(
        *map(jnp.asarray, LOGPROBS[:2])
    )
    by_hand = np.array([dpo_gradient(*map(float, pair), beta=0.1) for pair in LOGPROBS.T]).T
    np.testing.assert_allclose(gradients, by_hand, rtol=1e-4, atol=1e-7)


@pytest.mark.parametrize(("variant", "epsilon"), SETTINGS)
@pytest.mark.parametrize("margin", [1e4, -1e4])
def test_extreme_margins_stay_finite(variant, epsilon, margin):
    zero = jnp.zeros(1)

    def total(chosen):
        return ours((chosen, zero, zero, zero), beta=1.0, variant=variant,
                    label_smoothing=epsilon)[0].sum()  # fmt: skip

    value, gradient = jax.value_and_grad(total)(jnp.full(1, margin))
    assert np.isfinite(value)
    assert np.isfinite(gradient).all()
    assert float(value) == pytest.approx(
        dpo(margin, 0, 0, 0, beta=1.0, variant=variant, epsilon=epsilon), rel=1e-5
    )


def test_shapes_that_would_broadcast_are_refused():
    with pytest.raises(ValueError, match=r"'policy_rejected': \(1,\)"):
        ours([jnp.zeros(3), jnp.zeros(1), jnp.zeros(3), jnp.zeros(3)])
    with pytest.raises(ValueError, match=r"\{'logprobs': \(2, 3\), 'weights': \(3,\)\}"):
        sft_loss(jnp.zeros((2, 3)), jnp.zeros(3))


@pytest.mark.parametrize(
    ("settings", "found"),
    [
        ({"beta": 0.0}, "beta is 0.0; expected a number above 0"),
        ({"beta": float("nan")}, "beta is nan"),
        ({"gamma": -1.0}, "gamma is -1.0"),
        ({"label_smoothing": 0.5}, "label_smoothing is 0.5; .* below 0.5"),
        ({"variant": "kto"}, "variant is 'kto'; expected one of sigmoid, .*simpo"),
        ({"variant": "ipo", "label_smoothing": 0.1}, "label_smoothing is 0.1; .* ipo"),
        ({"variant": "hinge", "label_smoothing": 0.1}, "label_smoothing is 0.1; .* hinge"),
    ],
)
def test_settings_that_a_loss_does_not_take_are_refused(settings, found):
    with pytest.raises(ValueError, match=found):
        ours(LOGPROBS, **settings)


def test_a_loss_with_a_reference_refuses_to_go_without_one():
    with pytest.raises(ValueError, match=r"sigmoid .* reference"):
        ours(LOGPROBS[:2])


def test_the_first_loss_is_that_of_a_policy_equal_to_its_reference():
    found = {name: loss.first(LossSettings(beta=0.1)) for name, loss in LOSSES.items()}
    assert found.pop("simpo") is None  # it has no reference
    expected = {"sigmoid": np.log(2), "ipo": 25.0, "hinge": 1.0, "robust": np.log(2)}
    assert found == pytest.approx(expected, rel=1e-6)


def test_a_name_is_registered_once(monkeypatch):
    monkeypatch.setattr("ixjax.training.objectives.LOSSES", dict(LOSSES))
    register_loss(LOSSES["ipo"])  # the same again
    with pytest.raises(ValueError, match="'ipo'"):
        register_loss(PreferenceLoss("ipo", LOSSES["hinge"].function))


def test_token_logprobs_equal_the_log_of_a_softmax():
    rng = np.random.default_rng(1)
    logits, targets = rng.normal(0, 5, (2, 3, 7)), rng.integers(0, 7, (2, 3))
    weights = np.exp(logits)
    expected = np.log(weights / weights.sum(-1, keepdims=True))
    expected = np.take_along_axis(expected, targets[..., None], -1)[..., 0]
    found = token_logprobs(jnp.asarray(logits, jnp.float32), jnp.asarray(targets))
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-5)


def test_token_logprobs_of_extreme_logits_are_finite_and_float32():
    logits = jnp.array([[1e4, -1e4], [-1e4, -1e4]], jnp.bfloat16)
    found = token_logprobs(logits, jnp.array([1, 0]))
    assert found.dtype == jnp.float32
    assert float(found[0]) == pytest.approx(-2e4, rel=1e-2)
    assert float(found[1]) == pytest.approx(-np.log(2), abs=2e-3)  # float32 next to 1e4


def test_sft_loss_sums_what_is_scored_alone():
    logprobs = jnp.array([[-1.0, -2.0, -np.inf], [-3.0, -4.0, -5.0]])
    weights = jnp.array([[1.0, 0.0, 0.0], [0.0, 1.0, 1.0]])
    total, weight = sft_loss(logprobs, weights)
    assert (float(total), float(weight)) == (10.0, 3.0)
    # What is not scored, not even a -inf of padding, leaves no trace in the gradient.
    gradient = jax.grad(lambda x: sft_loss(x, weights)[0])(logprobs)
    np.testing.assert_array_equal(gradient, -weights)
