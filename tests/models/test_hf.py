"""Hugging Face folders give transformers' own logits, in and out; any other folder is refused by
file and tensor."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import shutil
from pathlib import Path

import jax
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from ixjax.generation import SamplingConfig, generate
from ixjax.io import InputError
from ixjax.models import ModelConfig, load_hf, param_shardings, save_hf
from ixjax.models.hf_config import architecture, read_config
from ixjax.parallel import MeshConfig, make_mesh

torch = pytest.importorskip(
    "torch", reason="transformers' models need torch: pip install ixjax[test]"
)
transformers = pytest.importorskip("transformers")

SHAPE = {
    "vocab_size": 40,
    "hidden_size": 24,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 36,
    "max_position_embeddings": 96,
    "pad_token_id": None,
    "bos_token_id": None,
    "eos_token_id": None,
}
LLAMA3 = {
    "rope_type": "llama3",
    "rope_theta": 500.0,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 16,
}
LINEAR = {"rope_type": "linear", "rope_theta": 500.0, "factor": 4.0}
CASES = {
    "llama-mha": ("llama", {"num_key_value_heads": 4, "rms_norm_eps": 1e-4}),
    "llama-gqa-tied": ("llama", {"num_key_value_heads": 2, "tie_word_embeddings": True}),
    "llama-mqa-wide-heads-llama3": (
        "llama",
        {"num_key_value_heads": 1, "head_dim": 10, "rope_parameters": LLAMA3},
    ),
    "qwen2-gqa": ("qwen2", {"num_key_value_heads": 2}),
    "qwen2-tied-narrow-heads": (
        "qwen2",
        {"num_key_value_heads": 1, "head_dim": 4, "tie_word_embeddings": True},
    ),
    "qwen2-upper-layers-local": (
        "qwen2",
        {
            "num_key_value_heads": 2,
            "num_hidden_layers": 3,
            "use_sliding_window": True,
            "sliding_window": 8,
            "max_window_layers": 1,
        },
    ),
    "qwen3-gqa": ("qwen3", {"num_key_value_heads": 2, "head_dim": 8}),
    "qwen3-tied-odd-vocabulary": (
        "qwen3",
        {"num_key_value_heads": 4, "head_dim": 6, "tie_word_embeddings": True, "vocab_size": 43},
    ),
    "mistral-window": ("mistral", {"num_key_value_heads": 2, "sliding_window": 8}),
    "mistral-without": ("mistral", {"num_key_value_heads": 1, "sliding_window": None}),
    "mistral-many-layers": (
        "mistral",
        {"num_key_value_heads": 4, "sliding_window": 5, "num_hidden_layers": 9, "head_dim": 4},
    ),
    "llama-linear": ("llama", {"rope_parameters": LINEAR}),
    "gemma2": ("gemma2", {"num_key_value_heads": 2, "head_dim": 8, "sliding_window": 8}),
    "gemma2-free-uncapped": (
        "gemma2",
        {
            "num_key_value_heads": 1,
            "head_dim": 6,
            "sliding_window": 12,
            "num_hidden_layers": 9,
            "query_pre_attn_scalar": 24,
            "attn_logit_softcapping": None,
            "final_logit_softcapping": 2.0,
            "tie_word_embeddings": False,
            "vocab_size": 41,
        },
    ),
    "gemma3": (
        "gemma3_text",
        {
            "num_key_value_heads": 2,
            "head_dim": 8,
            "sliding_window": 8,
            "num_hidden_layers": 7,
            "query_pre_attn_scalar": 8,
        },
    ),
    "gemma3-linear": (
        "gemma3_text",
        {
            "num_key_value_heads": 1,
            "head_dim": 10,
            "sliding_window": 6,
            "layer_types": ["sliding_attention", "full_attention"],
            "rope_parameters": {
                "sliding_attention": {"rope_type": "default", "rope_theta": 100.0},
                "full_attention": LINEAR,
            },
        },
    ),
}
TOKENS = np.random.default_rng(0).integers(0, 40, (2, 40))


def make_folder(folder: Path, case: str, **save_arguments) -> Path:
    """A checkpoint as transformers writes it, every weight (norms and biases too) random."""
    model_type, changes = CASES[case]
    config = transformers.AutoConfig.for_model(model_type, **{**SHAPE, **changes})
    torch.manual_seed(0)
    model = transformers.AutoModelForCausalLM.from_config(config)
    with torch.no_grad():
        for name, weight in model.named_parameters():
            weight.copy_(0.15 * torch.randn_like(weight) + ("norm" in name))
    model.save_pretrained(folder, **save_arguments)
    return folder


def torch_logits(folder: Path) -> np.ndarray:
    model = transformers.AutoModelForCausalLM.from_pretrained(
        folder, dtype="auto", attn_implementation="eager"
    )
    with torch.no_grad():
        return model(torch.tensor(TOKENS)).logits.float().numpy()


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    root = tmp_path_factory.mktemp("hf")
    return {case: make_folder(root / case, case) for case in CASES}


@pytest.fixture
def copy(folders, tmp_path):
    """A folder of one's own to break."""
    return Path(shutil.copytree(folders["qwen2-gqa"], tmp_path / "broken"))


