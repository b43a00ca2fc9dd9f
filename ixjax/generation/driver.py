"""Tasks, and the one loop that runs many of them at once.

A tree, a dialogue, a scripted user and best-of-n are generators. Each yields an `Effect`, waits,
and receives its result. The driver advances every task until it waits, groups the effects, and
serves one group at a time: tree arithmetic as one jitted call over all waiting trees, turns by the
engine that can fill its decode batch, outcomes once many are due. The order in which tasks advance
does not change their results.
"""

from __future__ import annotations

import abc
import collections
import dataclasses
import time
from collections.abc import Callable, Generator, Hashable, Iterable, Iterator, Sequence
from typing import Any, ClassVar, Literal, TypeVar

T = TypeVar("T")
Kind = Literal["trees", "turns", "outcomes"]
Task = Generator["Effect | Together", Any, T]


class Effect(abc.ABC):
    """Work that a task waits for.

    Attributes:
        kind: `trees` are served as soon as no task can advance; `outcomes` once they fill a pass,
            or if no turns are awaited; else `turns`.
        turns: turns of the dialogue so far; the engine whose dialogues have the fewest goes first.
    """

    kind: ClassVar[Kind]
    turns: int = 0

    @property
    def ready(self) -> bool:
        """Return whether the effect can be served now; equal for all effects of a group."""
        return True

    @property
    @abc.abstractmethod
    def group(self) -> Hashable:
        """Return a key that is equal for effects that are served together."""

    @property
    @abc.abstractmethod
    def fills(self) -> int:
        """Return how many effects of the group fill a batch."""

    @abc.abstractmethod
    def serve(self, effects: Sequence[Any]) -> Iterable[tuple[Effect, Any]]:
        """Serve at least one effect of this one's group; return those served and their results."""


@dataclasses.dataclass(frozen=True)
class Together:
    """Tasks to run at once; the task that yields it is sent the list of their results."""

    tasks: Sequence[Task[Any]]


def wait(effect: Effect) -> Task[Any]:
    """Wait for an effect; return its result."""
    return (yield effect)


def together(tasks: Sequence[Task[T]]) -> Task[list[T]]:
    """Run tasks at once; return their results in order."""
    return (yield Together(tasks))


def run_one(task: Task[T]) -> T:
    """Run one task to its end; return its result."""
    [(_, result)] = Driver().run([task], at_once=1)
    return result


def run_all(tasks: Iterable[Task[T]], *, at_once: int) -> list[T]:
    """Run tasks, at most `at_once` at a time; return their results in order."""
    found = dict(Driver().run(tasks, at_once=at_once))
    return [found[number] for number in range(len(found))]


@dataclasses.dataclass(eq=False)
class _Node:
    """A task in progress.

    number: index among the caller's tasks, or among its siblings.
    parent: the task that waits for it.
    results: of its children.
    missing: children that are not done.
    """

    task: Task[Any]
    number: int
    parent: _Node | None = None
    results: list[Any] = dataclasses.field(default_factory=list)
    missing: int = 0


class Driver:
    """Runs tasks; see the module.

    Args:
        seconds: totals by kind, to which the time of each effect is added.
    """

    def __init__(self, seconds: dict[str, float] | None = None) -> None:
        self._seconds = collections.defaultdict(float) if seconds is None else seconds
        self._ready: collections.deque[tuple[_Node, Any]] = collections.deque()
        self._waiting: dict[Hashable, dict[Effect, _Node]] = {}
        self._done: list[tuple[int, Any]] = []
        self._last: Hashable = None
        self._nodes: set[_Node] = set()

    def run(
        self,
        tasks: Iterable[Task[T]],
        *,
        at_once: int,
        may_start: Callable[[int], bool] = lambda number: True,
    ) -> Iterator[tuple[int, T]]:
        """Run tasks; yield the number and the result of each as it is done.

        Args:
            tasks: started one by one as others are done.
            at_once: most tasks in progress.
            may_start: whether task `number` may start yet; asked again when a task is done.
        """
        queue, started, running = iter(tasks), 0, 0
        exhausted = False
        try:
            while True:
                while running < at_once and not exhausted and may_start(started):
                    task = next(queue, None)
                    if task is None:
                        exhausted = True
                        break
                    self._start(_Node(task, started))
                    started, running = started + 1, running + 1
                self._advance()
                while self._done:
                    running -= 1
                    yield self._done.pop(0)
                if self._waiting and not self._ready:
                    self._serve()
                elif not running and exhausted:
                    return
                elif not running and not may_start(started):
                    raise RuntimeError(f"task {started} may not start, and none is in progress")
        finally:
            self._close()

    def _start(self, node: _Node) -> None:
        self._nodes.add(node)
        self._ready.append((node, None))

    def _advance(self) -> None:
        """Advance every ready task until all wait."""
        while self._ready:
            node, value = self._ready.popleft()
            try:
                found = node.task.send(value)
            except StopIteration as end:
                self._finish(node, end.value)
                continue
            if isinstance(found, Together):
                node.results, node.missing = [None] * len(found.tasks), len(found.tasks)
                for number, task in enumerate(found.tasks):
                    self._start(_Node(task, number, node))
                if not found.tasks:
                    self._ready.append((node, []))
            else:
                self._waiting.setdefault(found.group, {})[found] = node

    def _finish(self, node: _Node, result: Any) -> None:
        self._nodes.discard(node)
        parent = node.parent
        if parent is None:
            self._done.append((node.number, result))
            return
        parent.results[node.number] = result
        parent.missing -= 1
        if not parent.missing:
            self._ready.append((parent, parent.results))

    def _serve(self) -> None:
        """Serve one group of effects."""
        group = self._next_group()
        waiting = self._waiting[group]
        effects = list(waiting)
        start = time.perf_counter()
        served = list(effects[0].serve(effects))
        self._seconds[effects[0].kind] += time.perf_counter() - start
        for effect, result in served:
            self._ready.append((waiting.pop(effect), result))
        if not waiting:
            del self._waiting[group]

    def _next_group(self) -> Hashable:
        """Return the group to serve next."""
        kinds: dict[Kind, dict[Hashable, list[Effect]]] = collections.defaultdict(dict)
        for group, waiting in self._waiting.items():
            effects = list(waiting)
            if effects[0].ready:
                kinds[effects[0].kind][group] = effects
        if not kinds:
            raise RuntimeError(f"{len(self._nodes)} tasks wait for each other; none can go on")
        filled = {
            group: len(effects)
            for found in kinds.values()
            for group, effects in found.items()
            if len(effects) >= effects[0].fills
        }
        if kinds["trees"]:
            return next(iter(kinds["trees"]))
        for group in kinds["outcomes"]:
            if group in filled or not kinds["turns"]:
                return group
        # An engine continues while it fills its batch: the others then read many turns at once.
        if self._last not in kinds["turns"] or self._last not in filled:
            fewest = {g: min(e.turns for e in found) for g, found in kinds["turns"].items()}
            full = [group for group in kinds["turns"] if group in filled]
            # If no engine fills a batch, the one whose dialogues have the fewest turns goes first.
            self._last = (
                max(full, key=filled.__getitem__) if full else min(fewest, key=fewest.__getitem__)
            )
        return self._last

    def _close(self) -> None:
        """Close the tasks that are not done."""
        for node in self._nodes:
            node.task.close()
        self._nodes.clear()
        self._ready.clear()
        self._waiting.clear()
