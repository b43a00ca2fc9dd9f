"""The console command: one-line errors, exit codes, and run directories that stay intact."""

from __future__ import annotations

import json
import os
import runpy
import subprocess
import sys

import jax
import pytest

from ixjax import io
from ixjax.commands import main as commands
from ixjax.commands import prepare as prepare_command
from ixjax.models import save_hf
from ixjax.testing import byte_tokenizer, tiny_model
from ixjax.training import Preempted


@pytest.fixture(autouse=True)
def _no_compilation_cache(monkeypatch):
    monkeypatch.setenv(commands.CACHE_SWITCH, "off")


def run(capsys, stage: str, *arguments: str) -> tuple[int, str]:
    """Exit code and standard error."""
    code = 0
    try:
        commands.main(stage, arguments)
    except SystemExit as ended:
        code = int(ended.code or 0)
    return code, capsys.readouterr().err


SANDBOX = ("--data.sandbox-dialogues", "40")


def prepare(capsys, out, *more: str) -> tuple[int, str]:
    return run(capsys, "prepare", "--out", str(out), *SANDBOX, *more)


def test_prepare_writes_splits_conditions_and_a_tokenizer(tmp_path, capsys):
    assert prepare(capsys, tmp_path / "run") == (0, "")
    names = {path.name for path in (tmp_path / "run").iterdir()}
    assert names == {
        "config.yaml", "manifest.json", "data", "conditions.jsonl", "tokenizer",
    }  # fmt: skip
    splits = {path.name for path in (tmp_path / "run" / "data").iterdir()}
    assert splits == {"train.jsonl", "train_heldout.jsonl", "valid.jsonl", "test.jsonl"}


def test_quiet_leaves_the_summary_and_errors(tmp_path, capsys):
    commands.main("prepare", ["--out", str(tmp_path / "run"), *SANDBOX, "--quiet"])
    [title, *_] = capsys.readouterr().out.splitlines()
    assert title.strip() == "Corpus"
    code, error = run(capsys, "sft", "--out", str(tmp_path / "run"), "--seed", "5", "--quiet")
    assert code == 2
    assert error.startswith("error: ")


def test_the_default_preset_is_named(tmp_path, capsys):
    commands.main("prepare", ["--out", str(tmp_path / "run"), *SANDBOX])
    assert "settings: preset quickstart" in capsys.readouterr().out
    named = ["--config", "quickstart", "--out", str(tmp_path / "run"), *SANDBOX]
    commands.main("prepare", named)
    assert "settings:" not in capsys.readouterr().out


def test_prepare_again_does_nothing(tmp_path, capsys):
    prepare(capsys, tmp_path / "run")
    before = (tmp_path / "run" / "manifest.json").read_bytes()
    assert prepare(capsys, tmp_path / "run") == (0, "")
    assert (tmp_path / "run" / "manifest.json").read_bytes() == before


def test_a_run_directory_of_another_config_is_refused_with_what_differs(tmp_path, capsys):
    prepare(capsys, tmp_path / "run")
    code, error = prepare(capsys, tmp_path / "run", "--search.width", "9", "--seed", "5")
    assert code == 2
    assert "search.width: 6 there, 9 now" in error
    assert "seed: 0 there, 5 now" in error
    assert "another --out" in error


def test_settings_that_change_no_result_may_change(tmp_path, capsys):
    prepare(capsys, tmp_path / "run")
    before = (tmp_path / "run" / "manifest.json").read_bytes()
    changes = ("--search.trees", "3", "--sft.log-every", "7", "--evaluation.batch", "2")
    assert prepare(capsys, tmp_path / "run", *changes) == (0, "")
    assert (tmp_path / "run" / "manifest.json").read_bytes() == before
    assert "trees: 3" in (tmp_path / "run" / "config.yaml").read_text()


def test_a_setting_that_a_run_directory_is_too_old_to_know_was_at_its_default(tmp_path, capsys):
    prepare(capsys, tmp_path / "run")
    config = tmp_path / "run" / "config.yaml"
    lines = [line for line in config.read_text().splitlines() if "heldout_fraction:" not in line]
    config.write_text("\n".join(lines))
    assert prepare(capsys, tmp_path / "run") == (0, "")
    code, error = prepare(capsys, tmp_path / "run", "--data.heldout-fraction", "0.3")
    assert code == 2
    assert "data.heldout_fraction: 0.4 there, 0.3 now" in error


