"""GGUF files: the metadata and the tensors of one memory-mapped file.

This module reads the header. Other floors give it a meaning: `ixjax.models.gguf_config` and
`ixjax.models.gguf_tensors` for models, `ixjax.dialogue.gguf_tokenizer` for tokenizers.
`gguf.GGUFReader` takes 2 s for a vocabulary of 49152 tokens (here: 0.1 s), and it trusts the counts
of a damaged file.

Format: https://github.com/ggml-org/ggml/blob/master/docs/gguf.md
"""

from __future__ import annotations

import dataclasses
import functools
import math
import struct
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from ixjax.io import InputError

SUFFIX = ".gguf"
MAGIC, VERSIONS = b"GGUF", (2, 3)
ALIGNMENT, ALIGNMENT_DEFAULT = "general.alignment", 32
MAX_AXES = 4  # ggml's GGML_MAX_DIMS
SPLITS = "split.count"
KINDS = {int: "an integer", float: "a number", str: "a text", bool: "true or false"}

# Types of metadata values, by the format's numbers.
_SCALARS = {
    **{0: "<B", 1: "<b", 2: "<H", 3: "<h", 4: "<I", 5: "<i"},
    **{6: "<f", 7: "<?", 10: "<Q", 11: "<q", 12: "<d"},
}
_FLOAT32, _STRING, _ARRAY = 6, 8, 9


def is_gguf(path: str | Path) -> bool:
    """Return whether a path names a GGUF file, which need not exist."""
    return Path(path).suffix.lower() == SUFFIX and not Path(path).is_dir()


@dataclasses.dataclass(frozen=True)
class StoredTensor:
    """One tensor as it is stored."""

    shape: tuple[int, ...]
    """Rows first, as in NumPy (the format lists the fastest axis first)."""
    kind: str
    """Its quantisation, such as `F32` or `Q4_K`."""
    data: np.ndarray = dataclasses.field(repr=False)
    """`[..., bytes of a row]` of the memory-mapped file."""

    def dequantized(self, rows: slice | np.ndarray = slice(None)) -> np.ndarray:
        """Return the float32 values of some rows."""
        from gguf import GGMLQuantizationType, dequantize

        # Indices of rows copy only these rows of the file.
        stored = np.ascontiguousarray(self.data[rows])
        return dequantize(stored, GGMLQuantizationType[self.kind])


@dataclasses.dataclass(frozen=True)
class GgufFile:
    """The content of a file; tensors are read on request."""

    path: Path
    metadata: Mapping[str, Any] = dataclasses.field(repr=False)
    tensors: Mapping[str, StoredTensor] = dataclasses.field(repr=False)

    def error(self, key: str, expected: str) -> InputError:
        """Return an error about one value of the metadata."""
        found = repr(self.metadata[key]) if key in self.metadata else "nothing"
        return InputError(f"{self.path}: {key} is {found[:80]}; expected {expected}")

    def get(self, key: str, kind: type, default: Any = None) -> Any:
        """Return a scalar of the metadata; `default` if the file lacks it.

        Raises:
            InputError: it is not of this kind, or it is missing and has no default.
        """
        value = self.metadata.get(key, default)
        fits = isinstance(value, kind) and (kind is bool or not isinstance(value, bool))
        if not fits:
            raise self.error(key, KINDS[kind])
        return value

    def array(self, key: str, kind: type) -> list[Any]:
        """Return an array of the metadata.

        Raises:
            InputError: it is missing, or its elements are not of this kind.
        """
        values = self.metadata.get(key)
        if not isinstance(values, list) or not values or not isinstance(values[0], kind):
            raise self.error(key, f"a non-empty array, each element {KINDS[kind]}")
        return values


@functools.cache
def readable_kinds() -> tuple[str, ...]:
    """Return the quantisations that `gguf` dequantises."""
    from gguf import GGML_QUANT_SIZES, GGMLQuantizationType, dequantize

    found = []
    for kind in GGMLQuantizationType:
        block = np.zeros((1, GGML_QUANT_SIZES[kind][1]), np.uint8)
        try:
            dequantize(block, kind)
        except NotImplementedError:
            continue
        found.append(kind.name)
    return tuple(found)


