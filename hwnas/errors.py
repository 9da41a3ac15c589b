"""What can go wrong, one class for each thing a caller may want to catch."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class HwnasError(Exception):
    """Root of all errors raised on purpose: what was expected, what came, what to do next."""


class UsageError(HwnasError):
    """An argument that cannot be meant: an unknown name, a malformed quantity."""


class SpaceError(HwnasError):
    """A search space, or an architecture that is not in it."""


class DataError(HwnasError):
    """A data set that is missing, empty or damaged."""


class CheckpointError(HwnasError):
    """A supernet run that is missing, damaged, or of another space."""


class DeviceError(HwnasError):
    """A device that is unknown, not attached, or failed while measuring."""


class TableError(HwnasError):
    """A latency table that is missing, damaged, or of another device, space or image size."""


class BudgetError(HwnasError):
    """A budget that nothing in the space can meet."""


class ExportError(HwnasError):
    """A network that a runtime's converter refused, or that came out with other numbers."""


class StorageError(HwnasError):
    """A file or folder that could not be read or written."""


def unknown_name(what: str, name: str, known: Iterable[str]) -> str:
    """The sentence for a name not in ``known``: a suggestion if one is near, then the list."""
    names = sorted(known)
    near = difflib.get_close_matches(name.lower(), names, n=1, cutoff=0.6)
    hint = f"did you mean {near[0]!r}? " if near else ""
    return f"unknown {what} {name!r}: {hint}known are {', '.join(names)}"
