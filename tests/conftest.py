"""Eight virtual CPU devices, no silent broadcasting, and the real corpora where they are."""

from __future__ import annotations

import os
from pathlib import Path

import jax
import pytest
from hypothesis import settings

# A run on an accelerator sets IXJAX_TEST_PLATFORM (cuda, tpu); the meshes of eight need CPU's.
PLATFORM = os.environ.get("IXJAX_TEST_PLATFORM", "cpu")
jax.config.update("jax_platforms", PLATFORM)
if PLATFORM == "cpu":
    jax.config.update("jax_num_cpu_devices", 8)  # before any array exists
jax.config.update("jax_numpy_rank_promotion", "raise")

# The machine's load must not decide; a failure must come back at the next run.
settings.register_profile("ixjax", deadline=None, derandomize=True, database=None)
settings.load_profile("ixjax")


@pytest.fixture(scope="session")
def corpora() -> Path:
    """The folder that holds `esconv/` and `p4g/`: $IXJAX_DATA, else ../shared/data."""
    default = Path(__file__).parents[1].parent / "shared" / "data"
    folder = Path(os.environ.get("IXJAX_DATA", default))
    if not (folder / "esconv").is_dir() or not (folder / "p4g").is_dir():
        pytest.skip(f"{folder} has no esconv/ and p4g/; set IXJAX_DATA to the folder that has")
    return folder


@pytest.fixture(scope="module", autouse=True)
def forgotten_programs():
    """What a file compiled goes with it.

    Each program is mapped into memory by itself, and a process may have so many mappings
    (vm.max_map_count); at that limit XLA's compiler ends the process.
    """
    yield
    jax.clear_caches()
