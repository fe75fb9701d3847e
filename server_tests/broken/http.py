"""The order of checks, the form of problems, JSON and HTTP."""

import contextlib
import json
import re
import threading
import traceback
import urllib.parse
from collections.abc import Callable, Mapping
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

from waitress.parser import HTTPRequestParser, ParsingError
from waitress.task import WSGITask

import backup_server
from backup_server import App, Problem, Request, Response, Server, User
from clients.python.backup_client import content_digest
from server import bounds, clock, http_parser, http_server, i_json, json_schema
from server.limits import wait_seconds
from server_tests.broken.fault import (
    add_to_limit,
    body_of,
    breaks,
    change,
    instead_of,
    instead_of_proof,
    on_answer,
)

# --- The order of checks ----------------------------------------------------------------------------------------------


@breaks("order.answers")
def json_is_read_before_the_media_type_is_checked() -> None:
    """A body that is not JSON gets 400 if its media type should get 415."""

    @instead_of(backup_server, "check_content")
    def check_content(real: Any, request: Request) -> None:
        try:
            if request.operation.body:
                i_json.decode(body_of(request))
        except i_json.NotIJson:
            raise Problem("malformed_request", "The body is not I-JSON.") from None
        real(request)


@breaks("order.answers")
def digest_is_compared_before_the_credentials() -> None:
    """A stranger's body is read and digested before anybody asks who sent it."""

    @instead_of_proof("appSignature")
    def check_signature(real: Any, server: Server, request: Request) -> Any:
        signature = real(server, request)
        if request.header("Content-Digest") != content_digest(body_of(request)):
            raise Problem("digest_mismatch", "The digest is another one.")
        return signature


@breaks("order.answers")
def body_is_checked_before_the_path() -> None:
    """A body with broken framing, or one that is too slow or too long, is told before anything that the head tells."""

    @instead_of(http_parser.RequestParser, "end_body")
    def end_body(real: Any, parser: Any, fault: int) -> None:
        parser.error, parser.completed = Error(fault), True

    class Error:
        def __init__(self, code: int) -> None:
            self.code = code


@breaks("backup.body")
def framing_of_chunks_counts() -> None:
    """A body in many small chunks is too large, however small it is."""

    @instead_of(http_parser.RequestParser, "received")
    def received(real: Any, parser: Any, data: bytes) -> int:
        parser.wire = getattr(parser, "wire", 0) + len(data)
        consumed = real(parser, data)
        if parser.chunked and parser.wire > parser.adj.max_request_body_size and not parser.completed:
            parser.end_body(413)
        return consumed


@breaks("order.answers", "http.no-body")
def needless_body_is_told_after_its_digest() -> None:
    """A body that does not belong there is read to its end, and its digest is compared."""

    @instead_of(backup_server, "receive")
    def receive(real: Any, server: Server, request: Request) -> bytes:
        body = real(server, request)
        if body and not request.operation.body:
            raise Problem("malformed_request", "This operation takes no body.")
        return body

    check_content_if(lambda request: request.operation.body is not None)


def check_content_if(condition: Callable[[Request], bool]) -> None:
    @instead_of(backup_server, "check_content")
    def check_content(real: Any, request: Request) -> None:
        if condition(request):
            real(request)


@breaks("order.answers")
def limit_is_checked_before_the_base() -> None:
    """A conflict beyond the limit gets 429, and the device waits an hour to hear of the conflict."""

    @instead_of(backup_server, "store_version")
    def store_version(
        real: Any, server: Server, request: Request, signature: str, user: User, *arguments: Any
    ) -> Response:
        try:
            return real(server, request, signature, user, *arguments)
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


@breaks("header.Retry-After")
def what_cannot_be_read_is_to_be_repeated() -> None:
    """Each answer to a request that cannot be read has Retry-After, although it would get the same answer again."""

    @instead_of(backup_server, "refusal")
    def refusal(real: Any, status: int, limits: Mapping[str, int]) -> Problem:
        code, detail = backup_server.REFUSALS[status]
        return Problem(code, detail.format(**limits), backup_server.BUSY_SECONDS)


@breaks("problem.form")
def problem_has_no_code() -> None:
    """A client cannot tell one 401 from another."""
    on_problem(lambda environ, problem: problem.pop("code"))


@breaks("problem.form")
def problem_has_no_detail() -> None:
    """A problem does not say what to do."""
    on_problem(lambda environ, problem: problem.pop("detail"))


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

    @instead_of(App, "_respond")
    def respond(real: Any, app: App, environ: dict[str, Any]) -> Any:
        if environ["REQUEST_METHOD"] not in backup_server.KNOWN_METHODS:
            return None, Problem("not_found", "There is nothing.").response
        return real(app, environ)


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

    @instead_of(App, "_respond")
    def respond(real: Any, app: App, environ: dict[str, Any]) -> Any:
        environ["PATH_INFO"] = changed(environ["PATH_INFO"])
        return real(app, environ)


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
    check_content_if(lambda request: request.operation.body is None)


