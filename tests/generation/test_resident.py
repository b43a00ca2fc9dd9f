"""Rows that stay in the batch are what the contexts hold, whatever came in between."""

from __future__ import annotations

import numpy as np
import pytest

from ixjax.generation import Engine, EngineConfig, SamplingConfig, Turns
from tests.generation.test_engine import MODEL, draw

CONFIG = EngineConfig(rows=4, steps=3)


def turns(limits, said=None) -> Turns:
    ids = np.arange(len(limits), dtype=np.uint32)[:, None]
    return Turns(SamplingConfig(), 5, ids, np.array(limits), said=said)


def test_a_row_that_changed_in_between_is_copied_anew():
    prompts, more = draw(20, 7, 60, 33), draw(3, 0, 70, 0, seed=1)
    engine = Engine(MODEL, CONFIG)
    contexts = engine.extend(engine.empty(4), prompts)
    contexts, first = engine.decode_chunk(contexts, turns([9, 9, 9, 9]))
    contexts = engine.extend(contexts, more)  # two rows go on from something else
    _, found = engine.decode(contexts, turns([5] * 4, first.tokens))
    fresh = Engine(MODEL, CONFIG)
    whole = [p + f + m for p, f, m in zip(prompts, first.tokens, more, strict=True)]
    anew = fresh.extend(fresh.empty(4), whole)
    _, expected = fresh.decode(anew, turns([5] * 4, first.tokens))
    assert found.tokens == expected.tokens


@pytest.mark.parametrize("begun", [False, True], ids=["before", "after-the-pass"])
def test_a_pass_that_failed_leaves_nothing_behind(monkeypatch, begun):
    prompts = draw(20, 7, 60, 33)
    engine = Engine(MODEL, CONFIG)
    contexts = engine.extend(engine.empty(4), prompts)
    contexts, first = engine.decode_chunk(contexts, turns([9, 9, 0, 0]))

    decode = engine._executor.decode

    def fails(*given):
        if begun:  # what the pass consumes is gone
            decode(*given)
        raise MemoryError("no more room")

    with monkeypatch.context() as patch:
        patch.setattr(engine._executor, "decode", fails)
        with pytest.raises(MemoryError):
            engine.decode_chunk(contexts, turns([0, 6, 9, 9], first.tokens))
    _, found = engine.decode(contexts, turns([6, 6, 9, 9], first.tokens))
    fresh = Engine(MODEL, CONFIG)
    whole = [p + f for p, f in zip(prompts, first.tokens, strict=True)]
    anew = fresh.extend(fresh.empty(4), whole)
    _, expected = fresh.decode(anew, turns([6, 6, 9, 9], first.tokens))
    assert found.tokens == expected.tokens
    logprobs = [np.concatenate(part.logprobs) for part in (found, expected)]
    np.testing.assert_allclose(*logprobs, atol=1e-4)
