"""The log: one JSON object per line, on standard output.

Nobody waits for whoever reads the log. Lines wait in memory, and a thread writes them. Lines that find no room there,
because nobody reads the log, or that cannot be written, are lost and counted. When lines can be written again, the
first of them says how many are lost: {"event": "log_lost", "lines": N}.
"""

import json
import os
import threading
import time
import traceback
from collections.abc import Callable, Mapping
from pathlib import Path
from queue import SimpleQueue
from typing import Any, NamedTuple

from server import bounds, clock

MOST_FRAMES = 8  # how many frames of a traceback to log, the innermost ones
BATCH_BYTES = 65_536  # of the lines that are written at once: as much as a pipe holds
PAUSE_SECONDS = 0.01  # between two batches, so that a busy server makes few system calls
FULL_SECONDS = 0.05  # how long to wait if standard output does not block and has no room


class Line(NamedTuple):
    """A line, or the end of a line whose beginning is written.

    A report says how many lines are lost. If it is lost, too, the next one has to say so: `stands_for` is how many.
    """

    text: bytes
    stands_for: int = 1
    is_report: bool = False


def nothing(event: Mapping[str, Any]) -> None:
    """Hear an event, and do nothing."""


class Log:
    """Writes events to a file descriptor.

    If `debug` is set, errors include their message and traceback, which may repeat what was sent.
    """

    def __init__(self, descriptor: int = 1) -> None:
        self.debug = False
        self.lines_lost = 0  # since the start, whether a line has said so or not
        self.listener: Callable[[Mapping[str, Any]], None] = nothing  # gets each event, in the thread that logs it
        self.descriptor = descriptor
        self._encode = json.JSONEncoder(check_circular=False).encode  # json.dumps takes half as long again
        self._time = (0, "")  # a second, and how it is written
        self._lock = threading.Lock()  # held for moments, never while something is written
        self._lines: SimpleQueue[bytes] = SimpleQueue()
        self._bytes = 0  # of the lines that are not written yet
        self._lost = 0
        self._begun: Line | None = None
        self._writer: threading.Thread | None = None

    def __call__(self, **event: Any) -> None:
        """Log one event, without waiting. Never pass an identifier, a key, a signature or a body."""
        self.listener(event)
        line = self._line(event)
        with self._lock:
            if self._bytes + len(line) > bounds.LOG_BYTES:
                self._lost += 1
                self.lines_lost += 1
                return
            self._bytes += len(line)
            self._lines.put(line)
            if not self._writer:
                self._writer = threading.Thread(target=self._write_lines, name="log", daemon=True)
                self._writer.start()

    def error(self, error: BaseException) -> None:
        """Log the type of an error and the innermost frames of its traceback.

        If `debug` is set, add its message and its full traceback.
        """
        frames = [f"{Path(frame.filename).name}:{frame.lineno}" for frame in traceback.extract_tb(error.__traceback__)]
        details = {"message": str(error), "traceback": traceback.format_exception(error)} if self.debug else {}
        self(event="error", error=type(error).__name__, at=frames[-MOST_FRAMES:], **details)

    def finish(self, seconds: float) -> None:
        """Wait until every line is written or lost, but not longer than this. A signal handler may call it, too."""
        deadline = time.monotonic() + seconds
        while self._bytes and time.monotonic() < deadline:
            time.sleep(0.002)

    def _line(self, event: dict[str, Any]) -> bytes:
        now = clock.now()
        second, text = self._time
        if second != now // 1000:
            second, text = self._time = now // 1000, clock.rfc3339(now)
        return f"{self._encode({'time': text, **event})}\n".encode()

    def _write_lines(self) -> None:
        """Write what is logged, for ever."""
        while True:
            lines = [self._lines.get()]
            size = len(lines[0])
            while size < BATCH_BYTES and not self._lines.empty():
                lines.append(self._lines.get())
                size += len(lines[-1])
            with self._lock:
                lost, self._lost = self._lost, 0
            report = [self._report(lost)] if lost else []
            unwritten = self._write([*report, *map(Line, lines)])
            with self._lock:
                self._lost += sum(line.stands_for for line in unwritten)
                self.lines_lost += sum(not line.is_report for line in unwritten)
                self._bytes -= size
            time.sleep(PAUSE_SECONDS)

    def _report(self, lost: int) -> Line:
        event = {"event": "log_lost", "lines": lost}
        self.listener(event)
        return Line(self._line(event), lost, is_report=True)

    def _write(self, lines: list[Line]) -> list[Line]:
        """Write lines, after the rest of one that is begun. Return those that are lost."""
        lines = [self._begun, *lines] if self._begun else lines
        data = b"".join(line.text for line in lines)
        written = 0
        try:
            while written < len(data):
                try:
                    written += os.write(self.descriptor, data[written:])
                except BlockingIOError:
                    time.sleep(FULL_SECONDS)
        except OSError as error:
            while written >= len(lines[0].text):
                written -= len(lines.pop(0).text)
            is_begun = written > 0 or lines[0] is self._begun
            # Whoever has read the beginning is gone if the pipe is broken. Otherwise, the rest of the line comes first.
            self._begun = None
            if is_begun and not isinstance(error, BrokenPipeError):
                first = lines.pop(0)
                self._begun = first._replace(text=first.text[written:])
            return lines
        self._begun = None
        return []


log = Log()
