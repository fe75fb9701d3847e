"""Metrics for Prometheus, on a port of their own. This module is loaded only if METRICS_PORT is set.

What is counted comes from the events of the log, so no other module knows of Prometheus. What is a state is read when
Prometheus asks. No label names a user, an address or anything else that a client has sent.
"""

import contextlib
import socket
import sys
import threading
import time
from collections.abc import Iterable, Iterator, Mapping
from socketserver import ThreadingMixIn
from typing import Any
from wsgiref.simple_server import WSGIRequestHandler, WSGIServer

from prometheus_client import (
    CollectorRegistry,
    Counter,
    Histogram,
    ProcessCollector,
    disable_created_metrics,
    make_wsgi_app,
)
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from server import bounds
from server.accounts import StorageUnavailable, Store
from server.health import PARTS, Watch
from server.http_server import HttpServer
from server.log import log

PREFIX = "backup_server"
# A refusal takes a millisecond. An upload of 5 MiB takes some seconds on a disk of 16 MiB/s, and no more than 15.
SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 15)


class Metrics:
    """Counts the events of the log, and tells Prometheus."""

    def __init__(self, states: Collector, codes: Iterable[str]) -> None:
        """Take what collects the states, and the codes of all problems."""
        # When each counter began would be a second row for each.
        disable_created_metrics()  # type: ignore[no-untyped-call]
        self._registry = CollectorRegistry()
        self._registry.register(states)
        ProcessCollector(registry=self._registry)
        of_request = ("method", "route", "status")
        self._requests = self._counter("requests", "Requests that were answered", *of_request)
        self._refusals = self._counter("problems", "Answers that were problems, by code", "code")
        for code in codes:  # from 0 on, or Prometheus would not see the first one as an increase
            self._refusals.labels(code)
        self._received = self._counter("request_body_bytes", "Bytes of the bodies that requests announced")
        self._sent = self._counter("response_body_bytes", "Bytes of the bodies of answers")
        self._events = self._counter("events", "Lines of the log", "event")
        name = f"{PREFIX}_request_seconds"
        text = "Time that an answer took, without the body's arrival and without waiting for a thread"
        self._seconds = Histogram(name, text, ("method", "route"), buckets=SECONDS, registry=self._registry)

    def _counter(self, name: str, text: str, *labels: str) -> Counter:
        return Counter(f"{PREFIX}_{name}", text, labels, registry=self._registry)

    def count(self, event: Mapping[str, Any]) -> None:
        """Count an event of the log."""
        self._events.labels(event["event"]).inc()
        if event["event"] != "request":
            return
        method, route = event["method"] or "none", event["route"] or "none"
        self._requests.labels(method, route, event["status"]).inc()
        self._received.inc(event.get("requestBytes", 0))
        self._sent.inc(event.get("responseBytes", 0))
        if code := event.get("code"):
            self._refusals.labels(code).inc()
        if "milliseconds" in event:
            self._seconds.labels(method, route).observe(event["milliseconds"] / 1000)

    def serve(self, host: str, port: int) -> str:
        """Answer at /metrics, in threads of its own, until the process ends. Return the URL.

        `host` is an address in numbers. Raise OSError.
        """
        server = MetricsServer(host, port)
        server.set_app(make_wsgi_app(self._registry))
        threading.Thread(target=server.serve_forever, name="metrics", daemon=True).start()
        return f"http://{f'[{host}]' if ':' in host else host}:{server.server_port}/metrics"


class MetricsHandler(WSGIRequestHandler):
    """Answers a connection's one request."""

    def log_message(self, format: str, *arguments: Any) -> None:
        """Log nothing: nobody wants a line for each look of Prometheus."""


