"""Every command of the documentation is run, at the least parsed, or says why not."""

from __future__ import annotations

import importlib.util
import io
import json
import re
import runpy
import shlex
import shutil
import sys
from pathlib import Path

import pytest
import tyro

from ixjax.commands import main as commands
from ixjax.commands import plan
from ixjax.commands.arguments import parse
from ixjax.commands.tools import parse_tool
from ixjax.dialogue.scenarios import base
from ixjax.models import load_hf, save_hf
from ixjax.pipeline import RunConfig, open_run
from ixjax.testing import byte_tokenizer, tiny_model
from tests.commands.conftest import MODELS, untrained_run
from tests.docs import PAGES, ROOT, block, ours, register_parcels, shell_lines, typed
from tests.end_to_end.tiny import tiny_run
from tests.report.runs import write_run

NOT_RUN = {
    "vllm": "needs a GPU and a package that is no dependency",
    "python3 -m venv": "makes the environment that the tests run in",
    ".venv/bin/pip": "changes the environment that runs this",
    "pip install": "changes the environment that runs this",
    ".venv/bin/python -m pytest": "these tests themselves",
    "bash .ci/run": "runs these tests",
    "python examples/": "tests/examples",
}
LITTLE = (
    "--sft.steps 2 --sft.batch-size 8 --sampling.max-new-tokens 8 --search.conditions 4 "
    "--search.iterations 2 --search.max-turns 2 --pairs.min-margin 0 --dpo.steps 2 "
    "--dpo.batch-size 8 --evaluation.conditions 2 --evaluation.max-turns 1 --evaluation.think 0 "
    "--evaluation.candidates 2 --evaluation.bootstrap 20 --evaluation.fidelity-dialogues 2 --quiet"
)
SMALL = (
    "--model.hidden-size 32 --model.num-layers 1 --model.num-heads 2 --model.num-kv-heads 1 "
    "--model.intermediate-size 64 --tokenizer.vocab-size 420 --pairs.keep-truncated"
)


@pytest.fixture(autouse=True)
def alone(tmp_path, monkeypatch):
    """In a folder of its own, as a checkout has its presets, without a cache that stays."""
    monkeypatch.setenv(commands.CACHE_SWITCH, "off")
    (tmp_path / "configs").symlink_to(ROOT / "configs")
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def parcels(monkeypatch):
    return register_parcels(monkeypatch)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_command_is_of_a_kind_that_is_tested_or_says_why_not(page, parcels):
    for words in shell_lines(page):
        if not " ".join(words).startswith(tuple(NOT_RUN)):
            check_flags(*typed(words))


def check_flags(name: str, flags: list[str]) -> None:
    """Parse a command as it is typed; a tool has the run that it names."""
    assert name in commands.COMMANDS, name
    if name not in commands.TOOLS:
        settings = plan.Settings if name == "plan" else RunConfig
        parse(settings, flags, stage=name, summary="")
        return
    if "--out" in flags:
        out = Path(flags[flags.index("--out") + 1])
        scenario = "parcels" if out.name == "parcels" else "sandbox"
        open_run(tiny_run(out, scenario=scenario))
    module = importlib.import_module(f"ixjax.commands.{name}")
    settings, run = parse_tool(module.Settings, flags, tool=name, summary=module.SUMMARY)
    assert (run is None) == ("--out" not in flags) == (not settings.out)


def test_the_guide_shows_every_tool():
    assert {name for name, _ in ours("guide.md")} >= {"pipeline", "search", "sft", *commands.TOOLS}


PLACES = {
    "PRESET": "quickstart",
    "S": "3",
    "FILE": "file.jsonl",
    "N": "4",
    "FOLDER": "folder",
    "STAGE": "search",
}


def in_text(start: str) -> list[list[str]]:
    """Commands in running text and tables; what a person fills in is filled in."""
    found = []
    for page in PAGES:
        text = re.sub(r"```.*?```", "", page.read_text(), flags=re.DOTALL)
        for code in re.findall(rf"`({start}[^`]*)`", text):
            filled = re.sub(r"\b[A-Z]+\b", lambda m: PLACES.get(m[0], m[0]), code)
            found.append(shlex.split(filled))
    return found


