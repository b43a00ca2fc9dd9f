"""Export: other libraries compute the same logits and turns as the run's model."""

from __future__ import annotations

import json
import re
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer, GenerationConfig

from ixjax.dialogue.chat_template import ChatTemplate
from ixjax.generation import SamplingConfig, generate
from ixjax.models import LoraConfig, add_lora, load_hf, merge_lora
from ixjax.training import load_model, save_model
from tests.commands.conftest import untrained_run

TOKENS = np.array([[1, 20, 30, 40, 50, 60]], np.int32)


@pytest.fixture(scope="module")
def adapted(tmp_path_factory):
    """A run whose aligned policy is the SFT policy with an adapter."""
    run = untrained_run(tmp_path_factory.mktemp("runs") / "adapted", ("policy_sft",))
    base = load_model(run.directory.policy_sft)
    model = add_lora(base, LoraConfig(rank=2, alpha=4.0, targets=("query", "down")), seed=0)
    rng = np.random.default_rng(0)
    for name in ("query_lora_b", "down_lora_b"):  # zero before it is trained
        weight = getattr(model.layers, name)
        weight[...] = rng.normal(0, 0.5, weight[...].shape).astype(np.float32)
    save_model(model, run.directory.policy_dpo / "imcts")
    return run


def logits_of(loaded) -> np.ndarray:
    with torch.no_grad():
        return loaded(torch.tensor(TOKENS, dtype=torch.long)).logits.numpy()


def test_transformers_loads_it_with_the_same_logits_and_template(untrained, command, tmp_path):
    out, folder = untrained.directory, tmp_path / "hf"
    code, shown, error = command("export", "--out", str(out.root), "--to", str(folder))
    assert (code, error) == (0, "")
    assert f"policy_dpo/imcts of {out.root} is in {folder}" in shown
    assert "its system text: help the user to feel better ." in shown
    ours = load_model(out.policy_dpo / "imcts")
    theirs = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    np.testing.assert_allclose(logits_of(theirs), ours(TOKENS), atol=1e-4)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    assert tokenizer.chat_template == untrained.template.tokenizer.chat_template
    messages = untrained.view("policy").messages(untrained.roots("test")[0])
    ids = tokenizer.apply_chat_template(messages, add_generation_prompt=True)["input_ids"]
    context = untrained.view("policy").context(untrained.roots("test")[0], max_tokens=224)
    assert tuple(ids) == context.tokens


@pytest.mark.slow
def test_transformers_generates_the_same_turn_to_its_end(tmp_path, command):
    """The end token is the likeliest one after the third token of the turn."""
    run = untrained_run(tmp_path / "run", ("policy_sft",))
    model, end = load_model(run.directory.policy_sft), run.template.end_ids[0]
    greedy = {"sampling": SamplingConfig(temperature=0), "max_new_tokens": 8, "seed": 0}
    [turn] = generate(model, TOKENS.tolist(), **greedy)
    model.embedding[...] = (
        model.embedding[...]
        .at[end]
        .set(10 * model.hidden(np.array([[*TOKENS[0], *turn[:3]]]))[0, -1])
    )
    [turn] = generate(model, TOKENS.tolist(), **greedy, end_ids=run.template.end_ids)
    assert turn[-1] == end
    assert len(turn) <= 4
    save_model(model, run.directory.policy_sft)
    folder = tmp_path / "hf"
    command("export", "--out", str(run.directory.root), "--to", str(folder))
    theirs = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    assert theirs.generation_config.max_new_tokens == run.config.sampling.max_new_tokens
    prompt = torch.tensor(TOKENS, dtype=torch.long)
    greedily = {"do_sample": False, "temperature": None, "top_p": None, "top_k": None}
    said = theirs.generate(prompt, attention_mask=torch.ones_like(prompt), **greedily)
    assert said[0, TOKENS.shape[1] :].tolist() == turn


