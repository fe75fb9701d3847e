"""What the server is compared with. Each is a process of its own, and in the box if the server is in it.

    python -m bench.peers trivial REQUEST_BYTES ANSWER_BYTES
    python -m bench.peers empty ANSWER_BYTES
    python -m bench.peers put FILE BYTES COUNT SECONDS
    python -m bench.peers get FILE BYTES COUNT SECONDS

`trivial` counts the bytes of each request and sends an answer; it shows how much the load generator can do. `empty` is
a WSGI app under waitress that reads the body and sends an answer. Both serve until they are killed. `put` puts the
bytes of uploads into a `dbm.sqlite3` file with one thread, as the server has to: the bytes of a version, then a record
(if there are 0 bytes, only a record). `get` reads them in the same way. Both print their latencies as JSON.
"""

import contextlib
import dbm.sqlite3
import json
import logging
import secrets
import select
import socket
import sys
import time
from collections.abc import Iterator
from typing import Any

THREADS = 4
RECORD = 1000  # about the size, in bytes, of a record with some versions
SLOTS = 5  # how many versions of an account there are, with the one that is being written
ACCOUNT_PUTS = 16  # as wire.UPLOADS


def serving(address: tuple[str, int]) -> None:
    print(json.dumps({"event": "serving", "url": f"http://{address[0]}:{address[1]}"}), flush=True)


def trivial(request_bytes: int, answer_bytes: int) -> None:
    """Serve every `request_bytes` bytes with an answer of `answer_bytes` bytes."""
    answer = f"HTTP/1.1 200 OK\r\nContent-Length: {answer_bytes}\r\n\r\n".encode() + bytes(answer_bytes)
    listener = socket.create_server(("127.0.0.1", 0))
    serving(listener.getsockname())
    poll = select.poll()
    poll.register(listener, select.POLLIN)
    connections: dict[int, socket.socket] = {}
    missing: dict[int, int] = {}
    buffer = bytearray(1 << 18)
    while True:
        for number, _ in poll.poll():
            if number == listener.fileno():
                connection, _ = listener.accept()
                connections[connection.fileno()] = connection
                missing[connection.fileno()] = request_bytes
                poll.register(connection, select.POLLIN)
                continue
            connection = connections[number]
            with contextlib.suppress(ConnectionError):
                if count := connection.recv_into(buffer):
                    missing[number] -= count
                    if not missing[number]:
                        missing[number] = request_bytes
                        connection.sendall(answer)
                    continue
            poll.unregister(number)
            connections.pop(number).close()


def empty(answer_bytes: int) -> None:
    """Serve every request with `answer_bytes` bytes, by an app that does nothing, under waitress."""
    import waitress

    logging.getLogger("waitress.queue").setLevel(logging.CRITICAL)  # it warns about every request that has to wait
    body = bytes(answer_bytes)
    headers = [("Content-Type", "application/json"), ("Content-Length", str(answer_bytes))]

    def app(environ: dict[str, Any], start_response: Any) -> list[bytes]:
        environ["wsgi.input"].read()
        start_response("200 OK", headers)
        return [body]

    listener = socket.create_server(("127.0.0.1", 0))
    serving(listener.getsockname())
    waitress.serve(app, sockets=[listener], threads=THREADS, asyncore_use_poll=True, _quiet=True)


def timed(steps: Iterator[Any], seconds: float) -> None:
    """Print how long each step took, and all of them. Take no more steps when the time is over."""
    latencies = []
    before = started = time.perf_counter()
    for _ in steps:
        now = time.perf_counter()
        latencies.append(now - before)
        before = now
        if now - started > seconds:
            break
    print(json.dumps({"seconds": before - started, "latencies": latencies}))


def keys(count: int) -> Iterator[tuple[bytes, bytes]]:
    """Yield the keys of the blob and of the record of each upload."""
    user = ""
    for number in range(count):
        if number % ACCOUNT_PUTS == 0:
            user = f"{number:064x}"
        yield f"blob/{user}/{number % ACCOUNT_PUTS % SLOTS}".encode(), f"user/{user}".encode()


def put(path: str, size: int, count: int, seconds: float) -> None:
    blobs, record = [secrets.token_bytes(size) for _ in range(3)], secrets.token_bytes(RECORD)

    def steps() -> Iterator[None]:
        with dbm.sqlite3.open(path, "c") as database:
            for number, (blob_key, user_key) in enumerate(keys(count)):
                if size:
                    database[blob_key] = blobs[number % len(blobs)]
                database[user_key] = record
                yield

    timed(steps(), seconds)


def get(path: str, size: int, count: int, seconds: float) -> None:
    def steps() -> Iterator[None]:
        with dbm.sqlite3.open(path, "r") as database:
            for _ in range(count):
                for blob_key, user_key in keys(ACCOUNT_PUTS):
                    assert len(database[user_key]) == RECORD and len(database[blob_key]) == size
                    yield

    timed(steps(), seconds)


def main() -> None:
    match sys.argv[1:]:
        case ["trivial", request_bytes, answer_bytes]:
            trivial(int(request_bytes), int(answer_bytes))
        case ["empty", answer_bytes]:
            empty(int(answer_bytes))
        case ["put" | "get" as name, path, size, count, seconds]:
            {"put": put, "get": get}[name](path, int(size), int(count), float(seconds))
        case _:
            sys.exit(__doc__)


if __name__ == "__main__":
    main()