def test_every_command_in_running_text_is_one(parcels):
    found = in_text("ixjax ") + in_text(r"python -m launch\.") + in_text(r"python parcels\.py ")
    assert len(found) > 20
    for words in found:
        name, flags = typed(words)
        if flags[-1:] == ["--help"]:
            assert name in commands.COMMANDS
        elif name in commands.TOOLS:
            flags = [*flags, "0"] if flags[-1:] == ["--think"] else flags
            module = importlib.import_module(f"ixjax.commands.{name}")
            parse_tool(module.Settings, flags, tool=name, summary="")
        else:
            check_flags(name, flags)


def test_every_benchmark_in_running_text_takes_its_flags(monkeypatch):
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    found = in_text("python benchmarks/")
    assert len(found) >= 10
    for _, script, *flags in found:
        spec = importlib.util.spec_from_file_location("benchmark", ROOT / script)
        module = importlib.util.module_from_spec(spec)
        monkeypatch.setitem(sys.modules, "benchmark", module)  # where tyro looks names up
        spec.loader.exec_module(module)
        tyro.cli(module.Arguments, args=flags)


def test_the_guides_scenario_is_a_command_when_it_is_run_as_a_file(monkeypatch, capsys):
    Path("parcels.py").write_text(block("scenarios.md", "python", "register_scenario"))
    monkeypatch.setattr(base, "_SCENARIOS", dict(base._SCENARIOS))  # what it adds, ends here
    monkeypatch.setattr(sys, "argv", ["parcels.py", "prepare", "--help"])
    with pytest.raises(SystemExit) as ended:
        runpy.run_path("parcels.py", run_name="__main__")
    assert ended.value.code == 0
    assert "--scenario" in capsys.readouterr().out


def test_the_commands_of_the_page_on_reports_do_what_it_says():
    for name in ("quickstart", "seed-0", "seed-1"):
        write_run(Path("runs") / name)
    for name, arguments in ours("report.md"):
        if arguments[0] == "score":  # raters have sent their files back
            key = json.loads(Path("runs/quickstart/rating_key.json").read_text())
            answer = {"schema": "ixjax.ratings", "version": 1, "task": key["task"], "rater": "ann"}
            answer["choices"] = dict.fromkeys(key["items"], "A")
            Path("ratings-ann.json").write_text(json.dumps(answer))
            rows = [f"{key['task']},{item},tie" for item in key["items"]]
            Path("ratings-ben.csv").write_text("\n".join(["task,item,choice", *rows]))
        commands.main(name, arguments)
    run = Path("runs/quickstart")
    made = ("report.html", "report.md", "rating/form.html", "rating/items.csv", "rating_key.json")
    assert all((run / name).exists() for name in (*made, "rating_scores.json"))
    assert Path("runs/comparison.html").exists()


def test_the_guides_report_and_items_for_raters_are_made():
    write_run(Path("runs/quickstart"))
    for name, flags in ours("guide.md"):
        if name in ("report", "rate") and "runs/quickstart" in flags:
            commands.main(name, flags)
    assert Path("runs/quickstart/report.html").exists()
    assert Path("runs/quickstart/rating/form.html").exists()


@pytest.mark.slow
def test_the_guides_ways_to_talk_to_a_model_and_to_take_it_away_work(monkeypatch):
    """Its lines in their order, with models that nothing was trained on."""
    untrained_run(Path("runs/quickstart"), MODELS)
    done = []
    for name, flags in ours("guide.md"):
        talks = name == "chat" and "--think" not in flags
        if (talks or name == "export") and "runs/parcels" not in flags:
            monkeypatch.setattr(sys, "stdin", io.StringIO("hello\n/quit\n"))
            commands.main(name, flags)
            done.append(name)
    assert (done.count("chat"), done.count("export")) == (3, 1)
    assert load_hf("exported/policy").config.vocab_size > 0


