"""The DailyReps backup server: keeps encrypted backups safe, gives them back, and can read nothing of them.

`openapi.yaml`, beside this file, is the source of truth and the server runs on it: routes, validators and limits are
taken from it once, at boot. `python backup_server.py --help` lists the settings.

From top to bottom: settings, problems, spec, proofs, store, operations, reference page, serving.
"""

from __future__ import annotations

import argparse
import base64
import contextlib
import dataclasses
import dbm.sqlite3
import fcntl
import functools
import gc
import hashlib
import heapq
import hmac
import ipaddress
import json
import logging
import math
import os
import re
import secrets
import shutil
import signal
import socket
import sqlite3
import sys
import threading
import time
import traceback
from bisect import bisect_right
from collections import OrderedDict, deque
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import bottle
import jsonschema
import waitress.channel
import waitress.parser
import waitress.server
import waitress.task
import waitress.utilities
import yaml
from waitress import wasyncore


def now() -> int:
    """Return Unix time in milliseconds. The server's only clock."""
    return time.time_ns() // 1_000_000


def rfc3339(milliseconds: int) -> str:
    """Return Unix milliseconds as RFC 3339 in UTC, without a fraction of a second."""
    return datetime.fromtimestamp(milliseconds // 1000, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def log(**event: Any) -> None:
    """Write one JSON line to standard output. Callers pass no identifier, key, signature or body."""
    with contextlib.suppress(OSError):  # a closed log must not fail a request
        sys.stdout.write(json.dumps({"time": rfc3339(now()), **event}) + "\n")
        sys.stdout.flush()


# --- Settings ---------------------------------------------------------------------------------------------------------

NEW_SECRET = 'python3 -c "import secrets; print(secrets.token_urlsafe(32))"'

SETTINGS_HELP = """\
environment variables:
  APP_SECRET_KEY    required; the app's secret, at least 32 characters, or several that are valid at once:
                    keyid:secret,keyid:secret (one without keyid is called "app")
  ADMIN_SECRET_KEY  bearer key of GET /admin/stats, at least 32 characters; without it the path is not there
  ALLOWED_ORIGINS   web origins that may call the server (CORS): https://app.example,https://b.example
  DATABASE_PATH     the database file (./data/backup.db)
  HOST, PORT        where to listen (127.0.0.1, 8080); port 0 picks a free one and prints it
  BACKUPS_PER_HOUR, BACKUPS_PER_DAY   new versions per account ({BACKUPS_PER_HOUR}, {BACKUPS_PER_DAY})
  REGISTRATIONS_PER_HOUR              accounts created per client address ({REGISTRATIONS_PER_HOUR})
  FAILED_CREDENTIALS_PER_5_MINUTES    per client address ({FAILED_CREDENTIALS_PER_5_MINUTES})
  KEEP_VERSIONS     last versions, days, weeks and months to keep ({KEEP_VERSIONS})

a new secret:  {NEW_SECRET}
"""


class StartupError(Exception):
    """Says why the server cannot start, and what to do about it."""


@dataclasses.dataclass(frozen=True)
class Settings:
    """What a deployment chooses, read from the environment once. Secrets are left out of the repr."""

    app_secrets: Mapping[str, bytes] = dataclasses.field(repr=False)  # keyid -> HMAC key
    admin_key: str | None = dataclasses.field(repr=False)
    allowed_origins: frozenset[str]
    database_path: Path
    host: str
    port: int
    backups_per_hour: int
    backups_per_day: int
    registrations_per_hour: int
    failed_credentials_per_5_minutes: int
    keep_versions: tuple[int, ...]  # last versions, UTC days, ISO weeks, months
    on_fly: bool

    @classmethod
    def from_environ(cls, environ: Mapping[str, str], defaults: Mapping[str, Any]) -> Settings:
        """Cast the environment's strings; `defaults` are the spec's. Raises StartupError naming the variable."""

        def read(name: str, default: str = "") -> str:
            return environ.get(name) or str(defaults.get(name, default))

        def whole_number(name: str, default: str = "", least: int = 1, most: int = 1_000_000) -> int:
            text = read(name, default)
            if not re.fullmatch(r"[0-9]{1,9}", text) or not least <= int(text) <= most:
                raise StartupError(f"{name} must be a whole number from {least} to {most}.")
            return int(text)

        def strong(name: str, secret: str) -> str:
            if len(secret) < 32 or not secret.isprintable() or secret != secret.strip():
                what = "each secret needs at least 32 printable characters, without spaces round it"
                raise StartupError(f"{name}: {what}. Make one with: {NEW_SECRET}")
            return secret

        app_secrets: dict[str, bytes] = {}
        if not read("APP_SECRET_KEY"):
            what = "is not set: it is the secret that the app signs with"
            raise StartupError(f"APP_SECRET_KEY {what}. Make one with: {NEW_SECRET}")
        for entry in read("APP_SECRET_KEY").split(","):
            keyid, colon, secret = entry.rpartition(":")
            keyid = keyid if colon else "app"
            if not re.fullmatch(r"[A-Za-z0-9_-]{1,64}", keyid) or keyid in app_secrets:
                what = "must be one secret, or keyid:secret,keyid:secret with different keyids of A-Z a-z 0-9 _ -"
                raise StartupError(f"APP_SECRET_KEY {what}; a secret holds neither colon nor comma.")
            app_secrets[keyid] = strong("APP_SECRET_KEY", secret).encode()

        origins = frozenset(origin.strip() for origin in read("ALLOWED_ORIGINS").split(",") if origin.strip())
        if not all(re.fullmatch(r"https?://[a-z0-9.\[\]:-]+", origin) for origin in origins):
            raise StartupError("ALLOWED_ORIGINS must be origins such as https://app.example, split by commas.")
        if not re.fullmatch(r"[1-9][0-9]{0,2}(,[0-9]{1,3}){3}", read("KEEP_VERSIONS")):
            raise StartupError("KEEP_VERSIONS must be four numbers such as 4,3,2,2; the first is at least 1.")
        return cls(
            app_secrets=app_secrets,
            admin_key=strong("ADMIN_SECRET_KEY", environ["ADMIN_SECRET_KEY"]) if read("ADMIN_SECRET_KEY") else None,
            allowed_origins=origins,
            database_path=Path(read("DATABASE_PATH", "data/backup.db")),
            host=read("HOST", "127.0.0.1"),
            port=whole_number("PORT", "8080", least=0, most=65535),
            backups_per_hour=whole_number("BACKUPS_PER_HOUR"),
            backups_per_day=whole_number("BACKUPS_PER_DAY"),
            registrations_per_hour=whole_number("REGISTRATIONS_PER_HOUR"),
            failed_credentials_per_5_minutes=whole_number("FAILED_CREDENTIALS_PER_5_MINUTES"),
            keep_versions=tuple(int(number) for number in read("KEEP_VERSIONS").split(",")),
            on_fly="FLY_APP_NAME" in environ,
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
    "not_found": (404, "There is nothing at this path"),
    "no_backup": (404, "There is no backup yet"),
    "no_such_version": (404, "There is no such version"),
    "method_not_allowed": (405, "The method is not allowed"),
    "username_taken": (409, "The username is taken"),
    "recently_deleted": (409, "The account was deleted a moment ago"),
    "version_conflict": (409, "The backup was made from another version"),
    "payload_too_large": (413, "The payload is too large"),
    "unsupported_media_type": (415, "The media type is not supported"),
    "validation_failed": (422, "The body does not fit the schema"),
    "rate_limited": (429, "Too many requests"),
    "headers_too_large": (431, "The request headers are too large"),
    "internal_error": (500, "The server failed"),
    "backup_damaged": (500, "This version is damaged"),
    "unavailable": (503, "The server cannot serve now"),
    "storage_full": (507, "The storage is full"),
}


class Problem(bottle.HTTPResponse):
    """An answer that is a problem. Raise it anywhere in a request; nothing else writes errors.

    `code` is a row of PROBLEMS; `detail` says what to do next and repeats nothing of the request; `retry_after` is in
    seconds; `members` are the extension members (RFC 9457 section 3.2).
    """

    def __init__(self, code: str, detail: str, retry_after: int = 0, **members: Any) -> None:
        status, title = PROBLEMS[code]
        value = {
            "type": PROBLEM_TYPE + code,
            "title": title,
            "status": status,
            "detail": detail,
            "code": code,
        }
        super().__init__(encode_json(value | members), status)
        self.content_type = "application/problem+json"
        if status == 401:  # RFC 9110 section 15.5.2: with a challenge
            self.set_header("WWW-Authenticate", "Bearer" if code == "admin_key_invalid" else 'Basic realm="backup"')
        if retry_after:
            self.set_header("Retry-After", str(retry_after))


def encode_json(value: Any) -> bytes:
    return json.dumps(value, ensure_ascii=False, separators=(",", ":")).encode()


# --- Spec -------------------------------------------------------------------------------------------------------------

METHODS = ("get", "put", "post", "delete", "options", "head", "patch", "trace")

# What a schema may hold beside the keywords that the validator knows.
ANNOTATIONS = {"title", "description", "examples", "format", "contentEncoding", "x-maxDecodedBytes"}

VALIDATION_DETAILS = {  # by keyword; no detail repeats what was sent
    "type": "must be of type {}",
    "pattern": "must match {}",
    "minLength": "must have at least {} characters",
    "maxLength": "must have at most {} characters",
    "additionalProperties": "has a member that the schema does not have",
    "contentEncoding": "must be canonical {} (RFC 4648 section 4, padded, unused bits zero)",
}


class Operation:
    """One operation of the resolved document, ready to serve. Raises StartupError where the server does not know it."""

    def __init__(self, method: str, path: str, item: Mapping[str, Any]) -> None:
        self.id, self.method, self.path = item["operationId"], method.upper(), path
        if self.id not in HANDLERS:
            raise StartupError(f"openapi.yaml has an operation that the server does not: {self.id}.")
        self.handler = HANDLERS[self.id]
        schemes = {scheme for requirement in item["security"] for scheme in requirement}
        if unknown := schemes - set(PROOFS):
            raise StartupError(f"{self.id} has security schemes that the server does not know: {sorted(unknown)}.")
        self.proofs = [proof for scheme, proof in PROOFS.items() if scheme in schemes]
        self.media_type = self.validator = None  # as long as the operation takes no body
        if "requestBody" in item:
            ((self.media_type, content),) = item["requestBody"]["content"].items()
            check_keywords(content["schema"])
            RequestValidator.check_schema(content["schema"])
            self.validator = RequestValidator(content["schema"])
        self.is_upload = "RateLimit-Policy" in item["responses"].get("429", {}).get("headers", {})


class Spec:
    """The document, loaded and compiled once, and what the server takes from it.

    Raises StartupError where it cannot be read, or asks for something that the server does not know: an operationId
    without handler, a security scheme, a schema keyword; and where it lacks an operation that the server has.
    """

    def __init__(self, path: Path) -> None:
        try:
            self.yaml = path.read_bytes()
            document = yaml.load(self.yaml, yaml.CSafeLoader)
            self.json = encode_json(document)
            self.version: str = document["info"]["version"]
            self.limits: Mapping[str, int] = document["x-limits"]
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
        except (OSError, yaml.YAMLError, LookupError, TypeError, RecursionError, jsonschema.SchemaError) as error:
            raise StartupError(f"{path.name} cannot be used: {type(error).__name__}: {error}") from error
        if unused := set(HANDLERS) - {operation.id for operation in self.operations}:
            raise StartupError(f"{path.name} lacks operations that the server has: {', '.join(sorted(unused))}.")


def resolve(node: Any, document: Any) -> Any:
    """Return `node` with each local $ref replaced by what it points to. Raises KeyError where that is nothing."""
    if isinstance(node, dict):
        if isinstance(node.get("$ref"), str):
            target = functools.reduce(lambda at, name: at[name], node["$ref"].removeprefix("#/").split("/"), document)
            return resolve(target, document)
        return {name: resolve(value, document) for name, value in node.items()}
    return [resolve(value, document) for value in node] if isinstance(node, list) else node


def check_keywords(schema: Mapping[str, Any]) -> None:
    """Raise StartupError where a schema has a keyword that the server does not know."""
    if unknown := set(schema) - set(RequestValidator.VALIDATORS) - ANNOTATIONS:
        raise StartupError(f"openapi.yaml has schema keywords that the server does not know: {sorted(unknown)}.")
    if schema.get("contentEncoding", "base64") != "base64":
        raise StartupError("openapi.yaml has a contentEncoding that the server does not know.")
    items = [schema["items"]] if "items" in schema else []
    for subschema in [*schema.get("properties", {}).values(), *schema.get("anyOf", []), *items]:
        check_keywords(subschema)


def decode_base64(text: str) -> bytes | None:
    """Return what canonical base64 (RFC 4648 sections 3.5 and 4) stands for, or None where it is not that."""
    try:
        data = base64.b64decode(text, validate=True)
    except ValueError:
        return None
    # The decoder ignores unused bits; encoding the last group again shows them.
    return data if base64.b64encode(data[(len(data) - 1) // 3 * 3 :]).decode() == text[-4:] else None


def check_content_encoding(validator: Any, encoding: str, instance: Any, schema: Any) -> Iterator[Any]:
    if isinstance(instance, str) and decode_base64(instance) is None:
        yield jsonschema.ValidationError(f"is not {encoding}")


def check_pattern(validator: Any, pattern: str, instance: Any, schema: Mapping[str, Any]) -> Iterator[Any]:
    # The pattern of a base64 string says what the decoder checks, which takes a third of the time.
    if "contentEncoding" not in schema and isinstance(instance, str) and not re.search(pattern, instance):
        yield jsonschema.ValidationError("does not match")


RequestValidator = jsonschema.validators.extend(
    jsonschema.Draft202012Validator, {"contentEncoding": check_content_encoding, "pattern": check_pattern}
)


def validation_errors(validator: Any, value: Any) -> list[dict[str, str]]:
    """Return where `value` departs from the schema, in the form of RFC 9457 section 3, empty if nowhere."""
    found = []
    for error in validator.iter_errors(value):
        pointer = "".join(["#", *(f"/{part}" for part in error.absolute_path)])
        if error.validator == "required":
            missing = (name for name in error.validator_value if name not in error.instance)
            found += [(f"{pointer}/{name}", "is required") for name in missing]
        else:
            detail = VALIDATION_DETAILS.get(error.validator, "does not fit the schema")
            found.append((pointer, detail.format(error.validator_value)))
    return [{"pointer": pointer, "detail": detail} for pointer, detail in dict.fromkeys(found)]


MOST_COMMAS = 100  # no schema needs as many; megabytes of tiny values would take a hundred times their size in memory


class NotIJson(ValueError):
    """A text that JSON's grammar lets pass and I-JSON does not; the message repeats nothing of it."""


def unique_members(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    members = dict(pairs)
    if len(members) < len(pairs):
        raise NotIJson("a member name stands twice")
    return members


def finite_number(text: str) -> float:
    number = float(text)
    if not math.isfinite(number):
        raise NotIJson("a number is not finite")
    return number


I_JSON = json.JSONDecoder(object_pairs_hook=unique_members, parse_float=finite_number, parse_constant=finite_number)


def parse_json(body: bytes) -> Any:
    """Parse I-JSON (RFC 7493). Raises Problem malformed_request."""
    try:
        if body.count(b",") > MOST_COMMAS:
            raise NotIJson("it has too many values")
        text = body.decode()
        value = I_JSON.decode(text)
        if "\\u" in text:
            encode_json(value)  # only an escape can make a lone surrogate, which no UTF-8 can hold
        return value
    except NotIJson as error:
        reason = str(error)
    except UnicodeDecodeError:
        reason = "it is not UTF-8"
    except UnicodeEncodeError:
        reason = "a surrogate stands alone"
    except json.JSONDecodeError as error:
        reason = f"{error.msg} at character {error.pos}"
    except RecursionError:
        reason = "it is nested too deeply"
    except ValueError:  # more digits than sys.get_int_max_str_digits()
        reason = "a number has too many digits"
    raise Problem("malformed_request", f"The body is not I-JSON (RFC 7493): {reason}.")


# --- Proofs -----------------------------------------------------------------------------------------------------------

SIGNATURE_INPUT = re.compile(  # the one profile of RFC 9421 that is accepted
    r'app=(\("@method" "@path" "authorization" "content-digest"\)'
    r';created=(0|[1-9][0-9]{0,14});keyid="([A-Za-z0-9_-]{1,64})";alg="hmac-sha256")'
)
SIGNATURE = re.compile(r"app=:[A-Za-z0-9+/]{43}=:")
CONTENT_DIGEST = re.compile(r"sha-256=:[A-Za-z0-9+/]{43}=:")
BASIC = re.compile(r"basic +([A-Za-z0-9+/=]+)", re.IGNORECASE)
BEARER = re.compile(r"bearer +(.+)", re.IGNORECASE)
USER_ID_AND_STORAGE_KEY = re.compile(rb"([0-9a-f]{64}):([0-9a-f]{64})")


class Request:
    """One request to an operation, filled in as it is proven and read."""

    def __init__(self, operation: Operation, environ: Mapping[str, Any], parameters: Mapping[str, str]) -> None:
        self.operation, self.environ, self.parameters = operation, environ, parameters
        self.address = ""  # the client's, as the limits count it
        self.body: bytes = environ["wsgi.input"].read()
        self.value: Any = None  # the body's JSON
        self.signature = self.user_id = self.storage_key = ""
        self.record: dict[str, Any] = {}  # the account's, as it was when the credentials were checked

    def header(self, name: str) -> str | None:
        return self.environ.get("HTTP_" + name.upper().replace("-", "_"))


def check_signature(server: Server, request: Request) -> None:
    """Prove that a request comes from the app (RFC 9421), and that its body is the signed one (RFC 9530).

    Raises Problem: malformed_request for a query, signature_missing, signature_invalid, signature_expired,
    digest_mismatch.
    """
    if "?" in request.environ["REQUEST_URI"]:
        raise Problem("malformed_request", "A signed operation takes no query string.")
    names = ("Authorization", "Content-Digest", "Signature-Input", "Signature")
    authorization, digest, signature_input, signature = headers = [request.header(name) for name in names]
    if None in headers:
        raise Problem("signature_missing", "Send Authorization, Content-Digest, Signature-Input and Signature.")
    profile = SIGNATURE_INPUT.fullmatch(signature_input)
    # A header that is sent twice arrives joined by a comma (RFC 9110 section 5.3).
    if not (profile and CONTENT_DIGEST.fullmatch(digest) and SIGNATURE.fullmatch(signature)) or "," in authorization:
        detail = "One of the four headers is malformed, sent twice, or not of the profile in openapi.yaml."
        raise Problem("signature_invalid", detail)

    parameters, created, keyid = profile.groups()
    secret = server.settings.app_secrets.get(keyid)
    base = (  # RFC 9421 section 2.5
        f'"@method": {request.environ["REQUEST_METHOD"]}\n"@path": {request.environ["PATH_INFO"]}\n'
        f'"authorization": {authorization}\n"content-digest": {digest}\n"@signature-params": {parameters}'
    )
    mac = hmac.digest(secret or b"none", base.encode("latin-1"), "sha256")
    if not hmac.compare_digest(f"app=:{base64.b64encode(mac).decode()}:", signature) or secret is None:
        raise Problem("signature_invalid", "The MAC is not that of this request under the named key.")

    server_time, skew = now() // 1000, server.spec.limits["signatureSkewSeconds"]
    if abs(server_time - int(created)) > skew:
        detail = f"created is more than {skew} seconds from the server's clock: correct by serverTime and sign again."
        raise Problem("signature_expired", detail, serverTime=server_time)
    if digest != f"sha-256=:{base64.b64encode(hashlib.sha256(request.body).digest()).decode()}:":
        raise Problem("digest_mismatch", "Content-Digest is not the SHA-256 of the body that arrived.")
    request.signature = signature


def check_credentials(server: Server, request: Request) -> None:
    """Prove that a request comes from its user (RFC 7617). A registration only needs credentials of the right form.

    Raises Problem: rate_limited after too many failures from this address, credentials_invalid.
    """
    server.failures.check(request.address)
    basic = BASIC.fullmatch(request.header("Authorization"))
    try:
        pair = USER_ID_AND_STORAGE_KEY.fullmatch(base64.b64decode(basic[1], validate=True)) if basic else None
    except ValueError:
        pair = None
    if pair:
        request.user_id, request.storage_key = (part.decode() for part in pair.groups())
        if request.operation.id == "registerUser" or reread(server, request):
            return
    server.failures.count(request.address)
    raise credentials_invalid()


def reread(server: Server, request: Request) -> bool:
    """Read the account's record again, and tell whether it is alive and has this storage key, in constant time."""
    request.record = server.store.record(request.user_id) or {}
    return owns(request, request.record)


def owns(request: Request, record: Mapping[str, Any]) -> bool:
    expected = record.get("storageKeySha256", "none" * 16)  # a deleted user's has none
    return hmac.compare_digest(expected, sha256(request.storage_key.encode()))


def credentials_invalid() -> Problem:
    return Problem("credentials_invalid", "No account has this userId and storageKey.")


def check_admin_key(server: Server, request: Request) -> None:
    """Prove that a request comes from the operator (RFC 6750). Raises Problem admin_key_invalid."""
    bearer = BEARER.fullmatch(request.header("Authorization") or "")
    if not bearer or not hmac.compare_digest(bearer[1].encode("latin-1"), server.settings.admin_key.encode()):
        raise Problem("admin_key_invalid", "Send the admin key as a Bearer token.")


# In the order of checking.
PROOFS = {"appSignature": check_signature, "userCredentials": check_credentials, "adminKey": check_admin_key}


def sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


@dataclasses.dataclass(frozen=True)
class Limit:
    """At most `quota` events within any `seconds`: a sliding window. Times are in milliseconds and sorted."""

    name: str
    quota: int
    seconds: int

    def counted(self, times: list[int], moment: int) -> list[int]:
        """Return the times that count at a moment: none that is `seconds` old, none dated later."""
        return times[bisect_right(times, moment - self.seconds * 1000) : bisect_right(times, moment)]


def wait_seconds(limits: tuple[Limit, ...], times: list[int], moment: int) -> int:
    """Return after how many whole seconds, rounded up, one more event is within every limit; 0: at once."""
    leaves = sorted(time + limit.seconds * 1000 for time in times for limit in limits)
    for at in [moment, *leaves[bisect_right(leaves, moment) :]]:  # it can only be when one leaves a window
        if all(len(limit.counted(times, at)) < limit.quota for limit in limits):
            return math.ceil((at - moment) / 1000)
    raise AssertionError("a quota is at least 1, so the last to leave makes room")


class AddressLimit:
    """A limit per client address, in memory and bounded: the address that was quiet longest is forgotten first."""

    MOST_ADDRESSES = 10_000

    def __init__(self, limit: Limit) -> None:
        self._limit = limit
        self._times: OrderedDict[str, deque[int]] = OrderedDict()
        self._lock = threading.RLock()

    def check(self, address: str) -> None:
        """Raise Problem rate_limited where the quota is spent."""
        with self._lock:
            times = sorted(self._times.get(address, ()))
        if len(times) == self._limit.quota and (wait := wait_seconds((self._limit,), times, now())):
            detail = f"Too many {self._limit.name} from this address: wait for Retry-After seconds."
            raise Problem("rate_limited", detail, wait)

    def count(self, address: str) -> None:
        """Count one event. Raises Problem rate_limited, and counts nothing, where a race has spent the quota."""
        with self._lock:
            self.check(address)
            # The last `quota` times decide, so no more are kept.
            self._times.setdefault(address, deque(maxlen=self._limit.quota)).append(now())
            self._times.move_to_end(address)
            if len(self._times) > self.MOST_ADDRESSES:
                self._times.popitem(last=False)


# --- Store ------------------------------------------------------------------------------------------------------------

RESERVE_BYTES = 32 * 1024 * 1024  # a deletion needs room in the write-ahead log first


def sqlite_code(error: Exception) -> int:
    """Return SQLite's primary result code; dbm.sqlite3 hides it in the error that it handled."""
    cause = error if isinstance(error, sqlite3.Error) else error.__context__
    return getattr(cause, "sqlite_errorcode", sqlite3.SQLITE_ERROR) & 0xFF


def storage_full() -> Problem:
    return Problem("storage_full", "There is no space left for this: nothing was changed, repeat later.")


def unavailable(retry_after: int) -> Problem:
    detail = "The database cannot be read or written: repeat after Retry-After seconds."
    return Problem("unavailable", detail, retry_after)


def tally(record: Mapping[str, Any] | None) -> tuple[int, int, int]:
    """Return what a record adds to the counts of users, backups and versions."""
    versions = (record or {}).get("versions")  # a deleted user's record has none
    return (0, 0, 0) if versions is None else (1, int(bool(versions)), len(versions))


class Store:
    """Accounts in one dbm.sqlite3 file.

    `user/{userId}` holds an account's record as JSON, replaced whole: that put is the commit of every operation.
    `blob/{userId}/{slot}` holds the raw bytes of a version. An upload overwrites a slot that the record does not
    name, then replaces the record; so each operation happens wholly or not at all, and a crash leaves nothing to
    sweep but a deletion that it cut short, which the next start finishes.

    A record: createdAt, storageKeySha256, keyVersion, slots (how many were ever used), versions (oldest first: version,
    updatedAt, size, sha256, keyVersion, slot), uploads ([time, signature] of the last day, and of the last 20).
    A deleted user's: deletedAt, slots. Times are Unix milliseconds.

    One thread writes, by `exclusively`, through the only writing connection; that also keeps clear of SQLite's
    WAL-reset bug. Each other thread reads through a connection of its own.
    """

    FORMAT = b"1"

    def __init__(self, path: Path, deleted_user_seconds: int) -> None:
        """Open or create the file. Raises StartupError where another server has it, or it cannot be used."""
        self.path = path
        self._reserved_milliseconds = deleted_user_seconds * 1000
        self._local = threading.local()
        self._stopping = threading.Event()
        self._counted = threading.Event()
        self._seen: set[str] = set()  # who is in the counts already, while they are being taken
        self._counts = (0, 0, 0)
        self._deleted: list[tuple[int, str]] = []  # heap of (when to forget, userId)
        try:
            path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            self._lock_file = open(os.open(f"{path}.lock", os.O_RDWR | os.O_CREAT, 0o600))
            fcntl.flock(self._lock_file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise StartupError(f"Another server has DATABASE_PATH {path} open: stop it first.") from None
        except OSError as error:
            raise StartupError(f"DATABASE_PATH {path} cannot be used: {error.strerror}.") from None
        self._writer = ThreadPoolExecutor(1, "writer")
        try:
            self._writer.submit(self._open).result()
        except (dbm.sqlite3.error, sqlite3.Error) as error:
            raise StartupError(f"DATABASE_PATH {path} cannot be used: {error}.") from None
        self._housekeeper = threading.Thread(target=self._keep_house, name="housekeeper", daemon=True)
        self._housekeeper.start()

    def _open(self) -> None:
        self._local.database = database = dbm.sqlite3.open(self.path, "c", 0o600)
        if database.setdefault(b"format", self.FORMAT) != self.FORMAT:
            raise StartupError(f"DATABASE_PATH {self.path} is of a format that this server does not know.")
        # dbm asks for the write-ahead log without insisting, and leaves `synchronous` to the library's default.
        with contextlib.closing(sqlite3.connect(self.path.absolute().as_uri() + "?mode=ro", uri=True)) as connection:
            (journal_mode,), (synchronous,) = (
                connection.execute(f"PRAGMA {name}").fetchone() for name in ("journal_mode", "synchronous")
            )
        if journal_mode != "wal" or synchronous < 2:
            raise StartupError("This SQLite does not sync each commit (WAL, synchronous=FULL): use another build.")

    def close(self) -> None:
        """Finish what is being written, fold the write-ahead log into the file and close it.

        The threads that read have ended by now.
        """
        self._stopping.set()
        self._housekeeper.join()
        gc.collect()  # a connection refers to itself; the writer's has to be the last that is closed
        self._writer.submit(lambda: self._local.database.close()).result()
        self._writer.shutdown()
        self._lock_file.close()

    def exclusively(self, change: Callable[[], Any]) -> Any:
        """Run `change` on the writing thread, one at a time, and return or raise what it does."""
        return self._writer.submit(change).result()

    @contextlib.contextmanager
    def _database(self) -> Iterator[Any]:
        """Give this thread's connection, and turn its errors into Problem storage_full or unavailable."""
        try:
            if not hasattr(self._local, "database"):
                self._local.database = dbm.sqlite3.open(self.path, "r")
            yield self._local.database
        except (dbm.sqlite3.error, sqlite3.Error) as error:
            log(event="storage_error", sqliteCode=sqlite_code(error))
            raise (storage_full() if sqlite_code(error) == sqlite3.SQLITE_FULL else unavailable(5)) from None

    def check(self) -> None:
        """Read from the file. Raises Problem unavailable."""
        with self._database() as database:
            database.get(b"format")

    def record(self, user_id: str) -> dict[str, Any] | None:
        """Return a user's record, also a deleted one's, or None. Raises Problem unavailable."""
        with self._database() as database:
            value = database.get(f"user/{user_id}".encode())
        return None if value is None else json.loads(value)

    def blob(self, user_id: str, slot: int) -> bytes | None:
        """Return what is in a slot, or None where it is gone or unreadable. Raises Problem unavailable."""
        with self._database() as database:
            try:
                return database.get(f"blob/{user_id}/{slot}".encode())
            except (dbm.sqlite3.error, sqlite3.Error) as error:
                if sqlite_code(error) == sqlite3.SQLITE_CORRUPT:  # this page only; others may be whole
                    return None
                raise

    def counts(self) -> tuple[int, int, int]:
        """Return the numbers of users, backups and versions. Raises Problem unavailable while they are being taken."""
        if not self._counted.wait(2):
            raise unavailable(1)
        return self._counts

    def size(self) -> int:
        """Return the bytes that the file takes, with its write-ahead log."""
        return sum(path.stat().st_size for path in (self.path, Path(f"{self.path}-wal")) if path.exists())

    # The rest is called within `exclusively` only.

    def check_space(self, size: int) -> None:
        """Raise Problem storage_full where `size` more bytes would use up the reserve."""
        # A blob is written to the write-ahead log and then to the file.
        if shutil.disk_usage(self.path.parent).free < RESERVE_BYTES + 3 * size:
            raise storage_full()

    def put_blob(self, user_id: str, slot: int, data: bytes) -> None:
        with self._database() as database:
            database[f"blob/{user_id}/{slot}".encode()] = data

    def put_record(self, user_id: str, before: Mapping[str, Any] | None, after: Mapping[str, Any]) -> None:
        """Replace a record: the commit. It is on disk when this returns."""
        with self._database() as database:
            database[f"user/{user_id}".encode()] = encode_json(after)
        self._count(user_id, before, after)

    def delete(self, user_id: str, before: Mapping[str, Any]) -> None:
        """Delete an account: one put as the commit, then its blobs. The userId stays reserved for a while."""
        moment = now()
        after = {"deletedAt": moment, "slots": before["slots"]}
        try:
            self.put_record(user_id, before, after)
        except Problem:  # also where the disk is full: a deletion asks for no space of its own
            raise unavailable(5) from None
        heapq.heappush(self._deleted, (moment + self._reserved_milliseconds, user_id))
        with contextlib.suppress(Problem):  # it is logged, and done again when the userId is forgotten
            self.erase_blobs(user_id, after)

    def erase_blobs(self, user_id: str, record: Mapping[str, Any]) -> None:
        """Delete what is in a deleted user's slots, and in the one that a crash may have left beyond them."""
        with self._database() as database:
            for slot in range(record["slots"] + 1):
                with contextlib.suppress(KeyError):
                    del database[f"blob/{user_id}/{slot}".encode()]

    def reserved_until(self, record: Mapping[str, Any]) -> int:
        """Return when a deleted user's userId is free again."""
        return record["deletedAt"] + self._reserved_milliseconds

    # Housekeeping, in the background: count, finish deletions that a crash cut short, forget deleted users.

    def _keep_house(self) -> None:
        users: list[str] | None = None  # that are to be counted
        while not self._stopping.is_set():
            try:
                if users is None:
                    users = self._users()
                elif users:
                    self.exclusively(functools.partial(self._visit, users[-1]))
                    users.pop()
                    self._stopping.wait(0.001)  # leave the disk to the requests
                elif not self._counted.is_set():
                    self.exclusively(self._end_counting)
                elif self._deleted and self._deleted[0][0] <= now():
                    self.exclusively(self._forget_next)
                else:
                    self._stopping.wait(1)
            except Problem:  # logged; the disk may be back in a while
                self._stopping.wait(5)
            except Exception as error:  # a record that cannot be read must not keep the others waiting
                log_exception(error)
                self._stopping.wait(1)
                if users:
                    users.pop()

    def _users(self) -> list[str]:
        with self._database() as database:  # the housekeeper's own connection: no writer waits for it
            return [key[5:].decode() for key in database if key.startswith(b"user/")]

    def _visit(self, user_id: str) -> None:
        if user_id in self._seen:  # written since the start
            return
        record = self.record(user_id)
        if record and "deletedAt" in record:
            self.erase_blobs(user_id, record)
            heapq.heappush(self._deleted, (self.reserved_until(record), user_id))
        self._count(user_id, None, record)

    def _count(self, user_id: str, before: Mapping[str, Any] | None, after: Mapping[str, Any] | None) -> None:
        if not self._counted.is_set() and user_id not in self._seen:
            self._seen.add(user_id)
            before = None  # what was before is not in the counts yet
        self._counts = tuple(
            count - less + more for count, less, more in zip(self._counts, tally(before), tally(after), strict=True)
        )

    def _end_counting(self) -> None:
        self._counted.set()
        self._seen.clear()

    def _forget_next(self) -> None:
        moment, user_id = heapq.heappop(self._deleted)
        try:
            record = self.record(user_id)
            if record and "deletedAt" in record and self.reserved_until(record) <= now():
                self.erase_blobs(user_id, record)
                with self._database() as database:
                    del database[f"user/{user_id}".encode()]
        except Problem:  # once more, in a while
            heapq.heappush(self._deleted, (moment, user_id))
            raise


# --- Operations -------------------------------------------------------------------------------------------------------

HANDLERS: dict[str, Callable[[Server, Request], bottle.HTTPResponse]] = {}


def operation(operation_id: str) -> Callable:
    """Register the handler of an operation of the spec."""

    def register(handler: Callable) -> Callable:
        HANDLERS[operation_id] = handler
        return handler

    return register


def answer(status: int, value: Any, headers: Mapping[str, str] | None = None) -> bottle.HTTPResponse:
    body = value if isinstance(value, bytes) else encode_json(value)
    return bottle.HTTPResponse(body, status, {"Content-Type": "application/json", **(headers or {})})


@operation("registerUser")
def register_user(server: Server, request: Request) -> bottle.HTTPResponse:
    store, user_id = server.store, request.user_id

    def register() -> tuple[int, Mapping[str, Any]]:
        record, moment = store.record(user_id), now()
        if record and owns(request, record):
            return 200, record
        if record and "deletedAt" not in record:
            server.failures.count(request.address)
            detail = "This userId is registered with another storageKey: use its password, or another username."
            raise Problem("username_taken", detail)
        if record and (milliseconds := store.reserved_until(record) - moment) > 0:
            detail = "This userId can be registered again after Retry-After seconds."
            raise Problem("recently_deleted", detail, math.ceil(milliseconds / 1000))
        server.registrations.check(request.address)
        store.check_space(0)
        if record:
            store.erase_blobs(user_id, record)
        account = {
            "createdAt": moment,
            "storageKeySha256": sha256(request.storage_key.encode()),
            "keyVersion": 1,
            "slots": 0,
            "versions": [],
            "uploads": [],
        }
        store.put_record(user_id, record, account)
        server.registrations.count(request.address)
        return 201, account

    status, record = store.exclusively(register)
    return answer(status, {"createdAt": rfc3339(record["createdAt"])})


@operation("storeBackup")
def store_backup(server: Server, request: Request) -> bottle.HTTPResponse:
    status, version, headers = store_version(server, request)
    return answer(status, receipt(version), headers)


@operation("changeStorageKey")
def change_storage_key(server: Server, request: Request) -> bottle.HTTPResponse:
    new_storage_key = request.value["storageKey"]
    if new_storage_key == request.storage_key:
        raise validation_failed([{"pointer": "#/storageKey", "detail": "is the key already in force"}])
    _, version, headers = store_version(server, request, new_storage_key)
    return answer(200, receipt(version), headers)


KEPT_SIGNATURES = 20  # though they are a day old: a clock that ran ahead may come back


def store_version(
    server: Server, request: Request, new_storage_key: str | None = None
) -> tuple[int, Mapping[str, Any], Mapping[str, str]]:
    """Store the request's data as a new version, with a new storage key where one is given, both or neither.

    Returns status, version and rate limit headers. Raises Problem in the order of openapi.yaml.
    """
    store, user_id, limits = server.store, request.user_id, server.upload_limits
    data, base = decode_base64(request.value["data"]), request.value.get("baseSha256")
    if len(data) > server.spec.max_decoded_bytes:
        detail = f"A backup may have {server.spec.max_decoded_bytes} bytes when decoded."
        raise Problem("payload_too_large", detail)
    digest = sha256(data)

    def commit() -> tuple[int, Mapping[str, Any], Mapping[str, str]]:
        if not reread(server, request):  # deleted, or the key was changed, since the request was proven
            raise credentials_invalid()
        record, moment = request.record, now()
        day_ago = moment - limits[-1].seconds * 1000
        old, last = record["uploads"][:-KEPT_SIGNATURES], record["uploads"][-KEPT_SIGNATURES:]
        uploads = [entry for entry in old if entry[0] > day_ago] + last
        times = sorted(time for time, _ in uploads)
        latest = record["versions"][-1] if record["versions"] else None
        if latest and latest["sha256"] == digest and new_storage_key is None:
            stored = store.blob(user_id, latest["slot"])
            if stored is None or sha256(stored) != digest:  # damaged, and here are the right bytes
                store.put_blob(user_id, latest["slot"], data)
            return 200, latest, server.rate_limit(times, moment)
        # A signature is good for one version: a replay whose base fits again must not take effect.
        if base != (latest and latest["sha256"]) or any(request.signature == signature for _, signature in uploads):
            detail = "The base is not the latest version: fetch it, merge, store again with its sha256 as baseSha256."
            raise Problem("version_conflict", detail, currentVersion=latest["version"] if latest else 0)
        if wait := wait_seconds(limits, times, moment):
            detail = "Too many new versions of this account: wait for Retry-After seconds."
            problem = Problem("rate_limited", detail, wait)
            problem.headers.update(server.rate_limit(times, moment))
            raise problem
        store.check_space(len(data))

        used = {version["slot"] for version in record["versions"]}
        slot = next(slot for slot in range(len(used) + 1) if slot not in used)
        store.put_blob(user_id, slot, data)
        version = {
            "version": latest["version"] + 1 if latest else 1,
            "updatedAt": moment,
            "size": len(data),
            "sha256": digest,
            "keyVersion": record["keyVersion"] + (new_storage_key is not None),
            "slot": slot,
        }
        account = record | {
            "keyVersion": version["keyVersion"],
            "slots": max(record["slots"], slot + 1),
            "versions": kept_versions([*record["versions"], version], server.settings.keep_versions),
            "uploads": [*uploads, [moment, request.signature]],
        }
        if new_storage_key is not None:
            account["storageKeySha256"] = sha256(new_storage_key.encode())
        store.put_record(user_id, record, account)
        return 201, version, server.rate_limit(sorted([*times, moment]), moment)

    return store.exclusively(commit)


def kept_versions(versions: list[dict[str, Any]], keep: tuple[int, ...]) -> list[dict[str, Any]]:
    """Return the versions to keep, oldest first: the last ones, and the newest of each of the last days, weeks, months.

    Days, weeks and months are UTC's, ordered by the newest version they hold, not by date: a clock that once ran ahead
    costs nothing.
    """
    last, *periods = keep
    chosen = {version["version"] for version in versions[-last:]}
    names = (lambda at: at.date(), lambda at: at.isocalendar()[:2], lambda at: (at.year, at.month))
    for count, name in zip(periods, names, strict=True):
        newest: dict[Any, int] = {}
        for version in reversed(versions):
            newest.setdefault(name(datetime.fromtimestamp(version["updatedAt"] // 1000, UTC)), version["version"])
        chosen.update(list(newest.values())[:count])
    return [version for version in versions if version["version"] in chosen]


@operation("fetchBackup")
def fetch_backup(server: Server, request: Request) -> bottle.HTTPResponse:
    def latest(versions: list[dict[str, Any]]) -> dict[str, Any]:
        if not versions:
            raise Problem("no_backup", "Store a first backup without baseSha256.")
        return versions[-1]

    return fetch(server, request, latest)


@operation("fetchBackupVersion")
def fetch_backup_version(server: Server, request: Request) -> bottle.HTTPResponse:
    def named(versions: list[dict[str, Any]]) -> dict[str, Any]:
        for version in versions:
            if str(version["version"]) == request.parameters["version"]:  # which also asks for the canonical form
                return version
        raise Problem("no_such_version", "This version is not kept: list the versions that are.")

    return fetch(server, request, named)


def fetch(server: Server, request: Request, choose: Callable) -> bottle.HTTPResponse:
    """Answer the version that `choose` takes. Raises Problem backup_damaged, or what `choose` raises."""
    while True:
        version = choose(request.record["versions"])
        headers = {"ETag": f'"{version["version"]}-{version["sha256"]}"'}
        if matches(request.header("If-None-Match"), headers["ETag"]):
            return bottle.HTTPResponse(status=304, headers=headers)
        data = server.store.blob(request.user_id, version["slot"])
        if data is not None and sha256(data) == version["sha256"]:
            break
        # Later uploads may have overwritten the slot since the record was read. Then the record has changed, too.
        before = request.record
        if not reread(server, request):
            raise credentials_invalid()
        if request.record == before:
            log(event="backup_damaged")
            detail = "The stored bytes no longer have their sha256: fetch another version from the list."
            raise Problem("backup_damaged", detail)
    response = answer(200, receipt(version), headers)
    # base64 needs no escaping, so megabytes need not pass through a JSON writer.
    response.body = response.body[:-1] + b',"data":"' + base64.b64encode(data) + b'"}'
    return response


def matches(if_none_match: str | None, etag: str) -> bool:
    """Tell whether If-None-Match names this entity tag, by weak comparison (RFC 9110 sections 13.1.2 and 8.8.3.2)."""
    return if_none_match is not None and (
        if_none_match == "*" or etag in re.findall(r'(?:W/)?("[^"]*")', if_none_match)
    )


def receipt(version: Mapping[str, Any]) -> dict[str, Any]:
    return {
        "version": version["version"],
        "updatedAt": rfc3339(version["updatedAt"]),
        "size": version["size"],
        "sha256": version["sha256"],
        "keyVersion": version["keyVersion"],
    }


@operation("listBackupVersions")
def list_backup_versions(server: Server, request: Request) -> bottle.HTTPResponse:
    return answer(200, {"versions": [receipt(version) for version in reversed(request.record["versions"])]})


@operation("deleteUser")
def delete_user(server: Server, request: Request) -> bottle.HTTPResponse:
    def delete() -> None:
        if not reread(server, request):
            raise credentials_invalid()
        server.store.delete(request.user_id, request.record)

    server.store.exclusively(delete)
    return bottle.HTTPResponse(status=204)


@operation("getHealth")
def get_health(server: Server, request: Request) -> bottle.HTTPResponse:
    server.store.check()
    return answer(200, {"status": "ok", "version": server.spec.version})


@operation("getAdminStats")
def get_admin_stats(server: Server, request: Request) -> bottle.HTTPResponse:
    users, backups, versions = server.store.counts()
    size = server.store.size()
    return answer(200, {"users": users, "backups": backups, "versions": versions, "databaseBytes": size})


@operation("getOpenapiYaml")
def get_openapi_yaml(server: Server, request: Request) -> bottle.HTTPResponse:
    return answer(200, server.spec.yaml, {"Content-Type": "application/yaml"})  # RFC 9512


@operation("getOpenapiJson")
def get_openapi_json(server: Server, request: Request) -> bottle.HTTPResponse:
    return answer(200, server.spec.json)


# --- Reference page ---------------------------------------------------------------------------------------------------

PAGE_TYPES = {".css": "text/css", ".html": "text/html", ".js": "text/javascript"}
PAGE_HEADERS = {
    "Content-Security-Policy": (
        # The hash is that of nothing: the renderer makes empty style elements and fills them by the CSSOM.
        "default-src 'none'; script-src 'self'; connect-src 'self'; img-src 'self' data:; "
        "style-src 'self' 'sha256-47DEQpj8HBSa+/TImW+5JCeuQeRkm5NMpJWZG3hSuFU='; "
        "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    ),
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
}


def read_reference(directory: Path) -> dict[str, tuple[bytes, dict[str, str]]]:
    """Return body and headers of each path of the reference page, none where it was not built."""
    pages = {}
    for file in directory.glob("*"):
        if file.suffix in PAGE_TYPES:
            # The build puts a file's hash into its name, and these names into index.html.
            is_index = file.name == "index.html"
            cache = "no-cache" if is_index else "public, max-age=31536000, immutable"
            content_type = f"{PAGE_TYPES[file.suffix]}; charset=utf-8"
            headers = {"Content-Type": content_type, "Cache-Control": cache, **PAGE_HEADERS}
            pages["/" if is_index else f"/reference/{file.name}"] = (file.read_bytes(), headers)
    return pages


# --- Serving ----------------------------------------------------------------------------------------------------------

ALLOWED_HEADERS = "Authorization, Content-Digest, Content-Type, If-None-Match, Signature, Signature-Input"
PREFLIGHT = {"Access-Control-Allow-Headers": ALLOWED_HEADERS, "Access-Control-Max-Age": "7200"}
EXPOSED_HEADERS = "ETag, RateLimit, RateLimit-Policy, Retry-After, X-Request-Id"
KNOWN_METHODS = {"GET", "HEAD", "POST", "PUT", "DELETE", "OPTIONS", "PATCH", "TRACE", "CONNECT", "QUERY"}
DRAIN_SECONDS = 20  # how long a stop waits for what is in flight


class Server:
    """The app: its settings, spec, store and limits, and the WSGI callable."""

    def __init__(self, settings: Settings, spec: Spec, store: Store) -> None:
        self.settings, self.spec, self.store = settings, spec, store
        self.upload_limits = (
            Limit("hour", settings.backups_per_hour, 3600),
            Limit("day", settings.backups_per_day, 86400),
        )
        self.registrations = AddressLimit(Limit("registrations", settings.registrations_per_hour, 3600))
        self.failures = AddressLimit(Limit("failed credentials", settings.failed_credentials_per_5_minutes, 300))
        self._bottle = bottle.Bottle()
        self._bottle.config["catchall"] = False  # Bottle would write messages, which may repeat what was sent
        self._bottle.add_hook("before_request", self._screen)
        self._bottle.default_error_handler = lambda error: Problem(
            "not_found", "The operations and their paths are in /openapi.yaml."
        )
        pages = read_reference(Path(__file__).with_name("reference") / "dist")
        for path in {"/", *pages}:
            self._bottle.route(path, "ANY", functools.partial(self._serve_page, path, pages.get(path)))
        paths: dict[str, dict[str, Operation]] = {}
        for each in spec.operations:
            if settings.admin_key is not None or check_admin_key not in each.proofs:
                paths.setdefault(each.path, {})[each.method] = each
        for path, operations in paths.items():
            rule = re.sub(r"\{(\w+)\}", r"<\1:re:[^/]+>", path)
            self._bottle.route(rule, "ANY", functools.partial(self._serve, operations))

    def __call__(self, environ: dict[str, Any], start_response: Callable) -> Any:
        """The WSGI callable (PEP 3333)."""
        started = time.perf_counter()

        def start(status: str, headers: list[tuple[str, str]], exc_info: Any = None) -> Callable:
            request_id = self.finish_headers(headers, environ.get("HTTP_ORIGIN"))
            method = environ["REQUEST_METHOD"]
            log(
                event="request",
                method=method if method in KNOWN_METHODS else "other",
                route=environ.get("backup.route"),
                status=int(status[:3]),
                milliseconds=round((time.perf_counter() - started) * 1000, 3),
                requestBytes=int(environ.get("CONTENT_LENGTH") or 0),
                responseBytes=int(dict(headers).get("Content-Length", 0)),
                requestId=request_id,
            )
            return start_response(status, headers, exc_info)

        return self._bottle(environ, start)

    def finish_headers(self, headers: list[tuple[str, str]], origin: str | None) -> str:
        """Add what every answer carries, CORS included, and return the request's id."""
        request_id = secrets.token_hex(8)
        headers.append(("X-Request-Id", request_id))
        if "Cache-Control" not in dict(headers):
            headers.append(("Cache-Control", "no-store"))
        if self.settings.allowed_origins:
            headers.append(("Vary", "Origin"))
        if origin in self.settings.allowed_origins:
            headers.append(("Access-Control-Allow-Origin", origin))
            headers.append(("Access-Control-Expose-Headers", EXPOSED_HEADERS))
        return request_id

    def rate_limit(self, times: list[int], moment: int) -> dict[str, str]:
        """Return RateLimit (draft-ietf-httpapi-ratelimit-headers-10 section 4) for an account's sorted upload times."""
        items = []
        for limit in self.upload_limits:
            counted = limit.counted(times, moment)
            until = math.ceil((counted[0] - moment) / 1000) + limit.seconds if counted else None
            left = max(0, limit.quota - len(counted))
            items.append(f'"{limit.name}";r={left}' + (f";t={until}" if counted else ""))
        return {"RateLimit": ", ".join(items)}

    def _screen(self) -> None:
        """Look at a request before it is routed: the body's length, and the path as it was sent."""
        environ = bottle.request.environ
        limit = self.spec.limits["requestBodyBytes"]
        if int(environ.get("CONTENT_LENGTH") or 0) > limit:
            raise Problem("payload_too_large", f"A request body may have {limit} bytes.")
        # Bottle and waitress decode and fold paths; the contract compares them as sent. The target is in origin-form
        # or absolute-form (RFC 9112 section 3.2).
        target = re.sub(r"^https?://[^/?]*", "", environ["REQUEST_URI"], flags=re.IGNORECASE)
        environ["PATH_INFO"] = target.partition("?")[0]

    def _serve(self, operations: Mapping[str, Operation], **parameters: str) -> bottle.HTTPResponse:
        """Answer a request to a path that has these operations, by method."""
        environ = bottle.request.environ
        environ["backup.route"] = next(iter(operations.values())).path
        # HEAD is GET, whose body Bottle leaves out, but only where no proof is needed.
        heads = {"HEAD": operations["GET"]} if "GET" in operations and not operations["GET"].proofs else {}
        operation = (operations | heads).get(environ["REQUEST_METHOD"])
        if operation is None:
            return self._refuse_method(", ".join(sorted(operations | heads)), environ)
        try:
            request = Request(operation, environ, parameters)
            request.address = client_address(environ, self.settings.on_fly)
            for prove in operation.proofs:
                prove(self, request)
            read_body(request)
            response = operation.handler(self, request)
        except Problem as problem:
            response = problem
        except Exception as error:
            log_exception(error)
            detail = "The server failed and has logged it under this X-Request-Id: repeat later."
            response = Problem("internal_error", detail)
        if operation.is_upload and response.status_code in (200, 201, 429):
            policies = (f'"{limit.name}";q={limit.quota};w={limit.seconds}' for limit in self.upload_limits)
            response.set_header("RateLimit-Policy", ", ".join(policies))
        return response

    def _serve_page(self, path: str, page: tuple[bytes, dict[str, str]] | None) -> bottle.HTTPResponse:
        """Answer a request to a file of the reference page, which is no part of the contract."""
        environ = bottle.request.environ
        environ["backup.route"] = path
        if page is None:
            return Problem("not_found", "The reference page was not built. This builds it: tox run -e reference")
        if environ["REQUEST_METHOD"] not in ("GET", "HEAD"):
            return self._refuse_method("GET, HEAD", environ)
        return bottle.HTTPResponse(page[0], headers=page[1])

    def _refuse_method(self, methods: str, environ: Mapping[str, Any]) -> bottle.HTTPResponse:
        """Answer a CORS preflight, and any other method that the path does not have with 405."""
        is_preflight = environ["REQUEST_METHOD"] == "OPTIONS" and "HTTP_ACCESS_CONTROL_REQUEST_METHOD" in environ
        if is_preflight and environ.get("HTTP_ORIGIN") in self.settings.allowed_origins:
            return bottle.HTTPResponse(status=204, headers={"Access-Control-Allow-Methods": methods, **PREFLIGHT})
        problem = Problem("method_not_allowed", "Allow names the methods of this path.")
        problem.set_header("Allow", methods)
        return problem


def client_address(environ: Mapping[str, Any], on_fly: bool) -> str:
    """Return the client's address, an IPv6 one as its /64, an IPv4-mapped one as IPv4."""
    # Elsewhere than on Fly anybody could send this header.
    text = environ.get("HTTP_FLY_CLIENT_IP" if on_fly else "REMOTE_ADDR", environ["REMOTE_ADDR"])
    try:
        address = ipaddress.ip_address(text.partition("%")[0])
    except ValueError:
        return environ["REMOTE_ADDR"]
    if address.version == 6 and not address.ipv4_mapped:
        return str(ipaddress.ip_network((address.packed, 64), strict=False))
    return str(getattr(address, "ipv4_mapped", None) or address)


def read_body(request: Request) -> None:
    """Read the JSON of a request whose operation takes any. Raises Problem malformed_request and its kin."""
    validator = request.operation.validator
    if validator is None:
        if request.body:
            raise Problem("malformed_request", "This operation takes no body.")
        return
    media_type, _, parameters = request.environ.get("CONTENT_TYPE", "").partition(";")
    if (
        media_type.strip().lower() != request.operation.media_type
        or parameters.strip().lower() not in ("", "charset=utf-8", 'charset="utf-8"')
        or (request.header("Content-Encoding") or "identity").lower() != "identity"
    ):
        detail = f"Send Content-Type {request.operation.media_type} and no Content-Encoding."
        raise Problem("unsupported_media_type", detail)
    request.value = parse_json(request.body)
    if errors := validation_errors(validator, request.value):
        raise validation_failed(errors)


def validation_failed(errors: list[dict[str, str]]) -> Problem:
    detail = "See errors for where the body departs from the schema."
    return Problem("validation_failed", detail, errors=errors)


def log_exception(error: BaseException) -> None:
    """Log where an error arose. Its message is left out: it might repeat what was sent."""
    frames = [f"{Path(frame.filename).name}:{frame.lineno}" for frame in traceback.extract_tb(error.__traceback__)]
    log(event="error", error=type(error).__name__, at=frames[-8:])


class RequestParser(waitress.parser.HTTPRequestParser):
    """waitress' parser, stricter where RFC 9112 is, and never without an answer."""

    def received(self, data: bytes) -> int:
        try:
            consumed = super().received(data)
            # waitress collects a chunk's line and the trailer in memory without end.
            unread = getattr(self.body_rcv, "control_line", b"") + getattr(self.body_rcv, "trailer", b"")
            if len(unread) >= self.adj.max_request_header_size:
                raise ValueError("a chunk's line or the trailer is too long")
            return consumed
        except ValueError:  # such as a Content-Length of 5,000 digits
            self.error = waitress.utilities.BadRequest("")
            self.completed = True
            return len(data)
        finally:
            if self.error:
                self.expect_continue = False  # the error is the answer

    def parse_header(self, header_plus: bytes) -> None:
        # A method is case-sensitive (RFC 9110 section 9.1), and one in small letters is a method that no path has.
        super().parse_header(re.sub(rb"^(?=\S*[a-z])[\w!#$%&'*+.^`|~-]+ ", b"OTHER ", header_plus))
        if self.version not in ("1.0", "1.1"):
            raise waitress.parser.ParsingError("unknown version")
        if not re.fullmatch(r"[!-~]+", self.request_uri):
            raise waitress.parser.ParsingError("the target is not ASCII")  # RFC 3986 section 2
        if self.version == "1.1" and ("HOST" not in self.headers or "," in self.headers["HOST"]):
            raise waitress.parser.ParsingError("not exactly one Host")  # RFC 9112 section 3.2
        codings = re.findall(rb"(?im)^transfer-encoding:[ \t]*(.*?)[ \t]*\r?$", header_plus)
        is_faulty = self.version == "1.0" or "CONTENT_LENGTH" in self.headers or codings[1:] or not self.chunked
        if codings and (is_faulty or codings[0].lower() != b"chunked"):
            raise waitress.parser.ParsingError("faulty framing")  # RFC 9112 section 6.1
        if self.expect_continue:
            # A client that waits for leave to send is refused at once; without a body there is nothing to wait for.
            self.expect_continue = self.chunked or self.content_length > 0
            if self.content_length > self.adj.max_request_body_size // 2:
                self.error = waitress.utilities.RequestEntityTooLarge("")
                self.completed = True


class ProblemTask(waitress.task.ErrorTask):
    """Writes waitress' own errors as problems."""

    PROBLEMS = {  # by the status that waitress would send
        400: ("malformed_request", "Request line, headers, or the framing of the body are malformed."),
        413: ("payload_too_large", "A request body may have {requestBodyBytes} bytes."),
        431: ("headers_too_large", "Request line and headers together may have {requestHeaderBytes} bytes."),
        500: ("internal_error", "The server failed and has logged it under this X-Request-Id: repeat later."),
        501: ("malformed_request", "The only transfer coding is chunked."),
    }

    def execute(self) -> None:
        server: Server = self.channel.server.application
        code, detail = self.PROBLEMS[self.request.error.code]
        problem = Problem(code, detail.format(**server.spec.limits))
        headers = problem.headerlist
        request_id = server.finish_headers(headers, self.request.headers.get("ORIGIN"))
        log(event="request", method=None, route=None, status=problem.status_code, requestId=request_id)
        self.status, self.content_length = problem.status_line, len(problem.body)
        self.response_headers.extend(headers)
        self.set_close_on_finish()
        self.write(b"" if getattr(self.request, "command", "") == "HEAD" else problem.body)


class Channel(waitress.channel.HTTPChannel):
    parser_class = RequestParser
    error_task_class = ProblemTask

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self.requests_lock = threading.RLock()  # `received` below holds it while waitress' own takes it again

    def received(self, data: bytes) -> bool:
        # A thread waits until a client has read its answers (waitress' outbuf_high_watermark, 16 MiB): of requests
        # that were sent ahead the first two are answered, then the connection is closed (RFC 9112 section 9.3.2).
        with self.requests_lock:
            is_open = super().received(data)
            for request in self.requests[2:]:
                request.close()
            if self.requests[2:]:
                del self.requests[2:]
                self.requests[1].headers["CONNECTION"] = "close"
                self.request = None
        return is_open


class WaitressLog(logging.Handler):
    """Logs that waitress had something to say, and where; its messages may repeat what was sent."""

    def emit(self, record: logging.LogRecord) -> None:
        log(event="http_server", level=record.levelname, at=f"{record.module}:{record.lineno}")
        if record.exc_info and record.exc_info[1]:
            log_exception(record.exc_info[1])


def listen(server: Server) -> waitress.server.TcpWSGIServer:
    """Bind the address and return waitress, ready to run. Raises StartupError where the address cannot be had."""
    settings, limits = server.settings, server.spec.limits
    family = socket.AF_INET6 if ":" in settings.host else socket.AF_INET
    try:
        listener = socket.create_server((settings.host, settings.port), family=family)
    except (OSError, UnicodeError) as error:
        raise StartupError(f"HOST {settings.host}, PORT {settings.port} cannot be listened on: {error}.") from None
    logging.getLogger("waitress").addHandler(WaitressLog())
    logging.getLogger("waitress").propagate = False
    logging.getLogger("waitress.queue").setLevel(logging.CRITICAL)  # it warns of each request that waits a moment
    http = waitress.server.create_server(
        server,
        map={},
        sockets=[listener],
        threads=4,
        ident="",
        recv_bytes=16_384,  # waitress copies what it has received once for each chunk in it
        inbuf_overflow=65_536,  # beyond it an unfinished body waits on disk, not in memory
        asyncore_use_poll=True,
        connection_limit=1000,
        max_request_header_size=limits["requestHeaderBytes"] + 1,
        # A body of up to twice the limit is read to its end, so that its sender sees the 413 and no reset.
        max_request_body_size=2 * limits["requestBodyBytes"] + 1,
        clear_untrusted_proxy_headers=False,  # no such header is read
    )
    http.channel_class = Channel
    return http


def run(http: waitress.server.TcpWSGIServer) -> None:
    """Serve until SIGINT or SIGTERM, then stop listening and finish what is in flight."""
    stopping = threading.Event()

    def stop(*_: Any) -> None:
        stopping.set()
        http.pull_trigger()

    signal.signal(signal.SIGINT, stop)
    signal.signal(signal.SIGTERM, stop)
    host = f"[{http.effective_host}]" if ":" in http.effective_host else http.effective_host
    operations = len(http.application.spec.operations)
    log(event="serving", url=f"http://{host}:{http.effective_port}", operations=operations)
    while not stopping.is_set():
        wasyncore.poll2(1, http._map)

    log(event="stopping")
    wasyncore.poll2(0, http._map)  # take what has arrived already
    wasyncore.dispatcher.close(http)
    deadline = time.monotonic() + DRAIN_SECONDS
    while http.active_channels and time.monotonic() < deadline:
        for channel in list(http.active_channels.values()):
            if not (channel.requests or channel.request or channel.total_outbufs_len):
                channel.will_close = True
        wasyncore.poll2(0.1, http._map)
    http.task_dispatcher.shutdown()
    for thread in threading.enumerate():  # each gives up its connection to the file as it ends
        if thread.name.startswith("waitress-"):
            thread.join(5)


def main(argv: list[str] | None = None) -> int:
    """Serve until stopped. Returns the exit code: 0 after a stop, 2 where the server cannot start."""
    parser = argparse.ArgumentParser(
        prog="backup_server.py",
        description="The DailyReps backup server. Serves until SIGINT or SIGTERM.",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    try:
        spec = Spec(Path(__file__).with_name("openapi.yaml"))
        parser.epilog = SETTINGS_HELP.format(NEW_SECRET=NEW_SECRET, **spec.configurable_limits)
        parser.parse_args(argv)
        settings = Settings.from_environ(os.environ, spec.configurable_limits)
        with contextlib.closing(Store(settings.database_path, spec.limits["deletedUserSeconds"])) as store:
            run(listen(Server(settings, spec, store)))
    except StartupError as error:
        print(f"backup_server: {error}", file=sys.stderr)
        return 2
    log(event="stopped")
    return 0


if __name__ == "__main__":
    sys.exit(main())
