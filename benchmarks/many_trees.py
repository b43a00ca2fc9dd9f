"""Ten thousand trees, 64 at a time: time and memory of the search without models.

    python benchmarks/many_trees.py                 # 10,000 trees of 32 simulations
    python benchmarks/many_trees.py --trees 500     # seconds

The speakers are cheap scripts, so the search is timed: its arithmetic, its bookkeeping and the
loop that advances its tasks. A finished tree is yielded and forgotten, so resident memory must stay
constant after the first thousand trees. The arrays of the trees grow linearly with the nodes that
they may have (`array_bytes`, by nodes). Prints one JSON line.
"""

from __future__ import annotations

import dataclasses
import gc
import json
import os
import time
from pathlib import Path

import jax
import tyro

from ixjax.dialogue import Dialogue, OutcomeReading, Turn, UserCondition, get_scenario
from ixjax.search import SearchConfig, SearchStats, Tree, run
from ixjax.testing import ScriptedSpeaker

REPLIES = tuple(f"reply {i}" for i in range(128))  # 128, so that siblings are seldom equal


@dataclasses.dataclass(frozen=True)
class Arguments:
    """Settings of the benchmark."""

    trees: int = 10_000
    """Trees searched, one a condition."""
    look_every: int = 1_000
    """Trees between two looks at memory."""
    side_by_side: int = 64
    """Trees that grow at once."""
    iterations: int = 8
    """Rounds of select, expand, roll out, back-propagate."""
    width: int = 4
    """Responses sampled at an expansion, and simulations of an iteration."""
    max_turns: int = 4
    """Policy turns after which a dialogue is over."""


def main(arguments: Arguments) -> None:
    """Measure and print."""
    a = arguments
    config = SearchConfig(
        trees=a.side_by_side, iterations=a.iterations, width=a.width, max_turns=a.max_turns
    )
    even = dict.fromkeys(REPLIES, 1 / len(REPLIES))
    policy = ScriptedSpeaker("policy", lambda dialogue: even)
    user = ScriptedSpeaker("user", lambda dialogue: even, reading=read)
    roots = [
        Dialogue(f"d{i}", UserCondition(f"c{i}", {}), (Turn("user", "hello"),))
        for i in range(a.trees)
    ]
    stats, simulations, resident = SearchStats(), 0, []
    scenario, start = get_scenario("sandbox"), time.perf_counter()
    trees = run(policy, user, scenario, roots, config, stats=stats)
    for number, tree in enumerate(trees, start=1):
        simulations += tree.account["simulations"]
        if number % a.look_every == 0 or number == a.trees:
            resident.append(resident_bytes())
    seconds = time.perf_counter() - start
    budgets = [dataclasses.replace(config, iterations=n * a.iterations) for n in (1, 2, 4, 8)]
    report = {
        "engine": "ixjax",
        "jax": jax.__version__,
        **dataclasses.asdict(a),
        "device": jax.devices()[0].platform,
        "simulations": simulations,
        "seconds": seconds,
        "simulations_per_second": simulations / seconds,
        **{name: share for name, share in stats.report().items() if name.endswith("_share")},
        "resident_mb": [round(found / 1e6, 1) for found in resident],
        "growth_mb": (resident[-1] - resident[0]) / 1e6,
        "array_bytes": {budget.nodes * budget.trees: array_bytes(budget) for budget in budgets},
    }
    print(json.dumps(report))


def read(dialogue: Dialogue) -> OutcomeReading:
    """Return an engagement from 0 to 1, stated by the last word."""
    value = int(dialogue.turns[-1].text.split()[-1]) / len(REPLIES)
    return OutcomeReading(value, value)


def resident_bytes() -> int:
    """Return the memory of this process that is in use now."""
    gc.collect()
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE")


def array_bytes(config: SearchConfig) -> int:
    """Return the bytes of the arrays of all trees that grow at once."""
    width = max(config.width, config.most_reactions)
    tree = Tree.create(config.trees, config.nodes, width)
    return sum(array.nbytes for array in jax.tree.leaves(tree))


if __name__ == "__main__":
    main(tyro.cli(Arguments, description=__doc__))
