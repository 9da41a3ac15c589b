"""The workspace: the folder where a command leaves its work and later commands find it."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import Any, TypeVar

import click

_F = TypeVar("_F", bound=Callable[..., Any])


@dataclass(frozen=True)
class Workspace:
    """Paths inside the folder ``root``. Asking for one makes nothing."""

    root: Path

    def supernet_dir(self, space_id: str, data_spec: str, image_size: int) -> Path:
        """Where the supernet of a space, trained on ``digits`` or a folder, goes."""
        data = data_spec
        if data_spec != "digits":
            folder = Path(data_spec).resolve()
            data = f"{folder.name}-{_digest(str(folder))}"
        return self.root / "supernets" / _file_name(space_id, data, f"{image_size}px")

    def table_path(
        self, device: str, runtime: str, space_id: str, image_size: int, num_classes: int
    ) -> Path:
        """Where the latency table of a device goes."""
        sizes = (f"{image_size}px", f"{num_classes}classes")
        return self.root / "luts" / f"{_file_name(device, runtime, space_id, *sizes)}.json"

    def search_dir(self, space_id: str, latency_ms: float) -> Path:
        """Where a search for a latency budget goes."""
        return self.root / "searches" / _file_name(space_id, f"{latency_ms:.12g}ms")

    def supernets(self) -> list[Path]:
        """The supernet folders in which training has begun, by name."""
        return sorted(path.parent for path in self.root.glob("supernets/*/run.json"))

    def tables(self) -> list[Path]:
        """The latency tables, by name."""
        return sorted(self.root.glob("luts/[!.]*.json"))


def _file_name(*parts: str) -> str:
    """One name out of ``parts``; what is no safe name is made one, told apart by a digest."""
    return "-".join(_safe(part) for part in parts)


def _safe(text: str) -> str:
    safe = re.sub(r"[^A-Za-z0-9._]+", "-", text).strip("-.")[:64]
    return text if safe == text else f"{safe}-{_digest(text)}".lstrip("-")


def _digest(text: str) -> str:
    return sha256(text.encode()).hexdigest()[:8]


def workspace_option(command: _F) -> _F:
    """Give a command the option ``--workspace``, passed to it as a ``Workspace``."""
    return click.option(
        "--workspace",
        type=click.Path(file_okay=False, path_type=Path),
        callback=lambda _ctx, _param, value: Workspace(value),
        default="hwnas-runs",
        envvar="HWNAS_WORKSPACE",
        show_envvar=True,
        help="Folder where work is kept and later commands find it.",
    )(command)
