"""Hugging Face folders give transformers' own logits and words, in and out."""

from __future__ import annotations

import jax
import numpy as np
import pytest

from ixjax.generation import SamplingConfig, generate
from ixjax.models import hf, hf_files, load_hf, param_shardings, save_hf
from ixjax.parallel import MeshConfig, make_mesh
from tests.models.families import (
    CASES,
    FAMILIES,
    TOKENS,
    assert_same_weights,
    make_folder,
    torch,
    torch_logits,
    transformers,
)

# Numbers: the reference is transformers' own forward pass.


@pytest.mark.parametrize("case", CASES)
def test_logits_equal_those_of_transformers(folders, case):
    model = load_hf(folders[case], dtype="float32")
    expected = torch_logits(folders[case])
    assert np.abs(expected).max() > 0.5
    np.testing.assert_allclose(jax.jit(model.__call__)(TOKENS), expected, atol=2e-4)


@pytest.mark.parametrize("shard_bytes", [hf.SHARD_BYTES, 8_000], ids=["whole", "sharded"])
@pytest.mark.parametrize("case", CASES)
def test_saved_again_transformers_gives_identical_logits(folders, case, shard_bytes, tmp_path):
    save_hf(load_hf(folders[case], dtype="float32"), tmp_path, shard_bytes=shard_bytes)
    assert (tmp_path / "model.safetensors").exists() == (shard_bytes == hf.SHARD_BYTES)
    np.testing.assert_array_equal(torch_logits(tmp_path), torch_logits(folders[case]))


# The most different families, for tests that take many seconds a case.
FEW = ("llama-mqa-wide-heads-llama3", "mistral-window", "qwen3-gqa", "gemma3")


@pytest.mark.parametrize(
    "case", [c if c in FEW else pytest.param(c, marks=pytest.mark.slow) for c in CASES]
)
def test_greedy_generation_is_that_of_transformers(folders, case):
    prompts = TOKENS[:, :24]
    theirs = transformers.AutoModelForCausalLM.from_pretrained(
        folders[case], attn_implementation="eager"
    ).generate(torch.tensor(prompts), do_sample=False, max_new_tokens=64, min_new_tokens=64)
    ours = generate(
        load_hf(folders[case], dtype="float32"),
        prompts.tolist(),
        SamplingConfig(temperature=0.0),
        max_new_tokens=64,
        seed=0,
    )
    assert ours == theirs[:, 24:].tolist()
    assert min(len(set(row)) for row in ours) >= 5  # a repeated token would test little


def test_saved_and_loaded_again_the_model_is_the_same(folders, tmp_path):
    model = load_hf(folders["llama-mqa-wide-heads-llama3"])
    save_hf(model, tmp_path)
    again = load_hf(tmp_path)
    assert again.config == model.config
    assert_same_weights(again, model)


def test_bfloat16_rounds_as_torch_does(folders, tmp_path):
    folder = folders["llama-gqa-tied"]
    assert {leaf.dtype.name for leaf in jax.tree.leaves(load_hf(folder))} == {"bfloat16"}
    save_hf(load_hf(folder), tmp_path)
    ours, theirs = (
        transformers.AutoModelForCausalLM.from_pretrained(path, dtype=dtype).state_dict()
        for path, dtype in [(tmp_path, "auto"), (folder, torch.bfloat16)]
    )
    assert all(torch.equal(ours[name], weight) for name, weight in theirs.items())


def test_a_bfloat16_file_is_read(folders, tmp_path):
    save_hf(load_hf(folders["llama-gqa-tied"]), tmp_path)
    assert_same_weights(load_hf(tmp_path), load_hf(folders["llama-gqa-tied"]))


# Layout on disk and on devices.


@pytest.mark.parametrize("case", FAMILIES)
def test_transformers_shards_are_read_through_their_index(tmp_path, folders, case):
    folder = make_folder(tmp_path, case, max_shard_size="10KB")
    assert len(list(folder.glob("model-*-of-*.safetensors"))) > 2
    whole = load_hf(folders[case], dtype="float32")
    assert_same_weights(load_hf(folder, dtype="float32"), whole)


def test_our_shards_are_read_by_transformers_and_replace_older_ones(tmp_path, folders):
    model = load_hf(folders["qwen2-gqa"], dtype="float32")
    save_hf(model, tmp_path)
    save_hf(model, tmp_path, shard_bytes=20_000)
    files = {path.name for path in tmp_path.glob("*.safetensors")}
    assert "model.safetensors" not in files
    assert all((tmp_path / name).stat().st_size < 24_000 for name in files)
    np.testing.assert_array_equal(torch_logits(tmp_path), torch_logits(folders["qwen2-gqa"]))
    save_hf(model, tmp_path)
    assert {path.name for path in tmp_path.iterdir()} == {
        "model.safetensors",
        "config.json",
        "generation_config.json",
    }


@pytest.mark.parametrize("whole_bytes", [hf.WHOLE_BYTES, 0], ids=["whole", "by-layer"])
def test_weights_are_read_into_their_shards_and_saved_from_them(
    folders, tmp_path, monkeypatch, whole_bytes
):
    expected = load_hf(folders["qwen2-gqa"], dtype="float32")
    monkeypatch.setattr(hf, "WHOLE_BYTES", whole_bytes)
    mesh = make_mesh(MeshConfig(data=2, fsdp=2, tensor=2))
    model = load_hf(folders["qwen2-gqa"], mesh=mesh, dtype="float32")
    shardings = jax.tree.leaves(param_shardings(model.config, mesh))
    assert [leaf.sharding for leaf in jax.tree.leaves(model)] == shardings
    assert_same_weights(model, expected)
    save_hf(model, tmp_path)
    assert_same_weights(load_hf(tmp_path, dtype="float32"), model)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_layer_by_layer_and_a_few_rows_at_a_time_weights_are_the_same(folders, monkeypatch, dtype):
    expected = load_hf(folders["qwen3-tied-odd-vocabulary"], dtype=dtype)
    monkeypatch.setattr(hf, "WHOLE_BYTES", 0)
    monkeypatch.setattr(hf_files, "BLOCK_ROWS", 5)
    monkeypatch.setattr(hf_files, "BLOCK_BYTES", 1)
    assert_same_weights(load_hf(folders["qwen3-tied-odd-vocabulary"], dtype=dtype), expected)
