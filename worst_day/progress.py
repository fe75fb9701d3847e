"""What a long run tells whoever waits for it."""

import sys
import time
from collections import Counter


class Progress:
    """Prints a line on standard error, no more than one in two seconds."""

    def __init__(self) -> None:
        self._last = 0.0

    def __call__(self, text: str) -> None:
        if time.monotonic() - self._last > 2:
            self._last = time.monotonic()
            print(text, file=sys.stderr, flush=True)


def counted(counts: Counter[str]) -> str:
    """Return a sum and what it is made of: "3 (a 1, b 2)"."""
    return f"{counts.total():,} ({', '.join(f'{name} {count:,}' for name, count in sorted(counts.items()))})"
