"""The DailyReps backup server. It keeps encrypted backups safe and gives them back. It cannot read any of them.

`openapi.yaml`, beside this file, is the source of truth. The server runs on it: at boot, it takes routes, validators
and limits from that file. `python backup_server.py --help` lists the settings.

This file contains, from top to bottom: settings, problems, spec, requests, proofs, operations, app, main. The package
`server/` contains what they build on: accounts and their store, limits, JSON, HTTP, the process, clock and log.
"""

from __future__ import annotations

if __name__ == "__main__":
    from server import process

    process.begin()  # before the imports, which take long

import argparse
import base64
import contextlib
import functools
import hashlib
import hmac
import inspect
import ipaddress
import math
import os
import re
import secrets
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, date, datetime
from http import HTTPStatus
from pathlib import Path
from typing import IO, Any, NamedTuple

import bottle
import jsonschema
import pybase64
import yaml

from server import bounds, clock, i_json, memory, operator, origins, process, reference_page, space
from server.accounts import (
    Account,
    Damaged,
    DamagedData,
    Deleted,
    HeldAccount,
    Record,
    StorageFull,
    StorageUnavailable,
    Store,
    Upload,
    Version,
    nothing,
)
from server.address_limit import AddressLimit
from server.bucket import Address, Bucket
from server.clock import rfc3339
from server.dbm_store import DbmStore
from server.guessing import Guessing
from server.health import Watch
from server.http_parser import ABSOLUTE_FORM
from server.http_server import ARRIVAL, Arrival, HttpOptions, HttpServer, Refusal, RequestLimits
from server.json_schema import Errors, ObjectValidator, UnknownKeyword, check_keywords
from server.limits import Limit, wait_seconds
from server.log import log
from server.reference_page import Page
from server.refused import RefusedUploads
from server.replica import Replica

# --- Settings ---------------------------------------------------------------------------------------------------------

ROOT = Path(__file__).parent  # openapi.yaml and the reference page are here
NEW_SECRET = 'python3 -c "import secrets; print(secrets.token_urlsafe(32))"'  # noqa: S105 - a command

KEYID = re.compile(r"[A-Za-z0-9_-]{1,64}")
YamlLoader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)  # PyYAML without libyaml: 0.15 s instead of 0.02

SETTINGS_HELP = """\
environment variables:
  APP_SECRET_KEY    required: the app's secret, at least 32 characters. To accept several secrets at once:
                    keyid:secret,keyid:secret (the keyid of a single secret is "app")
  RETIRED_KEYIDS    keyids of outdated versions of the app, which get 403 app_outdated: app,app2
  ADMIN_SECRET_KEY  bearer key for GET /admin/stats, at least 32 characters; if it is not set, the path does not exist
  ALLOWED_ORIGINS   web origins that may call the server (CORS): https://app.example,capacitor://localhost
  CLIENT_ADDRESS_HEADER
                    the header in which a proxy sends the client's address; on Fly it is Fly-Client-IP. Set it only if
                    every request comes through a proxy that replaces the header, or anybody can write any address
  DATABASE_PATH     database file (./data/backup.db)
  DATABASE_URL      a PostgreSQL database in place of the file, which several servers may share:
                    postgresql://user:password@host/name (requirements/postgres.txt; docs/scaling.md)
  DATABASE_BYTES    how large that database may become (10000000000)
  NEW_STORE         1: the store is a new one; 0: it has to be there already (if it is not set, a missing one is made)
  HOST, PORT        address to listen on (127.0.0.1, 8080); port 0 picks a free port and prints it
  METRICS_PORT      a port for Prometheus (/metrics), at the same address; if it is not set, there are no metrics
  BACKUPS_PER_HOUR, BACKUPS_PER_DAY
                    new versions per account ({BACKUPS_PER_HOUR}, {BACKUPS_PER_DAY})
  KEY_CHANGES_PER_HOUR, KEY_CHANGES_PER_DAY
                    changes of the storage key per account ({KEY_CHANGES_PER_HOUR}, {KEY_CHANGES_PER_DAY})
  REGISTRATIONS_PER_HOUR
                    new accounts per client address ({REGISTRATIONS_PER_HOUR})
  FAILED_CREDENTIALS_PER_5_MINUTES
                    wrong credentials per client address ({FAILED_CREDENTIALS_PER_5_MINUTES})
  FAILED_CREDENTIALS_PER_ACCOUNT_PER_DAY
                    wrong credentials per account; after that, only known addresses may try as before
                    ({FAILED_CREDENTIALS_PER_ACCOUNT_PER_DAY})
  KEEP_VERSIONS     how many last versions, days, weeks and months to keep ({KEEP_VERSIONS})
  ACCOUNT_BYTES     how many bytes the kept versions of an account may have together ({ACCOUNT_BYTES})
  BUCKET_NAME, AWS_ENDPOINT_URL_S3, AWS_REGION, AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY
                    a bucket for a copy off the machine, as `fly storage create` sets them; if BUCKET_NAME is not set,
                    there is no such copy
  BUCKET_TAKEOVER   1: take the bucket from another server, which has to be stopped (0)
  REVISION          the commit that this server was made from; log and statistics tell it (the image sets it)
  DEBUG             1 logs the messages and tracebacks of errors, which may repeat what a client sent (0)

to make a new secret:  {NEW_SECRET}
"""


class StartupError(Exception):
    """The server cannot start. The message gives the reason and says what to do about it."""


