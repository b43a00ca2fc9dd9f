"""Specifications of accelerators by their vendors: peak of matrix products, memory, bandwidth.

`ixjax plan` estimates with them, and trainings log their share of the peak (model FLOPs
utilisation). Peaks are of dense products in bfloat16.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Literal

DeviceName = Literal[
    "tpu-v4", "tpu-v5e", "tpu-v5p", "tpu-v6e", "a100-40gb", "a100-80gb", "h100", "h200"
]


@dataclasses.dataclass(frozen=True)
class DeviceKind:
    """One accelerator as JAX counts devices."""

    peak_tflops: float
    """Dense bfloat16 matrix products, 10^12 operations a second."""
    memory_gb: float
    """Device memory, 10^9 bytes."""
    bandwidth_gb: float
    """Device memory bandwidth, 10^9 bytes a second."""


KINDS: Mapping[DeviceName, DeviceKind] = {
    # https://cloud.google.com/tpu/docs/v4 (one device a chip: megacore)
    "tpu-v4": DeviceKind(275, 32, 1200),
    # https://cloud.google.com/tpu/docs/v5e
    "tpu-v5e": DeviceKind(197, 16, 819),
    # https://cloud.google.com/tpu/docs/v5p
    "tpu-v5p": DeviceKind(459, 95, 2765),
    # https://cloud.google.com/tpu/docs/v6e
    "tpu-v6e": DeviceKind(918, 32, 1638),
    # https://www.nvidia.com/en-us/data-center/a100/ (SXM)
    "a100-40gb": DeviceKind(312, 40, 1555),
    "a100-80gb": DeviceKind(312, 80, 2039),
    # https://www.nvidia.com/en-us/data-center/h100/ (SXM; the sheet's 1,979 is with sparsity)
    "h100": DeviceKind(989, 80, 3350),
    # https://www.nvidia.com/en-us/data-center/h200/ (SXM)
    "h200": DeviceKind(989, 141, 4800),
}

# `jax.Device.device_kind` -> name above
REPORTED: Mapping[str, DeviceName] = {
    "TPU v4": "tpu-v4",
    "TPU v5 lite": "tpu-v5e",
    "TPU v5": "tpu-v5p",
    "TPU v5p": "tpu-v5p",
    "TPU v6 lite": "tpu-v6e",
    "NVIDIA A100-SXM4-40GB": "a100-40gb",
    "NVIDIA A100-SXM4-80GB": "a100-80gb",
    "NVIDIA H100 80GB HBM3": "h100",
    "NVIDIA H200": "h200",
}


def known_kind(device_kind: str) -> DeviceKind | None:
    """Return the specification for a `jax.Device.device_kind`; None if it is not listed.

    Variants (PCIe, Lite) have other figures, so only a whole name matches.
    """
    name = REPORTED.get(device_kind)
    return None if name is None else KINDS[name]
