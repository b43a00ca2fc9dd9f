"""A folder whose weights do not match its config.json is refused by file and tensor."""

from __future__ import annotations

import contextlib
import json
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from ixjax.io import InputError
from ixjax.models import check_hf, load_hf
from ixjax.models.hf_files import INDEX, WEIGHTS
from tests.models.families import assert_same_weights, edit_config, torch, transformers


@contextlib.contextmanager
def edited_tensors(folder: Path):
    tensors = load_file(folder / "model.safetensors")
    yield tensors
    save_file(tensors, folder / "model.safetensors")


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


@pytest.mark.parametrize("sharded", [False, True], ids=["whole", "sharded"])
def test_pickles_are_not_read_and_the_error_says_what_converts_them(copy, sharded):
    state = {name: torch.tensor(value) for name, value in load_file(copy / WEIGHTS).items()}
    expected = load_hf(copy)
    (copy / WEIGHTS).unlink()
    file = "pytorch_model-00001-of-00001.bin" if sharded else "pytorch_model.bin"
    torch.save(state, copy / file)
    if sharded:
        index = {"metadata": {}, "weight_map": dict.fromkeys(state, file)}
        (copy / "pytorch_model.bin.index.json").write_text(json.dumps(index))
    with pytest.raises(InputError, match=rf"found only {file}; pickles are not read") as refused:
        load_hf(copy)
    (_, remedy) = str(refused.value).split("convert it: ")
    assert remedy.startswith("transformers.AutoModelForCausalLM.from_pretrained(")
    eval(remedy, {"transformers": transformers})
    assert_same_weights(load_hf(copy), expected)


def test_a_folder_without_weights_or_none_at_all_is_refused(copy):
    (copy / "model.safetensors").unlink()
    with pytest.raises(InputError, match=r"expected model\.safetensors or .*, found none"):
        load_hf(copy)
    with pytest.raises(InputError, match="no such folder"):
        load_hf(copy / "nowhere")
    (copy / "config.json").unlink()
    with pytest.raises(InputError, match=r"config\.json: no such file"):
        load_hf(copy)


def header_says(size: int):
    """Return a damage: a header that claims `size` bytes."""
    return lambda content: size.to_bytes(8, "little") + content[8:]


@pytest.mark.parametrize(
    "damage",
    [
        lambda content: content[:-10],
        lambda content: content[: len(content) // 2],
        lambda content: content[:100],
        lambda content: content[:5],
        lambda content: b"",
        lambda content: content + b"more",
        header_says(2**40),
        header_says(3),
        lambda content: content[:8] + b"{" * 40 + content[48:],
        lambda content: content.replace(b'"F32"', b'"F33"', 1),
        lambda content: content.replace(b"[24]", b"[25]", 1),
    ],
    ids=[
        "end",
        "half",
        "header",
        "length",
        "empty",
        "longer",
        "huge",
        "short",
        "json",
        "type",
        "size",
    ],
)
@pytest.mark.parametrize("sharded", [False, True], ids=["whole", "sharded"])
def test_a_truncated_or_corrupt_file_is_refused(copy, sharded, damage):
    path = copy / WEIGHTS
    if sharded:
        index = {"weight_map": dict.fromkeys(load_file(path), "part.safetensors")}
        (copy / INDEX).write_text(json.dumps(index))
        path = path.rename(copy / "part.safetensors")
        load_hf(copy)
    path.write_bytes(damage(path.read_bytes()))
    with pytest.raises(InputError, match=rf"{path.name}: not a whole safetensors file"):
        load_hf(copy)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("config.json", '{"architectures": [', r"config\.json:1: not JSON"),
        ("config.json", "[]", r"config\.json: expected a JSON object, found list"),
        ("model.safetensors.index.json", "{", r"index\.json:1: not JSON"),
        ("model.safetensors.index.json", "[]", r"index\.json: weight_map is missing"),
    ],
)
def test_json_that_is_damaged_is_refused_by_file(copy, name, content, message):
    (copy / WEIGHTS).rename(copy / "part.safetensors")
    (copy / name).write_text(content)
    with pytest.raises(InputError, match=message):
        load_hf(copy)


def test_a_tensor_that_the_index_does_not_list_is_refused_by_name(copy):
    with edited_tensors(copy) as tensors:
        listed = list(tensors)
        tensors["extra.weight"] = np.zeros(2, np.float32)
        tensors["model.layers.0.self_attn.rotary_emb.inv_freq"] = np.zeros(3, np.float32)
    (copy / WEIGHTS).rename(copy / "part.safetensors")
    index = {"weight_map": dict.fromkeys(listed, "part.safetensors")}
    (copy / INDEX).write_text(json.dumps(index))
    with pytest.raises(
        InputError, match=r"part\.safetensors: tensor extra\.weight is not listed by .* \(1 such"
    ):
        load_hf(copy)


@pytest.mark.parametrize(
    ("weight_map", "message"),
    [
        ({}, "weight_map is missing"),
        (
            {"model.norm.weight": "../model.safetensors"},
            r"weight_map names '\.\./model\.safetensors'",
        ),
        ({"model.norm.weight": "gone.safetensors"}, "gone.safetensors: no such file"),
        ({"other.weight": "part.safetensors"}, "part.safetensors: tensor other.weight is missing"),
        ({"model.norm.weight": "part.safetensors"}, "lm_head.weight is not listed by"),
    ],
)
def test_a_wrong_index_is_refused(copy, weight_map, message):
    (copy / "model.safetensors").rename(copy / "part.safetensors")
    (copy / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))
    with pytest.raises(InputError, match=message):
        load_hf(copy)


def test_a_folder_is_checked_without_reading_a_weight(copy):
    assert check_hf(copy) == load_hf(copy).config
    (copy / WEIGHTS).write_bytes(b"short")
    with pytest.raises(InputError, match="not a whole safetensors file"):
        check_hf(copy)


def test_an_adapter_in_the_folder_is_never_passed_over(copy):
    (copy / "adapter_config.json").write_text("{}")
    with pytest.raises(InputError, match=r"adapter_config\.json: found an adapter next to a model"):
        load_hf(copy)
    (copy / "config.json").unlink()
    with pytest.raises(
        InputError, match=r"adapter_config\.json: found an adapter without its base"
    ):
        load_hf(copy)


def test_shards_without_an_index_are_named(copy):
    (copy / WEIGHTS).rename(copy / "model-00001-of-00002.safetensors")
    with pytest.raises(InputError, match=r"found model-00001-of-00002\.safetensors, but no index"):
        load_hf(copy)


@pytest.mark.parametrize(
    ("file", "content", "message"),
    [
        ("generation_config.json", '{"eos_token_id": [', r"generation_config\.json:1: not JSON"),
        ("generation_config.json", "[]", r"generation_config\.json: expected a JSON object"),
        (
            "generation_config.json",
            '{"eos_token_id": [2, 99999]}',
            r"generation_config\.json: eos_token_id is \[2, 99999\];",
        ),
        ("config.json", None, r"config\.json: eos_token_id is 99999;"),
    ],
)
def test_end_tokens_that_the_model_cannot_say_are_refused(copy, file, content, message):
    if content is None:
        edit_config(copy, eos_token_id=99999)
    else:
        (copy / file).write_text(content)
    with pytest.raises(InputError, match=message):
        load_hf(copy)


def test_heads_that_do_not_share_the_width_are_named(copy):
    edit_config(copy, num_attention_heads=5, head_dim=None)
    with pytest.raises(InputError, match="num_attention_heads is 5; expected a divisor of hidden"):
        load_hf(copy)
