"""The documentation's examples work as they stand."""

from __future__ import annotations

import ast
import dataclasses
import importlib
import json
import re
import runpy
import shlex
import textwrap
import typing
from pathlib import Path

import pytest

from ixjax.commands import main as commands
from ixjax.commands import plan
from ixjax.commands.arguments import parse
from ixjax.commands.tools import parse_tool
from ixjax.dialogue.preferences import DROP_RULES, PreferenceFormat
from ixjax.dialogue.scenarios import base
from ixjax.models import load_hf, save_hf
from ixjax.models.hf_config import FAMILIES
from ixjax.pipeline import RunConfig, export, find_checkpoint, open_run
from ixjax.search import TreeNode
from ixjax.search.ledger import COUNTS
from ixjax.testing import byte_tokenizer, tiny_model
from tests.commands.conftest import untrained_run
from tests.end_to_end.tiny import tiny_run
from tests.report.runs import write_run

DOCS = Path(__file__).parents[1] / "docs"


def block(page: str, language: str, containing: str) -> str:
    """The one code block of a page in that language that contains a text."""
    blocks = re.findall(rf"```{language}\n(.*?)```", (DOCS / page).read_text(), re.DOTALL)
    (found,) = [code for code in blocks if containing in code]
    return found


@pytest.fixture
def parcels(monkeypatch):
    """The guide's own scenario, registered for one test."""
    monkeypatch.setattr(base, "_SCENARIOS", dict(base._SCENARIOS))
    exec(compile(block("scenarios.md", "python", "register_scenario"), "parcels.py", "exec"), {})
    return base.get_scenario("parcels")


def test_the_guides_scenario_reads_the_example_of_the_data_formats(parcels, tmp_path, monkeypatch):
    monkeypatch.setenv(commands.CACHE_SWITCH, "off")
    record = json.loads(block("data-formats.md", "json", "parcel"))
    corpus = tmp_path / "dialogues.jsonl"
    corpus.write_text("".join(json.dumps(record | {"id": f"d{i}"}) + "\n" for i in range(40)))
    arguments = ["--scenario", "parcels", "--data.format", "jsonl", "--data.path", str(corpus)]
    commands.main("prepare", [*arguments, "--out", str(tmp_path / "run")])
    prepared = (tmp_path / "run" / "data" / "train.jsonl").read_text().splitlines()
    assert json.loads(prepared[1])["outcome"] == {"value": 4.0, "engagement": 0.75}


def test_the_guides_scenario_reads_what_it_writes(parcels):
    assert [parcels.read_outcome(None, line) for line, _ in parcels.outcome_lines(None)] == [
        outcome for _, outcome in parcels.outcome_lines(None)
    ]


def test_the_guides_reward_of_reactions_is_one(parcels):
    method = textwrap.dedent(block("scenarios.md", "python", "def reaction_reward"))
    exec(compile(method, "parcels.py", "exec"), names := {})
    rewarding = type("Rewarding", (type(parcels),), {"reaction_reward": names["reaction_reward"]})()
    assert isinstance(rewarding, base.RewardsReactions)
    assert not isinstance(parcels, base.RewardsReactions)
    rewards = [rewarding.reaction_reward(text) for text in ("Thank you!", "Where is it?")]
    assert rewards == [1, 0]


def commands_of(page: str) -> list[list[str]]:
    """What a page types behind `ixjax`."""
    blocks = re.findall(r"```bash\n(.*?)```", (DOCS / page).read_text(), re.DOTALL)
    lines = [line for code in blocks for line in code.splitlines() if line.startswith("ixjax ")]
    return [shlex.split(line)[1:] for line in lines]


def test_the_guides_stages_take_the_flags_that_it_gives_them():
    shown = [words for words in commands_of("guide.md") if words[0] in commands.STAGES]
    assert {"pipeline", "search", "sft"} == {line[0] for line in shown}
    for stage, *flags in shown:
        assert parse(RunConfig, flags, stage=stage, summary="").out == "runs/quickstart"


