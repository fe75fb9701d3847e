"""The log: one JSON object a line, on standard output."""

import contextlib
import json
import sys
import traceback
from pathlib import Path
from typing import Any

from server import clock

MOST_FRAMES = 8  # of a traceback, the innermost


class Log:
    """Writes events. With `debug`, errors keep their message and traceback, which may repeat what a client sent."""

    def __init__(self) -> None:
        self.debug = False

    def __call__(self, **event: Any) -> None:
        """Write one event. Callers pass no identifier, key, signature or body."""
        with contextlib.suppress(OSError):  # a closed log must not fail a request
            sys.stdout.write(json.dumps({"time": clock.rfc3339(clock.now()), **event}) + "\n")
            sys.stdout.flush()

    def error(self, error: BaseException) -> None:
        """Write the type of an error and the places it passed through; with `debug`, all that Python tells."""
        frames = [f"{Path(frame.filename).name}:{frame.lineno}" for frame in traceback.extract_tb(error.__traceback__)]
        details = {"message": str(error), "traceback": traceback.format_exception(error)} if self.debug else {}
        self(event="error", error=type(error).__name__, at=frames[-MOST_FRAMES:], **details)


log = Log()
