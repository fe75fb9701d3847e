"""The server's clocks. Every time that the server stores, compares or sends comes from here."""

import time
from datetime import UTC, datetime

DAY = 86_400_000  # milliseconds


def now() -> int:
    """Return the Unix time in milliseconds."""
    return time.time_ns() // 1_000_000


def monotonic() -> int:
    """Return the milliseconds of a clock that nobody sets. Only a difference of two such times means anything."""
    return time.monotonic_ns() // 1_000_000


def rfc3339(milliseconds: int) -> str:
    """Return Unix milliseconds as RFC 3339 in UTC, without a fraction of a second."""
    return datetime.fromtimestamp(milliseconds // 1000, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
