"""However tokens reach a row (chunks, forks, decoding), it predicts what one full pass predicts.

The reference is `Transformer.__call__` over the whole sequence, which knows no cache.
"""

from __future__ import annotations

import dataclasses
import itertools

import jax
import numpy as np
import pytest
from flax import nnx
from hypothesis import given, settings
from hypothesis import strategies as st

from ixjax.generation import Engine, EngineConfig, SamplingConfig, Turns, generate
from ixjax.generation.passes import Weights
from ixjax.generation.stops import compile_stops
from ixjax.models import LoraConfig, ModelConfig
from tests.models.tiny import random_model

CONFIG = ModelConfig(
    vocab_size=50,
    hidden_size=16,
    num_layers=2,
    num_heads=4,
    num_kv_heads=2,
    head_dim=4,
    intermediate_size=24,
    max_length=160,
    attention_bias=True,
)
MODEL = random_model(CONFIG)
ROWS = 3
STEPS = 8
GREEDY, FREE = SamplingConfig(temperature=0.0), SamplingConfig(temperature=1.0, top_p=0.9)


@pytest.fixture(scope="module")
def engine():
    return Engine(MODEL)


_full = jax.jit(lambda model, tokens: jax.nn.log_softmax(model(tokens)))


def full_logprobs(sequences) -> list[np.ndarray]:
    """Log-probabilities `[n, V]` behind each token of each sequence, by one pass without cache."""
    padded = np.zeros((ROWS, CONFIG.max_length + 40), np.int32)
    for row, sequence in enumerate(sequences):
        padded[row, : len(sequence)] = sequence
    logprobs = np.asarray(_full(MODEL, padded))
    return [logprobs[row, : len(sequence)] for row, sequence in enumerate(sequences)]


def draw(*lengths: int, seed: int = 0) -> list[list[int]]:
    rng = np.random.default_rng([seed, *lengths])
    return [rng.integers(0, CONFIG.vocab_size, n).tolist() for n in lengths]


def assert_predicts(contexts, sequences, *, atol: float = 1e-4) -> None:
    """Each row's logits are those behind the last token of its sequence."""
    np.testing.assert_array_equal(contexts.lengths, [len(s) for s in sequences])
    np.testing.assert_array_equal(contexts.cache.lengths, contexts.lengths)
    expected = [logprobs[-1] for logprobs in full_logprobs(sequences)]
    found = jax.nn.log_softmax(contexts.logits)[: len(sequences)]
    np.testing.assert_allclose(found, expected, atol=atol)


def start(engine, sequences):
    return engine.extend(engine.empty(len(sequences)), sequences)


def turns(rows=ROWS, *, sampling=FREE, limits=STEPS, ids=(0, 1, 2), **more) -> Turns:
    return Turns(
        sampling=sampling,
        seed=5,
        identities=np.array(ids, np.uint32)[:, None],
        limits=np.broadcast_to(limits, (rows,)),
        **more,
    )


def decode(engine, contexts, **settings):
    return engine.decode(contexts, turns(len(contexts.tokens), **settings))


# Reading.


pieces = st.lists(st.tuples(*[st.integers(0, 16)] * ROWS), min_size=1, max_size=3)


@settings(max_examples=12)
@given(pieces)
def test_any_split_predicts_what_a_full_pass_does(engine, sizes):
    # Pieces of at most 16 tokens, some empty: few shapes, so that examples don't recompile.
    sizes = [(1,) * ROWS, *sizes]
    sequences = draw(*np.sum(sizes, axis=0))
    contexts, read = engine.empty(ROWS), np.zeros(ROWS, int)
    for piece in sizes:
        parts = [s[at : at + n] for s, at, n in zip(sequences, read, piece, strict=True)]
        contexts = engine.extend(contexts, parts)
        read += piece
    assert_predicts(contexts, sequences)


def test_long_pieces_are_read_in_chunks_and_rows_may_fill_up(engine):
    sequences = draw(160, 100, 12)
    contexts = start(engine, [s[:n] for s, n in zip(sequences, (60, 20, 0), strict=True)])
    contexts = engine.extend(contexts, [sequences[0][60:150], sequences[1][20:], sequences[2]])
    # Row 0 is almost full: the padding of what it reads now lies behind max_length.
    assert_predicts(engine.extend(contexts, [sequences[0][150:], [], []]), sequences)


