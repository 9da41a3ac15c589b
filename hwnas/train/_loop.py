"""The training loop: one uniformly sampled architecture a step (AutoViT, Algorithm 1).

All that is random in an epoch is drawn from (seed, epoch), and a checkpoint is written after each,
so a run that was killed goes on from its last whole epoch and ends with the same weights, bit for
bit, as one that was not (on the same machine, with the same versions and number of threads).
"""

from __future__ import annotations

import time
from collections.abc import Callable
from itertools import islice
from pathlib import Path

import numpy as np
import torch.nn.functional as F
from torch.optim import AdamW, Optimizer

from hwnas.errors import CheckpointError, UsageError
from hwnas.files import append_line
from hwnas.spaces import Space
from hwnas.supernet import Supernet
from hwnas.train._checkpoint import write_checkpoint
from hwnas.train._data import Data
from hwnas.train._description import (
    Begun,
    Settings,
    digest,
    log_path,
    read_run,
    run_settings,
    weights_path,
    write_description,
)
from hwnas.train._evaluate import inherited_accuracy
from hwnas.train._recipe import Recipe

Progress = Callable[[str], None]

_STEPS_BETWEEN_LINES = 100
_NUM_DRAWN = 4096  # architectures among which the largest is looked for
_CALIBRATION_BATCHES = 16


def train(space: Space, data: Data, run_dir: Path, *, recipe: Recipe, progress: Progress) -> None:
    """Train the supernet of ``space`` on ``data`` in the folder ``run_dir``, or finish doing so.

    A run that has ended is left as it is. ``progress`` is given lines to show. Raises
    ``CheckpointError`` where the folder's run is damaged or was begun with other settings,
    ``UsageError`` where the learning rate makes the loss infinite.
    """
    settings = run_settings(space, data, recipe)
    begun = _begun_before(run_dir, settings)
    supernet = Supernet(
        space, image_size=data.image_size, num_classes=len(data.class_names), seed=recipe.seed
    )
    optimizer = _optimizer(supernet, recipe)
    epochs_done = 0
    if begun is None:
        log_path(run_dir).unlink(missing_ok=True)
        write_description(run_dir, settings, epochs_done=0, val_accuracies={})
    else:
        epochs_done = begun.checkpoint.epochs_done
        begun.checkpoint.restore_weights(supernet)
        begun.checkpoint.restore_optimizer(optimizer, supernet)
        state = "resuming" if epochs_done < recipe.epochs else "already trained"
        progress(f"{state}: {epochs_done} of {recipe.epochs} epochs are in {run_dir}")
    for epoch in range(epochs_done, recipe.epochs):
        start_s = time.monotonic()
        loss = _train_epoch(supernet, optimizer, data, recipe, epoch, progress)
        write_checkpoint(
            weights_path(run_dir),
            supernet,
            optimizer if epoch + 1 < recipe.epochs else None,
            epochs_done=epoch + 1,
            settings_digest=digest(settings),
        )
        write_description(run_dir, settings, epochs_done=epoch + 1, val_accuracies={})
        epoch_s = time.monotonic() - start_s
        append_line(log_path(run_dir), {"epoch": epoch + 1, "loss": loss, "seconds": epoch_s})
        left_min = epoch_s * (recipe.epochs - epoch - 1) / 60
        progress(f"epoch {epoch + 1}/{recipe.epochs}: loss {loss:.3f}; {left_min:.1f} min left")
    if begun is None or not begun.val_accuracies:
        accuracies = _val_accuracies(supernet, data, recipe, progress)
        write_description(run_dir, settings, epochs_done=recipe.epochs, val_accuracies=accuracies)


def _begun_before(run_dir: Path, settings: Settings) -> Begun | None:
    """The run in ``run_dir`` that has come past its first epoch, if there is one."""
    if not weights_path(run_dir).exists():
        return None
    begun = read_run(run_dir)
    others = sorted(name for name in settings if settings[name] != begun.settings.get(name))
    if others:
        differences = ", ".join(
            _difference(name, begun.settings.get(name), settings[name]) for name in others
        )
        raise CheckpointError(
            f"the training in {run_dir} was begun with other settings ({differences}): rerun it "
            "with those, remove the folder, or train in another"
        )
    return begun


def _difference(name: str, before: object, now: object) -> str:
    if isinstance(now, int | float) or name in ("space", "data"):
        return f"{name} {before}, not {now}"
    return f"another {name}"


def _optimizer(supernet: Supernet, recipe: Recipe) -> Optimizer:
    """AdamW; matrices and convolutions decay, biases and norms do not."""
    parameters = list(supernet.parameters())
    groups = [
        {"params": [p for p in parameters if p.ndim > 1], "weight_decay": recipe.weight_decay},
        {"params": [p for p in parameters if p.ndim <= 1], "weight_decay": 0.0},
    ]
    return AdamW(groups, lr=recipe.learning_rate, fused=True)


def _train_epoch(
    supernet: Supernet,
    optimizer: Optimizer,
    data: Data,
    recipe: Recipe,
    epoch: int,
    progress: Progress,
) -> float:
    """Train for one epoch, ``epoch`` counted from 0; return the mean loss.

    Images that do not fill a last batch wait for another epoch. The gradients of layers that the
    sampled architecture lacks are None, so that AdamW leaves them alone.
    """
    rng = np.random.default_rng([recipe.seed, epoch])
    num_steps = max(1, data.num_images("train") // recipe.batch_size)
    codes = supernet.space.sample(num_steps, rng)
    batches = data.batches(
        "train", recipe.batch_size, shuffle_seed=int(rng.integers(2**62)), augment=True
    )
    supernet.train()
    total = 0.0
    for step, (arch, (images, labels)) in enumerate(zip(codes, batches, strict=False)):
        for group in optimizer.param_groups:
            group["lr"] = recipe.learning_rate_at(epoch + (step + 0.5) / num_steps)
        optimizer.zero_grad(set_to_none=True)
        loss = F.cross_entropy(
            supernet(images, arch), labels, label_smoothing=recipe.label_smoothing
        )
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        total += loss.item()
        if not np.isfinite(total):
            raise UsageError(
                f"the loss became {loss.item()} in epoch {epoch + 1}: a learning rate of "
                f"{recipe.learning_rate:g} is too high"
            )
        if (step + 1) % _STEPS_BETWEEN_LINES == 0:
            progress(f"epoch {epoch + 1}, step {step + 1}/{num_steps}: loss {loss.item():.3f}")
    return total / num_steps


def _val_accuracies(
    supernet: Supernet, data: Data, recipe: Recipe, progress: Progress
) -> dict[str, float]:
    """Accuracies on the validation images of the largest member found and of two random ones."""
    batches = data.batches("train", recipe.batch_size, shuffle_seed=recipe.seed)
    calibration = [images for images, _ in islice(batches, _CALIBRATION_BATCHES)]
    drawn = supernet.space.sample(_NUM_DRAWN, np.random.default_rng(recipe.seed))
    params = supernet.space.num_params(drawn, data.image_size, len(data.class_names))
    rows = {"largest": int(params.argmax()), "random 1": 0, "random 2": 1}
    accuracies = {}
    for name, row in rows.items():
        accuracies[name] = inherited_accuracy(
            supernet,
            drawn[row],
            calibration=calibration,
            batches=data.batches("val", recipe.batch_size),
        )
        progress(
            f"val accuracy {accuracies[name]:.1%}: {name} subnet, {params[row] / 1e6:.2f} M "
            "parameters"
        )
    return accuracies
