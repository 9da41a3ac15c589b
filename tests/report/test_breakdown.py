from __future__ import annotations

from collections import defaultdict
from pathlib import Path

import numpy as np
import pytest
from matplotlib.colors import to_hex
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from PIL import Image

from hwnas.errors import StorageError, UsageError
from hwnas.luts import Breakdown, Piece, Prediction
from hwnas.report import breakdown_figure, write_breakdown


def network(name: str, *pieces: tuple[str, str, float]) -> Breakdown:
    total_ms = sum(ms for _, _, ms in pieces)
    return Breakdown(
        name,
        tuple(Piece(stage, kind, 1, ms, 0.01) for stage, kind, ms in pieces),
        Prediction(total_ms, 0.9 * total_ms, 1.1 * total_ms),
    )


A = network(
    "first$ $net",
    ("stem", "conv", 0.5),
    ("mbconv1", "mbconv", 1.5),
    ("transformer1", "mbconv", 0.25),
    ("transformer1", "vit_layer", 3.0),
    ("head", "mbpool", 0.75),
)
B = network("second", ("stem", "conv", 0.25), ("head", "mbpool", 2.0))


def bars(figure: Figure) -> dict[float, list[Rectangle]]:
    """The segments that have a length, by the height of their bar's middle."""
    found = defaultdict(list)
    for patch in figure.axes[0].patches:
        if isinstance(patch, Rectangle) and patch.get_width() > 0:
            found[patch.get_y() + patch.get_height() / 2].append(patch)
    return found


def test_segments_are_the_pieces_end_to_end() -> None:
    found = bars(breakdown_figure([A, B], title="two"))
    assert len(found) == 2
    for row, given in ((0, A), (1, B)):
        widths = [segment.get_width() for segment in found[row]]
        assert widths == pytest.approx([piece.ms for piece in given.pieces])
        assert sum(widths) == pytest.approx(given.prediction.predicted)
        ends = [0.0, *(segment.get_x() + segment.get_width() for segment in found[row])]
        assert [segment.get_x() for segment in found[row]] == pytest.approx(ends[:-1])


def test_one_colour_a_kind_and_a_legend_that_says_which() -> None:
    figure = breakdown_figure([A, B], title="two")
    (legend,) = figure.legends
    names = [text.get_text() for text in legend.get_texts()]
    assert names == ["conv", "mbconv", "vit_layer", "mbpool"]
    handles = [patch.get_facecolor() for patch in legend.get_patches()]
    colours = dict(zip(names, map(to_hex, handles), strict=True))
    assert len(set(colours.values())) == 4
    for row, given in ((0, A), (1, B)):
        shown = [to_hex(segment.get_facecolor()) for segment in bars(figure)[row]]
        assert shown == [colours[piece.kind] for piece in given.pieces]


def test_words() -> None:
    (axes,) = breakdown_figure([A, B], title="On cpu, onnxruntime").axes
    assert axes.get_title(loc="left") == "On cpu, onnxruntime"
    assert axes.get_xlabel() == "latency (ms)"
    assert [label.get_text() for label in axes.get_yticklabels()] == ["first$ $net", "second"]
    texts = [text.get_text() for text in axes.texts]
    assert texts.count("stem") == texts.count("head") == 2
    assert texts.count("transformer1") == 1
    assert {" 6 ms", " 2.25 ms"} < set(texts)
    assert axes.get_ylim()[0] > axes.get_ylim()[1]  # the first network on top
    assert axes.get_xlim()[1] > A.prediction.predicted


def test_files(tmp_path: Path) -> None:
    png, svg = tmp_path / "new" / "a.png", tmp_path / "a.svg"
    write_breakdown(png, [A], title="one")
    with Image.open(png) as image:
        assert image.format == "PNG"
        assert image.width == 1500
        pixels = np.unique(np.asarray(image.convert("RGB")).reshape(-1, 3), axis=0)
    colours = {f"#{r:02x}{g:02x}{b:02x}" for r, g, b in pixels}
    kinds = [to_hex(p.get_facecolor()) for p in bars(breakdown_figure([A], title=""))[0]]
    assert set(kinds) <= colours
    write_breakdown(svg, [A, B], title="two")
    first = svg.read_bytes()
    assert first.startswith(b"<?xml")
    assert b">first$ $net<" in first
    write_breakdown(svg, [A, B], title="two")
    assert svg.read_bytes() == first
    assert sorted(p.name for p in tmp_path.rglob("*")) == ["a.png", "a.svg", "new"]


def test_files_that_cannot_be_written(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"ends in \.png or \.svg; got '.*a\.pdf'"):
        write_breakdown(tmp_path / "a.pdf", [A], title="one")
    (tmp_path / "file").touch()
    with pytest.raises(StorageError, match="cannot write"):
        write_breakdown(tmp_path / "file" / "a.png", [A], title="one")
    assert [p.name for p in tmp_path.iterdir()] == ["file"]