def test_settings_of_stages_that_are_yet_to_be_done_may_change(tmp_path, capsys):
    prepare(capsys, tmp_path / "run")
    before = (tmp_path / "run" / "manifest.json").read_bytes()
    assert prepare(capsys, tmp_path / "run", "--pairs.min-margin", "0.05") == (0, "")
    assert (tmp_path / "run" / "manifest.json").read_bytes() == before
    manifest = io.Manifest.load(tmp_path / "run" / "manifest.json")
    manifest.start("sft/policy", "of a training that was begun with other settings")
    code, error = prepare(capsys, tmp_path / "run", "--pairs.min-margin", "0.06")
    assert code == 2
    assert "Made with it: sft/policy" in error


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (("--seed", "-1"), "seed is -1"),
        (("--search.width", "1"), "search.width is 1"),
        (("--search.reaction-weight", "0.5"), "search.reaction_weight is 0.5"),
        (("--sft.lora.rank", "2"), "sft.lora.rank is 2"),
        (("--sampling.max-new-tokens", "5000"), "sampling.max-new-tokens is 5000"),
        (("--scenario", "sandbx"), "'sandbox'"),
        (("--distributed.coordinator", "host:1"), "--distributed.coordinator is host:1; expected "),
        (("--pairs.min-margin", "2"), "--pairs.min-margin is 2.0; "),
    ],
)
def test_a_setting_that_cannot_work_is_refused_before_any_work(tmp_path, capsys, flags, message):
    code, error = prepare(capsys, tmp_path / "run", *flags)
    assert code == 2
    assert message in error
    assert not (tmp_path / "run").exists()


def test_an_out_that_is_a_file_is_one_line(tmp_path, capsys):
    (tmp_path / "run").write_text("mine")
    code, error = prepare(capsys, tmp_path / "run" / "sub")
    assert (code, error) == (2, f"error: {tmp_path / 'run' / 'sub'}: Not a directory\n")
    code, error = prepare(capsys, tmp_path / "run")
    assert code == 2
    assert f"--out is {tmp_path / 'run'}, a file" in error


def test_a_corpus_without_any_outcome_is_refused(tmp_path, capsys):
    corpus = tmp_path / "mine.jsonl"
    lines = [json.loads(dialogue_line(i)) | {"outcome": None} for i in range(40)]
    corpus.write_text("".join(json.dumps(line) + "\n" for line in lines))
    own = ("--data.path", str(corpus), "--data.format", "jsonl")
    code, error = prepare(capsys, tmp_path / "run", *own)
    assert code == 2
    assert "no dialogue of the train split has an outcome" in error


def test_a_stage_whose_output_is_gone_is_done_again(tmp_path, capsys):
    prepare(capsys, tmp_path / "run")
    (tmp_path / "run" / "conditions.jsonl").unlink()
    code, error = run(capsys, "sft", "--out", str(tmp_path / "run"), *SANDBOX)
    assert code == 2
    assert "prepare is not finished here; run `ixjax prepare`" in error
    assert prepare(capsys, tmp_path / "run") == (0, "")
    assert (tmp_path / "run" / "conditions.jsonl").exists()


def test_a_stage_after_a_corpus_that_changed_is_refused(tmp_path, capsys):
    corpus = tmp_path / "mine.jsonl"
    corpus.write_text("".join(dialogue_line(i) for i in range(40)))
    own = ("--data.path", str(corpus), "--data.format", "jsonl")
    assert prepare(capsys, tmp_path / "run", *own) == (0, "")
    corpus.write_text("".join(dialogue_line(i) for i in range(41)))
    code, error = run(capsys, "sft", "--out", str(tmp_path / "run"), *SANDBOX, *own)
    assert code == 2
    assert "prepare was made from other" in error
    corpus.unlink()  # stages after prepare do not need the corpus
    code, error = run(capsys, "search", "--out", str(tmp_path / "run"), *SANDBOX, *own)
    assert code == 2
    assert "sft/policy is not finished here" in error


@pytest.mark.parametrize(
    ("error", "code", "start"),
    [
        (io.InputError("bad"), 2, "error: bad\n"),
        (FileNotFoundError(2, "No such file", "here"), 2, "error: here: No such file\n"),
        (OSError("steps: the state of step 9 could not be written"), 1, "error: steps: the state"),
        (FloatingPointError("at step 3"), 1, "error: at step 3\n"),
        (KeyboardInterrupt(), 130, "interrupted; run the same command again to continue\n"),
        (Preempted("saved"), 75, "saved; run the same command again to continue\n"),
    ],
)
def test_each_end_has_its_exit_code_and_one_line(tmp_path, capsys, monkeypatch, error, code, start):
    def fail(*arguments):
        raise error

    monkeypatch.setattr(prepare_command, "execute", fail)
    ended, line = prepare(capsys, tmp_path / "run")
    assert ended == code
    assert line.startswith(start)
    assert line.count("\n") == 1


