"""Adapters compute the same as PEFT's: single, merged, and stacked with a choice for each row."""

from __future__ import annotations

import dataclasses
import json
import shutil
from pathlib import Path

import jax
import numpy as np
import pytest
from flax import nnx
from safetensors.numpy import load_file, save_file

from ixjax.io import InputError
from ixjax.models import (
    LoraConfig,
    LoraParam,
    add_lora,
    load_adapter,
    load_hf,
    merge_lora,
    save_adapter,
    save_hf,
    stack_adapters,
)
from ixjax.parallel import MeshConfig, make_mesh

peft = pytest.importorskip(
    "peft", reason="adapters are compared with PEFT: pip install ixjax[test]"
)
torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

# PEFT uses deprecated functions of transformers.
pytestmark = pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing.:FutureWarning")

TOKENS = np.random.default_rng(0).integers(0, 40, (3, 12))
SHAPE = {
    "vocab_size": 40,
    "hidden_size": 24,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "intermediate_size": 36,
    "pad_token_id": None,
    "bos_token_id": None,
    "eos_token_id": None,
}
LORA = LoraConfig(rank=4, alpha=6.0, targets=("query", "down"), adapters=2)
MODULES = {
    "all": ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"],
    "some": ["q_proj", "v_proj"],
    "all-linear": "all-linear",
}


