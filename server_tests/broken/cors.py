"""Which web pages may call the server, and what they may read."""

from collections.abc import Callable, Mapping
from typing import Any

import backup_server
from backup_server import App
from server_tests.broken.fault import breaks, change, change_setting, instead_of, on_answer


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


# --- Another origin than the first, and each answer -------------------------------------------------------------------


@breaks("cors.each-origin", "cors.exposed")
def only_the_first_origin_is_allowed() -> None:
    """The operator allows two origins, and the web app at the second one is refused."""
    change_setting("allowed_origins", lambda origins: frozenset(sorted(origins)[:1]))


@breaks("cors.each-origin", "cors.preflight")
def only_web_pages_are_allowed() -> None:
    """An origin has to begin with https://, so no web view can call."""
    change_setting("allowed_origins", lambda origins: frozenset(each for each in origins if each.startswith("https:")))


@breaks("cors.each-origin")
def first_allowed_origin_is_named_to_all() -> None:
    """An answer names one allowed origin, whichever of them asks."""

    @on_answer
    def change_answer(environ: Mapping[str, Any], answer: Any) -> None:
        if "Access-Control-Allow-Origin" in answer.headers:
            names.add(answer.headers["Access-Control-Allow-Origin"])
            answer.headers["Access-Control-Allow-Origin"] = min(names)

    names: set[str] = set()


def remove_headers_if(condition: Callable[[int], bool], *removed: str) -> None:
    """Leave these headers out of each answer with such a status."""

    @instead_of(App, "__call__")
    def call(real: Any, app: App, environ: Any, start_response: Any) -> Any:
        def start(status: str, headers: list[tuple[str, str]], exc_info: Any = None) -> None:
            left = [each for each in headers if not condition(int(status[:3])) or each[0] not in removed]
            start_response(status, left)

        return real(app, environ, start)


CORS_HEADERS = ("Access-Control-Allow-Origin", "Access-Control-Expose-Headers")


@breaks("cors.exposed")
def failure_cannot_be_read_by_a_web_app() -> None:
    """The handler of errors makes an answer of its own, without the headers for CORS."""
    remove_headers_if(lambda status: status >= 500, *CORS_HEADERS)


@breaks("cors.exposed")
def not_modified_cannot_be_read_by_a_web_app() -> None:
    """A 304 has no headers for CORS, so the browser takes it for a network error."""
    remove_headers_if(lambda status: status == 304, *CORS_HEADERS)


@breaks("cors.exposed")
def limit_cannot_be_read_by_a_web_app() -> None:
    """A web app that meets a limit cannot read how long to wait."""
    remove_headers_if(lambda status: status == 429, *CORS_HEADERS)


@breaks("cors.exposed")
def deletion_cannot_be_read_by_a_web_app() -> None:
    """An answer without a body has no headers for CORS."""
    remove_headers_if(lambda status: status == 204, "Access-Control-Expose-Headers")


@breaks("cors.vary")
def vary_is_missing_on_304() -> None:
    """A cache updates what it has with the headers of a 304, and then gives it to another origin."""
    remove_headers_if(lambda status: status == 304, "Vary")


@breaks("cors.vary")
def vary_is_missing_on_writes() -> None:
    """Only what could be cached carries Vary."""
    remove_headers_if(lambda status: status in (201, 204, 409, 422), "Vary")


@breaks("cors.path")
def preflight_of_any_path_gets_204() -> None:
    """A proxy in front answers each preflight, also of a path that does not exist."""

    @on_answer
    def change_answer(environ: Mapping[str, Any], answer: Any) -> None:
        if answer.status == 404 and environ["REQUEST_METHOD"] == "OPTIONS" and "HTTP_ORIGIN" in environ:
            answer.status, answer.body = 204, b""
            del answer.headers["Content-Type"], answer.headers["Content-Length"]


@breaks("cors.exposed")
def refused_body_cannot_be_read_by_a_web_app() -> None:
    """What the HTTP server refuses before the app sees it has no headers for CORS."""

    @instead_of(App, "refuse")
    def refuse(real: Any, app: App, status: int, origin: str | None) -> Any:
        return real(app, status, None)
