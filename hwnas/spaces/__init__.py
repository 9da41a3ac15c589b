"""Search spaces: ``load_space("autovit-xxs")``, or a file of the user's own. No torch in here."""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping
from importlib import resources
from pathlib import Path
from typing import Any

from hwnas.errors import SpaceError, UsageError, unknown_name
from hwnas.spaces._arch import Arch
from hwnas.spaces._block import Block, Cost, num_macs, num_params
from hwnas.spaces._parts import AdditiveCost, Codes
from hwnas.spaces._space import REFERENCE_IMAGE_SIZE, REFERENCE_NUM_CLASSES, Space
from hwnas.spaces.autovit import AutoViTSpace

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

FAMILIES: dict[str, Callable[[Mapping[str, Any]], Space]] = {"autovit": AutoViTSpace}
SPACES = ("autovit-xxs", "autovit-xs", "autovit-s")


def load_space(name: str) -> Space:
    """The space called ``name``, or the one written in the TOML file at that path.

    Raises ``UsageError`` for an unknown name, ``SpaceError`` for a file that does not define one.
    """
    if name in SPACES:
        file = resources.files(__package__).joinpath(f"{name}.toml")
        return parse_space(file.read_text(encoding="utf-8"), name)
    if not name.endswith(".toml"):
        hint = "; a space of your own is a file that ends in .toml"
        raise UsageError(unknown_name("space", name, SPACES) + hint)
    try:
        text = Path(name).read_text(encoding="utf-8")
    except (OSError, ValueError) as error:
        raise SpaceError(f"cannot read the space file {name}: {error}") from error
    space = parse_space(text, name)
    if space.id in SPACES:
        raise SpaceError(f"{name} calls itself {space.id!r}, which is built in: give it its own id")
    return space


def parse_space(text: str, source: str) -> Space:
    """The space that a TOML ``text`` defines; ``source`` names it in errors (``SpaceError``).

    ``space.definition`` keeps the text, so that what is made from a space of the user's own can
    carry it along.
    """
    try:
        fields = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise SpaceError(f"{source} is not TOML: {error}") from error
    family = str(fields.get("family", ""))
    if family not in FAMILIES:
        raise SpaceError(f"{source}: {unknown_name('family', family, FAMILIES)}")
    try:
        space = FAMILIES[family](fields)
    except KeyError as error:
        raise SpaceError(f"{source} lacks the field {error.args[0]!r}") from error
    except SpaceError as error:
        raise SpaceError(f"{source}: {error}") from error
    except (TypeError, ValueError, AttributeError) as error:
        raise SpaceError(f"{source} has a field of the wrong shape: {error}") from error
    space.definition = text
    return space


__all__ = [
    "REFERENCE_IMAGE_SIZE",
    "REFERENCE_NUM_CLASSES",
    "SPACES",
    "AdditiveCost",
    "Arch",
    "Block",
    "Codes",
    "Cost",
    "Space",
    "load_space",
    "num_macs",
    "num_params",
    "parse_space",
]
