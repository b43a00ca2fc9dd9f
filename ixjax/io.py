"""Files: atomic writes, JSON lines with a schema, run-directory layout, fingerprints.

Writes are atomic: a file is written to a temporary name in the same folder and renamed. Input that
can't be read raises `InputError` with the file, the line and the field; commands print it without
a traceback.
"""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import itertools
import json
import os
import uuid
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, TextIO

SCHEMA_VERSION = 1

# Schema names in the first line of our files (docs/data-formats.md).
TREE_SCHEMA = "ixjax.tree"
PAIRS_SCHEMA = "ixjax.pairs"
PLAYED_SCHEMA = "ixjax.played"
EVALUATION_SCHEMA = "ixjax.evaluation"
RATING_SCORES_SCHEMA = "ixjax.rating_scores"


class InputError(ValueError):
    """Bad input: names the file, line or field, the found value and the expected one."""


def write_text(path: str | Path, text: str) -> None:
    """Write UTF-8 text atomically; a missing folder is created."""
    with _replacing(Path(path)) as file:
        file.write(text)


@contextlib.contextmanager
def _replacing(path: Path) -> Iterator[TextIO]:
    """Open a temporary file that replaces `path` when the block ends without an error."""
    if path.is_dir():
        raise InputError(f"{path}: a folder; expected a file to write")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except (FileExistsError, NotADirectoryError):
        file = next(p for p in path.parents if p.exists())
        raise InputError(f"{file}: a file; expected a folder to write into") from None
    temporary = path.parent / f".{path.name}.{uuid.uuid4().hex}"
    try:
        with temporary.open("x", encoding="utf-8") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except BaseException:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(temporary)
        raise


def write_json(path: str | Path, value: Any) -> None:
    """Write one JSON document atomically."""
    write_text(path, json.dumps(value, indent=2, ensure_ascii=False) + "\n")


def read_text(path: str | Path) -> str:
    """Read UTF-8 text.

    Raises:
        InputError: the file is missing or not UTF-8.
    """
    path = Path(path)
    try:
        return path.read_text(encoding="utf-8-sig")  # without a byte order mark
    except IsADirectoryError:
        raise InputError(f"{path}: a folder; expected a file") from None
    except (FileNotFoundError, NotADirectoryError):
        raise InputError(f"{path}: no such file") from None
    except UnicodeDecodeError as error:
        line = error.object[: error.start].count(b"\n") + 1
        raise InputError(
            f"{path}:{line}: not UTF-8 text (byte {error.start}); save the file as UTF-8"
        ) from None


def read_json(path: str | Path) -> Any:
    """Read one JSON document.

    Raises:
        InputError: the file is missing or not JSON (names line and column).
    """
    return _parsed(read_text(path), path)


def read_document(path: str | Path, *, schema: str) -> dict[str, Any]:
    """Read a file of one JSON object with a schema.

    Raises:
        InputError: the file is missing, not a JSON object, or of another schema or version.
    """
    content = read_object(path)
    _check_schema(content, schema, str(path))
    return content


def read_object(path: str | Path) -> dict[str, Any]:
    """Read one JSON object.

    Raises:
        InputError: the file is missing or not a JSON object.
    """
    content = read_json(path)
    if not isinstance(content, dict):
        raise InputError(f"{path}: expected a JSON object, found {type(content).__name__}")
    return content


def _check_schema(head: Mapping[str, Any], schema: str, where: str) -> None:
    found = (head.get("schema"), head.get("version"))
    if found != (schema, SCHEMA_VERSION):
        raise InputError(
            f"{where}: expected schema {schema} version {SCHEMA_VERSION}, "
            f"found {found[0]!r} version {found[1]!r}"
        )


