"""The JavaScript client in headless Chromium: its modules as they are, on a page of an allowed origin.

The origin is http://localhost:5173, where the development servers of web apps are, or another port if that one is in
use. `tox run -e browser` runs these tests.
"""

import functools
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread
from typing import Any

import pytest

from contract_tests.target.openapi import REPOSITORY
from contract_tests.target.process import ServerProcess

PAGE = b"""<!doctype html><title>an app</title><link rel="icon" href="data:,">
<script type="importmap">{"imports": {
  "@dailyreps/backup-client": "/clients/javascript/src/index.mjs",
  "@dailyreps/backup-client/crypto": "/clients/javascript/src/crypto.mjs"
}}</script>"""
SHARED = ("/clients/javascript/src/", "/clients/javascript/test/", "/clients/javascript/examples/", "/fixtures/")
# A life has more uploads and wrong passwords than an account may have in an hour.
NO_LIMITS = {"BACKUPS_PER_HOUR": 1000, "BACKUPS_PER_DAY": 1000, "FAILED_CREDENTIALS_PER_5_MINUTES": 1000}


class Files(SimpleHTTPRequestHandler):
    """The page, the package's modules as they are, and the fixtures."""

    def do_GET(self) -> None:
        if self.path == "/":
            self.send_response(200)
            self.send_header("Content-Type", "text/html; charset=utf-8")
            self.send_header("Content-Length", str(len(PAGE)))
            self.end_headers()
            self.wfile.write(PAGE)
        elif self.path.startswith(SHARED) and ".." not in self.path:
            super().do_GET()
        else:
            self.send_error(404)

    def log_message(self, format: str, *arguments: Any) -> None:
        pass


@contextmanager
def origin(*ports: int) -> Iterator[str]:
    """Serve the page at the first of these ports that is free (0: one that the system picks)."""
    handler = functools.partial(Files, directory=REPOSITORY)
    for port in ports:
        try:
            server = ThreadingHTTPServer(("127.0.0.1", port), handler)
            break
        except OSError:
            if port == ports[-1]:
                raise
    thread = Thread(target=server.serve_forever)
    thread.start()
    try:
        yield f"http://localhost:{server.server_port}"
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


@pytest.fixture(scope="module")
def allowed(browser: Any) -> Iterator[str]:
    with origin(5173, 0) as found:
        yield found


@pytest.fixture(scope="module")
def server(allowed: str, start_shared_server: Callable[..., ServerProcess]) -> ServerProcess:
    return start_shared_server(ALLOWED_ORIGINS=allowed, **NO_LIMITS)


@contextmanager
def opened(browser: Any, url: str) -> Iterator[Any]:
    """A page at this address, which may call this host alone. What its console says is in `page.said`."""
    context = browser.new_context()
    context.set_default_timeout(60_000)  # milliseconds
    page = context.new_page()
    page.said = []
    page.on("console", lambda message: page.said.append(message.text))
    page.on("pageerror", lambda error: page.said.append(f"uncaught: {error}"))
    page.goto(url)
    yield page
    context.close()
    assert [line for line in page.said if line.startswith("uncaught")] == []


@pytest.fixture
def page(browser: Any, allowed: str) -> Iterator[Any]:
    with opened(browser, allowed) as page:
        yield page


def options(server: ServerProcess) -> dict[str, str]:
    return {"baseUrl": server.base_url, "secret": server.secret}


def test_a_whole_life_from_an_allowed_origin(page: Any, server: ServerProcess) -> None:
    """It needs what CORS exposes: the ETag, and Retry-After. A browser asks before each kind of request."""
    page.expose_function("busy", lambda: setattr(server, "fault", "unavailable"))
    page.expose_function("ready", lambda: setattr(server, "fault", None))
    before = len(server.log())
    answers = page.evaluate(
        """async options => {
            const { wholeLife } = await import('/clients/javascript/test/whole_life.mjs')
            return wholeLife({ ...options, busy, ready })
        }""",
        options(server),
    )
    assert {200, 201, 204, 304, 401, 404, 409, 503} == set(answers)
    requests = [event for event in server.log()[before:] if event["event"] == "request"]
    preflights = [event for event in requests if event["method"] == "OPTIONS"]
    assert {event["status"] for event in preflights} == {204}
    signed = {"/api/register", "/api/backup", "/api/backup/versions", "/api/user/storage-key", "/api/user"}
    assert signed <= {event["route"] for event in preflights}


def test_all_vectors(page: Any) -> None:
    passed, failures = page.evaluate(
        """async () => {
            const { checkVectors } = await import('/clients/javascript/test/vectors.mjs')
            const read = async name => new Uint8Array(await (await fetch(`/fixtures/${name}`)).arrayBuffer())
            const passed = {}, failures = []
            await checkVectors(read, (type, id, ok) => {
                if (ok) passed[type] = (passed[type] ?? 0) + 1
                else if (ok === false) failures.push(`${type} ${id}`)
            })
            return [passed, failures]
        }"""
    )
    assert failures == []
    assert sum(passed.values()) > 400 and passed["Keys"] > 30, passed


def test_another_origin_gets_nothing(browser: Any, server: ServerProcess) -> None:
    with origin(0) as other, opened(browser, other) as page:
        error = page.evaluate(
            """async ({ baseUrl, secret }) => {
                const { BackupClient, keysOfMasterKey } = await import('@dailyreps/backup-client')
                const keys = await keysOfMasterKey('ab'.repeat(32), new Uint8Array(32))
                const client = new BackupClient({ baseUrl, secret, keys })
                return client.listBackupVersions().then(() => 'read', error => ({ ...error }))
            }""",
            options(server),
        )
    assert error == {"reason": "TypeError", "lost": True}


DEVICE = """async options => {
    const { openDevice } = await import('/clients/javascript/examples/state_in_a_browser.mjs')
    const device = await openDevice({ ...options, merge: mine => mine }, 'Dora'), before = device.log.length
    if (!device.state.keys) await device.register('Dora', 'a password')
    await device.update(log => new Uint8Array([...log, 1]))
    await device.sync()
    return [before, device.state.base.version]
}"""


def test_a_state_survives_a_reload(page: Any, server: ServerProcess) -> None:
    """The example of the README keeps it in IndexedDB."""
    assert page.evaluate(DEVICE, options(server)) == [0, 1]
    page.reload()
    assert page.evaluate(DEVICE, options(server)) == [1, 2]


def test_no_error_shows_a_key_in_the_console(page: Any, server: ServerProcess) -> None:
    storage_key, new_storage_key = page.evaluate(
        """async ({ baseUrl, secret }) => {
            const { Device, deriveKeys, newState } = await import('@dailyreps/backup-client')
            const keys = await deriveKeys('Nobody', 'a password'), state = { ...newState(), keys }
            const pause = async () => {}
            for (const url of [baseUrl, 'http://127.0.0.1:1']) {
                const device = new Device({ baseUrl: url, secret, merge: mine => mine, state, pause })
                for (const call of [() => device.versions(), () => device.changePassword('another password')]) {
                    const error = await call().then(() => undefined, error => error)
                    console.log(error, String(error), JSON.stringify(error), device)
                }
            }
            return [keys.storageKey, (await deriveKeys('Nobody', 'another password')).storageKey]
        }""",
        options(server),
    )
    said = "\n".join(page.said)
    assert "credentials_invalid" in said and "LostAnswerError" in said
    for hidden in (storage_key, new_storage_key, server.secret):
        assert hidden not in said