def edit_config(folder: Path, **changes) -> None:
    """Change fields of config.json; None removes."""
    values = json.loads((folder / "config.json").read_text()) | changes
    values = {name: value for name, value in values.items() if value is not None}
    (folder / "config.json").write_text(json.dumps(values))


@contextlib.contextmanager
def edited_tensors(folder: Path):
    tensors = load_file(folder / "model.safetensors")
    yield tensors
    save_file(tensors, folder / "model.safetensors")


def weights(model) -> dict[str, np.ndarray]:
    leaves = jax.tree.leaves_with_path(model)
    return {jax.tree_util.keystr(path): np.asarray(leaf) for path, leaf in leaves}


def assert_same_weights(a, b) -> None:
    jax.tree.map(np.testing.assert_array_equal, weights(a), weights(b))


# Numbers: the reference is transformers' own forward pass.


@pytest.mark.parametrize("case", CASES)
def test_logits_equal_those_of_transformers(folders, case):
    model = load_hf(folders[case], dtype="float32")
    expected = torch_logits(folders[case])
    assert np.abs(expected).max() > 0.5
    np.testing.assert_allclose(jax.jit(model.__call__)(TOKENS), expected, atol=2e-4)


@pytest.mark.parametrize("case", CASES)
def test_saved_again_transformers_gives_identical_logits(folders, case, tmp_path):
    save_hf(load_hf(folders[case], dtype="float32"), tmp_path)
    np.testing.assert_array_equal(torch_logits(tmp_path), torch_logits(folders[case]))


@pytest.mark.parametrize("case", CASES)
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


def test_transformers_shards_are_read_through_their_index(tmp_path, folders):
    folder = make_folder(tmp_path, "qwen2-gqa", max_shard_size="20KB")
    assert len(list(folder.glob("model-*-of-*.safetensors"))) > 2
    whole = load_hf(folders["qwen2-gqa"], dtype="float32")
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
    assert {path.name for path in tmp_path.iterdir()} == {"model.safetensors", "config.json"}


def test_weights_are_read_into_their_shards_and_saved_from_them(folders, tmp_path):
    mesh = make_mesh(MeshConfig(data=2, fsdp=2, tensor=2))
    model = load_hf(folders["qwen2-gqa"], mesh=mesh, dtype="float32")
    shardings = jax.tree.leaves(param_shardings(model.config, mesh))
    assert [leaf.sharding for leaf in jax.tree.leaves(model)] == shardings
    assert_same_weights(model, load_hf(folders["qwen2-gqa"], dtype="float32"))
    save_hf(model, tmp_path)
    assert_same_weights(load_hf(tmp_path, dtype="float32"), model)


def test_the_tokenizer_is_saved_and_its_special_tokens_named(folders, tmp_path):
    class Tokenizer:
        bos_token_id, eos_token_id, pad_token_id = 5, 6, 0

        def save_pretrained(self, folder):
            (Path(folder) / "tokenizer.json").write_text("{}")

    save_hf(load_hf(folders["llama-mha"]), tmp_path, Tokenizer())
    config = json.loads((tmp_path / "config.json").read_text())
    found = [config[f"{name}_token_id"] for name in ("bos", "eos", "pad")]
    assert found == [5, 6, 0]
    assert (tmp_path / "tokenizer.json").exists()


# config.json.


def test_the_config_of_transformers_4_reads_like_that_of_5(folders, tmp_path):
    folder = folders["llama-mqa-wide-heads-llama3"]
    five = read_config(folder / "config.json")
    assert five == ModelConfig(
        vocab_size=40,
        hidden_size=24,
        num_layers=2,
        num_heads=4,
        num_kv_heads=1,
        head_dim=10,
        intermediate_size=36,
        max_length=96,
        rope_theta=500.0,
        rope_scaling=(8.0, 1.0, 4.0, 16),
        norm_eps=1e-6,
        tie_embeddings=False,
        param_dtype="bfloat16",
        compute_dtype="bfloat16",
    )
    shutil.copy(folder / "config.json", tmp_path)
    scaling = {name: value for name, value in LLAMA3.items() if name != "rope_theta"}
    edit_config(
        tmp_path,
        rope_parameters=None,
        dtype=None,
        torch_dtype="float32",
        rope_theta=500.0,
        rope_scaling=scaling,
    )
    assert read_config(tmp_path / "config.json") == five


