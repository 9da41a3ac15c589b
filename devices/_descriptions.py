"""Descriptions of devices, one TOML file each, and whether a device is attached now."""

from __future__ import annotations

import json
import platform
import subprocess
import sys
import tempfile
from collections.abc import Callable
from dataclasses import dataclass, fields
from importlib import resources
from pathlib import Path
from typing import Any

from hwnas.devices._macos import macos_release
from hwnas.devices._nvidia import first_gpu
from hwnas.errors import DeviceError, UsageError, unknown_name

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

DEVICES = ("cpu", "gpu", "mac", "iphone13")
_HOW_TO_ATTACH = (
    "connect it by cable to a Mac with Xcode, unlock it, trust the Mac, turn on Developer Mode "
    "(Settings, Privacy & Security), and run hwnas on that Mac; "
    "run `hwnas devices` to see what is attached"
)
_LISTING_TIMEOUT_S = 30


@dataclass(frozen=True)
class DeviceDescription:
    """What a device is called, and how it is reached."""

    id: str
    name: str
    """As its maker calls it."""
    soc: str
    reach: str
    """``local`` (this machine) or ``apple`` (through Xcode on a Mac)."""
    runtime: str
    """The runtime it is measured with unless another is asked for."""


@dataclass(frozen=True)
class DeviceState:
    """Whether a device is attached now; ``reason`` says why not, and what to do."""

    attached: bool
    reason: str = ""


def load_device(name: str) -> DeviceDescription:
    """The device called ``name``, or the one described in the TOML file at that path.

    Raises ``UsageError`` for an unknown name, ``DeviceError`` for a file that describes none.
    """
    if name in DEVICES:
        return _parse(resources.files(__package__).joinpath(f"{name}.toml").read_text(), name)
    if not name.endswith(".toml"):
        hint = "; a device of your own is a file that ends in .toml"
        raise UsageError(unknown_name("device", name, DEVICES) + hint)
    try:
        text = Path(name).read_text(encoding="utf-8")
    except (OSError, ValueError) as error:
        raise DeviceError(f"cannot read the device file {name}: {error}") from error
    description = _parse(text, name)
    if description.id in DEVICES:
        what = f"{name} calls itself {description.id!r}, which is built in"
        raise DeviceError(f"{what}: give it its own id")
    return description


def _parse(text: str, source: str) -> DeviceDescription:
    try:
        given = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise DeviceError(f"{source} is not TOML: {error}") from error
    expected = {field.name for field in fields(DeviceDescription)}
    if given.keys() != expected:
        odd = ", ".join(sorted(given.keys() ^ expected))
        wanted = ", ".join(sorted(expected))
        raise DeviceError(f"{source} must have the fields {wanted}; missing or unknown: {odd}")
    if odd_values := [name for name, value in given.items() if not isinstance(value, str)]:
        raise DeviceError(f"{source}: {odd_values[0]} must be text")
    if given["reach"] not in _REACHES:
        raise DeviceError(f"{source}: {unknown_name('reach', given['reach'], _REACHES)}")
    return DeviceDescription(**given)


def state(description: DeviceDescription) -> DeviceState:
    """Look whether the device is attached now."""
    reason = _REACHES[description.reach](description)
    return DeviceState(attached=not reason, reason=reason)


def require_attached(description: DeviceDescription) -> None:
    """Raise ``DeviceError`` with what to do where the device is not attached now."""
    found = state(description)
    if not found.attached:
        raise DeviceError(found.reason)


def _why_no_local(description: DeviceDescription) -> str:
    """This machine is always here; the GPU or the system that its runtime needs may not be."""
    try:
        if "processor=cuda" in description.runtime:
            first_gpu()
        if description.runtime.partition(":")[0] == "coreml":
            macos_release()
    except DeviceError as error:
        return str(error)
    return ""


def _why_no_apple(description: DeviceDescription) -> str:
    """Ask Xcode for the devices it knows and look for one of this name."""
    name = description.name
    if platform.system() != "Darwin":
        return f"an {name} is reached from a Mac only: {_HOW_TO_ATTACH}"
    try:
        known = [d for d in _apple_devices() if d["hardwareProperties"]["marketingName"] == name]
        tunnels = [d["connectionProperties"].get("tunnelState") for d in known]
    except (OSError, subprocess.SubprocessError, ValueError, KeyError, TypeError) as error:
        return f"Xcode 15 or later did not list its devices ({error}): {_HOW_TO_ATTACH}"
    if "connected" not in tunnels:
        return f"no {name} is attached: {_HOW_TO_ATTACH}"
    return ""


def _apple_devices() -> list[dict[str, Any]]:
    """What ``xcrun devicectl list devices`` knows, the devices that are away included."""
    with tempfile.TemporaryDirectory() as folder:
        listing = Path(folder) / "devices.json"
        command = ["xcrun", "devicectl", "list", "devices", "--json-output", str(listing)]
        subprocess.run(command, check=True, capture_output=True, timeout=_LISTING_TIMEOUT_S)
        devices: list[dict[str, Any]] = json.loads(listing.read_text())["result"]["devices"]
    return devices


_REACHES: dict[str, Callable[[DeviceDescription], str]] = {
    "local": _why_no_local,
    "apple": _why_no_apple,
}