@breaks("http.media-type-form")
def empty_parameter_is_refused() -> None:
    """A client whose library ends the media type with a semicolon cannot back up."""

    @instead_of(backup_server, "is_media_type")
    def is_media_type(real: Any, content_type: str, media_type: str) -> bool:
        return real(content_type, media_type) and not content_type.rstrip().endswith(";")


@breaks("http.media-type-form")
def charset_must_not_be_quoted() -> None:
    """A client whose library quotes the charset cannot back up."""

    @instead_of(backup_server, "is_media_type")
    def is_media_type(real: Any, content_type: str, media_type: str) -> bool:
        return real(content_type, media_type) and '"' not in content_type


@breaks("http.no-body")
def needless_body_is_ignored() -> None:
    """A DELETE may have a body."""
    check_content_if(lambda request: request.operation.body is not None)


@breaks("http.no-body")
def needless_body_is_ignored_if_it_is_chunked() -> None:
    """Only Content-Length tells of a body."""

    @instead_of(http_server.AppTask, "get_environment")
    def get_environment(real: Any, task: Any) -> Any:
        environ = real(task)
        return environ | {"CONTENT_LENGTH": "0"} if task.request.chunked else environ


# --- Lenient readers --------------------------------------------------------------------------------------------------


def read_json_as(changed: Callable[[bytes], bytes]) -> None:
    """Change the bytes of a body before they are read as JSON."""

    @instead_of(i_json, "decode")
    def decode(real: Any, body: bytes) -> Any:
        return real(changed(body))


@breaks("http.i-json")
def byte_order_mark_is_skipped() -> None:
    """A body may begin with the mark that some editors write."""
    read_json_as(lambda body: body.removeprefix(b"\xef\xbb\xbf"))


@breaks("http.i-json")
def any_white_space_round_json_is_let_pass() -> None:
    """A body is stripped before it is read, of form feeds, NULs and Unicode's spaces, too."""
    read_json_as(
        lambda body: body.decode("utf-8", "surrogateescape").strip(WHITE_SPACE).encode("utf-8", "surrogateescape")
    )


WHITE_SPACE = "\t\n\r\x0b\x0c\x1c\x1d\x1e\x1f \x85\xa0\u2028\u2029\u3000"


@breaks("http.i-json")
def utf_32_is_read() -> None:
    """The reader guesses the coding of a body from its first bytes."""

    def changed(body: bytes) -> bytes:
        with contextlib.suppress(UnicodeError):
            return body.decode("utf-32-be" if body.startswith(b"\0\0\0") else "utf-32-le").encode()
        return body

    read_json_as(changed)


@breaks("http.commas")
def any_number_of_values_is_read() -> None:
    """Megabytes of tiny values take a hundred times their size in memory."""
    change(i_json, "has_more_commas", lambda body, most: False)


def read_large_json_by(decoder: json.JSONDecoder) -> None:
    """Read what has more than 64 KiB by another decoder."""
    real = i_json.DECODER

    class Decoder:
        def decode(self, text: str) -> Any:
            return (decoder if len(text) > 65_536 else real).decode(text)

    change(i_json, "DECODER", Decoder())


@breaks("backup.any-size")
def last_of_two_members_counts_in_a_large_body() -> None:
    """A fast parser reads large bodies, and lets a name occur twice."""
    read_large_json_by(json.JSONDecoder(parse_constant=i_json.finite_number))


@breaks("backup.any-size")
def control_characters_in_a_large_body_are_let_pass() -> None:
    """A fast parser reads large bodies, and lets strings have tabs and line feeds."""
    pairs = i_json.unique_members
    read_large_json_by(json.JSONDecoder(object_pairs_hook=pairs, parse_constant=i_json.finite_number, strict=False))


@breaks("backup.any-size")
def unknown_members_of_a_large_body_are_ignored() -> None:
    """A streaming reader takes the members that it knows out of a large body."""

    @instead_of(json_schema, "errors_of")
    def errors_of(real: Any, validator: Any, value: Any) -> list[dict[str, str]]:
        if isinstance(value, dict) and len(str(value.get("data"))) > 65_536:
            value = {name: value[name] for name in ("data", "baseSha256", "storageKey") if name in value}
        return real(validator, value)


@breaks("http.media-type")
def any_unicode_charset_is_accepted() -> None:
    """`charset=utf-16` is accepted, although the body is read as UTF-8."""

    @instead_of(backup_server, "is_media_type")
    def is_media_type(real: Any, content_type: str, media_type: str) -> bool:
        return real(re.sub("charset=(utf|unicode|us-ascii)[a-z0-9_-]*$", "", content_type.lower()), media_type)


