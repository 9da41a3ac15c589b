"""Classify images with an exported winner, in plain onnxruntime: no torch, no hwnas.

python examples/predict_onnx.py winner.onnx image.png [image.png …]
"""

from __future__ import annotations

import json
import sys

import numpy as np
import onnxruntime
from PIL import Image


def main(model: str, *images: str) -> None:
    """Print the most likely class of each image, with its probability."""
    session = onnxruntime.InferenceSession(model, providers=["CPUExecutionProvider"])
    metadata = session.get_modelmeta().custom_metadata_map
    size, mean, std = (json.loads(metadata[f"hwnas.{k}"]) for k in ("image_size", "mean", "std"))
    names = json.loads(metadata.get("hwnas.class_names", "null"))
    for path in images:
        pixels = np.asarray(Image.open(path).convert("RGB").resize((size, size)), np.float32) / 255
        image = ((pixels - mean) / std).transpose(2, 0, 1)[None].astype(np.float32)
        (logits,) = session.run(["logits"], {"image": image})
        scores = np.exp(logits[0] - logits[0].max())
        best = int(scores.argmax())
        print(f"{path}: {names[best] if names else best} ({scores[best] / scores.sum():.1%})")


if __name__ == "__main__":
    main(*sys.argv[1:])
