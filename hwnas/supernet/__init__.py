"""Plain networks made of blocks, and the supernet that holds the weights of all of them."""

from hwnas.supernet._calibration import recalibrate, recalibrate_subnet
from hwnas.supernet._modules import ConcatConv2d, Hybrid
from hwnas.supernet._network import Network, build
from hwnas.supernet._supernet import Supernet

__all__ = [
    "ConcatConv2d",
    "Hybrid",
    "Network",
    "Supernet",
    "build",
    "recalibrate",
    "recalibrate_subnet",
]
