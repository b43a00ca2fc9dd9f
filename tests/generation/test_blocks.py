"""Blocks are shared, copied when they are written to, and evicted; no context notices.

The pool's bookkeeping is held against a plain model: every context keeps its own list of tokens,
and "keys" are the tokens themselves. What is decoded after evictions is compared with engines that
have room for everything.
"""

from __future__ import annotations

import dataclasses
import gc

import numpy as np
import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)

from ixjax.generation import BlockPool, EngineStats
from ixjax.generation import cache as kv
from tests.generation import tiny
from tests.generation.tiny import (
    CONFIG,
    LAYOUTS,
    assert_predicts,
    draw,
    full_logprobs,
    greedy,
    joined,
    requests,
    say,
)


class PlainPool(BlockPool):
    """A pool whose arrays are NumPy's and whose keys are tokens: it compiles nothing."""

    def __init__(self, stats: EngineStats, limit: int):
        super().__init__(CONFIG, stats, limit=limit)
        self._allocate = plain_arrays

    def update(self, function, *args, **static):
        super().update(plain_grow if function is kv.grow else function, *args, **static)


def plain_arrays(blocks: int) -> list[kv.Layer]:
    return [kv.Layer(*(np.full((blocks, 1, 1, kv.BLOCK), -1) for _ in range(2)))]


def plain_grow(arrays, *, more, mesh):
    (old,), (new,) = arrays, plain_arrays(more)
    return [kv.Layer(*map(np.concatenate, zip(old, new, strict=True)))]


def plain_write(arrays, spans, *, mesh):
    """Write entry by entry, as a CPU does; an accelerator reads all of them first."""
    (before, _), keys = arrays[0], arrays[0].keys.copy()
    for span, tokens in spans:
        old = keys[span.source]
        np.testing.assert_array_equal(old, before[span.source])  # the two orders agree
        keys[span.block] = old
        columns = slice(span.offset, span.offset + span.columns)
        keys[span.block, 0, 0, columns] = tokens[span.first : span.first + span.columns]
    written = [span.block for span, _ in spans]
    assert len(set(written)) == len(written)
    return [kv.Layer(keys, keys)]


