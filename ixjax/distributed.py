"""Several processes that work as one: their start, their turns, and what crosses between them.

JAX's processes share one mesh of all their devices and run one program, each on its own shards
(https://docs.jax.dev/en/latest/multi_process.html). Process 0 alone writes files that are not
sharded, prints and logs; the others wait where they read what it has written. In a single process
everything here does nothing.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import os
import threading
from collections.abc import Callable, Iterator, Mapping
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import Mesh, NamedSharding, PartitionSpec, Sharding

from ixjax.io import InputError

# What jax.distributed.initialize reads where nothing is given: (all of these, how many processes).
CLUSTERS: Mapping[str, tuple[tuple[str, ...], str]] = {
    "SLURM": (
        (
            "SLURM_JOB_ID",
            "SLURM_STEP_NODELIST",
            "SLURM_NTASKS",
            "SLURM_PROCID",
            "SLURM_LOCALID",
        ),
        "SLURM_NTASKS",
    ),
    "Open MPI": (("OMPI_MCA_orte_hnp_uri", "OMPI_COMM_WORLD_SIZE"), "OMPI_COMM_WORLD_SIZE"),
}
TPU_HOSTS = ("TPU_PROCESS_ADDRESSES", "TPU_WORKER_HOSTNAMES")  # of a pod slice, with commas
_joined = threading.Event()
MARGIN_SECONDS = 60  # JAX's own timeout comes later than ours: it aborts the process


@dataclasses.dataclass(frozen=True)
class DistributedConfig:
    """Processes that train one model together, on one machine or on many."""

    coordinator: str = ""
    """HOST:PORT at which process 0 is found; empty: as the cluster says."""
    count: int = 1
    """How many processes there are; read with a coordinator alone."""
    index: int = 0
    """Which of them this is, from 0."""
    detect: Literal["auto", "always", "never"] = "auto"
    """Without a coordinator, who is asked: auto (SLURM, Open MPI, TPU hosts), always, never."""
    timeout: float = 900.0
    """Seconds in which all of them must have found each other."""

    def __post_init__(self) -> None:
        """Refuse a process that there is not."""
        host, _, port = self.coordinator.rpartition(":")
        if self.coordinator and not (host and port.isdecimal()):
            raise InputError(
                f"distributed.coordinator is {self.coordinator!r}; expected HOST:PORT of process 0"
            )
        if not self.coordinator and (self.count, self.index) != (1, 0):
            raise InputError(
                f"distributed.count is {self.count} and distributed.index {self.index}, but no "
                "process is named where all meet: set distributed.coordinator to HOST:PORT"
            )
        if not 0 <= self.index < self.count:
            raise InputError(
                f"distributed.index is {self.index}; expected 0 to {self.count - 1}, since "
                f"distributed.count is {self.count}"
            )
        if not self.timeout > 0:
            raise InputError(f"distributed.timeout is {self.timeout}; expected more than 0")


def cluster(environ: Mapping[str, str]) -> str:
    """The cluster that started this process among several others; empty: none that is known."""
    for name, (needed, count) in CLUSTERS.items():
        if all(key in environ for key in needed) and int(environ[count]) > 1:
            return name
    several = any("," in environ.get(key, "") for key in TPU_HOSTS)
    return "TPU pod" if several else ""


def start(config: DistributedConfig, environ: Mapping[str, str] = os.environ) -> str | None:
    """Join the other processes; must come before anything touches a device.

    Returns:
        A line that says which process this is and what devices it has; None where it is alone.

    Raises:
        TimeoutError: they did not find each other; names the coordinator and the index.
        ConnectionError: what else JAX says against it.
    """
    if config.coordinator:
        who = f"process {config.index} of {config.count}"
        where = f"the coordinator {config.coordinator}"
        given: dict[str, Any] = {
            "coordinator_address": config.coordinator,
            "num_processes": config.count,
            "process_id": config.index,
            # Or a process under SLURM would be left a single one of its devices.
            "cluster_detection_method": "deactivate",
        }
    else:
        found = cluster(environ) or ("the cluster" if config.detect == "always" else "")
        if not found or config.detect == "never":
            return None
        who, where, given = "a process", f"the coordinator that {found} names", {}
    _join(given, config.timeout, who, where)
    _joined.set()
    mine, everyone = jax.local_devices(), jax.device_count()
    ids = f"{mine[0].id} to {mine[-1].id}" if len(mine) > 1 else f"{mine[0].id}"
    return (
        f"process {jax.process_index()} of {jax.process_count()}: devices {ids} "
        f"({len(mine)} of {everyone}, {mine[0].platform})"
    )


def _join(given: Mapping[str, Any], timeout: float, who: str, where: str) -> None:
    """`jax.distributed.initialize`, but what goes wrong is an exception."""
    failures: list[Exception] = []

    def initialize() -> None:
        try:
            jax.distributed.initialize(
                **given, initialization_timeout=int(timeout) + MARGIN_SECONDS
            )
        except Exception as error:  # of a dozen types
            failures.append(error)

    # In a thread, since nothing but the end of the process interrupts it.
    joining = threading.Thread(target=initialize, daemon=True)
    joining.start()
    joining.join(timeout)
    if joining.is_alive():
        raise TimeoutError(
            f"distributed: {who} did not find all others at {where} within {timeout:g} s "
            "(distributed.timeout); were all started, and is its port open to them?"
        )
    if failures:
        told = str(failures[0]).splitlines() or [type(failures[0]).__name__]
        raise ConnectionError(f"distributed: {who} can't join at {where} ({told[0]})")


def joined() -> bool:
    """Whether this process has found the others that it works with."""
    return _joined.is_set()


def is_first() -> bool:
    """Whether this process writes, prints and logs."""
    return jax.process_index() == 0


def wait_for_all(place: str) -> None:
    """Go on once every process has come to this place."""
    multihost_utils.sync_global_devices(place)


@contextlib.contextmanager
def first_then_others(place: str) -> Iterator[None]:
    """A block that process 0 goes through before the others do."""
    if not is_first():
        wait_for_all(place)
    yield
    if is_first():
        wait_for_all(place)


def in_any(flag: bool) -> jax.Array | bool:
    """Whether the flag is set in any process: all must ask, none waits before it looks."""
    if jax.process_count() == 1:
        return flag
    sharding, any_of = _over_all_devices()
    flags = jax.make_array_from_callback(
        (jax.device_count(),), sharding, lambda index: np.full(1, flag)
    )
    return any_of(flags)


@functools.cache
def _over_all_devices() -> tuple[NamedSharding, Callable[[jax.Array], jax.Array]]:
    """How a flag for each device lies, and whether any of them is set, jitted."""
    mesh = Mesh(np.array(jax.devices()), ("devices",))
    whole = NamedSharding(mesh, PartitionSpec())
    return NamedSharding(mesh, PartitionSpec("devices")), jax.jit(jnp.any, out_shardings=whole)


def to_host(array: Any) -> np.ndarray:
    """A whole array on the host of every process; all must ask for it.

    The shards of other processes come through the devices, which hold it whole for a moment.
    """
    if isinstance(array, jax.Array) and not array.is_fully_addressable:
        return np.asarray(multihost_utils.process_allgather(array, tiled=True))
    return np.asarray(array)


def to_devices(tree: Any, sharding: Sharding) -> Any:
    """Host arrays, the same in every process, as arrays over the devices of all of them."""
    if jax.process_count() == 1:
        return jax.device_put(tree, sharding)
    return jax.tree.map(
        lambda x: jax.make_array_from_callback(x.shape, sharding, lambda index: x[index]), tree
    )