@breaks("http.media-type")
def charset_may_be_there_twice() -> None:
    """The last of two charsets counts."""

    @instead_of(backup_server, "is_media_type")
    def is_media_type(real: Any, content_type: str, media_type: str) -> bool:
        first, *parameters = content_type.split(";")
        return real(";".join([first, *parameters[-1:]]), media_type)


@breaks("http.media-type")
def unknown_content_coding_is_stored() -> None:
    """Only the codings that the developer has heard of are refused."""

    @instead_of(backup_server, "check_content")
    def check_content(real: Any, request: Request) -> None:
        coding = (request.header("Content-Encoding") or "").lower()
        known = "gzip" in coding or coding in ("br", "deflate", "identity")
        real(request if known else replace(request, headers={**request.headers, "Content-Encoding": None}))


@breaks("backup.any-size")
def large_needless_body_is_ignored() -> None:
    """A body where none belongs is only looked at if it is in memory."""
    check_content_if(lambda request: request.operation.body is not None or request.body_bytes < 65_536)


# --- Other forms of a target, and HEAD --------------------------------------------------------------------------------


@breaks("http.absolute")
def whole_target_is_signed() -> None:
    """The server takes an absolute target for the path that was signed."""

    @instead_of(App, "_answer")
    def answer(real: Any, app: App, operation: Any, environ: Any, parameters: Any) -> Response:
        if environ["REQUEST_URI"].lower().startswith("http"):
            environ["PATH_INFO"] = environ["REQUEST_URI"].partition("?")[0]
        return real(app, operation, environ, parameters)


@breaks("http.absolute")
def query_of_an_absolute_target_is_ignored() -> None:
    """The URL library splits an absolute target, and only its path goes on."""

    @instead_of(App, "_answer")
    def answer(real: Any, app: App, operation: Any, environ: Any, parameters: Any) -> Response:
        if environ["REQUEST_URI"].lower().startswith("http"):
            environ["REQUEST_URI"] = environ["REQUEST_URI"].partition("?")[0]
        return real(app, operation, environ, parameters)


@breaks("http.head")
def problem_to_a_head_has_a_body() -> None:
    """The next answer on the connection begins in the middle of this one."""

    @on_answer
    def change_answer(environ: Mapping[str, Any], answer: Any) -> None:
        if environ["REQUEST_METHOD"] == "HEAD" and answer.status >= 400:
            answer.body = Problem("not_found", "There is nothing.").response.body


@breaks("header.Allow")
def allow_names_methods_of_every_path() -> None:
    """Allow lists what the server has somewhere."""

    @on_answer
    def change_answer(environ: Mapping[str, Any], answer: Any) -> None:
        if "Allow" in answer.headers and environ["REQUEST_METHOD"] == "TRACE":
            answer.headers["Allow"] = "DELETE, GET, HEAD, POST, PUT"


# --- The time of a request --------------------------------------------------------------------------------------------


@breaks("http.body-time", "getHealth.408", "deleteUser.408")
def body_is_waited_for_without_end() -> None:
    """A thousand slow bodies hold all connections."""
    change(http_parser.RequestParser, "is_late", lambda parser, seconds: False)


@breaks("http.body-time")
def body_may_come_at_any_time() -> None:
    """A signature that somebody holds back acts hours later."""
    change(http_parser.RequestParser, "is_late", lambda parser, seconds: False)
    change(Server, "check_time", lambda server, request: None)


@breaks("http.body-time")
def body_may_take_two_seconds_more() -> None:
    """A body has 302 seconds."""
    add_to_limit("requestBodySeconds", 2)


@breaks("http.body-time")
def body_has_a_second_less() -> None:
    """A body has 299 seconds."""
    add_to_limit("requestBodySeconds", -1)


@breaks(test="server_tests/test_http_strictness.py::test_a_change_that_would_come_too_late_does_not_happen")
def change_is_made_however_late() -> None:
    """A request that waited long for its account still changes it."""
    is_receiving = threading.local()

    @instead_of(backup_server, "receive")
    def receive(real: Any, server: Server, request: Request) -> bytes:
        is_receiving.now = True
        try:
            return real(server, request)
        finally:
            is_receiving.now = False

    @instead_of(Server, "check_time")
    def check_time(real: Any, server: Server, request: Request) -> None:
        if is_receiving.now:
            real(server, request)


# --- HTTP -------------------------------------------------------------------------------------------------------------


@breaks("http.chunked")
def chunked_body_is_refused() -> None:
    """A body needs a Content-Length."""
    refuse_if(lambda parser: parser.chunked)


@breaks("http.continue")
def expectation_is_refused() -> None:
    """A client that waits for permission to send its body is told that its request is malformed."""
    refuse_if(lambda parser: parser.expect_continue)


