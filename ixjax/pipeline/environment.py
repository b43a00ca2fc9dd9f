"""What a stage is done with: kept in the manifest, so that a result can be explained later."""

from __future__ import annotations

import functools
import platform
from importlib import metadata

# Those whose version may change a result.
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
    """The versions of Python and of `PACKAGES`, by name; sources alone have no version."""
    return {"python": platform.python_version()} | {name: _version(name) for name in PACKAGES}


def _version(package: str) -> str:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return "not installed"
