"""However tokens reach a context (chunks, forks, turns), it predicts what one full pass predicts.

The reference is `Transformer.__call__` over whole sequences, which knows no cache (see `tiny`).
"""

from __future__ import annotations

import dataclasses
import gc
import itertools
import weakref

import jax
import numpy as np
import pytest
from flax import nnx
from hypothesis import given, settings
from hypothesis import strategies as st

from ixjax.generation import EngineConfig, SamplingConfig, generate, passes
from ixjax.generation.forward import Weights
from ixjax.generation.sampling import uniforms
from ixjax.generation.stops import compile_stops
from ixjax.io import InputError
from ixjax.models import (
    LoraConfig,
    adapter_paths,
    init_model,
    mesh_of,
    model_of,
    one_adapter,
    weights_by_path,
)
from tests.generation import tiny
from tests.generation.near_ties import NEAR
from tests.generation.tiny import (
    CONFIG,
    FREE,
    GREEDY,
    LAYOUTS,
    ROWS,
    SEED,
    SIZES,
    STEPS,
    assert_predicts,
    draw,
    full_logprobs,
    greedy,
    joined,
    requests,
    say,
)

by_layout = pytest.mark.parametrize("layout", LAYOUTS)


@pytest.fixture
def engine():
    return tiny.engine()


def begin(engine, sequences, **options):
    return [engine.new(tokens, **options) for tokens in sequences]


# Reading.


parts = st.lists(st.tuples(*[st.integers(0, 33)] * 3), min_size=1, max_size=3)


@settings(max_examples=12)
@given(parts)
def test_any_split_predicts_what_a_full_pass_does(sizes):
    engine, sizes = tiny.engine(), [(1,) * 3, *sizes]
    sequences = draw(*np.sum(sizes, axis=0))
    contexts, read = begin(engine, [[]] * 3), np.zeros(3, int)
    for part in sizes:
        given_now = [s[at : at + n] for s, at, n in zip(sequences, read, part, strict=True)]
        engine.extend(dict(zip(contexts, given_now, strict=True)))
        engine.read(contexts)
        assert not any(context.unread for context in contexts)
        read += part
    assert_predicts(engine, contexts, sequences)


@by_layout
def test_contexts_of_any_length_are_read_in_chunks_and_may_fill_up(layout):
    engine = tiny.engine(layout=layout)
    sequences = draw(190, 130, 12, 1)
    contexts = begin(engine, [s[:n] for s, n in zip(sequences, (60, 20, 0, 1), strict=True)])
    engine.read(contexts)
    # Context 0 is almost full: the padding of its last chunk is beyond max_length.
    engine.extend({contexts[0]: sequences[0][60:186], contexts[1]: sequences[1][20:]})
    engine.read(contexts)
    engine.extend({contexts[0]: sequences[0][186:], contexts[2]: sequences[2]})
    assert_predicts(engine, contexts, sequences)


def test_each_token_is_read_once(engine):
    contexts = begin(engine, draw(20, 7, 60))
    engine.read(contexts)
    before, scores = engine.stats.copy(), engine.score(contexts, [[1]] * 3, [[[2]]] * 3)
    engine.read(contexts)
    assert (engine.stats - before).prefill_tokens == 0
    assert engine.stats.prefill_tokens == 19 + 6 + 59  # decoding and scoring read the last one
    np.testing.assert_array_equal(engine.score(contexts, [[1]] * 3, [[[2]]] * 3), scores)


def test_reads_that_fill_no_pass_wait_unless_they_are_needed(engine):
    contexts = begin(engine, draw(20, 21, 22, 23, 24))  # 4 rows of 32 tokens fill a pass
    turns = requests(contexts)
    engine.step(turns, most=1)
    assert [context.stored for context in contexts] == [19, 20, 21, 22, 0]
    found = [request.tokens for request in engine.decode(turns)]
    assert found == say(engine, begin(engine, draw(20, 21, 22, 23, 24)))


def test_a_step_without_requests_reads_all(engine):
    contexts = begin(engine, draw(20, 7, 150))
    assert engine.step([], contexts) == []
    assert not any(context.unread for context in contexts)


