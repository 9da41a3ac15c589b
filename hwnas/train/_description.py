"""The folder of a training run, and its description.

``run.json`` describes the run, ``supernet.safetensors`` is its checkpoint, ``log.jsonl`` has a line
for each epoch.
"""

from __future__ import annotations

import hashlib
import json
import platform
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from hwnas import __version__
from hwnas.errors import CheckpointError
from hwnas.files import read_json, write_json
from hwnas.spaces import Space
from hwnas.train._checkpoint import Checkpoint, read_checkpoint
from hwnas.train._data import Data
from hwnas.train._recipe import Recipe

Settings = dict[str, Any]

_SCHEMA = 1
_NOT_SETTINGS = ("epochs_done", "val_accuracies", "versions")


@dataclass(frozen=True)
class Begun:
    """A run that has come past its first epoch; its accuracies, by subnet, come at the end."""

    settings: Settings
    checkpoint: Checkpoint
    val_accuracies: Mapping[str, float]


def description_path(run_dir: Path) -> Path:
    """The file that describes the run."""
    return run_dir / "run.json"


def weights_path(run_dir: Path) -> Path:
    """The checkpoint: with optimiser state while training goes on, without it at the end."""
    return run_dir / "supernet.safetensors"


def log_path(run_dir: Path) -> Path:
    """The file with a JSON line for each epoch."""
    return run_dir / "log.jsonl"


def run_settings(space: Space, data: Data, recipe: Recipe) -> Settings:
    """Everything that determines the trained weights, as ``run.json`` holds it."""
    settings = {
        "schema": _SCHEMA,
        "space": space.id,
        "space_definition": space.definition,
        "data": data.spec,
        "image_size": data.image_size,
        "num_classes": len(data.class_names),
        "class_names": data.class_names,
        "train_images": data.num_images("train"),
        "val_images": data.num_images("val"),
        "mean": data.mean,
        "std": data.std,
        **asdict(recipe),
    }
    as_read_back: Settings = json.loads(json.dumps(settings))
    return as_read_back


def digest(settings: Settings) -> str:
    """The SHA-256 of ``settings``, whatever their order."""
    return hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()


def write_description(
    run_dir: Path, settings: Settings, *, epochs_done: int, val_accuracies: Mapping[str, float]
) -> None:
    """Write ``run.json``: the settings, how far training got, and the versions it runs with."""
    versions = {
        "hwnas": __version__,
        "python": platform.python_version(),
        "torch": torch.__version__,
        "numpy": np.__version__,
    }
    progress = {"epochs_done": epochs_done, "val_accuracies": dict(val_accuracies)}
    write_json(description_path(run_dir), {**settings, **progress, "versions": versions})


def read_run(run_dir: Path) -> Begun:
    """Read a run that has come past its first epoch.

    Raises ``CheckpointError`` where a file is missing or damaged, or they are not of one run.
    """
    path = description_path(run_dir)
    description = read_json(path, "run description", CheckpointError)
    if not isinstance(description, dict) or description.get("schema") != _SCHEMA:
        raise CheckpointError(
            f"{path} is not a run description of this version of hwnas (schema {_SCHEMA}): "
            "remove the folder and train again"
        )
    settings = {name: v for name, v in description.items() if name not in _NOT_SETTINGS}
    checkpoint = read_checkpoint(weights_path(run_dir))
    if checkpoint.settings_digest != digest(settings):
        raise CheckpointError(
            f"{path} is not the one that {weights_path(run_dir).name} was trained with: restore "
            "it, or remove the folder and train again"
        )
    return Begun(settings, checkpoint, description.get("val_accuracies", {}))