def test_it_says_how_turns_are_drawn_and_what_the_model_is(untrained, command, tmp_path):
    folder = tmp_path / "hf"
    command("export", "--out", str(untrained.directory.root), "--to", str(folder))
    drawn, sampling = GenerationConfig.from_pretrained(folder), untrained.config.sampling
    assert drawn.do_sample
    assert (drawn.temperature, drawn.top_p) == (sampling.temperature, sampling.top_p)
    record = json.loads((folder / "ixjax.json").read_text())
    assert record == {
        "schema": "ixjax.export", "version": 1, "run": record["run"],
        "model": "policy_dpo/imcts", "form": "model", "base": None, "scenario": "sandbox",
        "role": "policy", "system": untrained.scenario.policy_prompt,
    }  # fmt: skip


@pytest.mark.slow
def test_what_was_exported_can_be_chatted_with_and_exported_again(
    untrained, command, tmp_path, monkeypatch
):
    folder = str(tmp_path / "hf")
    out = ("--out", str(untrained.directory.root))
    command("export", *out, "--to", folder)
    lines = iter(["hi ."])
    monkeypatch.setattr("builtins.input", lambda prompt: next(lines, "/quit"))
    code, alone, _ = command("chat", "--model", folder, "--dtype", "float32")
    assert code == 0
    lines = iter(["hi ."])
    code, in_run, _ = command("chat", *out)
    assert code == 0
    assert alone.splitlines()[2:] == in_run.splitlines()[2:]  # the same words
    assert command("export", *out, "--to", folder)[0] == 0


def test_another_models_export_is_left_alone(untrained, command, tmp_path):
    folder = tmp_path / "hf"
    arguments = ("export", "--out", str(untrained.directory.root), "--to", str(folder))
    command(*arguments)
    before = (folder / "model.safetensors").read_bytes()
    code, _, error = command(*arguments, "--model", "simulator")
    assert code == 2
    assert f"{folder}: " in error
    assert "'policy_dpo/imcts'" in error
    record = json.loads((folder / "ixjax.json").read_text())
    (folder / "ixjax.json").write_text(json.dumps(record | {"run": "another"}))
    code, _, error = command(*arguments)
    assert code == 2
    assert f"{folder}: " in error
    assert "another run" in error
    assert (folder / "model.safetensors").read_bytes() == before
    assert command(*arguments, "--model", "simulator", "--overwrite")[0] == 0
    assert json.loads((folder / "ixjax.json").read_text())["role"] == "user"


@pytest.mark.parametrize("place", ["", "policy_sft", "policy_dpo/new"])
def test_no_export_goes_into_a_runs_own_folders(untrained, command, place):
    root = untrained.directory.root
    before = sorted(root.rglob("*"))
    arguments = ("--out", str(root), "--to", str(root / place), "--overwrite")
    code, _, error = command("export", *arguments)
    assert code == 2
    assert f"run directory {root}" in error
    assert sorted(root.rglob("*")) == before


def test_weights_are_written_in_the_type_that_is_asked_for(adapted, command, tmp_path):
    arguments = ("export", "--out", str(adapted.directory.root), "--to", str(tmp_path / "hf"))
    assert command(*arguments, "--dtype", "bfloat16")[0] == 0
    types = {tensor.dtype for tensor in load_file(tmp_path / "hf" / "model.safetensors").values()}
    assert types == {torch.bfloat16}
    assert json.loads((tmp_path / "hf" / "config.json").read_text())["torch_dtype"] == "bfloat16"


def test_a_file_as_the_folder_is_refused(untrained, command, tmp_path):
    (tmp_path / "file").write_text("mine")
    arguments = ("--out", str(untrained.directory.root), "--overwrite", "--to")
    code, _, error = command("export", *arguments, str(tmp_path / "file"))
    assert code == 2
    assert error.startswith(f"error: {tmp_path / 'file'}: a file; expected a folder")
    code, _, error = command("export", *arguments, str(tmp_path / "file" / "sub"))
    assert code == 2
    assert error.startswith(f"error: {tmp_path / 'file'}: a file; expected a folder")


