"""The log: one JSON object per line, on standard output."""

import contextlib
import json
import sys
import traceback
from pathlib import Path
from typing import Any

from server import clock

MOST_FRAMES = 8  # how many frames of a traceback to log, the innermost ones


class Log:
    """Writes events. If `debug` is set, errors include their message and traceback, which may repeat what was sent."""

    def __init__(self) -> None:
        self.debug = False

    def __call__(self, **event: Any) -> None:
        """Write one event. Never pass an identifier, a key, a signature or a body."""
        with contextlib.suppress(OSError):  # a closed log must not make a request fail
            sys.stdout.write(json.dumps({"time": clock.rfc3339(clock.now()), **event}) + "\n")
            sys.stdout.flush()

    def error(self, error: BaseException) -> None:
        """Write the type of an error and the innermost frames of its traceback.

        If `debug` is set, add its message and its full traceback.
        """
        frames = [f"{Path(frame.filename).name}:{frame.lineno}" for frame in traceback.extract_tb(error.__traceback__)]
        details = {"message": str(error), "traceback": traceback.format_exception(error)} if self.debug else {}
        self(event="error", error=type(error).__name__, at=frames[-MOST_FRAMES:], **details)


log = Log()
