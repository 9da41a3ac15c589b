"""Devices: their descriptions, and the agents that time networks on them. No torch in here."""

from hwnas.devices._agent import Agent, Artifact, Fingerprint, Measurement, Plan
from hwnas.devices._descriptions import (
    DEVICES,
    DeviceDescription,
    DeviceState,
    load_device,
    require_attached,
    state,
)
from hwnas.devices._local import LocalAgent
from hwnas.devices._macos import macos_release
from hwnas.devices._nvidia import NVIDIA_ENVIRONMENT, NvidiaGpu, first_gpu
from hwnas.devices._open import open_agent

__all__ = [
    "DEVICES",
    "NVIDIA_ENVIRONMENT",
    "Agent",
    "Artifact",
    "DeviceDescription",
    "DeviceState",
    "Fingerprint",
    "LocalAgent",
    "Measurement",
    "NvidiaGpu",
    "Plan",
    "first_gpu",
    "load_device",
    "macos_release",
    "open_agent",
    "require_attached",
    "state",
]
