"""How fast the networks of a latency table are exported to ONNX, on one core.

Contestants, on the same members of a space at 256 pixels and 1000 classes:

- ``composed``: each distinct block exported once, whole models joined from the pieces (what a
  profile does), the first export of every block included;
- ``whole``: torch's own export of each network, for the first few only.

Seconds include writing the file. That a composed model has the numbers and, optimised, the
operators of the whole export is a test: tests/profilers/test_compose.py. Mark: 200 networks of
autovit-xxs in 60 s on one core.
"""

from __future__ import annotations

import os

os.environ["OMP_NUM_THREADS"] = os.environ["OPENBLAS_NUM_THREADS"] = "1"  # before numpy, torch

import argparse
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import torch

from hwnas.files import write_json
from hwnas.profilers import load_runtime
from hwnas.spaces import SPACES, Block, Space, load_space
from hwnas.supernet import build

IMAGE_SIZE, NUM_CLASSES = 256, 1000
MARK_NETWORKS, MARK_S = 200, 60.0

Layout = tuple[Block, ...]
Export = Callable[[Layout, Path], None]
Seconds = tuple[float, float]
"""Of the wall clock, and of this process on its core."""


def members(space: Space, num: int) -> list[Layout]:
    """``num`` members of the space, drawn at random."""
    codes = space.sample(num, np.random.default_rng(0))
    layouts = (space.layout(row, IMAGE_SIZE, NUM_CLASSES) for row in codes)
    return [tuple(block for _, block in layout) for layout in layouts]


def contestants() -> dict[str, Export]:
    """Both ways to write a network's file, with nothing exported yet."""
    runtime = load_runtime("onnxruntime")

    def composed(blocks: Layout, path: Path) -> None:
        runtime.export(blocks, path, image_size=IMAGE_SIZE)

    def whole(blocks: Layout, path: Path) -> None:
        runtime.export(build(blocks, seed=0).eval(), path, image_size=IMAGE_SIZE)

    return {"composed": composed, "whole": whole}


def measure(networks: Sequence[Layout], num_whole: int) -> dict[str, list[Seconds]]:
    """Seconds of each export; the first ``num_whole`` networks are also exported whole."""
    ways = contestants()
    seconds: dict[str, list[Seconds]] = {name: [] for name in ways}
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "network.onnx"
        ways["whole"](networks[0][:1], path)  # imports what torch imports at first use
        for i, blocks in enumerate(networks):
            for name, export in ways.items():
                if name == "composed" or i < num_whole:
                    start = time.perf_counter(), time.process_time()
                    export(blocks, path)
                    spent = time.perf_counter() - start[0], time.process_time() - start[1]
                    seconds[name].append(spent)
    return seconds


def main() -> None:
    """Parse, measure, print, write."""
    parser = argparse.ArgumentParser(description="Speed of exporting to ONNX, one core.")
    parser.add_argument("--space", choices=SPACES, default="autovit-xxs")
    parser.add_argument("--quick", action="store_true", help="fewer networks, under a minute")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write flat records to FILE")
    args = parser.parse_args()
    torch.set_num_threads(1)
    num, num_whole = (40, 5) if args.quick else (MARK_NETWORKS, 10)
    networks = members(load_space(args.space), num)
    num_blocks = len({block for network in networks for block in network})
    records = []
    for method, seconds in measure(networks, num_whole).items():
        wall, cpu = (sum(values) for values in zip(*seconds, strict=True))
        records.append(
            {
                "method": method,
                "space": args.space,
                "networks": len(seconds),
                "total_s": round(wall, 2),
                "cpu_s": round(cpu, 2),
                "s_per_network": round(cpu / len(seconds), 4),
            }
        )
    print(f"{args.space}, {IMAGE_SIZE} pixels, one core; {num_blocks} distinct blocks")
    print(f"{'method':<10}{'networks':>10}{'wall s':>10}{'CPU s':>10}{'CPU s each':>12}")
    for r in records:
        print(
            f"{r['method']:<10}{r['networks']:>10}{r['total_s']:>10.1f}{r['cpu_s']:>10.1f}"
            f"{r['s_per_network']:>12.3f}"
        )
    composed, whole = records
    print(f"composed over whole: {whole['s_per_network'] / composed['s_per_network']:.1f}x")
    print(f"mark: {MARK_NETWORKS} networks of autovit-xxs in {MARK_S:.0f} s on one core")
    if args.json:
        write_json(args.json, records)


if __name__ == "__main__":
    main()