def open_gguf(path: str | Path) -> GgufFile:
    """Return the content of a GGUF file.

    Raises:
        InputError: the file is missing, not GGUF, damaged, or one part of several.
    """
    path = Path(path)
    if not path.is_file():
        raise InputError(f"{path}: no such file; expected a GGUF checkpoint (*{SUFFIX})")
    try:
        reader = _Reader(path)
    except OSError as error:
        raise InputError(
            f"{path}: can't be read ({error.strerror}); expected a GGUF file"
        ) from None
    magic = reader.take(len(MAGIC), "the magic").tobytes()
    if magic != MAGIC:
        raise InputError(f"{path}: begins with {magic!r}; expected a GGUF file ({MAGIC!r})")
    version = reader.number("<I", "the version")
    if version not in VERSIONS:
        raise InputError(f"{path}: GGUF version is {version}; expected 2 or 3, little-endian")
    tensors, values = (reader.number("<Q", what) for what in ("tensor_count", "kv_count"))
    metadata: dict[str, Any] = {}
    for number in range(values):
        key = reader.text(f"the key of value {number}")
        if key in metadata:
            raise InputError(f"{path}: {key} is given twice; expected once")
        metadata[key] = reader.value(reader.number("<I", key), key)
    opened = GgufFile(path, metadata, {})
    if opened.get(SPLITS, int, 1) > 1:
        raise opened.error(SPLITS, "1: join the parts with `llama-gguf-split --merge`")
    described: dict[str, _Description] = {}
    for number in range(tensors):
        name, description = reader.tensor(number)
        if name in described:
            raise InputError(f"{path}: tensor {name} is listed twice; expected once")
        described[name] = description
    alignment = opened.get(ALIGNMENT, int, ALIGNMENT_DEFAULT)
    if alignment < 1:
        raise opened.error(ALIGNMENT, "1 or more bytes")
    start = -(-reader.at // alignment) * alignment
    stored = {name: _stored(reader, start, name, *described[name]) for name in described}
    return dataclasses.replace(opened, tensors=stored)


def _stored(
    reader: _Reader, data: int, name: str, shape: tuple[int, ...], kind: int, offset: int
) -> StoredTensor:
    """Return a tensor of the data section, which begins at `data`, checked to be whole."""
    from gguf import GGML_QUANT_SIZES, GGMLQuantizationType

    start = data + offset
    where = f"{reader.path}: tensor {name}"
    try:
        known = GGMLQuantizationType(kind)
    except ValueError:
        raise InputError(
            f"{where} has quantisation {kind}; expected one of "
            f"{', '.join(readable_kinds())}. A newer `gguf` package may know it"
        ) from None
    block, block_bytes = GGML_QUANT_SIZES[known]
    if shape[-1] % block:
        raise InputError(
            f"{where} has shape {list(shape)}; expected rows of a multiple of {block} "
            f"({known.name})"
        )
    row_bytes = shape[-1] // block * block_bytes
    end = start + math.prod(shape[:-1]) * row_bytes
    if end > reader.data.size:
        raise InputError(
            f"{where} ends at byte {end}; expected at most {reader.data.size}, the size of the "
            "file. The file is truncated: download it again"
        )
    return StoredTensor(shape, known.name, reader.data[start:end].reshape(*shape[:-1], row_bytes))


_Description = tuple[tuple[int, ...], int, int]  # shape, quantisation, offset in the data section


class _Reader:
    """A place in a file's header, advanced by every read."""

    def __init__(self, path: Path):
        self.path = path
        size = path.stat().st_size
        self.data = np.memmap(path, np.uint8, mode="r") if size else np.empty(0, np.uint8)
        self.bytes = self.data.data
        self.at = 0

    def take(self, count: int, what: str) -> memoryview:
        end = self.at + count
        if end > len(self.bytes):
            raise InputError(
                f"{self.path}: ends inside {what} (byte {len(self.bytes)}); expected a whole GGUF "
                "file. Download it again"
            )
        taken = self.bytes[self.at : end]
        self.at = end
        return taken

    def number(self, form: str, what: str) -> Any:
        return struct.unpack(form, self.take(struct.calcsize(form), what))[0]

    def text(self, what: str) -> str:
        raw = self.take(self.number("<Q", what), what)
        try:
            return str(raw, "utf-8")
        except UnicodeDecodeError as error:
            raise InputError(f"{self.path}: {what} is not UTF-8 ({error})") from None

    def value(self, kind: int, key: str) -> Any:
        """Return a value of the metadata; an array as a list."""
        if kind == _STRING:
            return self.text(key)
        if kind == _ARRAY:
            return self.elements(*struct.unpack("<IQ", self.take(12, key)), key)
        if kind not in _SCALARS:
            raise InputError(f"{self.path}: {key} has type {kind}; expected a type of GGUF (0-12)")
        value = self.number(_SCALARS[kind], key)
        # The shortest decimal: 1e-05, which a converter wrote, and not 9.999999747378752e-06.
        return float(str(np.float32(value))) if kind == _FLOAT32 else value

    def elements(self, kind: int, count: int, key: str) -> list[Any]:
        if kind == _STRING:
            if 8 * count > self.data.size:  # each has a length of 8 bytes
                raise InputError(
                    f"{self.path}: {key} has {count} texts; expected no more than fit into the "
                    f"file of {self.data.size} bytes. Download it again"
                )
            return [self.text(key) for _ in range(count)]
        if kind not in _SCALARS:
            raise InputError(
                f"{self.path}: {key} is an array of type {kind}; expected numbers or texts"
            )
        raw = self.take(count * struct.calcsize(_SCALARS[kind]), key)
        return np.frombuffer(raw, np.dtype(_SCALARS[kind])).tolist()

    def tensor(self, number: int) -> tuple[str, _Description]:
        """Return a tensor's name and description."""
        name = self.text(f"the name of tensor {number}")
        axes = self.number("<I", name)
        if not 1 <= axes <= MAX_AXES:
            raise InputError(
                f"{self.path}: tensor {name} has {axes} axes; expected 1 to {MAX_AXES}"
            )
        raw = self.take(8 * axes + 12, name)
        *sizes, kind, offset = struct.unpack(f"<{axes}QIQ", raw)
        shape = tuple(reversed(sizes))
        if 0 in shape:
            raise InputError(f"{self.path}: tensor {name} has shape {list(shape)}; expected no 0")
        return name, (shape, kind, offset)
