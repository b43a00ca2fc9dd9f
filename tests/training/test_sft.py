import dataclasses
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from ixjax.dialogue.chat import Rendered
from ixjax.io import InputError
from ixjax.training import OptimizerConfig, train_sft, validation_loss
from ixjax.training.batching import pack
from ixjax.training.objectives import sft_loss
from ixjax.training.scoring import scored_logprobs
from ixjax.training.sft import example_logprobs
from tests.training.doubles import (
    CONFIG,
    SFT,
    VOCABULARY,
    counting_examples,
    ignore,
    one_device,
    params,
    tiny_model,
)


def fine_tune(directory, *, config=SFT, train=None, valid=None, on_step=ignore, model=None):
    return train_sft(
        model or tiny_model(),
        train or counting_examples(60),
        valid or counting_examples(10, seed=1),
        config,
        mesh=one_device(),
        seed=3,
        directory=directory,
        on_step=on_step,
    )


def test_training_learns_to_count(tmp_path):
    reports = []
    config = dataclasses.replace(SFT, steps=60, eval_every=60, checkpoint_every=100)
    model = fine_tune(tmp_path, config=config, on_step=reports.append)
    assert reports[0]["loss"] == pytest.approx(np.log(VOCABULARY), rel=0.05)
    assert reports[-1]["loss"] < 0.3
    logits = model(jnp.array([[3, 4, 5, 6], [20, 21, 22, 23]]))
    np.testing.assert_array_equal(logits[:, -1].argmax(-1), [7, 24])


def test_reports_carry_what_the_user_guide_lists(tmp_path):
    reports = []
    fine_tune(tmp_path, on_step=reports.append)
    assert [r["step"] for r in reports] == list(range(1, 13))
    expected = {"step", "steps", "steps_since", "loss", "learning_rate", "grad_norm"}
    assert set(reports[0]) == expected
    assert set(reports[1]) == expected | {"tokens_per_second"}
    assert [r["step"] for r in reports if "validation_loss" in r] == [4, 8, 12]


def test_the_returned_model_is_that_of_the_best_validation(tmp_path):
    # Validated on counting down while it learns to count up: it gets worse once it has learnt.
    down = [Rendered(e.tokens[::-1], e.scored, 0) for e in counting_examples(10, seed=1)]
    reports = []
    config = dataclasses.replace(SFT, steps=40, eval_every=2, patience=2)
    model = fine_tune(tmp_path, config=config, valid=down, on_step=reports.append)
    values = [r["validation_loss"] for r in reports if "validation_loss" in r]
    assert len(values) < 20, "early stopping did not stop"
    assert values.index(min(values)) == len(values) - 3  # patience 2
    found = validation_loss(model, down, batch_size=config.batch_size)
    assert found == pytest.approx(min(values), rel=1e-6)


def test_a_capped_validation_is_that_of_examples_drawn_by_the_seed(tmp_path):
    valid = counting_examples(10, seed=1)
    config = dataclasses.replace(SFT, steps=1, eval_examples=4)
    reports = []
    for name in ("one", "again"):
        fine_tune(tmp_path / name, config=config, valid=valid, on_step=reports.append)
    first, again = (report["validation_loss"] for report in reports)
    assert first == again
    model = fine_tune(tmp_path / "one", config=config, valid=valid)
    subsets = itertools.combinations(example_logprobs(model, valid), 4)
    fits = [first == pytest.approx(-np.concatenate(s).mean(), rel=1e-6) for s in subsets]
    assert sum(fits) == 1


def test_validation_loss_is_the_mean_over_tokens_of_the_plain_forward_pass():
    examples = counting_examples(7, seed=2)
    model = tiny_model()
    total = count = 0.0
    for e in examples:
        padded = np.zeros((1, 24), np.int32)
        padded[0, : len(e.tokens)] = e.tokens
        logits = np.asarray(model(padded), np.float64)[0]
        logprobs = logits - np.log(np.exp(logits).sum(-1, keepdims=True))
        for i in range(1, len(e.tokens)):
            if e.scored[i]:
                total -= logprobs[i - 1, e.tokens[i]]
                count += 1
    found = validation_loss(model, examples, batch_size=4)
    assert found == pytest.approx(total / count, rel=1e-5)


