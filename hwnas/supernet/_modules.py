"""The plain modules of each block kind; with sliced weights they are the supernet's elastic layers.

Every weight is laid out so that a smaller block's weight is the *leading slice* of a larger one's
along each dimension; only a convolution over concatenated maps (``ConcatConv2d``) takes the leading
slice of each of them.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from hwnas.spaces import Block


class ConvNorm(nn.Sequential):
    """Convolution without bias, BatchNorm, and SiLU unless ``act`` is false."""

    def __init__(self, conv: nn.Conv2d, *, act: bool = True):
        super().__init__()
        self.add_module("conv", conv)
        self.add_module("norm", nn.BatchNorm2d(conv.out_channels))
        if act:
            self.add_module("act", nn.SiLU())


class ConcatConv2d(nn.Conv2d):
    """A convolution over ``num_maps`` maps of equal width, concatenated along the channels."""

    num_maps = 2


def _conv2d(c_in: int, c_out: int, kernel: int = 1, stride: int = 1, groups: int = 1) -> nn.Conv2d:
    return nn.Conv2d(c_in, c_out, kernel, stride, kernel // 2, groups=groups, bias=False)


class Conv(ConvNorm):
    """The stem: one strided convolution."""

    def __init__(self, b: Block):
        super().__init__(_conv2d(b["in"], b["out"], b["kernel"], b["stride"]))


class MBConv(nn.Module):
    """Inverted residual of MobileNetV2: expand, depthwise, project; shortcut where shapes agree."""

    def __init__(self, b: Block):
        super().__init__()
        inner = b["in"] * b["expand"]
        self.expand = ConvNorm(_conv2d(b["in"], inner))
        self.depthwise = ConvNorm(_conv2d(inner, inner, b["kernel"], b["stride"], groups=inner))
        self.project = ConvNorm(_conv2d(inner, b["out"]), act=False)
        self.shortcut = b["in"] == b["out"] and b["stride"] == 1

    def forward(self, x: Tensor) -> Tensor:
        """[B, in, H, W] -> [B, out, H / stride, W / stride]."""
        y: Tensor = self.project(self.depthwise(self.expand(x)))
        return x + y if self.shortcut else y


class Hybrid(nn.Module):
    """What surrounds the transformer of a MobileViT stage (AutoViT, section 3.2).

    ``enter``: local convolution, pointwise up to d, unfold into patches. ``leave``: LayerNorm,
    fold, project to C, fuse with what came in.
    """

    def __init__(self, b: Block):
        super().__init__()
        c, d = b["c"], b["d"]
        self.patch = b["patch"]
        self.local = ConvNorm(_conv2d(c, c, b["kernel"]))
        self.up = _conv2d(c, d)
        self.norm = nn.LayerNorm(d)
        self.project = ConvNorm(_conv2d(d, c))
        self.fuse = ConvNorm(ConcatConv2d(2 * c, c, 1, bias=False))

    def enter(self, x: Tensor) -> Tensor:
        """[B, C, H, W] -> [B * P, N, d], P pixels of a patch, N patches."""
        y: Tensor = self.up(self.local(x))
        batch, d, height, width = y.shape
        p = self.patch
        if p == 1:
            return y.flatten(2).transpose(1, 2)
        y = y.reshape(batch * d * (height // p), p, width // p, p).transpose(1, 2)
        y = y.reshape(batch, d, -1, p * p).transpose(1, 3)  # [B, P, N, d]
        return y.reshape(batch * p * p, -1, d)

    def leave(self, tokens: Tensor, x: Tensor) -> Tensor:
        """[B * P, N, d] and the stage's input [B, C, H, W] -> [B, C, H, W]."""
        batch, _, height, width = x.shape
        p, d = self.patch, tokens.shape[-1]
        y = self.norm(tokens)
        if p == 1:
            y = y.transpose(1, 2).reshape(batch, d, height, width)
        else:
            y = y.reshape(batch, p * p, -1, d).transpose(1, 3)  # [B, d, N, P]
            y = y.reshape(batch * d * (height // p), width // p, p, p).transpose(1, 2)
            y = y.reshape(batch, d, height, width)
        fused: Tensor = self.fuse(torch.cat((x, self.project(y)), dim=1))
        return fused


class Attention(nn.Module):
    """Multi-head self-attention with a fixed head size; Q, K and V are as wide as the heads say.

    Rows of ``qkv`` are ordered head by head (q, k, v of the first head, then of the second), so
    that fewer heads are a leading slice.
    """

    def __init__(self, d: int, heads: int, head_dim: int):
        super().__init__()
        self.heads = heads
        self.head_dim = head_dim
        self.qkv = nn.Linear(d, heads * 3 * head_dim)
        self.proj = nn.Linear(heads * head_dim, d)

    def forward(self, x: Tensor) -> Tensor:
        """[B, N, d] -> [B, N, d]."""
        batch, num_tokens, _ = x.shape
        qkv = self.qkv(x).reshape(batch, num_tokens, self.heads, 3, self.head_dim)
        q, k, v = qkv.permute(3, 0, 2, 1, 4).unbind(0)  # [B, heads, N, head_dim]
        y = F.scaled_dot_product_attention(q, k, v)
        out: Tensor = self.proj(y.transpose(1, 2).reshape(batch, num_tokens, -1))
        return out


class ViTLayer(nn.Module):
    """A pre-norm transformer layer: attention and MLP, each with a shortcut."""

    def __init__(self, b: Block):
        super().__init__()
        d, hidden = b["d"], int(b["d"] * b.real("ratio"))
        self.norm1 = nn.LayerNorm(d)
        self.attn = Attention(d, b["heads"], b["head_dim"])
        self.norm2 = nn.LayerNorm(d)
        self.fc1 = nn.Linear(d, hidden)
        self.act = nn.SiLU()
        self.fc2 = nn.Linear(hidden, d)

    def forward(self, x: Tensor) -> Tensor:
        """[B, N, d] -> [B, N, d]."""
        x = x + self.attn(self.norm1(x))
        y: Tensor = x + self.fc2(self.act(self.fc1(self.norm2(x))))
        return y


class MBPool(nn.Module):
    """The head: expand, pool, classify."""

    def __init__(self, b: Block):
        super().__init__()
        inner = b["in"] * b["expand"]
        self.expand = ConvNorm(_conv2d(b["in"], inner))
        self.classify = nn.Linear(inner, b["features"])

    def forward(self, x: Tensor) -> Tensor:
        """[B, C, H, W] -> [B, classes]."""
        logits: Tensor = self.classify(self.expand(x).mean((2, 3)))
        return logits


MODULES: dict[str, Callable[[Block], nn.Module]] = {
    "conv": Conv,
    "mbconv": MBConv,
    "hybrid": Hybrid,
    "vit_layer": ViTLayer,
    "mbpool": MBPool,
}


def initialize(module: nn.Module) -> None:
    """He-normal convolutions (fan out), truncated normal (0.02) linear layers, zero biases."""
    for m in module.modules():
        if isinstance(m, nn.Conv2d):
            nn.init.kaiming_normal_(m.weight, mode="fan_out")
        elif isinstance(m, nn.Linear):
            nn.init.trunc_normal_(m.weight, std=0.02)
            nn.init.zeros_(m.bias)
