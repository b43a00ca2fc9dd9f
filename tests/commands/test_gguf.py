"""A GGUF file takes the place of a Hugging Face folder in every command."""

from __future__ import annotations

from pathlib import Path

import pytest

from ixjax import io
from ixjax.dialogue import load_tokenizer
from ixjax.dialogue.tokenizer import TOKENIZER_FILES
from ixjax.models.hf_config import read_config
from ixjax.pipeline.checkpoints import find_checkpoint
from tests.dialogue.chat_families import build
from tests.gguf_files import tokenizer_metadata, write_tiny

SANDBOX = ("--data.sandbox-dialogues", "40")


@pytest.fixture
def file(tmp_path) -> Path:
    described = tokenizer_metadata(build("llama3"), "llama-bpe")
    return write_tiny(tmp_path / "m.gguf", "llama", kinds=("Q4_K", "Q8_0"), tokenizer=described)


def test_a_run_starts_from_a_file_and_keeps_to_it(file, command, tmp_path):
    out = tmp_path / "run"
    flags = ("--out", str(out), *SANDBOX)
    code, _, error = command("prepare", *flags, "--model.path", str(file))
    assert (code, error) == (0, "")
    assert all((out / "tokenizer" / name).is_file() for name in TOKENIZER_FILES)
    saved, original = load_tokenizer(out / "tokenizer"), build("llama3")
    assert saved("Hello 42")["input_ids"] == original("Hello 42")["input_ids"]
    assert saved.chat_template == original.chat_template
    io.Manifest.load(out / "manifest.json").record("sft/policy", "some")
    file.write_bytes(file.read_bytes() + bytes(32))
    code, _, error = command("prepare", *flags, "--model.path", str(file))
    assert code == 2
    assert f"have changed:\n  model.path: '{file}'" in error


def test_a_tokenizer_is_taken_from_a_file(file, command, tmp_path):
    out = tmp_path / "run"
    code, _, error = command("prepare", "--out", str(out), *SANDBOX, "--tokenizer.path", str(file))
    assert (code, error) == (0, "")
    assert load_tokenizer(out / "tokenizer").get_vocab() == build("llama3").get_vocab()


def test_a_model_is_named_by_its_file(file):
    model, template = find_checkpoint(None, str(file)).load(dtype="float32")
    assert model.config == read_config(file, dtype="float32")
    assert template.vocab_size == model.config.vocab_size == len(build("llama3"))


@pytest.mark.slow
def test_tools_read_a_file(file, command, monkeypatch):
    lines = iter(["hi ."])
    monkeypatch.setattr("builtins.input", lambda prompt: next(lines, "/quit"))
    code, shown, _ = command("chat", "--model", str(file), "--scenario", "sandbox")
    assert code == 0
    assert "policy: " in shown
    flags = ("--dialogues", "2", "--sampling.max-new-tokens", "5", "--dtype", "float32")
    code, shown, error = command("parity", "--model", str(file), *flags)
    assert (code, error) == (0, "")
    assert "m.gguf" in shown


def test_a_plan_reads_the_metadata(file, command, tmp_path):
    flags = ("--out", str(tmp_path / "run"), *SANDBOX, "--model.path", str(file))
    code, shown, error = command("plan", *flags, "--devices", "1")
    assert (code, error) == (0, "")
    assert "parameters" in shown


def test_a_broken_file_is_found_before_anything_is_made(file, command, tmp_path):
    file.write_bytes(file.read_bytes()[:-5000])
    flags = ("--out", str(tmp_path / "run"), *SANDBOX, "--model.path", str(file))
    for stage in ("prepare", "pipeline"):
        code, _, error = command(stage, *flags)
        assert code == 2
        assert "m.gguf: tensor " in error
        assert "the size of the file" in error
        assert not (tmp_path / "run").exists()
