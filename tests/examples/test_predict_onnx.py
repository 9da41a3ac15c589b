from __future__ import annotations

import runpy
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from hwnas.profilers import Preprocessing, export_network
from hwnas.spaces import load_space
from hwnas.supernet import build

EXAMPLE = Path(__file__).parents[2] / "examples" / "predict_onnx.py"


def test_it_predicts_what_torch_predicts(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    space = load_space("autovit-xxs")
    slots, blocks = zip(*space.layout(space.largest, 32, 3), strict=True)
    network = build(blocks, slots, seed=0).eval()
    how = Preprocessing((0.4, 0.5, 0.6), (0.2, 0.3, 0.4), 32)
    names = ("cat", "dog", "owl")
    model, picture = tmp_path / "winner.onnx", tmp_path / "x.png"
    export_network(network, model, format="onnx", preprocessing=how, class_names=names)
    pixels = np.random.default_rng(0).integers(0, 256, (32, 32, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(picture)
    runpy.run_path(str(EXAMPLE))["main"](str(model), str(picture))

    mean, std = (torch.tensor(v).view(3, 1, 1) for v in (how.mean, how.std))
    image = torch.from_numpy(pixels).permute(2, 0, 1) / 255
    with torch.no_grad():
        probability, best = network(((image - mean) / std)[None]).softmax(1)[0].max(0)
    expected = f"{picture}: {names[int(best)]} ({float(probability):.1%})\n"
    assert capsys.readouterr().out == expected
