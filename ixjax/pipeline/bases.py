"""The checkpoint that a run starts from: whether it can be one, before anything is made for it."""

from __future__ import annotations

from pathlib import Path

from ixjax import io
from ixjax.dialogue.chat import ChatTemplate
from ixjax.models import ModelConfig, check_hf
from ixjax.pipeline.inputs import SPEAKERS
from ixjax.pipeline.run import Run
from ixjax.training import is_finished


def check_base(run: Run) -> None:
    """Refuse a checkpoint that can't be read before anything is made for it."""
    path, manifest = run.config.model.path, run.manifest
    if path and not all(manifest.get(f"sft/{name}") for name in SPEAKERS):
        refuse_runs_model("model.path", Path(path))
        check_hf(path, max_length=run.config.model.max_length)


def refuse_runs_model(setting: str, path: Path) -> None:
    """Refuse the folder of a run's own model where a Hugging Face folder is wanted."""
    if is_finished(path):
        raise io.InputError(
            f"{setting}: {path} is a run's own model; expected a Hugging Face folder: write one "
            "with `ixjax export --out RUN --model NAME --to FOLDER`"
        )


def check_vocabulary(path: str, config: ModelConfig, template: ChatTemplate) -> None:
    """Refuse a tokenizer with more tokens than the checkpoint has embeddings."""
    if template.vocab_size > config.vocab_size:
        raise io.InputError(
            f"model.path: {path} has {config.vocab_size} embeddings; the tokenizer has "
            f"{template.vocab_size} tokens"
        )
