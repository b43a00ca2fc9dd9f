"""What can be known of an outcome without a simulator: regressions on human dialogues.

A simulator that predicts worse than these has not learnt from its dialogues what they hold. Each
baseline is fitted on the training dialogues and measured on the same held-out ones as the
simulators: the mean; a ridge regression on the user's condition; one on the words of both sides,
too. The strength of a regression is the one with the least leave-one-out error (closed form: Hastie
et al. 2009, "The Elements of Statistical Learning", equation 7.52).

Axes: N dialogues, F features.
"""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np

from ixjax.dialogue.types import Dialogue

LEAST_DIALOGUES = 3  # training dialogues that a feature must occur in
STRENGTHS = np.logspace(-2, 5, 29)
LONGEST_NAME = 4  # words of an attribute that is a category; a longer one is a text
_WORD = re.compile(r"[^\W\d_]+|\d+|[?!]")

Features = Callable[[Dialogue], dict[str, float]]


def condition_features(dialogue: Dialogue) -> dict[str, float]:
    """Return the attributes of the user's condition: numbers, categories, words of texts."""
    found: dict[str, float] = {}
    for name, value in dialogue.condition.attributes.items():
        if isinstance(value, str):
            words = _words(value)
            if len(words) <= LONGEST_NAME:
                words = [value]
            found |= {f"{name}: {word}": 1.0 for word in words}
        else:
            found |= {name: float(value), f"{name}: {value}": 1.0}
    return found


def word_features(dialogue: Dialogue) -> dict[str, float]:
    """Return the condition, and for each side log(1 + count) of its turns and of its words."""
    counts = Counter(f"{turn.role} turns" for turn in dialogue.turns)
    for turn in dialogue.turns:
        counts.update(f"{turn.role} says {word}" for word in _words(turn.text))
    spoken = {name: math.log1p(count) for name, count in counts.items()}
    return condition_features(dialogue) | spoken


def _no_features(dialogue: Dialogue) -> dict[str, float]:
    return {}


BASELINES: dict[str, Features] = {
    "mean": _no_features,
    "condition": condition_features,
    "words": word_features,
}


class Prediction(NamedTuple):
    """Predicted engagement of held-out dialogues, `[N]`.

    full: after the whole dialogue.
    half: after half of it, by a regression on halves.
    """

    full: np.ndarray
    half: np.ndarray


def predict_outcomes(
    features: Features,
    train: Sequence[Dialogue],
    test: Sequence[Dialogue],
    halved: Callable[[Dialogue], Dialogue],
) -> Prediction:
    """Return a baseline's predictions.

    Args:
        features: one of `BASELINES`.
        train: dialogues with outcomes.
        test: dialogues to predict.
        halved: a dialogue up to its middle.

    Raises:
        ValueError: no training dialogue has an outcome.
    """
    known = [d for d in train if d.outcome is not None]
    if not known:
        raise ValueError("no training dialogue has an outcome; expected one or more")
    targets = np.array([d.outcome.engagement for d in known if d.outcome is not None])
    whole, half = (
        _predict([features(part(d)) for d in known], targets, [features(part(d)) for d in test])
        for part in (lambda d: d, halved)
    )
    return Prediction(whole, half)


def _predict(
    train: Sequence[dict[str, float]], targets: np.ndarray, test: Sequence[dict[str, float]]
) -> np.ndarray:
    seen = Counter(name for one in train for name in one)
    names = sorted(name for name, count in seen.items() if count >= LEAST_DIALOGUES)
    left, right = _matrix(train, names), _matrix(test, names)
    centre, scale = left.mean(axis=0), left.std(axis=0)
    scale[scale == 0] = 1.0
    return ridge((left - centre) / scale, targets, (right - centre) / scale).clip(0.0, 1.0)


def ridge(train: np.ndarray, targets: np.ndarray, test: np.ndarray) -> np.ndarray:
    """Return the predictions of a ridge regression with an intercept that is not penalised.

    Args:
        train: `[N, F]` features, each with mean 0.
        targets: `[N]`.
        test: `[M, F]`.

    Returns:
        `[M]`. The strength is one of `STRENGTHS` times F / N.
    """
    mean = targets.mean()
    values, vectors = np.linalg.eigh(train @ train.T)
    values = values.clip(min=0.0)
    rotated = vectors.T @ (targets - mean)
    # H = V diag(s / (s + a)) V' + 1 / N; a residual without its own dialogue is e / (1 - H_ii).
    best_error, best = math.inf, rotated * 0
    for strength in STRENGTHS * max(train.shape[1], 1) / len(train):
        kept = values / (values + strength)
        leverage = (vectors**2) @ kept + 1 / len(train)
        left_out = (targets - mean - vectors @ (kept * rotated)) / (1 - leverage).clip(min=1e-9)
        error = float(np.mean(left_out**2))
        if error < best_error:
            best_error, best = error, rotated / (values + strength)
    return mean + test @ (train.T @ (vectors @ best))


def _matrix(rows: Sequence[dict[str, float]], names: Sequence[str]) -> np.ndarray:
    values = [[row.get(name, 0.0) for name in names] for row in rows]
    return np.array(values).reshape(len(rows), len(names))


def _words(text: str) -> list[str]:
    return _WORD.findall(text.lower())
