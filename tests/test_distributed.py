"""Multi-process functions in one process; end_to_end/test_together.py starts several."""

from __future__ import annotations

import jax
import numpy as np
import pytest
from jax._src import clusters

from ixjax.distributed import (
    DistributedConfig,
    cluster,
    first_then_others,
    in_any,
    is_first,
    start,
    to_devices,
    to_host,
)
from ixjax.parallel import MeshConfig, batch_sharding, make_mesh

SLURM = {
    "SLURM_JOB_ID": "7",
    "SLURM_STEP_NODELIST": "node[1-2]",
    "SLURM_NTASKS": "2",
    "SLURM_PROCID": "1",
    "SLURM_LOCALID": "0",
}
OPEN_MPI = {"OMPI_MCA_orte_hnp_uri": "1531576320.0;tcp://10.0.0.1:1", "OMPI_COMM_WORLD_SIZE": "2"}


@pytest.mark.parametrize(
    ("environ", "name"),
    [
        ({}, ""),
        (SLURM, "SLURM"),
        (SLURM | {"SLURM_NTASKS": "1"}, ""),
        ({k: v for k, v in SLURM.items() if k != "SLURM_STEP_NODELIST"}, ""),  # no `srun`
        (OPEN_MPI, "Open MPI"),
        ({"TPU_WORKER_HOSTNAMES": "a,b"}, "TPU pod"),
        ({"TPU_WORKER_HOSTNAMES": "localhost"}, ""),
    ],
)
def test_a_cluster_is_known_by_its_environment(environ, name):
    assert cluster(environ) == name


@pytest.mark.parametrize("environ", [SLURM, OPEN_MPI])
def test_what_is_taken_for_a_cluster_is_one_to_jax(environ, monkeypatch):
    for key, value in environ.items():
        monkeypatch.setenv(key, value)
    there = [kind for kind in clusters.ClusterEnv._cluster_types if kind.is_env_present()]
    assert [kind.name for kind in there] == ["slurm" if environ is SLURM else "ompi"]
    assert there[0].get_process_count() == 2


def test_a_process_without_others_starts_nothing():
    assert start(DistributedConfig(), {}) is None
    assert start(DistributedConfig(detect="never"), SLURM) is None
    assert not jax.distributed.is_initialized()


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"coordinator": "host"}, "coordinator is 'host'; expected HOST:PORT of process 0"),
        ({"count": 2}, "distributed.count is 2 and distributed.index 0; expected a coordinator"),
        (
            {"coordinator": "host:1", "count": 2, "index": 2},
            "distributed.index is 2; expected 0 to 1",
        ),
        ({"timeout": 0}, "distributed.timeout is 0; expected more than 0"),
    ],
)
def test_settings_that_lead_nowhere_are_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        DistributedConfig(**settings)


def test_an_array_goes_to_the_devices_and_comes_back():
    rows = np.arange(24.0, dtype=np.float32).reshape(8, 3)
    placed = to_devices({"rows": rows}, batch_sharding(make_mesh(MeshConfig(2, 2, 2))))["rows"]
    assert {shard.data.shape for shard in placed.addressable_shards} == {(2, 3)}
    np.testing.assert_array_equal(to_host(placed), rows)


def test_a_single_process_is_the_first_and_waits_for_nobody():
    assert is_first()
    with first_then_others("a place"):
        assert [bool(in_any(flag)) for flag in (True, False)] == [True, False]
