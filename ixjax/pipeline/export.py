"""A model of a run as a folder that others load: Hugging Face's form, or PEFT's for adapters.

Beside weights, tokenizer and chat template it holds what a model needs to speak as it did here:
where its turns end and how they are drawn (`generation_config.json`), and what it is told first
(`ixjax.json`), since a policy that was trained under one system text knows no other.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from jax.sharding import Mesh

from ixjax import io
from ixjax.dialogue.chat import ChatTemplate
from ixjax.generation import SamplingConfig
from ixjax.models import merge_lora, save_adapter, save_hf
from ixjax.models.hf_config import CONFIG
from ixjax.models.lora import ADAPTER_CONFIG
from ixjax.pipeline.checkpoints import Checkpoint
from ixjax.pipeline.run import Run

SCHEMA = "ixjax.export"
RECORD = "ixjax.json"


def export(
    run: Run,
    checkpoint: Checkpoint,
    folder: str | Path,
    *,
    adapter: bool = False,
    overwrite: bool = False,
    mesh: Mesh | None = None,
) -> dict[str, Any]:
    """Write a model of a run as a Hugging Face folder.

    Args:
        run: whose model it is.
        checkpoint: the model; adapters are merged into it.
        folder: where to; one that an export wrote before is written anew.
        adapter: write the adapter alone, in PEFT's form.
        overwrite: write into a folder that holds something else, too; other files stay.
        mesh: where the model is read to.

    Returns:
        The content of ixjax.json: what the model is, and the system text of a policy.

    Raises:
        InputError: the folder holds something else, or `adapter` of a model that has none.
    """
    folder = Path(folder)
    if not overwrite:
        _refuse_others_folder(folder)
    other = folder / (CONFIG if adapter else ADAPTER_CONFIG)
    if other.exists():  # readers would put the adapter on the model beside it
        raise io.InputError(f"{other}: a model and an adapter take a folder each; give another")
    model, template = checkpoint.load(mesh=mesh)
    if adapter and model.config.lora is None:
        raise io.InputError(f"{checkpoint.path}: the model has no adapter; leave --adapter out")
    record = {
        "schema": SCHEMA,
        "version": io.SCHEMA_VERSION,
        "model": checkpoint.name,
        "form": "adapter" if adapter else "model",
        "scenario": run.config.scenario,
        "role": checkpoint.role,
        "system": run.scenario.policy_prompt if checkpoint.role == "policy" else None,
    }
    io.write_json(folder / RECORD, record)  # first: an export that was cut off can be done again
    if adapter:
        save_adapter(model, folder, base=run.config.model.path or None)
        template.tokenizer.save_pretrained(folder)
    else:
        whole = model if model.config.lora is None else merge_lora(model)
        save_hf(whole, folder, template.tokenizer, end_ids=template.end_ids)
    io.write_json(folder / "generation_config.json", _generation(template, run.config.sampling))
    return record


def _refuse_others_folder(folder: Path) -> None:
    if folder.is_file():
        raise io.InputError(f"{folder}: a file; expected a folder to write to")
    if not folder.is_dir() or not any(folder.iterdir()):
        return
    record = io.read_json(folder / RECORD) if (folder / RECORD).is_file() else None
    if not isinstance(record, dict) or record.get("schema") != SCHEMA:
        raise io.InputError(
            f"{folder}: holds something else than an export of ours; give another folder, or "
            "--overwrite to write into this one"
        )


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
