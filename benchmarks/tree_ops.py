"""The tree arithmetic of a search: select, expand, back-propagate, in a world of tables.

    python benchmarks/tree_ops.py            # ours, and a UCT of plain Python objects
    python benchmarks/tree_ops.py --peer     # compared with mctx (pip install mctx)

Nothing is sampled: an action leads to a sum modulo `PLACES`, whose value is in a table, so only the
tree arithmetic is timed. A simulation walks down a tree, adds one reaction with its `actions`
responses, and sends one value up. The ways to do that alternate; figures are medians without the
first runs, which compile:

- `ours`: all simulations in one jitted loop, as in mctx.
- `ours_stepwise`: one jitted call after the other with the host in between, as in `ixjax.search`,
  where speakers take their turns there.
- `mctx_uct`: `mctx.search` with UCT written for it. It grows our trees: `same_trees` compares the
  visits of the roots' actions.
- `muzero_policy`: mctx's default, PUCT with noise at the root.
- `plain`: one Python object per node, one tree after the other, with fewer trees.

A walk reads some dozens of bytes at each of its few levels, at addresses that the previous level
gives. One tree costs the latency of these steps; many trees share it, until cache misses dominate
(`ours_by_trees`). CPU seconds next to wall seconds show the time that other programs took. Prints
one JSON line.
"""

from __future__ import annotations

import dataclasses
import json
import math
import statistics
import time
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import tyro
from jax import lax

from ixjax.search import Tree, add_children, backpropagate, uct_select

PLACES = 1009  # of a world; paths that share one are alike to all
C_UCT = 1.25

Way = Callable[[], np.ndarray]
"""A whole search; gives the visits `[trees, actions]` of the roots' actions."""


@dataclasses.dataclass(frozen=True)
class Arguments:
    """Settings of the benchmark."""

    trees: int = 64
    """Trees side by side."""
    simulations: int = 128
    """Of each tree."""
    actions: int = 8
    """At each decision."""
    by_trees: tuple[int, ...] = (1, 8, 64, 512, 4096)
    """Numbers of trees that ours is timed for as well."""
    plain_trees: int = 4
    """Trees of plain Python."""
    repeats: int = 5
    """Runs timed."""
    peer: bool = False
    """Time mctx, too."""


def main(arguments: Arguments) -> None:
    """Measure and print."""
    a = arguments
    values = np.random.default_rng(0).random((max(a.trees, *a.by_trees), PLACES), np.float32)
    ways: dict[str, Way] = {
        "ours": one_program(values[: a.trees], a),
        "ours_stepwise": partial(stepwise, values[: a.trees], a),
        "plain": partial(plain, values[: a.plain_trees], a),
    }
    if a.peer:
        ways |= mctx_ways(values[: a.trees], a)
    counts = dict.fromkeys(ways, a.trees) | {"plain": a.plain_trees}
    report: dict[str, Any] = {
        "jax": jax.__version__,
        **dataclasses.asdict(a),
        "device": jax.devices()[0].platform,
        "same_trees": same_trees(ways),
        "ways": timed(ways, counts, a),
    }
    if a.peer:
        rates = {name: found["simulations_per_second"] for name, found in report["ways"].items()}
        report["speedup"] = rates["ours"] / rates["muzero_policy"]
        report["speedup_stepwise"] = rates["ours_stepwise"] / rates["muzero_policy"]
    more = {str(n): one_program(values[:n], a) for n in a.by_trees}
    report["ours_by_trees"] = timed(more, {name: int(name) for name in more}, a)
    print(json.dumps(report))


def timed(ways: Mapping[str, Way], trees: Mapping[str, int], a: Arguments) -> dict[str, Any]:
    """Medians of each way's runs, which take turns."""
    found: dict[str, list[tuple[float, float]]] = {name: [] for name in ways}
    for repeat in range(1 + a.repeats):
        for name, way in ways.items():
            wall, cpu = time.perf_counter(), time.process_time()
            way()
            spent = time.perf_counter() - wall, time.process_time() - cpu
            if repeat:  # the first one compiles
                found[name].append(spent)
    report = {}
    for name, runs in found.items():
        seconds, cpu_seconds = (statistics.median(column) for column in zip(*runs, strict=True))
        report[name] = {
            "simulations_per_second": trees[name] * a.simulations / seconds,
            "seconds": seconds,
            "cpu_seconds": cpu_seconds,
        }
    return report


def same_trees(ways: Mapping[str, Way]) -> bool:
    """Whether all that explore by UCT have tried the roots' actions as often."""
    ours = ways["ours"]()
    others = [way() for name, way in ways.items() if name not in ("ours", "muzero_policy")]
    return all(np.array_equal(ours[: len(visits)], visits) for visits in others)


def after(place: Any, action: Any) -> Any:
    """Where an action leads."""
    return (place * 31 + action + 1) % PLACES


def create(trees: int, a: Arguments) -> tuple[Tree, np.ndarray]:
    """Unvisited roots, and the places `[B, N]` of all nodes."""
    nodes = (1 + a.simulations) * (1 + a.actions)
    return Tree.create(trees, nodes, a.actions), np.zeros((trees, nodes), np.int32)


def visits_at_root(tree: Tree, a: Arguments) -> jax.Array:
    """Of each of the root's responses, which are its first children."""
    return tree.visits[:, 1 : 1 + a.actions]


