"""Evaluation: held-out conditions played by every method, paired figures, simulator fidelity.

And whether the engine, by which all of it is played, computes what the trainer does (parity).
"""

from ixjax.evaluation.fidelity import fidelity, utterance_nll
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
    "parity",
    "play",
    "utterance_nll",
]