# Forking and shortening.


@by_layout
def test_fork_equals_independent_prefills(layout):
    engine = tiny.engine(layout=layout)
    base, more = draw(64, 7, 133), draw(3, 6, 4, seed=1)
    source = begin(engine, base)
    engine.read(source)
    forks = [engine.fork(source[i]) for i in (2, 0, 2)]
    engine.extend(dict(zip(forks, more, strict=True)))
    forked = joined([base[i] for i in (2, 0, 2)], more)
    assert_predicts(engine, forks, forked)
    engine.extend(dict(zip(source, more, strict=True)))
    assert_predicts(engine, source, joined(base, more))
    both = [*forks, *source]
    anew = begin(tiny.engine(layout=layout), [*forked, *joined(base, more)])
    assert say(engine, both) == say(anew[0].owner, anew)


def test_a_fork_shares_what_its_origin_has_read(engine):
    (tokens,) = draw(150)
    origin = engine.new(tokens)
    engine.read([origin])
    before, used = engine.stats.copy(), engine.pool.used
    forks = [engine.fork(origin) for _ in range(3)]
    assert engine.pool.used == used
    say(engine, forks)
    assert (engine.stats - before).prefill_tokens == 0
    assert engine.pool.used == used + 3  # each has copied the last, partial block
    del forks
    assert engine.pool.used == used


def test_a_shortened_context_extends_like_a_new_one(engine):
    base, more = draw(150, 7, 33), draw(9, 6, 4, seed=4)
    contexts = begin(engine, base)
    engine.read(contexts)
    for context, length in zip(contexts, (70, 99, 0), strict=True):  # none is lengthened
        engine.shorten(context, length)
    kept = [base[0][:70], base[1], []]
    assert [context.tokens for context in contexts] == kept
    engine.extend(dict(zip(contexts, more, strict=True)))
    assert_predicts(engine, contexts, joined(kept, more))


def test_a_context_that_was_freed_is_read_again(engine):
    contexts = begin(engine, draw(20, 150))
    engine.read(contexts)
    engine.free(contexts[1])
    assert engine.pool.used == 1
    assert_predicts(engine, contexts, draw(20, 150))


# Decoding.


@by_layout
def test_greedy_decoding_equals_argmax_over_full_passes(layout):
    engine, prompts = tiny.engine(layout=layout), draw(20, 7, 130, 1)
    contexts = begin(engine, prompts)
    found = say(engine, contexts, sampling=GREEDY)
    assert found == greedy(prompts)
    assert_predicts(engine, contexts, joined(prompts, found))


@by_layout
def test_sampled_tokens_are_those_of_the_teacher_forced_distribution(layout):
    """By inversion in float64, at the numbers that identity and place give; and their logprobs."""
    engine, prompts = tiny.engine(layout=layout), draw(20, 7, 130, 1)
    turns = engine.decode(requests(begin(engine, prompts), sampling=SamplingConfig()))
    answers = [request.tokens for request in turns]
    assert len({tuple(answer) for answer in answers}) == ROWS
    full = full_logprobs(joined(prompts, answers))
    keys = jax.vmap(jax.random.fold_in, (None, 0))(jax.random.key(SEED), np.arange(ROWS))
    by_token = jax.vmap(jax.vmap(jax.random.fold_in, (None, 0)), (0, None))
    drawn_at = np.asarray(uniforms(by_token(keys, np.arange(STEPS))))[..., 0]
    near = 0
    for row, (prompt, request) in enumerate(zip(prompts, turns, strict=True)):
        after = full[row][len(prompt) - 1 : len(prompt) + STEPS - 1].astype(np.float64)
        given = after[np.arange(STEPS), request.tokens]
        np.testing.assert_allclose(request.logprobs, given, atol=1e-4)
        for i, token in enumerate(request.tokens):
            cumulative = np.cumsum(np.exp(after[i]))
            border = np.abs(cumulative - drawn_at[row, i]).min() < NEAR
            near += border
            assert border or token == np.searchsorted(cumulative, drawn_at[row, i], "right")
    assert near < 3