def test_a_bug_shows_its_traceback(tmp_path, monkeypatch):
    monkeypatch.setattr(prepare_command, "execute", lambda *arguments: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        commands.main("prepare", ["--out", str(tmp_path / "run"), *SANDBOX])


@pytest.fixture
def hub_folder(tmp_path):
    """A checkpoint with its tokenizer, as it comes from a hub."""
    tokenizer = byte_tokenizer()
    save_hf(tiny_model(len(tokenizer), max_length=512), tmp_path / "hub", tokenizer)
    return tmp_path / "hub"


@pytest.mark.parametrize("stage", ["prepare", "sft"])
@pytest.mark.parametrize("key", ["model.path", "tokenizer.path"])
def test_a_run_never_goes_on_with_another_checkpoint(tmp_path, capsys, hub_folder, stage, key):
    out = tmp_path / "run"
    prepare(capsys, out)
    before = {path: path.read_bytes() for path in out.rglob("*") if path.is_file()}
    arguments = ("--out", str(out), *SANDBOX, f"--{key}", str(hub_folder))
    code, error = run(capsys, stage, *arguments)
    assert code == 2
    assert f"{key}: '' there, '{hub_folder}' now" in error
    assert "Made with it: prepare." in error
    code, error = run(capsys, stage, *arguments[:-1], str(tmp_path / "nowhere"))
    assert code == 2
    assert f"--{key} is '{tmp_path / 'nowhere'}', no such file or folder" in error
    assert {path: path.read_bytes() for path in out.rglob("*") if path.is_file()} == before


def test_a_moved_checkpoint_is_the_same_and_a_changed_one_is_not(tmp_path, capsys, hub_folder):
    out, moved = tmp_path / "run", tmp_path / "moved"
    assert prepare(capsys, out, "--model.path", str(hub_folder)) == (0, "")
    hub_folder.rename(moved)
    assert prepare(capsys, out, "--model.path", str(moved)) == (0, "")
    io.Manifest.load(out / "manifest.json").record("sft/policy", "some")
    (moved / "model.safetensors").write_bytes(b"another model")
    before = (out / "tokenizer" / "tokenizer.json").stat().st_mtime_ns
    code, error = prepare(capsys, out, "--model.path", str(moved))
    assert code == 2
    assert f"have changed:\n  model.path: '{moved}'" in error
    assert "Made with it: sft/policy." in error
    assert (out / "tokenizer" / "tokenizer.json").stat().st_mtime_ns == before


def test_a_broken_checkpoint_is_found_before_anything_is_made(tmp_path, capsys, hub_folder):
    (hub_folder / "model.safetensors").write_bytes(b"short")
    for stage in ("prepare", "pipeline"):
        arguments = ("--out", str(tmp_path / "run"), *SANDBOX, "--model.path", str(hub_folder))
        code, error = run(capsys, stage, *arguments)
        assert code == 2
        assert "model.safetensors: not a whole safetensors file" in error
        assert not (tmp_path / "run").exists()


def test_a_training_that_fails_at_once_leaves_no_trace(tmp_path, capsys, monkeypatch):
    def broken(*_, **__):
        raise io.InputError("no model")

    prepare(capsys, tmp_path / "run")
    monkeypatch.setattr("ixjax.pipeline.sft.initial_model", broken)
    before = (tmp_path / "run" / "manifest.json").read_bytes()
    code, error = run(capsys, "sft", "--out", str(tmp_path / "run"), *SANDBOX)
    assert (code, error) == (2, "error: no model\n")
    assert (tmp_path / "run" / "manifest.json").read_bytes() == before


def dialogue_line(number: int) -> str:
    """One sandbox dialogue in the documented JSONL."""
    record = {
        "id": f"d{number}",
        "condition": {"need": "advice", "distress": 4, "patience": 3},
        "turns": [
            {"role": "user", "text": f"hi {number} ."},
            {"role": "policy", "text": "okay ."},
            {"role": "user", "text": "thanks ."},
        ],
        "outcome": {"value": 2},
    }
    return json.dumps(record) + "\n"


def test_a_folder_that_is_no_run_is_left_alone(tmp_path, capsys):
    (tmp_path / "thesis.txt").write_text("years of work")
    code, error = prepare(capsys, tmp_path)
    assert code == 2
    assert f"--out is {tmp_path}, a folder with files but no config.yaml" in error
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.txt"]


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (("--scenario", "esc"), "--data.path"),
        (("--scenario", "esc", "--data.path", "/nonexistent"), "/nonexistent: no such file"),
        (("--data.path", "/nonexistent"), "data.path is '/nonexistent'"),
    ],
)
def test_a_corpus_that_cannot_be_read_is_refused(tmp_path, capsys, flags, message):
    code, error = prepare(capsys, tmp_path / "run", *flags)
    assert code == 2
    assert message in error


