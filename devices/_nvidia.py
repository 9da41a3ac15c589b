"""The NVIDIA GPU that CUDA programs of this machine use first, as its driver describes it."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Mapping
from dataclasses import dataclass

from hwnas.errors import DeviceError

NVIDIA_ENVIRONMENT: Mapping[str, str] = {"CUDA_DEVICE_ORDER": "PCI_BUS_ID"}
"""For a process that uses the GPU: CUDA then counts GPUs in the order of the driver's listing."""

_QUERY = ("nvidia-smi", "--query-gpu=name,driver_version", "--format=csv,noheader")
_TIMEOUT_S = 30
_WHAT_TO_DO = (
    "install NVIDIA's driver on a machine that has one of its GPUs, "
    "or measure on the CPU (--device cpu)"
)


@dataclass(frozen=True)
class NvidiaGpu:
    """A GPU, as ``nvidia-smi`` lists it."""

    name: str
    driver: str


def first_gpu() -> NvidiaGpu:
    """The first GPU that ``CUDA_VISIBLE_DEVICES`` leaves, or of all.

    Raises ``DeviceError`` saying why there is none and what to do.
    """
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    command = list(_QUERY)
    if visible is not None:
        first = visible.partition(",")[0].strip()
        if first in ("", "-1"):
            raise DeviceError(
                f"CUDA_VISIBLE_DEVICES={visible!r} hides every NVIDIA GPU: unset it to use one"
            )
        command.append(f"--id={first}")
    try:
        done = subprocess.run(
            command, check=False, capture_output=True, text=True, timeout=_TIMEOUT_S
        )
    except FileNotFoundError:
        raise DeviceError(f"no NVIDIA GPU: nvidia-smi is not installed; {_WHAT_TO_DO}") from None
    except (OSError, subprocess.SubprocessError) as error:
        raise DeviceError(f"nvidia-smi did not list the GPUs ({error}); {_WHAT_TO_DO}") from error
    lines = done.stdout.strip().splitlines()
    if done.returncode or not lines:
        said = (done.stdout + done.stderr).strip().splitlines()
        reason = f" ({said[0]})" if said else ""
        raise DeviceError(f"nvidia-smi lists no NVIDIA GPU{reason}; {_WHAT_TO_DO}")
    name, _, driver = lines[0].rpartition(",")
    return NvidiaGpu(name.strip(), driver.strip())
