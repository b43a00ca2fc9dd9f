"""A config.json of transformers 4 or 5 describes the same network here, or is refused by field."""

from __future__ import annotations

import dataclasses
import json
import shutil
from typing import Any

import pytest

from ixjax.io import InputError
from ixjax.models import ModelConfig, load_hf, save_hf
from ixjax.models.hf_config import architecture, read_config
from tests.models.families import CASES, LLAMA3, architectures, edit_config, torch, transformers


def test_every_field_of_a_config_is_read(folders):
    assert read_config(folders["llama-mqa-wide-heads-llama3"] / "config.json") == ModelConfig(
        vocab_size=40,
        hidden_size=24,
        num_layers=2,
        num_heads=4,
        num_kv_heads=1,
        head_dim=10,
        intermediate_size=36,
        max_length=96,
        max_positions=96,
        rope_theta=500.0,
        rope_scaling=(8.0, 1.0, 4.0, 16),
        norm_eps=1e-6,
        tie_embeddings=False,
        param_dtype="bfloat16",
        compute_dtype="bfloat16",
    )


def as_transformers_4(values: dict[str, Any]) -> dict[str, Any]:
    """A config.json of transformers 5 in the form that 4 wrote."""
    rope = values.pop("rope_parameters")
    values["torch_dtype"] = values.pop("dtype")
    if "full_attention" in rope:
        values["rope_local_base_freq"] = rope["sliding_attention"]["rope_theta"]
        rope = rope["full_attention"]
    values["rope_theta"] = rope.pop("rope_theta")
    values["rope_scaling"] = None if rope["rope_type"] == "default" else rope
    return values


@pytest.mark.parametrize("case", CASES)
def test_the_config_of_transformers_4_reads_like_that_of_5(folders, tmp_path, case):
    five, four = folders[case] / "config.json", tmp_path / "config.json"
    values = as_transformers_4(json.loads(five.read_text()))
    assert not {"rope_parameters", "dtype"} & set(values)
    four.write_text(json.dumps(values))
    assert read_config(four) == read_config(five)
    # transformers reads the rewritten form as the same network.
    theirs = [transformers.AutoConfig.from_pretrained(path.parent) for path in (four, five)]
    assert theirs[0].rope_parameters == theirs[1].rope_parameters
    assert [config.dtype for config in theirs] == [torch.float32] * 2


@pytest.mark.parametrize("case", CASES)
def test_a_saved_config_reads_as_the_same_network(folders, tmp_path, case):
    model = load_hf(folders[case])
    save_hf(model, tmp_path)
    assert read_config(tmp_path / "config.json") == model.config
    # By their own classes, as by their names.
    theirs = transformers.AutoModelForCausalLM.from_pretrained(tmp_path)
    assert architectures(tmp_path) == [type(theirs).__name__]


_EIGHT_B = {"hidden_size": 4096, "num_attention_heads": 32, "intermediate_size": 14336}
_GEMMA = {"hidden_activation": "gelu_pytorch_tanh", "head_dim": 256, "rope_theta": 1e4}
# Parameter counts of published checkpoints, and the shape fields of their config.json (shortened;
# a wrong field would give another count).
PUBLISHED = {
    "meta-llama/Llama-3.1-8B": (
        8_030_261_248,
        {
            "architectures": ["LlamaForCausalLM"],
            **_EIGHT_B,
            "num_hidden_layers": 32,
            "num_key_value_heads": 8,
            "vocab_size": 128256,
            "max_position_embeddings": 131072,
            "rope_theta": 500000.0,
            "rope_scaling": LLAMA3 | {"original_max_position_embeddings": 8192},
            "torch_dtype": "bfloat16",
        },
    ),
    "Qwen/Qwen2.5-0.5B": (
        494_032_768,
        {
            "architectures": ["Qwen2ForCausalLM"],
            "hidden_size": 896,
            "intermediate_size": 4864,
            "num_attention_heads": 14,
            "num_hidden_layers": 24,
            "num_key_value_heads": 2,
            "vocab_size": 151936,
            "max_window_layers": 24,
            "sliding_window": 32768,
            "use_sliding_window": False,
            "rope_theta": 1000000.0,
            "tie_word_embeddings": True,
        },
    ),
    "Qwen/Qwen3-0.6B": (
        596_049_920,
        {
            "architectures": ["Qwen3ForCausalLM"],
            "hidden_size": 1024,
            "head_dim": 128,
            "intermediate_size": 3072,
            "num_attention_heads": 16,
            "num_hidden_layers": 28,
            "num_key_value_heads": 8,
            "vocab_size": 151936,
            "max_window_layers": 28,
            "sliding_window": None,
            "rope_scaling": None,
            "tie_word_embeddings": True,
        },
    ),
    "mistralai/Mistral-7B-v0.1": (
        7_241_732_096,
        {
            "architectures": ["MistralForCausalLM"],
            **_EIGHT_B,
            "num_hidden_layers": 32,
            "num_key_value_heads": 8,
            "vocab_size": 32000,
            "sliding_window": 4096,
        },
    ),
    "google/gemma-2-2b": (
        2_614_341_888,
        {
            "architectures": ["Gemma2ForCausalLM"],
            **_GEMMA,
            "hidden_size": 2304,
            "intermediate_size": 9216,
            "num_attention_heads": 8,
            "num_hidden_layers": 26,
            "num_key_value_heads": 4,
            "vocab_size": 256000,
            "sliding_window": 4096,
            "cache_implementation": "hybrid",
        },
    ),
    "google/gemma-3-1b-it": (
        999_885_952,
        {
            "architectures": ["Gemma3ForCausalLM"],
            **_GEMMA,
            "hidden_size": 1152,
            "intermediate_size": 6912,
            "num_attention_heads": 4,
            "num_hidden_layers": 26,
            "num_key_value_heads": 1,
            "vocab_size": 262144,
            "sliding_window": 512,
            "sliding_window_pattern": 6,
            "rope_theta": 1000000,
            "rope_local_base_freq": 10000,
        },
    ),
}


