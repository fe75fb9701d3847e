"""The load generator: one thread that keeps some connections busy with requests that were prepared ahead.

Each connection sends its next request when it has the whole answer to the one before. The generator reads of an answer
only its status and its length, so that it is never what limits a figure: `ceiling` measures how much it could do.
"""

import gc
import select
import socket
import time
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field

from bench.process import Address
from bench.wire import AnswerHead, Prepared, read_head

ANSWER_SECONDS = 60


@dataclass
class Result:
    """What came back: how long each request took, by its name, in seconds, and how many answers were wrong."""

    seconds: float = 0.0
    latencies: dict[str, list[float]] = field(default_factory=dict)
    wrong: Counter[str] = field(default_factory=Counter)
    delayed: int = 0  # answers of 503 that say when to repeat the request, which was then repeated
    answer_bytes: int = 0  # of the last answer's body

    @property
    def count(self) -> int:
        return sum(len(each) for each in self.latencies.values())

    @property
    def per_second(self) -> float:
        return self.count / self.seconds if self.seconds else 0.0

    def quantile(self, part: float) -> float:
        """Return the latency, in seconds, that this part of all requests did not exceed. Without any, return 0."""
        return quantile([each for name in self.latencies.values() for each in name], part)


def quantile(values: Sequence[float], part: float) -> float:
    """Return the value that this part of `values` does not exceed, or 0 if there are none."""
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(part * len(ordered)))] if ordered else 0.0


class Connection:
    """One connection, and the requests that it has to send."""

    def __init__(self, address: Address, requests: Iterable[Prepared], buffer: bytearray) -> None:
        self._address = address
        self.connect()
        self.requests: Iterator[Prepared] = iter(requests)
        self.request: Prepared | None = None
        self._buffer = memoryview(buffer)
        self._unsent: list[memoryview] = []
        self._head = b""
        self._missing = -1  # bytes of the answer's body; -1: its head is not complete
        self.answer = AnswerHead(0, 0, False, 0)
        self.started = self.rests_until = 0.0

    def connect(self) -> None:
        """Connect, again if the server has closed the connection."""
        self.socket = socket.create_connection(self._address)
        self.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.socket.setblocking(False)

    def next(self) -> bool:
        """Take the next request, or the same again after a 503. Return whether there is one."""
        if self.rests_until:
            self.rests_until = 0.0
        else:
            self.request = next(self.requests, None)
            self.started = time.perf_counter()
        if self.request is None:
            return False
        self._unsent = [memoryview(part) for part in (self.request.head, self.request.body) if part]
        self._head, self._missing = b"", -1
        if self.answer.closes:
            self.socket.close()
            self.connect()
        return True

    def send(self) -> bool:
        """Send as much as the kernel takes. Return whether that is all."""
        while self._unsent:
            try:
                sent = self.socket.sendmsg(self._unsent)
            except BlockingIOError:
                return False
            while self._unsent and sent >= len(self._unsent[0]):
                sent -= len(self._unsent.pop(0))
            if sent:
                self._unsent[0] = self._unsent[0][sent:]
        return True

    def receive(self) -> bool:
        """Read what has arrived. Return whether the answer is complete. Raise OSError or ValueError if it is wrong."""
        try:
            count = self.socket.recv_into(self._buffer)
        except BlockingIOError:
            return False
        if not count:
            raise ConnectionError("the connection ended before the answer was complete")
        if self._missing < 0:
            self._head += self._buffer[:count]
            head, end, body = self._head.partition(b"\r\n\r\n")
            if not end:
                return False
            self.answer = read_head(head)
            self._missing, count = self.answer.length, len(body)
        self._missing -= count
        return self._missing <= 0


def drive(
    address: Address, plans: Sequence[Iterable[Prepared]], seconds: float, patience: float = ANSWER_SECONDS
) -> Result:
    """Send requests on one connection for each plan, until the time is over or the plans have ended.

    After a 503, wait as long as it says and repeat the request: the time that this takes is part of its latency.

    After that, wait for the answers that are still missing, but no longer than `patience` (seconds).
    """
    buffer = bytearray(1 << 18)
    connections = [Connection(address, plan, buffer) for plan in plans]
    result = Result()
    gc.collect()
    gc.disable()
    try:
        started = time.perf_counter()
        _drive(connections, started + seconds, patience, result)
        result.seconds = time.perf_counter() - started
    finally:
        gc.enable()
        for connection in connections:
            connection.socket.close()
    return result


def _drive(connections: list[Connection], deadline: float, patience: float, result: Result) -> None:
    poll, busy, resting = select.poll(), dict[int, Connection](), list[Connection]()

    def begin(connection: Connection) -> None:
        """Send the next request, if there is one and there is time."""
        if time.perf_counter() < deadline and connection.next():
            is_sent = connection.send()
            busy[connection.socket.fileno()] = connection
            poll.register(connection.socket, select.POLLIN if is_sent else select.POLLIN | select.POLLOUT)

    def goes_on(connection: Connection, event: int) -> bool:
        """Send and receive. Return whether the answer is still incomplete."""
        assert connection.request
        name = connection.request.name
        try:
            if event & select.POLLOUT and connection.send():
                poll.modify(connection.socket, select.POLLIN)
            if not event & ~select.POLLOUT or not connection.receive():
                return True
        except (OSError, ValueError, KeyError) as error:
            result.wrong[f"{name}: {type(error).__name__}"] += 1
            connection.requests = iter(())
            return False
        if connection.answer.status == 503 and connection.answer.retry_after:
            result.delayed += 1
            connection.rests_until = time.perf_counter() + connection.answer.retry_after
        elif connection.answer.status in connection.request.right:
            result.latencies.setdefault(name, []).append(time.perf_counter() - connection.started)
        else:
            result.wrong[f"{name}: {connection.answer.status}"] += 1
        result.answer_bytes = connection.answer.length
        return False

    for connection in connections:
        begin(connection)
    while (busy or resting) and time.perf_counter() < deadline + patience:
        for number, event in poll.poll(50 if resting else 1000):
            if not goes_on(busy[number], event):
                poll.unregister(number)
                connection = busy.pop(number)
                if connection.rests_until:
                    resting.append(connection)
                else:
                    begin(connection)
        for connection in [each for each in resting if each.rests_until <= time.perf_counter()]:
            resting.remove(connection)
            begin(connection)
    for connection in busy.values():
        assert connection.request
        result.wrong[f"{connection.request.name}: no answer in time"] += 1