def one_program(values: np.ndarray, a: Arguments) -> Way:
    """All simulations of ours in one loop on the device."""
    table, rows = jnp.asarray(values), np.arange(len(values))[:, None]
    root = np.zeros_like(rows, np.int32)

    def respond(tree: Tree, place: jax.Array, decision: jax.Array) -> tuple[Tree, jax.Array]:
        """All responses at `decision[B, 1]`."""
        tree, new = add_children(tree, jnp.repeat(decision, a.actions, axis=1))
        leads_to = after(place[rows, decision], np.arange(a.actions, dtype=np.int32)[None])
        return tree, place.at[rows, new].set(leads_to)

    def simulate(_: Any, state: tuple[Tree, jax.Array]) -> tuple[Tree, jax.Array]:
        tree, place = state
        tree, response = uct_select(tree, C_UCT)
        here = place[rows, response]
        tree, decision = add_children(tree, response)
        tree, place = respond(tree, place.at[rows, decision].set(here), decision)
        return backpropagate(tree, decision, table[rows, here], selected=response), place

    @jax.jit
    def search() -> jax.Array:
        tree, place = create(len(values), a)
        tree, place = respond(tree, jnp.asarray(place), jnp.asarray(root))
        # mctx's root has been looked at before the first simulation.
        tree = backpropagate(tree, root, table[rows, place[rows, root]])
        tree, _ = lax.fori_loop(0, a.simulations, simulate, (tree, place))
        return visits_at_root(tree, a)

    return lambda: np.asarray(search())


def stepwise(values: np.ndarray, a: Arguments) -> np.ndarray:
    """One call after the other; where nodes lead to is the host's to know, as words are."""
    tree, place = create(len(values), a)
    rows = np.arange(len(values))[:, None]

    def respond(tree: Tree, decision: np.ndarray) -> Tree:
        tree, new = add_children(tree, np.repeat(decision, a.actions, axis=1), donate=True)
        place[rows, np.asarray(new)] = after(place[rows, decision], np.arange(a.actions))
        return tree

    root = np.zeros_like(rows, np.int32)
    tree = backpropagate(respond(tree, root), root, values[rows, place[rows, root]], donate=True)
    for _ in range(a.simulations):
        tree, selected = uct_select(tree, C_UCT, donate=True)
        response = np.asarray(selected)
        tree, new = add_children(tree, response, donate=True)
        decision, here = np.asarray(new), place[rows, response]
        place[rows, decision] = here
        tree = respond(tree, decision)
        tree = backpropagate(tree, decision, values[rows, here], selected=response, donate=True)
    return np.asarray(visits_at_root(tree, a))


def mctx_ways(values: np.ndarray, a: Arguments) -> dict[str, Way]:
    """`mctx.search` with UCT, and its `muzero_policy`."""
    import mctx

    trees, table = len(values), jnp.asarray(values)

    def look(place: jax.Array) -> dict[str, jax.Array]:
        return {
            "prior_logits": jnp.zeros((trees, a.actions)),
            "value": table[np.arange(trees), place],
        }

    def step(_params: Any, _key: Any, action: jax.Array, place: jax.Array) -> tuple[Any, jax.Array]:
        place = after(place, action)
        output = mctx.RecurrentFnOutput(
            reward=jnp.zeros(trees), discount=jnp.ones(trees), **look(place)
        )
        return output, place

    def uct(_key: Any, tree: mctx.Tree, node: jax.Array, _depth: Any = None) -> jax.Array:
        tried = tree.children_visits[node]
        explore = jnp.sqrt(jnp.log(tree.node_visits[node]) / jnp.maximum(tried, 1))
        score = jnp.where(tried == 0, jnp.inf, tree.qvalues(node) + C_UCT * explore)
        return jnp.argmax(score).astype(jnp.int32)

    def searched(search: Callable[..., Any], **options: Any) -> Way:
        @jax.jit
        def visits() -> jax.Array:
            place = jnp.zeros(trees, jnp.int32)
            found = search(
                params=(),
                rng_key=jax.random.key(0),
                root=mctx.RootFnOutput(embedding=place, **look(place)),
                recurrent_fn=step,
                num_simulations=a.simulations,
                **options,
            )
            tree = getattr(found, "search_tree", found)
            return tree.children_visits[:, mctx.Tree.ROOT_INDEX]

        return lambda: np.asarray(visits())

    return {
        "mctx_uct": searched(
            mctx.search, root_action_selection_fn=uct, interior_action_selection_fn=uct
        ),
        "muzero_policy": searched(mctx.muzero_policy),
    }


@dataclasses.dataclass(eq=False)
class Node:
    """A decision of the plain search; its responses are its slots."""

    place: int
    visits: int = 0
    value_sum: float = 0.0
    children: dict[int, Node] = dataclasses.field(default_factory=dict)

    def choose(self, actions: int) -> int:
        """The action of the largest score; one that was never tried comes first."""
        if len(self.children) < actions:
            return len(self.children)
        log_total = math.log(self.visits)

        def score(action: int) -> float:
            child = self.children[action]
            explore = math.sqrt(log_total / child.visits)
            return child.value_sum / child.visits + C_UCT * explore

        return max(range(actions), key=score)


def plain(values: np.ndarray, a: Arguments) -> np.ndarray:
    """One tree after the other, one object a node."""
    found = np.zeros((len(values), a.actions), int)
    for i, table in enumerate(values.tolist()):
        root = Node(place=0, visits=1, value_sum=table[0])
        for _ in range(a.simulations):
            path = [root]
            while True:
                action = path[-1].choose(a.actions)
                child = path[-1].children.get(action)
                if child is None:
                    child = Node(after(path[-1].place, action))
                    path[-1].children[action] = child
                    path.append(child)
                    break
                path.append(child)
            for node in path:
                node.visits += 1
                node.value_sum += table[child.place]
        found[i] = [root.children[action].visits for action in range(a.actions)]
    return found


if __name__ == "__main__":
    main(tyro.cli(Arguments, description=__doc__))