@by_layout
def test_a_turn_ends_with_its_end_token_which_is_not_read(layout):
    engine, prompts = tiny.engine(layout=layout), draw(20, 7, 60)
    free = say(engine, begin(engine, prompts))
    ends = [free[0][2]]
    kept = [list(itertools.takewhile(lambda token: token not in ends, turn)) for turn in free]
    contexts = begin(engine, prompts)
    turns = engine.decode(requests(contexts, ends=[ends] * 3))
    for whole, short, request in zip(free, kept, turns, strict=True):
        assert request.tokens == whole[: len(short) + 1]
        assert request.ended == (len(short) < STEPS)
    assert len(turns[0].tokens) == 3
    more = draw(3, 6, 4, seed=5)
    engine.extend(dict(zip(contexts, more, strict=True)))
    assert_predicts(engine, contexts, joined(prompts, kept, more))


@by_layout
def test_a_turn_may_be_longer_than_the_turn_buffer(layout):
    engine, prompts = tiny.engine(layout=layout), draw(20, 90, 191)
    limits = (100, 100, 1)
    contexts = begin(engine, prompts)
    turns = engine.decode(requests(contexts, limits=limits))
    assert [len(request.tokens) for request in turns] == list(limits)
    now = joined(prompts, [request.tokens for request in turns])
    assert_predicts(engine, contexts[:2], now[:2])
    assert len(contexts[2]) == CONFIG.max_length
    # Also in parts that end within the buffer.
    parts = requests(begin(engine, prompts[:2]), limits=100)
    while not all(request.done for request in parts):
        engine.step([request for request in parts if not request.done], most=7, pause=False)
    assert [request.tokens for request in parts] == [request.tokens for request in turns[:2]]


@by_layout
def test_a_turn_decoded_in_parts_is_the_turn_decoded_at_once(layout):
    engine, prompts = tiny.engine(layout=layout), draw(20, 7, 60)
    whole = say(engine, begin(engine, prompts))
    contexts = begin(engine, prompts)
    turns = requests(contexts)
    assert engine.step(turns, most=3, pause=False) == []
    assert [request.tokens for request in turns] == [turn[:3] for turn in whole]
    engine.decode(turns)
    assert [request.tokens for request in turns] == whole
    assert_predicts(engine, contexts, joined(prompts, whole))


def test_decoding_pauses_once_an_eighth_of_the_batch_has_ended(engine):
    turns = requests(begin(engine, draw(20, 7, 60, 9)), limits=(2, 6, 8, 8))
    assert engine.step(turns) == turns[:1]
    assert [len(request.tokens) for request in turns] == [2, 2, 2, 2]
    assert engine.step(turns[1:], pause=False) == turns[1:]


def test_turns_beyond_the_rows_wait_and_the_shortest_dialogues_go_first(engine):
    prompts = draw(20, 7, 60, 12, 9, 33)
    turns = [
        dataclasses.replace(request, turns=number)
        for request, number in zip(
            requests(begin(engine, prompts), sampling=GREEDY), (4, 1, 2, 0, 3, 5), strict=True
        )
    ]
    engine.read([request.context for request in turns])
    engine.step(turns, most=1)
    assert [i for i, request in enumerate(turns) if request.tokens] == [1, 2, 3, 4]
    engine.decode(turns)
    assert [request.tokens for request in turns] == greedy(prompts)


def test_a_turn_that_is_given_up_can_be_taken_up_again(engine):
    prompts = draw(20, 7, 60)
    whole = say(engine, begin(engine, prompts))
    turns = requests(begin(engine, prompts))
    engine.step(turns, most=2, pause=False)
    engine.decode(turns[1:])  # without the first, which is in the batch no longer
    assert [len(request.tokens) for request in turns] == [2, STEPS, STEPS]
    engine.decode(turns[:1])
    assert [request.tokens for request in turns] == whole


