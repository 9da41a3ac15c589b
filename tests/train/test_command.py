"""``hwnas train``, as typed."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from hwnas.cli import main
from hwnas.train import default_image_size, default_recipe, load_run

Train = Callable[..., Result]
MakeFolder = Callable[..., Path]


@pytest.fixture
def hwnas_train(tmp_path: Path, space_file: Path, monkeypatch: pytest.MonkeyPatch) -> Train:
    """``hwnas train`` on the tiny space in an empty folder, for one epoch of 16-pixel images."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("HWNAS_WORKSPACE", raising=False)
    short = ["--space", space_file.name, "--image-size", "16", "--epochs", "1"]
    return lambda *args: CliRunner().invoke(main, ["train", *short, *map(str, args)])


def test_trains_digits_into_the_workspace(hwnas_train: Train, tmp_path: Path) -> None:
    result = hwnas_train("--batch-size", 128, "--learning-rate", "0.01", "--seed", 5)
    assert result.exit_code == 0, result.stderr
    run_dir = tmp_path / result.stdout.strip()
    assert run_dir.parent == tmp_path / "hwnas-runs" / "supernets"
    run = load_run(run_dir)
    assert (run.data_spec, run.image_size, run.seed) == ("digits", 16, 5)
    description = json.loads((run_dir / "run.json").read_text())
    assert (description["batch_size"], description["learning_rate"]) == (128, 0.01)
    lines = result.stderr.splitlines()
    assert lines[0].startswith("epoch 1/1: loss")
    sizes = "--image-size 16 --num-classes 10"
    assert lines[-1] == f"Next: hwnas profile --device cpu --space tiny.toml {sizes}"


def test_trains_a_folder_into_the_folder_named(
    hwnas_train: Train, tmp_path: Path, make_folder: MakeFolder
) -> None:
    folder = make_folder(train={"cat": 6, "dog": 6})
    result = hwnas_train("--data", folder.name, "--out", "mine")
    assert result.exit_code == 0, result.stderr
    assert result.stdout == "mine\n"
    assert load_run(tmp_path / "mine").data_spec == str(folder)
    again = hwnas_train("--data", folder, "--out", "mine")
    assert again.stderr.startswith("already trained: 1 of 1 epochs are in mine\n")
    other = hwnas_train("--data", folder, "--out", "mine", "--seed", 1)
    assert other.exit_code == 1
    assert "Error: the training in mine was begun with other settings (seed 0, not 1)" in (
        other.stderr
    )


@pytest.mark.parametrize(
    ("args", "exit_code", "sentence"),
    [
        (["--data", "nowhere"], 1, "Error: no data folder at nowhere"),
        (["--epochs", "0"], 2, "0 is not in the range x>=1"),
        (["--learning-rate", "0"], 2, "0.0 is not in the range x>0"),
        (["--learning-rate", "1e30", "--epochs", "9"], 2, "a learning rate of 1e+30 is too high"),
        (["--space", "autovit-xxx"], 2, "did you mean 'autovit-xxs'?"),
    ],
)
def test_what_cannot_be_done(
    hwnas_train: Train, args: list[str], exit_code: int, sentence: str
) -> None:
    result = hwnas_train(*args)
    assert result.exit_code == exit_code
    assert sentence in result.stderr
    assert result.stdout == ""


def test_help_tells_the_defaults_that_hold(hwnas_train: Train) -> None:
    text = " ".join(hwnas_train("--help").stdout.split())
    found = re.findall(r"default: (\S+) for digits, else (\S+)\]", text)
    digits, folder = default_recipe("digits"), default_recipe("folder")
    assert [(float(a), float(b)) for a, b in found] == [
        (default_image_size("digits"), default_image_size("folder")),
        (digits.epochs, folder.epochs),
        (digits.batch_size, folder.batch_size),
        (digits.learning_rate, folder.learning_rate),
    ]
