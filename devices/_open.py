"""From a device's description to the agent that times on it."""

from __future__ import annotations

from collections.abc import Callable

from hwnas.devices._agent import Agent
from hwnas.devices._descriptions import DeviceDescription, require_attached
from hwnas.devices._local import LocalAgent
from hwnas.errors import DeviceError

AGENTS: dict[str, Callable[[], Agent]] = {"local": LocalAgent}


def open_agent(description: DeviceDescription) -> Agent:
    """The agent of an attached device. Raises ``DeviceError`` saying why where there is none."""
    require_attached(description)
    if description.reach not in AGENTS:
        raise DeviceError(
            f"the {description.name} is attached, but this version of hwnas times networks only on "
            "the machine it runs on (--device cpu); export with --format coreml and time in Xcode"
        )
    return AGENTS[description.reach]()
