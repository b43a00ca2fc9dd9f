"""A whole i×MCTS search, against a sequential one written on transformers' `generate`.

    python benchmarks/search.py                       # ours alone
    python benchmarks/search.py --peer-iterations 2   # also the sequential search
    python benchmarks/search.py --slices 1 2 4        # the work if processes share it

Two models of the quickstart's size search `conditions` trees with the quickstart's budget. Turns
have the lengths of ESConv's, in tokens, cut at `longest`. The sequential search is the same method
as research code writes it: one tree, one node, one turn at a time, each turn a `generate` on its
whole history, with torch's default threads. Its outcomes are random numbers and cost nothing; ours
are read from the simulator. It is timed over a few iterations of one tree, since all iterations
take equally long. Useful tokens are those that were sampled. Figures are medians; first runs, which
compile, are not counted.

With `--slices` the conditions are searched whole and in disjoint slices, one slice after the other,
as processes would share them. The tokens sampled are the same; batches that run empty at the end of
each slice add slots. `overhead` sums the slots of each kind of pass, weighted by the seconds of a
slot in the first search, and divides by that search's seconds, less 1. Prints one JSON line.
"""

from __future__ import annotations

import dataclasses
import json
import math
import random
import resource
import statistics
import time
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import tyro
from play import DrawnLengths, drawn_length, word_tokenizer
from sizes import Peer, Size, make_model

from ixjax.dialogue import Dialogue, Turn, UserCondition, get_scenario
from ixjax.dialogue.chat import ChatTemplate, View
from ixjax.generation import EngineConfig, EngineStats, SamplingConfig, speaker_engine
from ixjax.models.config import DType
from ixjax.search import SearchConfig, SearchStats, run


@dataclasses.dataclass(frozen=True)
class Arguments:
    """Settings of the benchmark."""

    size: Size = "quickstart"
    """Of each of the two models."""
    conditions: int = 64
    """Trees searched."""
    trees: int = 48
    """Trees that grow at once."""
    iterations: int = 4
    """Rounds of select, expand, roll out, back-propagate."""
    width: int = 6
    """Responses sampled at an expansion."""
    rollouts: int = 2
    """Dialogues played to their end from each new reaction."""
    max_turns: int = 6
    """Policy turns after which a dialogue is over."""
    longest: int = 24
    """Tokens at which a turn is cut."""
    rows: int = 64
    """Rows of a decode batch."""
    repeats: int = 3
    """Runs timed."""
    slices: tuple[int, ...] = ()
    """Numbers of disjoint slices to count the work in; then nothing is timed."""
    peer_iterations: int = 0
    """Iterations that the sequential search is timed over; 0: none."""
    dtype: DType = "float32"
    """Of weights and computation."""


def main(arguments: Arguments) -> None:
    """Measure and print."""
    a, ours = arguments, Ours(arguments)
    report: dict[str, Any] = {
        "engine": "ixjax",
        "jax": jax.__version__,
        **dataclasses.asdict(a),
        "device": jax.devices()[0].platform,
    }
    report |= {"work": in_slices(ours, a.slices)} if a.slices else timed(ours, a.repeats)
    if a.peer_iterations and not a.slices:
        report |= beside_peer(a, report)
    print(json.dumps(report))


@dataclasses.dataclass(frozen=True)
class Searched:
    """The work of one search, or of several."""

    seconds: float
    tokens: int
    simulations: int
    stats: SearchStats
    work: EngineStats


class Ours:
    """Two speakers and the roots that they search from.

    Args:
        arguments: settings of the benchmark.
    """

    def __init__(self, arguments: Arguments):
        a = arguments
        self.scenario = get_scenario("sandbox")
        self.config = SearchConfig(
            trees=a.trees,
            iterations=a.iterations,
            width=a.width,
            rollouts=a.rollouts,
            max_turns=a.max_turns,
        )
        length = (2 * a.max_turns + 1) * (a.longest + 4) + 96
        models = [make_model(a.size, max_length=length, dtype=a.dtype) for _ in range(2)]
        vocab_size = models[0].config.vocab_size
        template = ChatTemplate.from_tokenizer(word_tokenizer(vocab_size))
        template = dataclasses.replace(template, end_ids=(5,))
        sampling, engine_config = (
            SamplingConfig(max_new_tokens=a.longest),
            EngineConfig(rows=a.rows),
        )
        DrawnLengths.longest = a.longest
        self.work, self.speakers = EngineStats(), []
        for role, model in zip(("policy", "user"), models, strict=True):
            view = View(self.scenario, role, template)
            engine = speaker_engine(model, view, sampling, engine_config, stats=self.work)
            self.speakers.append(DrawnLengths(engine, view, sampling, seed=0))
        rng, self.roots = random.Random(0), []
        for i in range(a.conditions):
            words = " ".join(f"w{rng.randrange(vocab_size - 16)}" for _ in range(12))
            condition = UserCondition(f"c{i}", {"need": "advice", "distress": 4, "patience": 3})
            self.roots.append(Dialogue(f"d{i}", condition, (Turn("user", words),)))

    def search(self, *slices: Sequence[Dialogue]) -> Searched:
        """Search these roots, one slice after the other."""
        stats, before, start = SearchStats(), self.work.copy(), time.perf_counter()
        trees = [
            tree
            for roots in slices
            for tree in run(*self.speakers, self.scenario, roots, self.config, stats=stats)
        ]
        return Searched(
            seconds=time.perf_counter() - start,
            tokens=sum(t.account["policy_tokens"] + t.account["simulator_tokens"] for t in trees),
            simulations=sum(t.account["simulations"] for t in trees),
            stats=stats,
            work=self.work - before,
        )


