"""What all tests share: the same draws each time, and one thread a worker."""

from __future__ import annotations

import os

from hypothesis import settings

os.environ.setdefault("OMP_NUM_THREADS", "1")  # before torch is imported; workers share the cores

settings.register_profile("hwnas", deadline=None, derandomize=True, database=None)
settings.load_profile("hwnas")
