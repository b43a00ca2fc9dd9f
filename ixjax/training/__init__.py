"""Training: objectives, batches, one loop for all of them, checkpoints."""

from ixjax.training.checkpoints import CheckpointConfig, ResumeConfig
from ixjax.training.config import TrainerConfig
from ixjax.training.dpo import DPOConfig, reference_logprobs, train_dpo
from ixjax.training.examples import sft_examples
from ixjax.training.objectives import (
    LOSSES,
    LossSettings,
    PreferenceLoss,
    dpo_loss,
    get_loss,
    preference_loss,
    register_loss,
    sft_loss,
    token_logprobs,
)
from ixjax.training.optimizer import OptimizerConfig
from ixjax.training.preemption import Preempted
from ixjax.training.profiling import ProfileConfig, Profiler
from ixjax.training.reference import (
    ReferenceConfig,
    ReferenceIdentity,
    load_reference,
    save_reference,
)
from ixjax.training.saved_models import (
    is_finished,
    load_model,
    model_fingerprint,
    save_model,
)
from ixjax.training.sft import SFTConfig, example_logprobs, train_sft, validation_loss

__all__ = [
    "LOSSES",
    "CheckpointConfig",
    "DPOConfig",
    "LossSettings",
    "OptimizerConfig",
    "Preempted",
    "PreferenceLoss",
    "ProfileConfig",
    "Profiler",
    "ReferenceConfig",
    "ReferenceIdentity",
    "ResumeConfig",
    "SFTConfig",
    "TrainerConfig",
    "dpo_loss",
    "example_logprobs",
    "get_loss",
    "is_finished",
    "load_model",
    "load_reference",
    "model_fingerprint",
    "preference_loss",
    "reference_logprobs",
    "register_loss",
    "save_model",
    "save_reference",
    "sft_examples",
    "sft_loss",
    "token_logprobs",
    "train_dpo",
    "train_sft",
    "validation_loss",
]
