"""Where a checkpoint's config and tensors are: in a Hugging Face folder, or in a GGUF file."""

from __future__ import annotations

import contextlib
from collections.abc import Iterable
from pathlib import Path

from ixjax.gguf_file import SUFFIX, is_gguf, open_gguf
from ixjax.io import InputError
from ixjax.models.config import ModelConfig
from ixjax.models.gguf_tensors import GgufTensors
from ixjax.models.hf_files import ADAPTER_CONFIG, CONFIG, TensorSource, open_folder


def checkpoint_path(path: str | Path) -> Path:
    """Return the folder or the GGUF file of one model.

    Raises:
        InputError: it is missing, or the folder has an adapter or several GGUF files instead.
    """
    path = Path(path)
    if is_gguf(path):
        return path
    if not path.is_dir():
        found = "a file" if path.exists() else "no such folder"
        raise InputError(
            f"{path}: {found}; expected a Hugging Face checkpoint (config.json and "
            f"*.safetensors) or a *{SUFFIX} file. Download one with "
            "`hf download NAME --local-dir FOLDER`"
        )
    adapter, alone = path / ADAPTER_CONFIG, not (path / CONFIG).exists()
    if adapter.exists():
        found = "an adapter without its base" if alone else "an adapter next to a model"
        raise InputError(
            f"{adapter}: found {found}; expected a folder of one model. Merge the adapter into its "
            "base and save both in Python (load_adapter, merge_lora, save_hf of ixjax.models)"
            + ("" if alone else ", or move the adapter to another folder")
        )
    files = sorted(file.name for file in path.iterdir() if is_gguf(file)) if alone else []
    if files:
        raise InputError(
            f"{path}: no {CONFIG}, but {', '.join(files)}; expected a Hugging Face checkpoint. "
            f"Give the path of the file: {path / files[0]}"
        )
    return path


def config_file(checkpoint: Path) -> Path:
    """Return the file that `read_config` reads."""
    return checkpoint if is_gguf(checkpoint) else checkpoint / CONFIG


def open_tensors(
    checkpoint: Path, config: ModelConfig, names: Iterable[str], files: contextlib.ExitStack
) -> TensorSource:
    """Open a checkpoint's tensors, in files that `files` closes.

    Args:
        checkpoint: the folder or GGUF file.
        config: its network.
        names: Hugging Face's names of the network's tensors.
        files: closes the files.

    Raises:
        InputError: a file is missing or damaged.
    """
    if is_gguf(checkpoint):
        return GgufTensors(open_gguf(checkpoint), config, names)
    return open_folder(checkpoint, files)