def test_every_flag_of_the_guide_is_a_setting_of_a_run_or_a_tool():
    """In running text and tables; `.name` behind a flag is another one of its section."""
    settings = [
        RunConfig,
        *(importlib.import_module(f"ixjax.commands.{t}").Settings for t in commands.TOOLS),
    ]
    known = {"--config", "--help", "--as", commands.QUIET}.union(*map(flags_of, settings))
    text = re.sub(r"```.*?```", "", (DOCS / "guide.md").read_text(), flags=re.DOTALL)
    section, named = "", []
    for flag in re.findall(r"`(--[a-z.-]+|\.[a-z-]+)[ `]", text):
        section = section if flag.startswith(".") else flag.rpartition(".")[0]
        named.append(section + flag if flag.startswith(".") else flag)
    assert {"--search.reactions", "--processes.timeout", "--evaluation.think"} <= set(named)
    unknown = [flag for flag in named if flag not in known and flag != "--engine.*"]
    assert not unknown


def flags_of(settings: type, prefix: str = "--") -> set[str]:
    """The flags of a dataclass and of the dataclasses in it."""
    found = set()
    for name, kind in typing.get_type_hints(settings).items():
        flag = prefix + name.replace("_", "-")
        found |= flags_of(kind, f"{flag}.") if dataclasses.is_dataclass(kind) else {flag}
    return found


def test_the_guides_tools_take_the_flags_that_it_gives_them(tmp_path):
    open_run(tiny_run(tmp_path / "run"))
    shown = [words for words in commands_of("guide.md") if words[0] in commands.TOOLS]
    assert {line[0] for line in shown} == set(commands.TOOLS)
    for tool, *flags in shown:
        given = [str(tmp_path / "run") if flag == "runs/quickstart" else flag for flag in flags]
        module = importlib.import_module(f"ixjax.commands.{tool}")
        settings, run = parse_tool(module.Settings, given, tool=tool, summary=module.SUMMARY)
        assert (run is None) == ("--out" not in flags) == (not settings.out)