@pytest.fixture(scope="module")
def base(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("base")
    torch.manual_seed(0)
    config = transformers.AutoConfig.for_model("qwen2", **SHAPE)
    model = transformers.AutoModelForCausalLM.from_config(config)
    with torch.no_grad():
        for weight in model.parameters():
            weight.copy_(0.2 * torch.randn_like(weight))
    model.save_pretrained(folder)
    return folder


def make_adapter(base: Path, folder: Path, *, seed: int, modules: str = "all", **settings) -> Path:
    """Write an adapter with PEFT, with both matrices random."""
    torch.manual_seed(seed)
    settings = {"r": 3, "lora_alpha": 7, "target_modules": MODULES[modules], **settings}
    config = peft.LoraConfig(task_type="CAUSAL_LM", **settings)
    model = peft.get_peft_model(transformers.AutoModelForCausalLM.from_pretrained(base), config)
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if "lora_" in name:
                weight.copy_(0.3 * torch.randn_like(weight))
    model.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def adapters(base, tmp_path_factory) -> list[Path]:
    root = tmp_path_factory.mktemp("adapters")
    return [make_adapter(base, root / str(seed), seed=seed) for seed in (1, 2)]


def peft_logits(base: Path, adapter: Path | None) -> np.ndarray:
    model = transformers.AutoModelForCausalLM.from_pretrained(base)
    model = model if adapter is None else peft.PeftModel.from_pretrained(model, adapter)
    with torch.no_grad():
        return model(torch.tensor(TOKENS)).logits.numpy()


def with_adapter(base: Path, adapter: Path):
    return load_adapter(load_hf(base, dtype="float32"), adapter)


@jax.jit
def logits(model, adapters):
    return model(TOKENS, adapters=adapters)


def assert_close(found, expected) -> None:
    assert np.abs(expected).max() > 0.3
    np.testing.assert_allclose(found, expected, atol=2e-4)


@pytest.mark.parametrize(
    ("modules", "settings"),
    [
        ("all", {}),
        ("some", {"r": 1, "lora_alpha": 0.5}),
        ("all-linear", {"r": 5, "lora_alpha": 2, "use_rslora": True}),
    ],
    ids=["all", "some-rank-1", "all-linear-rslora"],
)
def test_logits_equal_those_of_peft(base, tmp_path, modules, settings):
    folder = make_adapter(base, tmp_path, seed=1, modules=modules, **settings)
    model = with_adapter(base, folder)
    expected = peft_logits(base, folder)
    assert np.abs(expected - peft_logits(base, None)).max() > 0.1
    assert_close(jax.jit(model.__call__)(TOKENS), expected)
    assert_close(jax.jit(merge_lora(model).__call__)(TOKENS), expected)


@pytest.mark.parametrize("case", ["llama-gqa-tied", "gemma3"])
def test_other_families_adapters_equal_those_of_peft(folders, tmp_path, case):
    folder = make_adapter(folders[case], tmp_path / "adapter", seed=4)
    expected = peft_logits(folders[case], folder)
    model = with_adapter(folders[case], folder)
    assert_close(jax.jit(model.__call__)(TOKENS), expected)
    save_hf(merge_lora(model), tmp_path / "merged")
    assert_close(peft_logits(tmp_path / "merged", None), expected)


def test_every_row_has_its_own_adapter_or_none(base, adapters):
    model = stack_adapters([with_adapter(base, folder) for folder in adapters])
    found = logits(model, np.array([1, -1, 0]))
    one, two, none = (peft_logits(base, folder) for folder in (*adapters, None))
    assert_close(found, np.stack([two[0], none[1], one[2]]))


def test_a_rows_adapter_is_exact_whatever_lies_beside_it(base, adapters):
    alone = with_adapter(base, adapters[0])
    both = stack_adapters([alone, with_adapter(base, adapters[1])])
    rows = np.zeros(3, int)
    np.testing.assert_allclose(logits(both, rows), logits(alone, rows), rtol=0, atol=1e-6)


def test_new_adapters_change_nothing_and_are_what_is_trained(base):
    model = load_hf(base, dtype="float32")
    grown = add_lora(model, LORA, seed=0)
    np.testing.assert_array_equal(logits(grown, np.ones(3, int)), logits(model, None))
    trained = nnx.to_flat_state(nnx.state(grown, LoraParam))
    shapes = {path[-1]: variable.get_value().shape for path, variable in trained}
    assert shapes == {
        "query_lora_a": (2, 2, 24, 4),
        "query_lora_b": (2, 2, 4, 24),
        "down_lora_a": (2, 2, 36, 4),
        "down_lora_b": (2, 2, 4, 24),
    }
    graph, params, rest = nnx.split(grown, LoraParam, ...)
    grads = jax.jit(jax.grad(lambda p: nnx.merge(graph, p, rest)(TOKENS)[..., 3].sum()))(params)
    norms = {
        path[-1]: float(abs(leaf.get_value()).max()) for path, leaf in nnx.to_flat_state(grads)
    }
    assert norms["query_lora_b"] > 0
    assert norms["query_lora_a"] == 0  # as B is zero at first
    drawn = np.asarray(nnx.state(grown, LoraParam)["layers"]["query_lora_a"][...])
    assert drawn.std() == pytest.approx(1 / np.sqrt(3 * 24), rel=0.2)
    assert np.abs(drawn[:, 0] - drawn[:, 1]).max() > 0


def test_an_exported_adapter_is_loaded_by_peft(base, adapters, tmp_path):
    model = stack_adapters([with_adapter(base, folder) for folder in adapters])
    save_adapter(model, tmp_path, adapter=1, base=str(base))
    assert_close(logits(model, np.ones(3, int)), peft_logits(base, tmp_path))
    ours, theirs = (load_file(f / "adapter_model.safetensors") for f in (tmp_path, adapters[1]))
    assert ours.keys() == theirs.keys()
    for name, value in theirs.items():
        np.testing.assert_array_equal(ours[name], value)
    alone = peft.AutoPeftModelForCausalLM.from_pretrained(tmp_path)
    assert alone.peft_config["default"].r == 3


def test_our_own_adapters_are_loaded_by_peft_and_merged_by_transformers(base, tmp_path):
    model = add_lora(load_hf(base, dtype="float32"), LORA, seed=0)
    rng = np.random.default_rng(0)
    for target in LORA.targets:
        second = getattr(model.layers, f"{target}_lora_b")
        second[...] = 0.3 * rng.standard_normal(second[...].shape, np.float32)
    rows = np.array([0, 1, 1])
    ours = np.asarray(logits(model, rows))
    for adapter in range(2):
        alone, merged = tmp_path / f"alone-{adapter}", tmp_path / f"merged-{adapter}"
        save_adapter(model, alone, adapter=adapter)
        save_hf(merge_lora(model, adapter), merged)
        assert_close(peft_logits(base, alone)[rows == adapter], ours[rows == adapter])
        assert_close(peft_logits(merged, None)[rows == adapter], ours[rows == adapter])


def test_a_bfloat16_adapter_is_exported_as_it_is(base, adapters, tmp_path):
    model = load_adapter(load_hf(base), adapters[0])
    save_adapter(model, tmp_path)
    for name, value in load_file(tmp_path / "adapter_model.safetensors").items():
        theirs = load_file(adapters[0] / "adapter_model.safetensors")[name]
        np.testing.assert_array_equal(value, theirs.astype(value.dtype))
        assert value.dtype == "bfloat16"


def test_a_merged_export_is_loaded_by_transformers(base, adapters, tmp_path):
    model = with_adapter(base, adapters[0])
    save_hf(merge_lora(model), tmp_path)
    assert_close(peft_logits(tmp_path, None), peft_logits(base, adapters[0]))
    with pytest.raises(ValueError, match=r"has adapters; .*merge_lora"):
        save_hf(model, tmp_path)


def test_on_a_mesh_adapters_are_sharded_like_their_projections(base, adapters):
    mesh = make_mesh(MeshConfig(data=2, fsdp=2, tensor=2))
    model = load_adapter(load_hf(base, mesh=mesh, dtype="float32"), adapters[0], mesh=mesh)
    assert model.layers.query_lora_b[...].sharding.spec[-1] == "tensor"
    assert_close(jax.jit(model.__call__)(TOKENS), peft_logits(base, adapters[0]))


def test_adapters_lie_where_the_model_does(base, adapters):
    mesh = make_mesh(MeshConfig(data=2, fsdp=2, tensor=2))
    model = load_hf(base, mesh=mesh, dtype="float32")
    for grown in (add_lora(model, LORA, seed=0), load_adapter(model, adapters[0])):
        assert grown.layers.query_lora_b[...].sharding.mesh == mesh
    last = jax.devices()[-1]
    alone = load_hf(base, mesh=make_mesh(devices=[last]), dtype="float32")
    assert add_lora(alone, LORA, seed=0).layers.query_lora_a[...].devices() == {last}


def edit(folder: Path, **changes) -> None:
    path = folder / "adapter_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"peft_type": "IA3"}, "peft_type is 'IA3'; expected 'LORA'"),
        ({"use_dora": True}, "use_dora is True; expected False"),
        ({"bias": "all"}, "bias is 'all'; expected 'none'"),
        ({"modules_to_save": ["lm_head"]}, "modules_to_save is .*; expected None"),
        ({"init_lora_weights": "pissa_niter_4"}, "init_lora_weights is 'pissa_niter_4'; expected"),
        ({"layer_replication": [[0, 2], [1, 2]]}, "layer_replication is .*; expected None"),
        ({"alora_invocation_tokens": [3]}, r"alora_invocation_tokens is \[3\]; expected None"),
        ({"rank_pattern": {"q_proj": 8}}, "rank_pattern is .*; expected None"),
        ({"r": 0}, "r is 0; expected a positive integer"),
        ({"lora_alpha": None}, "lora_alpha is None; expected a positive number"),
        ({"target_modules": []}, "target_modules is .*'all-linear' or a list of q_proj"),
        ({"target_modules": ["q_proj", "lm_head"]}, "target_modules is .*; expected 'all-linear'"),
        ({"target_modules": ["model.layers.1.mlp.up_proj"]}, "target_modules is .*in every layer"),
        ({"target_modules": ["c_attn"]}, "target_modules is .*'all-linear' or a list of q_proj"),
        ({"target_modules": r".*q_proj"}, "target_modules is .*'all-linear' or a list of q_proj"),
    ],
)
def test_an_adapter_that_we_do_not_compute_is_refused_by_field(
    base, adapters, tmp_path, changes, message
):
    folder = Path(shutil.copytree(adapters[0], tmp_path / "broken"))
    edit(folder, **changes)
    with pytest.raises(InputError, match=rf"adapter_config\.json: {message}"):
        with_adapter(base, folder)


