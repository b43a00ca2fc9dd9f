"""A policy that searches before it speaks: i×MCTS at inference, and best of n, its smallest form.

At each of its turns such a policy searches a tree from where the dialogue stands, with a simulator
of its own, and says the response that did best there. What was searched below that response and
what the user then really says is kept for the next turn. Like the search, it knows the user's
condition, which the policy itself never sees: read its score as what look-ahead could buy, not as
what a policy without a simulator can do.
"""

from __future__ import annotations

import collections
import dataclasses
from collections.abc import Iterator, Sequence
from typing import Literal

import numpy as np

from ixjax.dialogue.scenarios.base import Scenario
from ixjax.dialogue.types import Dialogue, Utterance
from ixjax.generation import Speaker, User
from ixjax.search.config import SearchConfig
from ixjax.search.imcts import grow
from ixjax.search.planting import policy_turns
from ixjax.search.tree import FinishedTree, Tree, TreeNode

Choice = Literal["value", "visits"]


@dataclasses.dataclass(frozen=True)
class Searched:
    """State of a `SearchingPolicy`.

    dialogues: `[S]` what was said; None for an empty row.
    trees: `[S]` what is known from here on: behind a turn of the policy's, the tree in which the
        last of these dialogues' responses was chosen; None where nothing is.
    chosen: `[S]` that response's node.
    """

    dialogues: tuple[Dialogue | None, ...]
    trees: tuple[FinishedTree | None, ...]
    chosen: tuple[int, ...]

    def with_rows(self, rows: Sequence[int], source: Searched, places: Sequence[int]) -> Searched:
        """Some rows as they are in another state."""
        columns = []
        for name in ("dialogues", "trees", "chosen"):
            column = list(getattr(self, name))
            for row, place in zip(rows, places, strict=True):
                column[row] = getattr(source, name)[place]
            columns.append(tuple(column))
        return Searched(*columns)