def test_a_bad_corpus_line_is_named(tmp_path, capsys):
    corpus = tmp_path / "own.jsonl"
    good = {
        "id": "a",
        "condition": {"need": "advice", "distress": 4, "patience": 3},
        "turns": [{"role": "user", "text": "hi ."}, {"role": "policy", "text": "okay ."}],
        "outcome": {"value": 2},
    }
    corpus.write_text(json.dumps(good) + "\n" + json.dumps(good | {"id": "b", "turns": []}) + "\n")
    code, error = prepare(capsys, tmp_path / "run", "--data.path", str(corpus))
    assert code == 2
    assert f"{corpus}:2: turns is empty" in error


def test_a_stage_before_its_inputs_names_the_command_to_run(tmp_path, capsys):
    code, error = run(capsys, "search", "--out", str(tmp_path / "run"))
    assert code == 2
    assert "prepare is not finished here; run `ixjax prepare`" in error


def test_an_unknown_command_lists_the_known(capsys):
    code, error = run(capsys, "serch")
    assert code == 2
    assert "'serch'" in error
    assert all(name in error for name in commands.COMMANDS)


def test_the_version_is_printed(capsys):
    with pytest.raises(SystemExit) as ended:
        commands.main(arguments=["--version"])
    assert ended.value.code == 0
    assert capsys.readouterr().out.startswith("ixjax ")


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (("--serch.width", "3"), "unknown flag --serch.width; perhaps you meant --search.width"),
        (("--sft.learning-rate", "-1"), "perhaps you meant --sft.optimizer.learning-rate"),
        (("--sft.optimizer.learning-rate", "-1"), "--sft.optimizer.learning-rate is -1.0; "),
        (("--data.sandbox-dialogues", "-5"), "--data.sandbox-dialogues is -5; "),
        (("--search.rule", "uctt"), "--search.rule is 'uctt'; expected one of uct, puct"),
        (("--sft.steps", "many"), "--sft.steps is 'many'; expected a whole number"),
    ],
)
def test_a_bad_flag_ends_with_code_2_and_one_line(tmp_path, capsys, flags, message):
    code, error = run(capsys, "sft", "--out", str(tmp_path / "run"), *flags)
    assert code == 2
    assert error.startswith("error: ")
    assert error.count("\n") == 1
    assert message in error
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("sft: [1\nseed: 2\n", "run.yaml:2: not YAML"),
        ("sft:\n  steps: many\n", "run.yaml:2: sft.steps is 'many' (str); expected int"),
        ("engine:\n  rows: 0\n", "run.yaml:2: engine.rows is 0; "),
    ],
)
def test_a_bad_file_of_settings_ends_with_code_2_and_one_line(tmp_path, capsys, text, message):
    (tmp_path / "run.yaml").write_text(text)
    code, error = run(capsys, "sft", "--config", str(tmp_path / "run.yaml"))
    assert code == 2
    assert error.count("\n") == 1
    assert f"error: {tmp_path}/" in error
    assert message in error