def _parsed(text: str, path: str | Path, line: int | None = None) -> Any:
    try:
        return json.loads(text)
    except json.JSONDecodeError as error:
        where = f"{path}:{line or error.lineno}"
        raise InputError(f"{where}: not JSON (column {error.colno}: {error.msg})") from None
    except (ValueError, RecursionError) as error:
        # JSON that Python declines: a number of thousands of digits, or too deep a nesting.
        where = str(path) if line is None else f"{path}:{line}"
        raise InputError(f"{where}: JSON that can't be read ({error})") from None


def write_jsonl(
    path: str | Path, records: Iterable[Mapping[str, Any]], *, schema: str | None
) -> None:
    """Write records atomically, one a line, after a line that names the schema.

    Args:
        path: the file.
        records: JSON objects.
        schema: name, such as `ixjax.pairs`; None writes no schema line, for the formats of other
            libraries.
    """
    head = [] if schema is None else [{"schema": schema, "version": SCHEMA_VERSION}]
    with _replacing(Path(path)) as file:
        for record in itertools.chain(head, records):
            file.write(json.dumps(record, ensure_ascii=False) + "\n")


def read_jsonl(path: str | Path, *, schema: str) -> Iterator[dict[str, Any]]:
    """Yield the records that `write_jsonl` wrote.

    Raises:
        InputError: the file is missing, a line is not a JSON object, or the schema or version
            differs.
    """
    return (record for _, record in read_numbered_jsonl(path, schema=schema))


def read_numbered_jsonl(path: str | Path, *, schema: str) -> Iterator[tuple[int, dict[str, Any]]]:
    """Yield records with their line numbers, for errors that name the line; see `read_jsonl`."""
    head = True
    for number, record in read_json_lines(path):
        if head:
            head = False
            _check_schema(record, schema, f"{path}:{number}")
        else:
            yield number, record
    if head:
        raise InputError(f"{path}: empty; expected schema {schema} version {SCHEMA_VERSION}")


def read_json_lines(
    path: str | Path, *, torn: list[int] | None = None
) -> Iterator[tuple[int, dict[str, Any]]]:
    """Yield (line number from 1, object) of each line that is not blank.

    Args:
        path: the file.
        torn: collects the numbers of lines that are not JSON, which are then skipped (for logs);
            None refuses such lines.

    Raises:
        InputError: the file is missing or not UTF-8, or a line is not a JSON object.
    """
    for number, line in enumerate(read_text(path).split("\n"), start=1):
        if not line.strip():
            continue
        try:
            record = _parsed(line, path, number)
        except InputError:
            if torn is None:
                raise
            torn.append(number)
            continue
        if not isinstance(record, dict):
            raise InputError(
                f"{path}:{number}: expected a JSON object, found {type(record).__name__}"
            )
        yield number, record


def append_jsonl(path: str | Path, record: Mapping[str, Any]) -> None:
    """Append one line to a log that no stage depends on (metrics.jsonl).

    A partial last line, left by a killed process, keeps its own line.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    line = json.dumps(record).encode() + b"\n"  # ASCII, so that a partial line is valid text
    with path.open("ab+") as file:
        if file.tell():
            file.seek(-1, os.SEEK_END)
            line = line if file.read() == b"\n" else b"\n" + line
        file.write(line)


NO_EFFECT: Mapping[str, Any] = {"affects_result": False}
"""Metadata of a setting that does not change the result."""
ADDED: Mapping[str, Any] = {"added": True}
"""Metadata of a setting that older versions lack; with its default it changes no result."""


def fingerprint(*parts: Any) -> str:
    """Return 16 hex digits that identify the parts (JSON values, dataclasses, paths, bytes).

    Dataclass fields with the metadata `NO_EFFECT` are left out, and those with `ADDED` at their
    defaults, so that runs of older versions continue.
    """
    digest = hashlib.sha256()
    for part in parts:
        data = part if isinstance(part, bytes) else json.dumps(plain(part), sort_keys=True).encode()
        digest.update(len(data).to_bytes(8, "big") + data)
    return digest.hexdigest()[:16]


def plain(value: Any) -> Any:
    """Return a value as JSON, without the dataclass fields that `fingerprint` leaves out."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {
            field.name: plain(found)
            for field in dataclasses.fields(value)
            for found in [getattr(value, field.name)]
            if field.metadata.get("affects_result", True)
            and not (field.metadata.get("added") and found == field.default)
        }
    if isinstance(value, (list, tuple)):
        return [plain(item) for item in value]
    if isinstance(value, Mapping):
        return {key: plain(item) for key, item in value.items()}
    if isinstance(value, Path):
        return str(value)
    return value


