"""Invalid configs are refused by field; equal configs are equal static arguments."""

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


def below_one(*names: str) -> list[tuple[dict, str]]:
    return [({name: 0}, rf"^{name} is 0;") for name in names]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        *below_one(*SIZES, "vocab_size", "head_dim", "sliding_window"),
        ({"num_kv_heads": 3}, r"num_heads is 4; .* num_kv_heads \(3\)"),
        ({"head_dim": 3}, "head_dim is 3; expected an even number"),
        ({"sliding_window": 4, "local_layers": (True, True)}, "local_layers lists 2 layers;"),
    ],
)
def test_a_config_that_no_decoder_has_is_refused(changes, message):
    with pytest.raises(ValueError, match=message):
        dataclasses.replace(CONFIG, **changes)


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


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        *below_one(*SIZES),
        ({"hidden_size": 30, "num_heads": 4}, r"hidden_size is 30; .* num_heads \(4\)"),
        ({"num_kv_heads": 3}, r"num_heads is 4; .* num_kv_heads \(3\)"),
        ({"hidden_size": 36, "num_heads": 4}, "head_dim is 9; expected an even number"),
    ],
)
def test_arguments_that_no_decoder_has_are_refused(changes, message):
    with pytest.raises(ValueError, match=message):
        ModelArguments(**changes)


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


def test_layers_are_local_only_with_a_window():
    assert dataclasses.replace(CONFIG, local_layers=(True,) * CONFIG.num_layers).is_local == (
        (False,) * CONFIG.num_layers
    )
    assert dataclasses.replace(CONFIG, sliding_window=4).is_local == (True,) * CONFIG.num_layers