class SearchingPolicy:
    """A `Speaker` that says what a tree search from its dialogue found best.

    With one iteration, `choose="value"` and nothing to reuse it is best of n by look-ahead.

    Args:
        policy: samples the responses, and plays on in the look-ahead.
        simulator: the user of the look-ahead; not the one that the policy is evaluated with.
        scenario: of the dialogues.
        config: budget of a turn; `max_turns` is where its look-ahead ends.
        choose: the response of the best mean return, or the one most visited (ties: of the best
            mean return), which has been compared most.
        reuse: keep what was searched below a turn that is really played.
        seed: of the search.
    """

    def __init__(
        self,
        policy: Speaker,
        simulator: User,
        scenario: Scenario,
        config: SearchConfig,
        *,
        choose: Choice = "visits",
        reuse: bool = True,
        seed: int = 0,
    ):
        self._policy, self._simulator = policy, simulator
        self.scenario, self.config = scenario, config
        self._choose, self._reuse, self._seed = choose, reuse, seed

    @property
    def dropped_turns(self) -> int:
        """Oldest turns that found no room in contexts of the two, where they count them."""
        return sum(getattr(s, "dropped_turns", 0) for s in (self._policy, self._simulator))

    def empty(self, rows: int) -> Searched:
        """See `Speaker.empty`."""
        return Searched((None,) * rows, (None,) * rows, (Tree.NO_NODE,) * rows)

    def start(self, dialogues: Sequence[Dialogue]) -> Searched:
        """See `Speaker.start`."""
        return dataclasses.replace(self.empty(len(dialogues)), dialogues=tuple(dialogues))

    def fork(self, state: Searched, rows: np.ndarray) -> Searched:
        """See `Speaker.fork`."""
        return self.empty(len(rows)).with_rows(range(len(rows)), state, rows.tolist())

    def store(
        self, state: Searched, rows: np.ndarray, source: Searched, source_rows: np.ndarray
    ) -> Searched:
        """See `Speaker.store`."""
        return state.with_rows(rows.tolist(), source, source_rows.tolist())

    def listen(self, state: Searched, texts: Sequence[str | None]) -> Searched:
        """See `Speaker.listen`. A reaction that was foreseen leads into the tree below it."""
        dialogues, trees = list(state.dialogues), list(state.trees)
        for row, text in enumerate(texts):
            dialogue, tree = dialogues[row], trees[row]
            if text is None or dialogue is None:
                continue
            dialogues[row] = dialogue.said("user", text)
            if tree is not None and not self._reuse:
                trees[row] = None
            elif tree is not None:
                reactions = tree.children(state.chosen[row])
                known = [n.id for n in reactions if n.text == text and not n.terminal]
                trees[row] = tree.subtree(known[0]) if known else None
        return dataclasses.replace(state, dialogues=tuple(dialogues), trees=tuple(trees))

    def speak(
        self, state: Searched, identities: np.ndarray, active: np.ndarray
    ) -> tuple[Searched, list[Utterance | None]]:
        """See `Speaker.speak`; what is searched depends on `identities` and the dialogue alone."""
        rows = np.flatnonzero(active).tolist()
        said: list[Utterance | None] = [None] * len(active)
        if not rows:
            return state, said
        names = _names(identities[rows])
        roots = [self._root(state, row, name) for row, name in zip(rows, names, strict=True)]
        dialogues, trees = list(state.dialogues), list(state.trees)
        chosen = list(state.chosen)
        for place, tree in self._search(roots, side_by_side=len(active)):
            row = rows[place]
            dialogue = dialogues[row]
            assert dialogue is not None  # it was searched from
            best = self.ranked(tree)[0]
            said[row] = Utterance(
                best.text,
                num_tokens=best.num_tokens,
                truncated=best.truncated,
                mean_logprob=best.mean_logprob,
            )
            dialogues[row] = dialogue.said("policy", best.text)
            trees[row], chosen[row] = tree, best.id
        return Searched(tuple(dialogues), tuple(trees), tuple(chosen)), said

    def _search(
        self, roots: Sequence[FinishedTree], *, side_by_side: int
    ) -> Iterator[tuple[int, FinishedTree]]:
        """The trees of these roots, each with its place among them.

        Every root is looked ahead from for a turn at least. That lets one that is longer than
        `max_turns` end later, which must not let its neighbours: each length is searched by itself.
        """
        ends: collections.defaultdict[int, list[int]] = collections.defaultdict(list)
        for place, root in enumerate(roots):
            ends[max(self.config.max_turns, policy_turns(root.root) + 1)].append(place)
        for max_turns, places in ends.items():
            config = dataclasses.replace(
                self.config, max_turns=max_turns, trees=min(self.config.trees, side_by_side)
            )
            trees = grow(
                self._policy,
                self._simulator,
                self.scenario,
                [roots[place] for place in places],
                config,
                seed=self._seed,
                nodes=(1 + self._reuse) * config.nodes,
            )
            yield from zip(places, trees, strict=True)

    def _root(self, state: Searched, row: int, name: str) -> FinishedTree:
        """The row's dialogue, under a name of its own, with what is known of it."""
        dialogue, known = state.dialogues[row], state.trees[row]
        if dialogue is None:
            raise ValueError(f"row {row} holds no dialogue; start one, or store into it, first")
        condition = dataclasses.replace(dialogue.condition, id=name)
        root = dataclasses.replace(dialogue, condition=condition)
        if known is not None:
            return dataclasses.replace(known, root=root)
        blank = TreeNode(Tree.ROOT, Tree.NO_NODE, "decision", "", 0, 0, 0.0)
        return FinishedTree(self.scenario.name, root, (blank,))

    def ranked(self, tree: FinishedTree) -> list[TreeNode]:
        """The root's responses, the best first; as they came where no outcome could be read."""

        def merit(node: TreeNode) -> tuple[float, ...]:
            value = node.value if node.visits else -np.inf
            visits = node.visits if self._choose == "visits" else 0
            return (visits, value, -node.id)

        return sorted(tree.children(Tree.ROOT), key=merit, reverse=True)


def _names(identities: np.ndarray) -> list[str]:
    """A name for each row that tells what it is; rows that are the same are numbered."""
    seen: collections.Counter[str] = collections.Counter()
    names = []
    for parts in identities.tolist():
        name = "-".join(map(str, parts))
        names.append(f"{name}#{seen[name]}" if seen[name] else name)
        seen[name] += 1
    return names