@pytest.mark.parametrize("name", PUBLISHED)
def test_published_configs_describe_networks_of_the_published_size(tmp_path, name):
    parameters, values = PUBLISHED[name]
    path = tmp_path / "config.json"
    path.write_text(json.dumps(values))
    assert read_config(path).num_parameters == parameters


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
    edit_config(tmp_path / "filled", architectures=architectures(tmp_path))
    assert read_config(tmp_path / "filled" / "config.json") == bare


@pytest.mark.parametrize("case", CASES)
def test_the_architecture_of_a_checkpoint_is_kept_or_an_equal_one(folders, case):
    (found,) = architectures(folders[case])
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
    with pytest.raises(
        InputError, match="max_position_embeddings is 131072; expected max_length=200000"
    ):
        read_config(path, max_length=200_000)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"architectures": ["GPT2LMHeadModel"]},
            r"architectures is \['GPT2LMHeadModel'\]; .*LlamaForCausalLM, .*, Gemma3ForCausalLM$",
        ),
        (
            {"architectures": None, "model_type": None},
            "architectures is nothing; expected one of",
        ),
        (
            {"architectures": None, "model_type": "phi3"},
            "model_type is 'phi3'; expected one of the supported: llama, ",
        ),
        ({"hidden_size": None}, "hidden_size is nothing; expected a positive integer"),
        ({"hidden_size": "24"}, "hidden_size is '24'; expected a positive integer"),
        ({"num_attention_heads": True}, "num_attention_heads is True; expected a positive integer"),
        ({"rms_norm_eps": -1}, "rms_norm_eps is -1; expected a positive number"),
        ({"tie_word_embeddings": "no"}, "tie_word_embeddings is 'no'; expected true or false"),
        ({"num_key_value_heads": 3}, r"num_key_value_heads is 3; .*num_attention_heads \(4\)"),
        ({"head_dim": 5}, r"head_dim .*is 5; expected an even number"),
        ({"head_dim": None, "hidden_size": 20}, r"num_attention_heads\) is 5; expected an even"),
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
        ({"partial_rotary_factor": 0.5}, "partial_rotary_factor is 0.5; expected 1"),
        ({"layer_types": [{}, {}]}, r"layer_types is \[{}, {}\]; expected 2 of full_attention"),
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


def test_a_shorter_training_context_leaves_the_checkpoints_own_in_its_export(copy, tmp_path):
    model = load_hf(copy, max_length=48)
    save_hf(model, tmp_path / "again")
    exported = json.loads((tmp_path / "again" / "config.json").read_text())
    assert exported["max_position_embeddings"] == 96
    model.config = dataclasses.replace(model.config, max_positions=None)  # trained from scratch
    save_hf(model, tmp_path / "again")
    exported = json.loads((tmp_path / "again" / "config.json").read_text())
    assert exported["max_position_embeddings"] == 48
