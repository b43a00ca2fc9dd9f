"""Finished models by name: those of a run, and Hugging Face folders.

Tools use a model as it is on disk. Only its stage compares its settings with the present ones.
"""

from __future__ import annotations

import dataclasses
import difflib
from pathlib import Path
from typing import Any

from jax.sharding import Mesh

from ixjax import io
from ixjax.dialogue.chat import ChatTemplate
from ixjax.dialogue.tokenizer import load_tokenizer
from ixjax.dialogue.types import ROLES, Role
from ixjax.gguf_file import is_gguf
from ixjax.models import Transformer, check_hf, load_hf
from ixjax.models.config import DType
from ixjax.pipeline.base_model import refuse_runs_model
from ixjax.pipeline.run import Run
from ixjax.pipeline.stages import model_stages
from ixjax.training import is_finished, load_model

ALIGNED = ("policy_dpo/imcts", "policy_dpo/preferences")  # default: the first that is finished
FOLDER_DTYPE: DType = "bfloat16"  # default type of a Hugging Face folder
RECORD, RECORD_SCHEMA = "ixjax.json", "ixjax.export"  # in an exported folder


@dataclasses.dataclass(frozen=True)
class Checkpoint:
    """A model on disk and its tokenizer."""

    name: str
    """Its name as `--model` takes it."""
    path: Path
    """Its folder, or its GGUF file."""
    tokenizer: Path
    """A Hugging Face tokenizer folder, or a GGUF file."""
    role: Role | None
    """The side that it speaks for; None for a folder that does not record it."""
    command: str
    """The command that makes it; empty for a folder."""
    scenario: str = ""
    """Scenario of its dialogues; empty for a folder that does not record it."""

    @property
    def finished(self) -> bool:
        """Whether it is complete on disk; a folder is checked when it is read."""
        return not self.command or is_finished(self.path)

    def load(
        self, *, mesh: Mesh | None = None, dtype: DType | None = None
    ) -> tuple[Transformer, ChatTemplate]:
        """Return the model and its chat template.

        Args:
            mesh: the devices; None: see `load_model` and `load_hf`.
            dtype: of parameters and computation; None: as a run wrote it, or bfloat16.

        Raises:
            InputError: one of them can't be read, or the tokenizer has too many tokens.
        """
        if not self.command:
            check_hf(self.path)  # its errors about config.json are clearer than the tokenizer's
        elif not self.tokenizer.is_dir():
            raise io.InputError(
                f"{self.tokenizer}: no such folder; expected the run's tokenizer. Run `ixjax "
                "prepare` with the same --config and --out to write it again."
            )
        template = ChatTemplate.from_tokenizer(load_tokenizer(self.tokenizer, setting="model"))
        if self.command:
            model = load_model(self.path, mesh=mesh, dtype=dtype)
        else:
            model = load_hf(self.path, mesh=mesh, dtype=dtype or FOLDER_DTYPE)
        if template.vocab_size > model.config.vocab_size:
            raise io.InputError(
                f"{self.path}: the model has {model.config.vocab_size} embeddings; expected "
                f"{template.vocab_size} or more, the tokens of its tokenizer"
            )
        return model, template


def run_checkpoints(run: Run) -> list[Checkpoint]:
    """Return every model that a run makes, in the order of its stages, finished or not."""
    directory = run.directory
    return [
        Checkpoint(
            name=stage.model(directory).relative_to(directory.root).as_posix(),
            path=stage.model(directory),
            tokenizer=directory.tokenizer,
            role=stage.role,
            command=stage.command,
            scenario=run.config.scenario,
        )
        for stage in model_stages(run.config)
    ]


def find_checkpoint(run: Run | None, name: str, *, role: Role | None = None) -> Checkpoint:
    """Return a model of a run, or of a Hugging Face folder.

    Args:
        run: has the models by name; None: `name` is a folder.
        name: of a model of the run, or a Hugging Face folder; empty: the simulator for the role
            `user`, else the aligned policy, or else the SFT policy.
        role: the side that it must speak for.

    Raises:
        InputError: there is no such model, it is not finished (names the command that makes it),
            or it speaks for the other side.
    """
    if run is None:
        if not name:
            raise io.InputError(
                "no model given. Set --out RUN for a model of a run, or --model FOLDER for a "
                "Hugging Face folder or a *.gguf file."
            )
        return _for_side(_folder(name), role)
    known = {checkpoint.name: checkpoint for checkpoint in run_checkpoints(run)}
    name = name.rstrip("/") or _default(known, role)
    found = known.get(name)
    if found is None and (Path(name).is_dir() or is_gguf(name)):
        return _for_side(_folder(name), role)
    if found is None:
        near = difflib.get_close_matches(name, known, n=1)
        raise io.InputError(
            f"--model is {name!r}; expected a folder, a *.gguf file, or a model of "
            f"{run.directory.root} ({', '.join(known)})"
            + (f"; perhaps you meant {near[0]}" if near else "")
        )
    if not found.finished:
        raise io.InputError(
            f"{run.directory.root}: {name} is not finished here; run `ixjax {found.command}` with "
            "the same --config and --out first"
        )
    fitting = ", ".join(c.name for c in known.values() if c.role == role)
    return _for_side(found, role, hint=f" ({fitting})")


def _default(known: dict[str, Checkpoint], role: Role | None) -> str:
    if role == "user":
        return "simulator"
    return next((name for name in ALIGNED if name in known and known[name].finished), "policy_sft")


def _for_side(found: Checkpoint, role: Role | None, *, hint: str = "") -> Checkpoint:
    if role is not None and found.role not in (None, role):
        raise io.InputError(
            f"--model is {found.name}, which speaks for the {found.role}; expected one that speaks "
            f"for the {role}{hint}"
        )
    return found


def _folder(name: str) -> Checkpoint:
    path = Path(name)
    refuse_runs_model("model", path)
    record = export_record(path) or {}
    role, scenario = record.get("role"), record.get("scenario") or ""
    if role not in (None, *ROLES) or not isinstance(scenario, str):
        raise io.InputError(
            f"{path / RECORD}: role is {role!r} and scenario {scenario!r}; expected one of "
            f"{', '.join(ROLES)}, and a name"
        )
    return Checkpoint(name, path, path, role, command="", scenario=scenario)


def export_record(folder: Path) -> dict[str, Any] | None:
    """Return the record of a folder that `export` wrote; None for any other."""
    if not (folder / RECORD).is_file():
        return None
    record = io.read_json(folder / RECORD)
    ours = isinstance(record, dict) and record.get("schema") == RECORD_SCHEMA
    return record if ours else None