def test_what_fills_no_pass_waits_unless_it_is_needed():
    engine = Engine(MODEL, EngineConfig(prefill_tokens=64))  # 2 rows of 32 tokens fill a pass
    given = draw(20, 21, 22, 23, 24)
    asked = dict(enumerate(given))
    contexts, left = engine.extend_some(engine.empty(5), asked, needed=range(5), enough=3)
    assert left == {4: tuple(given[4])}
    assert contexts.lengths.tolist() == [20, 21, 22, 23, 0]
    contexts, left = engine.extend_some(contexts, left, needed=[4], enough=1)
    assert not left
    whole = engine.extend(engine.empty(5), given)
    np.testing.assert_array_equal(contexts.cache.logits, whole.cache.logits)
    assert contexts.tokens == whole.tokens


def test_one_prefill_may_fill_the_row(engine):
    sequences = draw(160, 129, 1)
    assert_predicts(start(engine, sequences), sequences)


def test_reading_nothing_changes_nothing(engine):
    contexts = start(engine, draw(20, 7, 33))
    logits = np.asarray(contexts.logits)
    again = engine.extend(contexts, [[], [], []])
    np.testing.assert_array_equal(again.logits, logits)


def test_a_row_that_would_outgrow_the_model_is_refused(engine):
    contexts = start(engine, draw(5, 60, 9))
    with pytest.raises(
        ValueError,
        match="row 1 holds 60 tokens; 101 more exceed the model's max_length of 160",
    ):
        engine.extend(contexts, [[], [1] * 101, []])


@pytest.mark.parametrize("token", [-1, CONFIG.vocab_size])
def test_a_token_of_no_vocabulary_is_refused_and_not_clamped(engine, token):
    with pytest.raises(ValueError, match=rf"row 1 was given token {token}; .* vocab_size is 50"):
        engine.extend(engine.empty(ROWS), [[1], [2, token, 3], []])
    contexts = start(engine, draw(5, 6, 9))
    with pytest.raises(ValueError, match=f"row 2 was given token {token}"):
        engine.score(contexts, [[token]], [[[1]]], rows=[2])
    with pytest.raises(ValueError, match=f"row 2 was given token {token}"):
        engine.score(contexts, [[1]], [[[1], [3, token]]], rows=[2])


@pytest.mark.parametrize("adapter", [-2, 1, 7])
def test_an_adapter_that_does_not_exist_is_refused(engine, adapter):
    with pytest.raises(ValueError, match=f"row 1 .* adapter {adapter}; the model has 0"):
        engine.empty(ROWS, adapters=[0, adapter, -1])
    lora = LoraConfig(rank=2, alpha=4, targets=("query",), adapters=adapter + 3)
    other = Engine(random_model(dataclasses.replace(CONFIG, lora=lora)))
    with pytest.raises(ValueError, match=f"row 0 .* adapter {adapter + 3}; the model has"):
        other.empty(1, adapters=adapter + 3)
    assert other.empty(2, adapters=adapter + 2).adapters.tolist() == [adapter + 2] * 2


def test_what_is_not_given_for_each_row_is_refused_and_not_broadcast(engine):
    with pytest.raises(ValueError, match="rows is 0; it must be at least 1"):
        engine.empty(0)
    with pytest.raises(ValueError, match="adapters is given for 1 rows; there are 3"):
        engine.empty(ROWS, adapters=[0])
    with pytest.raises(ValueError, match="tokens is given for 1 rows; there are 3"):
        engine.extend(engine.empty(ROWS), [[1, 2]])
    contexts = start(engine, draw(5, 6, 9))
    for name, values in {
        "limits": [2],
        "identities": np.zeros((2, 1)),
        "said": [()],
        "sampling": [FREE] * 4,
        "seed": [1, 2],
        "stops": np.zeros(2, int),
        "end_ids": [[1], [2]],
    }.items():
        wrong = dataclasses.replace(turns(), **{name: values})
        message = rf"Turns\.{name} is given for {len(values)} rows; there are 3"
        for decoding in (engine.decode, engine.decode_chunk):
            with pytest.raises(ValueError, match=message):
                decoding(contexts, wrong)
    with pytest.raises(ValueError, match="prefixes is given for 1 rows; there are 3"):
        engine.score(contexts, [[1]], [[[1]]] * ROWS)
    with pytest.raises(ValueError, match="candidates is given for 1 rows; there are 2"):
        engine.score(contexts, [[1]] * 2, [[[1]]], rows=[0, 1])
    with pytest.raises(ValueError, match="row 2 has 2 candidates, row 0 has 1; fill up"):
        engine.score(contexts, [[1]] * 2, [[[1]], [[1], [2]]], rows=[0, 2])


