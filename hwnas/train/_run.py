"""Run: a trained supernet, loaded from the folder of its training."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path

from hwnas.errors import CheckpointError
from hwnas.spaces import Space, parse_space
from hwnas.supernet import Supernet
from hwnas.train._data import Rgb
from hwnas.train._description import description_path, read_run, weights_path


@dataclass(frozen=True)
class Run:
    """A trained supernet, in evaluation mode, and what it was trained on.

    ``digest``: the first 16 hexadecimal digits of the weight file's SHA-256.
    """

    supernet: Supernet
    space: Space
    data_spec: str
    image_size: int
    class_names: tuple[str, ...]
    mean: Rgb
    std: Rgb
    seed: int
    digest: str


def load_run(run_dir: Path) -> Run:
    """Load the trained supernet in ``run_dir``.

    Raises ``CheckpointError`` where there is none, where its training has not ended, or where one
    of its files is damaged.
    """
    if not description_path(run_dir).exists():
        raise CheckpointError(
            f"no trained supernet at {run_dir}: train one with "
            f"`hwnas train --space S --out {run_dir}`"
        )
    rerun = "rerun the same `hwnas train` command to finish it"
    if not weights_path(run_dir).exists():
        raise CheckpointError(f"the training in {run_dir} stopped in its first epoch: {rerun}")
    begun = read_run(run_dir)
    settings, checkpoint = begun.settings, begun.checkpoint
    if checkpoint.epochs_done < settings["epochs"]:
        done = f"{checkpoint.epochs_done} of {settings['epochs']} epochs"
        raise CheckpointError(f"the training in {run_dir} stopped after {done}: {rerun}")
    space = parse_space(settings["space_definition"], str(description_path(run_dir)))
    class_names = tuple(settings["class_names"])
    supernet = Supernet(
        space, image_size=settings["image_size"], num_classes=len(class_names), seed=0
    )
    checkpoint.restore_weights(supernet)
    return Run(
        supernet=supernet.eval(),
        space=space,
        data_spec=settings["data"],
        image_size=settings["image_size"],
        class_names=class_names,
        mean=_rgb(settings["mean"]),
        std=_rgb(settings["std"]),
        seed=settings["seed"],
        digest=hashlib.sha256(weights_path(run_dir).read_bytes()).hexdigest()[:16],
    )


def _rgb(values: list[float]) -> Rgb:
    red, green, blue = values
    return red, green, blue