@breaks("http.continue")
def body_is_asked_for_before_the_head_is_looked_at() -> None:
    """Whoever expects 100-continue is asked for the body, and refused afterwards."""

    @instead_of(http_server.Channel, "_look_at_head")
    def look(real: Any, channel: Any, request: Any) -> None:
        real(channel, request)
        if request.expect_continue:
            request.expect_continue = False
            channel.write_soon(b"HTTP/1.1 100 Continue\r\n\r\n")
            channel._flush_some()


def refuse_if(condition: Callable[[Any], bool]) -> None:
    """Refuse a request because of its headers."""

    @instead_of(http_parser.RequestParser, "parse_header")
    def parse_header(real: Any, parser: Any, header_plus: bytes) -> None:
        real(parser, header_plus)
        if condition(parser):
            raise ParsingError("refused")


@breaks("http.refused-body")
def connection_stays_open_after_a_refused_body() -> None:
    """What comes of a body that was refused is read as the next request."""
    change(http_server.AppTask, "build_response_header", WSGITask.build_response_header)


@breaks("http.sent-ahead")
def requests_sent_ahead_are_all_answered() -> None:
    """Whoever sends a thousand requests in one piece gets a thousand answers."""
    change(bounds, "REQUESTS_AHEAD", 1000)


@breaks("http.sent-ahead")
def requests_sent_ahead_are_dropped() -> None:
    """Only the first of several requests in one piece is answered."""
    change(bounds, "REQUESTS_AHEAD", 1)


@breaks("http.framing")
def http_is_read_as_the_library_does() -> None:
    """Two Hosts, or a length together with chunks, are accepted. A proxy may read another request than the server."""

    @instead_of(http_parser.RequestParser, "parse_header")
    def parse_header(real: Any, parser: Any, header_plus: bytes) -> None:
        parser.arrived_at, parser.arrived = clock.now(), clock.monotonic()
        HTTPRequestParser.parse_header(parser, header_plus)


@breaks("http.one-length")
def chunks_go_before_a_length() -> None:
    """A length beside chunks is ignored, as RFC 9112 allows. A proxy may go by the length."""

    @instead_of(http_parser.RequestParser, "parse_header")
    def parse_header(real: Any, parser: Any, header_plus: bytes) -> None:
        if b"transfer-encoding" in header_plus.lower():
            header_plus = re.sub(rb"\r\ncontent-length:[^\r]*", b"", header_plus, flags=re.IGNORECASE)
        real(parser, header_plus)


@breaks("http.host")
def any_host_is_valid() -> None:
    """A proxy may route a request by another host than the one that a cache stores it under."""
    change(http_parser, "is_host", lambda text: True)


@breaks("http.host")
def address_in_brackets_is_not_looked_at() -> None:
    """[1::2::3] is a host."""
    change(http_parser, "is_host", lambda text: bool(http_parser.HOST.fullmatch(text)))


@breaks("http.host")
def authority_of_a_target_is_not_looked_at() -> None:
    """http://user@host/health is a target."""
    change(http_parser, "ABSOLUTE_FORM", re.compile("(?!)"))


@breaks("http.minor")
def http_1_2_is_refused() -> None:
    """A client of a later version of HTTP/1 is told that its request is malformed."""

    @instead_of(http_parser.RequestParser, "parse_header")
    def parse_header(real: Any, parser: Any, header_plus: bytes) -> None:
        if re.match(rb"[^\r]* HTTP/1\.[2-9]\r", header_plus):
            raise ParsingError("refused")
        real(parser, header_plus)


@breaks("http.minor")
def http_1_2_is_read_as_http_1_0() -> None:
    """A client of a later version of HTTP/1 has to connect again for each request."""

    @instead_of(http_parser.RequestParser, "parse_header")
    def parse_header(real: Any, parser: Any, header_plus: bytes) -> None:
        real(parser, re.sub(rb"^([^\r]* HTTP/1\.)[2-9]\r", rb"\g<1>0\r", header_plus))


@breaks("http.keep-alive")
def connection_ends_after_a_304() -> None:
    """A client that has the latest version already has to connect again."""
    change(http_server.AppTask, "set_close_on_finish", WSGITask.set_close_on_finish)


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


@breaks("header.Location")
def location_is_missing() -> None:
    """The 201 of an upload does not say where the version is."""
    change_location(lambda location: None)


@breaks("header.Location")
def location_names_the_version_before() -> None:
    """Location leads to another version than the one that was stored."""
    change_location(lambda location: re.sub("[0-9]+$", lambda number: str(int(number[0]) % 2 + 1), location))


def change_location(changed: Callable[[str], str | None]) -> None:
    @on_answer
    def change_answer(environ: Mapping[str, Any], answer: Any) -> None:
        if location := answer.headers["Location"]:
            del answer.headers["Location"]
            if other := changed(location):
                answer.headers["Location"] = other


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