OPTIONAL = (
    "rope_parameters",
    "num_key_value_heads",
    "head_dim",
    "tie_word_embeddings",
    "rms_norm_eps",
    "layer_types",
    "sliding_window",
    "use_sliding_window",
    "max_window_layers",
    "query_pre_attn_scalar",
    "attn_logit_softcapping",
    "final_logit_softcapping",
)


@pytest.mark.parametrize("case", ["qwen2-gqa", "qwen3-gqa", "mistral-window", "gemma2", "gemma3"])
def test_what_a_config_leaves_out_is_what_transformers_takes(folders, tmp_path, case):
    """Filled in by transformers' own config class, the file reads as the same network."""
    shutil.copy(folders[case] / "config.json", tmp_path)
    edit_config(tmp_path, hidden_size=64, num_attention_heads=32, **dict.fromkeys(OPTIONAL))
    bare = read_config(tmp_path / "config.json")
    transformers.AutoConfig.from_pretrained(tmp_path).save_pretrained(tmp_path / "filled")
    edit_config(tmp_path / "filled", architectures=bare_architectures(tmp_path))
    assert read_config(tmp_path / "filled" / "config.json") == bare


def bare_architectures(folder: Path) -> list[str]:
    return json.loads((folder / "config.json").read_text())["architectures"]


@pytest.mark.parametrize("case", CASES)
def test_the_architecture_of_a_checkpoint_is_kept_or_an_equal_one(folders, case):
    (found,) = bare_architectures(folders[case])
    plain = "LlamaForCausalLM" if case == "mistral-without" else found
    assert architecture(read_config(folders[case] / "config.json")) == plain


def test_a_network_of_no_family_is_not_exported(folders, tmp_path):
    model = load_hf(folders["qwen3-gqa"])
    model.config = dataclasses.replace(model.config, attention_bias=True)
    with pytest.raises(ValueError, match="no architecture of transformers computes"):
        save_hf(model, tmp_path)


def test_length_is_the_checkpoints_within_reason_or_the_callers(copy):
    path = copy / "config.json"
    assert read_config(path).max_length == 96
    assert read_config(path, max_length=48).max_length == 48
    edit_config(copy, max_position_embeddings=131072)
    assert read_config(path).max_length == 4096
    assert read_config(path, max_length=100_000).max_length == 100_000
    with pytest.raises(InputError, match="max_position_embeddings is 131072; max_length=200000"):
        read_config(path, max_length=200_000)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"architectures": ["GPT2LMHeadModel"]},
            r"architectures is \['GPT2LMHeadModel'\]; expected one of the supported: "
            "LlamaForCausalLM, MistralForCausalLM, Qwen2ForCausalLM",
        ),
        ({"architectures": None}, "architectures is nothing; expected one of"),
        ({"hidden_size": None}, "hidden_size is nothing; expected a positive integer"),
        ({"hidden_size": "24"}, "hidden_size is '24'; expected a positive integer"),
        ({"num_attention_heads": True}, "num_attention_heads is True; expected a positive integer"),
        ({"rms_norm_eps": -1}, "rms_norm_eps is -1; expected a positive number"),
        ({"tie_word_embeddings": "no"}, "tie_word_embeddings is 'no'; expected true or false"),
        ({"num_key_value_heads": 3}, r"num_heads \(4\) must be a multiple of num_kv_heads \(3\)"),
        ({"hidden_act": "gelu"}, "hidden_act is 'gelu'; expected 'silu'"),
        ({"quantization_config": {"bits": 4}}, "quantization_config is .*must be plain floating"),
        ({"layer_types": ["full_attention"]}, "layer_types is .*; expected 2 of full_attention"),
        ({"layer_types": ["full_attention", "chunked_attention"]}, "layer_types is .*'chunked"),
        (
            {"layer_types": ["full_attention", "sliding_attention"]},
            "use_sliding_window is False; expected true, as layer_types",
        ),
        (
            {"layer_types": None, "use_sliding_window": True, "max_window_layers": 1},
            "sliding_window is nothing; expected a positive integer",
        ),
        ({"use_bidirectional_attention": True}, "use_bidirectional_attention is True; expected"),
        ({"rope_parameters": {"rope_type": "yarn"}}, "rope_type is 'yarn'; .*default, linear, lla"),
        ({"rope_parameters": None, "rope_scaling": {"type": "linear"}}, "factor is nothing"),
        ({"rope_parameters": [1]}, r"rope_parameters is \[1\]; expected an object"),
        ({"rope_parameters": LLAMA3 | {"factor": None}}, "factor is None; expected a positive"),
        (
            {"rope_parameters": LLAMA3 | {"low_freq_factor": 4.0}},
            "high_freq_factor is 4.0; expected",
        ),
        ({"rope_parameters": {"partial_rotary_factor": 0.5}}, "partial_rotary_factor is 0.5"),
    ],
)
def test_a_config_that_we_do_not_compute_is_refused_by_field(copy, changes, message):
    edit_config(copy, **changes)
    with pytest.raises(InputError, match=rf"config\.json: .*{message}"):
        load_hf(copy)