@pytest.mark.slow
def test_the_guides_policy_that_thinks_and_its_comparisons_of_engine_and_trainer_work(monkeypatch):
    untrained_run(Path("runs/quickstart"), MODELS)
    done = []
    for name, flags in ours("guide.md"):
        if name in ("export", "parity") or "--think" in flags:
            if "runs/parcels" in flags:
                continue
            monkeypatch.setattr(sys, "stdin", io.StringIO("hello\n/why\n/quit\n"))
            commands.main(name, flags)
            done.append(name)
    assert done == ["chat", "export", "parity", "parity"]


@pytest.mark.slow
def test_the_readmes_and_the_guides_quickstart_is_a_run_and_two_processes_share_its_search(
    monkeypatch,
):
    little = [*LITTLE.split(), *SMALL.split()]
    for name, flags in ours(ROOT / "README.md")[:2]:
        commands.main(name, [*flags, *(little if name in commands.STAGES else [])])
    (made,) = Path("runs").glob("*/report.html")
    assert made.parent == Path("runs/quickstart")
    (first, flags), *searches = [
        (name, flags)
        for name, flags in ours("guide.md")
        if "quickstart" in flags and name in ("pipeline", "search")
    ]
    commands.main(first, [*flags, *little])  # the same run: nothing is done again
    before = Path("runs/quickstart/pairs.jsonl").read_bytes()
    shutil.rmtree("runs/quickstart/trees")
    Path("runs/quickstart/pairs.jsonl").unlink()
    assert [name for name, _ in searches] == ["search", "search"]
    for name, flags in reversed(searches):  # process 0 waits for the other, which must have begun
        commands.main(name, [*flags, *little])
    assert Path("runs/quickstart/pairs.jsonl").read_bytes() == before


@pytest.mark.slow
def test_the_readmes_way_with_esconv_is_a_run():
    """With made-up dialogues in that corpus's form."""
    (flags,) = [
        flags for _, flags in ours(ROOT / "README.md") if "configs/esconv_cpu.yaml" in flags
    ]
    Path("esconv").mkdir()
    for split, count in (("train", 40), ("valid", 8), ("test", 8)):
        Path(f"esconv/{split}.txt").write_text("".join(esconv(split, i) for i in range(count)))
    flags = ["esconv" if flag == "PATH/TO/esconv" else flag for flag in flags]
    commands.main("pipeline", [*flags, *LITTLE.split(), *SMALL.split()])
    assert json.loads(Path("runs/esconv/evaluation.json").read_text())["conditions"] == 2


def esconv(split: str, i: int) -> str:
    """A line of ESConv."""
    said = (("usr", f"I worry about {split} {i}."), ("sys", "What about it?")) * 2
    return json.dumps({
        "emotion_type": "anxiety", "problem_type": "job crisis", "situation": f"{split} {i}.",
        "survey_score": {"seeker": {"initial_emotion_intensity": "5",
                                    "final_emotion_intensity": str(1 + i % 4)}, "supporter": {}},
        "dialog": [{"speaker": who, "text": text} for who, text in (*said, ("usr", "Thanks."))],
    }) + "\n"  # fmt: skip


@pytest.mark.slow
def test_the_guides_way_from_a_checkpoint_to_an_aligned_folder_is_one(parcels):
    """The block before vLLM's, run with a tiny checkpoint and little work."""
    tokenizer = byte_tokenizer()
    save_hf(tiny_model(len(tokenizer), max_length=1024), "checkpoint", tokenizer=tokenizer)
    record = json.loads(block("data-formats.md", "json", "parcel"))
    lines = [json.dumps(record | {"id": f"d{i}"}) + "\n" for i in range(40)]
    Path("dialogues.jsonl").write_text("".join(lines))
    code = block("guide.md", "bash", "--dtype bfloat16 --to exported/parcels")
    typed_lines = [typed(shlex.split(line)) for line in code.replace("\\\n", " ").splitlines()]
    assert [name for name, _ in typed_lines] == ["plan", "pipeline", "report", "export"]
    for name, flags in typed_lines:
        commands.main(name, [*flags, *(LITTLE.split() if name == "pipeline" else [])])
    assert Path("runs/parcels/report.html").exists()
    assert load_hf("exported/parcels").config.vocab_size == len(tokenizer)
    assert json.loads(Path("exported/parcels/ixjax.json").read_text())["system"]
