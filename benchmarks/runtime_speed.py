"""One network in several runtimes: latency beside the first one's, workers taken in turn.

TVM tunes kernels that it has not tuned before (in ``--workspace``), which takes minutes.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from pathlib import Path

import numpy as np

from hwnas.devices import Artifact, LocalAgent, Plan
from hwnas.errors import HwnasError
from hwnas.files import write_json
from hwnas.profilers import Runtime, load_runtime
from hwnas.spaces import Block, load_space

DEFAULT = "onnxruntime,torch,tvm:trials=16"
QUICK = "onnxruntime,torch"


def network(space_id: str, image_size: int, seed: int) -> list[Block]:
    """A member of the space, drawn by ``seed``."""
    space = load_space(space_id)
    (codes,) = space.sample(1, np.random.default_rng(seed))
    return [block for _, block in space.layout(codes, image_size, 1000)]


def measure(artifacts: dict[str, tuple[Runtime, Path]], replicates: int) -> dict[str, list[float]]:
    """The median of 20 runs (ms) of each runtime, in as many fresh workers."""
    found: dict[str, list[float]] = {spec: [] for spec in artifacts}
    with LocalAgent() as agent:
        for replicate in range(replicates):
            for spec, (runtime, path) in list(artifacts.items())[:: 1 if replicate % 2 else -1]:
                plan = Plan(
                    spec,
                    rounds=20,
                    seed=replicate,
                    timeout_s=runtime.timeout_s,
                    environment=runtime.environment,
                )
                (measurement,) = agent.measure([Artifact(spec, path)], plan)
                if measurement.error:
                    raise HwnasError(f"{spec}: {measurement.error}")
                found[spec].append(statistics.median(measurement.samples_ms))
    return found


def main() -> None:
    """Parse, export, measure, print, write."""
    parser = argparse.ArgumentParser(description="One network in several runtimes, one thread.")
    parser.add_argument("--runtimes", default=DEFAULT, help="such as %(default)s")
    parser.add_argument("--space", default="autovit-xxs")
    parser.add_argument("--image-size", type=int, default=256)
    parser.add_argument("--seed", type=int, default=0, help="which member of the space")
    parser.add_argument("--workspace", type=Path, default=Runtime.workspace)
    parser.add_argument("--quick", action="store_true", help=f"{QUICK}, in three workers each")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write flat records to FILE")
    args = parser.parse_args()
    specs, replicates = (QUICK, 3) if args.quick else (args.runtimes, 9)
    blocks = network(args.space, args.image_size, args.seed)
    records = []
    with tempfile.TemporaryDirectory() as folder:
        artifacts, export_s = {}, {}
        for spec in specs.split(","):
            runtime = load_runtime(spec)
            runtime.workspace = args.workspace
            runtime.describe(1)
            path = Path(folder) / f"{len(artifacts)}{runtime.suffix}"
            start = time.perf_counter()
            runtime.export(blocks, path, image_size=args.image_size)
            export_s[spec], artifacts[spec] = time.perf_counter() - start, (runtime, path)
        found = measure(artifacts, replicates)
    first = next(iter(found.values()))
    print(f"{args.space}, member {args.seed}, {args.image_size} pixels; {replicates} workers each")
    print(f"{'runtime':<28}{'export s':>10}{'ms':>9}{'ratio':>8}   least to greatest")
    for spec, ms in found.items():
        ratios = [mine / theirs for mine, theirs in zip(ms, first, strict=True)]
        ratio = statistics.median(ratios)
        print(
            f"{spec:<28}{export_s[spec]:>10.1f}{statistics.median(ms):>9.2f}{ratio:>8.2f}"
            f"   {min(ratios):.2f} to {max(ratios):.2f}"
        )
        records.append(
            {
                "runtime": spec,
                "space": args.space,
                "image_size": args.image_size,
                "ms": statistics.median(ms),
                "ratio": ratio,
            }
        )
    if args.json:
        write_json(args.json, records)


if __name__ == "__main__":
    main()
