"""Evaluation: held-out dialogues of every method, paired gains, simulator fidelity, and parity.

Parity compares the engine's log-probabilities with the trainer's.
"""

from ixjax.evaluation.fidelity import fidelity, outcome_baselines, utterance_nll
from ixjax.evaluation.metrics import bootstrap_interval, cell_metrics
from ixjax.evaluation.parity import TOLERANCES, Difference, Parity, not_finite, parity
from ixjax.evaluation.play import EvaluationConfig, Played, play
from ixjax.evaluation.rating import RatingConfig

__all__ = [
    "TOLERANCES",
    "Difference",
    "EvaluationConfig",
    "Parity",
    "Played",
    "RatingConfig",
    "bootstrap_interval",
    "cell_metrics",
    "fidelity",
    "not_finite",
    "outcome_baselines",
    "parity",
    "play",
    "utterance_nll",
]