@by_layout
@pytest.mark.parametrize("change", ["extend", "free", "lost"])
def test_a_context_that_changes_during_its_turn_is_read_again(layout, change):
    engine, prompts = tiny.engine(layout=layout), draw(70, 7, 130)
    contexts = begin(engine, prompts)
    turns = requests(contexts)
    engine.step(turns, most=3, pause=False)
    now = [list(context.tokens) for context in contexts]
    if change == "extend":
        engine.extend({contexts[0]: [3, 4]})
        now[0] += [3, 4]
    elif change == "free":
        engine.free(contexts[2])
    else:
        with pytest.raises(KeyboardInterrupt):
            engine.pool.update(interrupted)
    engine.decode(turns)
    later = [request.tokens[3:] for request in turns]
    assert_predicts(engine, contexts, joined(now, later))
    logprobs = full_logprobs(joined(now, later))
    for request, before, after in zip(turns, now, logprobs, strict=True):
        places = np.arange(len(before) - 1, len(before) + len(request.tokens) - 4)
        np.testing.assert_allclose(
            request.logprobs[3:], after[places, request.tokens[3:]], atol=1e-4
        )


def interrupted(arrays, **_):
    raise KeyboardInterrupt


@pytest.mark.parametrize("name", ["extend", "decode"])
@pytest.mark.parametrize("begun", [False, True], ids=["before", "after-the-pass"])
def test_a_pass_that_failed_leaves_nothing_wrong(monkeypatch, engine, begun, name):
    prompts = draw(20, 7, 60, 33)
    expected = say(engine, begin(engine, prompts))
    contexts = begin(engine, prompts)
    turns = requests(contexts)
    engine.step(turns[:2], most=3, pause=False)
    passed = getattr(passes, name)

    def fails(*given, **static):
        if begun:  # the arrays that the pass consumes are gone
            passed(*given, **static)
        raise MemoryError("no more room")

    with monkeypatch.context() as patch:
        patch.setattr(passes, name, fails)
        with pytest.raises(MemoryError):
            engine.step(turns)
    engine.decode(turns)
    assert [request.tokens for request in turns] == expected
    assert_predicts(engine, contexts, joined(prompts, expected))


