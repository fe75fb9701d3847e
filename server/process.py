"""The process: its standard streams, and what SIGTERM, SIGINT and SIGHUP do. Each ends it with exit code 0.

Until the server serves, and once it is stopping, a signal ends the process at once. That loses nothing: each commit of
the store is whole or did not happen, and an answer is sent after its commit. While the server serves, the first signal
stops it gracefully.

This module is imported before all others of the server, so it imports little. Before Python executes the server's first
line, nobody can do anything: SIGTERM and SIGHUP have their default action there, and Python ends by SIGINT. The default
action ends a process, but process 1 of a container ignores it, and needs another signal.
"""

import os
import signal
from collections.abc import Callable
from typing import Any


def begin() -> None:
    """Let a signal end the process from now on. Open /dev/null in place of each standard stream that is closed."""
    _on_signals(lambda *_: os._exit(0))
    for number in range(3):
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # gets the lowest free number. Otherwise, the database's file would get it


def stop_once(stop: Callable[[], Any], before_the_end: Callable[[], Any]) -> None:
    """From now on, the first signal calls `stop`. Any other calls `before_the_end` and ends the process.

    Both are called in the main thread, whatever it waits for.
    """

    def end(*_: Any) -> None:
        before_the_end()
        os._exit(0)

    def first(*_: Any) -> None:
        _on_signals(end)
        stop()

    _on_signals(first)


def ignore_signals() -> None:
    """Let signals do nothing from now on. Python itself would restore their default actions before it ends."""
    _on_signals(signal.SIG_IGN)


def _on_signals(handler: Callable[..., Any] | signal.Handlers) -> None:
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        if number != signal.SIGHUP or signal.getsignal(number) != signal.SIG_IGN:  # nohup has it ignored on purpose
            signal.signal(number, handler)
