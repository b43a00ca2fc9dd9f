"""Tokens that each stage of a run reads, samples and trains on, counted or assumed.

For search and evaluation these are upper bounds: no user ends a dialogue before `max_turns`, and no
tree stops early.
"""

from __future__ import annotations

import dataclasses
import itertools
import statistics

from ixjax.generation.outcomes import OUTCOME_TOKENS
from ixjax.padding import round_up
from ixjax.pipeline.config import RunConfig
from ixjax.pipeline.run import Run
from ixjax.pipeline.stages import SIMULATORS, SOURCES, SPEAKERS
from ixjax.training.pair_rows import LENGTH_STEP

SAMPLED_DIALOGUES = 64  # whose turns are counted


@dataclasses.dataclass(frozen=True)
class Corpus:
    """Sizes of a corpus.

    searched: conditions to search.
    held_out: conditions of the evaluation.
    turn_tokens: mean tokens of a turn.
    root_tokens: mean tokens of a context before the policy's first turn.
    assumed: assumptions, for people; empty if the numbers were counted.
    """

    searched: int
    held_out: int
    turn_tokens: float
    root_tokens: float
    assumed: tuple[str, ...] = ()


@dataclasses.dataclass(frozen=True)
class Work:
    """Tokens of one stage.

    trained: in optimiser steps, with padding.
    read: in forward passes only.
    sampled: one at a time.
    """

    stage: str
    trained: float = 0.0
    read: float = 0.0
    sampled: float = 0.0


def count_corpus(run: Run) -> Corpus:
    """Count the corpus of a prepared run; without one, assume sizes."""
    config, directory = run.config, run.directory
    if not (directory.conditions.exists() and directory.tokenizer.exists()):
        return _assumed(config)
    dialogues = list(itertools.islice(run.dialogues("train"), SAMPLED_DIALOGUES))
    view, tokenizer = run.view("policy"), run.template.tokenizer
    turns = [len(tokenizer.encode(t.text)) for d in dialogues for t in d.turns]
    limit = config.model.max_length
    roots = [len(view.context(run.root(d), max_tokens=limit).tokens) for d in dialogues]
    return Corpus(
        searched=min(config.search.conditions, len(run.roots("train"))),
        held_out=min(config.evaluation.conditions, len(run.roots("test"))),
        turn_tokens=statistics.fmean(turns),
        root_tokens=statistics.fmean(roots),
    )


def _assumed(config: RunConfig) -> Corpus:
    turn = config.sampling.max_new_tokens / 2
    return Corpus(
        searched=config.search.conditions,
        held_out=config.evaluation.conditions,
        turn_tokens=turn,
        root_tokens=4 * turn,
        assumed=(
            f"no prepared run at --out: turns of {turn:.0f} tokens (half of "
            f"sampling.max_new_tokens), contexts of {4 * turn:.0f} tokens before the first",
            f"corpus: {config.search.conditions} conditions to search and "
            f"{config.evaluation.conditions} held out, as set",
        ),
    )


def stage_work(config: RunConfig, corpus: Corpus) -> list[Work]:
    """Return the tokens of every stage."""
    return [_sft(config), _search(config, corpus), _dpo(config), _evaluation(config, corpus)]


def _sft(config: RunConfig) -> Work:
    rows = len(SPEAKERS) * config.sft.steps * config.sft.batch_size
    return Work("sft", trained=rows * config.model.max_length)


def _dpo(config: RunConfig) -> Work:
    steps = len(SOURCES) * config.dpo.steps * config.dpo.batch_size
    pairs = len(SOURCES) * min(config.dpo.max_pairs, config.dpo.steps * config.dpo.batch_size)
    length = pair_tokens(config)
    return Work("dpo", trained=steps * length, read=pairs * length)  # by the reference


def pair_tokens(config: RunConfig) -> int:
    """Return the tokens of the longest pair, with its prompt once or before each response."""
    turn = min(config.sampling.max_new_tokens, config.model.max_length)
    longest = config.model.max_length + (config.model.max_length, turn)[config.dpo.share != "none"]
    return round_up(longest, LENGTH_STEP)


def _search(config: RunConfig, corpus: Corpus) -> Work:
    search = config.search
    games = corpus.searched * search.iterations * search.most_rollouts
    return _talk("search", corpus, roots=corpus.searched, games=games, turns=search.max_turns)


def _evaluation(config: RunConfig, corpus: Corpus) -> Work:
    """Return the tokens of all methods; those that search also play before each turn."""
    settings, users = config.evaluation, len(SIMULATORS)
    played = users * corpus.held_out * settings.samples
    methods = 1 + len(SOURCES) + 1 + (settings.think > 0)
    ahead = (1 + settings.think) * settings.candidates * settings.rollouts
    games = played * (methods + ahead * settings.max_turns)
    return _talk("evaluate", corpus, roots=methods * played, games=games, turns=settings.max_turns)


def _talk(stage: str, corpus: Corpus, *, roots: int, games: float, turns: int) -> Work:
    """Return the tokens of dialogues from roots: both sides sample, and each reads the other."""
    sampled = 2 * games * turns * corpus.turn_tokens
    read = 2 * roots * corpus.root_tokens + sampled + games * OUTCOME_TOKENS
    return Work(stage, read=read, sampled=sampled)