def test_an_interruption_says_how_to_go_on(tmp_path, capsys, monkeypatch):
    def interrupted(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(commands, "_run", interrupted)
    assert run(capsys, "prepare") == (
        130, "interrupted; run the same command again to continue\n",
    )  # fmt: skip


def test_a_bug_keeps_its_traceback(capsys, monkeypatch):
    def broken(*_):
        raise ValueError("not the user's fault")

    monkeypatch.setattr(commands, "_run", broken)
    with pytest.raises(ValueError, match="not the user's fault"):
        run(capsys, "prepare")


def test_a_run_directory_with_brackets_is_shown_as_it_is(tmp_path, capsys):
    out = tmp_path / "[seed1]"
    with pytest.raises(SystemExit):
        commands.main("search", ["--out", str(out)])
    shown = "".join(capsys.readouterr().out.splitlines())
    assert f"run {out} on " in shown


@pytest.fixture
def _jax_cache_settings():
    names = ("jax_compilation_cache_dir", "jax_persistent_cache_min_compile_time_secs")
    before = {name: getattr(jax.config, name) for name in names}
    jax.config.update("jax_compilation_cache_dir", None)
    yield
    for name, value in before.items():
        jax.config.update(name, value)


@pytest.mark.usefixtures("_jax_cache_settings")
def test_compiled_programs_are_kept_under_the_users_cache_folder(tmp_path, monkeypatch):
    monkeypatch.delenv(commands.CACHE_SWITCH)
    monkeypatch.setattr("platformdirs.user_cache_dir", lambda name: str(tmp_path / name))
    commands.use_compilation_cache()
    assert jax.config.jax_compilation_cache_dir == str(tmp_path / "ixjax" / "xla")


@pytest.mark.usefixtures("_jax_cache_settings")
def test_the_cache_can_be_elsewhere_off_or_jaxs_own(monkeypatch):
    commands.use_compilation_cache()  # off, by the fixture above
    assert jax.config.jax_compilation_cache_dir is None
    monkeypatch.setenv(commands.CACHE_SWITCH, "/elsewhere")
    commands.use_compilation_cache()
    assert jax.config.jax_compilation_cache_dir == "/elsewhere"
    monkeypatch.delenv(commands.CACHE_SWITCH)
    commands.use_compilation_cache()
    assert jax.config.jax_compilation_cache_dir == "/elsewhere"


@pytest.mark.parametrize("stage", commands.STAGES)
def test_every_launcher_shows_help(stage, capsys, monkeypatch):
    monkeypatch.setattr("sys.argv", [f"launch.{stage}", "--help"])
    with pytest.raises(SystemExit) as ended:
        runpy.run_module(f"launch.{stage}", run_name="__main__")
    assert ended.value.code == 0
    assert "--search.iterations" in capsys.readouterr().out


@pytest.mark.parametrize("tool", commands.TOOLS)
def test_every_tool_has_a_launcher_and_settings_of_its_own(tool, capsys, monkeypatch):
    monkeypatch.setattr("sys.argv", [f"launch.{tool}", "--help"])
    with pytest.raises(SystemExit) as ended:
        runpy.run_module(f"launch.{tool}", run_name="__main__")
    assert ended.value.code == 0
    page = capsys.readouterr().out
    assert "--out" in page
    assert "--dpo.steps" not in page


def test_an_interrupted_tool_has_nothing_to_continue(capsys, monkeypatch):
    def interrupted(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(commands, "_run", interrupted)
    assert run(capsys, "parity") == (130, "interrupted\n")


def test_an_interrupted_command_keeps_nothing_of_its_work_at_exit(monkeypatch, capsys):
    """Arrays that outlive their backend can crash the interpreter's shutdown."""

    def interrupted(command, arguments):
        raise KeyboardInterrupt

    monkeypatch.setattr(commands, "_run", interrupted)
    with pytest.raises(SystemExit) as ended:
        commands.main("search", [])
    assert ended.value.code == 130
    assert ended.value.__context__ is None
    assert "interrupted; run the same command again" in capsys.readouterr().err


@pytest.mark.skipif(sys.platform != "linux", reason="of glibc")
def test_a_long_command_starts_again_with_huge_pages_once():
    code = (
        "import os, sys; from ixjax.commands import main; sys.argv = ['ixjax', 'sft', '--help'];"
        "os.execv = lambda path, words: sys.exit(os.environ['GLIBC_TUNABLES']); main.main()"
    )

    def run(**settings: str) -> subprocess.CompletedProcess[str]:
        kept = {k: v for k, v in os.environ.items() if k != "GLIBC_TUNABLES"}
        words = [sys.executable, "-c", code]
        return subprocess.run(words, env=kept | settings, capture_output=True, text=True)

    assert run().stderr == "glibc.malloc.hugetlb=1\n"
    for settings in ({"IXJAX_HUGE_PAGES": "off"}, {"GLIBC_TUNABLES": "glibc.malloc.hugetlb=0"}):
        assert run(**settings).stdout.startswith("usage: ixjax sft")
