"""Progress on stderr: one line that is rewritten in a terminal, a line now and then elsewhere."""

from __future__ import annotations

import sys
import time

_EVERY_S = 10.0


class Progress:
    """Call it with what is going on; ``close`` leaves the last line standing."""

    def __init__(self) -> None:
        self._terminal = sys.stderr.isatty()
        self._last_s = -_EVERY_S
        self._open = False

    def __call__(self, message: str) -> None:
        """Show ``message`` in place of the one before."""
        if self._terminal:
            sys.stderr.write(f"\r\x1b[K{message}")
            self._open = True
        elif time.monotonic() - self._last_s >= _EVERY_S:
            self._last_s = time.monotonic()
            sys.stderr.write(f"{message}\n")
        sys.stderr.flush()

    def close(self) -> None:
        """End the line."""
        if self._open:
            sys.stderr.write("\n")
            self._open = False