# Copying and shortening rows.


def test_fork_equals_independent_prefills(engine):
    base, more = draw(20, 7, 33), draw(3, 6, 4, seed=1)
    source = start(engine, base)
    forked = engine.extend(engine.fork(source, np.array([2, 0, 2])), more)
    chosen = [base[2], base[0], base[2]]
    assert_predicts(forked, [a + b for a, b in zip(chosen, more, strict=True)])
    assert_predicts(engine.extend(source, more), [a + b for a, b in zip(base, more, strict=True)])


def test_store_moves_the_named_rows_and_leaves_the_others(engine):
    old, new = draw(20, 7, 33), draw(35, 11, 2, seed=2)
    source = start(engine, new)
    pool = engine.store(start(engine, old), np.array([2, 0]), source, np.array([0, 2]))
    more = draw(3, 6, 4, seed=3)
    now = [new[2], old[1], new[0]]
    assert_predicts(pool, now)
    assert_predicts(engine.extend(pool, more), [a + b for a, b in zip(now, more, strict=True)])
    assert_predicts(source, new)


def test_a_shortened_row_extends_like_a_fresh_one(engine):
    base, more = draw(20, 7, 33), draw(9, 6, 4, seed=4)
    contexts = engine.shorten(start(engine, base), {0: 11, 2: 0})
    kept = [base[0][:11], base[1], []]
    assert_predicts(engine.extend(contexts, more), [a + b for a, b in zip(kept, more, strict=True)])


def test_shortening_never_lengthens(engine):
    contexts = engine.shorten(start(engine, draw(5, 7, 33)), {0: 99, 1: 3, 2: 9})
    np.testing.assert_array_equal(contexts.lengths, [5, 3, 9])


def test_no_turn_is_drawn_from_logits_that_are_not_the_rows_own(engine):
    with pytest.raises(ValueError, match="row 0 has read nothing since it was made"):
        decode(engine, engine.empty(ROWS))
    shorter = engine.shorten(start(engine, draw(20, 7, 33)), {0: 20, 1: 3, 2: 99})
    assert shorter.stale.tolist() == [False, True, False]
    copies = engine.store(start(engine, draw(5, 6, 9)), [0, 2], shorter, [1, 0])
    assert copies.stale.tolist() == [True, False, False]
    assert engine.fork(shorter, [1, 1]).stale.tolist() == [True, True]
    for contexts, row in ((shorter, 1), (copies, 0), (engine.extend(shorter, [[1], [], []]), 1)):
        with pytest.raises(ValueError, match=f"row {row} has read nothing since .* extend it"):
            decode(engine, contexts)
    # Of rows that say nothing nothing is asked; one that reads again can speak.
    contexts, _ = decode(engine, contexts, limits=(STEPS, 0, STEPS))
    decode(engine, engine.extend(contexts, [[], [4], []]))


# Decoding.


def greedy(sequences, steps: int) -> list[list[int]]:
    """Argmax, one full pass a token."""
    grown = [list(s) for s in sequences]
    for _ in range(steps):
        for row, logprobs in zip(grown, full_logprobs(grown), strict=True):
            row.append(int(logprobs[-1].argmax()))
    return [row[len(s) :] for row, s in zip(grown, sequences, strict=True)]


def test_greedy_decoding_equals_argmax_over_full_passes(engine):
    prompts = draw(20, 7, 60)
    _, decoded = decode(engine, start(engine, prompts), sampling=GREEDY)
    assert decoded.tokens == greedy(prompts, STEPS)


def test_log_probabilities_of_what_was_sampled_are_teacher_forced_ones(engine):
    prompts = draw(20, 7, 60)
    _, decoded = decode(engine, start(engine, prompts))
    answers = decoded.tokens
    assert len({tuple(a) for a in answers}) == ROWS
    full = full_logprobs([p + a for p, a in zip(prompts, answers, strict=True)])
    for prompt, answer, logprobs, found in zip(
        prompts, answers, full, decoded.logprobs, strict=True
    ):
        expected = logprobs[np.arange(len(prompt) - 1, len(prompt) + STEPS - 1), answer]
        np.testing.assert_allclose(found, expected, atol=1e-4)