@dataclass(frozen=True)
class Settings:
    """The settings of a deployment, read from the environment once. The repr leaves out secrets."""

    app_secrets: Mapping[str, bytes] = field(repr=False)  # keyid -> HMAC key
    retired_keyids: frozenset[str]  # they may be in app_secrets, too
    admin_key: str | None = field(repr=False)
    allowed_origins: frozenset[str]
    database_path: Path
    database_url: str | None = field(repr=False)  # None: the store is a file
    database_bytes: int  # of that database
    is_new_store: bool | None  # None: a missing store is made
    host: str
    port: int
    metrics_port: int | None
    backups_per_hour: int
    backups_per_day: int
    key_changes_per_hour: int
    key_changes_per_day: int
    registrations_per_hour: int
    failed_credentials_per_5_minutes: int
    failed_credentials_per_account_per_day: int
    keep_versions: tuple[int, ...]  # last versions, UTC days, ISO weeks, months
    account_bytes: int
    address_header: str | None  # the one that a trusted proxy sets
    bucket: Address | None  # None: there is no copy off the machine
    bucket_takeover: bool
    revision: str | None  # the commit that this server was made from
    debug: bool

    @classmethod
    def from_environ(cls, environ: Mapping[str, str], defaults: Mapping[str, Any]) -> Settings:
        """Read the settings from the environment. `defaults` are the defaults from the spec, by variable.

        Raise StartupError if a value is missing or invalid. The message names the variable.
        """

        def read(name: str, default: str = "") -> str:
            return environ.get(name) or str(defaults.get(name, default))

        def whole_number(name: str, default: str = "", least: int = 1, most: int = 1_000_000) -> int:
            text = read(name, default)
            if not re.fullmatch(r"[0-9]{1,15}", text) or not least <= int(text) <= most:
                raise StartupError(f"{name} must be a whole number from {least} to {most}.")
            return int(text)

        def strong(name: str, secret: str) -> str:
            if len(secret) < 32 or not secret.isprintable() or secret != secret.strip():
                what = "each secret needs at least 32 printable characters, with no spaces around it"
                raise StartupError(f"{name}: {what}. Make one with: {NEW_SECRET}")
            return secret

        app_secrets: dict[str, bytes] = {}
        if not read("APP_SECRET_KEY"):
            what = "is not set: it is the secret that the app signs with"
            raise StartupError(f"APP_SECRET_KEY {what}. Make one with: {NEW_SECRET}")
        for entry in read("APP_SECRET_KEY").split(","):
            keyid, colon, secret = entry.rpartition(":")
            keyid = keyid if colon else "app"
            if not KEYID.fullmatch(keyid) or keyid in app_secrets:
                what = "must be one secret, or keyid:secret,keyid:secret with different keyids of A-Z a-z 0-9 _ -"
                raise StartupError(f"APP_SECRET_KEY {what}. A secret must not contain a colon or a comma.")
            app_secrets[keyid] = strong("APP_SECRET_KEY", secret).encode()
        retired = frozenset(read("RETIRED_KEYIDS").split(",")) if read("RETIRED_KEYIDS") else frozenset()
        if not all(KEYID.fullmatch(keyid) for keyid in retired):
            raise StartupError(
                "RETIRED_KEYIDS must be keyids of A-Z a-z 0-9 _ -, separated by commas, such as app,app2."
            )
        if retired >= app_secrets.keys():
            raise StartupError("RETIRED_KEYIDS names every keyid of APP_SECRET_KEY, so no app could sign a request.")

        allowed = (origin.strip() for origin in read("ALLOWED_ORIGINS").split(","))
        try:
            allowed_origins = frozenset(origins.checked(origin) for origin in allowed if origin)
        except origins.NoOrigin as error:
            raise StartupError(f"ALLOWED_ORIGINS: {error}.") from None
        # Trust no header unless all requests come through a proxy that sets it. On Fly, they do.
        address_header = read("CLIENT_ADDRESS_HEADER", "Fly-Client-IP" if "FLY_APP_NAME" in environ else "") or None
        if address_header and not re.fullmatch(r"[A-Za-z0-9-]{1,64}", address_header):
            raise StartupError("CLIENT_ADDRESS_HEADER must be the name of a header, such as X-Real-IP.")
        if address_header and address_header.lower() == "forwarded":  # RFC 7239: it has more than addresses
            raise StartupError("CLIENT_ADDRESS_HEADER must be a header that has addresses alone, such as X-Real-IP.")
        if not re.fullmatch(r"[A-Za-z0-9._-]{0,64}", read("REVISION")):
            raise StartupError("REVISION must be the id of a commit: at most 64 characters of A-Z a-z 0-9 . _ -.")
        if not re.fullmatch(r"[1-9][0-9]{0,2}(,[0-9]{1,3}){3}", read("KEEP_VERSIONS")):
            raise StartupError("KEEP_VERSIONS must be four numbers such as 4,3,2,2. The first must be at least 1.")
        credentials = read("AWS_ACCESS_KEY_ID"), read("AWS_SECRET_ACCESS_KEY")
        try:
            bucket = (
                Address(read("BUCKET_NAME"), read("AWS_ENDPOINT_URL_S3"), read("AWS_REGION"), *credentials)
                if read("BUCKET_NAME")
                else None
            )
        except ValueError as error:
            raise StartupError(f"{error}.") from None
        return cls(
            app_secrets=app_secrets,
            retired_keyids=retired,
            admin_key=strong("ADMIN_SECRET_KEY", environ["ADMIN_SECRET_KEY"]) if read("ADMIN_SECRET_KEY") else None,
            allowed_origins=allowed_origins,
            database_path=Path(read("DATABASE_PATH", "data/backup.db")),
            database_url=read("DATABASE_URL") or None,
            database_bytes=whole_number("DATABASE_BYTES", str(10**10), least=10**7, most=10**15),
            is_new_store=bool(whole_number("NEW_STORE", least=0, most=1)) if read("NEW_STORE") else None,
            host=read("HOST", "127.0.0.1"),
            port=whole_number("PORT", "8080", least=0, most=65535),
            metrics_port=whole_number("METRICS_PORT", least=0, most=65535) if read("METRICS_PORT") else None,
            backups_per_hour=whole_number("BACKUPS_PER_HOUR"),
            backups_per_day=whole_number("BACKUPS_PER_DAY"),
            key_changes_per_hour=whole_number("KEY_CHANGES_PER_HOUR"),
            key_changes_per_day=whole_number("KEY_CHANGES_PER_DAY"),
            registrations_per_hour=whole_number("REGISTRATIONS_PER_HOUR"),
            failed_credentials_per_5_minutes=whole_number("FAILED_CREDENTIALS_PER_5_MINUTES"),
            failed_credentials_per_account_per_day=whole_number("FAILED_CREDENTIALS_PER_ACCOUNT_PER_DAY"),
            keep_versions=tuple(int(number) for number in read("KEEP_VERSIONS").split(",")),
            account_bytes=whole_number("ACCOUNT_BYTES", most=999_999_999),
            address_header=address_header,
            bucket=bucket,
            bucket_takeover=bool(whole_number("BUCKET_TAKEOVER", "0", least=0, most=1)),
            revision=read("REVISION") or None,
            debug=bool(whole_number("DEBUG", "0", least=0, most=1)),
        )


# --- Problems (RFC 9457) ----------------------------------------------------------------------------------------------

PROBLEM_TYPE = "https://dailyreps-backup-server.fly.dev/#"

PROBLEMS = {  # code: (status, title); each row has an example in openapi.yaml
    "malformed_request": (400, "The request is malformed"),
    "digest_mismatch": (400, "The digest does not match the body"),
    "signature_missing": (401, "The signature is missing"),
    "signature_invalid": (401, "The signature is invalid"),
    "signature_expired": (401, "The signature has expired"),
    "credentials_invalid": (401, "The credentials are invalid"),
    "admin_key_invalid": (401, "The admin key is invalid"),
    "app_outdated": (403, "This version of the app is outdated"),
    "not_found": (404, "There is nothing at this path"),
    "no_backup": (404, "There is no backup yet"),
    "no_such_version": (404, "There is no such version"),
    "method_not_allowed": (405, "The method is not allowed"),
    "request_timeout": (408, "The request took too long"),
    "username_taken": (409, "The username is taken"),
    "recently_deleted": (409, "The account was deleted a moment ago"),
    "version_conflict": (409, "The backup was made from another version"),
    "payload_too_large": (413, "The payload is too large"),
    "unsupported_media_type": (415, "The media type is not supported"),
    "validation_failed": (422, "The body does not fit the schema"),
    "rate_limited": (429, "Too many requests"),
    "headers_too_large": (431, "The request headers are too large"),
    "internal_error": (500, "The server failed"),
    "account_damaged": (500, "This account is damaged"),
    "backup_damaged": (500, "This version is damaged"),
    "unavailable": (503, "The server cannot serve now"),
    "storage_full": (507, "The storage is full"),
}


@dataclass(frozen=True)
class Response:
    """An answer: status, body and headers."""

    status: int
    body: bytes = b""
    headers: Mapping[str, str] = field(default_factory=dict)
    code: str | None = None  # of the problem, for the log

    def with_headers(self, headers: Mapping[str, str]) -> Response:
        """Return a copy of this answer that also has these headers."""
        return replace(self, headers={**self.headers, **headers})


class Problem(Exception):
    """An error answer (RFC 9457). Any code that handles a request may raise it.

    `code` is a key of PROBLEMS. `detail` says what to do next. It never repeats any part of the request. `retry_after`
    is in seconds; 0 means that the answer has no Retry-After. `members` are the extension members (RFC 9457 section
    3.2).
    """

    def __init__(
        self, code: str, detail: str, retry_after: int = 0, headers: Mapping[str, str] | None = None, **members: Any
    ) -> None:
        super().__init__(code)
        self.code, self.detail, self.retry_after, self.members = code, detail, retry_after, members
        self.headers = dict(headers or {})

    @property
    def response(self) -> Response:
        """The answer to send. Every error answer is built here."""
        status, title = PROBLEMS[self.code]
        value = {
            "type": PROBLEM_TYPE + self.code,
            "title": title,
            "status": status,
            "detail": self.detail,
            "code": self.code,
        }
        headers = {"Content-Type": "application/problem+json"}
        if status == 401:  # RFC 9110 section 15.5.2 requires a challenge
            headers["WWW-Authenticate"] = "Bearer" if self.code == "admin_key_invalid" else 'Basic realm="backup"'
        if self.retry_after:
            headers["Retry-After"] = str(self.retry_after)
        return Response(status, i_json.encode(value | self.members), headers | self.headers, self.code)


def problem_of(error: Exception) -> Problem:
    """Return the problem to answer with if a request raised this error. Log the error if it is damage or unexpected."""
    match error:
        case Problem():
            return error
        case StorageFull():
            return Problem("storage_full", "There is no space left for this. Nothing was changed: repeat later.")
        case StorageUnavailable():
            detail = f"The database {error.what}: repeat after Retry-After seconds."
            return Problem("unavailable", detail, error.retry_after)
    log.error(error)
    if isinstance(error, Damaged):
        detail = "What is stored of this account has changed by itself: only the operator can help."
        return Problem("account_damaged", detail)
    return Problem("internal_error", INTERNAL_ERROR)


INTERNAL_ERROR = "The server failed and has logged the failure under this X-Request-Id: repeat later."


# The answers to requests that cannot be read, by the status that the HTTP server chose.
REFUSALS = {
    400: ("malformed_request", "The request line, the headers, or the framing of the body is malformed."),
    408: (
        "request_timeout",
        "The request took more than {requestBodySeconds} seconds, or none of it arrived for a minute. "
        "Nothing was changed: repeat it.",
    ),
    413: ("payload_too_large", "A request body may have {requestBodyBytes} bytes."),
    431: ("headers_too_large", "The request line and the headers together may have {requestHeaderBytes} bytes."),
    500: ("internal_error", INTERNAL_ERROR),
    501: ("malformed_request", "The only transfer coding is chunked."),
    503: ("unavailable", "The server has too much to do: repeat after Retry-After seconds."),
}
BUSY_SECONDS = 2  # the Retry-After of the last one


