"""Simulator fidelity: how well a simulated user predicts people.

It is measured on held-out human dialogues. Words: the negative log-likelihood of the human user's
turns. Outcomes: the simulator's expectation after the human dialogue, and after half of it, against
the recorded outcome. A simulator whose error is no smaller than that of the training mean, or whose
ranking is no better than chance, does not know what helps people: a gain under it means little
(docs/algorithm.md, "Evaluation"). Regressions on the same dialogues show what can be known.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import numpy as np
from flax import nnx

from ixjax.dialogue.chat import View
from ixjax.dialogue.types import Dialogue, Outcome
from ixjax.evaluation.baselines import BASELINES, predict_outcomes
from ixjax.evaluation.play import EvaluationConfig
from ixjax.generation import ModelSpeaker, User, run_all
from ixjax.generation.turns import engagements
from ixjax.models import Transformer
from ixjax.training import validation_loss

CALIBRATION_BINS = 10
"""Bins of equal width over the predicted engagement."""

NLL_ROWS = 4
"""Packed rows per device and pass; their logits take most of the memory."""


def fidelity(
    user: User,
    dialogues: Sequence[Dialogue],
    *,
    name: str,
    config: EvaluationConfig,
    train_outcomes: Sequence[Outcome],
) -> dict[str, Any]:
    """Measure a simulator against held-out human dialogues.

    Args:
        user: the simulator; only a `ModelSpeaker` has an utterance NLL.
        dialogues: human ones that it was not trained on. Those without a user's turn are left
            out; those without an outcome count for the NLL alone.
        name: of the simulator, for the table.
        config: uses `fidelity_dialogues` and `batch`.
        train_outcomes: of the training dialogues; their mean is the baseline.

    Returns:
        A JSON object. `dialogues` have a recorded outcome; the mean absolute errors and the
        calibration are in engagement; `*_half` is read after the user turn in the middle; an
        undefined figure (a correlation with a constant) is None. `calibration` lists the bins that
        are not empty: their bounds, count, mean predicted and mean recorded engagement, and
        `calibration_error` is the mean distance of the two, weighted by count.
    """
    heard = _measured(dialogues, config)
    ended = [d for d in heard if d.outcome is not None]
    full = expected_engagements(user, ended, batch=config.batch)
    half = expected_engagements(user, [halved(d) for d in ended], batch=config.batch)
    recorded, known = _recorded(ended), ~np.isnan(full)
    figures = {
        "utterance_nll": _speaker_nll(user, heard),
        "outcome_mae_baseline": _baseline_error(recorded[known], train_outcomes),
        "unreadable_rate": _mean(~known),
    }
    return {
        "simulator": name,
        "dialogues": len(ended),
        **_finite(figures | _outcome_figures(full, half, recorded)),
        "calibration": calibration_bins(full[known], recorded[known]),
    }


def outcome_baselines(
    train: Sequence[Dialogue], dialogues: Sequence[Dialogue], *, config: EvaluationConfig
) -> list[dict[str, Any]]:
    """Measure what can be known of the same outcomes without a simulator.

    Args:
        train: the dialogues that the regressions of `ixjax.evaluation.baselines` are fitted on.
        dialogues: see `fidelity`.
        config: see `fidelity`.

    Returns:
        A JSON object for each of `BASELINES`, with the outcome figures of `fidelity`; none if no
        dialogue of `train` or none of `dialogues` has an outcome.
    """
    ended = [d for d in _measured(dialogues, config) if d.outcome is not None]
    if not ended or all(d.outcome is None for d in train):
        return []
    found = []
    for name, features in BASELINES.items():
        full, half = predict_outcomes(features, train, ended, halved)
        figures = _outcome_figures(full, half, _recorded(ended))
        found.append({"baseline": name, "dialogues": len(ended), **_finite(figures)})
    return found


def _measured(dialogues: Sequence[Dialogue], config: EvaluationConfig) -> list[Dialogue]:
    heard = [d for d in dialogues if any(turn.role == "user" for turn in d.turns)]
    return heard[: config.fidelity_dialogues]


def _recorded(ended: Sequence[Dialogue]) -> np.ndarray:
    return np.array([d.outcome.engagement for d in ended if d.outcome is not None])


def _outcome_figures(full: np.ndarray, half: np.ndarray, recorded: np.ndarray) -> dict[str, float]:
    """Return the figures of predictions after whole and half dialogues, `[N]`; nan: unreadable."""
    found = {}
    for ending, predicted in (("", full), ("_half", half)):
        known = ~np.isnan(predicted)
        mine, theirs = predicted[known], recorded[known]
        found |= {
            f"outcome_mae{ending}": _mean(np.abs(mine - theirs)),
            f"outcome_spearman{ending}": spearman(mine, theirs),
            f"calibration_error{ending}": calibration_error(calibration_bins(mine, theirs)),
        }
    return found


def _finite(figures: Mapping[str, float]) -> dict[str, float | None]:
    return {key: float(x) if math.isfinite(x) else None for key, x in figures.items()}


def utterance_nll(
    model: Transformer, view: View, dialogues: Sequence[Dialogue], *, rows: int = NLL_ROWS
) -> float:
    """Return the mean negative log-likelihood of a token of this side's turns, in nats.

    Teacher-forced over whole dialogues, without the outcome line; the tokens that end the turns
    are counted, as in training. Comparable between models of one tokenizer only.

    Args:
        model: the speaker's network.
        view: how it sees a dialogue.
        dialogues: human ones; oldest turns that find no room in its context are left out.
        rows: packed rows scored at once by each device.

    Returns:
        nan where this side says nothing in any of them.
    """
    rendered = [
        view.training(d, max_tokens=model.config.max_length, outcome=False) for d in dialogues
    ]
    rendered = [example for example in rendered if any(example.scored)]
    if not rendered:
        return math.nan
    # All devices must get the same number of rows.
    devices = len(jax.tree.leaves(nnx.state(model))[0].sharding.device_set)
    return validation_loss(model, rendered, batch_size=rows * devices)


def expected_engagements(user: User, dialogues: Sequence[Dialogue], *, batch: int) -> np.ndarray:
    """Return `[N]` the user's engagement after each dialogue; nan if unreadable."""
    # Remove recorded outcomes, so that a user cannot return them.
    tasks = (user.begin(d.before(len(d.turns))).outcome() for d in dialogues)
    return engagements(run_all(tasks, at_once=batch))


