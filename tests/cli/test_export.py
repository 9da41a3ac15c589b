from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import safetensors.torch
import torch
from click.testing import Result

from hwnas.profilers import ExportReport
from hwnas.spaces import load_space
from hwnas.supernet import Network, build

Run = Callable[..., Result]

SPACE = load_space("autovit-xxs")
CODES = SPACE.sample(1, np.random.default_rng(0))[0]
ARCH = SPACE.decode(CODES)
SMALL = ("--image-size", "32", "--num-classes", "3")


@pytest.fixture
def arch_file(tmp_path: Path) -> Path:
    path = tmp_path / "net.json"
    path.write_text(str(ARCH))
    return path


def test_winner_of_a_search(hwnas: Run, tmp_path: Path) -> None:
    slots, blocks = zip(*SPACE.layout(CODES, 32, 3), strict=True)
    network = build(blocks, slots, seed=3).eval()
    facts = {"image_size": 32, "num_classes": 3, "class_names": None}
    facts |= {"mean": [0.5] * 3, "std": [0.25] * 3}
    record = {"space": SPACE.id, "space_definition": "", "arch": ARCH.to_json(), "network": facts}
    (tmp_path / "winner.json").write_text(json.dumps(record))
    safetensors.torch.save_file(network.state_dict(), tmp_path / "winner.safetensors")

    result = hwnas("export", tmp_path, "--format", "onnx", "--json")

    assert result.exit_code == 0
    path = tmp_path / "winner.onnx"
    reported = json.loads(result.stdout)
    assert reported["path"] == str(path)
    assert reported["size_bytes"] == path.stat().st_size
    assert reported["max_abs_error"] < 1e-4
    image = np.random.default_rng(0).standard_normal((1, 3, 32, 32), dtype=np.float32)
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    with torch.no_grad():
        expected = network(torch.from_numpy(image)).numpy()
    np.testing.assert_allclose(session.run(None, {"image": image})[0], expected, atol=1e-5)


def test_arch_file_has_random_weights_the_same_each_time(
    hwnas: Run, arch_file: Path, tmp_path: Path
) -> None:
    result = hwnas("export", arch_file, "--format", "onnx", *SMALL)
    again = hwnas("export", arch_file, "--format", "onnx", *SMALL, "--out", "again.onnx")
    assert result.exit_code == again.exit_code == 0
    assert "weights: they are random" in result.stderr
    assert (tmp_path / "net.onnx").read_bytes() == (tmp_path / "again.onnx").read_bytes()
    assert str(tmp_path / "net.onnx") in result.stdout
    assert "opset           17\n" in result.stdout
    model = onnx.load(tmp_path / "net.onnx")
    logits = model.graph.output[0].type.tensor_type.shape.dim
    assert [d.dim_value for d in logits] == [1, 3]


def test_int8_is_calibrated_with_the_data(hwnas: Run, arch_file: Path, tmp_path: Path) -> None:
    base = ("export", arch_file, "--format", "onnx", *SMALL, "--precision", "int8")
    assert hwnas(*base, "--out", "noise.onnx").exit_code == 0
    result = hwnas(*base, "--out", "digits.onnx", "--calibration", "digits", "--json")
    assert result.exit_code == 0
    assert json.loads(result.stdout)["precision"] == "int8"
    scales = {name: image_scale(tmp_path / f"{name}.onnx") for name in ("noise", "digits")}
    pixels = [(0 - 0.485) / 0.229, (1 - 0.406) / 0.225]  # black in red, white in blue
    assert scales["digits"] == pytest.approx((pixels[1] - pixels[0]) / 255, rel=0.02)
    assert scales["noise"] > 1.4 * scales["digits"]


def image_scale(path: Path) -> float:
    """The step between two levels of the quantised input."""
    graph = onnx.load(path).graph
    (quantise,) = [node for node in graph.node if "image" in node.input]
    (scale,) = [tensor for tensor in graph.initializer if tensor.name == quantise.input[1]]
    return float(onnx.numpy_helper.to_array(scale))


def test_arch_of_a_space_of_the_users_own(hwnas: Run, tmp_path: Path) -> None:
    own = SPACE.definition.replace('id = "autovit-xxs"', 'id = "mine"')
    (tmp_path / "mine.toml").write_text(own)
    (tmp_path / "net.json").write_text(json.dumps(ARCH.to_json() | {"space": "mine"}))
    result = hwnas("export", "net.json", "--format", "torch", "--space", "mine.toml", *SMALL)
    assert result.exit_code == 0
    assert (tmp_path / "net.pt2").stat().st_size > 100_000


def test_coreml_says_that_nothing_was_predicted(
    hwnas: Run, arch_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def export(_network: Network, path: Path, *, precision: str, **_: object) -> ExportReport:
        detail = {"precision": precision, "max_abs_error": None, "operators": {"conv": 3, "add": 1}}
        return ExportReport(path, "coreml", detail)

    monkeypatch.setattr("hwnas.profilers._export.export_network", export)
    result = hwnas("export", arch_file, "--format", "coreml", "--precision", "fp32", *SMALL)
    assert result.stdout.splitlines() == [
        f"path            {arch_file.with_suffix('.mlpackage')}",
        "format          coreml",
        "precision       fp32",
        "max_abs_error   not measured: Core ML predicts on macOS only",
        "operators       4: 3 conv, 1 add",
    ]


@pytest.mark.parametrize(
    ("args", "exit_code", "message"),
    [
        (("none.json", "--format", "onnx"), 1, "no architecture at none.json"),
        ((".", "--format", "onnx"), 1, "no search result at winner.json"),
        ((".", "--format", "onnx", *SMALL), 2, "are for an ARCH.json, not a DIR"),
        (("net.json",), 2, "Missing option '--format'"),
        (("net.json", "--format", "onxx"), 2, "'onxx' is not one of 'onnx'"),
        (("net.json", "--format", "onnx", "--out", "a.pt2"), 2, "ends in .onnx; got a.pt2"),
        (("net.json", "--format", "torch", "--precision", "int8"), 2, "torch is written in fp32"),
        ((".", "--format", "onnx", "--precision", "int8"), 2, "give --calibration digits, or"),
        (("net.json", "--format", "onnx", "--calibration", "digits"), 2, "for --precision int8"),
        (("net.json", "--format", "onnx", "--out", "dir.onnx", *SMALL), 1, "cannot write"),
        (("cut.json", "--format", "onnx"), 1, "cut.json is not a whole architecture"),
        (("stem.json", "--format", "onnx"), 1, "stem.json: the architecture lacks stage 'stem'"),
        (("space.json", "--format", "onnx"), 2, "unknown space 'autovit-xs2'"),
    ],
)
def test_what_cannot_be_done_is_one_sentence(
    hwnas: Run, arch_file: Path, tmp_path: Path, args: tuple[str, ...], exit_code: int, message: str
) -> None:
    record = ARCH.to_json()
    (tmp_path / "dir.onnx").mkdir()
    (tmp_path / "cut.json").write_text(arch_file.read_text()[:60])
    (tmp_path / "space.json").write_text(json.dumps(record | {"space": "autovit-xs2"}))
    del record["stages"]["stem"]
    (tmp_path / "stem.json").write_text(json.dumps(record))
    result = hwnas("export", *args)
    assert result.exit_code == exit_code
    assert message in result.stderr
    assert result.stderr.count("Error: ") == 1
    assert not result.stdout
    assert {path.suffix for path in tmp_path.iterdir() if path.is_file()} == {".json"}