def refusal(status: int, limits: Mapping[str, int]) -> Problem:
    """Return the problem for a status of REFUSALS. `limits` are those of the spec."""
    code, detail = REFUSALS[status]
    return Problem(code, detail.format(**limits), BUSY_SECONDS if status == 503 else 0)


# --- Spec -------------------------------------------------------------------------------------------------------------

LIMITS = (
    "requestHeaderBytes",
    "requestBodyBytes",
    "requestBodySeconds",
    "signatureSkewSeconds",
    "deletedUserSeconds",
    "knownAddressDays",
    "knownAddresses",
    "newAddressAttempts",
)
METHODS = ("get", "put", "post", "delete", "options", "head", "patch", "trace")


class Operation:
    """One operation of the document, with its references resolved, ready to serve."""

    def __init__(self, method: str, path: str, item: Mapping[str, Any]) -> None:
        """Compile the operation. Raise StartupError if it needs something that the server does not have."""
        self.id, self.method, self.path = item["operationId"], method.upper(), path
        if self.id not in HANDLERS:
            raise StartupError(f"openapi.yaml has an operation that the server does not have: {self.id}.")
        self.handler = HANDLERS[self.id]
        if len(item["security"]) > 1:
            raise StartupError(f"{self.id} has alternatives in its security, which the server does not know.")
        schemes = {scheme for requirement in item["security"] for scheme in requirement}
        if unknown := schemes - set(PROOFS):
            raise StartupError(f"{self.id} has security schemes that the server does not know: {sorted(unknown)}.")
        self.proofs = [proof for scheme, proof in PROOFS.items() if scheme in schemes]
        self.body = Body(*item["requestBody"]["content"].items()) if "requestBody" in item else None
        self.has_account_limits = "RateLimit-Policy" in item["responses"].get("429", {}).get("headers", {})
        if self.has_account_limits != (self.id in ACCOUNT_LIMITS):
            raise StartupError(f"{self.id} has limits in only one of openapi.yaml and ACCOUNT_LIMITS.")
        given = {proof.gives for proof in self.proofs} | ({"value"} if self.body else set())
        self.arguments = set(inspect.signature(self.handler).parameters) - {"server", "request"}
        if missing := self.arguments - given:
            raise StartupError(f"openapi.yaml does not give {self.id} what its handler needs: {sorted(missing)}.")


class Body:
    """The request body of an operation: its one media type and its schema."""

    def __init__(self, content: tuple[str, Mapping[str, Any]]) -> None:
        self.media_type = content[0]
        self._validator = ObjectValidator(content[1]["schema"])

    def read(self, text: bytes) -> dict[str, Any]:
        """Return the members of a body. Members in base64 are decoded to bytes.

        Raise Problem malformed_request or validation_failed.
        """
        try:
            members, errors = self._validator.read(i_json.decode(text))
        except i_json.NotIJson as error:
            raise Problem("malformed_request", f"The body is not I-JSON (RFC 7493): {error}.") from None
        if errors:
            raise validation_failed(errors)
        return members


class Spec:
    """What the server takes from openapi.yaml, loaded and compiled once."""

    def __init__(self, path: Path) -> None:
        """Load the document at `path`. Raise StartupError if it cannot be read, or if it does not fit the server.

        It does not fit if it has an operationId without a handler, a security scheme or a schema keyword that the
        server does not know, or if it lacks an operation that the server has.
        """
        try:
            self.yaml = path.read_bytes()
            document = yaml.load(self.yaml, YamlLoader)  # noqa: S506 - both are safe
            self.json = i_json.encode(document)
            self.version: str = document["info"]["version"]
            self.limits: Mapping[str, int] = {name: document["x-limits"][name] for name in LIMITS}
            self.configurable_limits: Mapping[str, Any] = document["x-configurable-limits"]
            self.max_decoded_bytes: int = document["components"]["schemas"]["BackupData"]["x-maxDecodedBytes"]
            resolved = resolve(document, document)
            for schema in resolved["components"]["schemas"].values():
                check_keywords(schema)
            self.operations = [
                Operation(method, template, item[method])
                for template, item in resolved["paths"].items()
                for method in METHODS
                if method in item
            ]
        except UnknownKeyword as error:
            raise StartupError(f"{path.name} has a schema keyword that the server does not know: {error}.") from None
        except (OSError, yaml.YAMLError, LookupError, TypeError, RecursionError, jsonschema.SchemaError) as error:
            raise StartupError(f"{path.name} cannot be used: {type(error).__name__}: {error}") from error
        if unused := set(HANDLERS) - {operation.id for operation in self.operations}:
            raise StartupError(f"{path.name} lacks operations that the server has: {', '.join(sorted(unused))}.")


def resolve(node: Any, document: Any) -> Any:
    """Return `node` with each local $ref replaced by its target. Raise KeyError if a target does not exist."""
    if isinstance(node, dict):
        if isinstance(node.get("$ref"), str):
            if beside := node.keys() - {"$ref", "summary", "description"}:
                raise KeyError(f"{sorted(beside)} beside $ref, which the server does not know")
            target = functools.reduce(lambda at, name: at[name], node["$ref"].removeprefix("#/").split("/"), document)
            return resolve(target, document)
        return {name: resolve(value, document) for name, value in node.items()}
    return [resolve(value, document) for value in node] if isinstance(node, list) else node


def validation_failed(errors: Errors) -> Problem:
    detail = "The body does not fit the schema: errors says where and why."
    return Problem("validation_failed", detail, errors=errors)


# --- Requests and proofs ----------------------------------------------------------------------------------------------

# The one profile of RFC 9421 that is accepted. Its three parameters may have any order.
LABEL = "app"
COMPONENTS = '("@method" "@path" "authorization" "content-digest")'
PARAMETERS = rf';created=(0|[1-9][0-9]{{0,14}})|;keyid="({KEYID.pattern})"|;alg="(hmac-sha256)"'
SIGNATURE_INPUT = re.compile(rf"{LABEL}=({re.escape(COMPONENTS)}(?:{PARAMETERS}){{3}})")
BASE64_OF_32_BYTES = "[A-Za-z0-9+/]{42}[AEIMQUYcgkosw048]="  # the last two bits are unused, and zero
SIGNATURE = re.compile(f"{LABEL}=:{BASE64_OF_32_BYTES}:")
CONTENT_DIGEST = re.compile(f"sha-256=:{BASE64_OF_32_BYTES}:")
SIGNATURE_FAULTS = {  # which rule was missed, and what `detail` says of it
    "twice": "Send Authorization, Content-Digest, Signature-Input and Signature once each.",
    "label": "The label of Signature-Input and of Signature must be app, and no other signature may be there.",
    "components": 'The components must be "@method", "@path", "authorization" and "content-digest", in this order.',
    "parameters": "The parameters must be created, keyid and alg, once each, and no other.",
    "spelling": "Signature-Input, Signature or Content-Digest is not spelled as in openapi.yaml.",
    "keyid": "The keyid is unknown.",
    "mac": "The MAC is not that of this request under the named key.",
}
# What any signature looks like, whatever its profile: to tell which rule was missed.
ANY_SIGNATURE_INPUT = re.compile(r'([^=;"]*)=(\([^()]*\))((?:;[^;="]+(?:="[^"]*"|=[^;"]*)?)*)')
ANY_PARAMETER = re.compile(r';([^;="]+)(?:="[^"]*"|=[^;"]*)?')
ANY_SIGNATURE = re.compile(r"([^=]*)=:[A-Za-z0-9+/]{43}=:")
SIGNED_HEADERS = {"authorization", "content-digest", "signature", "signature-input"}
BASIC = re.compile(r"basic +([A-Za-z0-9+/=]+)", re.IGNORECASE)
BEARER = re.compile(r"bearer +(.+)", re.IGNORECASE)
USER_ID_AND_STORAGE_KEY = re.compile(rb"([0-9a-f]{64}):([0-9a-f]{64})")

READ_HEADERS = {  # the headers that the server reads, and the name that WSGI has for each
    "Authorization": "HTTP_AUTHORIZATION",
    "Content-Digest": "HTTP_CONTENT_DIGEST",
    "Content-Encoding": "HTTP_CONTENT_ENCODING",
    "Content-Type": "CONTENT_TYPE",
    "If-None-Match": "HTTP_IF_NONE_MATCH",
    "Signature": "HTTP_SIGNATURE",
    "Signature-Input": "HTTP_SIGNATURE_INPUT",
}


