from __future__ import annotations

import copy
import io
import warnings
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from torch import nn

from hwnas.errors import ExportError
from hwnas.profilers import _onnx_compose
from hwnas.profilers._onnx_compose import Composer
from hwnas.spaces import Block, load_space
from hwnas.supernet import Network

SIZE = 64

STEM = Block.of("conv", **{"in": 3}, out=8, kernel=3, stride=2, res=24)
LAYER = Block.of("vit_layer", d=12, heads=2, head_dim=4, ratio=2, pixels=4, tokens=36)
HYBRID = Block.of("hybrid", c=8, d=12, kernel=3, patch=2, res=12)
HEAD = Block.of("mbpool", **{"in": 8}, expand=2, features=5, res=12)


def drawn_blocks(space_name: str, seed: int, image_size: int = SIZE) -> tuple[Block, ...]:
    space = load_space(space_name)
    (codes,) = space.sample(1, np.random.default_rng(seed))
    return tuple(block for _, block in space.layout(codes, image_size, 10))


def network_of(composer: Composer, blocks: Sequence[Block]) -> Network:
    """The network with the composer's weights, each block with a copy of its own."""
    layout = [(f"slot{i}", block) for i, block in enumerate(blocks)]
    return Network(layout, lambda _, block: copy.deepcopy(composer.module(block))).eval()


def exported_whole(network: nn.Module, image_size: int) -> bytes:
    """torch's own export of the whole network."""
    file = io.BytesIO()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        torch.onnx.export(
            network,
            (torch.zeros(1, 3, image_size, image_size),),
            file,  # type: ignore[arg-type]
            dynamo=False,
            opset_version=17,
            input_names=["image"],
        )
    return file.getvalue()


def run(model: bytes, image_size: int, optimized: Path | None = None) -> np.ndarray:
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    if optimized:
        options.optimized_model_filepath = str(optimized)
    session = onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])
    (logits,) = session.run(None, {"image": image(image_size).numpy()})
    return np.asarray(logits)


