"""Training in several processes: start, order of file access, and transfers between processes.

All processes share one mesh of all their devices and run one program, each on its own shards
(https://docs.jax.dev/en/latest/multi_process.html). Process 0 alone writes unsharded files, prints
and logs; the others wait before they read its files. In a single process these functions do
nothing.
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

# Variables from which jax.distributed.initialize detects a cluster: (all of these, process count).
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
TPU_HOSTS = ("TPU_PROCESS_ADDRESSES", "TPU_WORKER_HOSTNAMES")  # of a pod slice, comma-separated
_joined = threading.Event()
MARGIN_SECONDS = 60  # JAX's timeout must be later than ours, since it aborts the process


@dataclasses.dataclass(frozen=True)
class DistributedConfig:
    """Processes that train one model together, on one machine or on several."""

    coordinator: str = ""
    """HOST:PORT of process 0; empty: detected from the cluster."""
    count: int = 1
    """Number of processes; used with a coordinator."""
    index: int = 0
    """Index of this process, from 0; used with a coordinator."""
    detect: Literal["auto", "always", "never"] = "auto"
    """Cluster detection without a coordinator: auto (SLURM, Open MPI, TPU hosts), always, never."""
    timeout: float = 900.0
    """Seconds in which all processes must connect."""

    def __post_init__(self) -> None:
        """Refuse settings that name no process."""
        host, _, port = self.coordinator.rpartition(":")
        if self.coordinator and not (host and port.isdecimal()):
            raise InputError(
                f"distributed.coordinator is {self.coordinator!r}; expected HOST:PORT of process 0"
            )
        if not self.coordinator and (self.count, self.index) != (1, 0):
            raise InputError(
                f"distributed.count is {self.count} and distributed.index {self.index}; expected a "
                "coordinator with them. Set --distributed.coordinator to HOST:PORT of process 0"
            )
        if not 0 <= self.index < self.count:
            raise InputError(
                f"distributed.index is {self.index}; expected 0 to {self.count - 1} "
                f"(distributed.count is {self.count})"
            )
        if not self.timeout > 0:
            raise InputError(f"distributed.timeout is {self.timeout}; expected more than 0")


def cluster(environ: Mapping[str, str]) -> str:
    """Return the cluster that started this process as one of several; empty: no known one."""
    for name, (needed, count) in CLUSTERS.items():
        if all(key in environ for key in needed) and int(environ[count]) > 1:
            return name
    several = any("," in environ.get(key, "") for key in TPU_HOSTS)
    return "TPU pod" if several else ""


def start(config: DistributedConfig, environ: Mapping[str, str] = os.environ) -> str | None:
    """Connect to the other processes; must run before any use of a device.

    Returns:
        A line with index and devices of this process; None for a single process.

    Raises:
        TimeoutError: the processes did not connect; names the coordinator and the index.
        ConnectionError: JAX failed to connect for another reason.
    """
    if config.coordinator:
        who = f"process {config.index} of {config.count}"
        where = f"the coordinator {config.coordinator}"
        given: dict[str, Any] = {
            "coordinator_address": config.coordinator,
            "num_processes": config.count,
            "process_id": config.index,
            # With detection, a process under SLURM would get only one of its devices.
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
    """Run `jax.distributed.initialize`; raise its failures and its timeout as exceptions."""
    failures: list[Exception] = []

    def initialize() -> None:
        try:
            jax.distributed.initialize(
                **given, initialization_timeout=int(timeout) + MARGIN_SECONDS
            )
        except Exception as error:  # of a dozen types
            failures.append(error)

    # In a thread, since the call can't be interrupted.
    joining = threading.Thread(target=initialize, daemon=True)
    joining.start()
    joining.join(timeout)
    if joining.is_alive():
        raise TimeoutError(
            f"distributed: {who} did not find all others at {where} within {timeout:g} s "
            "(distributed.timeout). Check that all processes run and can reach its port"
        )
    if failures:
        reason = str(failures[0]).splitlines() or [type(failures[0]).__name__]
        raise ConnectionError(f"distributed: {who} can't join at {where} ({reason[0]})")


def joined() -> bool:
    """Return whether this process is connected to others."""
    return _joined.is_set()


def is_first() -> bool:
    """Return whether this process writes, prints and logs."""
    return jax.process_index() == 0


def wait_for_all(place: str) -> None:
    """Wait until every process has reached this place."""
    multihost_utils.sync_global_devices(place)


@contextlib.contextmanager
def first_then_others(place: str) -> Iterator[None]:
    """Run a block in process 0 first, then in the others."""
    if not is_first():
        wait_for_all(place)
    yield
    if is_first():
        wait_for_all(place)


def in_any(flag: bool) -> jax.Array | bool:
    """Return whether the flag is set in any process; does not block until the result is read.

    All processes must call it.
    """
    if jax.process_count() == 1:
        return flag
    sharding, any_of = _over_all_devices()
    flags = jax.make_array_from_callback(
        (jax.device_count(),), sharding, lambda index: np.full(1, flag)
    )
    return any_of(flags)


@functools.cache
def _over_all_devices() -> tuple[NamedSharding, Callable[[jax.Array], jax.Array]]:
    """Return the sharding of one flag per device, and a jitted `any` over the flags."""
    mesh = Mesh(np.array(jax.devices()), ("devices",))
    whole = NamedSharding(mesh, PartitionSpec())
    return NamedSharding(mesh, PartitionSpec("devices")), jax.jit(jnp.any, out_shardings=whole)


def to_host(array: Any) -> np.ndarray:
    """Return a whole array on the host of every process; all processes must call it.

    The shards of other processes are gathered on the devices, which briefly hold the whole array.
    """
    if isinstance(array, jax.Array) and not array.is_fully_addressable:
        return np.asarray(multihost_utils.process_allgather(array, tiled=True))
    return np.asarray(array)


def to_devices(tree: Any, sharding: Sharding) -> Any:
    """Place host arrays, equal in every process, on the devices of all processes."""
    if jax.process_count() == 1:
        return jax.device_put(tree, sharding)
    return jax.tree.map(
        lambda x: jax.make_array_from_callback(x.shape, sharding, lambda index: x[index]), tree
    )