def test_the_commands_of_the_page_on_reports_do_what_it_says(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv(commands.CACHE_SWITCH, "off")
    monkeypatch.chdir(tmp_path)
    for name in ("quickstart", "seed-0", "seed-1"):
        write_run(tmp_path / "runs" / name)
    for name, *arguments in commands_of("report.md"):
        if arguments[0] == "score":  # raters have sent their files back
            key = json.loads(Path("runs/quickstart/rating_key.json").read_text())
            answer = {"schema": "ixjax.ratings", "task": key["task"], "rater": "ann"}
            answer["choices"] = dict.fromkeys(key["items"], "A")
            Path("ratings-ann.json").write_text(json.dumps(answer))
            rows = [f"{key['task']},{item},tie" for item in key["items"]]
            Path("ratings-ben.csv").write_text("\n".join(["task,item,choice", *rows]))
        commands.main(name, arguments)
    run = Path("runs/quickstart")
    made = ("report.html", "report.md", "rating/form.html", "rating/items.csv", "rating_key.json")
    assert all((run / name).exists() for name in (*made, "rating_scores.json"))
    assert Path("runs/comparison.html").exists()


def test_the_data_formats_name_every_field_of_a_tree():
    page = (DOCS / "data-formats.md").read_text()
    section = page.partition("## Search trees")[2].partition("\n## ")[0]
    names = set(re.findall(r"`(\w+)`", section))
    assert {field.name for field in dataclasses.fields(TreeNode)} <= names
    assert {*COUNTS, "nodes", "simulations", "unreadable", "decisions_at_D"} <= names


def test_the_data_formats_name_every_rule_that_leaves_a_preference_out():
    page = (DOCS / "data-formats.md").read_text()
    section = page.partition("### Preferences from elsewhere")[2].partition("\n### ")[0]
    named = set(re.findall(r"`([\w-]+)`", section))
    assert {*DROP_RULES, *typing.get_args(PreferenceFormat)} - {"auto"} <= named


@pytest.fixture(scope="module")
def exported(tmp_path_factory):
    """A folder in which exported/policy is as the guide has it."""
    folder = tmp_path_factory.mktemp("docs")
    run = untrained_run(folder / "run", ("policy_sft",))
    policy = find_checkpoint(run, "policy_sft")
    export(run, policy, folder / "exported" / "policy")
    return folder


@pytest.mark.parametrize("containing", ["stack_adapters", "apply_chat_template"])
def test_the_guides_examples_with_an_export_run(exported, monkeypatch, containing):
    monkeypatch.chdir(exported)
    found: dict = {}
    exec(compile(block("guide.md", "python", containing), "example.py", "exec"), found)
    if containing == "stack_adapters":
        assert load_hf("exported/merged").config.lora is None
        assert found["contexts"].adapters.tolist() == [0, 1, -1]
    else:
        assert isinstance(found["answer"], str)


def test_the_guide_lists_every_architecture():
    guide = (DOCS / "guide.md").read_text()
    assert all(f"`{name}`" in guide for name in FAMILIES)


@pytest.mark.slow
def test_the_plan_of_the_scaling_page_is_what_the_command_says(tmp_path, capsys):
    """The table of the 8 B model, and the activations that do not fit before."""
    page = (DOCS / "scaling.md").read_text()
    (tmp_path / "config.json").write_text(json.dumps(LLAMA_8B))
    plans = []
    for code in re.findall(r"```bash\n(ixjax plan.*?)```", page, re.DOTALL):
        line = code.replace("\\\n", "").replace("PATH/TO/Llama-3.1-8B-Instruct", str(tmp_path))
        words = shlex.split(line)
        commands.main(words[1], [*words[2:], "--json"])
        plans.append(json.loads(capsys.readouterr().out))
    before, after = plans
    assert [w.partition(" ")[0] for w in before["warnings"]] == ["sft", "dpo", "evaluate"]
    for stage, gigabytes in (("sft", "158.4"), ("dpo", "171.3")):
        assert gigabytes in page
        assert f"{before['training'][stage]['activations'] / 1e9:.1f}" == gigabytes
    assert not after["warnings"]
    compared, memory = [], [*after["training"].values(), *after["play"].values()]
    for row in re.findall(r"^\| (\w[\w ]*?) \| ([\d.| ]+) \|$", page, re.MULTILINE):
        name, shown = row[0].replace(" ", "_"), [cell.strip() for cell in row[1].split("|")]
        if any(name in stage for stage in memory):
            compared.append(name)
            found = [f"{stage[name] / 1e9:.1f}" if name in stage else "" for stage in memory]
            assert shown == found, name
    assert len(compared) == 12


LLAMA_8B = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "vocab_size": 128256,
    "hidden_size": 4096,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "intermediate_size": 14336,
    "max_position_embeddings": 131072,
    "rms_norm_eps": 1e-5,
    "tie_word_embeddings": False,
    "rope_theta": 500000.0,
}


def test_every_command_is_in_the_readme():
    readme = (DOCS.parent / "README.md").read_text()
    for name in commands.COMMANDS:
        assert f"| `ixjax {name}` |" in readme


PAGES = [*sorted(DOCS.glob("*.md")), DOCS.parent / "README.md", DOCS.parent / "CONTRIBUTING.md"]


def test_the_page_of_settings_is_what_the_script_writes():
    script = runpy.run_path(str(DOCS / "make_configuration.py"))
    assert (DOCS / "configuration.md").read_text() == script["page"]()


def test_every_setting_is_described_in_one_line():
    text = (DOCS / "configuration.md").read_text()
    rows = re.findall(r"^\| `\w+` \| .*? \| (.*) \|$", text, re.MULTILINE)
    assert len(rows) > 100
    assert not [row for row in rows if not row.endswith(".") or len(row) > 100]


