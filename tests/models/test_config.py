"""A shape that no decoder can have is refused by name; equal shapes are equal static arguments."""

from __future__ import annotations

import dataclasses
import json

import pytest

from ixjax.models import LoraConfig, ModelArguments, ModelConfig

CONFIG = ModelConfig(
    vocab_size=11,
    hidden_size=8,
    num_layers=1,
    num_heads=4,
    num_kv_heads=2,
    head_dim=2,
    intermediate_size=12,
)


SIZES = (
    "hidden_size",
    "num_layers",
    "num_heads",
    "num_kv_heads",
    "intermediate_size",
    "max_length",
)


@pytest.mark.parametrize("name", [*SIZES, "vocab_size", "head_dim"])
def test_sizes_below_one_are_refused_by_name(name):
    with pytest.raises(ValueError, match=rf"{name} is 0; it must be at least 1"):
        dataclasses.replace(CONFIG, **{name: 0})


def test_query_heads_must_share_kv_heads_equally():
    with pytest.raises(
        ValueError, match=r"num_heads \(4\) must be a multiple of num_kv_heads \(3\)"
    ):
        dataclasses.replace(CONFIG, num_kv_heads=3)


def test_odd_head_cannot_be_rotated():
    with pytest.raises(ValueError, match="head_dim is 3; rotary embedding needs an even number"):
        dataclasses.replace(CONFIG, head_dim=3)


def test_equal_configs_hash_equal():
    again = dataclasses.replace(CONFIG)
    assert again == CONFIG
    assert hash(again) == hash(CONFIG)
    assert dataclasses.replace(CONFIG, rope_scaling=(8.0, 1.0, 4.0, 16)) != CONFIG


def test_arguments_give_the_config_of_a_tokenizer():
    arguments = ModelArguments(hidden_size=32, num_heads=4, max_length=99, compute_dtype="bfloat16")
    config = arguments.to_config(vocab_size=77)
    assert (config.vocab_size, config.head_dim, config.max_length) == (77, 8, 99)
    assert (config.param_dtype, config.compute_dtype) == ("float32", "bfloat16")


def test_arguments_refuse_a_width_that_heads_do_not_divide():
    with pytest.raises(
        ValueError, match=r"hidden_size \(30\) must be a multiple of num_heads \(4\)"
    ):
        ModelArguments(hidden_size=30, num_heads=4)


@pytest.mark.parametrize("name", SIZES)
def test_arguments_below_one_are_refused_by_name(name):
    with pytest.raises(ValueError, match=rf"{name} is 0; it must be at least 1"):
        ModelArguments(**{name: 0})


def test_arguments_refuse_heads_that_no_decoder_has():
    with pytest.raises(ValueError, match=r"num_heads \(4\) .* num_kv_heads \(3\)"):
        ModelArguments(num_kv_heads=3)
    with pytest.raises(ValueError, match="head_dim is 9; rotary embedding needs an even number"):
        ModelArguments(hidden_size=36, num_heads=4)


@pytest.mark.parametrize("targets", [None, ("query", "down")])
def test_a_config_survives_json(targets):
    config = dataclasses.replace(
        CONFIG,
        rope_scaling=(8.0, 1.0, 4.0, 16),
        sliding_window=8,
        local_layers=(True,) * CONFIG.num_layers,
        lora=None if targets is None else LoraConfig(rank=2, targets=targets),
    )
    assert ModelConfig.from_json(json.loads(json.dumps(dataclasses.asdict(config)))) == config


def test_local_layers_are_counted_and_need_a_window():
    assert dataclasses.replace(CONFIG, local_layers=(True,) * CONFIG.num_layers).is_local == (
        (False,) * CONFIG.num_layers
    )
    assert dataclasses.replace(CONFIG, sliding_window=4).is_local == (True,) * CONFIG.num_layers
    with pytest.raises(ValueError, match="local_layers lists 2 layers"):
        dataclasses.replace(CONFIG, sliding_window=4, local_layers=(True, True))
    with pytest.raises(ValueError, match="sliding_window is 0"):
        dataclasses.replace(CONFIG, sliding_window=0)
