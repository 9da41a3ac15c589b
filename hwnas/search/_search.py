"""The whole search: coarse, fine, verify on the device, recalibrate where the table was wrong."""

from __future__ import annotations

import platform
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from hwnas.devices import Agent, Plan
from hwnas.errors import BudgetError
from hwnas.files import write_json, writing
from hwnas.luts import LatencyTable
from hwnas.search._accuracy import AccuracyLog
from hwnas.search._budget import Budget
from hwnas.search._coarse import Coarse, coarse
from hwnas.search._fine import Evolution, evolve
from hwnas.search._verify import Timed, Verification, correction, time_finalists
from hwnas.search._winner import WEIGHTS_FILE, WINNER_FILE
from hwnas.spaces import Codes

if TYPE_CHECKING:
    from hwnas.profilers import Runtime
    from hwnas.supernet import Network
    from hwnas.train import Data, Run

_FINALISTS = 5
_MAX_ROUNDS = 6
_CALIBRATION_IMAGES = 512
_BATCH = 128
_SLOWER = 0.1


@dataclass(frozen=True)
class Settings:
    """How long to search; the evolution's defaults are the paper's."""

    evolution: Evolution = field(default_factory=Evolution)
    num_samples: int = 100_000
    top_skeletons: int = 10
    seed: int = 0


@dataclass(frozen=True)
class Found:
    """The winner as ``winner.json`` holds it, the network, and warnings for the user."""

    winner: dict[str, Any]
    network: Network
    warnings: tuple[str, ...]


@dataclass(frozen=True)
class _Finalist:
    codes: Codes
    accuracy: float
    predicted_ms: float
    timed: Timed


def search(
    table: LatencyTable,
    table_path: Path,
    run: Run,
    run_dir: Path,
    data: Data,
    agent: Agent,
    runtime: Runtime,
    out_dir: Path,
    *,
    max_latency_ms: float,
    max_params: int | None,
    settings: Settings,
    plan: Plan,
    progress: Callable[[str], None],
) -> Found:
    """Find the most accurate subnet whose latency, timed on the device, is within the budget.

    Writes ``winner.json`` and ``winner.safetensors`` to ``out_dir``, and each rating as it is made.
    Raises ``BudgetError``, before anything is rated, where nothing in the space meets the budgets;
    ``TableError`` where the table is of another device, space or size.
    """
    num_classes = len(run.class_names)
    table.check_use(space=run.space, image_size=run.image_size, num_classes=num_classes)
    table.check_device(agent.info(), runtime.describe(plan.threads))
    budget = Budget(run.space, table, max_latency_ms, max_params)
    rng = np.random.default_rng(settings.seed)
    progress("coarse: sampling the space")
    found = coarse(
        budget,
        rng,
        num_samples=settings.num_samples,
        top=settings.top_skeletons,
        num_seeds=settings.evolution.population,
    )
    subnets = _Subnets(run, data)
    key = {
        "space": run.space.id,
        "supernet": run.digest,
        "data": data.spec,
        "image_size": run.image_size,
    }
    log = AccuracyLog(out_dir / "evaluations.jsonl", key, subnets.rate)
    evolve(budget, found.seeds, log, rng, settings.evolution, progress)
    best, verification, table_now = _until_verified(
        budget, log, subnets, agent, runtime, plan, rng, settings, progress
    )
    network = subnets.extract(best.codes)
    winner = _winner(run, table, table_path, run_dir, budget, best, verification, found, log)
    winner |= {"seed": settings.seed, "settings": asdict(settings)}
    winner["versions"] = _versions(runtime, plan)
    _write(out_dir, winner, network)
    return Found(winner, network, _warnings(table, table_now, verification))


class _Subnets:
    """Subnets of a trained supernet, recalibrated on a fixed set of training images."""

    def __init__(self, run: Run, data: Data):
        self._supernet = run.supernet
        self._calibration = []
        num = 0
        for images, _ in data.batches("train", _BATCH, shuffle_seed=0):
            self._calibration.append(images)
            num += len(images)
            if num >= _CALIBRATION_IMAGES:
                break
        self._data = data

    def extract(self, codes: Codes) -> Network:
        """The plain network of ``codes``, its BatchNorm statistics its own."""
        from hwnas.supernet import recalibrate

        network = self._supernet.extract(codes)
        recalibrate(network, self._calibration)
        return network.eval()

    def rate(self, codes: Codes) -> float:
        """Top-1 accuracy on the validation images."""
        from hwnas.train import accuracy

        return accuracy(self.extract(codes), self._data.batches("val", _BATCH))