def test_every_message_of_the_troubleshooting_is_one_of_the_code():
    said = [
        text for file in Path(commands.__file__).parents[1].rglob("*.py") for text in said_in(file)
    ]
    page = (DOCS / "troubleshooting.md").read_text()
    quoted = re.findall(r"^\| `([^`|]+)` \|", page, re.MULTILINE)
    assert len(quoted) > 15
    assert not [message for message in quoted if not any(message in text for text in said)]


def said_in(file: Path) -> list[str]:
    """The texts of a module; what is filled in stands there as an ellipsis."""
    found = []
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.JoinedStr):
            parts = (part.value if isinstance(part, ast.Constant) else "…" for part in node.values)
            found.append("".join(map(str, parts)))
        elif isinstance(node, ast.Constant) and isinstance(node.value, str):
            found.append(node.value)
    return found


def test_every_link_between_pages_leads_somewhere():
    for page in PAGES:
        for target in re.findall(r"\]\(([^)#:]+?)(?:#[^)]*)?\)", page.read_text()):
            assert (page.parent / target).exists(), (page.name, target)


def shell_lines(page: Path) -> list[list[str]]:
    """Every command of a page's blocks of shell, continued lines joined."""
    blocks = re.findall(r"```bash\n(.*?)```", page.read_text(), re.DOTALL)
    lines = "".join(blocks).replace("\\\n", " ").splitlines()
    return [words for line in lines if (words := shlex.split(line, comments=True))]


NOT_RUN = {
    "vllm": "needs a GPU and a package that is no dependency",
    "python3 -m venv": "a newcomer's first line: makes an environment, installs, runs for minutes",
    ".venv/bin/python -m pytest": "these tests themselves",
    "bash .ci/run": "runs these tests",
    "pip install": "changes the environment that runs this",
    "python examples/": "tests/examples",
    "python benchmarks/": "minutes of an idle machine; tests/benchmarks has one of them",
}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_command_is_of_a_kind_that_is_tested_or_says_why_not(page, parcels):
    """Flags of stages and previews are parsed here; tools are run or parsed above."""
    for words in shell_lines(page):
        if " ".join(words).startswith(tuple(NOT_RUN)):
            continue
        name, flags = typed(words)
        assert name in commands.COMMANDS, words
        if name not in commands.TOOLS:
            settings = plan.Settings if name == "plan" else RunConfig
            parse(settings, flags, stage=name, summary="")


def typed(words: list[str]) -> tuple[str, list[str]]:
    """Command and flags behind `ixjax`, `python parcels.py` or `python -m launch.`."""
    if words[:2] == ["python", "-m"]:
        return words[2].removeprefix("launch."), words[3:]
    assert words[0] == "ixjax" or words[:2] == ["python", "parcels.py"], words
    start = 1 if words[0] == "ixjax" else 2
    return words[start], words[start + 1 :]


@pytest.mark.slow
def test_the_guides_way_from_a_checkpoint_to_an_aligned_folder_is_one(
    parcels, tmp_path, monkeypatch, capsys
):
    """The block before vLLM's, run with a tiny checkpoint and little work."""
    monkeypatch.setenv(commands.CACHE_SWITCH, "off")
    monkeypatch.chdir(tmp_path)
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


LITTLE = (
    "--sft.steps 2 --sft.batch-size 8 --sampling.max-new-tokens 8 --search.conditions 4 "
    "--search.iterations 2 --search.max-turns 2 --pairs.min-margin 0 --dpo.steps 2 "
    "--dpo.batch-size 8 --evaluation.conditions 2 --evaluation.max-turns 1 --evaluation.think 0 "
    "--evaluation.candidates 2 --evaluation.bootstrap 20 --evaluation.fidelity-dialogues 2 --quiet"
)
