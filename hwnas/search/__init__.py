"""Search: coarse to fine under a latency and a parameter budget, verified on the device."""

from hwnas.search._budget import Budget
from hwnas.search._fine import Evolution
from hwnas.search._search import Found, Settings, search
from hwnas.search._winner import Winner, load_winner

__all__ = ["Budget", "Evolution", "Found", "Settings", "Winner", "load_winner", "search"]