@dataclass(frozen=True)
class Request:
    """A request to an operation, as it arrived. No part of it is proven yet."""

    operation: Operation
    method: str
    path: str  # as sent, still percent-encoded
    has_query: bool
    address: str  # the client's, in the form that the limits count by (see client_address)
    headers: Mapping[str, str | None] = field(repr=False)  # those of READ_HEADERS
    parameters: Mapping[str, str]  # the values of the path's parameters
    arrival: Arrival
    body_bytes: int  # by Content-Length; of a chunked body, how many have arrived
    body_stream: IO[bytes] = field(repr=False)

    def header(self, name: str) -> str | None:
        """Return the value of one of READ_HEADERS, or None if it was not sent.

        If it was sent twice, the values are joined by a comma (RFC 9110 section 5.3).
        """
        return self.headers[name]


@dataclass(frozen=True)
class Credentials:
    """The user that a request names, and the digest of the storage key that it carries."""

    user_id: str = field(repr=False)
    key_sha256: str = field(repr=False)

    def open(self, record: Record | None) -> Account | None:
        """Return the account if it exists and has this storage key, else None. Compare in constant time."""
        expected = record.key_sha256 if isinstance(record, Account) else "none" * 16
        is_right = hmac.compare_digest(expected, self.key_sha256)
        return record if is_right and isinstance(record, Account) else None


@dataclass(frozen=True)
class User(Credentials):
    """Credentials that were right, the account at the time of the check, and the address that they came from."""

    account: Account = field(repr=False)
    address: str

    def again(self, server: Server, record: Record | None) -> Account:
        """Check the credentials again, against a newer record. Return the account as it is now.

        Raise Problem credentials_invalid if it was deleted, or its key changed, since the request was proven. Then it
        is a failure like any other.
        """
        if account := self.open(record):
            return account
        count_failure(server, self.user_id, self.address)
        raise credentials_invalid()