def flatten(content: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Return the values of nested mappings by dotted key, each after `prefix`."""
    flat: dict[str, Any] = {}
    for key, value in content.items():
        if isinstance(value, Mapping):
            flat |= flatten(value, f"{prefix}{key}.")
        else:
            flat[f"{prefix}{key}"] = value
    return flat


def file_fingerprint(path: str | Path) -> str:
    """Return 16 hex digits of a file's content."""
    with Path(path).open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()[:16]


def folder_fingerprint(path: str | Path) -> str:
    """Return 16 hex digits of a file, or of all files below a folder with their relative names."""
    path = Path(path)
    if path.is_file():
        return file_fingerprint(path)
    files = sorted(file for file in path.rglob("*") if file.is_file())
    return fingerprint([[str(file.relative_to(path)), file_fingerprint(file)] for file in files])


@dataclasses.dataclass(frozen=True)
class RunDirectory:
    """Paths of the files of a run (docs/data-formats.md)."""

    root: Path

    @classmethod
    def existing(cls, root: str | Path) -> RunDirectory:
        """Return the run in this folder.

        Raises:
            InputError: the folder is not a run directory.
        """
        directory = cls(Path(root))
        if not directory.config.is_file():
            raise InputError(
                f"{root}: no run directory ({directory.config.name} is missing); make one with "
                f"`ixjax pipeline --config NAME --out {root}`"
            )
        return directory

    @property
    def config(self) -> Path:
        """The run's settings."""
        return self.root / "config.yaml"

    @property
    def manifest(self) -> Path:
        """Finished stages and their inputs."""
        return self.root / "manifest.json"

    @property
    def data(self) -> Path:
        """The splits."""
        return self.root / "data"

    @property
    def conditions(self) -> Path:
        """Every condition with its root."""
        return self.root / "conditions.jsonl"

    @property
    def tokenizer(self) -> Path:
        """A Hugging Face tokenizer folder."""
        return self.root / "tokenizer"

    @property
    def base(self) -> Path:
        """The model that the speakers adapt, if their fine-tuning trains adapters."""
        return self.root / "base"

    @property
    def policy_sft(self) -> Path:
        """The fine-tuned policy, DPO's reference."""
        return self.root / "policy_sft"

    @property
    def simulator(self) -> Path:
        """The simulator that the search uses."""
        return self.root / "simulator"

    @property
    def simulator_heldout(self) -> Path:
        """The simulator that the evaluation alone uses."""
        return self.root / "simulator_heldout"

    @property
    def trees(self) -> Path:
        """Finished trees: of a finished search, and in `parts/` of an unfinished one."""
        return self.root / "trees"

    @property
    def all_trees(self) -> Path:
        """The trees of a finished search, in the order of its conditions."""
        return self.trees / "trees-00000-of-00001.jsonl"

    @property
    def pairs(self) -> Path:
        """Preference pairs of the search."""
        return self.root / "pairs.jsonl"

    @property
    def pairs_trl(self) -> Path:
        """The pairs in TRL's conversational form."""
        return self.root / "pairs_trl.jsonl"

    @property
    def pairs_llama_factory(self) -> Path:
        """The pairs as a `dataset_dir` of LLaMA-Factory: a folder."""
        return self.root / "pairs_llama_factory"

    @property
    def human_pairs(self) -> Path:
        """Preference pairs of the human dialogues."""
        return self.root / "human_pairs.jsonl"

    @property
    def policy_dpo(self) -> Path:
        """The aligned policies."""
        return self.root / "policy_dpo"

    @property
    def exported(self) -> Path:
        """The aligned policies as Hugging Face folders."""
        return self.root / "exported"

    @property
    def played(self) -> Path:
        """The dialogues of the evaluation."""
        return self.root / "evaluation"

    def played_by(self, method: str, user: str, *, inputs: str) -> Path:
        """Return the file of the dialogues of one method with one user, for these inputs."""
        return self.played / f"{inputs}-{method}-{user}.jsonl"

    @property
    def evaluation(self) -> Path:
        """The comparison."""
        return self.root / "evaluation.json"

    @property
    def metrics(self) -> Path:
        """Logged steps of every stage."""
        return self.root / "metrics.jsonl"

    @property
    def rating(self) -> Path:
        """Files for human raters: no other files belong in this folder."""
        return self.root / "rating"

    @property
    def rating_key(self) -> Path:
        """The methods of the rated dialogues, hidden from the raters."""
        return self.root / "rating_key.json"

    @property
    def rating_scores(self) -> Path:
        """Scores of the human raters."""
        return self.root / "rating_scores.json"


TRAININGS = ("sft/", "dpo/")


class Manifest:
    """Finished stages of a run: stage -> {"inputs": fingerprint, "seconds": ..., facts...}.

    Unfinished trainings are recorded with their inputs, so that their checkpoints are kept.
    `made_with` holds the versions and devices of each finished stage.
    """

    def __init__(
        self,
        path: Path,
        stages: dict[str, dict[str, Any]],
        started: dict[str, str] | None = None,
        made_with: dict[str, dict[str, str]] | None = None,
    ):
        self.path = path
        self.stages = stages
        self.started = started or {}
        self.made_with = made_with or {}

    @classmethod
    def load(cls, path: Path) -> Manifest:
        """Read the manifest; a missing one is empty.

        Raises:
            InputError: the file is damaged.
        """
        if not path.exists():
            return cls(path, {})
        content = read_json(path)
        if not isinstance(content, dict) or not isinstance(content.get("stages"), dict):
            raise InputError(f"{path}: expected an object with `stages`; the manifest is damaged")
        return cls(path, content["stages"], content.get("started"), content.get("made_with"))

    def get(self, stage: str) -> dict[str, Any] | None:
        """Return the record of a finished stage; None if it is not finished."""
        return self.stages.get(stage)

    def is_done(self, stage: str, inputs: str) -> bool:
        """Return whether the stage was finished from exactly these inputs."""
        return self.stages.get(stage, {}).get("inputs") == inputs

    def record(
        self, stage: str, inputs: str, *, made_with: Mapping[str, str] | None = None, **facts: Any
    ) -> None:
        """Mark a stage as finished; the file is rewritten atomically."""
        self.stages[stage] = {"inputs": inputs, **facts}
        if made_with:
            self.made_with[stage] = dict(made_with)
        self.started.pop(stage, None)
        self._write()

    def start(self, stage: str, inputs: str) -> None:
        """Record the start of a training."""
        if stage.startswith(TRAININGS) and self.started.get(stage) != inputs:
            self.started[stage] = inputs
            self._write()

    def forget(self, stage: str) -> None:
        """Remove the record of a training without checkpoints."""
        if self.started.pop(stage, None) is not None:
            self._write()

    @property
    def made(self) -> dict[str, str]:
        """Inputs of finished stages and unfinished trainings."""
        return self.started | {stage: entry["inputs"] for stage, entry in self.stages.items()}

    def _write(self) -> None:
        content = {"schema": "ixjax.manifest", "version": SCHEMA_VERSION, "stages": self.stages}
        extra = {"started": self.started, "made_with": self.made_with}
        write_json(self.path, content | {name: value for name, value in extra.items() if value})
