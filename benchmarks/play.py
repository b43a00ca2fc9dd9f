"""Two-speaker play: dialogues that advance independently, against lockstep turns and a peer.

    python benchmarks/play.py --size a                       # independent dialogues and lockstep
    python benchmarks/play.py --size a --peer-dialogues 2    # also transformers.generate

Two models talk in `dialogues` dialogues of `turns` turns a side. Turns have the lengths of
ESConv's, in tokens of a vocabulary of 4,096, cut at `longest`. The lengths differ by an order of
magnitude, so in lockstep, where all dialogues finish a turn before the next one begins, each row
waits for the longest turn of its batch. With more dialogues than rows the engine refills the batch
within a turn; this is timed as well. The peer plays one dialogue at a time, as research code does:
`generate` on the whole history, turn by turn, with the same number of tokens.

A useful token is one that was sampled. Occupancy is useful tokens over the slots of the decode
batches, padding included. Every token is also read once by the other side: the ceiling is the
decode throughput of `generate.py`, less a quarter for reading. Figures are medians; first runs,
which compile, are not counted. Prints one JSON line.
"""

from __future__ import annotations

import dataclasses
import functools
import json
import statistics
import time
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np
import tyro
from sizes import Peer, Size, make_model
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from ixjax.dialogue import Dialogue, Turn, UserCondition, get_scenario
from ixjax.dialogue.chat import ChatTemplate, View
from ixjax.dialogue.tokenizer import BEGIN, CHAT_TEMPLATE, END, PAD, ROLES, SPECIAL_TOKENS
from ixjax.generation import (
    EngineConfig,
    ModelSpeaker,
    SamplingConfig,
    play,
    run_all,
    speaker_engine,
)
from ixjax.generation.turns import words
from ixjax.models.config import DType

Root = tuple[Dialogue, tuple[int, ...]]
"""Where a dialogue begins, and its identity."""

# Quantiles of the length of an ESConv turn, 0 % to 100 % in steps of 2.5 %; mean 26 tokens.
TURN_TOKENS = (
    *(2, 3, 4, 6, 7, 8, 8, 9, 10, 11, 12, 13, 14, 14, 15, 16, 17, 18, 19, 20, 21),
    *(22, 23, 24, 25, 27, 28, 29, 31, 32, 34, 36, 38, 40, 43, 47, 51, 57, 65, 81, 329),
)
LOCKSTEP_ROWS = 32  # 256 dialogues fill batches of them


@dataclasses.dataclass(frozen=True)
class Arguments:
    """Settings of the benchmark."""

    size: Size = "a"
    """5 M, 29 M or 1.1 B parameters, for each of the two speakers."""
    dialogues: int = 256
    """Dialogues played."""
    turns: int = 5
    """Turns of each side in a dialogue."""
    longest: int = 128
    """Tokens at which a turn is cut."""
    rows: int = 38
    """Rows of a decode batch."""
    in_flight: int = 8
    """Dialogues played at once, in decode batches."""
    shared: bool = False
    """One model speaks both sides, in one batch."""
    repeats: int = 3
    """Runs timed."""
    peer_dialogues: int = 0
    """Dialogues that transformers plays, one at a time; 0: none."""
    dtype: DType = "float32"
    """Of weights and computation."""


class DrawnLengths(ModelSpeaker):
    """Its turns are as long as ESConv's: a function of their identity."""

    longest = 128

    def longest_turn(self, identity: Any) -> int:
        """See `ModelSpeaker`."""
        return min(drawn_length(tuple(map(int, identity))), self.longest)


@functools.cache
def drawn_length(identity: tuple[int, ...]) -> int:
    """Return the tokens of a turn, distributed as ESConv's."""
    places = np.linspace(0, 1, len(TURN_TOKENS))
    draw = np.random.default_rng(identity).random()
    return max(1, int(np.interp(draw, places, TURN_TOKENS)))


def word_tokenizer(vocab_size: int) -> PreTrainedTokenizerFast:
    """Return a tokenizer with one word a token: a turn is read in the tokens it was sampled in."""
    names = [*SPECIAL_TOKENS, *(f"w{i}" for i in range(vocab_size - len(SPECIAL_TOKENS)))]
    tokenizer = Tokenizer(models.WordLevel({name: i for i, name in enumerate(names)}, PAD))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token=BEGIN,
        eos_token=END,
        pad_token=PAD,
        unk_token=PAD,
        additional_special_tokens=list(ROLES),
    )
    fast.chat_template = CHAT_TEMPLATE
    return fast


def roots_of(count: int, vocab_size: int) -> list[Root]:
    """Return dialogues that the user has opened."""
    rng = np.random.default_rng(0)
    found: list[Root] = []
    for i in range(count):
        text = " ".join(f"w{w}" for w in rng.integers(0, vocab_size - 16, 20))
        condition = UserCondition(f"c{i}", {"need": "advice", "distress": 4, "patience": 3})
        found.append((Dialogue(f"d{i}", condition, (Turn("user", text),)), (i,)))
    return found


