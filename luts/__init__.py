"""Latency lookup tables: what each block costs on a device, and how well that is known."""

from hwnas.luts._profile import (
    BATCH_SIZE,
    NUM_HELD_OUT,
    Conditions,
    measurements_path,
    profile,
)
from hwnas.luts._quality import Quality, assess
from hwnas.luts._table import Entry, LatencyTable, Prediction, Reference
from hwnas.luts._timing import Batch, time_replicates

__all__ = [
    "BATCH_SIZE",
    "NUM_HELD_OUT",
    "Batch",
    "Conditions",
    "Entry",
    "LatencyTable",
    "Prediction",
    "Quality",
    "Reference",
    "assess",
    "measurements_path",
    "profile",
    "time_replicates",
]
