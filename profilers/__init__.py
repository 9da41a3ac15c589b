"""Runtimes: how a network is written for each, and how each is timed. No torch until used."""

from hwnas.profilers._export import FORMATS, ExportReport, Preprocessing, export_network
from hwnas.profilers._runtime import (
    RUNTIMES,
    Run,
    Runtime,
    full_spec,
    host_timed,
    load_runtime,
)

__all__ = [
    "FORMATS",
    "RUNTIMES",
    "ExportReport",
    "Preprocessing",
    "Run",
    "Runtime",
    "export_network",
    "full_spec",
    "host_timed",
    "load_runtime",
]
