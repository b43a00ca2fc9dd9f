"""The tensors of a Hugging Face folder: safetensors, one file or several with an index.

`TensorSource` is what a checkpoint's tensors are read through; `ixjax.models.gguf_tensors` has
another one. Files are memory-mapped: opening one reads its header, and a part of a tensor is read
a few rows at a time.

Format: https://huggingface.co/docs/safetensors
"""

from __future__ import annotations

import contextlib
import itertools
import json
import math
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from ixjax.io import InputError, read_json

CONFIG = "config.json"
WEIGHTS = "model.safetensors"
INDEX = "model.safetensors.index.json"
ADAPTER_CONFIG = "adapter_config.json"  # PEFT's; marks a folder with an adapter
# Rows read at once. 16 rows of float32, transposed, fill whole cache lines; more are evicted from
# the cache before they are written (measured: 64 rows take twice as long, a whole matrix four
# times).
BLOCK_ROWS, BLOCK_BYTES = 16, 2**18
FLOATS = ("F64", "F32", "F16", "BF16")
DTYPES = {"float32": "F32", "float16": "F16", "bfloat16": "BF16"}  # NumPy's name -> safetensors'
RECOMPUTED = ".rotary_emb.inv_freq"  # a buffer that old Llama exports carry

Part = tuple[tuple[int, int], ...]  # (start, stop) along each axis


class TensorSource(Protocol):
    """Tensors of a checkpoint by Hugging Face's names; values are read on request."""

    source: Path
    """File that lists the tensors."""
    description: str
    """Where the network's shape comes from, for errors."""
    kinds: Sequence[str]
    """Types that can be read."""

    @property
    def names(self) -> set[str]:
        """Names of all tensors."""
        ...

    def own_name(self, name: str) -> str:
        """Return the file's own name of a tensor, for errors."""
        ...

    def file(self, name: str) -> Path:
        """Return the file of a tensor."""
        ...

    def shape(self, name: str) -> tuple[int, ...]:
        """Return a tensor's shape, from its file's header."""
        ...

    def dtype(self, name: str) -> str:
        """Return a tensor's type, by the file's own name."""
        ...

    def blocks(self, name: str, part: Part) -> Iterator[tuple[slice, np.ndarray]]:
        """Yield a part of a tensor a few rows at a time: (rows of the part, their values)."""
        ...

    def read(self, name: str, part: Part, out: np.ndarray, *, transposed: bool) -> None:
        """Fill `out` with a part of a tensor (of its transpose if `transposed`), cast."""
        part, out = (part[::-1], out.T) if transposed else (part, out)
        for rows, values in self.blocks(name, part):
            out[rows] = values

    def equal(self, one: str, other: str) -> bool:
        """Return whether two tensors hold the same values."""
        if self.shape(one) != self.shape(other):
            return False
        part = tuple((0, size) for size in self.shape(one))
        both = zip(self.blocks(one, part), self.blocks(other, part), strict=True)
        return all(np.array_equal(a, b) for (_, a), (_, b) in both)


