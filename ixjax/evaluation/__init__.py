"""Evaluation: held-out conditions played by every method, paired figures, simulator fidelity."""

from ixjax.evaluation.fidelity import fidelity, utterance_nll
from ixjax.evaluation.metrics import bootstrap_interval, cell_metrics
from ixjax.evaluation.play import EvaluationConfig, Played, play

__all__ = [
    "EvaluationConfig",
    "Played",
    "bootstrap_interval",
    "cell_metrics",
    "fidelity",
    "play",
    "utterance_nll",
]
