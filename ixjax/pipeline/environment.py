"""Versions that a stage ran with, recorded in the manifest."""

from __future__ import annotations

import functools
import platform
from importlib import metadata

# Packages whose version may change a result.
PACKAGES = (
    "ixjax",
    "jax",
    "jaxlib",
    "flax",
    "optax",
    "orbax-checkpoint",
    "grain",
    "numpy",
    "transformers",
    "tokenizers",
)


@functools.cache
def versions() -> dict[str, str]:
    """Return the versions of Python and of `PACKAGES`, by name."""
    return {"python": platform.python_version()} | {name: _version(name) for name in PACKAGES}


def _version(package: str) -> str:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return "not installed"
