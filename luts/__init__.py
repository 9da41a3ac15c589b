"""Latency lookup tables: what each block costs on a device, and how well that is known."""

from hwnas.luts._additivity import PairCheck
from hwnas.luts._breakdown import BASE, Breakdown, Piece, breakdown
from hwnas.luts._check import (
    EntryCounts,
    Retimed,
    Retiming,
    count_entries,
    retime,
    table_runtime,
)
from hwnas.luts._coverage import Coverage, coverage, member_blocks
from hwnas.luts._design import Design
from hwnas.luts._diff import Condition, EntryDiff, TableDiff, diff
from hwnas.luts._keys import KEYINGS
from hwnas.luts._measurements import measurements_path
from hwnas.luts._profile import BATCH_SIZE, NUM_HELD_OUT, Conditions, planned, profile
from hwnas.luts._quality import Quality, assess
from hwnas.luts._table import Entry, LatencyTable, Prediction, Reference
from hwnas.luts._timing import Batch, time_replicates

__all__ = [
    "BASE",
    "BATCH_SIZE",
    "KEYINGS",
    "NUM_HELD_OUT",
    "Batch",
    "Breakdown",
    "Condition",
    "Conditions",
    "Coverage",
    "Design",
    "Entry",
    "EntryCounts",
    "EntryDiff",
    "LatencyTable",
    "PairCheck",
    "Piece",
    "Prediction",
    "Quality",
    "Reference",
    "Retimed",
    "Retiming",
    "TableDiff",
    "assess",
    "breakdown",
    "count_entries",
    "coverage",
    "diff",
    "measurements_path",
    "member_blocks",
    "planned",
    "profile",
    "retime",
    "table_runtime",
    "time_replicates",
]