def play_in_step(
    policy: ModelSpeaker, user: ModelSpeaker, roots: Sequence[Root], *, max_turns: int
) -> int:
    """Play dialogues in lockstep; return the tokens sampled.

    All policies decode a turn, then all users. Turns and outcomes are those of `play`.
    """
    sides = (policy, user)
    played = [tuple(side.begin(dialogue) for side in sides) for dialogue, _ in roots]
    going_on, tokens = list(range(len(roots))), 0
    for turn in range(max_turns):
        for me, side in enumerate(sides):
            requests = [played[i][me].request((*roots[i][1], turn, me)) for i in going_on]
            side.engine.decode(requests)
            said = [played[i][me].settle(r) for i, r in zip(going_on, requests, strict=True)]
            tokens += sum(utterance.num_tokens for utterance in said)
            last = turn + 1 == max_turns
            over = [side is user and (utterance.ended or last) for utterance in said]
            for i, utterance, done in zip(going_on, said, over, strict=True):
                if not done:
                    played[i][1 - me].hear(words(utterance))
            going_on = [i for i, done in zip(going_on, over, strict=True) if not done]
    run_all([users.outcome() for _, users in played], at_once=len(played))
    for participants in played:
        for participant in participants:
            participant.close()
    return tokens


def main(arguments: Arguments) -> None:
    """Measure and print."""
    a = arguments
    length = 2 * a.turns * 48 + a.longest + 160
    models_ = [make_model(a.size, max_length=length, dtype=a.dtype) for _ in range(2 - a.shared)]
    template = ChatTemplate.from_tokenizer(word_tokenizer(models_[0].config.vocab_size))
    sampling = SamplingConfig(top_p=0.9, max_new_tokens=a.longest)
    config = EngineConfig(rows=a.rows, in_flight=a.in_flight)
    DrawnLengths.longest = a.longest
    speakers, engines = [], []
    for role, model in zip(("policy", "user"), models_ * 2, strict=False):
        view = View(get_scenario("sandbox"), role, template)
        view = dataclasses.replace(view, template=dataclasses.replace(template, end_ids=(5,)))
        shared = engines[0] if engines and a.shared else None
        engines.append(shared or speaker_engine(model, view, sampling, config))
        speakers.append(DrawnLengths(engines[-1], view, sampling, seed=0))
    roots = roots_of(a.dialogues, models_[0].config.vocab_size)

    def independent() -> tuple[float, int]:
        start = time.perf_counter()
        rollouts = play(*speakers, roots, max_turns=a.turns, rows=a.dialogues)
        tokens = sum(sum(rollout.tokens(side)) for rollout in rollouts for side in (0, 1))
        return time.perf_counter() - start, tokens

    def lockstep(rows: int) -> tuple[float, int]:
        start = time.perf_counter()
        parts = [roots[i : i + rows] for i in range(0, len(roots), rows)]
        tokens = sum(play_in_step(*speakers, part, max_turns=a.turns) for part in parts)
        return time.perf_counter() - start, tokens

    for _ in range(2):  # the cache grows in the first run, its operations compile for its size
        independent()
    before = [engine.stats.copy() for engine in engines]
    timed = [independent() for _ in range(a.repeats)]
    work = [engine.stats - earlier for engine, earlier in zip(engines, before, strict=True)]
    work = work[:1] if a.shared else work
    rate = statistics.median(tokens / seconds for seconds, tokens in timed)
    locked_rates = {}
    for rows in (LOCKSTEP_ROWS, a.dialogues):
        lockstep(rows)
        locked = [lockstep(rows) for _ in range(a.repeats)]
        locked_rates[rows] = statistics.median(tokens / seconds for seconds, tokens in locked)
    wall = sum(seconds for seconds, _ in timed)
    report: dict[str, Any] = {
        "library": "ixjax",
        "jax": jax.__version__,
        **dataclasses.asdict(a),
        "device": jax.devices()[0].platform,
        "tokens": timed[0][1],
        "seconds": statistics.median(seconds for seconds, _ in timed),
        "tokens_per_second": rate,
        "occupancy": sum(w.decode_tokens for w in work) / sum(w.decode_slots for w in work),
        "share_of_decode": sum(w.decode_seconds for w in work) / wall,
        "share_of_prefill": sum(w.prefill_seconds for w in work) / wall,
        "share_of_scoring": sum(w.score_seconds for w in work) / wall,
        "compilations_after_warm_up": sum(w.compilations for w in work),
        "lockstep_tokens_per_second": locked_rates[LOCKSTEP_ROWS],
        "over_lockstep": rate / locked_rates[LOCKSTEP_ROWS],
        # All dialogues at once: within a turn, other dialogues take the rows that have ended.
        "refilled_lockstep_tokens_per_second": locked_rates[a.dialogues],
        "over_refilled_lockstep": rate / locked_rates[a.dialogues],
    }
    report["share_of_host"] = 1 - sum(
        report[f"share_of_{part}"] for part in ("decode", "prefill", "scoring")
    )
    if a.peer_dialogues:
        report["peer_tokens_per_second"] = peer(a)
        report["over_peer"] = rate / report["peer_tokens_per_second"]
    print(json.dumps(report))


def peer(a: Arguments) -> float:
    """Return tokens per second of transformers' `generate`, one dialogue at a time."""
    sides = [Peer(a.size, dtype=a.dtype, top_p=0.9) for _ in range(2)]
    speaker = DrawnLengths.__new__(DrawnLengths)  # for its lengths alone
    rates = []
    for dialogue in range(a.peer_dialogues + 1):
        history = sides[0].prompts(1, 50)
        start, sampled = time.perf_counter(), 0
        for turn in range(a.turns):
            for side in (0, 1):
                new = speaker.longest_turn((dialogue, turn, side))
                history = sides[side].generate(history, new)
                sampled += new
        if dialogue:  # the first one warms up
            rates.append(sampled / (time.perf_counter() - start))
    return statistics.median(rates)


if __name__ == "__main__":
    main(tyro.cli(Arguments, description=__doc__))