def test_weights_that_do_not_fit_are_refused_by_tensor(base, adapters, tmp_path):
    folder = Path(shutil.copytree(adapters[0], tmp_path / "broken"))
    file = folder / "adapter_model.safetensors"
    found = load_file(file)
    first = "base_model.model.model.layers.0.self_attn.q_proj.lora_A.weight"
    save_file({name: value for name, value in found.items() if name != first}, file)
    with pytest.raises(
        InputError, match=r"q_proj.lora_A.weight is missing; expected shape \[3, 24"
    ):
        with_adapter(base, folder)
    save_file(found | {first: np.zeros((2, 24), np.float32)}, file)
    with pytest.raises(InputError, match=r"has shape \[2, 24\]; .* imply \[3, 24\]"):
        with_adapter(base, folder)
    save_file(found | {"surplus": np.zeros(2, np.float32)}, file)
    with pytest.raises(InputError, match="tensor surplus belongs to no projection"):
        with_adapter(base, folder)
    file.write_bytes(file.read_bytes()[:-9])
    with pytest.raises(InputError, match="not a whole safetensors file"):
        with_adapter(base, folder)
    file.unlink()
    with pytest.raises(InputError, match=r"adapter_model\.safetensors: no such file"):
        with_adapter(base, folder)
    with pytest.raises(InputError, match="no such folder"):
        with_adapter(base, tmp_path / "nowhere")


def test_adapters_of_another_base_or_size_are_not_stacked(base, adapters, tmp_path):
    one = with_adapter(base, adapters[0])
    other = load_hf(base, dtype="float32")
    other.norm[...] = other.norm[...] * 2
    with pytest.raises(ValueError, match="norm differs between the models"):
        stack_adapters([one, load_adapter(other, adapters[1])])
    some = with_adapter(base, make_adapter(base, tmp_path, seed=3, modules="some"))
    with pytest.raises(ValueError, match="models have 2 configs"):
        stack_adapters([one, some])
    with pytest.raises(ValueError, match="adapter is 1; expected one of the model's 1 adapters"):
        merge_lora(one, adapter=1)
    with pytest.raises(ValueError, match=r"has adapters; .*merge_lora"):
        load_adapter(one, adapters[1])


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"rank": 0}, "rank is 0"),
        ({"adapters": 0}, "adapters is 0"),
        ({"targets": ()}, "expected some of query, key"),
        ({"targets": ("query", "query")}, "each once"),
        ({"targets": ("head",)}, "expected some of query, key"),
    ],
)
def test_a_size_that_no_adapter_has_is_refused(changes, message):
    with pytest.raises(ValueError, match=message):
        dataclasses.replace(LoraConfig(), **changes)