def image(size: int) -> torch.Tensor:
    return torch.randn(1, 3, size, size, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize(
    ("space_name", "seed", "image_size"),
    [("autovit-xxs", 0, 64), ("autovit-xs", 1, 48), ("autovit-s", 2, 33)],
)
def test_composed_model_is_the_network(space_name: str, seed: int, image_size: int) -> None:
    blocks = drawn_blocks(space_name, seed, image_size)
    composer = Composer(image_size=image_size)
    model = composer.compose(blocks)
    onnx.checker.check_model(model, full_check=True)
    with torch.no_grad():
        expected = network_of(composer, blocks)(image(image_size)).numpy()
    assert expected.std() > 1e-3
    np.testing.assert_allclose(run(model.SerializeToString(), image_size), expected, atol=1e-5)


def whole(network: tuple[Block, ...], rng: np.random.Generator) -> tuple[Block, ...]:
    return network


def thinned(network: tuple[Block, ...], rng: np.random.Generator) -> tuple[Block, ...]:
    """Without about half of the blocks that keep their input's shape."""
    keeps = [
        b.kind == "vit_layer" or (b.kind == "mbconv" and b["in"] == b["out"] and b["stride"] == 1)
        for b in network
    ]
    gone = np.array(keeps) & (rng.random(len(network)) < 0.5)
    assert gone.any()
    return tuple(b for b, out in zip(network, gone, strict=True) if not out)


def emptied(network: tuple[Block, ...], rng: np.random.Generator) -> tuple[Block, ...]:
    """Without any transformer layer: tokens enter and leave."""
    return tuple(b for b in network if b.kind != "vit_layer")


def cut_in_a_stage(network: tuple[Block, ...], rng: np.random.Generator) -> tuple[Block, ...]:
    """Up to the first transformer layer."""
    return network[: [b.kind for b in network].index("vit_layer") + 1]


def cut_anywhere(network: tuple[Block, ...], rng: np.random.Generator) -> tuple[Block, ...]:
    return network[: int(rng.integers(2, len(network) - 1))]


@pytest.mark.parametrize("change", [whole, thinned, emptied, cut_in_a_stage, cut_anywhere])
@pytest.mark.parametrize("space_name", ["autovit-xxs", "autovit-s"])
def test_composed_model_is_the_whole_export(
    tmp_path: Path,
    space_name: str,
    change: Callable[[tuple[Block, ...], np.random.Generator], tuple[Block, ...]],
) -> None:
    blocks = change(drawn_blocks(space_name, 3), np.random.default_rng(0))
    composer = Composer(image_size=SIZE)
    network = network_of(composer, blocks)
    numbers, counts = [], []
    for name, model in {
        "whole": exported_whole(network, SIZE),
        "composed": composer.compose(blocks).SerializeToString(),
    }.items():
        optimized = tmp_path / f"{name}.onnx"
        numbers.append(run(model, SIZE, optimized))
        counts.append(Counter(node.op_type for node in onnx.load(optimized).graph.node))
    assert numbers[0].std() > 1e-3
    np.testing.assert_allclose(numbers[1], numbers[0], rtol=1e-5, atol=1e-5)
    assert counts[0] == counts[1]
    assert counts[0]["Conv"] == sum(isinstance(m, nn.Conv2d) for m in network.modules())


def test_repeated_blocks_have_weights_of_their_own() -> None:
    blocks = [STEM, HYBRID, LAYER, LAYER, LAYER, HEAD]
    model = Composer(image_size=24).compose(blocks)
    found = [np.prod(tensor.dims) for tensor in model.graph.initializer]
    with torch.device("meta"):
        network = Network((f"slot{i}", block) for i, block in enumerate(blocks))
    # A folded BatchNorm leaves one number a channel, the bias, of its weight and bias.
    folded = sum(m.num_features for m in network.modules() if isinstance(m, nn.BatchNorm2d))
    assert sum(found) == sum(p.numel() for p in network.parameters()) - folded


def test_input_and_output_are_named_and_static() -> None:
    model = Composer(image_size=24).compose([STEM, HYBRID, LAYER, HEAD])
    values = [*model.graph.input, *model.graph.output]
    shapes = {v.name: [d.dim_value for d in v.type.tensor_type.shape.dim] for v in values}
    assert shapes == {"image": [1, 3, 24, 24], "logits": [1, 5]}
    assert [(o.domain, o.version) for o in model.opset_import] == [("", 17)]


@pytest.mark.parametrize(
    "blocks", [[STEM], [STEM, HYBRID], [STEM, HYBRID, LAYER], [STEM, HYBRID, HYBRID, HEAD]]
)
def test_any_run_of_blocks_composes(blocks: list[Block]) -> None:
    composer = Composer(image_size=24)
    model = composer.compose(blocks)
    with torch.no_grad():
        expected = network_of(composer, blocks)(image(24)).numpy()
    np.testing.assert_allclose(run(model.SerializeToString(), 24), expected, atol=1e-5)


def test_each_distinct_block_is_exported_once(monkeypatch: pytest.MonkeyPatch) -> None:
    exported, original = [], _onnx_compose.onnx_graph

    def counting(module: nn.Module, *args: object, what: str, **kwargs: object) -> onnx.ModelProto:
        exported.append(what)
        return original(module, *args, what=what, **kwargs)  # type: ignore[arg-type]

    monkeypatch.setattr(_onnx_compose, "onnx_graph", counting)
    composer = Composer(image_size=24)
    composer.compose([STEM, HYBRID, LAYER, LAYER, HEAD])
    assert len(exported) == 5  # a hybrid is two: what enters and what leaves
    composer.compose([STEM, HYBRID, LAYER, LAYER, LAYER, HYBRID, LAYER, HEAD])
    assert len(exported) == 5


def test_weights_are_those_of_the_seed_and_torch_keeps_its_own() -> None:
    torch.manual_seed(5)
    state = torch.get_rng_state()
    models = [
        Composer(image_size=24, seed=seed).compose([STEM, HYBRID, LAYER, HEAD])
        for seed in (0, 0, 1)
    ]
    assert models[0] == models[1] != models[2]
    assert torch.equal(torch.get_rng_state(), state)


def test_block_that_does_not_fit_is_named() -> None:
    with pytest.raises(ExportError, match=r"mbpool/in=8/.* with input \(1, 3, 24, 24\)"):
        Composer(image_size=24).compose([HEAD])


def test_no_blocks_is_an_error() -> None:
    with pytest.raises(ExportError, match="at least one"):
        Composer(image_size=24).compose([])