def _until_verified(
    budget: Budget,
    log: AccuracyLog,
    subnets: _Subnets,
    agent: Agent,
    runtime: Runtime,
    plan: Plan,
    rng: np.random.Generator,
    settings: Settings,
    progress: Callable[[str], None],
) -> tuple[_Finalist, Verification, LatencyTable]:
    """Time the best rated until one keeps the budget; recalibrate the table after each failure."""
    all_timed: list[_Finalist] = []
    tried: set[bytes] = set()
    current = budget
    for number in range(1, _MAX_ROUNDS + 1):
        ready = [(a, c) for a, c in log.ranked() if c.tobytes() not in tried]
        ready.sort(key=lambda pair: (-pair[0], float(budget.latency_ms(pair[1][None])[0])))
        finalists = [(a, c) for a, c in ready if current.meets(c[None])[0]][:_FINALISTS]
        if not finalists:
            progress("every rated candidate broke the budget; searching on with a corrected table")
            parent = current.fastest()
            seeds = current.space.mutate(
                np.repeat(parent[None], settings.evolution.population, axis=0),
                rng,
                p_depth=settings.evolution.p_depth,
                p_block=settings.evolution.p_block,
                accept=current.meets,
            )
            evolve(current, np.unique(seeds, axis=0), log, rng, settings.evolution, progress)
            continue
        progress(f"verify: timing {len(finalists)} finalists on the device (round {number})")
        networks = [subnets.extract(codes) for _, codes in finalists]
        verification = time_finalists(networks, budget.table, budget.space, agent, runtime, plan)
        tried |= {codes.tobytes() for _, codes in finalists}
        for (accuracy, codes), timed in zip(finalists, verification.timed, strict=True):
            if timed is not None:
                predicted = float(budget.latency_ms(codes[None])[0])
                all_timed.append(_Finalist(codes, accuracy, predicted, timed))
        within = [f for f in all_timed if f.timed.measured_ms <= budget.max_latency_ms]
        if within:
            best = max(within, key=lambda f: (f.accuracy, -f.timed.measured_ms))
            return best, verification, current.table
        scale, offset_ms = correction(
            [f.predicted_ms for f in all_timed], [f.timed.measured_ms for f in all_timed]
        )
        current = budget.with_table(budget.table.recalibrated(scale, offset_ms))
    nearest = min(f.timed.measured_ms for f in all_timed)
    raise BudgetError(
        f"{len(all_timed)} finalists were timed and none kept {budget.max_latency_ms:g} ms; the "
        f"nearest took {nearest:.3f} ms: profile the device again, or give a larger --latency"
    )


def _winner(
    run: Run,
    table: LatencyTable,
    table_path: Path,
    run_dir: Path,
    budget: Budget,
    best: _Finalist,
    verification: Verification,
    found: Coarse,
    log: AccuracyLog,
) -> dict[str, Any]:
    arch = run.space.decode(best.codes)
    blocks = run.space.blocks(arch, table.image_size, table.num_classes)
    return {
        "space": run.space.id,
        "space_definition": run.space.definition,
        "arch": arch.to_json(),
        "params": int(budget.num_params(best.codes[None])[0]),
        "max_params": budget.max_params,
        "latency_ms": {
            "budget": budget.max_latency_ms,
            **table.predict(blocks).to_json(),
            "measured": best.timed.measured_ms,
            "measured_half_interval": best.timed.half_interval_ms,
            "reference_then": table.reference.ms,
            "reference_now": verification.reference_ms,
        },
        "accuracy": best.accuracy,
        "device": dict(table.device),
        "lut": str(table_path),
        "supernet": str(run_dir),
        "supernet_digest": run.digest,
        "data": run.data_spec,
        "candidates": {
            "feasible_total": found.num_feasible,
            "sampled": found.num_sampled,
            "skeletons": found.num_skeletons,
            "evaluated": len(log.ranked()),
        },
        "network": {
            "image_size": run.image_size,
            "num_classes": len(run.class_names),
            "class_names": list(run.class_names),
            "mean": list(run.mean),
            "std": list(run.std),
        },
    }


def _versions(runtime: Runtime, plan: Plan) -> dict[str, str]:
    import torch

    from hwnas import __version__

    described = runtime.describe(plan.threads)
    return {
        "hwnas": __version__,
        "python": platform.python_version(),
        "torch": torch.__version__,
        str(described["name"]): str(described["version"]),
    }


def _warnings(
    table: LatencyTable, table_now: LatencyTable, verification: Verification
) -> tuple[str, ...]:
    warnings = []
    drift = verification.reference_ms / table.reference.ms - 1
    if abs(drift) > _SLOWER:
        warnings.append(
            f"the device now runs the reference network in {verification.reference_ms:.3f} ms, "
            f"{abs(drift):.0%} {'slower' if drift > 0 else 'faster'} than when it was profiled; "
            "latencies are given at the speed it had then"
        )
    if table_now is not table:
        warnings.append(
            "the table had to be corrected against timed finalists; consider to profile again"
        )
    return tuple(warnings)


def _write(out_dir: Path, winner: dict[str, Any], network: Network) -> None:
    from safetensors.torch import save

    tensors = {name: t.contiguous() for name, t in network.state_dict().items()}
    with writing(out_dir / WEIGHTS_FILE) as temporary:
        temporary.write_bytes(save(tensors))
    write_json(out_dir / WINNER_FILE, winner)