def check_signature(server: Server, request: Request) -> str:
    """Prove that a request comes from the app (RFC 9421). Return the signature.

    Whether the body is the signed one is left to `receive`. Raise Problem malformed_request (if there is a query
    string), signature_missing, signature_invalid, app_outdated or signature_expired.
    """
    if request.has_query:
        raise Problem("malformed_request", "A signed operation takes no query string.")
    authorization, digest = request.header("Authorization"), request.header("Content-Digest")
    signature_input, signature = request.header("Signature-Input"), request.header("Signature")
    if authorization is None or digest is None or signature_input is None or signature is None:
        raise Problem("signature_missing", "Send Authorization, Content-Digest, Signature-Input and Signature.")
    if request.arrival.repeated & SIGNED_HEADERS:
        raise signature_invalid("twice")
    created, keyid, signature_params = read_profile(digest, signature_input, signature)
    if keyid in server.settings.retired_keyids:
        raise Problem("app_outdated", "This version of the app may no longer use this server: update the app.")

    secret = server.settings.app_secrets.get(keyid)
    base = (  # RFC 9421 section 2.5
        f'"@method": {request.method}\n"@path": {request.path}\n'
        f'"authorization": {authorization}\n"content-digest": {digest}\n"@signature-params": {signature_params}'
    )
    mac = hmac.digest(secret or b"none", base.encode("latin-1"), "sha256")
    is_right = hmac.compare_digest(f"{LABEL}=:{base64.b64encode(mac).decode()}:", signature)
    if secret is None:
        raise signature_invalid("keyid")
    if not is_right:
        raise signature_invalid("mac")

    skew = server.spec.limits["signatureSkewSeconds"]
    if abs(request.arrival.at // 1000 - created) > skew:
        detail = f"created is more than {skew} seconds from the server's clock: correct by serverTime and sign again."
        raise Problem("signature_expired", detail, serverTime=clock.now() // 1000)
    return signature


def read_profile(digest: str, signature_input: str, signature: str) -> tuple[int, str, str]:
    """Return created, keyid and the signature parameters as they were sent. Raise Problem signature_invalid."""
    profile = SIGNATURE_INPUT.fullmatch(signature_input)
    # Of three parameters, each must be there. So none is there twice.
    if not (profile and all(profile.groups()) and SIGNATURE.fullmatch(signature) and CONTENT_DIGEST.fullmatch(digest)):
        raise signature_invalid(profile_fault(signature_input, signature))
    return int(profile[2]), profile[3], profile[1]


def profile_fault(signature_input: str, signature: str) -> str:
    """Return the first rule, of SIGNATURE_FAULTS, that a signature of another profile misses."""
    for value in (signature_input, signature):
        if "," in re.sub('"[^"]*"', "", value):  # a dictionary with several signatures (RFC 9421 section 4.1)
            return "label"
    if not (parts := ANY_SIGNATURE_INPUT.fullmatch(signature_input)) or not (
        sent := ANY_SIGNATURE.fullmatch(signature)
    ):
        return "spelling"
    label, components, parameters = parts.groups()
    if {label, sent[1]} != {LABEL}:
        return "label"
    if components.strip("()").split() != COMPONENTS.strip("()").split():
        return "components"
    names = sorted(name.strip() for name in ANY_PARAMETER.findall(parameters))
    return "spelling" if names == ["alg", "created", "keyid"] else "parameters"


def signature_invalid(fault: str) -> Problem:
    return Problem("signature_invalid", SIGNATURE_FAULTS[fault])


def check_credentials(server: Server, request: Request) -> Credentials:
    """Prove that a request comes from its user (RFC 7617).

    Return the User. For a registration, which has no account yet, return the Credentials. Raise Problem
    credentials_invalid, or rate_limited after too many failures.
    """
    credentials = credentials_of(request.header("Authorization") or "")
    user_id = credentials.user_id if credentials else None
    if wait := server.guessing.wait(user_id, request.address, may_be_known(server, request)):
        raise too_many(*wait)
    if credentials and request.operation.id == "registerUser":
        return credentials
    if credentials and (account := credentials.open(server.store.find(credentials.user_id))):
        remember_address(server, request, credentials)
        return User(credentials.user_id, credentials.key_sha256, account, request.address)
    count_failure(server, user_id, request.address)
    raise credentials_invalid()


def may_be_known(server: Server, request: Request) -> bool:
    """Return whether a known address has its advantage. Past the limit on registrations, it would tell who is known."""
    return request.operation.id != "registerUser" or not server.registrations.wait(request.address)


def remember_address(server: Server, request: Request, credentials: Credentials) -> None:
    """Note that right credentials came from the request's address."""
    is_new = server.guessing.remember(credentials.user_id, request.address)
    # If the key was changed since it was compared, all addresses were forgotten. Then forget this one, too.
    if is_new and not credentials.open(server.store.find(credentials.user_id)):
        server.guessing.forget(credentials.user_id, request.address)


def credentials_of(authorization: str) -> Credentials | None:
    """Return the credentials in an Authorization header, or None if it does not have the form of the contract."""
    if not (basic := BASIC.fullmatch(authorization)):
        return None
    try:
        pair = USER_ID_AND_STORAGE_KEY.fullmatch(base64.b64decode(basic[1], validate=True))
    except ValueError:
        return None
    return Credentials(pair[1].decode(), sha256(pair[2])) if pair else None


def count_failure(server: Server, user_id: str | None, address: str) -> None:
    """Count wrong credentials for this userId. It is None if they are malformed.

    Raise Problem rate_limited if other requests have just reached a limit.
    """
    if wait := server.guessing.count(user_id, address):
        raise too_many(*wait)


def credentials_invalid() -> Problem:
    return Problem("credentials_invalid", "No account has this userId and storageKey.")


def too_many(seconds: int, limit: Limit) -> Problem:
    return Problem("rate_limited", f"Too many {limit.name}: wait for Retry-After seconds.", seconds)


def check_admin_key(server: Server, request: Request) -> None:
    """Prove that a request comes from the operator (RFC 6750). Raise Problem admin_key_invalid."""
    bearer = BEARER.fullmatch(request.header("Authorization") or "")
    expected = (server.settings.admin_key or "").encode()
    if not bearer or not hmac.compare_digest(bearer[1].encode("latin-1"), expected):
        raise Problem("admin_key_invalid", "Send the admin key as a Bearer token.")


class Proof(NamedTuple):
    """A security scheme: the function that checks it, and the name of the handler's argument that gets its result."""

    check: Callable[[Server, Request], Any]
    gives: str


PROOFS = {  # in the order in which they are checked
    "appSignature": Proof(check_signature, "signature"),
    "userCredentials": Proof(check_credentials, "user"),
    "adminKey": Proof(check_admin_key, "operator"),
}


def read_body(server: Server, request: Request) -> dict[str, Any]:
    """Return the members of a request's body. If the operation takes no body, there are none.

    Raise Problem. If several apply, the order is that of openapi.yaml: what the head tells comes first.
    """
    check_content(request)
    body = receive(server, request)
    return request.operation.body.read(body) if request.operation.body else {}


def check_content(request: Request) -> None:
    """Check what the head tells about the body. Raise Problem malformed_request or unsupported_media_type."""
    body = request.operation.body
    if body is None:
        if request.body_bytes:
            raise Problem("malformed_request", "This operation takes no body.")
    elif (
        not is_media_type(request.header("Content-Type") or "", body.media_type)
        or (request.header("Content-Encoding") or "identity").lower() != "identity"
    ):
        raise Problem("unsupported_media_type", f"Send Content-Type {body.media_type} and no Content-Encoding.")


def is_media_type(content_type: str, media_type: str) -> bool:
    """Return whether Content-Type names a media type, alone or as UTF-8 (RFC 9110 section 8.3.1).

    A parameter may be empty (section 5.6.6).
    """
    first, *parameters = (part.strip(" \t").lower() for part in content_type.split(";"))
    named = [parameter for parameter in parameters if parameter]
    return first == media_type and named in ([], ["charset=utf-8"], ['charset="utf-8"'])


def receive(server: Server, request: Request) -> bytes:
    """Return the bytes of the body. Raise Problem payload_too_large, malformed_request, request_timeout or, if the
    request is signed and the body is not the signed one (RFC 9530), digest_mismatch.
    """
    if request.arrival.body_fault:
        raise refusal(request.arrival.body_fault, server.spec.limits)
    server.check_time(request)
    most = server.spec.limits["requestBodyBytes"] if request.operation.body else 0
    body = request.body_stream.read(most)
    if PROOFS["appSignature"] in request.operation.proofs:
        digest = f"sha-256=:{base64.b64encode(hashlib.sha256(body).digest()).decode()}:"
        if request.header("Content-Digest") != digest:
            raise Problem("digest_mismatch", "Content-Digest is not the SHA-256 of the body that arrived.")
    return body


def sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


# --- Operations -------------------------------------------------------------------------------------------------------


# Which limits on an account an operation has: the policy's name, the setting with its quota, and its window in seconds.
# What counts is an accepted request to the same operation.
ACCOUNT_LIMITS = {
    "storeBackup": (("hour", "backups_per_hour", 3600), ("day", "backups_per_day", 86400)),
    "changeStorageKey": (("key-hour", "key_changes_per_hour", 3600), ("key-day", "key_changes_per_day", 86400)),
}


class Server:
    """What the operations work with: settings, spec, store and its health, and limits."""

    def __init__(self, settings: Settings, spec: Spec, store: Store, health: Watch) -> None:
        self.settings, self.spec, self.store, self.health = settings, spec, store, health
        # What runs: for the log and for the statistics.
        self.identity: dict[str, Any] = {"version": spec.version}
        if settings.revision:
            self.identity["revision"] = settings.revision
        self.account_limits = {
            operation_id: tuple(Limit(name, getattr(settings, quota), seconds) for name, quota, seconds in limits)
            for operation_id, limits in ACCOUNT_LIMITS.items()
        }
        self.registrations = AddressLimit(
            Limit("registrations from this address", settings.registrations_per_hour, 3600),
            store.tables("registrations"),
        )
        self.guessing = Guessing(
            settings.failed_credentials_per_5_minutes,
            settings.failed_credentials_per_account_per_day,
            spec.limits["newAddressAttempts"],
            spec.limits["knownAddressDays"],
            spec.limits["knownAddresses"],
            store.tables("guessing"),
        )
        # When a request arrives, its signature may be dated ahead. It acts until the body had its time.
        # Its last second counts as well.
        life = 2 * spec.limits["signatureSkewSeconds"] + spec.limits["requestBodySeconds"] + 1
        self.refused = RefusedUploads(life, store.tables("refused"))

    def check_time(self, request: Request) -> None:
        """Raise Problem request_timeout if more time has passed since the request's head than a request may take.

        A handler calls this right before it changes an account that it holds. So nothing happens later than this
        allows, and no signature acts later.
        """
        if clock.monotonic() - request.arrival.started > self.spec.limits["requestBodySeconds"] * 1000:
            raise refusal(408, self.spec.limits)

    def rate_limit(self, operation_id: str, times: Sequence[int], moment: int) -> dict[str, str]:
        """Return the header RateLimit of an operation for an account.

        `times` has the sorted times of what counts. `moment` is now. Both are in Unix milliseconds. See
        draft-ietf-httpapi-ratelimit-headers-10 section 4.
        """
        items = []
        for limit in self.account_limits[operation_id]:
            counted = limit.counted(times, moment)
            until = math.ceil((counted[0] - moment) / 1000) + limit.seconds if counted else None
            left = max(0, limit.quota - len(counted))
            items.append(f'"{limit.name}";r={left}' + (f";t={until}" if counted else ""))
        return {"RateLimit": ", ".join(items)}

    def rate_limit_policy(self, operation_id: str) -> dict[str, str]:
        """Return the header RateLimit-Policy of an operation (section 3 of the same draft)."""
        policies = (f'"{limit.name}";q={limit.quota};w={limit.seconds}' for limit in self.account_limits[operation_id])
        return {"RateLimit-Policy": ", ".join(policies)}


# A handler takes the server, the request and, by name, what it needs: `signature` and `user`, which the proofs return,
# and `value`, the members of the body. At boot, Operation checks that the document provides all of them.
Handler = Callable[..., Response]
HANDLERS: dict[str, Handler] = {}


def operation(operation_id: str) -> Callable[[Handler], Handler]:
    """Register the handler of an operation of the spec."""

    def register(handler: Handler) -> Handler:
        HANDLERS[operation_id] = handler
        return handler

    return register


def answer(status: int, value: Any, headers: Mapping[str, str] | None = None) -> Response:
    """Return an answer in JSON. If `value` is bytes, it is JSON already and is sent as it is."""
    body = value if isinstance(value, bytes) else i_json.encode(value)
    return Response(status, body, {"Content-Type": "application/json", **(headers or {})})


@operation("registerUser")
def register_user(server: Server, request: Request, user: Credentials) -> Response:
    """Create an account. A retry gets the account that exists."""
    with server.store.account(user.user_id) as held:
        moment = clock.now()
        if account := user.open(held.record):
            server.guessing.remember(user.user_id, request.address)
            return answer(200, {"createdAt": rfc3339(account.created_at)})
        if wait := server.registrations.wait(request.address):
            raise refused_registration(server, request, user, wait)
        if isinstance(held.record, Account):
            count_failure(server, user.user_id, request.address)
            detail = "This userId is registered with another storageKey: use its password, or another username."
            raise Problem("username_taken", detail)
        if isinstance(held.record, Deleted):
            deleted_at = held.record.deleted_at
            if deleted_at > moment:  # the clock ran ahead then: nobody has to wait until it is that late
                held.delete(deleted_at := moment)
            free_at = deleted_at + server.spec.limits["deletedUserSeconds"] * 1000
            if free_at > moment:
                detail = "This userId can be registered again after Retry-After seconds."
                raise Problem("recently_deleted", detail, math.ceil((free_at - moment) / 1000))
        if wait := server.registrations.count(request.address):
            raise refused_registration(server, request, user, wait)
        try:
            server.check_time(request)
            held.create(Account(created_at=moment, key_sha256=user.key_sha256))
        except Exception:
            # After StorageUnavailable, the account may exist. It is given back all the same: a client has to repeat
            # while the disk stalls, and must not use up its quota. Accounts that come into being like this are few,
            # because the others wait for the turn.
            server.registrations.give_back(request.address)
            raise
        server.guessing.remember(user.user_id, request.address)
    return answer(201, {"createdAt": rfc3339(moment)})


def refused_registration(server: Server, request: Request, user: Credentials, wait: int) -> Problem:
    """Return the answer past the limit on registrations. It does not tell whether the userId is taken or free.

    It counts as a failed credential. Therefore, the failures may have to be waited for, too.
    """
    limit = server.registrations.limit
    # If other requests have just reached a limit on failures, this one counts nothing, like those that come after it.
    if full := server.guessing.count(user.user_id, request.address, may_be_known=False):
        return too_many(*full)
    failures = server.guessing.wait(user.user_id, request.address, may_be_known=False)
    return too_many(max(wait, failures.seconds if failures else 0), limit)


@operation("storeBackup")
def store_backup(server: Server, request: Request, signature: str, user: User, value: Mapping[str, Any]) -> Response:
    """Store a version. A retry of the latest version gets its receipt again."""
    return store_version(server, request, signature, user, value)


@operation("changeStorageKey")
def change_storage_key(
    server: Server, request: Request, signature: str, user: User, value: Mapping[str, Any]
) -> Response:
    """Store a version and replace the storage key: both, or neither."""
    new_key_sha256 = sha256(value["storageKey"].encode())
    if new_key_sha256 == user.key_sha256:
        raise validation_failed([{"pointer": "#/storageKey", "detail": "is the key that is in force"}])
    return store_version(server, request, signature, user, value, new_key_sha256)


KEPT_SIGNATURES = 20  # keep these even if they are over a day old: a clock that ran ahead may be set back


def store_version(
    server: Server,
    request: Request,
    signature: str,
    user: User,
    value: Mapping[str, Any],
    new_key_sha256: str | None = None,
) -> Response:
    """Store the data as a new version, and return its receipt with 201. A retry of the latest version gets 200.

    If `new_key_sha256` is given, replace the storage key in the same step: both happen, or neither. Then the receipt
    comes with 200. Raise Problem. If several apply, the order is that of openapi.yaml.
    """
    data = value["data"]
    if len(data) > server.spec.max_decoded_bytes:
        detail = f"A backup may have {server.spec.max_decoded_bytes} bytes when decoded."
        raise Problem("payload_too_large", detail)
    with server.store.account(user.user_id) as held:
        account = user.again(server, held.record)
        try:
            return store_next(server, request, signature, user, held, account, value, new_key_sha256)
        except (Problem, StorageFull) as error:
            if problem_of(error).code in REFUSALS_OF_UPLOADS:
                server.refused.add(user.user_id, signature)
            raise


# After these, a client may believe that the upload never happens. So its signature must not store anything later.
REFUSALS_OF_UPLOADS = {"version_conflict", "rate_limited", "storage_full"}


def store_next(
    server: Server,
    request: Request,
    signature: str,
    user: User,
    held: HeldAccount,
    account: Account,
    value: Mapping[str, Any],
    new_key_sha256: str | None,
) -> Response:
    """Store the next version of an account that is held. The arguments and problems are those of `store_version`."""
    data, changes_key, moment = value["data"], new_key_sha256 is not None, clock.now()
    latest, limits, digest = account.latest, server.account_limits[request.operation.id], sha256(data)
    times = sorted(upload.moment for upload in account.uploads if upload.changes_key == changes_key)
    rate_limit = functools.partial(server.rate_limit, request.operation.id)
    if latest and latest.sha256 == digest and not changes_key:
        held.mend(latest, data)
        server.refused.add(user.user_id, signature)  # the next upload of the same bytes may be no retry
        return answer(200, receipt(latest), rate_limit(times, moment))
    # A signature is good for one version. A replay must have no effect, even if its base is the latest again.
    is_spent = any(upload.signature == signature for upload in account.uploads)
    if value.get("baseSha256") != (latest and latest.sha256) or is_spent or server.refused.has(user.user_id, signature):
        detail = "The base is not the latest version: fetch it, merge, store again with its sha256 as baseSha256."
        raise Problem("version_conflict", detail, currentVersion=latest.number if latest else 0)
    if wait := wait_seconds(limits, times, moment):
        what = "changes of the storage key" if changes_key else "new versions"
        detail = f"Too many {what} of this account: wait for Retry-After seconds."
        raise Problem("rate_limited", detail, wait, headers=rate_limit(times, moment))
    server.check_time(request)

    version = Version(
        number=latest.number + 1 if latest else 1,
        stored_at=moment,
        size=len(data),
        sha256=digest,
        key_version=account.key_version + changes_key,
    )
    upload = Upload(moment, signature, changes_key)
    kept = kept_versions((*account.versions, version), server.settings.keep_versions)
    changed = replace(
        account,
        key_sha256=new_key_sha256 or account.key_sha256,
        key_version=version.key_version,
        versions=space.within(kept, server.settings.account_bytes),
        upload_days=space.upload_days_at(account, moment),
        uploads=(*uploads_that_matter(account, moment - limits[-1].seconds * 1000), upload),
    )
    changed = space.fitted(server.store.volume(), account, changed)
    # A thief may have used the old key. Forget the addresses as the key changes, even if that is after this request.
    forget = functools.partial(server.guessing.forget, user.user_id) if changes_key else nothing
    try:
        held.append(changed, data, on_commit=forget, gives_back=changed.allotment > 0)
    except StorageUnavailable:  # the change may have happened
        forget()
        raise
    headers = rate_limit(sorted([*times, moment]), moment)
    if changes_key:
        server.guessing.remember(user.user_id, request.address)
        return answer(200, receipt(version), headers)
    return answer(201, receipt(version), headers | {"Location": f"{request.path}/versions/{version.number}"})


def uploads_that_matter(account: Account, day_ago: int) -> tuple[Upload, ...]:
    """Return the uploads to keep on record.

    These are the uploads after `day_ago` (Unix milliseconds), which the limits count, and the last few, whose
    signatures stay spent.
    """
    older, last = account.uploads[:-KEPT_SIGNATURES], account.uploads[-KEPT_SIGNATURES:]
    return tuple(upload for upload in older if upload.moment > day_ago) + last


def kept_versions(versions: tuple[Version, ...], keep: tuple[int, ...]) -> tuple[Version, ...]:
    """Return the versions to keep, oldest first: the last ones, and the newest of each of the last days, weeks, months.

    `keep` has the four numbers. Days, weeks and months are in UTC. They are ordered by the newest version that they
    hold, not by date, so that a clock that once ran ahead does no harm.
    """
    last, *periods = keep
    chosen = set(versions[-last:])
    for count, period in zip(periods, PERIODS, strict=True):
        newest: dict[Any, Version] = {}
        for version in reversed(versions):
            newest.setdefault(period(datetime.fromtimestamp(version.stored_at // 1000, UTC).date()), version)
        chosen.update(list(newest.values())[:count])
    return tuple(version for version in versions if version in chosen)


PERIODS: tuple[Callable[[date], Any], ...] = (
    lambda day: day,
    lambda day: day.isocalendar()[:2],
    lambda day: (day.year, day.month),
)


@operation("fetchBackup")
def fetch_backup(server: Server, request: Request, user: User) -> Response:
    """Return the latest version."""

    def latest(account: Account) -> Version:
        if account.latest is None:
            raise Problem("no_backup", "Store a first backup without baseSha256.")
        return account.latest

    return fetch(server, request, user, latest)


@operation("fetchBackupVersion")
def fetch_backup_version(server: Server, request: Request, user: User) -> Response:
    """Return the version that the path names."""

    def named(account: Account) -> Version:
        for version in account.versions:
            if str(version.number) == request.parameters["version"]:  # compares text: only the canonical form is valid
                return version
        raise Problem("no_such_version", "This version is not kept: list the versions that are.")

    return fetch(server, request, user, named)


def fetch(server: Server, request: Request, user: User, choose: Callable[[Account], Version]) -> Response:
    """Return the version that `choose` picks. Raise Problem backup_damaged, or what `choose` raises."""
    version = choose(user.account)
    while True:
        headers = {"ETag": f'"{version.number}-{version.sha256}"'}
        if matches(request.header("If-None-Match"), headers["ETag"]):
            return Response(304, headers=headers)
        try:
            data = server.store.data(user.user_id, version)
        except DamagedData:
            log(event="backup_damaged")
            detail = "The stored bytes no longer have their sha256: fetch another version from the list."
            raise Problem("backup_damaged", detail) from None
        if data is not None:
            break
        # The version was dropped since the credentials were checked: choose again.
        version = choose(user.again(server, server.store.find(user.user_id)))
    # base64 needs no escaping, so the megabytes of data need not pass through a JSON writer.
    body = b"".join((i_json.encode(receipt(version))[:-1], b',"data":"', pybase64.b64encode(data), b'"}'))
    return answer(200, body, headers)


def matches(if_none_match: str | None, etag: str) -> bool:
    """Return whether If-None-Match names this entity tag, by weak comparison (RFC 9110 sections 13.1.2 and 8.8.3.2)."""
    return if_none_match is not None and (
        if_none_match == "*" or etag in re.findall(r'(?:W/)?("[^"]*")', if_none_match)
    )


def receipt(version: Version) -> dict[str, Any]:
    """Return the receipt of a version, as the contract defines it."""
    return {
        "version": version.number,
        "updatedAt": rfc3339(version.stored_at),
        "size": version.size,
        "sha256": version.sha256,
        "keyVersion": version.key_version,
    }


@operation("listBackupVersions")
def list_backup_versions(server: Server, request: Request, user: User) -> Response:
    """Return the receipts of all kept versions, newest first."""
    return answer(200, {"versions": [receipt(version) for version in reversed(user.account.versions)]})


@operation("deleteUser")
def delete_user(server: Server, request: Request, user: User) -> Response:
    """Delete the account with all its versions."""
    with server.store.account(user.user_id) as held:
        user.again(server, held.record)
        server.check_time(request)
        delete(server, held, user.user_id)
    return Response(204)


def delete(server: Server, held: HeldAccount, user_id: str, by_operator: bool = False) -> None:
    """Delete a held account, and forget its known addresses. Raise StorageUnavailable."""
    forget = functools.partial(server.guessing.forget, user_id)
    try:
        held.delete(clock.now(), on_commit=forget, by_operator=by_operator)
    except StorageUnavailable:  # the change may have happened
        forget()
        raise


def remove(server: Server, listed: operator.Listed) -> str:
    """Delete an account for the operator, as deleteUser does, if it is still as it was listed. Return the outcome."""
    with server.store.account(listed.user_id) as held:
        if not isinstance(held.record, Account):
            return operator.GONE
        latest = held.record.latest.number if held.record.latest else 0
        if (held.record.created_at, latest) != (listed.created_at, listed.version):
            return operator.CHANGED
        delete(server, held, listed.user_id, by_operator=True)
    return operator.REMOVED


@operation("getHealth")
def get_health(server: Server, request: Request) -> Response:
    """Report that the server is healthy, if the store could be read a moment ago.

    The HTTP server answers this at once, on its main thread: it must not touch the disk.
    """
    server.health.check()
    parts = server.store.degraded()
    value = {"status": "degraded" if parts else "ok", "version": server.spec.version}
    return answer(200, value | ({"degraded": parts} if parts else {}))


@operation("getAdminStats")
def get_admin_stats(server: Server, request: Request) -> Response:
    """Return the counts, and what this server is."""
    stats = server.store.stats()
    value = server.identity | {
        "users": stats.users,
        "backups": stats.backups,
        "versions": stats.versions,
        "databaseBytes": stats.database_bytes,
        "freeBytes": stats.free_bytes,
        "damaged": stats.damaged,
    }
    lag = {} if stats.copy_lag_seconds is None else {"copyLagSeconds": round(stats.copy_lag_seconds)}
    return answer(200, value | lag)


@operation("getOpenapiYaml")
def get_openapi_yaml(server: Server, request: Request) -> Response:
    """Return the document that the server runs on, byte for byte."""
    return answer(200, server.spec.yaml, {"Content-Type": "application/yaml"})  # RFC 9512


@operation("getOpenapiJson")
def get_openapi_json(server: Server, request: Request) -> Response:
    """Return the same document as JSON."""
    return answer(200, server.spec.json)


# --- App --------------------------------------------------------------------------------------------------------------

ALLOWED_HEADERS = "Authorization, Content-Digest, Content-Type, If-None-Match, Signature, Signature-Input"
PREFLIGHT = {"Access-Control-Allow-Headers": ALLOWED_HEADERS, "Access-Control-Max-Age": "7200"}
EXPOSED_HEADERS = "ETag, Location, RateLimit, RateLimit-Policy, Retry-After, X-Request-Id"
KNOWN_METHODS = {"GET", "HEAD", "POST", "PUT", "DELETE", "OPTIONS", "PATCH", "TRACE", "CONNECT", "QUERY"}

Environ = dict[str, Any]  # the WSGI environment of a request (PEP 3333)
Answerer = Callable[[Environ, Mapping[str, str]], Response]  # the second argument has the path's parameters


@dataclass(frozen=True)
class Route:
    """A path, and the function that answers each of its methods."""

    template: str
    answerers: Mapping[str, Answerer]

    @property
    def allow(self) -> str:
        """The value of the header Allow (RFC 9110 section 10.2.1)."""
        return ", ".join(sorted(self.answerers))


class App:
    """The WSGI callable (PEP 3333). It is the only class that knows Bottle, which finds the route of a path."""

    def __init__(self, server: Server, pages: Mapping[str, Page]) -> None:
        """Build the routes: the operations of the spec, and `pages`, the reference's pages by path."""
        self._server = server
        self._router = bottle.Router()
        self._missing_page = "/" if not pages else None
        for route in [*self._pages(pages), *self._operations()]:
            # Bottle's own rules for methods differ from the contract's, so it only sees paths.
            self._router.add(re.sub(r"\{(\w+)\}", r"<\1:re:[^/]+>", route.template), "ANY", route)

    def _pages(self, pages: Mapping[str, Page]) -> Iterator[Route]:
        for path, page in pages.items():
            yield Route(path, dict.fromkeys(("GET", "HEAD"), functools.partial(show, page)))

    def _operations(self) -> Iterator[Route]:
        paths: dict[str, dict[str, Answerer]] = {}
        for each in self._server.spec.operations:
            if self._server.settings.admin_key is None and PROOFS["adminKey"] in each.proofs:
                continue  # without an admin key, the path does not exist
            answerers = paths.setdefault(each.path, {})
            answerers[each.method] = functools.partial(self._answer, each)
            if each.method == "GET" and not each.proofs:
                answerers["HEAD"] = answerers["GET"]  # `__call__` leaves the body out
        yield from (Route(path, answerers) for path, answerers in paths.items())

    def __call__(self, environ: Environ, start_response: Callable[..., Any]) -> list[bytes]:
        """Answer a request and log it."""
        started = time.perf_counter()
        # waitress decodes and folds paths, but the contract compares them as sent. The target is in origin-form or
        # absolute-form (RFC 9112 section 3.2).
        environ["PATH_INFO"] = ABSOLUTE_FORM.sub("", environ["REQUEST_URI"]).partition("?")[0]
        route, response = self._respond(environ)
        if not environ[ARRIVAL].has_room(len(response.body)):
            response = refusal(503, self._server.spec.limits).response
        headers = list(response.headers.items())
        if response.status not in (204, 304):  # they have no body, and so no length of one (RFC 9110 section 8.6)
            headers.append(("Content-Length", str(len(response.body))))
        request_id = self._finish_headers(headers, environ.get("HTTP_ORIGIN"))
        method = environ["REQUEST_METHOD"]
        body = b"" if method == "HEAD" else response.body
        log(
            event="request",
            method=method if method in KNOWN_METHODS else "other",
            route=route.template if route else None,
            status=response.status,
            milliseconds=round((time.perf_counter() - started) * 1000, 3),
            requestBytes=int(environ.get("CONTENT_LENGTH") or 0),
            responseBytes=len(body),
            requestId=request_id,
            **({"code": response.code} if response.code else {}),
        )
        start_response(status_line(response.status), headers)
        return [body]

    def refuse(self, status: int, origin: str | None) -> Refusal:
        """Return the answer to a request that cannot be read.

        `status` is the status that the HTTP server chose, a key of REFUSALS. `origin` is the request's Origin header.
        """
        response = refusal(status, self._server.spec.limits).response
        headers = list(response.headers.items())
        request_id = self._finish_headers(headers, origin)
        log(event="request", method=None, route=None, status=response.status, requestId=request_id, code=response.code)
        return Refusal(status_line(response.status), headers, response.body)

    def _respond(self, environ: Environ) -> tuple[Route | None, Response]:
        """Find the route of a request, and answer it."""
        try:
            route, parameters = self._router.match(environ)
        except bottle.HTTPError:  # no path that the document has
            detail = "/openapi.yaml lists the operations and their paths."
            if environ["PATH_INFO"] == self._missing_page:
                detail = "The reference page was not built. `tox run -e reference` builds it (README.md: Two commands)."
            return None, Problem("not_found", detail).response
        method = environ["REQUEST_METHOD"]
        if answerer := route.answerers.get(method):
            response = answerer(environ, parameters)
        elif (
            method == "OPTIONS"
            and "HTTP_ACCESS_CONTROL_REQUEST_METHOD" in environ
            and environ.get("HTTP_ORIGIN") in self._server.settings.allowed_origins
        ):
            response = Response(204, headers={"Access-Control-Allow-Methods": route.allow, **PREFLIGHT})
        else:
            detail = "This path does not have this method. Allow lists those that it has."
            response = Problem("method_not_allowed", detail, headers={"Allow": route.allow}).response
        return route, response

    def _answer(self, operation: Operation, environ: Environ, parameters: Mapping[str, str]) -> Response:
        """Check the proofs of a request, read its body, and call the handler of its operation."""
        server = self._server
        try:
            request = Request(
                operation=operation,
                method=environ["REQUEST_METHOD"],
                path=environ["PATH_INFO"],
                has_query="?" in environ["REQUEST_URI"],
                address=environ[ARRIVAL].address,
                headers={name: environ.get(key) for name, key in READ_HEADERS.items()},
                parameters=parameters,
                arrival=environ[ARRIVAL],
                body_bytes=int(environ.get("CONTENT_LENGTH") or 0),
                body_stream=environ["wsgi.input"],
            )
            proven = request.arrival.proven
            # Whatever takes a body changes an account, and checks the credentials again when it holds the account.
            if not (proven and operation.body):
                proven.update({proof.gives: proof.check(server, request) for proof in operation.proofs})
            values = {**proven, "value": read_body(server, request)}
            handle = functools.partial(operation.handler, server, request)
            response = server.store.run(lambda: handle(**{name: values[name] for name in operation.arguments}))
        except Exception as error:
            response = problem_of(error).response
        if operation.has_account_limits and response.status in (200, 201, 429):
            response = response.with_headers(server.rate_limit_policy(operation.id))
        return response

    def _finish_headers(self, headers: list[tuple[str, str]], origin: str | None) -> str:
        """Add the headers that every answer carries, including those for CORS. Return the request's id."""
        request_id, allowed_origins = secrets.token_hex(8), self._server.settings.allowed_origins
        headers.append(("X-Request-Id", request_id))
        if "Cache-Control" not in dict(headers):
            headers.append(("Cache-Control", "no-store"))
        if allowed_origins:
            headers.append(("Vary", "Origin"))
        if origin and origin in allowed_origins:
            headers.append(("Access-Control-Allow-Origin", origin))
            headers.append(("Access-Control-Expose-Headers", EXPOSED_HEADERS))
        return request_id


@functools.cache
def status_line(status: int) -> str:
    """Return a status with its phrase: "200 OK"."""
    return f"{status} {HTTPStatus(status).phrase}"


def show(page: Page, environ: Environ, parameters: Mapping[str, str]) -> Response:
    return Response(200, page.body, page.headers)


ADDRESS_WITH_PORT = re.compile(r"\[([^\]]*)\](?::[0-9]+)?|([0-9.]+):[0-9]+")


def client_address(connection: str, headers: Mapping[str, str], header: str | None) -> str:
    """Return the client's address, in the form that the limits count by.

    `connection` is the address of the connection. `header` is the one that the proxy sets, if there is one. The names
    of `headers` are as in WSGI, without HTTP_. If the header has no address, the connection's counts.
    """
    sent = headers.get(header.upper().replace("-", "_"), "") if header else ""
    return address_in(sent) or address_in(connection) or connection


def address_in(text: str) -> str | None:
    """Return an IPv6 address as its /64, but an IPv4-mapped one as IPv4. Return None if the text has no address."""
    # A proxy may add to a list (X-Forwarded-For). Only what it added itself, at the end, is to be trusted.
    text = text.rpartition(",")[2].strip()
    if match := ADDRESS_WITH_PORT.fullmatch(text):
        text = match[1] or match[2]
    try:
        address = ipaddress.ip_address(text.partition("%")[0])
    except ValueError:
        return None
    if isinstance(address, ipaddress.IPv6Address):
        if address.ipv4_mapped:
            return str(address.ipv4_mapped)
        return str(ipaddress.ip_network((address.packed, 64), strict=False))
    return str(address)


# --- Main -------------------------------------------------------------------------------------------------------------


def serve(settings: Settings, spec: Spec) -> None:
    """Serve until SIGTERM, SIGINT or SIGHUP. Raise StartupError if the database file or the address cannot be used."""
    memory.give_back()
    with opened(settings, spec) as store, contextlib.closing(Watch(store)) as health:
        server = Server(settings, spec, store, health)
        app = App(server, reference_page.read(ROOT / "reference" / "dist"))
        limits = RequestLimits(
            spec.limits["requestHeaderBytes"], spec.limits["requestBodyBytes"], spec.limits["requestBodySeconds"]
        )
        options = HttpOptions(
            refuse=app.refuse,
            address_of=functools.partial(client_address, header=settings.address_header),
            is_proxied=settings.address_header is not None,
            at_once={"/health"},
            body_directory=Path(tempfile.gettempdir()) if settings.database_url else settings.database_path.parent,
            read_threads=bounds.DATABASE_READERS if settings.database_url else bounds.READS[0],
        )
        try:
            http = HttpServer(app, settings.host, settings.port, limits, options)
        except (OSError, UnicodeError) as error:
            where = f"HOST {settings.host}, PORT {settings.port}"
            raise StartupError(f"{where}: the server cannot listen on this address: {error}.") from None
        notes = {
            "newStore": store.is_made,
            "leavesDeletedBytes": not store.erases,
            "keepsCounts": store.keeps_counts,
            "moved": store.is_moved,
        }
        serving = server.identity | {name: True for name, is_so in notes.items() if is_so}
        if settings.metrics_port is not None:
            serving["metrics"] = serve_metrics(settings, spec, store, health, http)
        with contextlib.ExitStack() as stack:
            if isinstance(store, DbmStore):  # in a database, whoever removes an account goes to the database
                orders = operator.Operator(settings.database_path, functools.partial(remove, server), store)
                stack.enter_context(contextlib.closing(orders))
            http.run(operations=len(spec.operations), **serving)


@contextlib.contextmanager
def opened(settings: Settings, spec: Spec) -> Iterator[Store]:
    """Open the store that the settings name, with its copy in a bucket, if there is to be one. Raise StartupError."""
    reserved_seconds = spec.limits["deletedUserSeconds"]
    if settings.database_url:
        with contextlib.closing(opened_database(settings, settings.database_url, reserved_seconds)) as database:
            yield database
        return
    try:
        store = DbmStore(settings.database_path, reserved_seconds, settings.is_new_store)
    except StorageUnavailable as error:
        raise StartupError(f"DATABASE_PATH {settings.database_path}: {error}.") from None
    with contextlib.closing(store), replicated(settings, store):
        yield store


def opened_database(settings: Settings, url: str, reserved_seconds: int) -> Store:
    """Open the store in the database that several servers share. Raise StartupError. Nothing names the URL."""
    if settings.bucket is not None:
        raise StartupError("BUCKET_NAME is for a store in a file. A database has copies of its own (docs/scaling.md).")
    try:
        from server.postgres.store import PostgresStore, hash_key  # only here: who has a file needs no driver
    except ImportError:
        raise StartupError("DATABASE_URL needs a driver: pip install -r requirements/postgres.txt.") from None
    key = hash_key(url, settings.admin_key)
    try:
        return PostgresStore(url, settings.database_bytes, reserved_seconds, key, settings.is_new_store)
    except StorageUnavailable as error:
        raise StartupError(f"DATABASE_URL: {error}.") from None


@contextlib.contextmanager
def replicated(settings: Settings, store: DbmStore) -> Iterator[None]:
    """Keep a copy of the store in a bucket during this block, if there is to be one."""
    if settings.bucket is None:
        yield
        return
    owner_file = Path(f"{os.path.realpath(settings.database_path)}-bucket")
    connect = functools.partial(Bucket, settings.bucket)
    store.replica = Replica(store, connect, owner_file, settings.bucket_takeover)
    store.replica.start()
    with contextlib.closing(store.replica):
        yield


def serve_metrics(settings: Settings, spec: Spec, store: Store, health: Watch, http: HttpServer) -> str:
    """Serve metrics, and return their URL. Raise StartupError if METRICS_PORT cannot be used."""
    from server import metrics  # it takes memory, so who does not want metrics does without it

    try:
        counted = metrics.Metrics(metrics.States(spec.version, store, health, http), PROBLEMS)
        url = counted.serve(http.host, settings.metrics_port or 0)
    except OSError as error:
        where = f"HOST {settings.host}, METRICS_PORT {settings.metrics_port}"
        raise StartupError(f"{where}: the metrics cannot be served on this address: {error}.") from None
    log.listener = counted.count
    return url


def main(argv: list[str] | None = None) -> int:
    """Serve until stopped. Return the exit code: 0 after a stop, 2 if the server cannot start."""
    parser = argparse.ArgumentParser(
        prog="backup_server.py",
        description="The DailyReps backup server. It serves until SIGTERM, SIGINT or SIGHUP.",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    try:
        spec = Spec(ROOT / "openapi.yaml")
        parser.epilog = SETTINGS_HELP.format(NEW_SECRET=NEW_SECRET, **spec.configurable_limits)
        parser.parse_args(argv)
        settings = Settings.from_environ(os.environ, spec.configurable_limits)
        log.debug = settings.debug
        serve(settings, spec)
        log(event="stopped")
        return 0
    except StartupError as error:
        with contextlib.suppress(OSError):  # a closed or full standard error does not change the exit code
            os.write(2, f"backup_server: {error}\n".encode(errors="backslashreplace"))
        return 2
    finally:
        log.finish(bounds.STOP_LOG_SECONDS)
        process.ignore_signals()


if __name__ == "__main__":
    sys.exit(main())
