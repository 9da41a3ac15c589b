"""The macOS that Core ML predicts on."""

from __future__ import annotations

import platform

from hwnas.errors import DeviceError

_OLDEST = (14, 4)  # the first with a compute plan


def macos_release() -> str:
    """The release of macOS here, such as ``15.1``.

    Raises ``DeviceError``, with what to do, where there is none that Core ML can be timed on.
    """
    if platform.system() != "Darwin":
        raise DeviceError(
            "Core ML predicts on macOS only: run hwnas on a Mac (--device mac), or write a network "
            "for one with `hwnas export --format coreml`"
        )
    release = platform.mac_ver()[0]
    if tuple(map(int, release.split(".")[:2])) < _OLDEST:
        raise DeviceError(
            f"macOS {release} does not tell where Core ML runs a network: update it to 14.4 or "
            "later, or measure the CPU with --device cpu"
        )
    return release
