from __future__ import annotations

import json
import signal
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file

from hwnas.errors import CheckpointError, UsageError
from hwnas.spaces import Space, load_space
from hwnas.supernet import Supernet
from hwnas.train import Data, Recipe, accuracy, load_data, load_run, train

RECIPE = Recipe(
    epochs=4,
    batch_size=128,
    learning_rate=5e-3,
    weight_decay=0.05,
    warmup_epochs=1,
    label_smoothing=0.1,
    seed=3,
)


@pytest.fixture(scope="module")
def digits() -> Data:
    return load_data("digits", 16)


class Killed(BaseException):
    """Stands for whatever ends a process."""


def run(
    space: Space, data: Data, run_dir: Path, *, stop_at: str | None = None, **changes: Any
) -> list[str]:
    """Train in ``run_dir`` and return the lines shown; die at the one that begins ``stop_at``."""
    lines = []

    def progress(line: str) -> None:
        lines.append(line)
        if stop_at and line.startswith(stop_at):
            raise Killed

    train(space, data, run_dir, recipe=replace(RECIPE, **changes), progress=progress)
    return lines


def begin(space: Space, data: Data, run_dir: Path, *, stop_at: str = "epoch 2/") -> None:
    with pytest.raises(Killed):
        run(space, data, run_dir, stop_at=stop_at)


def weights(run_dir: Path) -> bytes:
    return (run_dir / "supernet.safetensors").read_bytes()


def log(run_dir: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (run_dir / "log.jsonl").read_text().splitlines()]


# What training does.


def test_training_learns(space: Space, digits: Data, tmp_path: Path) -> None:
    lines = run(space, digits, tmp_path, epochs=15, learning_rate=0.02)
    assert lines[0].startswith("epoch 1/15: loss 2.3")  # ln 10
    assert lines[-3].startswith("val accuracy")
    trained = load_run(tmp_path)
    description = json.loads((tmp_path / "run.json").read_text())
    assert description["epochs_done"] == 15
    assert description["val_accuracies"].keys() == {"largest", "random 1", "random 2"}
    assert min(description["val_accuracies"].values()) > 0.5
    assert [line["epoch"] for line in log(tmp_path)] == list(range(1, 16))
    subnet = trained.supernet.extract(space.sample(1, np.random.default_rng(0))[0])
    assert accuracy(subnet, digits.batches("val", 96)) > 0.1


def test_first_epoch_is_plain_adamw_on_sampled_subnets(space: Space, tmp_path: Path) -> None:
    """One step of the loop against torch's own pieces, written out."""
    data = load_data("digits", 16)
    recipe = replace(RECIPE, epochs=1, batch_size=1149, warmup_epochs=0, seed=2)
    train(space, data, tmp_path, recipe=recipe, progress=lambda _: None)

    rng = np.random.default_rng([2, 0])
    (codes,) = space.sample(1, rng)
    supernet = Supernet(space, image_size=16, num_classes=10, seed=2).train()
    seed = int(rng.integers(2**62))
    ((images, labels),) = data.batches("train", 1149, shuffle_seed=seed, augment=True)
    F.cross_entropy(supernet(images, codes), labels, label_smoothing=0.1).backward()
    rate = 5e-3 * (1 + np.cos(np.pi / 2)) / 2  # the middle of the only step
    before = {name: p.detach().clone() for name, p in supernet.net.named_parameters()}
    after = load_run(tmp_path).supernet.net
    moved = 0
    for name, parameter in supernet.net.named_parameters():
        expected = before[name]
        if parameter.grad is not None:
            expected = expected * (1 - rate * (0.05 if parameter.ndim > 1 else 0.0))
            gradient = parameter.grad
            expected = expected - rate * gradient / (gradient.abs() + 1e-8)  # AdamW's first step
            moved += 1
        torch.testing.assert_close(after.get_parameter(name), expected, rtol=1e-3, atol=2e-6)
    assert 0 < moved < len(before)  # layers that the subnet lacks were left alone


def test_same_seed_same_weights(space: Space, digits: Data, tmp_path: Path) -> None:
    for name, seed in (("a", 3), ("b", 3), ("c", 4)):
        run(space, digits, tmp_path / name, epochs=1, seed=seed)
    assert weights(tmp_path / "a") == weights(tmp_path / "b") != weights(tmp_path / "c")


def test_fewer_images_than_a_batch(space: Space, tmp_path: Path, make_folder: Any) -> None:
    data = load_data(str(make_folder(train={"cat": 6, "dog": 6})), 16)
    run(space, data, tmp_path / "run", epochs=1, batch_size=500)
    assert load_run(tmp_path / "run").class_names == ("cat", "dog")


def test_long_epochs_are_told_step_by_step(space: Space, digits: Data, tmp_path: Path) -> None:
    lines = run(space, digits, tmp_path, epochs=1, batch_size=11)
    assert lines[0].startswith("epoch 1, step 100/104: loss ")


