"""The order of checks, the form of problems, JSON and HTTP."""

import dataclasses
import json
import traceback
import urllib.parse
from collections.abc import Callable, Mapping
from types import SimpleNamespace
from typing import Any

import bottle
from waitress.parser import HTTPRequestParser, ParsingError

import backup_server
from backup_server import App, Problem, Request, Response, Server, User
from server import clock, http_server, i_json, json_schema
from server.limits import wait_seconds
from server_tests.broken.fault import add_to_limit, breaks, change, instead_of, on_answer

# --- The order of checks ----------------------------------------------------------------------------------------------


@breaks("order.answers")
def json_is_read_before_the_media_type_is_checked() -> None:
    """A body that is not JSON gets 400 if its media type should get 415."""

    @instead_of(backup_server, "read_body")
    def read_body(real: Any, request: Request) -> dict[str, Any]:
        try:
            if request.operation.body:
                i_json.decode(request.body)
        except i_json.NotIJson:
            raise Problem("malformed_request", "The body is not I-JSON.") from None
        return real(request)


@breaks("order.answers")
def limit_is_checked_before_the_base() -> None:
    """A conflict beyond the limit gets 429, and the device waits an hour to hear of the conflict."""

    @instead_of(backup_server, "store_version")
    def store_version(real: Any, server: Server, signature: str, user: User, *arguments: Any) -> Response:
        try:
            return real(server, signature, user, *arguments)
        except Problem as problem:
            moment, times = clock.now(), sorted(upload.moment for upload in user.account.uploads)
            wait = wait_seconds(server.account_limits["storeBackup"], times, moment)
            if problem.code != "version_conflict" or not wait:
                raise
            raise Problem(
                "rate_limited", "Wait.", wait, headers=server.rate_limit("storeBackup", times, moment)
            ) from None


# --- Problems ---------------------------------------------------------------------------------------------------------


def on_problem(change_problem: Callable[[Mapping[str, Any], dict[str, Any]], None]) -> None:
    """Change the members of each problem: `change_problem(environ, problem)`."""

    @on_answer
    def change_answer(environ: Mapping[str, Any], answer: Any) -> None:
        if answer.status >= 400 and answer.body:
            problem = json.loads(answer.body)
            change_problem(environ, problem)
            answer.body = json.dumps(problem).encode()


@breaks("problem.form")
def problem_has_no_code() -> None:
    """A client cannot tell one 401 from another."""
    on_problem(lambda environ, problem: problem.pop("code"))


@breaks("problem.form")
def problem_is_plain_json() -> None:
    """A problem has the media type of any answer."""

    @on_answer
    def change_answer(environ: Mapping[str, Any], answer: Any) -> None:
        if answer.headers.get("Content-Type") == "application/problem+json":
            answer.headers["Content-Type"] = "application/json"


@breaks("fetchBackup.200", "getHealth.200")
def answer_is_plain_text() -> None:
    """JSON is sent as text."""

    @on_answer
    def change_answer(environ: Mapping[str, Any], answer: Any) -> None:
        if answer.headers.get("Content-Type") == "application/json":
            answer.headers["Content-Type"] = "text/plain"


@breaks("problem.silent")
def stack_trace_is_answered() -> None:
    """The answer to a failure reveals how the server is made."""

    @instead_of(Problem, "__init__")
    def make(real: Any, problem: Problem, code: str, detail: str, *arguments: Any, **members: Any) -> None:
        detail = traceback.format_exc() if code == "internal_error" else detail
        real(problem, code, detail, *arguments, **members)


@breaks("problem.silent")
def problem_repeats_the_request() -> None:
    """A problem repeats what was sent, so a log of problems is a log of secrets."""

    @on_problem
    def change_problem(environ: Mapping[str, Any], problem: dict[str, Any]) -> None:
        problem["detail"] += f" Path {environ['PATH_INFO']}, {environ.get('HTTP_AUTHORIZATION')}."


@breaks("problem.pointer")
def errors_point_nowhere() -> None:
    """A 422 says what is wrong, but not where."""

    @instead_of(backup_server, "validation_failed")
    def validation_failed(real: Any, errors: list[dict[str, str]]) -> Problem:
        return real([{**error, "pointer": "#"} for error in errors])


# --- Methods and paths ------------------------------------------------------------------------------------------------


@breaks("problem.method")
def unknown_method_is_not_found() -> None:
    """A method that the server has not heard of gets 404."""

    @instead_of(App, "_serve")
    def serve(real: Any, app: Any, *arguments: Any, **parameters: str) -> bottle.HTTPResponse:
        if bottle.request.environ["REQUEST_METHOD"] not in backup_server.KNOWN_METHODS:
            return app._not_found("There is nothing.")
        return real(app, *arguments, **parameters)


