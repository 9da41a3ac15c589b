"""Reading back what a search leaves: the winner, with its weights."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import safetensors
import safetensors.torch
import torch
from torch import Tensor

from hwnas.errors import CheckpointError, HwnasError
from hwnas.files import read_json
from hwnas.profilers import Preprocessing
from hwnas.spaces import Arch, load_space, parse_space
from hwnas.supernet import Network, build

WINNER_FILE = "winner.json"
WEIGHTS_FILE = "winner.safetensors"


@dataclass(frozen=True)
class Winner:
    """A winner and what is needed to use it."""

    network: Network
    """The plain network in evaluation mode; its children are named after their slots."""
    arch: Arch
    preprocessing: Preprocessing
    class_names: tuple[str, ...] | None


def load_winner(folder: Path) -> Winner:
    """The winner that a search left in ``folder``, in ``winner.json`` and ``winner.safetensors``.

    Raises ``CheckpointError`` where a file is missing, cut short, or does not fit the other.
    """
    path = folder / WINNER_FILE
    record = read_json(path, "search result", CheckpointError)
    try:
        definition = record["space_definition"]
        space = parse_space(definition, str(path)) if definition else load_space(record["space"])
        arch = Arch.from_json(record["arch"])
        facts = _Facts.read(record["network"])
        layout = space.layout(space.encode(arch), facts.image_size, facts.num_classes)
    except KeyError as error:
        raise CheckpointError(f"{path} is not a search result: it lacks {error}") from error
    except (TypeError, ValueError, AttributeError, HwnasError) as error:
        raise CheckpointError(f"{path} is not a search result: {error}") from error
    slots, blocks = zip(*layout, strict=True)
    network = build(blocks, slots, seed=0).eval()
    _load_weights(network, folder / WEIGHTS_FILE)
    preprocessing = Preprocessing(facts.mean, facts.std, facts.image_size)
    return Winner(network, arch, preprocessing, facts.class_names)


@dataclass(frozen=True)
class _Facts:
    image_size: int
    num_classes: int
    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    class_names: tuple[str, ...] | None

    @classmethod
    def read(cls, record: Mapping[str, Any]) -> _Facts:
        """Read ``network`` of a winner.json; ``ValueError`` says which field is off."""
        for name in ("image_size", "num_classes"):
            if type(record[name]) is not int or record[name] < 1:
                raise ValueError(f"{name} is {record[name]!r}, not a number above 0")
        names = record["class_names"]
        if names is not None and (
            not _is_list_of(names, str) or len(names) != record["num_classes"]
        ):
            raise ValueError(f"class_names are not {record['num_classes']} names")
        return cls(
            record["image_size"],
            record["num_classes"],
            _three(record, "mean"),
            _three(record, "std"),
            None if names is None else tuple(names),
        )


def _three(record: Mapping[str, Any], name: str) -> tuple[float, float, float]:
    values = record[name]
    if not _is_list_of(values, float, int) or len(values) != 3:
        raise ValueError(f"{name} is {values!r}, not three numbers")
    red, green, blue = values
    return (float(red), float(green), float(blue))


def _is_list_of(value: object, *kinds: type) -> bool:
    return isinstance(value, list) and all(type(item) in kinds for item in value)


def _load_weights(network: Network, path: Path) -> None:
    """Fill ``network`` with the tensors at ``path``. Raises ``CheckpointError``."""
    try:
        tensors = safetensors.torch.load(path.read_bytes())
    except FileNotFoundError:
        raise CheckpointError(f"no weights of the winner at {path}: search again") from None
    except OSError as error:
        raise CheckpointError(f"cannot read the weights {path}: {error.strerror}") from error
    except (safetensors.SafetensorError, ValueError, KeyError) as error:
        raise CheckpointError(f"{path} is damaged or cut short: {error}; search again") from error
    expected = network.state_dict()
    if missing := sorted(expected.keys() - tensors.keys()):
        raise CheckpointError(f"{path} lacks the tensor {missing[0]!r} of the winner: search again")
    if unknown := sorted(tensors.keys() - expected.keys()):
        raise CheckpointError(f"{path} has a tensor {unknown[0]!r} that the winner has not")
    for name, tensor in expected.items():
        _check_tensor(path, name, tensors[name], tensor)
    network.load_state_dict(tensors)


def _check_tensor(path: Path, name: str, found: Tensor, expected: Tensor) -> None:
    if found.shape != expected.shape or found.dtype != expected.dtype:
        raise CheckpointError(
            f"{path}: {name} is {_kind(found)}, and the winner's is {_kind(expected)}; search again"
        )
    if found.is_floating_point() and not torch.isfinite(found).all():
        raise CheckpointError(f"{path}: {name} holds numbers that are not finite; train again")


def _kind(tensor: Tensor) -> str:
    return f"{str(tensor.dtype).removeprefix('torch.')} {list(tensor.shape)}"
