"""What a step is made of: parts of a batch, what learns, meshes, and TRL's trainer beside it."""

import dataclasses
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ixjax.dialogue.chat import RenderedPair
from ixjax.io import InputError
from ixjax.models import LoraArguments, LoraConfig, add_lora
from ixjax.models.sharding import weights_by_path
from ixjax.training import OptimizerConfig, reference_logprobs
from ixjax.training.batching import pack
from ixjax.training.dpo import PairObjective, _hold_out
from ixjax.training.objectives import LossSettings, preference_loss
from ixjax.training.sft import SFTObjective
from ixjax.training.steps import (
    join,
    make_steps,
    mean_loss,
    place_batch,
    place_params,
    split,
    trained_paths,
)
from tests.training.doubles import (
    CONFIG,
    DPO,
    assert_close,
    counting_examples,
    mesh_of_eight,
    one_batch,
    one_device,
    random_pairs,
    tiny_model,
)
from tests.training.test_dpo import align

SGD = OptimizerConfig(kind="sgd", schedule="constant", weight_decay=0.0, clip_norm=1e9)


def take_steps(batches, objective, *, mesh=None, rate=0.1, model=None, **settings):
    """Losses and parameters after one step a batch."""
    mesh, model = mesh or one_device(), model or tiny_model()
    steps = make_steps(model.config, mesh, objective, SGD.to_optax(), **settings)
    trained, frozen = split(place_params(model, mesh), trained_paths(model.config))
    params = jax.tree.map(jnp.copy, trained)
    state, losses = (params, steps.init(params)), []
    for batch in batches:
        placed = place_batch(batch, mesh, parts=settings.get("micro_batches", 1))
        state, metrics = steps.train(state, frozen, placed, np.float32(rate))
        losses.append(float(metrics["loss"]))
    return losses, jax.device_get(join(state[0], frozen))


def pair_batch(**settings):
    pairs = random_pairs(16)
    return one_batch(pairs, np.random.default_rng(0).normal(-15, 3, (16, 2)), **settings)


@pytest.mark.parametrize("parts", [2, 3])
@pytest.mark.parametrize("which", ["sft", "dpo", "rpo"])
def test_parts_of_a_batch_add_up_to_the_whole(which, parts):
    if which == "sft":
        batch, objective = pack(counting_examples(40), length=64), SFTObjective()
    else:
        alpha = 0.5 if which == "rpo" else 0.0
        batch = pair_batch()
        objective = PairObjective.of(dataclasses.replace(DPO, rpo_alpha=alpha))
    whole, in_parts = (take_steps([batch], objective, micro_batches=n) for n in (1, parts))
    assert in_parts[0] == pytest.approx(whole[0], abs=1e-6)
    assert_close(in_parts[1], whole[1], atol=1e-6)


MESHES = [(8, 1, 1), (2, 4, 1), (1, 2, 4), (2, 2, 2)]


@pytest.mark.slow
@pytest.mark.parametrize("shape", MESHES)
def test_twenty_steps_on_eight_devices_have_the_losses_of_one(shape):
    rng = np.random.default_rng(0)
    batches = [
        one_batch(random_pairs(16, seed=n), rng.normal(-15, 3, (16, 2)), row_length=96, multiple=8)
        for n in range(20)
    ]
    shapes = {batch.rows.tokens.shape for batch in batches}
    assert len(shapes) == 1
    objective = PairObjective.of(DPO)
    one, eight = (
        take_steps(batches, objective, mesh=mesh, rate=0.02)[0]
        for mesh in (one_device(), mesh_of_eight(*shape))
    )
    assert one[0] != pytest.approx(one[-1], abs=1e-2)
    np.testing.assert_allclose(eight, one, atol=1e-5)


def test_frozen_weights_stay_to_the_bit_and_the_others_learn(tmp_path):
    model = tiny_model()
    before = {name: np.asarray(value) for name, value in weights_by_path(model).items()}
    config = dataclasses.replace(DPO, steps=3, frozen=("embedding", "layers.query"))
    after = weights_by_path(align(tmp_path, model=model, config=config))
    for name, value in before.items():
        same = np.array_equal(value, np.asarray(after[name]))
        assert same == (name in ("embedding", "layers.query")), name