def test_a_learning_rate_that_is_too_high(space: Space, digits: Data, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"loss became .* learning rate of 1e\+30 is too high"):
        run(space, digits, tmp_path, learning_rate=1e30)


# Going on after a kill.


@pytest.mark.parametrize("stop_at", ["epoch 1/", "epoch 3/", "val accuracy"])
def test_resumed_training_ends_with_the_same_weights(
    space: Space, digits: Data, tmp_path: Path, stop_at: str
) -> None:
    run(space, digits, tmp_path / "whole")
    begin(space, digits, tmp_path / "resumed", stop_at=stop_at)
    run(space, digits, tmp_path / "resumed")
    assert weights(tmp_path / "whole") == weights(tmp_path / "resumed")
    assert [line["loss"] for line in log(tmp_path / "whole")] == [
        line["loss"] for line in log(tmp_path / "resumed")
    ]
    whole, resumed = (
        json.loads((tmp_path / name / "run.json").read_text()) for name in ("whole", "resumed")
    )
    assert whole == resumed


KILLED_SCRIPT = """
import os, signal, sys
import torch
from pathlib import Path
from hwnas.spaces import load_space
from hwnas.train import Recipe, load_data, train

torch.set_num_threads({threads})
kill = lambda *_: os.kill(os.getpid(), signal.SIGKILL)
if {in_write}:
    replace, names = os.replace, []
    def killing_replace(source, target):  # the second time the checkpoint is written
        names.append(Path(target).name)
        if names.count("supernet.safetensors") == 2:
            kill()
        replace(source, target)
    os.replace = killing_replace
progress = lambda line: kill() if line.startswith("epoch 2/") else None
train(load_space({space!r}), load_data("digits", 16), Path({run_dir!r}), recipe={recipe},
      progress=progress)
"""


@pytest.mark.parametrize(("in_write", "epochs_done"), [(False, 2), (True, 1)])
def test_kill_9(
    space_file: Path, digits: Data, tmp_path: Path, in_write: bool, epochs_done: int
) -> None:
    run_dir = tmp_path / "killed"
    script = KILLED_SCRIPT.format(
        threads=torch.get_num_threads(),
        in_write=in_write,
        space=str(space_file),
        run_dir=str(run_dir),
        recipe=RECIPE,
    )
    done = subprocess.run(
        [sys.executable, "-c", script], check=False, capture_output=True, text=True
    )
    assert done.returncode == -signal.SIGKILL, done.stderr
    space = load_space(str(space_file))
    assert run(space, digits, run_dir)[0].startswith(f"resuming: {epochs_done} of 4 epochs")
    run(space, digits, tmp_path / "whole")
    assert weights(tmp_path / "whole") == weights(run_dir)


def test_a_run_that_has_ended_is_not_trained_again(
    space: Space, digits: Data, tmp_path: Path
) -> None:
    run(space, digits, tmp_path, epochs=1)
    files = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    lines = run(space, digits, tmp_path, epochs=1)
    assert lines == [f"already trained: 1 of 1 epochs are in {tmp_path}"]
    assert files == {path.name: path.read_bytes() for path in tmp_path.iterdir()}


def test_other_settings_are_named(space: Space, digits: Data, tmp_path: Path) -> None:
    begin(space, digits, tmp_path)
    kept = weights(tmp_path)
    sentence = (
        r"begun with other settings \(batch_size 128, not 64, learning_rate 0\.005, not 0\.1\): "
        "rerun it with those"
    )
    with pytest.raises(CheckpointError, match=sentence):
        run(space, digits, tmp_path, batch_size=64, learning_rate=0.1)
    assert weights(tmp_path) == kept


def test_another_space_is_named(space: Space, digits: Data, tmp_path: Path) -> None:
    begin(space, digits, tmp_path)
    sentence = r"\(space tiny, not autovit-xxs, another space_definition\)"
    with pytest.raises(CheckpointError, match=sentence):
        run(load_space("autovit-xxs"), digits, tmp_path)


def test_another_data_set_is_named(
    space: Space, digits: Data, tmp_path: Path, make_folder: Any
) -> None:
    begin(space, digits, tmp_path / "run")
    folder = make_folder(train={"cat": 6, "dog": 6})
    with pytest.raises(CheckpointError, match=r"another class_names, data digits, not .*images"):
        run(space, load_data(str(folder), 16), tmp_path / "run")


def test_stopped_in_its_first_epoch_any_settings_go(
    space: Space, digits: Data, tmp_path: Path
) -> None:
    begin(space, digits, tmp_path)
    (tmp_path / "supernet.safetensors").unlink()
    with pytest.raises(CheckpointError, match="stopped in its first epoch: rerun the same"):
        load_run(tmp_path)
    run(space, digits, tmp_path, epochs=1)
    assert load_run(tmp_path).seed == 3
    assert len(log(tmp_path)) == 1


