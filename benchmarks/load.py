"""Loading a Hugging Face checkpoint: seconds, bytes a second, host memory. Prints one JSON line.

    python benchmarks/load.py --dtype float32 --devices 8

A random checkpoint of Llama's shape is written as sharded safetensors into a temporary folder, then
read with `load_hf` in a fresh process, over one device or a mesh of virtual CPU devices.

Every byte is read from the files once, transposed (Hugging Face stores linear weights [out, in]),
cast, and written to where it stays. The ceiling is memory bandwidth, or with `--cold` the disk's.

Virtual CPU devices keep their arrays in host memory. What loading needs beyond them is therefore
    excess = highest resident memory - resident memory before - bytes of the loaded arrays,
and the bound on it is the largest tensor of the checkpoint (one layer's; ours are stacked over
layers) plus 500 MB. It is on anonymous memory (RssAnon): the mapped files' own pages (RssFile) are
counted as resident too, but the kernel takes them back when it wants. This process samples
/proc/PID/status of the loading one, so the numbers are Linux's alone.
"""

from __future__ import annotations

import dataclasses
import json
import multiprocessing
import os
import tempfile
import threading
import time
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, Literal

import numpy as np
import tyro

SLACK_BYTES = 500_000_000
SAMPLING_SECONDS = 0.002
FRESH = multiprocessing.get_context("spawn")
FIELDS = ("RssAnon", "RssFile")


@dataclasses.dataclass(frozen=True)
class Arguments:
    """What is written, and how it is loaded."""

    dtype: Literal["float32", "bfloat16"] = "float32"
    """Of the files and of the loaded weights."""
    devices: int = 1
    """Virtual CPU devices; several are a mesh of fsdp x tensor=2."""
    hidden_size: int = 2048
    """Width of the residual stream."""
    num_layers: int = 16
    """Decoder blocks."""
    intermediate_size: int = 8192
    """Width of the MLP."""
    vocab_size: int = 32000
    """Rows of the embedding and of the head."""
    shard_bytes: int = 1_000_000_000
    """Largest file."""
    cold: bool = False
    """Whether the files are put out of the page cache before they are read."""


def write_checkpoint(a: Arguments, folder: Path) -> None:
    """A random model of Llama's shape, by `save_hf`."""
    import jax
    from flax import nnx

    from ixjax.models import ModelConfig, Transformer, abstract_params, save_hf

    config = ModelConfig(
        vocab_size=a.vocab_size,
        hidden_size=a.hidden_size,
        num_layers=a.num_layers,
        num_heads=a.hidden_size // 64,
        num_kv_heads=max(a.hidden_size // 256, 1),
        head_dim=64,
        intermediate_size=a.intermediate_size,
        tie_embeddings=False,
        param_dtype=a.dtype,
        compute_dtype=a.dtype,
    )
    rng = np.random.default_rng(0)
    draw = lambda leaf: jax.numpy.asarray(rng.random(leaf.shape, np.float32) - 0.5, leaf.dtype)
    params = jax.tree.map(draw, abstract_params(config))
    model = nnx.merge(nnx.graphdef(Transformer(config)), params)
    save_hf(model, folder, shard_bytes=a.shard_bytes)


def load(a: Arguments, folder: Path, pipe: Connection) -> None:
    """In the fresh process: say when loading may begin, load, say what came of it."""
    import jax

    jax.config.update("jax_platforms", "cpu")
    jax.config.update("jax_num_cpu_devices", a.devices)
    from ixjax.models import load_hf
    from ixjax.parallel import MeshConfig, make_mesh

    mesh = make_mesh(MeshConfig(data=1, fsdp=-1, tensor=min(a.devices, 2)))
    for device in mesh.devices.flat:
        jax.device_put(0, device).block_until_ready()
    pipe.send("ready")
    pipe.recv()
    start, cpu = time.perf_counter(), time.process_time()
    model = load_hf(folder, mesh=mesh, dtype=a.dtype)
    leaves = jax.block_until_ready(jax.tree.leaves(model))
    seconds, cpu_seconds = time.perf_counter() - start, time.process_time() - cpu
    arrays = sum(shard.data.nbytes for leaf in leaves for shard in leaf.addressable_shards)
    pipe.send({"seconds": seconds, "cpu_seconds": cpu_seconds, "array_bytes": arrays})
    pipe.recv()


def resident(pid: int) -> dict[str, int]:
    """Bytes of a process's resident memory, anonymous and of files."""
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    values = dict(line.split(":", 1) for line in lines if ":" in line)
    return {name: int(values[name].split()[0]) * 1024 for name in FIELDS}


def watch(pid: int, done: threading.Event, peak: dict[str, int]) -> None:
    """Keep the highest values of a process in `peak`, until `done`."""
    while not done.is_set():
        for name, value in resident(pid).items():
            peak[name] = max(peak[name], value)
        time.sleep(SAMPLING_SECONDS)


def measure(a: Arguments, folder: Path) -> dict[str, Any]:
    """Load in a fresh process, and watch its memory."""
    pipe, theirs = FRESH.Pipe()
    process = FRESH.Process(target=load, args=(a, folder, theirs))
    process.start()
    theirs.close()  # so that a process that fails ends `recv`
    assert process.pid is not None
    pipe.recv()
    before = resident(process.pid)
    peak, done = dict(before), threading.Event()
    watching = threading.Thread(target=watch, args=(process.pid, done, peak))
    watching.start()
    pipe.send("go")
    try:
        found = pipe.recv()
    finally:
        done.set()
        watching.join()
    pipe.send("end")
    process.join()
    over = {name: peak[name] - before[name] for name in FIELDS}
    return {
        **found,
        "excess_anonymous_bytes": over["RssAnon"] - found["array_bytes"],
        "peak_file_backed_bytes": over["RssFile"],
    }


def put_out_of_cache(folder: Path) -> None:
    """Write the files out, and tell the kernel that their pages are not needed."""
    for file in folder.glob("*.safetensors"):
        with file.open("rb") as handle:
            os.fsync(handle.fileno())
            os.posix_fadvise(handle.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def tensor_bytes(folder: Path) -> list[int]:
    """Sizes of the tensors of a checkpoint, from the headers of its files."""
    sizes = []
    for file in sorted(folder.glob("*.safetensors")):
        with file.open("rb") as handle:
            header = json.loads(handle.read(int.from_bytes(handle.read(8), "little")))
        header.pop("__metadata__", None)
        sizes += [stop - start for start, stop in (t["data_offsets"] for t in header.values())]
    return sizes


def main(arguments: Arguments) -> None:
    """Write, load, report."""
    a = arguments
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        writing = FRESH.Process(target=write_checkpoint, args=(a, folder))
        writing.start()
        writing.join()
        if a.cold:
            put_out_of_cache(folder)
        sizes = tensor_bytes(folder)
        found = measure(a, folder)
    item_bytes = 4 if a.dtype == "float32" else 2
    bound = max(sizes) + SLACK_BYTES
    report = {
        **dataclasses.asdict(a),
        "checkpoint_bytes": sum(sizes),
        **found,
        "gigabytes_per_second": sum(sizes) / found["seconds"] / 1e9,
        "largest_tensor_bytes": max(sizes),
        "largest_stacked_weight_bytes": item_bytes
        * a.num_layers
        * a.hidden_size
        * a.intermediate_size,
        "bound": "anonymous memory, one Hugging Face tensor + 500 MB",
        "bound_bytes": bound,
        "within_bound": found["excess_anonymous_bytes"] < bound,
    }
    print(json.dumps(report))


if __name__ == "__main__":
    main(tyro.cli(Arguments, description=__doc__))