def test_a_window_in_a_llama_which_transformers_would_ignore_is_refused(folders, tmp_path):
    shutil.copy(folders["llama-mha"] / "config.json", tmp_path)
    edit_config(tmp_path, layer_types=["full_attention", "sliding_attention"])
    with pytest.raises(InputError, match=r"layer_types is .*; expected 2 of full_attention$"):
        load_hf(tmp_path)


@pytest.mark.parametrize("field", ["attention_bias", "mlp_bias"])
def test_llama_with_biases_that_we_do_not_compute_is_refused(folders, tmp_path, field):
    shutil.copy(folders["llama-mha"] / "config.json", tmp_path)
    edit_config(tmp_path, **{field: True})
    with pytest.raises(InputError, match=f"{field} is True; expected False"):
        load_hf(tmp_path)


# Weights.


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("model.norm.weight", None, r"tensor model.norm.weight is missing; expected shape \[24\]"),
        (
            "model.layers.1.mlp.up_proj.weight",
            np.zeros((24, 36), np.float32),
            r"up_proj.weight has shape \[24, 36\]; config.json implies \[36, 24\]",
        ),
        (
            "model.layers.2.mlp.up_proj.weight",
            np.zeros((36, 24), np.float32),
            r"tensor model.layers.2.mlp.up_proj.weight is not part of the model",
        ),
        (
            "model.norm.weight",
            np.zeros(24, np.int8),
            "model.norm.weight has type I8; expected one of",
        ),
    ],
)
def test_a_wrong_tensor_is_refused_by_file_and_name(copy, name, value, message):
    with edited_tensors(copy) as tensors:
        tensors.pop(name, None)
        if value is not None:
            tensors[name] = value
    with pytest.raises(InputError, match=rf"model\.safetensors: .*{message}"):
        load_hf(copy)


def test_a_head_beside_tied_embeddings_must_repeat_them(copy):
    edit_config(copy, tie_word_embeddings=True)
    with pytest.raises(InputError, match=r"lm_head\.weight differs from the embedding"):
        load_hf(copy)
    with edited_tensors(copy) as tensors:
        tensors["lm_head.weight"] = tensors["model.embed_tokens.weight"]
    assert load_hf(copy).config.tie_embeddings


def test_rotary_buffers_of_old_exports_are_passed_over(copy):
    with edited_tensors(copy) as tensors:
        tensors["model.layers.0.self_attn.rotary_emb.inv_freq"] = np.zeros(3, np.float32)
    load_hf(copy)


def test_pickles_are_not_read(copy):
    (copy / "model.safetensors").rename(copy / "pytorch_model.bin")
    with pytest.raises(InputError, match=r"found only pytorch_model\.bin, which is not read"):
        load_hf(copy)


def test_a_folder_without_weights_or_none_at_all_is_refused(copy):
    (copy / "model.safetensors").unlink()
    with pytest.raises(InputError, match=r"expected model\.safetensors or .*, found none"):
        load_hf(copy)
    with pytest.raises(InputError, match="no such folder"):
        load_hf(copy / "nowhere")
    (copy / "config.json").unlink()
    with pytest.raises(InputError, match=r"config\.json: no such file"):
        load_hf(copy)


def test_a_truncated_file_is_refused(copy):
    path = copy / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-10])
    with pytest.raises(InputError, match=r"model\.safetensors: not a whole safetensors file"):
        load_hf(copy)


@pytest.mark.parametrize(
    ("weight_map", "message"),
    [
        ({}, "weight_map is missing"),
        ({"model.norm.weight": "../model.safetensors"}, "is not a .* of this folder"),
        ({"model.norm.weight": "gone.safetensors"}, "gone.safetensors: no such file"),
        ({"other.weight": "part.safetensors"}, "part.safetensors: tensor other.weight is missing"),
        ({"model.norm.weight": "part.safetensors"}, "embed_tokens.weight is missing"),
    ],
)
def test_a_wrong_index_is_refused(copy, weight_map, message):
    (copy / "model.safetensors").rename(copy / "part.safetensors")
    (copy / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))
    with pytest.raises(InputError, match=message):
        load_hf(copy)
