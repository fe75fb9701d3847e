"""Lanes: queues with threads of their own, so that what waits in one does not hold up what is in another."""

import threading
import time
from collections.abc import Callable
from queue import SimpleQueue

from server.log import log

STOP_SECONDS = 5  # how long `stop` waits for all threads together

Work = Callable[[], None]


def stop(*lanes: "Lane") -> None:
    """End the threads of these lanes after the work that they have. A thread that is stuck is left behind."""
    deadline = time.monotonic() + STOP_SECONDS
    threads = [thread for lane in lanes for thread in lane.end()]
    for thread in threads:  # a thread that has ended releases its connection to the store
        thread.join(max(0, deadline - time.monotonic()))


class Lane:
    """Threads that do one piece of work after the other. The number of pieces that wait is bounded."""

    def __init__(self, name: str, threads: int, most_waiting: int) -> None:
        self._queue: SimpleQueue[Work | None] = SimpleQueue()
        self._most_waiting = most_waiting
        self._threads = [threading.Thread(target=self._run, name=name, daemon=True) for _ in range(threads)]
        for thread in self._threads:
            thread.start()

    def put(self, work: Work) -> bool:
        """Let a thread do this work, and return True. If too much is waiting, return False."""
        if self._queue.qsize() >= self._most_waiting:
            return False
        self._queue.put(work)
        return True

    @property
    def waiting(self) -> int:
        """How many pieces of work wait for a thread."""
        return self._queue.qsize()

    def end(self) -> list[threading.Thread]:
        """Let the threads end after the work that they have. Return them."""
        for _ in self._threads:
            self._queue.put(None)
        return self._threads

    def _run(self) -> None:
        while work := self._queue.get():
            try:
                work()
            except Exception as error:  # the thread has to go on
                log.error(error)
            work = None  # or the last request would stay in memory until the next one
