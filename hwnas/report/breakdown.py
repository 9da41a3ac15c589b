"""The stacked latency breakdown of networks, in the manner of AutoViT's Figure 4."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from hwnas.errors import UsageError
from hwnas.files import writing
from hwnas.luts import Breakdown

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

PICTURE_SUFFIXES = (".png", ".svg")
# Okabe and Ito's palette: told apart by colour-blind readers too; the bright ones first.
_COLOURS = ("#56B4E9", "#E69F00", "#009E73", "#CC79A7", "#F0E442", "#D55E00", "#0072B2", "#999999")
_WIDTH_IN = 10.0
_BAR_IN = 1.1
_FRAME_IN = 1.7
_DPI = 150
_LABELLED = 0.035  # of the longest bar: a segment that has room for its number


def check_picture(path: Path) -> None:
    """Raise ``UsageError`` where ``path`` does not end as a picture does."""
    if path.suffix not in PICTURE_SUFFIXES:
        expected = " or ".join(PICTURE_SUFFIXES)
        raise UsageError(f"a picture's name ends in {expected}; got {str(path)!r}")


def write_breakdown(path: Path, networks: Sequence[Breakdown], *, title: str) -> None:
    """Write the picture of ``networks`` to ``path``, PNG or SVG by its suffix, whole or not at all.

    Raises ``UsageError`` for another suffix.
    """
    from matplotlib import rc_context

    check_picture(path)
    metadata = {"Date": None} if path.suffix == ".svg" else None
    with (
        rc_context({"svg.hashsalt": "hwnas", "svg.fonttype": "none"}),  # the same file each time
        writing(path) as temporary,
    ):
        figure = breakdown_figure(networks, title=title)
        figure.savefig(temporary, format=path.suffix[1:], dpi=_DPI, metadata=metadata)


def breakdown_figure(networks: Sequence[Breakdown], *, title: str) -> Figure:
    """One horizontal bar a network, its segments the stages in running order, coloured by kind."""
    from matplotlib.figure import Figure

    height_in = _FRAME_IN + _BAR_IN * len(networks)
    figure = Figure(figsize=(_WIDTH_IN, height_in), layout="constrained")
    axes = figure.add_subplot()
    kinds = list(dict.fromkeys(piece.kind for network in networks for piece in network.pieces))
    colours = {kind: _COLOURS[i % len(_COLOURS)] for i, kind in enumerate(kinds)}
    longest_ms = max(network.prediction.predicted for network in networks)
    for row, network in enumerate(networks):
        _draw(axes, row, network, colours, longest_ms)
    names = [network.name for network in networks]
    axes.set_yticks(range(len(networks)), names, parse_math=False)
    axes.set_ylim(len(networks) - 0.6, -0.7)  # the first on top, room for its labels
    axes.set_xlim(0, 1.08 * longest_ms)
    axes.set_xlabel("latency (ms)")
    axes.set_title(title, fontsize=10, loc="left", parse_math=False)
    axes.spines[["top", "right"]].set_visible(False)
    handles = [axes.barh(0, 0, color=colours[kind], label=kind) for kind in kinds]
    figure.legend(handles=handles, loc="outside lower center", ncols=len(kinds), frameon=False)
    return figure


def _draw(
    axes: Axes, row: int, network: Breakdown, colours: dict[str, str], longest_ms: float
) -> None:
    left_ms = 0.0
    starts: dict[str, float] = {}
    for piece in network.pieces:
        starts.setdefault(piece.stage, left_ms)
        axes.barh(
            row,
            piece.ms,
            left=left_ms,
            height=0.5,
            color=colours[piece.kind],
            edgecolor="white",
            linewidth=0.8,
        )
        if piece.ms > _LABELLED * longest_ms:
            middle_ms = left_ms + piece.ms / 2
            axes.text(middle_ms, row, f"{piece.ms:.2g}", ha="center", va="center", fontsize=8)
        left_ms += piece.ms
    for stage, start_ms in starts.items():
        axes.plot([start_ms, start_ms], [row - 0.32, row + 0.25], color="black", linewidth=0.8)
        axes.text(start_ms, row - 0.34, stage, fontsize=7, rotation=40)
    axes.text(left_ms, row, f" {network.prediction.predicted:.3g} ms", va="center", fontsize=9)
