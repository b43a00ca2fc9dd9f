"""Evaluation on held-out conditions: engagement by method and user, fidelity of simulators."""

from __future__ import annotations

import functools
from collections.abc import Callable
from pathlib import Path
from typing import Any

from ixjax import io
from ixjax.dialogue.scenarios import sandbox
from ixjax.dialogue.types import Dialogue
from ixjax.evaluation import Played, cell_metrics, fidelity, outcome_baselines, play
from ixjax.evaluation.play import read_played
from ixjax.generation import Speaker, User
from ixjax.generation.memory import SIDES, TYPICAL, dialogue_tokens
from ixjax.generation.outcomes import OUTCOME_TOKENS
from ixjax.generation.rollouts import models_side_by_side
from ixjax.pipeline.config import RunConfig
from ixjax.pipeline.engine_work import engine_at_work
from ixjax.pipeline.reporter import Reporter
from ixjax.pipeline.run import Run
from ixjax.pipeline.stages import SIMULATORS, SPEAKERS, pair_sources
from ixjax.search import SearchConfig, SearchingPolicy
from ixjax.search.imcts import search_tokens

REFERENCE_METHOD = "sft"
# Seeds differ from those of the search, so that no method meets dialogues it was tuned on.
EVALUATION_SEED = 1000


def evaluate(run: Run, reporter: Reporter) -> dict[str, Any]:
    """Play every method with every user on the same held-out conditions and seeds.

    Returns:
        The content of evaluation.json.
    """
    run.require("prepare", *(f"sft/{name}" for name in SPEAKERS))
    run.require(*(f"dpo/{source}" for source in pair_sources(run.config)))
    with run.stage("evaluate") as facts:
        if facts is None:
            return dict(io.read_json(run.directory.evaluation))
        inputs = run.inputs("evaluate")
        roots = run.roots("test")[: run.config.evaluation.conditions]
        config = run.config.evaluation
        room = int(TYPICAL * evaluation_tokens(run.config, longest=run.config.model.max_length))
        with engine_at_work(run, "evaluate", reporter), run.engines.room_for(room):
            cells = _cells(run, roots, inputs, reporter)
            simulators = [_fidelity(run, name) for name in SIMULATORS]
        result = {
            "schema": io.EVALUATION_SCHEMA,
            "version": io.SCHEMA_VERSION,
            "conditions": len(roots),
            "methods": list(_methods(run)),
            "users": list(_users(run)),
            "cells": cells,
            "fidelity": simulators,
            "baselines": outcome_baselines(
                run.dialogues("train"), run.dialogues("test"), config=config
            ),
        }
        io.write_json(run.directory.evaluation, result)
        facts["cells"] = len(cells)
    return dict(io.read_json(run.directory.evaluation))


def _cells(
    run: Run, roots: list[Dialogue], inputs: str, reporter: Reporter
) -> list[dict[str, Any]]:
    """Play every method with every user; return the figures of each pair."""
    methods, users = _methods(run), _users(run)
    cells = []
    reporter.start("evaluate", len(methods) * len(users), "cells")
    for user_name, make_user in users.items():
        baseline: list[Played] = []
        user = functools.cache(make_user)  # loaded once, if any cell is left to play
        for method, make_policy in methods.items():
            path = run.directory.played_by(method, user_name, inputs=inputs)
            there = path.exists()
            played = _cell(run, path, make_policy, user, roots)
            baseline = played if method == REFERENCE_METHOD else baseline
            cell = cell_metrics(
                played,
                baseline,
                run.scenario,
                method=method,
                user=user_name,
                config=run.config.evaluation,
                seed=run.config.seed,
            )
            cells.append(cell)
            reporter.advance(int(not there), earlier=int(there), engagement=cell["engagement"])
            run.log("evaluate", cell)
    reporter.finish()
    return cells


def _cell(
    run: Run,
    path: Path,
    make_policy: Callable[[], Speaker],
    make_user: Callable[[], User],
    roots: list[Dialogue],
) -> list[Played]:
    """Return the dialogues of one method with one user, from disk if they were played before."""
    if path.exists():
        return read_played(path)
    played = play(make_policy(), make_user(), roots, config=run.config.evaluation)
    io.write_jsonl(path, [p.to_json() for p in played], schema=io.PLAYED_SCHEMA)
    return played


def _methods(run: Run) -> dict[str, Callable[[], Speaker]]:
    """Return the methods; each loads its policy when it is called."""
    policy = functools.partial(run.speaker, role="policy", seed_offset=EVALUATION_SEED)

    def searching(iterations: int) -> Speaker:
        return SearchingPolicy(
            policy(run.directory.policy_sft),
            run.speaker(run.directory.simulator, "user", seed_offset=2 * EVALUATION_SEED),
            run.scenario,
            look_ahead(run.config, iterations),
            choose="value",
            reuse=iterations > 1,
        )

    methods: dict[str, Callable[[], Speaker]] = {
        REFERENCE_METHOD: functools.partial(policy, run.directory.policy_sft),
        "best_of_n": functools.partial(searching, 1),
    }
    if run.config.evaluation.think:
        methods["imcts"] = functools.partial(searching, run.config.evaluation.think)
    for source in pair_sources(run.config):
        methods[f"dpo_{source}"] = functools.partial(policy, run.model_folder(f"dpo/{source}"))
    return methods


def look_ahead(config: RunConfig, iterations: int) -> SearchConfig:
    """Return the search before each turn of a policy; one iteration is best of n."""
    settings = config.evaluation
    return SearchConfig(
        iterations=iterations,
        width=settings.candidates,
        reactions=settings.rollouts,
        max_turns=settings.max_turns,
        trees=settings.batch,
        c_uct=config.search.c_uct,
        # A revisited response gets further reactions, so that one lucky reaction weighs less.
        widening_exponent=0.8 if iterations > 1 else 0.0,
    )


def evaluation_tokens(config: RunConfig, *, longest: int) -> int:
    """Return the most tokens that contexts store at once in the most expensive cell.

    Args:
        config: of the run.
        longest: most tokens of a context, the model's `max_length`.
    """
    settings, turn = config.evaluation, config.sampling.max_new_tokens
    search = look_ahead(config, max(settings.think, 1))
    history = longest - turn - OUTCOME_TOKENS
    dialogues = settings.conditions * settings.samples
    shared = config.sft.lora.rank > 0
    played = min(models_side_by_side(config.engine, settings.batch, shared=shared), dialogues)
    ahead = SIDES * min(search.trees, dialogues) * search_tokens(search, turn, history)
    # Of the dialogues themselves, the policy's contexts are roots of its searches.
    return ahead + played * dialogue_tokens(search.max_turns, turn, history)


def _users(run: Run) -> dict[str, Callable[[], User]]:
    """Return the simulator of the search, the held-out one and, in the sandbox, the true user."""
    simulator = functools.partial(run.speaker, role="user", seed_offset=EVALUATION_SEED)
    users: dict[str, Callable[[], User]] = {
        name: functools.partial(simulator, run.model_folder(f"sft/{name}")) for name in SIMULATORS
    }
    if run.config.scenario == "sandbox":
        users["true"] = lambda: sandbox.TrueUser(run.config.seed + EVALUATION_SEED)
    return users


def _fidelity(run: Run, name: str) -> dict[str, Any]:
    return fidelity(
        run.speaker(run.model_folder(f"sft/{name}"), "user"),
        run.dialogues("test"),
        name=name,
        config=run.config.evaluation,
        train_outcomes=[d.outcome for d in run.dialogues("train") if d.outcome is not None],
    )