class TensorFolder(TensorSource):
    """Tensors of a folder of safetensors."""

    description = CONFIG
    kinds = FLOATS

    def __init__(self, source: Path):
        self.source = source
        self._tensors: dict[str, tuple[Path, Any]] = {}

    def add(self, file: Path, handle: Any, names: Iterable[str]) -> None:
        """Add these tensors of an open file.

        Raises:
            InputError: the file lacks one of them.
        """
        present = set(handle.keys())
        for name in names:
            if name not in present:
                raise InputError(f"{file}: tensor {name} is missing; {self.source} lists it here")
            if not name.endswith(RECOMPUTED):
                self._tensors[name] = (file, handle.get_slice(name))

    @property
    def names(self) -> set[str]:
        """Names of all tensors."""
        return set(self._tensors)

    def own_name(self, name: str) -> str:
        """Return the name itself."""
        return name

    def file(self, name: str) -> Path:
        """Return the file of a tensor."""
        return self._tensors[name][0]

    def shape(self, name: str) -> tuple[int, ...]:
        """Return a tensor's shape, from its file's header."""
        return tuple(self._tensors[name][1].get_shape())

    def dtype(self, name: str) -> str:
        """Return a tensor's type, by safetensors' name."""
        return self._tensors[name][1].get_dtype()

    def blocks(self, name: str, part: Part) -> Iterator[tuple[slice, np.ndarray]]:
        """Yield a part of a tensor a few rows at a time: (rows of the part, their values)."""
        tensor = self._tensors[name][1]
        (start, stop), *rest = part
        row_bytes = 8 * math.prod(end - begin for begin, end in rest)
        step = max(BLOCK_BYTES // row_bytes, BLOCK_ROWS)
        for at in range(start, stop, step):
            rows = slice(at, min(at + step, stop))
            values = tensor[(rows, *(slice(*bounds) for bounds in rest))]
            yield slice(rows.start - start, rows.stop - start), values


def open_folder(folder: Path, files: contextlib.ExitStack) -> TensorFolder:
    """Open a folder's files, which `files` closes.

    Raises:
        InputError: a file is missing, damaged, pickled, or differs from the index.
    """
    if (folder / WEIGHTS).is_file():
        handle = _open_file(folder / WEIGHTS, files)
        checkpoint = TensorFolder(folder / WEIGHTS)
        checkpoint.add(folder / WEIGHTS, handle, handle.keys())
        return checkpoint
    if not (folder / INDEX).is_file():
        raise InputError(f"{folder}: expected {WEIGHTS} or {INDEX}, found {_instead(folder)}")
    index = read_json(folder / INDEX)
    weight_map = index.get("weight_map") if isinstance(index, dict) else None
    if not isinstance(weight_map, dict) or not weight_map:
        raise InputError(f"{folder / INDEX}: weight_map is missing; expected tensor -> file")
    checkpoint = TensorFolder(folder / INDEX)
    for name in sorted({str(name) for name in weight_map.values()}):
        if Path(name).name != name or not name.endswith(".safetensors"):
            raise InputError(
                f"{folder / INDEX}: weight_map names {name!r}; expected a *.safetensors here"
            )
        handle = _open_file(folder / name, files)
        checkpoint.add(folder / name, handle, [t for t, file in weight_map.items() if file == name])
        unlisted = sorted(
            t for t in set(handle.keys()) - set(weight_map) if not t.endswith(RECOMPUTED)
        )
        if unlisted:
            raise InputError(
                f"{folder / name}: tensor {unlisted[0]} is not listed by {INDEX} "
                f"({len(unlisted)} such tensors)"
            )
    return checkpoint


def _instead(folder: Path) -> str:
    """Describe the weights of a folder without WEIGHTS and INDEX, and the remedy."""
    shards = sorted(p.name for p in folder.glob("*.safetensors"))
    if shards:
        return f"{', '.join(shards)}, but no index of them. Download {INDEX} too"
    pickled = sorted(p.name for p in folder.iterdir() if p.suffix in (".bin", ".pt", ".pth"))
    if not pickled:
        return "none"
    return (
        f"only {pickled[0]}; pickles are not read, since they execute code. If you trust it, "
        "convert it: "
        f"transformers.AutoModelForCausalLM.from_pretrained({str(folder)!r})"
        f".save_pretrained({str(folder)!r})"
    )


def _open_file(file: Path, files: contextlib.ExitStack) -> Any:
    with checked_file(file, missing=f"{INDEX} lists it"):
        return files.enter_context(safe_open(file, framework="numpy"))


@contextlib.contextmanager
def checked_file(file: Path, *, missing: str) -> Iterator[None]:
    """Raise `InputError` for the errors of a block that reads a file of tensors.

    Args:
        file: the file.
        missing: reason or remedy if the file is missing.

    Raises:
        InputError: the file is missing or damaged.
    """
    try:
        yield
    except FileNotFoundError:
        raise InputError(f"{file}: no such file; {missing}") from None
    except (SafetensorError, OSError) as error:
        raise InputError(f"{file}: not a whole safetensors file ({error})") from None


def write_tensors(
    file: Path, shapes: Mapping[str, tuple[int, ...]], dtype: np.dtype, values: Iterator[np.ndarray]
) -> None:
    """Write a file of tensors of one type atomically.

    Unlike safetensors' writer, it holds one tensor at a time.

    Args:
        file: the file.
        shapes: shapes of the tensors by name.
        dtype: type of the tensors.
        values: the tensors in the order of `shapes`; no further ones are consumed.
    """
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    at = 0
    for name, shape in shapes.items():
        end = at + math.prod(shape) * dtype.itemsize
        header[name] = {"dtype": DTYPES[dtype.name], "shape": shape, "data_offsets": [at, end]}
        at = end
    described = json.dumps(header).encode()
    described += b" " * (-len(described) % 8)  # the data start at a multiple of 8 bytes
    partial = file.with_name(f".{file.name}.partial")
    with partial.open("wb") as out:
        out.write(len(described).to_bytes(8, "little") + described)
        taken = itertools.islice(values, len(shapes))
        for value, shape in zip(taken, shapes.values(), strict=True):
            assert (value.shape, value.dtype) == (shape, dtype)
            out.write(np.ascontiguousarray(value).reshape(-1).view(np.uint8).data)
    os.replace(partial, file)


def save_whole(file: Path, tensors: Mapping[str, np.ndarray]) -> None:
    """Write a file of tensors atomically."""
    partial = file.with_name(f".{file.name}.partial")
    save_file(dict(tensors), partial, metadata={"format": "pt"})
    os.replace(partial, file)
