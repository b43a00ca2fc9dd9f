"""Finished models by name: those of a run, and Hugging Face folders.

What talks to a model, exports it or measures it takes it as it lies there; whether its stage would
be done again with other settings is the stage's own question.
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
from ixjax.models import Transformer, check_hf, load_hf
from ixjax.models.config import DType
from ixjax.pipeline.bases import refuse_runs_model
from ixjax.pipeline.inputs import pair_sources
from ixjax.pipeline.run import Run
from ixjax.training import is_finished, load_model

ALIGNED = ("policy_dpo/imcts", "policy_dpo/preferences")  # the first of a run's is its default
FOLDER_DTYPE: DType = "bfloat16"  # of a Hugging Face folder, unless another is asked for
RECORD, RECORD_SCHEMA = "ixjax.json", "ixjax.export"  # what a folder that we wrote says of itself


@dataclasses.dataclass(frozen=True)
class Checkpoint:
    """A model on disk, and the tokenizer that it reads with."""

    name: str
    """As `--model` says it."""
    path: Path
    """Its folder."""
    tokenizer: Path
    """A Hugging Face tokenizer folder."""
    role: Role | None
    """The side that it was trained to speak for; None for a folder that does not say."""
    command: str
    """The stage that makes it; empty for a folder, which is nobody's here."""
    scenario: str = ""
    """Whose dialogues it was trained on; empty for a folder that does not say."""

    @property
    def finished(self) -> bool:
        """Whether it is there and whole; of a folder, its reader finds out."""
        return not self.command or is_finished(self.path)

    def load(
        self, *, mesh: Mesh | None = None, dtype: DType | None = None
    ) -> tuple[Transformer, ChatTemplate]:
        """The model and its chat template.

        Args:
            mesh: the devices; None: see `load_model` and `load_hf`.
            dtype: of parameters and computation; None: as a run wrote it, bfloat16 for a folder.

        Raises:
            InputError: one of them can't be read, or they do not belong together.
        """
        if not self.command:
            check_hf(self.path)  # reads config.json with clearer words than a tokenizer's reader
        elif not self.tokenizer.is_dir():
            raise io.InputError(
                f"{self.tokenizer}: the run's tokenizer is gone; run `ixjax prepare` with the same "
                "--config and --out to write it again"
            )
        template = ChatTemplate.from_tokenizer(load_tokenizer(self.tokenizer, setting="model"))
        if self.command:
            model = load_model(self.path, mesh=mesh, dtype=dtype)
        else:
            model = load_hf(self.path, mesh=mesh, dtype=dtype or FOLDER_DTYPE)
        if template.vocab_size > model.config.vocab_size:
            raise io.InputError(
                f"{self.path}: the model has {model.config.vocab_size} embeddings; its tokenizer "
                f"has {template.vocab_size} tokens"
            )
        return model, template


def run_checkpoints(run: Run) -> list[Checkpoint]:
    """Every model that a run makes, in the order of its stages, finished or not."""
    directory = run.directory
    roles: dict[str, Role] = {"policy_sft": "policy", "simulator": "user"}
    roles |= {"simulator_heldout": "user"}
    sources = pair_sources(run.config)
    roles |= {f"{directory.policy_dpo.name}/{source}": "policy" for source in sources}
    return [
        Checkpoint(
            name,
            directory.root / name,
            directory.tokenizer,
            role,
            _command(name),
            run.config.scenario,
        )
        for name, role in roles.items()
    ]


def find_checkpoint(run: Run | None, name: str, *, role: Role | None = None) -> Checkpoint:
    """The model that a person means.

    Args:
        run: where models are looked up by name; None: `name` is a folder.
        name: of a model of the run, or a Hugging Face folder; empty: the run's default for the
            role, which is its simulator, or its aligned policy, or else its SFT policy.
        role: the side that it has to speak for.

    Raises:
        InputError: there is no such model, it is not finished (names the command that makes it),
            or it speaks for the other side.
    """
    if run is None:
        if not name:
            raise io.InputError(
                "no model given; set --out RUN for one of a run's, or --model FOLDER for a "
                "Hugging Face folder"
            )
        return _for_side(_folder(name), role)
    known = {checkpoint.name: checkpoint for checkpoint in run_checkpoints(run)}
    name = name.rstrip("/") or _default(known, role)
    found = known.get(name)
    if found is None and Path(name).is_dir():
        return _for_side(_folder(name), role)
    if found is None:
        near = difflib.get_close_matches(name, known, n=1)
        raise io.InputError(
            f"model: {name!r} is neither a folder nor a model of {run.directory.root} "
            f"({', '.join(known)})" + (f"; perhaps you meant {near[0]}" if near else "")
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
            f"model: {found.name} speaks for the {found.role}; expected one that speaks for the "
            f"{role}{hint}"
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
    """What a folder that `export` wrote says of itself; None of any other."""
    if not (folder / RECORD).is_file():
        return None
    record = io.read_json(folder / RECORD)
    ours = isinstance(record, dict) and record.get("schema") == RECORD_SCHEMA
    return record if ours else None


def _command(name: str) -> str:
    return "dpo" if name.startswith("policy_dpo/") else "sft"
