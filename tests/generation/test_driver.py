"""The driver serves what tasks wait for, in any order; results depend on the tasks alone."""

from __future__ import annotations

import dataclasses
from typing import ClassVar

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ixjax.generation import Driver, Effect, run_all, run_one, together, wait
from ixjax.generation.driver import Kind


@dataclasses.dataclass(eq=False)
class Ask(Effect):
    """An effect whose result is `answer(value)`; serving it is logged."""

    value: int
    log: list
    of: str = "a"
    size: int = 3
    most: int = 1 << 30  # served in one call
    turns: int = 0
    kind: ClassVar[Kind] = "turns"

    @property
    def group(self):
        return (type(self), self.of)

    @property
    def fills(self):
        return self.size

    def serve(self, effects):
        self.log.append((self.of, len(effects)))
        return [(effect, answer(effect.value)) for effect in effects[: self.most]]


class Tree(Ask):
    kind: ClassVar[Kind] = "trees"


class Outcome(Ask):
    kind: ClassVar[Kind] = "outcomes"


class Blocked(Ask):
    @property
    def ready(self):
        return False


def answer(value: int) -> int:
    return 7 * value % 11


def walk(number, steps, log, *, kinds=(Ask, Tree, Outcome), most=1 << 30):
    """A task of some steps, each after the last; every third has two children."""
    total = number
    for step in range(steps):
        kind = kinds[(number + step) % len(kinds)]
        total += yield from wait(kind(total, log, most=most, turns=step))
        if step % 3 == 2:
            parts = [walk(total + i, 1, log, kinds=kinds, most=most) for i in range(2)]
            total += sum((yield from together(parts)))
    return total


def plain(number, steps) -> int:
    """What `walk` returns, step by step."""
    total = number
    for step in range(steps):
        total += answer(total)
        if step % 3 == 2:
            total += sum(plain(total + i, 1) for i in range(2))
    return total


@given(
    st.lists(st.tuples(st.integers(0, 50), st.integers(0, 7)), max_size=12),
    st.integers(1, 13),
    st.integers(1, 4),
    st.randoms(use_true_random=False),
)
def test_results_are_those_of_each_task_alone_in_any_order(given_tasks, at_once, most, random):
    expected = [plain(number, steps) for number, steps in given_tasks]
    tasks = (walk(number, steps, [], most=most) for number, steps in given_tasks)
    assert run_all(tasks, at_once=at_once) == expected
    order = list(range(len(given_tasks)))
    random.shuffle(order)
    shuffled = (walk(*given_tasks[i], [], most=most) for i in order)
    assert run_all(shuffled, at_once=at_once) == [expected[i] for i in order]


def test_one_task_is_run_to_its_result():
    assert run_one(walk(4, 7, [])) == plain(4, 7)


def test_children_run_at_once_and_results_keep_their_order():
    log = []

    def child(number):
        for _ in range(3 - number):
            yield from wait(Ask(number, log, size=9))
        return number

    def parent():
        assert (yield from together([])) == []
        return (yield from together([child(number) for number in range(3)]))

    assert run_one(parent()) == [0, 1, 2]
    assert log == [("a", 3), ("a", 2), ("a", 1)]


def test_what_waits_for_one_kind_is_served_together():
    log = []
    run_all((walk(i, 2, log, kinds=(Ask,)) for i in range(5)), at_once=5)
    assert log == [("a", 5), ("a", 5)]


def one(effect):
    return (yield from wait(effect))


def served(*effects) -> list:
    """The groups in the order in which they are served."""
    log = []
    for effect in effects:
        effect.log = log
    run_all([one(effect) for effect in effects], at_once=len(effects))
    return [of for of, _ in log]


def test_trees_come_first_and_outcomes_once_they_fill_a_pass_or_are_all():
    def ask(kind, of, **more):
        return kind(1, [], of, **more)

    few = [ask(Outcome, "o"), ask(Ask, "t"), ask(Tree, "tree")]
    assert served(*few) == ["tree", "t", "o"]
    many = [*(ask(Outcome, "o") for _ in range(3)), ask(Ask, "t"), ask(Tree, "tree")]
    assert served(*many) == ["tree", "o", "t"]


