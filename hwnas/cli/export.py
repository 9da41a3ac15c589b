"""``hwnas export``: write a network for a runtime."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from hwnas.cli._output import print_json
from hwnas.errors import SpaceError, StorageError, UsageError
from hwnas.profilers import FORMATS, Preprocessing
from hwnas.profilers._export import check_request
from hwnas.spaces import REFERENCE_IMAGE_SIZE, REFERENCE_NUM_CLASSES

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

    from hwnas.profilers import ExportReport
    from hwnas.supernet import Network

_NUM_CALIBRATION_IMAGES = 64
_IMAGENET = {"mean": (0.485, 0.456, 0.406), "std": (0.229, 0.224, 0.225)}


@click.command("export")
@click.argument("source", metavar="DIR|ARCH.json", type=click.Path(path_type=Path))
@click.option("--format", required=True, type=click.Choice(list(FORMATS)), help="File format.")
@click.option(
    "--out",
    type=click.Path(path_type=Path),
    help="File to write.  [default: DIR/winner or ARCH, with the format's suffix]",
)
@click.option(
    "--precision",
    type=click.Choice(["fp32", "fp16", "int8"]),
    help="Of weights and arithmetic.  [default: fp16 for coreml, fp32 otherwise]",
)
@click.option(
    "--calibration",
    metavar="DIR|digits",
    help="Images that int8 takes its ranges from: the data that DIR's winner was trained on.",
)
@click.option(
    "--space",
    type=click.Path(path_type=str),
    help="The space of ARCH.json, where it is a file of your own.",
)
@click.option(
    "--image-size",
    type=click.IntRange(min=1),
    help=f"Pixels on a side, of ARCH.json.  [default: {REFERENCE_IMAGE_SIZE}]",
)
@click.option(
    "--num-classes",
    type=click.IntRange(min=1),
    help=f"Classes, of ARCH.json.  [default: {REFERENCE_NUM_CLASSES}]",
)
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object instead.")
def command(
    source: Path,
    *,
    format: str,
    out: Path | None,
    precision: str | None,
    calibration: str | None,
    space: str | None,
    image_size: int | None,
    num_classes: int | None,
    as_json: bool,
) -> None:
    """Write a network for ONNX Runtime, Core ML or PyTorch, and check what was written.

    DIR is what a search left; its winner is written with its weights. ARCH.json is one line of
    `hwnas sample`; its weights are random, good for measuring latency.
    """
    from hwnas.profilers._export import export_network

    is_folder = source.is_dir()
    if is_folder and (space or image_size or num_classes):
        raise UsageError("--space, --image-size and --num-classes are for an ARCH.json, not a DIR")
    stem = source / "winner" if is_folder else source.with_suffix("")
    path = out or stem.with_name(stem.name + FORMATS[format].suffix)
    check_request(format, precision, path)
    if calibration is not None and precision != "int8":
        raise UsageError("--calibration is for --precision int8")
    if is_folder and precision == "int8" and calibration is None:
        raise UsageError(
            "int8 takes its ranges from images: give --calibration digits, or the folder of the "
            "data that the winner was trained on"
        )
    if is_folder:
        from hwnas.search._winner import load_winner

        winner = load_winner(source)
        network, preprocessing = winner.network, winner.preprocessing
        class_names = winner.class_names
    else:
        image_size = image_size or REFERENCE_IMAGE_SIZE
        network = _random_network(source, space, image_size, num_classes or REFERENCE_NUM_CLASSES)
        preprocessing, class_names = Preprocessing(**_IMAGENET, image_size=image_size), None
        click.echo("An ARCH.json has no weights: they are random.", err=True)
    click.echo(f"Writing {path} …", err=True)
    report = export_network(
        network,
        path,
        format=format,
        precision=precision,
        preprocessing=preprocessing,
        class_names=class_names,
        calibration=None if calibration is None else _images(calibration, preprocessing),
    )
    _print(report, as_json=as_json)


def _images(spec: str, preprocessing: Preprocessing) -> npt.NDArray[np.float32]:
    """Images [N, 3, S, S] of the data's training split, as the network takes them."""
    from dataclasses import replace

    from hwnas.train import load_data

    data = load_data(spec, preprocessing.image_size)
    data = replace(data, mean=preprocessing.mean, std=preprocessing.std)
    images, _ = next(iter(data.batches("train", _NUM_CALIBRATION_IMAGES, shuffle_seed=0)))
    return images.contiguous().numpy()


def _random_network(path: Path, space_name: str | None, image_size: int, classes: int) -> Network:
    """The network of an ARCH.json with random weights, the same each time."""
    from hwnas.files import read_json
    from hwnas.spaces import Arch, load_space
    from hwnas.supernet import build

    try:
        arch = Arch.from_json(read_json(path, "architecture", StorageError))
        space = load_space(space_name or arch.space)
        codes = space.check(arch)
    except SpaceError as error:
        raise SpaceError(f"{path}: {error}") from error
    slots, blocks = zip(*space.layout(codes, image_size, classes), strict=True)
    return build(blocks, slots, seed=0)


def _print(report: ExportReport, *, as_json: bool) -> None:
    if as_json:
        print_json({"path": str(report.path), "format": report.format, **report.detail})
        return
    detail = dict(report.detail)
    operators = detail.pop("operators")
    error = detail.pop("max_abs_error")
    click.echo(f"path            {report.path}")
    click.echo(f"format          {report.format}")
    for name, value in detail.items():
        click.echo(f"{name:<15} {value}")
    compared = "not measured: Core ML predicts on macOS only" if error is None else f"{error:.2g}"
    click.echo(f"max_abs_error   {compared}")
    click.echo(f"operators       {sum(operators.values())}: {_counts(operators)}")


def _counts(operators: dict[str, int]) -> str:
    return ", ".join(f"{count} {name}" for name, count in operators.items())