class MetricsServer(ThreadingMixIn, WSGIServer):
    """Serves some connections at once, each in a thread of its own, and for so long in all.

    Past the number, the oldest connection is cut off for a new one. So those that are silent or slow hold up nobody.
    """

    daemon_threads = True

    def __init__(self, host: str, port: int) -> None:
        self.address_family = socket.AF_INET6 if ":" in host else socket.AF_INET
        self._changed = threading.Condition()
        self._open: dict[socket.socket, float] = {}  # since when, the oldest first
        super().__init__((host, port), MetricsHandler)

    def process_request(self, request: Any, client_address: Any) -> None:
        """Begin to serve a connection."""
        with self._changed:
            if len(self._open) >= bounds.METRICS_CONNECTIONS:
                cut_off(next(iter(self._open)))
                self._changed.wait_for(lambda: len(self._open) < bounds.METRICS_CONNECTIONS)
            self._open[request] = time.monotonic()
        super().process_request(request, client_address)

    def shutdown_request(self, request: Any) -> None:
        """End a connection."""
        with self._changed:
            self._open.pop(request, None)
            self._changed.notify()
        super().shutdown_request(request)

    def service_actions(self) -> None:
        """Cut off what takes too long. `serve_forever` calls this twice a second."""
        with self._changed:
            for connection, since in self._open.items():
                if time.monotonic() - since > bounds.METRICS_SECONDS:
                    cut_off(connection)

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Log an error, unless the client is gone or too slow."""
        if (error := sys.exception()) and not isinstance(error, OSError):
            log.error(error)


def cut_off(connection: socket.socket) -> None:
    """Let the thread that serves a connection see its end. The thread closes it."""
    with contextlib.suppress(OSError):
        connection.shutdown(socket.SHUT_RDWR)


class States(Collector):
    """Reads the state of the server each time that Prometheus asks."""

    def __init__(self, version: str, store: Store, health: Watch, http: HttpServer) -> None:
        """Take the parts of the server."""
        self._version, self._store, self._health, self._http = version, store, health, http

    def collect(self) -> Iterator[Metric]:
        """Yield the states. What the store cannot tell now is left out."""
        load, degraded = self._http.load(), self._store.degraded()
        yield gauge("info", "The version of openapi.yaml that the server runs on", {self._version: 1}, "version")
        yield gauge("healthy", "Whether reads are served", float(self._is_healthy()))
        yield gauge("degraded", "Which part does not work", {part: part in degraded for part in PARTS}, "part")
        yield gauge("connections", "Open connections", load.connections)
        yield gauge("waiting_requests", "Requests that wait for a thread, by lane", load.waiting, "lane")
        yield gauge("body_bytes", "Bytes of the bodies in flight, by place", load.body_bytes, "place")
        if connections := self._store.connections():
            yield gauge("database_connections", "Connections to the database, by state", connections, "state")
        # While nobody reads the log, no event says how much is lost.
        yield CounterMetricFamily(f"{PREFIX}_log_lines_lost", "Lines of the log that are lost", log.lines_lost)
        try:
            stats = self._store.stats()
        except StorageUnavailable:
            return
        yield gauge("accounts", "Accounts", stats.users)
        yield gauge("accounts_with_backup", "Accounts that have a backup", stats.backups)
        yield gauge("versions", "Kept versions", stats.versions)
        yield gauge("database_bytes", "Size of the database with its write-ahead log", stats.database_bytes)
        yield gauge("free_bytes", "What is free on the volume and in the database", stats.free_bytes)
        yield gauge("round_seconds", "Since a round through all accounts ended", stats.round_seconds)
        yield gauge("damaged", "Damaged accounts, versions and keys that are known", stats.damaged)
        if stats.copy_lag_seconds is not None:
            yield gauge("bucket_lag_seconds", "For how long the bucket has been behind", stats.copy_lag_seconds)
        if stats.copy_compared_seconds is not None:
            text = "Since all accounts were compared with the bucket"
            yield gauge("bucket_compared_seconds", text, stats.copy_compared_seconds)

    def _is_healthy(self) -> bool:
        try:
            self._health.check()
        except StorageUnavailable:
            return False
        return True


def gauge(name: str, text: str, value: float | Mapping[str, float], label: str | None = None) -> GaugeMetricFamily:
    """Return one value, or one for each value of a label."""
    family = GaugeMetricFamily(f"{PREFIX}_{name}", text, labels=(label,) if label else None)
    for labels, each in value.items() if isinstance(value, Mapping) else [((), value)]:
        family.add_metric((labels,) if isinstance(labels, str) else (), each)
    return family
