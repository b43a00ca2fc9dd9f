"""docs/architecture.md agrees with the import contracts and with the code."""

from __future__ import annotations

import importlib
import itertools
import re
import tomllib

from tests.docs import DOCS, ROOT

PAGE = (DOCS / "architecture.md").read_text()


def test_floors_of_the_drawing_are_the_import_contracts():
    contracts = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["importlinter"]
    layers = contracts["contracts"][0]["layers"]
    drawing = re.findall(r"```mermaid\nflowchart TD\n(.*?)```", PAGE, re.DOTALL)[0]
    labels = dict(re.findall(r'^  (\w+)\["([^"]+)"\]$', drawing, re.MULTILINE))
    arrows = [line.strip().split(" --> ") for line in drawing.splitlines() if "-->" in line]
    order = [arrows[0][0], *(name for line in arrows for name in line[1:])]
    assert all(one[-1] == next_one[0] for one, next_one in itertools.pairwise(arrows))
    assert set(order) == set(labels)
    ground = {name.strip() for name in layers[-1].split(":")}
    assert order[:-1] == layers[:-1]
    assert set(labels[order[-1]].split(", ")) == ground


def test_every_step_of_a_tree_is_where_the_page_says():
    for file, names in re.findall(r"^\| .* \| `(\w+/\w+\.py)`: (.*) \|$", PAGE, re.MULTILINE):
        module = importlib.import_module("ixjax." + file.removesuffix(".py").replace("/", "."))
        for name in re.findall(r"`([\w.]+)`", names):
            found = module
            for part in name.split("."):
                found = getattr(found, part)


def test_participants_of_the_trees_life_exist():
    search, generation = map(importlib.import_module, ("ixjax.search", "ixjax.generation"))
    for name in re.findall(r"^  participant \w+ as (\w+)$", PAGE, re.MULTILINE):
        assert hasattr(search, name) or hasattr(generation, name)
    for name in re.findall(r"driver->>pool: (\w+)(?: over.*|, (\w+))$", PAGE, re.MULTILINE):
        assert all(hasattr(search, part) for part in name if part)
