"""What a command takes when it is not told: the space, the supernet, the sizes."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from hwnas.cli._workspace import Workspace
from hwnas.errors import BudgetError, CheckpointError, UsageError
from hwnas.files import read_json

if TYPE_CHECKING:
    from hwnas.spaces import Space


def space_for(name: str | None, max_params: int | None) -> Space:
    """The space called ``name``; without one, the built-in whose parameter range holds the budget.

    Where ranges overlap, the smaller space; between two ranges, the largest space below.
    """
    from hwnas.spaces import SPACES, load_space

    if name is not None:
        return load_space(name)
    if max_params is None:
        raise UsageError("give --space, or --params to pick one by its range of parameters")
    spaces = [load_space(known) for known in SPACES]
    holding = [s for s in spaces if s.params_range[0] <= max_params <= s.params_range[1]]
    below = [s for s in spaces if s.params_range[1] < max_params]
    if not holding and not below:
        least = min(s.params_range[0] for s in spaces)
        raise BudgetError(
            f"no built-in space reaches down to {max_params:,} parameters: the least is {least:,}"
        )
    return holding[0] if holding else below[-1]


def supernet_for(space: Space, workspace: Workspace, name: str | None) -> Path:
    """The folder of the one supernet of ``space``, asked for as ``name``, in the workspace.

    Raises ``CheckpointError`` with the command to run where there is none, ``UsageError`` where
    there are several.
    """
    found = [path for path, _ in _supernets(space, workspace, None)]
    if not found:
        raise CheckpointError(
            f"no trained supernet of {space.id} in {workspace.root}: train one with "
            f"`hwnas train --space {name or space.id}`, or name its folder with --supernet"
        )
    if len(found) > 1:
        raise UsageError(
            f"several supernets of {space.id} in {workspace.root}: name one of "
            f"{', '.join(map(str, found))} with --supernet"
        )
    return found[0]


def sizes_for(
    space: Space, workspace: Workspace, image_size: int | None, num_classes: int | None
) -> tuple[int, int, str]:
    """(image size, classes, why): as asked, as the one trained supernet, or as the paper."""
    from hwnas.spaces import REFERENCE_IMAGE_SIZE, REFERENCE_NUM_CLASSES

    if image_size is not None and num_classes is not None:
        return image_size, num_classes, "as asked"
    found = [
        (path, sizes)
        for path, sizes in _supernets(space, workspace, image_size)
        if num_classes in (None, sizes[1])
    ]
    if len({sizes for _, sizes in found}) == 1:
        path, (size, classes) = found[0]
        return size, classes, f"as the supernet {path}"
    return image_size or REFERENCE_IMAGE_SIZE, num_classes or REFERENCE_NUM_CLASSES, "the default"


def _supernets(
    space: Space, workspace: Workspace, image_size: int | None
) -> list[tuple[Path, tuple[int, int]]]:
    """The supernets of ``space`` in the workspace, with their (image size, classes)."""
    found = []
    for path in workspace.supernets():
        run = read_json(path / "run.json", "run description", CheckpointError)
        try:
            space_id, size, classes = run["space"], int(run["image_size"]), int(run["num_classes"])
        except (KeyError, TypeError, ValueError) as error:
            raise CheckpointError(f"{path / 'run.json'} is damaged: {error!r}") from error
        if space_id == space.id and image_size in (None, size):
            found.append((path, (size, classes)))
    return found
