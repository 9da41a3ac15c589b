"""Devices: their descriptions, and the agents that time networks on them. No torch in here."""

from hwnas.devices._agent import Agent, Artifact, Fingerprint, Measurement, Plan
from hwnas.devices._local import LocalAgent

__all__ = ["Agent", "Artifact", "Fingerprint", "LocalAgent", "Measurement", "Plan"]