def test_a_turn_ends_with_its_end_token_which_is_not_read(engine):
    prompts = draw(20, 7, 60)
    _, unended = decode(engine, start(engine, prompts))
    free = unended.tokens
    ends = [free[0][2]]
    expected = [
        list(itertools.takewhile(lambda token: token not in ends, answer)) for answer in free
    ]
    contexts, decoded = decode(engine, start(engine, prompts), end_ids=ends)
    for full, kept, found in zip(free, expected, decoded.tokens, strict=True):
        assert found == full[: len(kept) + 1]
    assert decoded.counts[0] == 3
    # What follows is read behind the kept tokens, as if the end token had never been sampled.
    more = draw(3, 6, 4, seed=5)
    now = [p + k + m for p, k, m in zip(prompts, expected, more, strict=True)]
    assert_predicts(engine.extend(contexts, more), now)


def test_inactive_rows_are_untouched(engine):
    prompts = draw(20, 7, 60)
    contexts, decoded = decode(engine, start(engine, prompts), limits=(STEPS, 0, STEPS))
    assert decoded.counts.tolist() == [STEPS, 0, STEPS]
    more = draw(3, 6, 4, seed=6)
    answers = decoded.tokens
    now = [p + a + m for p, a, m in zip(prompts, answers, more, strict=True)]
    assert_predicts(engine.extend(contexts, more), now)


def test_a_turn_longer_than_a_chunk_leaves_full_rows_whole():
    steps = 100  # a slice update that does not fit would be shifted onto what is there
    engine = Engine(MODEL, EngineConfig(steps=40))
    prompts = draw(20, 7, 155)
    contexts, decoded = decode(engine, start(engine, prompts), limits=(steps, steps, 0))
    now = [p + a for p, a in zip(prompts, decoded.tokens, strict=True)]
    more = [[1], [2], [3]]
    assert_predicts(engine.extend(contexts, more), [a + b for a, b in zip(now, more, strict=True)])


def test_a_turn_that_a_row_has_no_room_for_is_refused(engine):
    with pytest.raises(
        ValueError, match="row 1 holds 7 tokens; 400 more exceed the model's max_length of 160"
    ):
        decode(engine, start(engine, draw(1, 7, 1)), limits=(1, 400, 1))


def test_a_turn_decoded_in_parts_is_the_turn_decoded_at_once(engine):
    prompts = draw(20, 7, 60)
    _, whole = decode(engine, start(engine, prompts))
    contexts, first = decode(engine, start(engine, prompts), limits=(2, 5, 3))
    contexts, rest = decode(engine, contexts, limits=STEPS - first.counts, said=first.tokens)
    parts = [a + b for a, b in zip(first.tokens, rest.tokens, strict=True)]
    assert [len(part) for part in parts] == [STEPS] * ROWS
    assert parts == whole.tokens
    more = draw(3, 6, 4, seed=5)
    now = [p + a + m for p, a, m in zip(prompts, parts, more, strict=True)]
    assert_predicts(engine.extend(contexts, more), now)


def test_some_rows_speak_while_the_others_are_left_alone(engine):
    prompts = draw(20, 7, 60)
    _, whole = decode(engine, start(engine, prompts))
    some = dataclasses.replace(turns(2, ids=(2, 0)), rows=[2, 0])
    contexts, decoded = engine.decode(start(engine, prompts), some)
    assert decoded.tokens == [whole.tokens[2], whole.tokens[0]]
    now = [prompts[0] + whole.tokens[0], prompts[1], prompts[2] + whole.tokens[2]]
    assert contexts.tokens == tuple(map(tuple, now))
    assert_predicts(contexts, now)


@pytest.mark.parametrize("rows", [[0, 0], [0, 3], [-1, 0]])
def test_turns_of_rows_that_are_not_there_are_refused(engine, rows):
    with pytest.raises(ValueError, match=r"Turns.rows is .*; expected different ones of 0 to 2"):
        engine.decode(
            start(engine, draw(20, 7, 60)), dataclasses.replace(turns(2, ids=(0, 1)), rows=rows)
        )