def test_what_is_held_out_shares_no_prompt_with_what_is_learned():
    pairs = [RenderedPair((i % 5 + 1, 2), (7, i), (9, i), 0) for i in range(20)]
    learned, held = _hold_out(pairs, dataclasses.replace(DPO, validation_fraction=0.05), 0)
    assert sorted([*learned, *held]) == list(range(20))
    assert len(held) == 4  # a prompt's pairs, though one would have been enough
    assert not {pairs[i].prompt for i in learned} & {pairs[i].prompt for i in held}
    with pytest.raises(InputError, match=r"validation_fraction is 0.5; .* 1 pairs"):
        _hold_out(pairs[:1], dataclasses.replace(DPO, validation_fraction=0.5), 0)


@pytest.mark.slow
def test_the_best_validation_is_returned(tmp_path):
    rate = dataclasses.replace(DPO.optimizer, learning_rate=0.1)
    config = dataclasses.replace(DPO, validation_fraction=0.3, eval_every=2, optimizer=rate)
    # Which response is preferred is chance: there is nothing to learn but these very pairs.
    swapped = [RenderedPair(p.prompt, p.rejected, p.chosen, 0) for p in random_pairs(20)]
    reports, pairs = [], [*random_pairs(20, seed=1), *swapped]
    model = align(tmp_path, pairs=pairs, config=config, on_step=reports.append)
    losses = [r["validation_loss"] for r in reports if "validation_loss" in r]
    assert min(losses) < losses[-1]
    _, held = _hold_out(pairs, config, 3)
    reference = reference_logprobs(tiny_model(), pairs, DPO, mesh=one_device())
    batch = one_batch([pairs[i] for i in held], reference[held])
    assert mean_loss(model, PairObjective.of(DPO), [batch]) == pytest.approx(min(losses), abs=1e-5)


def test_length_normalized_losses_are_those_of_means():
    model, pairs = tiny_model(), random_pairs(8)
    reference = np.random.default_rng(0).normal(-15, 3, (8, 2)).astype(np.float32)
    said = reference_logprobs(model, pairs, DPO, mesh=one_device())
    lengths = np.array([[len(p.chosen), len(p.rejected)] for p in pairs])
    sides = [jnp.asarray(x) for x in (*(said / lengths).T, *(reference / lengths).T)]
    expected = float(preference_loss(*sides, settings=LossSettings(beta=0.1))[0].mean())
    config = dataclasses.replace(DPO, length_normalized=True)
    found = mean_loss(model, PairObjective.of(config), [one_batch(pairs, reference)])
    assert found == pytest.approx(expected, abs=1e-6)
    simpo = PairObjective.of(dataclasses.replace(DPO, variant="simpo", simpo_gamma=0.3))
    by_hand = -np.log(1 / (1 + np.exp(-(0.1 * (sides[0] - sides[1]) - 0.3)))).mean()
    for other in (reference, 2 * reference):
        found = mean_loss(model, simpo, [one_batch(pairs, other)])
        assert found == pytest.approx(by_hand, abs=1e-6)


@pytest.mark.slow
def test_another_start_is_another_training(tmp_path):
    first, other = (align(tmp_path, model=tiny_model(seed)) for seed in (0, 1))
    assert not np.array_equal(*(np.asarray(m.embedding[...]) for m in (first, other)))


@pytest.mark.parametrize(
    ("frozen", "message"),
    [
        (("query",), "frozen is 'query'; expected .* embedding, norm"),
        (("embedding", "norm", "layers"), r"frozen is \(.*'layers'\)"),
    ],
)
def test_names_that_freeze_nothing_or_everything_are_refused(frozen, message):
    with pytest.raises(ValueError, match=message):
        trained_paths(CONFIG, frozen)


def test_adapters_learn_alone_from_the_base_as_reference(tmp_path):
    model = tiny_model()
    lora = LoraArguments(rank=4, alpha=8.0, targets=("query", "down"))
    reports = []
    aligned = align(
        tmp_path,
        model=model,
        config=dataclasses.replace(
            DPO, lora=lora, optimizer=dataclasses.replace(DPO.optimizer, learning_rate=3e-2)
        ),
        on_step=reports.append,
    )
    assert reports[0]["loss"] == pytest.approx(math.log(2), abs=1e-5)
    assert reports[-1]["rewards/margins"] > 0.01
    before, after = weights_by_path(model), weights_by_path(aligned)
    for name, value in before.items():
        np.testing.assert_array_equal(np.asarray(value), np.asarray(after[name]), err_msg=name)
    for name in after.keys() - before.keys():
        assert "_lora_" in name
        assert np.abs(np.asarray(after[name])).max() > 0
    # Alone in the optimiser's state, too.
    config = add_lora(model, LoraConfig(4, 8.0, ("query", "down")), seed=0).config
    state = make_steps(
        config, one_device(), PairObjective.of(DPO), DPO.optimizer.to_optax()
    ).abstract_state
    moments = [leaf for leaf in jax.tree.leaves(state[1]) if leaf.ndim]
    assert len(moments) == 2 * 4