class Pool(RuleBasedStateMachine):
    """Random use of a pool; `known` is the plain model: (context, its tokens)."""

    @initialize(limit=st.sampled_from([0, 3, 5, 20]))
    def make(self, limit):
        self.stats = EngineStats()
        self.pool, self.limit = PlainPool(self.stats, limit), limit
        self.known, self.next, self.overfull = [], 0, False

    def tokens(self, count):
        self.next += count
        return list(range(self.next - count, self.next))

    def pick(self, number):
        return self.known[number % len(self.known)]

    @rule(count=st.integers(0, 150), read=st.booleans())
    def new(self, count, read):
        tokens = self.tokens(count)
        self.known.append((self.pool.new(tokens, 0, self), tokens))
        if read:
            self.read({len(self.known) - 1}, 150)

    some = precondition(lambda self: self.known)

    @some
    @rule(number=st.integers(0, 9))
    def fork(self, number):
        context, tokens = self.pick(number)
        self.known.append((self.pool.fork(context), list(tokens)))

    @some
    @rule(number=st.integers(0, 9), count=st.integers(1, 90))
    def extend(self, number, count):
        context, tokens = self.pick(number)
        more = self.tokens(count)
        context.tokens += more
        tokens += more

    @some
    @rule(numbers=st.sets(st.integers(0, 9), min_size=1, max_size=3), most=st.integers(1, 128))
    def read(self, numbers, most):
        """As a pass does: contexts are pinned, room is made for all, then all are written."""
        chosen = list(dict.fromkeys(self.pick(n)[0] for n in sorted(numbers)))
        held = {context: context.used for context, _ in self.known if context.blocks}
        before, size = self.stats.copy(), self.pool.size
        for context in chosen:
            context.pins += 1
        spans = []
        for context in chosen:
            now = context.tokens[context.stored : context.stored + most]
            spans += [(span, now) for span in self.pool.extend(context, len(now))]
        if spans:
            self.pool.update(plain_write, spans)
        # The least recently used lose their blocks, and they are counted.
        evicted = {context for context in held if not context.blocks}
        stay = [used for context, used in held.items() if context.blocks and not context.pins]
        assert not any(context.pins for context in evicted)
        assert max((held[context] for context in evicted), default=0) < min(stay, default=1 << 60)
        assert (self.stats - before).evictions == len(evicted)
        if not self.limit:
            assert not evicted
        elif self.pool.size > max(size, self.limit):  # only if all of it is in use
            assert not stay
            self.overfull = True
        for context in chosen:
            context.pins -= 1

    @some
    @rule(number=st.integers(0, 9), length=st.integers(0, 200))
    def shorten(self, number, length):
        context, tokens = self.pick(number)
        del context.tokens[length:], tokens[length:]
        self.pool.shorten(context, len(tokens))

    @some
    @rule(number=st.integers(0, 9))
    def free(self, number):
        self.pool.release(self.pick(number)[0])

    @some
    @rule(number=st.integers(0, 9), pin=st.booleans())
    def pin(self, number, pin):
        self.pick(number)[0].pins = int(pin)

    @some
    @rule(number=st.integers(0, 9))
    def drop(self, number):
        """Forget the handle: its blocks are given back."""
        self.known.remove(self.pick(number))

    @invariant()
    def contexts_hold_their_tokens(self):
        for context, tokens in self.known:
            assert context.tokens == tokens
            assert len(context.blocks) == -(-context.stored // kv.BLOCK)
            keys = [self.pool.arrays[0].keys[block, 0, 0] for block in context.blocks]
            stored = np.concatenate(keys)[: context.stored] if keys else []
            np.testing.assert_array_equal(stored, tokens[: context.stored])

    @invariant()
    def blocks_are_held_once_each_and_none_leaks(self):
        held = {block for context, _ in self.known for block in context.blocks}
        assert self.pool.used == len(held)
        assert self.overfull or not self.limit or self.pool.size <= self.limit

    def teardown(self):
        if hasattr(self, "known"):
            self.known.clear()
            assert self.pool.used == 0


def test_random_use_of_a_pool_equals_lists_of_tokens():
    run_state_machine_as_test(
        Pool, settings=settings(max_examples=60, stateful_step_count=30, deadline=None)
    )


def test_the_context_that_was_used_longest_ago_is_evicted():
    stats = EngineStats()
    pool = PlainPool(stats, 3)
    one, two, three, four = (pool.new(range(64), 0, None) for _ in range(4))
    for context in (one, two, three):
        pool.extend(context, 64)
    fork = pool.fork(one)  # uses it
    pool.extend(four, 64)
    assert [context.stored for context in (one, two, three, four, fork)] == [64, 0, 64, 64, 64]
    assert (pool.size, pool.used, stats.evictions) == (3, 3, 1)
    pool.extend(two, 64)
    assert [context.stored for context in (one, two, three, four, fork)] == [64, 64, 0, 64, 64]
    for context in (one, two, four):
        context.pins += 1
    pool.extend(three, 64)  # the fork goes, but its block is another's too: one more is made
    assert (pool.size, stats.evictions, fork.stored, one.stored) == (6, 3, 0, 64)


def test_an_interrupted_write_loses_the_arrays_and_every_context_is_read_again():
    pool = PlainPool(EngineStats(), 0)
    context, other = pool.new(range(70), 0, None), pool.new(range(3), 0, None)
    pool.extend(context, 70)

    def fails(arrays, *, mesh):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        pool.update(fails)
    assert (pool.size, pool.used, context.stored, context.blocks) == (0, 0, 0, [])
    assert [span.block for span in pool.extend(other, 3)] == [0]


def test_a_dropped_context_and_one_in_a_cycle_give_their_blocks_back():
    pool = PlainPool(EngineStats(), 0)
    context, cycle = pool.new(range(70), 0, None), pool.new(range(70), 0, None)
    for each in (context, cycle):
        pool.extend(each, 70)
    cycle.itself = cycle
    assert pool.used == 4
    del context, each
    gc.collect()
    assert pool.used == 2
    del cycle
    gc.collect()
    assert pool.used == 0


def test_room_that_is_reserved_is_not_made_again():
    pool = PlainPool(EngineStats(), 0)
    pool.reserve(20 * kv.BLOCK)
    size = pool.size
    assert size >= 20
    assert pool.used == 0
    contexts = [pool.new(range(64), 0, None) for _ in range(20)]
    for context in contexts:
        pool.extend(context, 64)
    assert (pool.size, pool.used) == (size, 20)
    limited = PlainPool(EngineStats(), 6)
    limited.reserve(20 * kv.BLOCK)
    assert limited.size == 6


# With an engine.


def play(engine, rounds=3) -> list[list[list[int]]]:
    """Three rounds of turns in eight contexts, two of them forks; the contexts grow to 3 blocks."""
    contexts = [engine.new(tokens) for tokens in draw(60, 130, 70, 20, 90, 65)]
    said = [say(engine, contexts)]
    contexts += [engine.fork(contexts[1]), engine.fork(contexts[2])]
    for number in range(1, rounds):
        heard = draw(9, 3, 12, 20, 7, 5, 8, 8, seed=number)
        engine.extend(dict(zip(contexts, heard, strict=True)))
        order = np.random.default_rng(number).permutation(8).tolist()
        ids = [10 * number + i for i in order]
        found = say(engine, [contexts[i] for i in order], ids=ids)
        said.append([found[order.index(i)] for i in range(8)])
    return said


def test_contexts_that_were_evicted_are_read_again_and_say_the_same():
    free, full = tiny.engine(), tiny.engine(pool_tokens=8 * kv.BLOCK)
    assert play(full) == play(free)
    assert free.stats.evictions == 0
    assert full.stats.evictions > 3
    assert full.stats.prefill_tokens > free.stats.prefill_tokens
    assert free.stats.report(1.0)["evictions"] == 0
    assert full.stats.report(1.0)["evictions"] == full.stats.evictions
    # The rows of the batch were in use at once, and no more is kept than they needed.
    assert full.pool.size <= 2 * 8


def test_a_pool_too_small_for_all_that_is_scored_scores_the_same():
    given = draw(60, 130, 70, 20, 150, 65)
    asked = [[[t] for t in row] for row in np.random.default_rng(1).integers(0, 96, (6, 8))]
    scores = []
    for pool_tokens in (0, 5 * kv.BLOCK):
        engine = tiny.engine(pool_tokens=pool_tokens)
        contexts = [engine.new(tokens) for tokens in given]
        scores.append(engine.score(contexts, [[1]] * 6, asked))
    assert engine.stats.evictions > 0
    np.testing.assert_allclose(*scores, atol=1e-5)


def test_both_layouts_say_the_same():
    found = {}
    for layout in LAYOUTS:
        engine = tiny.engine(layout=layout)
        assert layout in str(engine)
        contexts = [engine.new(tokens) for tokens in draw(60, 110, 70, 20)]
        turns = engine.decode(requests(contexts, limits=70))
        forks = [engine.fork(context) for context in contexts]
        engine.extend({context: [3, 4] for context in forks})
        turns += engine.decode(requests(forks, ids=(7, 8, 9, 10), limits=1))
        found[layout] = turns
    one, other = found.values()
    assert [request.tokens for request in one] == [request.tokens for request in other]
    logprobs = [np.concatenate([request.logprobs for request in turns]) for turns in (one, other)]
    np.testing.assert_allclose(*logprobs, atol=1e-5)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_two_models_of_one_shape_share_a_pool(layout):
    policy = tiny.engine(layout=layout)
    user = tiny.engine(tiny.model(1), layout=layout, pool=policy.pool)
    prompts = draw(20, 7, 130)
    ours, theirs = ([e.new(tokens) for tokens in prompts] for e in (policy, user))
    turns = [requests(contexts, sampling=tiny.GREEDY) for contexts in (ours, theirs)]
    while left := [[r for r in side if not r.done] for side in turns]:
        if not any(left):
            break
        for engine, side in zip((policy, user), left, strict=True):
            engine.step(side, most=3, pause=False)  # both have turns in their batches
    said = [[request.tokens for request in side] for side in turns]
    assert said == [greedy(prompts), greedy(prompts, tiny.model(1))]
    assert_predicts(policy, ours, joined(prompts, said[0]))
    assert_predicts(user, theirs, joined(prompts, said[1]), tiny.model(1))
    # New weights of one are no reason to read the other's contexts again.
    before = user.stats.copy()
    held = user.pool.used
    policy.update(tiny.model(2))
    assert user.pool.used == held // 2
    user.read(theirs)
    assert (user.stats - before).prefill_tokens == 0
    assert_predicts(user, theirs, joined(prompts, said[1]), tiny.model(1))
    assert_predicts(policy, ours, joined(prompts, said[0]), tiny.model(2))


def test_a_pool_for_models_of_another_shape_is_refused():
    pool = tiny.engine().pool
    wider = dataclasses.replace(CONFIG, num_kv_heads=4)
    with pytest.raises(ValueError, match=r"\(2, 2, 8, .*this one has \(2, 4, 8"):
        tiny.engine(tiny.model(config=wider), pool=pool)


def test_logprobs_after_an_eviction_are_teacher_forced_ones():
    engine = tiny.engine(pool_tokens=5 * kv.BLOCK)
    prompts = draw(60, 130, 70, 20)
    contexts = [engine.new(tokens) for tokens in prompts]
    engine.read(contexts)
    for context in contexts:
        engine.free(context)
    turns = engine.decode(requests(contexts))
    full = full_logprobs(joined(prompts, [request.tokens for request in turns]))
    for prompt, request, after in zip(prompts, turns, full, strict=True):
        places = np.arange(len(prompt) - 1, len(prompt) + len(request.tokens) - 1)
        np.testing.assert_allclose(request.logprobs, after[places, request.tokens], atol=1e-4)
