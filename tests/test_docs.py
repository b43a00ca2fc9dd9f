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
from ixjax.dialogue.preferences import DROP_RULES, PreferenceFormat
from ixjax.dialogue.scenarios import base
from ixjax.models import load_hf
from ixjax.models.hf_config import FAMILIES
from ixjax.pipeline import RunConfig, export, find_checkpoint
from ixjax.search import TreeNode
from ixjax.search.node_table import COUNTS
from ixjax.training import DPOConfig
from tests.commands.conftest import untrained_run
from tests.docs import DOCS, PAGES, block, register_parcels


@pytest.fixture
def parcels(monkeypatch):
    return register_parcels(monkeypatch)


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


def test_the_guides_check_of_a_scenario_holds_for_its_own(parcels):
    code = block("scenarios.md", "python", "for line, outcome in lines")
    exec(compile(code, "check.py", "exec"), {"scenario": parcels, "condition": None})


def test_the_guides_reward_of_reactions_is_one(parcels):
    method = textwrap.dedent(block("scenarios.md", "python", "def reaction_reward"))
    exec(compile(method, "parcels.py", "exec"), names := {})
    rewarding = type("Rewarding", (type(parcels),), {"reaction_reward": names["reaction_reward"]})()
    assert isinstance(rewarding, base.RewardsReactions)
    assert not isinstance(parcels, base.RewardsReactions)
    rewards = [rewarding.reaction_reward(text) for text in ("Thank you!", "Where is it?")]
    assert rewards == [1, 0]


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
        assert [context.adapter for context in found["contexts"]] == [0, 1, -1]
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
    assert [w.partition(" ")[0] for w in before["warnings"]] == ["sft", "dpo"]
    assert f"{before['play']['evaluate']['cache'] / 1e9:.1f} GB" in page
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


def test_the_page_of_settings_is_what_the_script_writes():
    script = runpy.run_path(str(DOCS / "make_configuration.py"))
    assert (DOCS / "configuration.md").read_text() == script["page"]()


def test_defaults_are_those_of_the_stage_that_a_setting_is_of():
    text = (DOCS / "configuration.md").read_text()
    [aligning] = re.findall(r"### `dpo\.optimizer`.*?(?=\n###)", text, re.DOTALL)
    rate = DPOConfig().optimizer.learning_rate  # not that of any optimizer
    assert f"| `learning_rate` | `{rate}` |" in aligning


def test_every_setting_is_described_in_one_line():
    text = (DOCS / "configuration.md").read_text()
    rows = re.findall(r"^\| `\w+` \| .*? \| (.*) \|$", text, re.MULTILINE)
    assert len(rows) > 100
    described = [row.partition(" One of `")[0] for row in rows]  # the script adds the choices
    assert not [row for row in described if not row.endswith(".") or len(row) > 100]


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