def test_stop_strings_end_a_turn_at_any_split_into_tokens(engine):
    texts = [bytes([97 + i % 26]) * (1 + i // 26) for i in range(CONFIG.vocab_size)]
    prompts = draw(20, 7, 60)
    free = say(engine, begin(engine, prompts))
    stops = (b"".join(texts[token] for token in free[0])[1:4].decode(), "~")
    table = compile_stops(stops, texts, vocab_size=CONFIG.vocab_size)
    stopping = tiny.engine(stops={stops: table})
    first, *others = requests(begin(stopping, prompts))
    turns = [dataclasses.replace(first, stop=stops), *others]
    while left := [request for request in turns if not request.done]:
        stopping.step(left, most=2)
    length = next(
        n
        for n in range(1, STEPS + 1)
        if stops[0].encode() in b"".join(texts[t] for t in free[0][:n])
    )
    assert [request.tokens for request in turns] == [free[0][:length], *free[1:]]
    assert [request.ended for request in turns] == [True, False, False]
    unknown = dataclasses.replace(others[0], stop=("?",))
    with pytest.raises(ValueError, match=r"stop strings \('\?',\) are unknown"):
        stopping.decode([unknown])


def test_every_turn_has_its_own_settings_ends_and_limit(engine):
    prompts = draw(20, 7, 60)
    configs = [GREEDY, FREE, SamplingConfig(top_k=2, repetition_penalty=1.5)]
    alone = [say(engine, begin(engine, prompts), sampling=config) for config in configs]
    first, second, third = (turns[i] for i, turns in enumerate(alone))
    ends = [[first[1], 3], [], [third[4]]]
    found = say(
        engine, begin(engine, prompts), sampling=configs, ends=ends, limits=(STEPS, 2, STEPS)
    )
    assert found == [
        first[: first.index(ends[0][0]) + 1],
        second[:2],
        third[: third.index(ends[2][0]) + 1],
    ]


def test_a_repetition_penalty_counts_the_prompt_and_what_was_sampled(engine):
    torch = pytest.importorskip("torch", reason="transformers' processors need torch")
    processors = pytest.importorskip("transformers.generation.logits_process")
    processor = processors.RepetitionPenaltyLogitsProcessor(1.8)
    prompts = draw(20, 7, 33)
    config = SamplingConfig(temperature=0.0, repetition_penalty=1.8)
    say(engine, begin(engine, prompts))
    before = engine.stats.copy()
    answers = say(engine, begin(engine, prompts), sampling=config)
    assert (engine.stats - before).compilations == 0
    run = jax.jit(tiny.model().__call__)
    for prompt, answer in zip(prompts, answers, strict=True):
        whole = [*prompt, *answer]
        logits = np.asarray(run(np.array([whole + [0] * (48 - len(whole))])))
        for i, token in enumerate(answer):
            scores = torch.tensor(logits[:, len(prompt) + i - 1])
            assert token == int(processor(torch.tensor([prompt + answer[:i]]), scores).argmax())


def test_an_engine_holds_each_weight_once():
    def size(tree) -> int:
        return sum(leaf.nbytes for leaf in jax.tree.leaves(tree))

    weights = Weights.of(tiny.model(), positions=1)
    assert size((weights.outer, weights.layers)) == size(nnx.state(tiny.model()))


def test_an_engine_does_not_keep_the_model_and_can_give_it_back():
    def model():
        return init_model(CONFIG, seed=5, mesh=mesh_of(tiny.model()))

    given = model()
    before = weakref.ref(given.layers.query[...])
    engine = tiny.engine(given)
    del given
    gc.collect()
    assert before() is None
    returned, expected = nnx.state(engine.model()), nnx.state(model())
    assert jax.tree.structure(returned) == jax.tree.structure(expected)
    for a, b in zip(jax.tree.leaves(returned), jax.tree.leaves(expected), strict=True):
        np.testing.assert_array_equal(a, b)


@by_layout
def test_new_weights_read_every_context_again(layout):
    engine, prompts = tiny.engine(layout=layout), draw(20, 7, 130)
    contexts = begin(engine, prompts)
    engine.read(contexts)
    turns = requests(contexts, sampling=GREEDY)
    engine.step(turns, most=2, pause=False)
    engine.update(tiny.model(1))
    assert engine.pool.used == 0
    found = engine.decode(turns)
    begun = [request.tokens[:2] for request in found]
    assert begun == greedy(prompts, steps=2)
    rest = greedy(joined(prompts, begun), tiny.model(1), steps=STEPS - 2)
    assert [request.tokens[2:] for request in found] == rest
    assert_predicts(engine, contexts, joined(prompts, begun, rest), tiny.model(1))
    other = dataclasses.replace(CONFIG, vocab_size=51)
    with pytest.raises(ValueError, match=r"vocab_size=51.*; expected .*vocab_size=96"):
        engine.update(tiny.model(config=other))


@by_layout
def test_turns_of_two_adapters_and_of_none_share_a_batch(layout):
    adapted = tiny.model(config=dataclasses.replace(CONFIG, lora=tiny.LORA))
    engine, adapters = tiny.engine(adapted, layout=layout), (1, -1, 0)
    (prompt,) = draw(70)
    contexts = [engine.new(prompt, adapter=adapter) for adapter in adapters]
    turns = requests(contexts, sampling=GREEDY)
    assert len(engine.step(turns, pause=False)) == 3
    answers = [request.tokens for request in turns]
    assert len({tuple(answer) for answer in answers}) == 3
    assert answers == greedy([prompt] * 3, adapted, adapters=adapters)
    scores = engine.score(contexts, [[1]] * 3, [[[2]]] * 3)[:, 0]
    after = [[*prompt, *answer, 1] for answer in answers]
    expected = [row[-1, 2] for row in full_logprobs(after, adapted, adapters=adapters)]
    np.testing.assert_allclose(scores, expected, atol=1e-4)
    assert engine.fork(contexts[0]).adapter == 1


def test_an_adapter_that_is_replaced_is_the_only_one_that_changes():
    adapted, other = (
        tiny.model(seed, config=dataclasses.replace(CONFIG, lora=tiny.LORA)) for seed in (0, 1)
    )
    # The same base with the other model's adapter.
    both = model_of(adapted.config, weights_by_path(adapted) | adapters_of(other))
    engine = tiny.engine(adapted)
    (prompt,) = draw(70)
    contexts = [engine.new(prompt, adapter=adapter) for adapter in (0, 1, -1)]
    before = [r.tokens for r in engine.decode(requests(contexts, sampling=GREEDY))]
    engine.set_adapter(1, adapters_of(one_adapter(other, 1)))
    again = [engine.new(prompt, adapter=adapter) for adapter in (0, 1, -1)]
    after = [r.tokens for r in engine.decode(requests(again, sampling=GREEDY))]
    assert (after[0], after[2]) == (before[0], before[2])
    assert [after[1]] == greedy([prompt], both, adapters=(1,)) != [before[1]]
    with pytest.raises(ValueError, match="adapter is 2; expected one of"):
        engine.set_adapter(2, adapters_of(one_adapter(other, 1)))
    with pytest.raises(ValueError, match=r"layers\.\w+_lora_a is \(.*\); expected \("):
        engine.set_adapter(1, adapters_of(other))


def adapters_of(model):
    weights = weights_by_path(model)
    return {name: weights[name] for name in adapter_paths(model.config)}


@pytest.mark.parametrize(
    ("local", "layout"),
    [((True, False), "contiguous"), ((True, False), "paged"), ((True, True), "contiguous")],
)
@pytest.mark.slow
def test_local_layers_read_the_same_from_a_cache(local, layout):
    """Past the window, in chunks, decoded and scored: as one full pass."""
    config = dataclasses.replace(
        CONFIG, sliding_window=7, local_layers=local, local_rope_theta=100.0
    )
    model = tiny.model(config=config)
    engine, prompts = tiny.engine(model, layout=layout), draw(70, 3, 17)
    contexts = begin(engine, [prompt[:2] for prompt in prompts])
    engine.read(contexts)
    engine.extend({c: prompt[2:] for c, prompt in zip(contexts, prompts, strict=True)})
    answers = say(engine, contexts, sampling=GREEDY)
    assert answers == greedy(prompts, model)
    assert_predicts(engine, contexts, joined(prompts, answers), model)


def test_neither_neighbours_nor_the_row_change_a_turn(engine):
    prompt, *others = draw(20, 7, 33, 12, 35)
    first, *_ = engine.decode(requests(begin(engine, [prompt, *others[:2]]), ids=(9, 1, 2)))
    *_, last = engine.decode(requests(begin(engine, [*others[2:], prompt]), ids=(3, 4, 9)))
    assert first.tokens == last.tokens
    assert first.logprobs == last.logprobs  # to the bit


def test_another_identity_or_seed_samples_another_turn(engine):
    (prompt,) = draw(40)
    one, two, same = say(engine, begin(engine, [prompt] * 3), ids=(0, 1, 0))
    assert one == same
    assert one != two
    [other] = requests(begin(engine, [prompt]))
    [other] = engine.decode([dataclasses.replace(other, seed=SEED + 1)])
    assert other.tokens != one


# Scoring.


@by_layout
def test_scores_are_sums_of_teacher_forced_log_probabilities(layout):
    engine = tiny.engine(layout=layout)
    base, prefixes = draw(20, 7, 130, 1, 9), draw(2, 1, 4, 3, 3, seed=7)
    candidates = [draw(3, 1, 4, 0, seed=row) for row in range(5)]
    contexts = begin(engine, base)
    found = engine.score(contexts, prefixes, candidates)
    assert found.shape == (5, 4)
    assert (found[:, 3] == 0).all()  # an empty candidate
    known = joined(base, prefixes)
    for column in range(3):
        tails = [row[column] for row in candidates]
        full = full_logprobs(joined(known, tails))
        for row, (k, tail, logprobs) in enumerate(zip(known, tails, full, strict=True)):
            taken = logprobs[np.arange(len(k) - 1, len(k) + len(tail) - 1), tail]
            np.testing.assert_allclose(found[row, column], taken.sum(), atol=2e-4)
    assert_predicts(engine, contexts, base)  # nothing was kept


# What is refused.


def test_a_context_that_would_outgrow_the_model_is_refused(engine):
    first, second = begin(engine, draw(5, 60))
    message = r"holds 60 tokens; 133 more exceed .*max_length of 192"
    with pytest.raises(ValueError, match=message):
        engine.extend({first: [1], second: [1] * 133})
    assert len(first) == 5  # nothing was extended
    with pytest.raises(ValueError, match=r"holds 0 tokens; 193 more exceed .*max_length of 192"):
        engine.new([1] * 193)
    with pytest.raises(ValueError, match=message):
        engine.decode(requests([second], limits=133))
    with pytest.raises(ValueError, match=message):
        engine.score([second], [[1] * 23], [[[1], [1] * 110]])


@pytest.mark.parametrize("token", [-1, CONFIG.vocab_size])
def test_a_token_outside_the_vocabulary_is_refused_and_not_clamped(engine, token):
    context = engine.new([1])
    for use in (
        lambda: engine.new([2, token, 3]),
        lambda: engine.extend({context: [2, token, 3]}),
        lambda: engine.score([context], [[token]], [[[1]]]),
        lambda: engine.score([context], [[1]], [[[1], [3, token]]]),
    ):
        with pytest.raises(ValueError, match=rf"token {token} .*vocab_size is 96"):
            use()
    assert context.tokens == [1]


@pytest.mark.parametrize("adapter", [-2, 1, 7])
def test_an_adapter_that_does_not_exist_is_refused(engine, adapter):
    with pytest.raises(ValueError, match=f"adapter is {adapter}; the model has 0"):
        engine.new([1], adapter=adapter)
    lora = LoraConfig(rank=2, alpha=4, targets=("query",), adapters=adapter + 3)
    other = tiny.engine(tiny.model(config=dataclasses.replace(CONFIG, lora=lora)))
    with pytest.raises(ValueError, match=f"adapter is {adapter + 3}; the model has {adapter + 3}"):
        other.new([1], adapter=adapter + 3)
    assert other.new([1], adapter=adapter + 2).adapter == adapter + 2


def test_a_context_of_another_engine_is_refused(engine):
    [context] = begin(tiny.engine(), draw(5))
    for use in (
        lambda: engine.fork(context),
        lambda: engine.extend({context: [1]}),
        lambda: engine.decode(requests([context])),
        lambda: engine.score([context], [[1]], [[[1]]]),
        lambda: engine.read([context]),
        lambda: engine.step([], [context]),
        lambda: engine.shorten(context, 2),
    ):
        with pytest.raises(ValueError, match="made by another engine"):
            use()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"limit": 0}, r"Request.limit is 0; expected an integer of 1"),
        ({"limit": 2.5}, r"Request.limit is 2.5; expected an integer of 1"),
        ({"end_ids": (999,)}, r"token 999 was given"),
        ({"identity": ()}, r"Request.identity has 0 numbers; expected 1 to 8"),
        ({"identity": (0,) * 9}, r"Request.identity has 9 numbers; expected 1 to 8"),
    ],
)
def test_a_request_that_cannot_be_met_is_refused(engine, changes, message):
    [request] = requests(begin(engine, draw(5)))
    with pytest.raises(ValueError, match=message):
        engine.decode([dataclasses.replace(request, **changes)])


