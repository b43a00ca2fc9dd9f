"""The tensors of a GGUF file, dequantised and in Hugging Face's layout.

llama.cpp's converters rename tensors (`gguf.get_tensor_name_map`), reorder the rows of a Llama's
query and key, and add the 1 of Gemma's norms. Rows are dequantised a few at a time.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path

import numpy as np

from ixjax.gguf_file import GgufFile, readable_kinds
from ixjax.models.config import ModelConfig
from ixjax.models.gguf_config import ARCHITECTURE, ROPE_FREQS
from ixjax.models.hf_files import Part, TensorSource

BLOCK_ROWS, BLOCK_BYTES = 16, 2**20  # rows dequantised at once; `gguf` works on 16
_PAIRED = ("attn_q.weight", "attn_k.weight")  # of architecture "llama"
_NORM = "norm.weight"


class GgufTensors(TensorSource):
    """Tensors of a file by Hugging Face's names; a surplus one has its own name.

    Args:
        file: the file.
        config: its network.
        names: Hugging Face's names of the network's tensors.
    """

    description = "the metadata"

    def __init__(self, file: GgufFile, config: ModelConfig, names: Iterable[str]):
        from gguf import MODEL_ARCH_NAMES, get_tensor_name_map

        self.source = file.path
        self.kinds = readable_kinds()
        self._file, self._config = file, config
        self._architecture = file.metadata[ARCHITECTURE]
        by_name = {name: architecture for architecture, name in MODEL_ARCH_NAMES.items()}
        mapped = get_tensor_name_map(by_name[self._architecture], config.num_layers)
        found = {name: mapped.get_name(name, (".weight", ".bias")) for name in names}
        self._own = {name: own or name for name, own in found.items()}

    @property
    def names(self) -> set[str]:
        """Names of all tensors; scaling factors are part of the config."""
        present = {name for name, own in self._own.items() if own in self._file.tensors}
        surplus = set(self._file.tensors) - set(self._own.values())
        return present | (surplus - {ROPE_FREQS} if self._config.rope_scaling else surplus)

    def own_name(self, name: str) -> str:
        """Return a tensor's name in the file."""
        return self._own.get(name, name)

    def file(self, name: str) -> Path:
        """Return the file."""
        return self.source

    def shape(self, name: str) -> tuple[int, ...]:
        """Return a tensor's shape, from the header."""
        return self._file.tensors[self.own_name(name)].shape

    def dtype(self, name: str) -> str:
        """Return a tensor's quantisation, such as `Q4_K`."""
        return self._file.tensors[self.own_name(name)].kind

    def blocks(self, name: str, part: Part) -> Iterator[tuple[slice, np.ndarray]]:
        """Yield a part of a tensor a few rows at a time: (rows of the part, their values)."""
        own = self.own_name(name)
        tensor = self._file.tensors[own]
        if len(part) == 1:
            (start, stop), offset = part[0], self._config.norm_offset
            values = tensor.dequantized()[start:stop]
            yield slice(0, stop - start), values - offset if name.endswith(_NORM) else values
            return
        order = self._stored_rows(own)
        (start, stop), (left, right) = part
        step = max(BLOCK_BYTES // (4 * tensor.shape[1]), BLOCK_ROWS)
        for at in range(start, stop, step):
            rows = slice(at, min(at + step, stop))
            values = tensor.dequantized(rows if order is None else order[rows])
            yield slice(rows.start - start, rows.stop - start), values[:, left:right]

    def _stored_rows(self, own: str) -> np.ndarray | None:
        """Return the stored row of each of Hugging Face's rows; None: they are the same.

        llama.cpp rotates neighbours (2i, 2i + 1) of a Llama's head; Hugging Face rotates halves.
        """
        if self._architecture != "llama" or not own.endswith(_PAIRED):
            return None
        rows = np.arange(self._file.tensors[own].shape[0])
        return rows.reshape(-1, self._config.head_dim // 2, 2).swapaxes(1, 2).reshape(-1)
