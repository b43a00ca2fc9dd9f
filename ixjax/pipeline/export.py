"""A model of a run as a folder that others load: Hugging Face's form, or PEFT's for adapters.

Beside weights, tokenizer and chat template it holds what a model needs to speak as it did here:
where its turns end and how they are drawn (`generation_config.json`), and what it is told first
(`ixjax.json`), since a policy that was trained under one system text knows no other.
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
from ixjax.models.hf_config import CONFIG
from ixjax.models.lora import ADAPTER_CONFIG
from ixjax.pipeline.checkpoints import RECORD, RECORD_SCHEMA, Checkpoint, export_record
from ixjax.pipeline.metrics import TENSORBOARD, WANDB
from ixjax.pipeline.run import Run

# What a stage writes below a run directory: nothing of another's belongs there.
# What an adapter was learned on, and belongs on again.
CHECKPOINT_BASE = "the checkpoint of model.path"
ALIGNED_BASE = "policy_sft of the same run, exported as a model"
STAGE_FOLDERS = (
    "data",
    "tokenizer",
    "policy_sft",
    "simulator",
    "simulator_heldout",
    "trees",
    "pairs_llama_factory",
    "policy_dpo",
    "evaluation",
    "profile",
    "rating",
    TENSORBOARD,
    WANDB,
)


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

    Of several processes each gives its shards, and the first one writes.

    Args:
        run: whose model it is.
        checkpoint: the model; adapters are merged into it.
        folder: where to; one that an export of the same model wrote before is written anew.
        adapter: write the adapter alone, in PEFT's form.
        overwrite: write into a folder that holds something else, too: model weights in it are
            replaced or removed, other files stay.
        dtype: of the weights that are written; None: as they were trained.
        mesh: where the model is read to.

    Returns:
        The content of ixjax.json: what the model is, and the system text of a policy.

    Raises:
        InputError: the folder holds something else or is part of a run, or `adapter` of a model
            that has none.
    """
    folder = Path(folder)
    own = {"run": _run_id(run), "model": checkpoint.name}
    _refuse_run_directory(folder)
    if not overwrite:
        _refuse_others_folder(folder, own)
    other = folder / (CONFIG if adapter else ADAPTER_CONFIG)
    if other.exists():  # readers would put the adapter on the model beside it
        raise io.InputError(f"{other}: a model and an adapter take a folder each; give another")
    wait_for_all("an export may begin")  # all have seen the folder as it was
    model, template = checkpoint.load(mesh=mesh)
    if adapter and model.config.lora is None:
        raise io.InputError(f"{checkpoint.path}: the model has no adapter; leave --adapter out")
    base = None if not adapter else ALIGNED_BASE if checkpoint.command == "dpo" else CHECKPOINT_BASE
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
    if is_first():  # before the weights: an export that was cut off can be done again
        io.write_json(folder / RECORD, record)
    if adapter:
        # Of a model of this run only who has the run knows where it is.
        named = run.config.model.path if base == CHECKPOINT_BASE else None
        save_adapter(_in_type(model, dtype), folder, base=named)
    else:
        whole = model if model.config.lora is None else merge_lora(model)
        save_hf(_in_type(whole, dtype), folder, template.tokenizer, end_ids=template.end_ids)
    if is_first():
        template.tokenizer.save_pretrained(folder)
        io.write_json(folder / "generation_config.json", _generation(template, run.config.sampling))
    return record


def _in_type(model: Transformer, dtype: DType | None) -> Transformer:
    return model if dtype is None else cast(model, dtype)  # last: sums round once


def _run_id(run: Run) -> str:
    """Tells runs of one machine apart, and says nothing about the machine."""
    return io.fingerprint(run.directory.root.resolve())


def _refuse_run_directory(folder: Path) -> None:
    """An export over a run's own folders would mix its files with those that stages read."""
    if folder.exists() and not folder.is_dir():
        raise io.InputError(f"{folder}: a file; expected a folder to write to")
    place = folder.resolve()
    for parent in (place, *place.parents):
        files = io.RunDirectory(parent)
        inside = place.relative_to(parent).parts
        if files.config.is_file() and files.manifest.is_file():
            if not inside or inside[0] in STAGE_FOLDERS:
                raise io.InputError(
                    f"{folder}: belongs to the run directory {parent}; give a folder of its own"
                )
            return


def _refuse_others_folder(folder: Path, own: Mapping[str, str]) -> None:
    if not folder.is_dir() or not any(folder.iterdir()):
        return
    remedy = "give another folder, or --overwrite to write into this one"
    record = export_record(folder)
    if record is None:
        raise io.InputError(f"{folder}: holds something else than an export of ours; {remedy}")
    if any(record.get(name) != value for name, value in own.items()):
        whose = "another run" if record.get("model") == own["model"] else repr(record.get("model"))
        raise io.InputError(f"{folder}: holds an export of {whose}; {remedy}")


def _generation(template: ChatTemplate, sampling: SamplingConfig) -> dict[str, Any]:
    """How `transformers.generate` draws turns as we do, in the words of its own settings."""
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
