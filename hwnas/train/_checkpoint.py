"""Checkpoint: one safetensors file with weights, optimiser state and how far training got.

Its header carries a digest of the tensors, so that a file changed after it was written is told
from a whole one, and a digest of the settings, so that it is not continued with others.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor
from torch.optim import Optimizer

from hwnas.errors import CheckpointError
from hwnas.files import writing
from hwnas.supernet import Supernet

_HEADER = "hwnas"
_WEIGHTS, _OPTIMIZER = "supernet", "optimizer"


@dataclass(frozen=True)
class Checkpoint:
    """What a checkpoint file holds; ``settings_digest`` is of the settings it was made with."""

    epochs_done: int
    settings_digest: str
    tensors: Mapping[str, Tensor]

    def restore_weights(self, supernet: Supernet) -> None:
        """Copy the weights into ``supernet``. Raises ``CheckpointError`` where they do not fit."""
        prefix = f"{_WEIGHTS}."
        weights = {
            name.removeprefix(prefix): tensor
            for name, tensor in self.tensors.items()
            if name.startswith(prefix)
        }
        try:
            supernet.load_state_dict(weights)
        except RuntimeError as error:
            raise CheckpointError(
                "the checkpoint's weights are not those of its space: it was made by another "
                "version of hwnas; train the supernet again"
            ) from error

    def restore_optimizer(self, optimizer: Optimizer, supernet: Supernet) -> None:
        """Copy the optimiser state of each parameter of ``supernet`` that has one."""
        parameters = dict(supernet.named_parameters())
        for name, tensor in self.tensors.items():
            kind, _, rest = name.partition(".")
            if kind == _OPTIMIZER:
                key, _, parameter = rest.partition(".")
                optimizer.state[parameters[parameter]][key] = tensor.clone()


def write_checkpoint(
    path: Path,
    supernet: Supernet,
    optimizer: Optimizer | None,
    *,
    epochs_done: int,
    settings_digest: str,
) -> None:
    """Write the checkpoint, whole or not at all; without ``optimizer`` training is at its end."""
    tensors = {f"{_WEIGHTS}.{name}": t for name, t in supernet.state_dict().items()}
    if optimizer is not None:
        for name, parameter in supernet.named_parameters():
            for key, tensor in optimizer.state.get(parameter, {}).items():
                tensors[f"{_OPTIMIZER}.{key}.{name}"] = tensor
    header = {
        "epochs_done": epochs_done,
        "settings_sha256": settings_digest,
        "tensors_sha256": _digest(tensors),
    }
    with writing(path) as temporary:
        # One entry, since safetensors writes several in no fixed order.
        temporary.write_bytes(save(tensors, {_HEADER: json.dumps(header)}))


def read_checkpoint(path: Path) -> Checkpoint:
    """Read a checkpoint. Raises ``CheckpointError`` where it was cut short or changed."""
    try:
        with safe_open(path, "pt") as file:
            header = json.loads((file.metadata() or {}).get(_HEADER, "{}"))
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except (OSError, ValueError, SafetensorError) as error:
        raise CheckpointError(
            f"{path} is not a whole checkpoint (damaged or cut short?): {error}; remove it and "
            "train again"
        ) from error
    if header.get("tensors_sha256") != _digest(tensors):
        raise CheckpointError(
            f"{path} is damaged: its tensors are not those it was written with; remove it and "
            "train again"
        )
    return Checkpoint(header["epochs_done"], header["settings_sha256"], tensors)


def _digest(tensors: Mapping[str, Tensor]) -> str:
    digest = hashlib.sha256()
    for name, tensor in sorted(tensors.items()):
        digest.update(f"{name} {tensor.dtype} {list(tensor.shape)}\n".encode())
        digest.update(tensor.detach().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()
