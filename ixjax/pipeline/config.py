"""All settings of a run, as nested frozen dataclasses."""

from __future__ import annotations

import dataclasses

from ixjax.dialogue.corpora import DataConfig
from ixjax.dialogue.preferences import PreferencesConfig
from ixjax.dialogue.tokenizer import TokenizerConfig
from ixjax.distributed import DistributedConfig
from ixjax.evaluation import EvaluationConfig
from ixjax.generation import DebugConfig, EngineConfig, ReadOut, SamplingConfig
from ixjax.io import NO_EFFECT, InputError
from ixjax.models import ModelArguments
from ixjax.parallel import MeshConfig
from ixjax.pipeline.metrics import MetricsConfig
from ixjax.search import PairsConfig, SearchConfig
from ixjax.training import (
    CheckpointConfig,
    DPOConfig,
    ProfileConfig,
    ReferenceConfig,
    ResumeConfig,
    SFTConfig,
)


@dataclasses.dataclass(frozen=True)
class ProcessesConfig:
    """Processes that share a search, on machines that share the run directory.

    Each searches its slice of the conditions; process 0 collects the trees.
    """

    index: int = 0
    """Index of this process, from 0."""
    count: int = 1
    """Number of processes; an interrupted search may continue with another number."""
    timeout: float = 900.0
    """Seconds without a new tree after which process 0 stops waiting for the others."""

    def __post_init__(self) -> None:
        """Refuse an index beyond the count."""
        if not 0 <= self.index < self.count:
            raise InputError(
                f"processes.index is {self.index}; expected 0 to {self.count - 1}, since "
                f"processes.count is {self.count}"
            )
        if self.timeout < 0:
            raise InputError(f"processes.timeout is {self.timeout}; expected 0 or more")


@dataclasses.dataclass(frozen=True)
class RunConfig:
    """One run: from a corpus of dialogues to an aligned policy and its evaluation."""

    scenario: str = "sandbox"
    """Scenario of the dialogues: esc, p4g, sandbox, or a registered one."""
    seed: int = 0
    """Seed of all randomness in the run."""
    out: str = dataclasses.field(default="", metadata=NO_EFFECT)
    """The run directory; empty: runs/NAME-OF-CONFIG."""
    readout: ReadOut = "expected"
    """How engagement is read from the simulator: expected (scored lines) or sampled (a line)."""
    data: DataConfig = dataclasses.field(default_factory=DataConfig)
    """The corpus and its splits."""
    tokenizer: TokenizerConfig = dataclasses.field(default_factory=TokenizerConfig)
    """The tokenizer to load, or the size of one to train."""
    model: ModelArguments = dataclasses.field(default_factory=ModelArguments)
    """The network of both speakers."""
    sft: SFTConfig = dataclasses.field(default_factory=SFTConfig)
    """Training of the policy and the simulators."""
    sampling: SamplingConfig = dataclasses.field(default_factory=SamplingConfig)
    """How both speakers sample their turns."""
    search: SearchConfig = dataclasses.field(default_factory=SearchConfig)
    """The tree search."""
    pairs: PairsConfig = dataclasses.field(default_factory=PairsConfig)
    """Selection of preference pairs."""
    preferences: PreferencesConfig = dataclasses.field(default_factory=PreferencesConfig)
    """A file of further preferences."""
    dpo: DPOConfig = dataclasses.field(default_factory=DPOConfig)
    """The alignment."""
    reference: ReferenceConfig = dataclasses.field(
        default_factory=ReferenceConfig, metadata=NO_EFFECT
    )
    """Stored reference log-probabilities."""
    evaluation: EvaluationConfig = dataclasses.field(default_factory=EvaluationConfig)
    """The comparison on held-out conditions."""
    export: bool = dataclasses.field(default=False, metadata=NO_EFFECT)
    """Also write each aligned policy as a Hugging Face folder, in exported/."""
    mesh: MeshConfig = dataclasses.field(default_factory=MeshConfig, metadata=NO_EFFECT)
    """Layout of the devices in training."""
    engine: EngineConfig = dataclasses.field(default_factory=EngineConfig, metadata=NO_EFFECT)
    """Sizes and kernels of the generation engine."""
    checkpoints: CheckpointConfig = dataclasses.field(
        default_factory=CheckpointConfig, metadata=NO_EFFECT
    )
    """States that an unfinished training keeps."""
    resume: ResumeConfig = dataclasses.field(default_factory=ResumeConfig, metadata=NO_EFFECT)
    """How an interrupted training continues."""
    processes: ProcessesConfig = dataclasses.field(
        default_factory=ProcessesConfig, metadata=NO_EFFECT
    )
    """Processes that share the search."""
    distributed: DistributedConfig = dataclasses.field(
        default_factory=DistributedConfig, metadata=NO_EFFECT
    )
    """Processes that train together."""
    metrics: MetricsConfig = dataclasses.field(default_factory=MetricsConfig, metadata=NO_EFFECT)
    """Where metrics go."""
    profile: ProfileConfig = dataclasses.field(default_factory=ProfileConfig, metadata=NO_EFFECT)
    """Traces of trainings."""
    debug: DebugConfig = dataclasses.field(default_factory=DebugConfig, metadata=NO_EFFECT)
    """Checks for development and tuning."""
