"""Checks of the checkpoint that a run starts from."""

from __future__ import annotations

from pathlib import Path

from ixjax import io
from ixjax.dialogue.chat import ChatTemplate
from ixjax.models import ModelConfig, check_hf
from ixjax.pipeline.run import Run
from ixjax.pipeline.stages import SPEAKERS
from ixjax.training import is_finished


def check_base(run: Run) -> None:
    """Raise for a checkpoint that can't be read, unless all speakers are trained."""
    path, manifest = run.config.model.path, run.manifest
    if path and not all(manifest.get(f"sft/{name}") for name in SPEAKERS):
        refuse_runs_model("model.path", Path(path))
        check_hf(path, max_length=run.config.model.max_length)


def refuse_runs_model(setting: str, path: Path) -> None:
    """Raise if the folder of a run's model is given for a Hugging Face folder."""
    if is_finished(path):
        raise io.InputError(
            f"{setting}: {path} is a model of a run; expected a Hugging Face folder. Write one "
            "with `ixjax export --out RUN --model NAME --to FOLDER`."
        )


def check_vocabulary(path: str, config: ModelConfig, template: ChatTemplate) -> None:
    """Raise for a tokenizer with more tokens than the checkpoint has embeddings."""
    if template.vocab_size > config.vocab_size:
        raise io.InputError(
            f"model.path: {path} has {config.vocab_size} embeddings; expected at least "
            f"{template.vocab_size}, the tokens of the tokenizer"
        )
