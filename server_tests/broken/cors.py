"""Which web pages may call the server, and what they may read."""

from collections.abc import Callable
from typing import Any

import backup_server
from backup_server import App
from server_tests.broken.fault import breaks, change, instead_of


def allow_origins_if(condition: Callable[[str, frozenset[str]], bool]) -> None:
    """Allow other origins, too: `condition(origin, allowed_origins)`."""

    @instead_of(App, "_finish_headers")
    def finish_headers(real: Any, app: Any, headers: list[tuple[str, str]], origin: str | None) -> str:
        request_id, allowed_origins = real(app, headers, origin), app._server.settings.allowed_origins
        if origin and "Access-Control-Allow-Origin" not in dict(headers) and condition(origin, allowed_origins):
            headers.append(("Access-Control-Allow-Origin", origin))
        return request_id


@breaks("cors.others")
def any_origin_is_reflected() -> None:
    """Any web page may call the server."""
    allow_origins_if(lambda origin, allowed: True)


@breaks("cors.others")
def origin_is_compared_by_its_beginning() -> None:
    """https://app.example.other counts as https://app.example."""
    allow_origins_if(lambda origin, allowed: any(origin.startswith(each) for each in allowed))


@breaks("cors.preflight")
def preflight_forgets_if_none_match() -> None:
    """A web app cannot ask whether its backup is the latest."""
    names = backup_server.ALLOWED_HEADERS.replace("If-None-Match, ", "")
    change(backup_server, "PREFLIGHT", {**backup_server.PREFLIGHT, "Access-Control-Allow-Headers": names})


@breaks("cors.exposed")
def etag_is_not_exposed() -> None:
    """A web app cannot read the ETag."""
    change(backup_server, "EXPOSED_HEADERS", backup_server.EXPOSED_HEADERS.removeprefix("ETag, "))


@breaks("cors.exposed")
def location_is_not_exposed() -> None:
    """A web app cannot read where its new version is."""
    change(backup_server, "EXPOSED_HEADERS", backup_server.EXPOSED_HEADERS.replace("Location, ", ""))


@breaks("cors.vary")
def vary_is_missing() -> None:
    """A cache gives one origin an answer that was meant for another."""

    @instead_of(App, "_finish_headers")
    def finish_headers(real: Any, app: App, headers: list[tuple[str, str]], origin: str | None) -> str:
        request_id = real(app, headers, origin)
        headers[:] = [(name, value) for name, value in headers if name != "Vary"]
        return request_id