def timed(ours: Ours, repeats: int) -> dict[str, Any]:
    """Return rates of whole searches, after one that compiles."""
    ours.search(ours.roots)
    runs = [ours.search(ours.roots) for _ in range(repeats)]
    work = [r.work for r in runs]
    engine_seconds = sum(w.decode_seconds + w.prefill_seconds + w.score_seconds for w in work)
    median = statistics.median
    return {
        "tokens": runs[0].tokens,
        "seconds": median(r.seconds for r in runs),
        "simulations_per_second": median(r.simulations / r.seconds for r in runs),
        "tokens_per_second": median(r.tokens / r.seconds for r in runs),
        "occupancy": sum(w.decode_tokens for w in work) / sum(w.decode_slots for w in work),
        "compilations_after_warm_up": sum(w.compilations for w in work),
        "share_of_trees": median(r.stats.report()["trees_share"] for r in runs),
        # All but the engine's passes: also the driver's and the search's Python.
        "share_of_host_and_trees": 1 - engine_seconds / sum(r.seconds for r in runs),
        "peak_memory_gb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6,
    }


SLOTS = {"decode": "decode_slots", "prefill": "prefill_slots", "score": "score_tokens"}


def in_slices(ours: Ours, numbers: Sequence[int]) -> list[dict[str, Any]]:
    """Return the work of searches of all conditions, in each number of slices."""
    ours.search(ours.roots[:: max(numbers)])  # compiles
    found: list[dict[str, Any]] = []
    runs = [ours.search(*(ours.roots[i::n] for i in range(n))) for n in numbers]
    for n, searched in zip(numbers, runs, strict=True):
        assert searched.tokens == runs[0].tokens, "tokens differ: trees depend on their neighbours"
        first, now = vars(runs[0].work), vars(searched.work)
        cost = sum(first[f"{k}_seconds"] * now[name] / first[name] for k, name in SLOTS.items())
        found.append(
            {
                "slices": n,
                "tokens": searched.tokens,
                **{name: now[name] for name in ("prefill_tokens", *SLOTS.values())},
                "occupancy": searched.work.occupancy,
                "overhead": cost / sum(first[f"{k}_seconds"] for k in SLOTS) - 1,
            }
        )
    return found


def beside_peer(a: Arguments, ours: Mapping[str, Any]) -> dict[str, float]:
    """Return the rates of the sequential search, and ours divided by them."""
    simulations, tokens, seconds = Sequential(a).search(a.peer_iterations)
    return {
        "peer_simulations_per_second": simulations / seconds,
        "peer_tokens_per_second": tokens / seconds,
        "over_peer": ours["tokens_per_second"] * seconds / tokens,
        "over_peer_simulations": ours["simulations_per_second"] * seconds / simulations,
    }


@dataclasses.dataclass(eq=False)
class Node:
    """A node of the sequential search: the history up to it, and its statistics."""

    history: Any
    turns: int
    parent: Node | None = None
    children: list[Node] = dataclasses.field(default_factory=list)
    visits: int = 0
    value_sum: float = 0.0

    def best(self) -> Node:
        """Return the child that UCT selects."""
        return max(
            self.children,
            key=lambda c: c.value_sum / c.visits + math.sqrt(math.log(self.visits) / c.visits),
        )


class Sequential:
    """i×MCTS without batching: one tree, and one turn at a time."""

    def __init__(self, arguments: Arguments):
        self.a = arguments
        self.sides = [Peer(arguments.size, dtype=arguments.dtype, top_p=1.0) for _ in range(2)]
        self.tokens = self.turns = 0

    def say(self, history: Any, side: int) -> Any:
        """Return a history with one more turn of a side."""
        self.turns += 1
        new = min(drawn_length((self.turns, side)), self.a.longest)
        self.tokens += new
        return self.sides[side].generate(history, new)

    def search(self, iterations: int) -> tuple[int, int, float]:
        """Return simulations, tokens and seconds of iterations, after one that warms up."""
        rng = random.Random(0)
        root = Node(self.sides[0].prompts(1, 50), 0)
        for iteration in range(iterations + 1):
            if iteration == 1:
                start, self.tokens, simulations = time.perf_counter(), 0, root.visits
            node = root
            while node.children:
                node = node.best()
            for _ in range(self.a.width if node.turns < self.a.max_turns else 0):
                reacted = self.say(self.say(node.history, 0), 1)
                node.children.append(Node(reacted, node.turns + 1, node))
            for leaf in node.children or [node]:
                for _ in range(self.a.rollouts):
                    history = leaf.history
                    for _ in range(leaf.turns, self.a.max_turns):
                        history = self.say(self.say(history, 0), 1)
                    value, at = rng.random(), leaf
                    while at is not None:
                        at.visits, at.value_sum = at.visits + 1, at.value_sum + value
                        at = at.parent
        return root.visits - simulations, self.tokens, time.perf_counter() - start


if __name__ == "__main__":
    main(tyro.cli(Arguments, description=__doc__))