# Loading a run.


def test_load_run(space: Space, digits: Data, tmp_path: Path) -> None:
    run(space, digits, tmp_path, epochs=1)
    loaded = load_run(tmp_path)
    assert loaded.space.id == "tiny"
    assert loaded.space.definition == space.definition
    assert (loaded.data_spec, loaded.image_size, loaded.seed) == ("digits", 16, 3)
    assert loaded.class_names == tuple("0123456789")
    assert (loaded.mean, loaded.std) == (digits.mean, digits.std)
    digest = subprocess.run(
        ["sha256sum", tmp_path / "supernet.safetensors"], capture_output=True, text=True, check=True
    )
    assert loaded.digest == digest.stdout[:16]
    assert not any(module.training for module in loaded.supernet.modules())
    stored = load_file(tmp_path / "supernet.safetensors")
    for name, tensor in loaded.supernet.state_dict().items():
        assert torch.equal(tensor, stored[f"supernet.{name}"])
    assert len(stored) == len(loaded.supernet.state_dict())  # no optimiser state is left


def test_no_trained_supernet(tmp_path: Path) -> None:
    sentence = "no trained supernet at .*none: train one with `hwnas train --space S --out .*none`"
    with pytest.raises(CheckpointError, match=sentence):
        load_run(tmp_path / "none")


def test_unfinished_run(space: Space, digits: Data, tmp_path: Path) -> None:
    begin(space, digits, tmp_path)
    sentence = "stopped after 2 of 4 epochs: rerun the same `hwnas train` command to finish it"
    with pytest.raises(CheckpointError, match=sentence):
        load_run(tmp_path)


Damage = Callable[[Path], None]


def cut_short(run_dir: Path) -> None:
    (run_dir / "supernet.safetensors").write_bytes(weights(run_dir)[:-100])


def empty(run_dir: Path) -> None:
    (run_dir / "supernet.safetensors").write_bytes(b"")


def no_tensors(run_dir: Path) -> None:
    (run_dir / "supernet.safetensors").write_bytes(b"not a checkpoint at all")


def change_a_bit(run_dir: Path) -> None:
    content = bytearray(weights(run_dir))
    content[-1000] ^= 1
    (run_dir / "supernet.safetensors").write_bytes(bytes(content))


def drop_the_header(run_dir: Path) -> None:
    path = run_dir / "supernet.safetensors"
    save_file(load_file(path), path)


def edit_description(run_dir: Path) -> None:
    path = run_dir / "run.json"
    path.write_text(path.read_text().replace('"image_size": 16', '"image_size": 32'))


def cut_description(run_dir: Path) -> None:
    path = run_dir / "run.json"
    path.write_text(path.read_text()[:-20])


def replace_description(run_dir: Path) -> None:
    (run_dir / "run.json").write_text("[]")


DAMAGES = [
    (cut_short, "supernet.safetensors is not a whole checkpoint"),
    (empty, "supernet.safetensors is not a whole checkpoint"),
    (no_tensors, "supernet.safetensors is not a whole checkpoint"),
    (change_a_bit, "supernet.safetensors is damaged: its tensors are not those"),
    (drop_the_header, "supernet.safetensors is damaged: its tensors are not those"),
    (edit_description, "run.json is not the one that supernet.safetensors was trained with"),
    (cut_description, "run.json is not a whole run description"),
    (replace_description, "run.json is not a run description of this version"),
]


@pytest.mark.parametrize(("damage", "sentence"), DAMAGES, ids=lambda v: getattr(v, "__name__", ""))
def test_damage_is_told_on_loading_and_on_resuming(
    space: Space, digits: Data, tmp_path: Path, damage: Damage, sentence: str
) -> None:
    begin(space, digits, tmp_path, stop_at="epoch 1/")
    damage(tmp_path)
    with pytest.raises(CheckpointError, match=sentence):
        run(space, digits, tmp_path)
    with pytest.raises(CheckpointError, match=sentence):
        load_run(tmp_path)


def test_weights_without_a_description(space: Space, digits: Data, tmp_path: Path) -> None:
    begin(space, digits, tmp_path)
    (tmp_path / "run.json").unlink()
    with pytest.raises(CheckpointError, match=r"no run description at .*run\.json"):
        run(space, digits, tmp_path)


def test_weights_of_another_shape(
    space: Space, digits: Data, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As when a later version expands the same space definition into other blocks."""
    run(space, digits, tmp_path, epochs=1)
    other = load_space("autovit-xxs")
    monkeypatch.setattr("hwnas.train._run.parse_space", lambda text, source: other)
    with pytest.raises(CheckpointError, match="weights are not those of its space"):
        load_run(tmp_path)