@breaks("header.Allow")
def allow_names_one_method() -> None:
    """Allow leaves out the other methods of the path."""

    @on_answer
    def change_answer(environ: Mapping[str, Any], answer: Any) -> None:
        if "Allow" in answer.headers:
            answer.headers["Allow"] = answer.headers["Allow"].partition(",")[0]


@breaks("problem.path")
def paths_are_decoded() -> None:
    """/%68ealth is /health."""
    change_path(urllib.parse.unquote)


@breaks("problem.path")
def trailing_slash_is_dropped() -> None:
    """/health/ is /health."""
    change_path(lambda path: path.rstrip("/"))


def change_path(changed: Callable[[str], str]) -> None:
    """Change the path that is routed."""

    @instead_of(App, "_screen")
    def screen(real: Any, app: App) -> None:
        real(app)
        environ = bottle.request.environ
        environ["PATH_INFO"] = changed(environ["PATH_INFO"])


# --- Bodies -----------------------------------------------------------------------------------------------------------


@breaks("http.i-json")
def last_of_two_members_counts() -> None:
    """JSON is read as Python reads it: a name may occur twice."""
    decoder = json.JSONDecoder(parse_float=i_json.finite_number, parse_constant=i_json.finite_number)
    change(i_json, "DECODER", decoder)


@breaks("http.schema")
def unknown_members_are_ignored() -> None:
    """A misspelt baseSha256 counts as none."""

    @instead_of(json_schema, "errors_of")
    def errors_of(real: Any, *arguments: Any) -> list[dict[str, str]]:
        unknown = json_schema.DETAILS["additionalProperties"]
        return [error for error in real(*arguments) if error["detail"] != unknown]


@breaks("http.media-type")
def any_media_type_is_json() -> None:
    """Nobody looks at Content-Type."""

    @instead_of(backup_server, "read_body")
    def read_body(real: Any, request: Request) -> dict[str, Any]:
        if body := request.operation.body:
            request = dataclasses.replace(request, headers={**request.headers, "Content-Type": body.media_type})
        return real(request)


@breaks("http.no-body")
def needless_body_is_ignored() -> None:
    """A DELETE may have a body."""

    @instead_of(backup_server, "read_body")
    def read_body(real: Any, request: Request) -> dict[str, Any]:
        return real(request) if request.operation.body else {}


# --- HTTP -------------------------------------------------------------------------------------------------------------


@breaks("http.chunked")
def chunked_body_is_refused() -> None:
    """A body needs a Content-Length."""
    refuse_if(lambda parser: parser.chunked)


@breaks("http.continue")
def expectation_is_refused() -> None:
    """A client that waits for permission to send its body is told that its request is malformed."""
    refuse_if(lambda parser: parser.expect_continue)


def refuse_if(condition: Callable[[Any], bool]) -> None:
    """Refuse a request because of its headers."""

    @instead_of(http_server.RequestParser, "parse_header")
    def parse_header(real: Any, parser: Any, header_plus: bytes) -> None:
        real(parser, header_plus)
        if condition(parser):
            raise ParsingError("refused")


@breaks("http.framing")
def http_is_read_as_the_library_does() -> None:
    """Two Hosts, or a length together with chunks, are accepted. A proxy may read another request than the server."""
    change(http_server.RequestParser, "parse_header", HTTPRequestParser.parse_header)


@breaks("http.head")
def head_is_not_allowed() -> None:
    """A monitor that sends HEAD believes that the server is down."""

    @on_answer
    def change_answer(environ: Mapping[str, Any], answer: Any) -> None:
        if environ["REQUEST_METHOD"] == "HEAD" and answer.status == 200:
            answer.status, answer.headers["Allow"] = 405, "GET"


@breaks("http.header-limit")
def headers_may_have_a_byte_less() -> None:
    """16,384 bytes are too many."""
    add_to_limit("requestHeaderBytes", -1)


@breaks("getHealth.431")
def headers_may_be_larger() -> None:
    """16,400 bytes are accepted."""
    add_to_limit("requestHeaderBytes", 16)


@breaks("header.X-Request-Id")
def request_id_is_always_the_same() -> None:
    """A request cannot be found by its id."""
    change(backup_server, "secrets", SimpleNamespace(token_hex=lambda size: "0" * 16))


@breaks("header.Cache-Control")
def answers_may_be_cached() -> None:
    """Cache-Control does not say no-store."""

    @on_answer
    def change_answer(environ: Mapping[str, Any], answer: Any) -> None:
        answer.headers["Cache-Control"] = "private, max-age=60"