def test_a_folder_says_whose_words_it_speaks_and_about_what(untrained, command, tmp_path):
    out, folder = ("--out", str(untrained.directory.root)), str(tmp_path / "hf")
    command("export", *out, "--model", "simulator", "--to", folder)
    code, _, error = command("chat", "--model", folder)
    assert code == 2
    assert re.search(f"model.* {folder},? .*user; expected .*policy", error)
    code, _, error = command("chat", "--model", folder, "--as", "policy")
    assert code == 2
    assert re.match("error: .*as.*policy", error)
    command("export", *out, "--to", folder, "--overwrite")
    code, _, error = command("chat", "--model", folder, "--scenario", "esc")
    assert code == 2
    assert re.search("scenario is 'esc'; .*'sandbox'", error)


def test_a_runs_own_model_is_no_hugging_face_folder(untrained, command):
    code, _, error = command("chat", "--model", str(untrained.directory.policy_sft))
    assert code == 2
    assert re.search("policy_sft .*expected a Hugging Face folder", error)


def test_a_folder_that_holds_something_else_is_left_alone(untrained, command, tmp_path):
    (tmp_path / "thesis.txt").write_text("years of work")
    arguments = ("--out", str(untrained.directory.root), "--to", str(tmp_path))
    code, _, error = command("export", *arguments)
    assert code == 2
    assert f"{tmp_path}: " in error
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.txt"]
    assert command("export", *arguments, "--overwrite")[0] == 0
    assert (tmp_path / "thesis.txt").read_text() == "years of work"
    assert (tmp_path / "model.safetensors").exists()


def test_adapters_are_merged(adapted, command, tmp_path):
    folder = tmp_path / "hf"
    assert command("export", "--out", str(adapted.directory.root), "--to", str(folder))[0] == 0
    merged = merge_lora(load_model(adapted.directory.policy_dpo / "imcts"))
    loaded = load_hf(folder, dtype="float32")
    np.testing.assert_allclose(loaded(TOKENS), merged(TOKENS), atol=1e-5)
    base = load_model(adapted.directory.policy_sft)
    assert np.abs(np.asarray(merged(TOKENS) - base(TOKENS))).max() > 0.01


# PEFT calls a deprecated function of transformers.
@pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing.:FutureWarning")
def test_an_adapter_alone_is_in_pefts_form(adapted, command, tmp_path):
    from peft import PeftModel

    out = ("--out", str(adapted.directory.root))
    base, folder = str(tmp_path / "base"), str(tmp_path / "adapter")
    command("export", *out, "--model", "policy_sft", "--to", base)
    code, said, _ = command("export", *out, "--adapter", "--to", folder)
    assert code == 0
    # The adapter was trained on the run's SFT policy, not on the checkpoint.
    assert "the adapter belongs on policy_sft of the same run" in said
    record, peft = (
        json.loads(Path(folder, name).read_text()) for name in ("ixjax.json", "adapter_config.json")
    )
    assert record["base"].startswith("policy_sft")
    assert peft["base_model_name_or_path"] is None
    plain = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
    theirs = PeftModel.from_pretrained(plain, folder)
    ours = merge_lora(load_model(adapted.directory.policy_dpo / "imcts"))
    np.testing.assert_allclose(logits_of(theirs), ours(TOKENS), atol=1e-4)
    assert ChatTemplate.from_tokenizer(AutoTokenizer.from_pretrained(folder)).additive
    code, _, error = command("export", *out, "--to", folder, "--overwrite")
    assert code == 2
    assert re.search("model.* adapter", error)


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (("--adapter", "--to", "FOLDER"), "--adapter"),
        ((), "--to is missing"),
        (("--to", "FOLDER", "--model", "policy_dpo/human"), "run `ixjax dpo`"),
    ],
)
def test_bad_flags_are_one_line_and_nothing_is_written(
    untrained, command, tmp_path, flags, message
):
    flags = [str(tmp_path / "to") if flag == "FOLDER" else flag for flag in flags]
    code, _, error = command("export", "--out", str(untrained.directory.root), *flags)
    assert code == 2
    assert message in error
    assert error.count("\n") == 1
    assert not (tmp_path / "to").exists()


def test_an_export_needs_a_run(command):
    code, _, error = command("export", "--to", "x")
    assert code == 2
    assert error.startswith("error: --out is missing; ")