def outcome_examples(seed: int) -> tuple[Rendered, list[Rendered]]:
    """Return a dialogue's example, and others that leave it at several places."""
    rng = np.random.default_rng(seed)
    tokens = tuple(rng.integers(0, VOCABULARY, 20).tolist())
    scored = tuple((rng.random(20) < 0.5).tolist())
    others = []
    for place in (13, 5, 13, 20, 9):
        end = tuple(rng.integers(0, VOCABULARY, 4).tolist())
        others.append(
            Rendered((*tokens[:place], *end), (False,) * (place + 1) + (True,) * 3, 0, line=3)
        )
    return Rendered(tokens, scored, 0, line=2), others


def test_branches_cost_their_own_tokens_and_change_neither_loss_nor_gradient():
    model, groups = tiny_model(), [outcome_examples(seed) for seed in range(3)]
    joined = [dataclasses.replace(main, branches=tuple(others)) for main, others in groups]
    apart = [one for main, others in groups for one in (main, *others)]
    assert pack(joined, length=64).num_tokens == 3 * (20 + 5 * 4)
    graph, start = nnx.split(model)

    def loss(state, rows):
        logprobs = scored_logprobs(nnx.merge(graph, state), rows)
        total, weight = sft_loss(logprobs, rows.weights)
        return total / weight

    (one, grads), (other, expected) = (
        jax.value_and_grad(loss)(start, pack(examples, length=64, outcome_weight=5.0))
        for examples in (joined, apart)
    )
    assert one == pytest.approx(float(other), rel=1e-5)
    for a, b in zip(jax.tree.leaves(grads), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(a, b, atol=1e-6)


def test_the_callers_model_is_left_as_it_was(tmp_path):
    model = tiny_model()
    before = params(model)
    fine_tune(tmp_path, model=model)
    for a, b in zip(before, params(model), strict=True):
        np.testing.assert_array_equal(a, b)


def test_nothing_to_learn_or_validate_on_is_refused(tmp_path):
    with pytest.raises(InputError, match="no token of the training examples is scored"):
        fine_tune(tmp_path, train=[Rendered((1, 2), (False, False), 0)])
    too_long = [Rendered((1,) * 65, (True,) * 65, 0)]
    with pytest.raises(InputError, match="an example has 65 tokens; a row holds 64"):
        fine_tune(tmp_path, valid=too_long)
    assert CONFIG.max_length == 64


@pytest.mark.parametrize("warmup", [0.0, 0.1, 0.5])
def test_learning_rate_rises_to_its_peak_and_falls_along_a_cosine(warmup):
    config = OptimizerConfig(learning_rate=0.5, warmup_fraction=warmup, final_fraction=0.2)
    rates = config.learning_rates(50)
    rising = max(1, round(50 * warmup))
    for step in range(1, 51):
        if step <= rising:
            expected = 0.5 * step / rising
        else:
            done = (step - rising) / (50 - rising)
            expected = 0.5 * (0.2 + 0.8 * 0.5 * (1 + np.cos(np.pi * done)))
        assert rates[step - 1] == pytest.approx(expected, rel=1e-5)
    assert rates.min() > 0
    assert config.learning_rates(1) == pytest.approx([0.5])


def test_matrices_decay_and_norms_do_not(tmp_path):
    examples = counting_examples(20)
    plain, decayed = (
        fine_tune(
            tmp_path / str(decay),
            config=dataclasses.replace(
                SFT, steps=1, optimizer=OptimizerConfig(learning_rate=0.1, weight_decay=decay)
            ),
            train=examples,
            valid=examples,
        )
        for decay in (0.0, 0.5)
    )
    start = tiny_model()
    np.testing.assert_array_equal(plain.norm[...], decayed.norm[...])
    np.testing.assert_array_equal(
        plain.layers.attention_norm[...], decayed.layers.attention_norm[...]
    )
    # Loshchilov and Hutter 2019: the decay is rate * decay * weight, apart from Adam's step.
    np.testing.assert_allclose(
        plain.layers.query[...] - decayed.layers.query[...],
        0.1 * 0.5 * start.layers.query[...],
        atol=1e-6,
    )
