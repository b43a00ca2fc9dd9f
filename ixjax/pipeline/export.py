"""Export of a model in Hugging Face's format, or of its adapter in PEFT's.

Besides weights, tokenizer and chat template the folder has the sampling settings and end tokens
(`generation_config.json`) and the policy's system text (`ixjax.json`), without which it would not
speak as in the run.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from jax.sharding import Mesh

from ixjax import io
from ixjax.dialogue.chat import ChatTemplate
from ixjax.distributed import is_first, wait_for_all
from ixjax.generation import SamplingConfig
from ixjax.models import Transformer, cast, merge_lora, save_adapter, save_hf
from ixjax.models.config import DType
from ixjax.models.hf_files import CONFIG
from ixjax.models.lora import ADAPTER_CONFIG
from ixjax.pipeline.checkpoints import RECORD, RECORD_SCHEMA, Checkpoint, export_record
from ixjax.pipeline.metrics import TENSORBOARD, WANDB
from ixjax.pipeline.run import Run
from ixjax.pipeline.stages import stage_names
from ixjax.training.saved_models import base_of

# Base models that an adapter belongs on.
CHECKPOINT_BASE = "the checkpoint of model.path"
ALIGNED_BASE = "policy_sft of the same run, exported as a model"
OTHER_FOLDERS = ("profile", "rating", TENSORBOARD, WANDB)


def export(
    run: Run,
    checkpoint: Checkpoint,
    folder: str | Path,
    *,
    adapter: bool = False,
    overwrite: bool = False,
    dtype: DType | None = None,
    mesh: Mesh | None = None,
) -> dict[str, Any]:
    """Write a model of a run as a Hugging Face folder.

    Every process gathers its shards, and the first one writes.

    Args:
        run: that the model belongs to.
        checkpoint: the model; adapters are merged into it.
        folder: to write; an earlier export of the same model is replaced.
        adapter: write the adapter only, in PEFT's format.
        overwrite: write into a folder with other content: model weights in it are replaced or
            removed, other files are kept.
        dtype: of the written weights; None: as trained.
        mesh: devices that hold the model.

    Returns:
        The content of ixjax.json, with the system text of a policy.

    Raises:
        InputError: the folder has other content or is part of a run, or the model has no adapter
            to write.
    """
    folder = Path(folder)
    own = {"run": _run_id(run), "model": checkpoint.name}
    _refuse_run_directory(folder)
    if not overwrite:
        _refuse_others_folder(folder, own)
    other = folder / (CONFIG if adapter else ADAPTER_CONFIG)
    if other.exists():  # readers would load the adapter on top of the model
        raise io.InputError(
            f"{other}: found in the folder; expected a model or an adapter, not both. Give another "
            "folder."
        )
    wait_for_all("an export may begin")  # every process has checked the folder
    model, template = checkpoint.load(mesh=mesh)
    if adapter and model.config.lora is None:
        raise io.InputError(f"{checkpoint.path}: the model has no adapter. Omit --adapter.")
    base = _adapted(checkpoint) if adapter else None
    record = {
        "schema": RECORD_SCHEMA,
        "version": io.SCHEMA_VERSION,
        **own,
        "form": "adapter" if adapter else "model",
        "base": base,
        "scenario": run.config.scenario,
        "role": checkpoint.role,
        "system": run.scenario.policy_prompt if checkpoint.role == "policy" else None,
    }
    if is_first():  # before the weights, so that an interrupted export can be repeated
        io.write_json(folder / RECORD, record)
    if adapter:
        # A model of the run has no path that others could load.
        named = run.config.model.path if base == CHECKPOINT_BASE else None
        save_adapter(_in_type(model, dtype), folder, base=named)
    else:
        whole = model if model.config.lora is None else merge_lora(model)
        save_hf(_in_type(whole, dtype), folder, template.tokenizer, end_ids=template.end_ids)
    if is_first():
        template.tokenizer.save_pretrained(folder)
        io.write_json(folder / "generation_config.json", _generation(template, run.config.sampling))
    return record


def _adapted(checkpoint: Checkpoint) -> str:
    """Return the model that an adapter belongs on."""
    on_policy = checkpoint.command == "dpo" and base_of(checkpoint.path) is None
    return ALIGNED_BASE if on_policy else CHECKPOINT_BASE


def _in_type(model: Transformer, dtype: DType | None) -> Transformer:
    return model if dtype is None else cast(model, dtype)  # after merging: weights round once


def _run_id(run: Run) -> str:
    """Return an identifier of the run that reveals no path."""
    return io.fingerprint(run.directory.root.resolve())


def _refuse_run_directory(folder: Path) -> None:
    """Raise for a folder that a stage of a run reads or writes."""
    if folder.exists() and not folder.is_dir():
        raise io.InputError(f"{folder}: a file; expected a folder to write to")
    place = folder.resolve()
    for parent in (place, *place.parents):
        files = io.RunDirectory(parent)
        inside = place.relative_to(parent).parts
        if files.config.is_file() and files.manifest.is_file():
            if not inside or inside[0] in {*stage_names(files), *OTHER_FOLDERS}:
                raise io.InputError(
                    f"{folder}: belongs to the run directory {parent}. Give another folder."
                )
            return


def _refuse_others_folder(folder: Path, own: Mapping[str, str]) -> None:
    if not folder.is_dir() or not any(folder.iterdir()):
        return
    remedy = "give another folder, or --overwrite to write into this one"
    record = export_record(folder)
    if record is None:
        raise io.InputError(f"{folder}: has other content than an export; {remedy}")
    if any(record.get(name) != value for name, value in own.items()):
        whose = "another run" if record.get("model") == own["model"] else repr(record.get("model"))
        raise io.InputError(f"{folder}: has an export of {whose}; {remedy}")


def _generation(template: ChatTemplate, sampling: SamplingConfig) -> dict[str, Any]:
    """Return the sampling settings as `transformers.generate` takes them."""
    drawn = {
        "temperature": sampling.temperature,
        "top_k": sampling.top_k,
        "top_p": sampling.top_p,
        "min_p": sampling.min_p or None,
    }
    return {
        "bos_token_id": template.tokenizer.bos_token_id,
        "eos_token_id": list(template.end_ids),
        "pad_token_id": template.pad_id,
        "max_new_tokens": sampling.max_new_tokens,
        "repetition_penalty": sampling.repetition_penalty,
        "stop_strings": list(sampling.stop) or None,
        "do_sample": sampling.temperature > 0,
        **(drawn if sampling.temperature > 0 else {}),
    }