def test_decoding_pauses_once_few_rows_run(engine):
    prompts, limits = draw(20, 7, 60), np.array([2, 6, STEPS])
    contexts, part = engine.decode_chunk(start(engine, prompts), turns(limits=limits), stay=1)
    assert part.counts.tolist() == [2, 6, 6]
    assert part.running.tolist() == [False, False, True]
    contexts, rest = decode(
        engine, contexts, limits=np.where(part.running, limits - 6, 0), said=part.tokens
    )
    _, whole = decode(engine, start(engine, prompts), limits=limits)
    assert [a + b for a, b in zip(part.tokens, rest.tokens, strict=True)] == whole.tokens


def test_more_rows_than_a_batch_are_spoken_in_several():
    engine = Engine(MODEL, EngineConfig(rows=2, steps=3))
    prompts = draw(20, 7, 60)
    contexts, decoded = decode(engine, start(engine, prompts), sampling=GREEDY)
    assert decoded.tokens == greedy(prompts, STEPS)
    more = draw(3, 6, 4, seed=5)
    now = [p + a + m for p, a, m in zip(prompts, decoded.tokens, more, strict=True)]
    assert_predicts(engine.extend(contexts, more), now)


def test_stop_strings_end_a_turn_wherever_its_tokens_are_cut(engine):
    pieces = [bytes([97 + i % 26]) * (1 + i // 26) for i in range(CONFIG.vocab_size)]
    prompts = draw(20, 7, 60)
    _, free = decode(engine, start(engine, prompts))
    said = [b"".join(pieces[token] for token in tokens) for tokens in free.tokens]
    stops = (said[0][1:4].decode(), "~")
    stopping = Engine(
        MODEL,
        EngineConfig(steps=2),
        stops={stops: compile_stops(stops, pieces, vocab_size=CONFIG.vocab_size)},
    )
    sets = [stopping.stop_set(stops), 0, stopping.stop_set(())]
    _, decoded = decode(stopping, start(stopping, prompts), stops=sets)
    first = next(
        n
        for n in range(1, STEPS + 1)
        if stops[0].encode() in b"".join(pieces[t] for t in free.tokens[0][:n])
    )
    assert decoded.tokens == [free.tokens[0][:first], *free.tokens[1:]]


def test_every_row_has_its_own_settings_ends_and_limit(engine):
    prompts = draw(20, 7, 60)
    configs = [GREEDY, FREE, SamplingConfig(top_k=2, repetition_penalty=1.5)]
    alone = [
        decode(engine, start(engine, prompts), sampling=config)[1].tokens for config in configs
    ]
    ends = [[alone[0][0][1], 3], [], [alone[2][2][4]]]
    _, decoded = decode(
        engine, start(engine, prompts), sampling=configs, end_ids=ends, limits=(STEPS, 2, STEPS)
    )
    first, second, third = (rows[i] for i, rows in enumerate(alone))
    assert decoded.tokens == [
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
    _, decoded = decode(engine, start(engine, prompts), sampling=config)
    run = jax.jit(MODEL.__call__)
    for prompt, answer in zip(prompts, decoded.tokens, strict=True):
        logits = np.array(run(np.array([prompt + answer])))[0]
        for i, token in enumerate(answer):
            scores = torch.tensor(logits[None, len(prompt) + i - 1])
            assert token == int(processor(torch.tensor([prompt + answer[:i]]), scores).argmax())


def test_a_penalty_compiles_nothing_anew():
    engine = Engine(MODEL, EngineConfig(steps=5))  # a size of no other test here
    contexts, _ = decode(engine, start(engine, draw(20, 7, 60)))
    engine.account.forbidden = True
    penalised = SamplingConfig(repetition_penalty=1.2)
    for sampling in (penalised, [FREE, FREE, penalised]):
        contexts, _ = decode(engine, contexts, sampling=sampling)


@pytest.mark.parametrize("apart", [True, False])
def test_an_engine_holds_each_weight_once(apart):
    def size(tree) -> int:
        return sum(leaf.nbytes for leaf in jax.tree.leaves(tree))

    weights = Weights.of(MODEL, apart=apart, positions=1)
    assert size((weights.params, weights.layers)) == size(nnx.state(MODEL))


def test_contexts_of_former_weights_are_refused(engine):
    other = Engine(MODEL)
    contexts = start(other, draw(20, 7, 60))
    other.update(random_model(MODEL.config, seed=1))
    for use in (
        lambda: other.extend(contexts, draw(1, 1, 1)),
        lambda: decode(other, contexts),
        lambda: other.score(contexts, draw(1, 1, 1), [draw(1, 1)] * ROWS),
        lambda: other.store(other.empty(ROWS), np.array([0]), contexts, np.array([0])),
        lambda: engine.extend(contexts, draw(1, 1, 1)),
    ):
        with pytest.raises(ValueError, match=r"were made with weights .* read them anew"):
            use()
    with pytest.raises(ValueError, match="this engine was made for"):
        other.update(random_model(dataclasses.replace(MODEL.config, vocab_size=51)))


def test_rows_of_two_adapters_and_of_none_share_a_batch():
    lora = LoraConfig(rank=2, alpha=4, targets=("query", "up"), adapters=2)
    model = random_model(dataclasses.replace(MODEL.config, lora=lora))
    engine = Engine(model)
    (prompt,) = draw(12)
    adapters = np.array([1, -1, 0])
    contexts = engine.extend(engine.empty(ROWS, adapters=adapters), [prompt] * ROWS)
    contexts, decoded = decode(engine, contexts, sampling=GREEDY)
    answers = decoded.tokens
    assert len({tuple(answer) for answer in answers}) == ROWS
    whole = np.array([prompt + answer for answer in answers])
    logits = np.asarray(model(whole, adapters=adapters))
    np.testing.assert_array_equal(logits[:, 11:-1].argmax(-1), answers)
    moved = engine.store(engine.empty(ROWS), np.array([0]), contexts, np.array([1]))
    assert moved.adapters.tolist() == [-1, 0, 0]
    assert engine.fork(contexts, np.array([2, 0])).adapters.tolist() == [0, 1]


@pytest.mark.parametrize("local", [(True, True), (True, False)])
@pytest.mark.slow
def test_local_layers_read_the_same_from_a_cache(local):
    """Past the window, in chunks, decoded and scored: as one full pass."""
    config = dataclasses.replace(
        MODEL.config, sliding_window=7, local_layers=local, local_rope_theta=100.0
    )
    model = random_model(config)
    engine = Engine(model)
    prompts = draw(30, 3, 17)
    contexts = start(engine, [prompt[:2] for prompt in prompts])
    contexts = engine.extend(contexts, [prompt[2:] for prompt in prompts])
    tails = [draw(9, 4, seed=row) for row in range(ROWS)]
    scores = engine.score(contexts, draw(2, 1, 4), tails)
    _, decoded = decode(engine, contexts, sampling=GREEDY)
    run = jax.jit(model.__call__)
    for row, (prompt, prefix) in enumerate(zip(prompts, draw(2, 1, 4), strict=True)):
        whole = np.array([prompt + decoded.tokens[row]])
        greedy = np.asarray(run(whole))[0].argmax(-1)
        np.testing.assert_array_equal(greedy[len(prompt) - 1 : -1], whole[0, len(prompt) :])
        for column, tail in enumerate(tails[row]):
            logprobs = np.asarray(jax.nn.log_softmax(run(np.array([prompt + prefix + tail]))))[0]
            start_at = len(prompt) + len(prefix) - 1
            taken = logprobs[np.arange(start_at, start_at + len(tail)), tail]
            np.testing.assert_allclose(scores[row, column], taken.sum(), atol=2e-4)


def test_neither_neighbours_nor_the_row_number_change_what_is_sampled(engine):
    prompt, *others = draw(20, 7, 33, 12, 35)
    _, first = decode(engine, start(engine, [prompt, *others[:2]]), ids=(9, 1, 2))
    _, last = decode(engine, start(engine, [*others[2:], prompt]), ids=(3, 4, 9))
    assert first.tokens[0] == last.tokens[2]
    assert first.logprobs[0] == last.logprobs[2]  # to the bit


def test_another_identity_samples_another_turn(engine):
    (prompt,) = draw(40)
    _, decoded = decode(engine, start(engine, [prompt] * ROWS), ids=(0, 1, 0))
    one, two, same = decoded.tokens
    assert one == same
    assert one != two


# Scoring.


def test_scores_are_sums_of_teacher_forced_log_probabilities(engine):
    base, prefixes = draw(20, 7, 60), draw(2, 1, 4, seed=7)
    candidates = [draw(3, 1, 4, 2, seed=row) for row in range(ROWS)]
    contexts = start(engine, base)
    found = engine.score(contexts, prefixes, candidates)
    assert found.shape == (ROWS, 4)
    for column in range(4):
        tails = [row[column] for row in candidates]
        known = [b + p for b, p in zip(base, prefixes, strict=True)]
        full = full_logprobs([k + t for k, t in zip(known, tails, strict=True)])
        for row, (k, tail, logprobs) in enumerate(zip(known, tails, full, strict=True)):
            taken = logprobs[np.arange(len(k) - 1, len(k) + len(tail) - 1), tail]
            np.testing.assert_allclose(found[row, column], taken.sum(), atol=2e-4)
    assert_predicts(contexts, base)  # nothing was kept


def test_scores_need_no_history(engine):
    prefixes, tails = draw(2, 1, 4), draw(3, 3, 3, seed=8)
    found = engine.score(engine.empty(ROWS), prefixes, [[t] for t in tails])[:, 0]
    full = full_logprobs([p + t for p, t in zip(prefixes, tails, strict=True)])
    for score, p, t, logprobs in zip(found, prefixes, tails, full, strict=True):
        expected = logprobs[np.arange(len(p) - 1, len(p) + 2), t].sum()
        np.testing.assert_allclose(score, expected, atol=2e-4)


def test_a_candidate_behind_nothing_is_not_scored(engine):
    contexts = start(engine, draw(20, 7, 33))
    with pytest.raises(ValueError, match="row 2 has an empty prefix; a candidate's first token"):
        engine.score(contexts, [[1], []], [[[1]], [[1]]], rows=[0, 2])


def test_what_is_scored_has_to_fit_the_model(engine):
    contexts = start(engine, draw(20, 7, 33))
    engine.score(contexts, [[1] * 23], [[[1], [1] * 104]], rows=[2])
    with pytest.raises(
        ValueError, match="row 2 holds 33 tokens; a prefix of 23 and a candidate of 105 exceed"
    ):
        engine.score(contexts, [[1] * 23], [[[1], [1] * 105]], rows=[2])


# Whole prompts.


def test_generate_continues_each_prompt():
    prompts = draw(20, 7, 33)
    found = generate(MODEL, prompts, GREEDY, max_new_tokens=STEPS, seed=0)
    assert found == greedy(prompts, STEPS)
    end = found[0][2]
    ended = generate(MODEL, prompts, GREEDY, max_new_tokens=STEPS, seed=0, end_ids=[end])
    assert ended[0] == found[0][: found[0].index(end) + 1]


@pytest.mark.parametrize("prompts", [[], [[1], []]])
def test_generate_refuses_prompts_without_a_token(prompts):
    with pytest.raises(ValueError, match="at least one prompt, each with at least one token"):
        generate(MODEL, prompts, GREEDY, max_new_tokens=5, seed=0)


def test_generate_refuses_what_does_not_fit():
    with pytest.raises(ValueError, match="a prompt of 158 tokens and max_new_tokens=5 exceed"):
        generate(MODEL, draw(158), GREEDY, max_new_tokens=5, seed=0)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"sampling": SamplingConfig(stop=("User:",))},
            r"sampling.stop is \('User:',\); .* tokens",
        ),
        ({"sampling": [GREEDY, SamplingConfig(stop=("~",))]}, r"sampling.stop is \('~',\)"),
        ({"max_new_tokens": -1}, "max_new_tokens is -1; it must be 0 or more"),
        ({"prompts": [[1, 99]]}, "row 0 was given token 99"),
        ({"adapters": 5}, "row 0 is to be read with adapter 5; the model has 0"),
    ],
)
def test_generate_refuses_what_would_have_no_effect(changes, message):
    given = {"prompts": [[1], [2]], "sampling": GREEDY, "max_new_tokens": 2} | changes
    with pytest.raises(ValueError, match=message):
        generate(MODEL, seed=0, **given)


@pytest.mark.parametrize("seed", [-1, 1 << 32])
def test_any_integer_is_a_seed_by_its_last_32_bits(seed):
    prompts = draw(20, 7, 33)
    same, zero = seed & 0xFFFFFFFF, [0, 0, 0]
    found = [
        generate(MODEL, prompts, FREE, max_new_tokens=STEPS, seed=s, adapters=zero)
        for s in (seed, same)
    ]
    assert found[0] == found[1]