def test_the_engine_that_fills_its_batch_goes_first_then_the_one_with_fewest_turns():
    def turns(of, *counts):
        return [Ask(1, [], of, turns=count) for count in counts]

    assert served(*turns("one", 5, 6), *turns("two", 9, 9, 9)) == ["two", "one"]
    assert served(*turns("one", 5, 6), *turns("two", 9, 2)) == ["two", "one"]
    assert served(*turns("one", 1, 6), *turns("two", 9, 2)) == ["one", "two"]


def test_an_engine_goes_on_while_it_fills_its_batch():
    log = []
    tasks = [walk(0, 2, log, kinds=(Ask,)) for _ in range(4)]
    others = [one(Ask(1, log, "b", size=2)) for _ in range(4)]
    run_all([*tasks, *others], at_once=8)
    assert log == [("b", 4), ("a", 4), ("a", 4)] or log == [("a", 4), ("a", 4), ("b", 4)]


def test_at_once_and_the_order_of_the_queue_are_respected():
    begun, running, most = [], 0, 0

    def task(number):
        nonlocal running, most
        begun.append(number)
        running += 1
        most = max(most, running)
        for _ in range(1 + number % 3):
            yield from wait(Ask(number, []))
        running -= 1
        return number

    made = []

    def queue():
        for number in range(10):
            made.append(number)
            yield task(number)

    for number, result in Driver().run(queue(), at_once=4):
        assert number == result
        assert len(made) <= len(begun) + 1 <= 11  # taken only as there is room
    assert begun == list(range(10))
    assert most == 4


def test_a_task_starts_only_when_it_may():
    done, log = [], []

    def may_start(number):
        return number < 2 * len(done) + 2  # two more for each that is done

    def task(number):
        log.append((number, len(done)))
        yield from wait(Ask(number, []))
        return number

    for number, _ in Driver().run((task(i) for i in range(7)), at_once=9, may_start=may_start):
        done.append(number)
    assert sorted(done) == list(range(7))
    assert all(number < 2 * before + 2 for number, before in log)


class Closings:
    """Tasks that note how they end."""

    def __init__(self):
        self.closed = []

    def task(self, number, effect):
        try:
            return (yield from wait(effect))
        finally:
            self.closed.append(number)

    def parent(self, number, tasks):
        try:
            return (yield from together(tasks))
        finally:
            self.closed.append(number)


def test_an_exception_of_a_task_closes_all_others():
    closings = Closings()

    def fails():
        yield from wait(Tree(1, []))
        raise OSError("disk full")

    children = [closings.task(i, Ask(i, [])) for i in range(3)]
    tasks = [closings.parent(3, children), closings.task(4, Outcome(1, [])), fails()]
    with pytest.raises(OSError, match="disk full"):
        run_all(tasks, at_once=3)
    assert sorted(closings.closed) == list(range(5))


def test_an_exception_while_serving_closes_all_tasks():
    closings = Closings()

    class Failing(Ask):
        def serve(self, effects):
            raise MemoryError("no more room")

    tasks = [closings.task(0, Failing(1, [])), closings.task(1, Outcome(1, []))]
    with pytest.raises(MemoryError):
        run_all(tasks, at_once=2)
    assert sorted(closings.closed) == [0, 1]


def test_a_run_that_is_left_closes_its_tasks():
    closings = Closings()
    tasks = [closings.task(i, [Tree, Outcome][i](i, [])) for i in range(2)]
    run = Driver().run(tasks, at_once=2)
    assert next(run) == (0, answer(0))
    assert closings.closed == [0]
    run.close()
    assert closings.closed == [0, 1]


def test_tasks_that_wait_for_each_other_are_an_error():
    closings = Closings()
    tasks = [closings.task(i, Blocked(i, [])) for i in range(2)]
    with pytest.raises(RuntimeError, match="2 tasks wait for each other"):
        run_all(tasks, at_once=2)
    assert sorted(closings.closed) == [0, 1]


def test_what_is_not_ready_waits_for_others():
    log = []

    class Gate(Ask):
        @property
        def ready(self):
            return ("t", 1) in log

    assert run_all([one(Gate(1, log, "g")), one(Ask(1, log, "t"))], at_once=2) == [7, 7]
    assert log == [("t", 1), ("g", 1)]


def test_seconds_are_added_up_by_kind():
    seconds = {"trees": 0.0, "turns": 1.0, "outcomes": 0.0}
    dict(Driver(seconds).run([one(Ask(1, [])), one(Tree(1, []))], at_once=2))
    assert seconds["turns"] > 1
    assert seconds["trees"] > 0
    assert seconds["outcomes"] == 0