def test_moments_are_float32_where_parameters_are_not():
    config = dataclasses.replace(CONFIG, param_dtype="bfloat16", compute_dtype="bfloat16")
    steps = make_steps(config, one_device(), SFTObjective(), DPO.optimizer.to_optax())
    params, opt_state = steps.abstract_state
    assert {leaf.dtype for leaf in jax.tree.leaves(params)} == {jnp.dtype("bfloat16")}
    assert {leaf.dtype for leaf in jax.tree.leaves(opt_state) if leaf.ndim} == {
        jnp.dtype("float32")
    }


@pytest.mark.slow
@pytest.mark.filterwarnings(
    "ignore::FutureWarning", "ignore::UserWarning", "ignore::DeprecationWarning"
)  # theirs
def test_twenty_steps_leave_the_parameters_that_trl_leaves(tmp_path):
    torch = pytest.importorskip("torch")
    trl = pytest.importorskip("trl")
    from datasets import Dataset
    from transformers import LlamaForCausalLM

    from ixjax.models import init_model, load_hf, save_hf
    from ixjax.testing import byte_tokenizer
    from ixjax.training.pair_rows import PairBatches
    from tests.training.sandbox_pairs import sandbox_pairs

    tokenizer, rate = byte_tokenizer(), 0.3
    pairs = sandbox_pairs(tokenizer, 80)
    config = dataclasses.replace(CONFIG, vocab_size=len(tokenizer), max_length=512)
    model = init_model(config, seed=0, mesh=one_device())
    save_hf(model, tmp_path / "start")

    class InOrder(trl.DPOTrainer):
        """Takes the tokens as they are, in their order."""

        def _prepare_dataset(self, dataset, *_, **__):
            return dataset

        def _get_train_sampler(self, dataset=None):
            return torch.utils.data.SequentialSampler(dataset or self.train_dataset)

    theirs = LlamaForCausalLM.from_pretrained(tmp_path / "start")
    optimizer = torch.optim.SGD(theirs.parameters(), lr=rate)
    InOrder(
        model=theirs,
        args=trl.DPOConfig(
            output_dir=str(tmp_path / "trl"), per_device_train_batch_size=4, max_steps=20,
            beta=0.1, report_to=[], max_length=None, precompute_ref_log_probs=True,
            save_strategy="no", disable_tqdm=True, use_cpu=True, bf16=False, max_grad_norm=0.0,
            gradient_checkpointing=False,
        ),
        train_dataset=Dataset.from_list(
            [
                {"prompt_ids": list(p.prompt), "chosen_ids": list(p.chosen),
                 "rejected_ids": list(p.rejected)}
                for p in pairs
            ]
        ),
        processing_class=tokenizer,
        optimizers=(optimizer, torch.optim.lr_scheduler.ConstantLR(optimizer, 1.0)),
    ).train()  # fmt: skip
    theirs.save_pretrained(tmp_path / "theirs")

    known = reference_logprobs(model, pairs, DPO, mesh=one_device())
    numbers = [range(4 * n, 4 * n + 4) for n in range(20)]
    batches = PairBatches(pairs, numbers, share="pair", max_length=512)
    made = [batches.make(n, known) for n in range(20)]
    start = jax.device_get(place_params(model, one_device()))
    _, ours = take_steps(made, PairObjective.of(DPO), rate=rate, model=model)
    expected = place_params(load_hf(tmp_path / "theirs", dtype="float32"), one_device())
    moved = max(
        np.abs(a - b).max() for a, b in zip(*map(jax.tree.leaves, (ours, start)), strict=True)
    )
    assert moved > 1e-2
    assert_close(ours, expected, atol=1e-4)
