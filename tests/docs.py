"""The pages of the documentation, and the code and commands in them."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

from ixjax.dialogue.scenarios import base

ROOT = Path(__file__).parents[1]
DOCS = ROOT / "docs"
PAGES = [*sorted(DOCS.glob("*.md")), ROOT / "README.md", ROOT / "CONTRIBUTING.md"]


def block(page: str, language: str, containing: str) -> str:
    """The one code block of a page in that language that contains a text."""
    blocks = re.findall(rf"```{language}\n(.*?)```", (DOCS / page).read_text(), re.DOTALL)
    (found,) = [code for code in blocks if containing in code]
    return found


def register_parcels(monkeypatch) -> base.Scenario:
    """The guide's own scenario, registered for one test."""
    monkeypatch.setattr(base, "_SCENARIOS", dict(base._SCENARIOS))
    exec(compile(block("scenarios.md", "python", "register_scenario"), "parcels.py", "exec"), {})
    return base.get_scenario("parcels")


def shell_lines(page: Path) -> list[list[str]]:
    """Every command of a page's blocks of shell: continued lines joined, `&&` parted."""
    blocks = re.findall(r"```bash\n(.*?)```", page.read_text(), re.DOTALL)
    lines = "".join(blocks).replace("\\\n", " ").splitlines()
    parts = [part for line in lines for part in line.split(" && ")]
    return [words for part in parts if (words := shlex.split(part, comments=True))]


def is_ours(words: list[str]) -> bool:
    """Whether a command is `ixjax`, in one of the ways that the pages call it."""
    name = words[0].removeprefix(".venv/bin/")
    return name == "ixjax" or words[:2] == ["python", "parcels.py"] or is_launched(words)


def is_launched(words: list[str]) -> bool:
    """Whether it is called from a checkout."""
    return words[:2] == ["python", "-m"] and words[2].startswith("launch.")


def typed(words: list[str]) -> tuple[str, list[str]]:
    """Command and flags behind `ixjax`, `python parcels.py` or `python -m launch.`."""
    assert is_ours(words), words
    if is_launched(words):
        return words[2].removeprefix("launch."), words[3:]
    start = 2 if words[0] == "python" else 1
    return words[start], words[start + 1 :]


def ours(page: str | Path) -> list[tuple[str, list[str]]]:
    """Command and flags of every line of a page that calls `ixjax`."""
    return [typed(words) for words in shell_lines(DOCS / page) if is_ours(words)]