def halved(dialogue: Dialogue) -> Dialogue:
    """Return a dialogue up to its middle user turn: k of 2k user turns, k + 1 of 2k + 1."""
    spoken = [i for i, turn in enumerate(dialogue.turns) if turn.role == "user"]
    return dialogue.before(spoken[(len(spoken) - 1) // 2] + 1)


def spearman(left: np.ndarray, right: np.ndarray) -> float:
    """Return the rank correlation, ties on their mean rank; nan if either side is constant."""
    if len(left) < 2 or np.ptp(left) == 0 or np.ptp(right) == 0:
        return math.nan
    return float(np.corrcoef(_ranks(left), _ranks(right))[0, 1])


def _ranks(values: np.ndarray) -> np.ndarray:
    _, place, counts = np.unique(values, return_inverse=True, return_counts=True)
    last = np.cumsum(counts)
    return (last - (counts - 1) / 2)[place]


def calibration_bins(
    predicted: np.ndarray, recorded: np.ndarray, *, bins: int = CALIBRATION_BINS
) -> list[dict[str, float]]:
    """Return mean predicted and recorded engagement within each bin of the predicted one."""
    place = np.clip((predicted * bins).astype(int), 0, bins - 1)
    return [
        {
            "low": float(i / bins),
            "high": float((i + 1) / bins),
            "count": int((place == i).sum()),
            "predicted": float(predicted[place == i].mean()),
            "recorded": float(recorded[place == i].mean()),
        }
        for i in np.unique(place)
    ]


def calibration_error(bins: Sequence[dict[str, float]]) -> float:
    """Return the expected calibration error: |predicted - recorded|, weighted by count.

    It is not 0 for a calibrated simulator: with few dialogues per bin, the means differ by noise.
    """
    total = sum(b["count"] for b in bins)
    distance = sum(b["count"] * abs(b["predicted"] - b["recorded"]) for b in bins)
    return distance / total if total else math.nan


def _baseline_error(recorded: np.ndarray, train_outcomes: Sequence[Outcome]) -> float:
    """Return the error of predicting the training mean for every dialogue."""
    return _mean(np.abs(recorded - _mean([o.engagement for o in train_outcomes])))


def _speaker_nll(user: User, dialogues: Sequence[Dialogue]) -> float:
    """Return the NLL of a model; nan for a scripted user, which has no likelihood."""
    if not isinstance(user, ModelSpeaker):
        return math.nan
    return utterance_nll(user.engine.model(user.adapter), user.view, dialogues)


def _mean(values: Sequence[float] | np.ndarray) -> float:
    """Return the mean; nan for no values, where NumPy would warn."""
    return float(np.mean(values)) if len(values) else math.nan