def test_reads_may_fill_the_passes_before_any_turn_is_ready(engine):
    [request] = requests(begin(engine, draw(5)))
    reads = begin(engine, draw(*[33] * 12))
    done = []
    for _ in range(200):
        done = engine.step([request], [context for context in reads if context.unread])
        if done:
            break
    assert done == [request]


def test_a_context_that_many_wait_for_is_read(engine):
    [request] = requests(begin(engine, draw(20)))
    [context] = begin(engine, draw(9))
    done = engine.step([request], [context] * 9)
    assert done or not context.unread


def test_nothing_to_score_and_a_negative_length_are_refused(engine):
    [context] = begin(engine, draw(5))
    with pytest.raises(ValueError, match="1 contexts and no candidate"):
        engine.score([context], [[1]], [[]])
    with pytest.raises(ValueError, match="length is -1; expected 0 or more"):
        engine.shorten(context, -1)


def test_requests_need_a_context_each_with_a_token(engine):
    [context] = begin(engine, draw(5))
    with pytest.raises(ValueError, match=r"two requests share a context; fork it"):
        engine.decode(requests([context, context]))
    with pytest.raises(ValueError, match="context has no token; extend it"):
        engine.decode(requests([engine.new()]))


def test_scores_that_are_not_given_for_each_context_are_refused(engine):
    contexts = begin(engine, draw(5, 6))
    for prefixes, candidates, message in (
        ([[1]], [[[1]]] * 2, "prefixes has 1 entries; expected 2"),
        ([[1]] * 2, [[[1]]], "candidates has 1 entries; expected 2"),
        ([[1]] * 2, [[[1]], [[1], [2]]], "context 1 has 2 candidates, context 0 has 1; pad with"),
        ([[1], []], [[[1]]] * 2, "context 1: its prefix has no token"),
    ):
        with pytest.raises(ValueError, match=message):
            engine.score(contexts, prefixes, candidates)
    with pytest.raises(ValueError, match="context 0: it has no token"):
        engine.score([engine.new()], [[1]], [[[1]]])


