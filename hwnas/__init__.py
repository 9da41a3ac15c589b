"""Hardware-aware architecture search: vision networks for a latency and a parameter budget."""

__version__ = "0.1.0"
