"""`ixjax export`: Write a model of a run as a Hugging Face folder."""

from __future__ import annotations

import dataclasses

from rich.console import Console

from ixjax import pipeline
from ixjax.distributed import DistributedConfig
from ixjax.io import InputError
from ixjax.models.config import DType
from ixjax.parallel import MeshConfig, make_mesh

SUMMARY = "Write a model of a run as a Hugging Face folder, with tokenizer and chat template."


@dataclasses.dataclass(frozen=True)
class Settings:
    """The model to write, and the folder."""

    out: str = ""
    """The run directory that holds the model."""
    model: str = ""
    """Model of the run, such as policy_dpo/imcts; default: the aligned policy, or policy_sft."""
    to: str = ""
    """The folder to write."""
    adapter: bool = False
    """Write only the adapter, in PEFT's format; by default it is merged into the model."""
    overwrite: bool = False
    """Write into a folder with other content; its model weights are replaced."""
    dtype: DType | None = None
    """Type of the written weights; default: the type of the trained ones."""
    mesh: MeshConfig = dataclasses.field(default_factory=MeshConfig)
    """How devices are laid out."""
    distributed: DistributedConfig = dataclasses.field(default_factory=DistributedConfig)
    """Processes that share the model."""


def execute(settings: Settings, run: pipeline.Run | None, console: Console) -> None:
    """Write the folder and print its content."""
    if run is None:
        raise InputError("--out is missing; expected a run directory")
    if not settings.to:
        raise InputError("--to is missing; expected a folder to write")
    checkpoint = pipeline.find_checkpoint(run, settings.model)
    if not checkpoint.command:
        raise InputError(f"--model is {checkpoint.path}; expected a model of the run")
    record = pipeline.export(
        run,
        checkpoint,
        settings.to,
        adapter=settings.adapter,
        overwrite=settings.overwrite,
        dtype=settings.dtype,
        mesh=make_mesh(settings.mesh),
    )
    console.print(f"{checkpoint.name} of {run.directory.root} is in {settings.to}")
    if record["base"]:
        console.print(f"the adapter belongs on {record['base']}")
    if record["system"]:
        console.print(f"its system text: {record['system']}")