@pytest.mark.parametrize(
    ("field", "value", "least"),
    [
        ("rows", 0, 1),
        ("steps", 0, 1),
        ("in_flight", 0, 1),
        ("prefill_tokens", 0, 1),
        ("pool_tokens", -1, 0),
    ],
)
def test_sizes_below_the_least_are_refused(field, value, least):
    with pytest.raises(InputError, match=rf"engine.{field} is {value}; expected {least}"):
        EngineConfig(**{field: value})


def test_an_unknown_layout_is_refused():
    with pytest.raises(InputError, match=r"engine.layout is 'flat'; expected .*paged"):
        EngineConfig(layout="flat")


# Whole prompts.


def test_generate_continues_each_prompt():
    prompts = draw(20, 7, 33, 130)
    more = {"max_new_tokens": STEPS, "seed": 0, "engine_config": SIZES}
    found = generate(tiny.model(), prompts, GREEDY, **more)
    assert found == greedy(prompts)
    end = found[0][2]
    ended = generate(tiny.model(), prompts, GREEDY, end_ids=[end], **more)
    assert ended[0] == found[0][: found[0].index(end) + 1]
    none = generate(tiny.model(), prompts, GREEDY, **more | {"max_new_tokens": 0})
    assert none == [[]] * 4


@pytest.mark.parametrize("prompts", [[], [[1], []]])
def test_generate_refuses_prompts_without_a_token(prompts):
    with pytest.raises(ValueError, match="at least one prompt, each with at least one token"):
        generate(tiny.model(), prompts, GREEDY, max_new_tokens=5, seed=0)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"sampling": SamplingConfig(stop=("User:",))}, r"sampling.stop is \('User:',\)"),
        ({"sampling": [GREEDY, SamplingConfig(stop=("~",))]}, r"sampling.stop is \('~',\)"),
        ({"sampling": [GREEDY]}, "sampling has 1 entries; expected 2"),
        ({"adapters": [0]}, "adapters has 1 entries; expected 2"),
        ({"max_new_tokens": -1}, "max_new_tokens is -1"),
        ({"max_new_tokens": 256}, "a prompt of 1 tokens and max_new_tokens=256 exceed"),
        ({"prompts": [[1, 99]]}, "token 99"),
        ({"adapters": 5}, "adapter is 5; the model has 0"),
    ],
)
def test_generate_refuses_what_would_have_no_effect(changes, message):
    given = {"prompts": [[1], [2]], "sampling": GREEDY, "max_new_tokens": 2} | changes
    with pytest.raises(ValueError, match=message):
        generate(tiny.model(), seed=0, **given)


@pytest.mark.parametrize("seed", [-1, 1 << 32])
def test_any_integer_is_a_seed_by_its_last_32_bits(seed):
    prompts, same = draw(20, 7, 33, 9), seed & 0xFFFFFFFF
    found = [
        generate(tiny.model(), prompts, FREE, max_new_tokens=STEPS, seed=s, engine_config=SIZES)
        for s in (seed, same)
    ]
    assert found[0] == found[1]
