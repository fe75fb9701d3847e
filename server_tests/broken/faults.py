"""Servers broken on purpose, each in one way: what shows that the contract tests find what they are for.

`launcher.py --broken NAME` loads the real server, lets the fault of that name change one thing of it, and serves. A
fault is a function of the server's module; its docstring says what goes wrong, `breaks` names the requirements of
openapi.yaml that are not kept any more. `../run_broken.py` runs the tests of these requirements against it.
"""

import base64
import binascii
import contextlib
import dataclasses
import hmac
import json
import math
import re
import secrets
import time
import traceback
import urllib.parse
from collections.abc import Callable, Mapping
from datetime import datetime
from http.client import responses
from types import ModuleType, SimpleNamespace
from typing import Any
from wsgiref.headers import Headers

from waitress.parser import HTTPRequestParser, ParsingError


@dataclasses.dataclass(frozen=True)
class Fault:
    """One way to be broken: the requirements it breaks, what happens, and the change of the server's module.

    `test` is for what no client can see and no requirement says: the test of this server that finds it.
    """

    requirements: tuple[str, ...]
    description: str
    put_in: Callable[[ModuleType], None]
    test: str | None = None


FAULTS: dict[str, Fault] = {}


def breaks(*requirements: str, test: str | None = None) -> Callable:
    """Registers a fault, by the name of its function, with hyphens."""

    def register(put_in: Callable[[ModuleType], None]) -> Callable[[ModuleType], None]:
        name = put_in.__name__.replace("_", "-")
        FAULTS[name] = Fault(requirements, put_in.__doc__ or "", put_in, test)
        return put_in

    return register


# ---- Tools -------------------------------------------------------------------------------------------------


def instead_of(owner: Any, name: str) -> Callable:
    """Puts a function in the place of another, which it gets as its first argument."""
    real = owner[name] if isinstance(owner, dict) else getattr(owner, name)

    def replace(function: Callable) -> Callable:
        def replacement(*arguments: Any, **options: Any) -> Any:
            return function(real, *arguments, **options)

        if isinstance(owner, dict):
            owner[name] = replacement
        else:
            setattr(owner, name, replacement)
        return replacement

    return replace


def on_answer(server: ModuleType) -> Callable:
    """A proxy before the app: a function of (environ, answer) changes the answer's status, headers and body."""

    def put_before(change: Callable) -> Callable:
        @instead_of(server.Server, "__call__")
        def proxy(real: Callable, app: Any, environ: dict[str, Any], start_response: Callable) -> list[bytes]:
            answer = SimpleNamespace()

            def start(status: str, headers: list[tuple[str, str]], exc_info: Any = None) -> None:
                answer.status, answer.headers = int(status[:3]), Headers(headers)

            answer.body = body = b"".join(real(app, environ, start))
            change(environ, answer)
            if answer.body != body:
                answer.headers["Content-Length"] = str(len(answer.body))
            start_response(f"{answer.status} {responses[answer.status]}", answer.headers.items())
            return [answer.body]

        return change

    return put_before


def code(problem: Any) -> str:
    """The code of a Problem that was raised."""
    return json.loads(problem.body)["code"]


def add_to_limit(server: ModuleType, name: str, number: int) -> None:
    """Changes one of the limits that the server reads from openapi.yaml."""

    @instead_of(server.Spec, "__init__")
    def load(real: Callable, spec: Any, path: Any) -> None:
        real(spec, path)
        spec.limits[name] += number


def change_setting(server: ModuleType, name: str, change: Callable) -> None:
    """Changes one of the settings that the server reads from its environment."""

    @instead_of(server.Settings, "from_environ")
    def from_environ(real: Callable, *arguments: Any) -> Any:
        settings = real(*arguments)
        return dataclasses.replace(settings, **{name: change(getattr(settings, name))})


def put_record(app: Any, request: Any, **members: Any) -> None:
    """Changes these members of the record of the request's user."""
    record = app.store.record(request.user_id)
    app.store.exclusively(lambda: app.store.put_record(request.user_id, record, record | members))


def count_an_upload(server: ModuleType, app: Any, request: Any) -> None:
    uploads = app.store.record(request.user_id)["uploads"]
    put_record(app, request, uploads=[*uploads, [server.now(), None]])


def latest(app: Any, request: Any) -> Mapping[str, Any]:
    """The latest version of the request's user, as it is now; empty if there is none."""
    return ((app.store.record(request.user_id) or {}).get("versions") or [{}])[-1]


def rebase(app: Any, request: Any) -> None:
    """Makes the latest version the base of an upload, whatever its base was."""
    request.value.pop("baseSha256", None)
    if version := latest(app, request):
        request.value["baseSha256"] = version["sha256"]


# ---- It comes from the app ---------------------------------------------------------------------------------


@breaks("signature.secret")
def any_signature_is_accepted(server: ModuleType) -> None:
    """No MAC is ever wrong."""
    compare_macs(server, lambda right, sent: True)


@breaks("signature.whole")
def mac_is_compared_by_its_first_half(server: ModuleType) -> None:
    """Of the MAC only the first 16 bytes count."""
    compare_macs(server, lambda right, sent: right[:25] == sent[:25])


def compare_macs(server: ModuleType, compare: Callable[[str, str], bool]) -> None:
    def compare_digest(right: Any, sent: Any) -> bool:
        return (compare if str(sent).startswith("app=:") else hmac.compare_digest)(right, sent)

    server.hmac = SimpleNamespace(digest=hmac.digest, compare_digest=compare_digest)


@breaks("signature.missing")
def reads_need_no_signature(server: ModuleType) -> None:
    """Only what writes has to be signed."""

    @instead_of(server.PROOFS, "appSignature")
    def check_signature(real: Callable, app: Any, request: Any) -> None:
        if request.operation.method != "GET" or not request.header("Authorization"):
            real(app, request)


@breaks("signature.method")
def signature_is_not_bound_to_the_method(server: ModuleType) -> None:
    """A signature for GET is good for DELETE."""
    unbind(server, "REQUEST_METHOD", "GET", "POST", "PUT", "DELETE")


@breaks("signature.path")
def signature_is_not_bound_to_the_path(server: ModuleType) -> None:
    """A signature for one path is good for another."""
    paths = "register", "backup", "backup/versions", "backup/versions/1", "user", "user/storage-key"
    unbind(server, "PATH_INFO", *(f"/api/{path}" for path in paths))


@breaks("signature.authorization")
def signature_is_not_bound_to_the_credentials(server: ModuleType) -> None:
    """A signature that was seen with other credentials is good for these."""
    unbind(server, "HTTP_AUTHORIZATION")


@breaks("signature.digest")
def signature_is_not_bound_to_the_digest(server: ModuleType) -> None:
    """A signature that was seen with another digest is good for this one."""
    unbind(server, "HTTP_CONTENT_DIGEST")


def unbind(server: ModuleType, component: str, *known: str) -> None:
    """Lets a signature pass that is right for any known value of a component; those that are seen become known."""
    values = dict.fromkeys(known)

    @instead_of(server.PROOFS, "appSignature")
    def check_signature(real: Callable, app: Any, request: Any) -> None:
        environ = request.environ
        values.setdefault(environ.get(component))
        for value in [environ.get(component), *values]:
            request.environ = environ | {component: value}
            try:
                return real(app, request)
            except server.Problem as problem:
                refusal = problem
                if code(problem) != "signature_invalid":
                    break
            finally:
                request.environ = environ
        raise refusal


@breaks("digest.mismatch")
def body_is_not_compared_with_its_digest(server: ModuleType) -> None:
    """The digest is signed, but the body may be another."""

    @instead_of(server.PROOFS, "appSignature")
    def check_signature(real: Callable, app: Any, request: Any) -> None:
        try:
            real(app, request)
        except server.Problem as problem:
            if code(problem) != "digest_mismatch":
                raise
            request.signature = request.header("Signature")


@breaks("digest.empty")
def digest_of_no_body_is_not_compared(server: ModuleType) -> None:
    """A request without a body may carry the digest of any."""

    @instead_of(server.PROOFS, "appSignature")
    def check_signature(real: Callable, app: Any, request: Any) -> None:
        try:
            real(app, request)
        except server.Problem as problem:
            if code(problem) != "digest_mismatch" or request.body:
                raise
            request.signature = request.header("Signature")


@breaks("signature.accepted")
def signature_of_a_put_is_refused(server: ModuleType) -> None:
    """The server has the method as `put`, in small letters, when it computes the MAC."""

    @instead_of(server.PROOFS, "appSignature")
    def check_signature(real: Callable, app: Any, request: Any) -> None:
        environ = request.environ
        request.environ = environ | {"REQUEST_METHOD": environ["REQUEST_METHOD"].replace("PUT", "put")}
        try:
            real(app, request)
        finally:
            request.environ = environ


@breaks("signature.expired")
def window_is_a_second_too_wide(server: ModuleType) -> None:
    """A signature is accepted when it is 301 seconds old."""
    add_to_limit(server, "signatureSkewSeconds", 1)


@breaks("signature.window")
def window_is_a_second_too_narrow(server: ModuleType) -> None:
    """A signature is refused when it is 300 seconds old."""
    add_to_limit(server, "signatureSkewSeconds", -1)


@breaks("signature.expired")
def signature_may_be_from_the_future(server: ModuleType) -> None:
    """Only how old a signature is counts."""
    server.abs = lambda seconds: max(seconds, 0)


@breaks("signature.expired", "replay.register", "replay.store", "replay.key", "replay.delete")
def signature_never_expires(server: ModuleType) -> None:
    """`created` is signed, and nobody looks at it."""
    server.abs = lambda seconds: 0


@breaks("signature.expired-last")
def expiry_is_told_before_the_mac_is_checked(server: ModuleType) -> None:
    """Anybody may ask for the server's time."""

    @instead_of(server.PROOFS, "appSignature")
    def check_signature(real: Callable, app: Any, request: Any) -> None:
        created = re.search(r";created=([0-9]{1,15});", request.header("Signature-Input") or "")
        if created and abs(server.now() // 1000 - int(created[1])) > 300:
            raise server.Problem("signature_expired", "Sign again.", serverTime=server.now() // 1000)
        real(app, request)


@breaks("signature.expired")
def server_time_is_in_milliseconds(server: ModuleType) -> None:
    """A phone mends its clock by 57,000 years."""

    @instead_of(server.Problem, "__init__")
    def make(real: Callable, problem: Any, *arguments: Any, serverTime: int = 0, **members: Any) -> None:  # noqa: N803
        real(problem, *arguments, **members | ({"serverTime": serverTime * 1000} if serverTime else {}))


@breaks("signature.twice")
def first_of_two_headers_counts(server: ModuleType) -> None:
    """A header that is sent twice is taken for its first line."""

    @instead_of(server.Server, "__call__")
    def call(real: Callable, app: Any, environ: dict[str, Any], start_response: Callable) -> Any:
        for name in ("AUTHORIZATION", "CONTENT_DIGEST", "SIGNATURE_INPUT", "SIGNATURE"):
            if f"HTTP_{name}" in environ:
                environ[f"HTTP_{name}"] = environ[f"HTTP_{name}"].partition(", ")[0]
        return real(app, environ, start_response)


@breaks("signature.profile")
def more_parameters_are_let_pass(server: ModuleType) -> None:
    """A signature may say that it expires, and is good for as long as any."""
    server.SIGNATURE_INPUT = re.compile(server.SIGNATURE_INPUT.pattern[:-1] + "[^,]*)")


@breaks("signature.algorithm")
def algorithm_is_not_looked_at(server: ModuleType) -> None:
    """`alg` may be anything."""
    server.SIGNATURE_INPUT = re.compile(server.SIGNATURE_INPUT.pattern.replace("hmac-sha256", '[^"]*'))


@breaks("signature.encoding")
def signature_may_be_hexadecimal(server: ModuleType) -> None:
    """A MAC in hexadecimal digits is read, too."""

    @instead_of(server.PROOFS, "appSignature")
    def check_signature(real: Callable, app: Any, request: Any) -> None:
        if digits := re.fullmatch("app=:([0-9a-f]{64}):", request.header("Signature") or ""):
            mac = base64.b64encode(bytes.fromhex(digits[1])).decode()
            request.environ["HTTP_SIGNATURE"] = f"app=:{mac}:"
        real(app, request)


@breaks("signature.keyid")
def unknown_keyid_means_the_first_secret(server: ModuleType) -> None:
    """A keyid that nobody gave out is good, too."""

    class Forgiving(dict):
        def get(self, keyid: str) -> bytes:
            return super().get(keyid) or next(iter(self.values()))

    change_setting(server, "app_secrets", Forgiving)


@breaks("signature.rotation")
def only_the_first_secret_is_valid(server: ModuleType) -> None:
    """Whoever has the app's new version has no backup."""
    change_setting(server, "app_secrets", lambda app_secrets: dict([next(iter(app_secrets.items()))]))


@breaks("signature.query")
def query_is_ignored(server: ModuleType) -> None:
    """A signed operation may have a query, which nobody signed."""

    @instead_of(server.PROOFS, "appSignature")
    def check_signature(real: Callable, app: Any, request: Any) -> None:
        request.environ["REQUEST_URI"] = request.environ["REQUEST_URI"].partition("?")[0]
        real(app, request)


# ---- It comes from this user -------------------------------------------------------------------------------


@breaks("credentials.same")
def unknown_user_is_told(server: ModuleType) -> None:
    """Anybody may ask who has an account."""

    @instead_of(server.PROOFS, "userCredentials")
    def check_credentials(real: Callable, app: Any, request: Any) -> None:
        try:
            real(app, request)
        except server.Problem as problem:
            if code(problem) != "credentials_invalid" or app.store.record(request.user_id):
                raise
            raise server.Problem("credentials_invalid", "There is no such user.") from None


@breaks("credentials.whole")
def key_is_compared_by_its_beginning(server: ModuleType) -> None:
    """Of the storage key only the first four digits of its hash count."""

    @instead_of(server, "owns")
    def owns(real: Callable, request: Any, record: Mapping[str, Any]) -> bool:
        return record.get("storageKeySha256", "none")[:4] == server.sha256(request.storage_key.encode())[:4]


@breaks("credentials.form")
def credentials_may_be_in_capitals(server: ModuleType) -> None:
    """One username has many accounts."""
    server.USER_ID_AND_STORAGE_KEY = re.compile(server.USER_ID_AND_STORAGE_KEY.pattern, re.IGNORECASE)


@breaks("credentials.challenge")
def challenge_is_missing(server: ModuleType) -> None:
    """A 401 does not say what would be accepted."""

    @on_answer(server)
    def change(environ: Mapping[str, Any], answer: Any) -> None:
        del answer.headers["WWW-Authenticate"]


@breaks("isolation.read")
def anyone_reads(server: ModuleType) -> None:
    """Backups are given to whoever knows the username."""
    belongs_to_anyone(server, "fetchBackup", "fetchBackupVersion", "listBackupVersions")


@breaks("isolation.write")
def anyone_overwrites(server: ModuleType) -> None:
    """Whoever knows the username stores a version."""
    belongs_to_anyone(server, "storeBackup")


@breaks("isolation.key")
def anyone_changes_the_key(server: ModuleType) -> None:
    """Whoever knows the username locks the user out."""
    belongs_to_anyone(server, "changeStorageKey")


@breaks("isolation.delete")
def anyone_deletes(server: ModuleType) -> None:
    """Whoever knows the username deletes the account."""
    belongs_to_anyone(server, "deleteUser")


def belongs_to_anyone(server: ModuleType, *operations: str) -> None:
    @instead_of(server, "owns")
    def owns(real: Callable, request: Any, record: Mapping[str, Any]) -> bool:
        return real(request, record) or (request.operation.id in operations and "storageKeySha256" in record)


@breaks("isolation.read", "isolation.write", "isolation.delete")
def any_users_key_opens_every_account(server: ModuleType) -> None:
    """A storage key is looked up, and nobody asks whose it is."""
    in_use = set()

    @instead_of(server, "owns")
    def owns(real: Callable, request: Any, record: Mapping[str, Any]) -> bool:
        if real(request, record):
            in_use.add(request.storage_key)
        return request.storage_key in in_use and "storageKeySha256" in record


@breaks("isolation.key")
def registering_again_replaces_the_key(server: ModuleType) -> None:
    """Whoever knows the username takes over the account by registering it."""

    @instead_of(server.HANDLERS, "registerUser")
    def register_user(real: Callable, app: Any, request: Any) -> Any:
        if "storageKeySha256" in (app.store.record(request.user_id) or {}):
            put_record(app, request, storageKeySha256=server.sha256(request.storage_key.encode()))
        return real(app, request)


@breaks("isolation.read")
def cache_takes_one_user_for_another(server: ModuleType) -> None:
    """A version never changes, so it is cached by its path."""
    cache: dict[str, bytes] = {}

    @on_answer(server)
    def change(environ: Mapping[str, Any], answer: Any) -> None:
        if environ["PATH_INFO"].startswith("/api/backup/versions/") and answer.status == 200:
            answer.body = cache.setdefault(environ["PATH_INFO"], answer.body)


@breaks("isolation.block")
def uploads_of_strangers_count(server: ModuleType) -> None:
    """Whoever knows the username uses up the user's uploads, without any key."""

    @instead_of(server.PROOFS, "userCredentials")
    def check_credentials(real: Callable, app: Any, request: Any) -> None:
        try:
            real(app, request)
        except server.Problem:
            if request.operation.is_upload and request.record.get("uploads") is not None:
                count_an_upload(server, app, request)
            raise


# ---- A backup ----------------------------------------------------------------------------------------------


@breaks("backup.bytes")
def backup_loses_its_last_byte(server: ModuleType) -> None:
    """Stored, and described by the receipt, is one byte less than was sent."""
    change_data(server, lambda data: data[:-1] or data)


@breaks("backup.bytes")
def backup_is_padded(server: ModuleType) -> None:
    """Stored are whole blocks of 16 bytes."""
    change_data(server, lambda data: data + bytes(-len(data) % 16))


@breaks("backup.largest")
def backup_is_cut_off_at_a_mebibyte(server: ModuleType) -> None:
    """Of a large backup only the beginning is stored."""
    change_data(server, lambda data: data[: 2**20])


def change_data(server: ModuleType, change: Callable[[bytes], bytes]) -> None:
    @instead_of(server, "decode_base64")
    def decode_base64(real: Callable, text: str) -> bytes | None:
        data = real(text)
        return change(data) if data else data


@breaks("backup.bytes")
def one_bit_is_flipped(server: ModuleType) -> None:
    """What is fetched differs from what was stored in the last bit."""

    @on_answer(server)
    def change(environ: Mapping[str, Any], answer: Any) -> None:
        if b'"data":' in answer.body and answer.status == 200 and environ["PATH_INFO"].startswith("/api/"):
            backup = json.loads(answer.body)
            *data, last = base64.b64decode(backup["data"])
            answer.body = json.dumps(backup | {"data": base64.b64encode(bytes([*data, last ^ 1])).decode()}).encode()


@breaks("backup.largest")
def largest_backup_is_a_byte_smaller(server: ModuleType) -> None:
    """5,242,880 bytes are too many."""
    limit_backups(server, lambda size: size - 1)


@breaks("backup.too-large")
def largest_backup_is_a_byte_larger(server: ModuleType) -> None:
    """5,242,881 bytes are accepted."""
    limit_backups(server, lambda size: size + 1)


@breaks("backup.largest")
def base64_has_to_fit_the_limit(server: ModuleType) -> None:
    """5,242,880 characters of base64 are the most."""
    limit_backups(server, lambda size: size * 3 // 4)


def limit_backups(server: ModuleType, change: Callable[[int], int]) -> None:
    @instead_of(server.Spec, "__init__")
    def load(real: Callable, spec: Any, path: Any) -> None:
        real(spec, path)
        spec.max_decoded_bytes = change(spec.max_decoded_bytes)


@breaks("backup.too-large")
def size_is_counted_in_text(server: ModuleType) -> None:
    """What decides is how long the largest backup is in base64, which three sizes share."""

    @instead_of(server, "store_version")
    def store_version(real: Callable, app: Any, request: Any, *key: str) -> Any:
        limit = app.spec.max_decoded_bytes
        if len(request.value["data"]) > 4 * math.ceil(limit / 3):
            raise server.Problem("payload_too_large", "Too large.")
        app.spec.max_decoded_bytes += 3
        try:
            return real(app, request, *key)
        finally:
            app.spec.max_decoded_bytes = limit


@breaks("backup.body")
def largest_body_is_a_byte_smaller(server: ModuleType) -> None:
    """A body of 8,388,608 bytes is too large."""
    add_to_limit(server, "requestBodyBytes", -1)


@breaks("backup.body")
def largest_body_is_a_byte_larger(server: ModuleType) -> None:
    """A body of 8,388,609 bytes is read."""
    add_to_limit(server, "requestBodyBytes", 1)


@breaks("backup.base64")
def base64_is_unchecked(server: ModuleType) -> None:
    """What is no base64 is skipped."""

    def decode_base64(text: str) -> bytes | None:
        try:
            return base64.b64decode(text.encode() + b"==") or None
        except binascii.Error:
            return None

    server.decode_base64 = decode_base64


@breaks("backup.base64")
def unused_bits_are_unchecked(server: ModuleType) -> None:
    """One backup has many spellings."""

    def decode_base64(text: str) -> bytes | None:
        try:
            return base64.b64decode(text, validate=True)
        except binascii.Error:
            return None

    server.decode_base64 = decode_base64


@breaks("backup.damaged")
def damage_is_not_seen(server: ModuleType) -> None:
    """A version is answered whatever has become of its bytes."""

    @instead_of(server, "fetch")
    def fetch(real: Callable, app: Any, request: Any, choose: Callable) -> Any:
        try:
            return real(app, request, choose)
        except server.Problem as problem:
            if code(problem) != "backup_damaged":
                raise
            version = choose(request.record["versions"])
            data = base64.b64encode(app.store.blob(request.user_id, version["slot"])).decode()
            etag = f'"{version["version"]}-{version["sha256"]}"'
            return server.answer(200, server.receipt(version) | {"data": data}, {"ETag": etag})


@breaks("retry.mends")
def damage_stays(server: ModuleType) -> None:
    """A retry is told that all is well, and the damaged bytes are left as they are."""

    @instead_of(server, "store_version")
    def store_version(real: Callable, app: Any, request: Any, *arguments: Any) -> Any:
        put_blob = app.store.put_blob
        digest = server.sha256(server.decode_base64(request.value["data"]))
        if latest(app, request).get("sha256") == digest:
            app.store.put_blob = lambda *_: None
        try:
            return real(app, request, *arguments)
        finally:
            app.store.put_blob = put_blob


# ---- Versions ----------------------------------------------------------------------------------------------


@breaks("version.count")
def version_numbers_are_used_again(server: ModuleType) -> None:
    """A version's number is how many versions there are."""

    @instead_of(server, "kept_versions")
    def kept_versions(real: Callable, versions: list[dict[str, Any]], keep: tuple[int, ...]) -> list[dict[str, Any]]:
        kept = real(versions, keep)
        kept[-1]["version"] = len(kept)
        return kept


@breaks("version.latest")
def oldest_version_is_fetched(server: ModuleType) -> None:
    """fetchBackup answers the first version that is kept."""

    @instead_of(server.HANDLERS, "fetchBackup")
    def fetch_backup(real: Callable, app: Any, request: Any) -> Any:
        request.record["versions"] = request.record["versions"][:1]
        return real(app, request)


@breaks("version.list")
def versions_are_listed_oldest_first(server: ModuleType) -> None:
    """The list begins with the oldest version."""

    @instead_of(server.HANDLERS, "listBackupVersions")
    def list_backup_versions(real: Callable, app: Any, request: Any) -> Any:
        request.record["versions"].reverse()
        return real(app, request)


@breaks("version.key")
def key_version_is_always_1(server: ModuleType) -> None:
    """A client cannot tell which password opens a version."""

    @instead_of(server, "receipt")
    def receipt(real: Callable, version: Mapping[str, Any]) -> dict[str, Any]:
        return real(version) | {"keyVersion": 1}


@breaks("version.key")
def key_version_is_the_accounts(server: ModuleType) -> None:
    """With the key older versions change their keyVersion, and still open with the old password."""

    @instead_of(server, "kept_versions")
    def kept_versions(real: Callable, versions: list[dict[str, Any]], keep: tuple[int, ...]) -> list[dict[str, Any]]:
        for version in versions:
            version["keyVersion"] = versions[-1]["keyVersion"]
        return real(versions, keep)


@breaks("version.canonical")
def version_may_have_leading_zeros(server: ModuleType) -> None:
    """A version is whatever int() takes."""

    @instead_of(server.HANDLERS, "fetchBackupVersion")
    def fetch_backup_version(real: Callable, app: Any, request: Any) -> Any:
        if re.fullmatch("[+0]*[0-9]{1,9}", request.parameters["version"]):
            request.parameters["version"] = str(int(request.parameters["version"]))
        return real(app, request)


@breaks("etag.strong")
def etag_is_weak(server: ModuleType) -> None:
    """A compressing proxy has been here."""

    @on_answer(server)
    def change(environ: Mapping[str, Any], answer: Any) -> None:
        if "ETag" in answer.headers:
            answer.headers["ETag"] = "W/" + answer.headers["ETag"]


@breaks("etag.other")
def changed_backup_is_not_modified(server: ModuleType) -> None:
    """Whoever has any version is told that it is the latest."""
    server.matches = lambda if_none_match, etag: bool(if_none_match)


@breaks("etag.match")
def if_none_match_has_to_be_the_etag(server: ModuleType) -> None:
    """A list of ETags, a weak one, or * is not understood."""
    server.matches = lambda if_none_match, etag: if_none_match == etag


# ---- No lost update ----------------------------------------------------------------------------------------


@breaks("base.latest")
def first_backup_needs_a_base(server: ModuleType) -> None:
    """An upload without a base is a conflict, the first one too."""

    @instead_of(server, "store_version")
    def store_version(real: Callable, app: Any, request: Any, *key: str) -> Any:
        if "baseSha256" not in request.value:
            version = latest(app, request).get("version", 0)
            raise server.Problem("version_conflict", "Send a base.", currentVersion=version)
        return real(app, request, *key)


@breaks("base.conflict")
def base_is_ignored(server: ModuleType) -> None:
    """The last upload wins."""
    rebase_if(server, lambda app, request: True)


@breaks("base.conflict")
def base_may_be_left_out(server: ModuleType) -> None:
    """An upload without a base overwrites whatever there is."""
    rebase_if(server, lambda app, request: "baseSha256" not in request.value)


@breaks("base.conflict")
def base_may_be_any_kept_version(server: ModuleType) -> None:
    """An upload that was made from an older version overwrites the newer ones."""

    def is_kept(app: Any, request: Any) -> bool:
        base = request.value.get("baseSha256")
        return base in [version["sha256"] for version in app.store.record(request.user_id).get("versions", [])]

    rebase_if(server, is_kept)


def rebase_if(server: ModuleType, condition: Callable[[Any, Any], bool]) -> None:
    @instead_of(server, "store_version")
    def store_version(real: Callable, app: Any, request: Any, *key: str) -> Any:
        if condition(app, request):
            rebase(app, request)
        return real(app, request, *key)


@breaks("base.content")
def number_is_taken_for_a_base(server: ModuleType) -> None:
    """The latest version's number is a base as good as its sha256."""

    @instead_of(server, "read_body")
    def read_body(real: Callable, request: Any) -> None:
        versions = request.record.get("versions")
        number = re.search(rb'("baseSha256": ?)"?0*([0-9]{1,9})"?(?=[,}])', request.body)
        if versions and number and int(number[2]) == versions[-1]["version"]:
            request.body = request.body.replace(number[0], b'"baseSha256":"%b"' % versions[-1]["sha256"].encode())
        real(request)


@breaks("base.race")
def two_uploads_at_once_both_win(server: ModuleType) -> None:
    """The base is compared before the lock is taken, and not again."""

    @instead_of(server, "store_version")
    def store_version(real: Callable, app: Any, request: Any, *key: str) -> Any:
        fits = request.value.get("baseSha256") == latest(app, request).get("sha256")
        time.sleep(0.05 * fits)
        for _ in range(16 * fits):
            rebase(app, request)
            with contextlib.suppress(server.Problem):
                return real(app, request, *key)
        return real(app, request, *key)


@breaks("base.current")
def conflict_names_the_next_version(server: ModuleType) -> None:
    """currentVersion is the number that the upload would have had."""

    @on_answer(server)
    def change(environ: Mapping[str, Any], answer: Any) -> None:
        if answer.status == 409 and b'"currentVersion"' in answer.body:
            problem = json.loads(answer.body)
            answer.body = json.dumps(problem | {"currentVersion": problem["currentVersion"] + 1}).encode()


@breaks("base.conflict", "problem.unchanged")
def conflicting_upload_is_stored_all_the_same(server: ModuleType) -> None:
    """The client is told of a conflict, and has overwritten the other device's version."""

    @instead_of(server, "store_version")
    def store_version(real: Callable, app: Any, request: Any, *key: str) -> Any:
        try:
            return real(app, request, *key)
        except server.Problem as problem:
            if code(problem) == "version_conflict":
                rebase(app, request)
                real(app, request, *key)
            raise


@breaks("retry.receipt", "limits.free")
def retry_makes_another_version(server: ModuleType) -> None:
    """An upload that is repeated after a lost answer is stored twice."""

    @instead_of(server, "store_version")
    def store_version(real: Callable, app: Any, request: Any, *key: str) -> Any:
        status, version, headers = real(app, request, *key)
        if status == 200:
            status, version = 201, version | {"version": version["version"] + 1}
            put_record(app, request, versions=[*request.record["versions"], version])
            count_an_upload(server, app, request)
        return status, version, headers


@breaks("retry.first")
def base_is_compared_before_a_retry_is_seen(server: ModuleType) -> None:
    """A repeated upload is a conflict with itself."""

    @instead_of(server, "store_version")
    def store_version(real: Callable, app: Any, request: Any, *key: str) -> Any:
        version = latest(app, request)
        if request.value.get("baseSha256") != version.get("sha256"):
            raise server.Problem("version_conflict", "A conflict.", currentVersion=version.get("version", 0))
        return real(app, request, *key)


# ---- Registration, change of the key, deletion -------------------------------------------------------------


@breaks("register.race")
def two_registrations_at_once_both_win(server: ModuleType) -> None:
    """Whether the name is free is asked before the lock is taken, and not again."""

    @instead_of(server.HANDLERS, "registerUser")
    def register_user(real: Callable, app: Any, request: Any) -> Any:
        was_free = not app.store.record(request.user_id)
        time.sleep(0.05)
        try:
            return real(app, request)
        except server.Problem:
            if not was_free:
                raise
            return server.answer(201, {"createdAt": server.rfc3339(server.now())})


@breaks("register.retry")
def registering_again_is_a_conflict(server: ModuleType) -> None:
    """After a lost answer the username is taken, by oneself."""

    @on_answer(server)
    def change(environ: Mapping[str, Any], answer: Any) -> None:
        if environ["PATH_INFO"] == "/api/register" and answer.status == 200:
            problem = server.Problem("username_taken", "This userId is registered.")
            answer.status, answer.body = 409, problem.body
            answer.headers["Content-Type"] = "application/problem+json"


@breaks("register.retry")
def registering_again_starts_anew(server: ModuleType) -> None:
    """A phone that registers after a fresh install empties the account."""

    @instead_of(server.HANDLERS, "registerUser")
    def register_user(real: Callable, app: Any, request: Any) -> Any:
        answer = real(app, request)
        if answer.status_code == 200:
            put_record(app, request, versions=[])
        return answer


@breaks("key.old")
def old_key_stays_good(server: ModuleType) -> None:
    """Credentials that were right once are cached."""
    right = set()

    @instead_of(server, "owns")
    def owns(real: Callable, request: Any, record: Mapping[str, Any]) -> bool:
        pair = request.user_id, request.storage_key
        if real(request, record):
            right.add(pair)
        return pair in right and "storageKeySha256" in record


@breaks("key.new")
def new_key_does_not_open_older_versions(server: ModuleType) -> None:
    """A change of the key hides what was stored before."""

    @instead_of(server, "fetch")
    def fetch(real: Callable, app: Any, request: Any, choose: Callable) -> Any:
        of_this_key = [v for v in request.record["versions"] if v["keyVersion"] == request.record["keyVersion"]]
        return real(app, request, lambda versions: choose(of_this_key))


@breaks("key.same")
def key_may_be_changed_to_itself(server: ModuleType) -> None:
    """The key in force is taken for a new one."""

    @instead_of(server.HANDLERS, "changeStorageKey")
    def change_storage_key(real: Callable, app: Any, request: Any) -> Any:
        _, version, headers = server.store_version(app, request, request.value["storageKey"])
        return server.answer(200, server.receipt(version), headers)


@breaks("key.both")
def refused_change_changes_the_key(server: ModuleType) -> None:
    """The key is changed first, and then the base compared."""

    @instead_of(server, "store_version")
    def store_version(real: Callable, app: Any, request: Any, *key: str) -> Any:
        try:
            return real(app, request, *key)
        except server.Problem:
            if key:
                put_record(app, request, storageKeySha256=server.sha256(key[0].encode()))
            raise


@breaks("delete.all", "delete.refused")
def deletion_does_nothing(server: ModuleType) -> None:
    """deleteUser answers 204, and that is all."""

    @instead_of(server.HANDLERS, "deleteUser")
    def delete_user(real: Callable, app: Any, request: Any) -> Any:
        return server.bottle.HTTPResponse(status=204)


@breaks("delete.all")
def deleted_account_comes_back_with_a_restart(server: ModuleType) -> None:
    """A deletion is remembered, but not written."""
    deleted: dict[str, dict[str, Any]] = {}

    @instead_of(server.Store, "delete")
    def delete(real: Callable, store: Any, user_id: str, before: Mapping[str, Any]) -> None:
        deleted[user_id] = {"deletedAt": server.now(), "slots": 0}

    @instead_of(server.Store, "record")
    def record(real: Callable, store: Any, user_id: str) -> Any:
        return deleted.get(user_id) or real(store, user_id)


@breaks("delete.all", "delete.fresh")
def deleted_data_comes_back_with_a_registration(server: ModuleType) -> None:
    """A deletion hides an account, and a registration of the name shows it again."""
    server.Store.erase_blobs = lambda *_: None

    @instead_of(server.Store, "put_record")
    def put_record(real: Callable, store: Any, user_id: str, before: Any, after: Any) -> None:
        if "deletedAt" in after:
            after["hidden"] = before
        elif before and "hidden" in before:
            after |= {name: before["hidden"][name] for name in ("versions", "slots")}
        real(store, user_id, before, after)


@breaks("delete.all", "delete.refused", "replay.store")
def upload_registers_its_user(server: ModuleType) -> None:
    """An upload that is replayed after the deletion makes the account again."""

    @instead_of(server.PROOFS, "userCredentials")
    def check_credentials(real: Callable, app: Any, request: Any) -> None:
        try:
            real(app, request)
        except server.Problem:
            if request.operation.id != "storeBackup" or "deletedAt" not in request.record:
                raise
            key = server.sha256(request.storage_key.encode())
            account = {"createdAt": server.now(), "storageKeySha256": key, "keyVersion": 1, "slots": 9}
            account |= {"versions": [], "uploads": []}
            app.store.exclusively(lambda: app.store.put_record(request.user_id, request.record, account))


@breaks("delete.reserved", "replay.register")
def deleted_name_is_free_at_once(server: ModuleType) -> None:
    """A registration that is replayed after the deletion makes the account again."""
    add_to_limit(server, "deletedUserSeconds", -601)


@breaks("delete.reserved")
def deleted_name_is_free_a_second_early(server: ModuleType) -> None:
    """The name is free after 600 seconds, in the last of which a replay is still accepted."""
    add_to_limit(server, "deletedUserSeconds", -1)


@breaks("delete.reserved")
def retry_after_of_a_deleted_name_is_short(server: ModuleType) -> None:
    """Whoever waits for as long as told is refused once more."""
    shorten_retry_after(server, 409)


@breaks("delete.refused")
def deleted_user_is_told_so(server: ModuleType) -> None:
    """A deleted user's requests get 404, which tells them from those of others."""

    @instead_of(server.PROOFS, "userCredentials")
    def check_credentials(real: Callable, app: Any, request: Any) -> None:
        try:
            real(app, request)
        except server.Problem:
            if "deletedAt" in request.record:
                raise server.Problem("no_backup", "This account was deleted.") from None
            raise


@breaks("replay.signature")
def signature_may_be_used_again(server: ModuleType) -> None:
    """A captured upload is good once more when its base comes back."""

    @instead_of(server, "store_version")
    def store_version(real: Callable, app: Any, request: Any, *key: str) -> Any:
        request.signature = secrets.token_hex()
        return real(app, request, *key)


# ---- History -----------------------------------------------------------------------------------------------


@breaks("history.last")
def history_is_lost(server: ModuleType) -> None:
    """Only the latest version is kept."""
    keep_versions(server, lambda last, days, weeks, months: (1, 0, 0, 0))


@breaks("history.last")
def history_is_one_short(server: ModuleType) -> None:
    """Of the last versions three are kept."""
    keep_versions(server, lambda last, days, weeks, months: (last - 1, days, weeks, months))


@breaks("history.days")
def history_is_a_day_short(server: ModuleType) -> None:
    """Two days are kept."""
    keep_versions(server, lambda last, days, weeks, months: (last, days - 1, weeks, months))


@breaks("history.weeks")
def history_is_a_week_short(server: ModuleType) -> None:
    """One week is kept."""
    keep_versions(server, lambda last, days, weeks, months: (last, days, weeks - 1, months))


@breaks("history.months")
def history_is_a_month_short(server: ModuleType) -> None:
    """One month is kept."""
    keep_versions(server, lambda last, days, weeks, months: (last, days, weeks, months - 1))


@breaks("history.dropped")
def history_is_never_trimmed(server: ModuleType) -> None:
    """Each version is kept for ever."""
    keep_versions(server, lambda last, days, weeks, months: (10_000, days, weeks, months))


def keep_versions(server: ModuleType, change: Callable[..., tuple[int, ...]]) -> None:
    @instead_of(server, "kept_versions")
    def kept_versions(real: Callable, versions: list[dict[str, Any]], keep: tuple[int, ...]) -> list[dict[str, Any]]:
        return real(versions, change(*keep))


@breaks("history.weeks")
def weeks_end_with_the_year(server: ModuleType) -> None:
    """New Year's week counts as two."""

    class Datetime(datetime):
        def isocalendar(self) -> Any:
            return self.year, self.strftime("%W")

    server.datetime = Datetime


@breaks("history.clock")
def history_is_ordered_by_date(server: ModuleType) -> None:
    """A clock that once ran ahead fills the newest days, weeks and months for years."""

    @instead_of(server, "kept_versions")
    def kept_versions(real: Callable, versions: list[dict[str, Any]], keep: tuple[int, ...]) -> list[dict[str, Any]]:
        by_date = real(sorted(versions, key=lambda version: version["updatedAt"]), (1, *keep[1:]))
        last = versions[-keep[0] :]
        return [version for version in versions if version in last or version in by_date]


@breaks("history.listed")
def listed_versions_cannot_be_fetched(server: ModuleType) -> None:
    """Of the versions that are listed only the last two are there."""

    @instead_of(server, "fetch")
    def fetch(real: Callable, app: Any, request: Any, choose: Callable) -> Any:
        return real(app, request, lambda versions: choose(versions[-2:]))


# ---- Limits ------------------------------------------------------------------------------------------------


@breaks("limits.hour")
def one_more_upload_an_hour(server: ModuleType) -> None:
    """Six are accepted, and five promised."""
    add_to_quota(server, "hour", 1)


@breaks("limits.hour")
def one_upload_less_an_hour(server: ModuleType) -> None:
    """Four are accepted, and five promised."""
    add_to_quota(server, "hour", -1)


@breaks("limits.day")
def one_more_upload_a_day(server: ModuleType) -> None:
    """Twenty-one are accepted, and twenty promised."""
    add_to_quota(server, "day", 1)


def add_to_quota(server: ModuleType, name: str, number: int) -> None:
    @instead_of(server, "wait_seconds")
    def wait_seconds(real: Callable, limits: tuple[Any, ...], times: list[int], moment: int) -> int:
        other = [dataclasses.replace(limit, quota=limit.quota + number * (limit.name == name)) for limit in limits]
        return real(tuple(other), times, moment)


@breaks("limits.sliding")
def windows_are_fixed(server: ModuleType) -> None:
    """Each hour begins anew, so that twice as many uploads fit round its end."""

    @instead_of(server.Limit, "counted")
    def counted(real: Callable, limit: Any, times: list[int], moment: int) -> list[int]:
        milliseconds = limit.seconds * 1000
        return [time for time in real(limit, times, moment) if time // milliseconds == moment // milliseconds]


@breaks("limits.sliding")
def uploads_of_the_future_count(server: ModuleType) -> None:
    """A clock that once ran ahead locks everybody out."""

    @instead_of(server.Limit, "counted")
    def counted(real: Callable, limit: Any, times: list[int], moment: int) -> list[int]:
        return [time for time in times if time > moment - limit.seconds * 1000]


@breaks("limits.retry-after", "address.retry-after")
def retry_after_is_a_second_short(server: ModuleType) -> None:
    """Whoever waits for as long as told is refused once more."""
    shorten_retry_after(server, 429)


def shorten_retry_after(server: ModuleType, status: int) -> None:
    @on_answer(server)
    def change(environ: Mapping[str, Any], answer: Any) -> None:
        if answer.status == status and int(answer.headers.get("Retry-After", 0)) > 1:
            answer.headers["Retry-After"] = str(int(answer.headers["Retry-After"]) - 1)


@breaks("limits.free")
def refused_uploads_count(server: ModuleType) -> None:
    """A device that meets a conflict five times is locked out."""

    @instead_of(server, "store_version")
    def store_version(real: Callable, app: Any, request: Any, *key: str) -> Any:
        try:
            return real(app, request, *key)
        except server.Problem:
            count_an_upload(server, app, request)
            raise


@breaks("limits.free")
def retries_count(server: ModuleType) -> None:
    """A device that loses five answers is locked out."""

    @instead_of(server, "store_version")
    def store_version(real: Callable, app: Any, request: Any, *key: str) -> Any:
        result = real(app, request, *key)
        if result[0] == 200:
            count_an_upload(server, app, request)
        return result


@breaks("limits.account")
def uploads_of_all_accounts_count(server: ModuleType) -> None:
    """Five uploads an hour are accepted, of all users together."""
    of_all: list[int] = []

    @instead_of(server, "wait_seconds")
    def wait_seconds(real: Callable, limits: tuple[Any, ...], times: list[int], moment: int) -> int:
        if len(limits) == 1:  # of an address
            return real(limits, times, moment)
        wait = real(limits, sorted(of_all), moment)
        of_all.extend([] if wait else [moment])
        return wait


@breaks("limits.remaining")
def remaining_uploads_are_one_too_many(server: ModuleType) -> None:
    """RateLimit tells what was left before the request."""

    @on_answer(server)
    def change(environ: Mapping[str, Any], answer: Any) -> None:
        if rate_limit := answer.headers["RateLimit"]:
            answer.headers["RateLimit"] = re.sub("r=([0-9]+)", lambda r: f"r={int(r[1]) + 1}", rate_limit)


@breaks("limits.policy")
def policy_is_the_default(server: ModuleType) -> None:
    """RateLimit-Policy tells the contract's numbers, whatever the deployment's are."""

    @on_answer(server)
    def change(environ: Mapping[str, Any], answer: Any) -> None:
        if "RateLimit-Policy" in answer.headers:
            answer.headers["RateLimit-Policy"] = '"hour";q=5;w=3600, "day";q=20;w=86400'


@breaks("address.registrations")
def one_more_registration_an_hour(server: ModuleType) -> None:
    """Twenty-one accounts are created from one address."""
    add_to_address_quota(server, "registrations")


@breaks("address.failures")
def one_more_failure_in_5_minutes(server: ModuleType) -> None:
    """Thirty-one keys may be tried from one address."""
    add_to_address_quota(server, "failed credentials")


def add_to_address_quota(server: ModuleType, name: str) -> None:
    @instead_of(server.AddressLimit, "__init__")
    def make(real: Callable, self: Any, limit: Any) -> None:
        real(self, dataclasses.replace(limit, quota=limit.quota + (limit.name == name)))


@breaks("address.failures")
def registration_tells_right_keys_without_limit(server: ModuleType) -> None:
    """username_taken is no failure, so keys are tried by registering."""

    @instead_of(server.HANDLERS, "registerUser")
    def register_user(real: Callable, app: Any, request: Any) -> Any:
        uncounted = SimpleNamespace(count=lambda address: None)
        return real(SimpleNamespace(**vars(app) | {"failures": uncounted}), request)


@breaks("address.failures")
def malformed_credentials_do_not_count(server: ModuleType) -> None:
    """Credentials that cannot be right are no failure."""

    @instead_of(server.PROOFS, "userCredentials")
    def check_credentials(real: Callable, app: Any, request: Any) -> None:
        credentials = re.fullmatch("Basic ([A-Za-z0-9+/=]{172})", request.header("Authorization"))
        if not credentials:
            raise server.credentials_invalid()
        real(app, request)


@breaks("address.failures")
def right_key_is_let_through_past_the_limit(server: ModuleType) -> None:
    """A blocked address goes on trying: wrong keys get 429, the right one does not."""

    real_check = server.AddressLimit.check

    @instead_of(server.AddressLimit, "count")
    def count(real: Callable, limit: Any, address: str) -> None:
        real_check(limit, address)
        real(limit, address)

    @instead_of(server.AddressLimit, "check")
    def check(real: Callable, limit: Any, address: str) -> None:
        if limit._limit.name == "registrations":
            real(limit, address)


@breaks("address.others", "isolation.block")
def all_addresses_are_one(server: ModuleType) -> None:
    """Behind a proxy everybody has the proxy's address."""
    server.client_address = lambda environ, on_fly: "192.0.2.1"


# ---- Problems, HTTP ----------------------------------------------------------------------------------------


@breaks("order.answers")
def json_is_read_before_the_media_type_is_checked(server: ModuleType) -> None:
    """A body that is no JSON is 400 where its media type is 415."""

    @instead_of(server, "read_body")
    def read_body(real: Callable, request: Any) -> None:
        if request.operation.validator:
            server.parse_json(request.body)
        real(request)


@breaks("order.answers")
def limit_is_checked_before_the_base(server: ModuleType) -> None:
    """A conflict past the limit is 429, and the device waits an hour to hear of the conflict."""

    @instead_of(server, "store_version")
    def store_version(real: Callable, app: Any, request: Any, *key: str) -> Any:
        moment, times = server.now(), sorted(time for time, _ in request.record["uploads"])
        if wait := server.wait_seconds(app.upload_limits, times, moment):
            problem = server.Problem("rate_limited", "Wait.", wait)
            problem.headers.update(app.rate_limit(times, moment))
            raise problem
        return real(app, request, *key)


@breaks("problem.form")
def problem_has_no_code(server: ModuleType) -> None:
    """A client cannot tell one 401 from another."""

    @on_answer(server)
    def change(environ: Mapping[str, Any], answer: Any) -> None:
        if answer.status >= 400 and answer.body:
            problem = json.loads(answer.body)
            del problem["code"]
            answer.body = json.dumps(problem).encode()


@breaks("problem.form")
def problem_is_plain_json(server: ModuleType) -> None:
    """A problem has the media type of any answer."""

    @on_answer(server)
    def change(environ: Mapping[str, Any], answer: Any) -> None:
        if answer.headers.get("Content-Type") == "application/problem+json":
            answer.headers["Content-Type"] = "application/json"


@breaks("fetchBackup.200", "getHealth.200")
def answer_is_plain_text(server: ModuleType) -> None:
    """JSON is sent as text."""

    @on_answer(server)
    def change(environ: Mapping[str, Any], answer: Any) -> None:
        if answer.headers.get("Content-Type") == "application/json":
            answer.headers["Content-Type"] = "text/plain"


@breaks("problem.silent")
def stack_trace_is_answered(server: ModuleType) -> None:
    """A fault of the server tells how the server is made."""

    @instead_of(server.Problem, "__init__")
    def make(real: Callable, problem: Any, code: str, detail: str, *arguments: Any, **members: Any) -> None:
        detail = traceback.format_exc() if code == "internal_error" else detail
        real(problem, code, detail, *arguments, **members)


@breaks("problem.silent")
def problem_repeats_the_request(server: ModuleType) -> None:
    """A problem says what was sent, and a log of problems is a log of secrets."""

    @on_answer(server)
    def change(environ: Mapping[str, Any], answer: Any) -> None:
        if answer.status >= 400 and answer.body:
            problem = json.loads(answer.body)
            problem["detail"] += f" Path {environ['PATH_INFO']}, {environ.get('HTTP_AUTHORIZATION')}."
            answer.body = json.dumps(problem).encode()


@breaks("problem.pointer")
def errors_point_nowhere(server: ModuleType) -> None:
    """A 422 says what is wrong, but not where."""

    @instead_of(server, "validation_errors")
    def validation_errors(real: Callable, *arguments: Any) -> list[dict[str, str]]:
        return [error | {"pointer": "#"} for error in real(*arguments)]


@breaks("problem.method")
def unknown_method_is_not_found(server: ModuleType) -> None:
    """A method that the server has not heard of is 404."""

    @instead_of(server.Server, "_refuse_method")
    def refuse_method(real: Callable, app: Any, methods: str, environ: Mapping[str, Any]) -> Any:
        if environ["REQUEST_METHOD"] not in server.KNOWN_METHODS:
            raise server.Problem("not_found", "There is nothing.")
        return real(app, methods, environ)


@breaks("header.Allow")
def allow_names_one_method(server: ModuleType) -> None:
    """Allow leaves out what the path has beside."""

    @on_answer(server)
    def change(environ: Mapping[str, Any], answer: Any) -> None:
        if "Allow" in answer.headers:
            answer.headers["Allow"] = answer.headers["Allow"].partition(",")[0]


@breaks("problem.path")
def paths_are_decoded(server: ModuleType) -> None:
    """/%68ealth is /health."""
    change_path(server, urllib.parse.unquote)


@breaks("problem.path")
def trailing_slash_is_dropped(server: ModuleType) -> None:
    """/health/ is /health."""
    change_path(server, lambda path: path.rstrip("/"))


def change_path(server: ModuleType, change: Callable[[str], str]) -> None:
    @instead_of(server.Server, "_screen")
    def screen(real: Callable, app: Any) -> None:
        real(app)
        environ = server.bottle.request.environ
        environ["PATH_INFO"] = change(environ["PATH_INFO"])


@breaks("http.i-json")
def last_of_two_members_counts(server: ModuleType) -> None:
    """JSON is read as Python reads it: a name may stand twice."""
    server.I_JSON = json.JSONDecoder(parse_float=server.finite_number, parse_constant=server.finite_number)


@breaks("http.schema")
def unknown_members_are_ignored(server: ModuleType) -> None:
    """A misspelt baseSha256 is none."""

    @instead_of(server, "validation_errors")
    def validation_errors(real: Callable, *arguments: Any) -> list[dict[str, str]]:
        unknown = server.VALIDATION_DETAILS["additionalProperties"]
        return [error for error in real(*arguments) if error["detail"] != unknown]


@breaks("http.media-type")
def any_media_type_is_json(server: ModuleType) -> None:
    """Content-Type is not looked at."""

    @instead_of(server, "read_body")
    def read_body(real: Callable, request: Any) -> None:
        request.environ["CONTENT_TYPE"] = request.operation.media_type or ""
        real(request)


@breaks("http.no-body")
def needless_body_is_ignored(server: ModuleType) -> None:
    """A DELETE may have a body."""

    @instead_of(server, "read_body")
    def read_body(real: Callable, request: Any) -> None:
        if request.operation.validator:
            real(request)


@breaks("http.chunked")
def chunked_body_is_refused(server: ModuleType) -> None:
    """A body needs a Content-Length."""

    @instead_of(server.RequestParser, "parse_header")
    def parse_header(real: Callable, parser: Any, header_plus: bytes) -> None:
        real(parser, header_plus)
        if parser.chunked:
            raise ParsingError("a Content-Length is needed")


@breaks("http.continue")
def expectation_is_refused(server: ModuleType) -> None:
    """A client that waits for leave to send its body is told that its request is malformed."""

    @instead_of(server.RequestParser, "parse_header")
    def parse_header(real: Callable, parser: Any, header_plus: bytes) -> None:
        real(parser, header_plus)
        if parser.expect_continue:
            raise ParsingError("no expectation is met")


@breaks("http.framing")
def http_is_read_as_the_library_does(server: ModuleType) -> None:
    """Two Hosts, or a length beside chunks, are accepted: a proxy may read another request than the server."""
    server.RequestParser.parse_header = HTTPRequestParser.parse_header


@breaks("http.head")
def head_is_not_allowed(server: ModuleType) -> None:
    """A monitor that asks by HEAD believes the server dead."""

    @on_answer(server)
    def change(environ: Mapping[str, Any], answer: Any) -> None:
        if environ["REQUEST_METHOD"] == "HEAD":
            answer.status, answer.headers["Allow"] = 405, "GET"


@breaks("http.header-limit")
def headers_may_have_a_byte_less(server: ModuleType) -> None:
    """16,384 bytes are too many."""
    add_to_limit(server, "requestHeaderBytes", -1)


@breaks("getHealth.431")
def headers_may_be_larger(server: ModuleType) -> None:
    """16,400 bytes are accepted."""
    add_to_limit(server, "requestHeaderBytes", 16)


@breaks("header.X-Request-Id")
def request_id_is_always_the_same(server: ModuleType) -> None:
    """A request cannot be found by its id."""
    server.secrets = SimpleNamespace(token_hex=lambda size: "0" * 16)


@breaks("header.Cache-Control")
def answers_may_be_cached(server: ModuleType) -> None:
    """Cache-Control does not say no-store."""

    @on_answer(server)
    def change(environ: Mapping[str, Any], answer: Any) -> None:
        answer.headers["Cache-Control"] = "private, max-age=60"


# ---- CORS --------------------------------------------------------------------------------------------------


@breaks("cors.others")
def any_origin_is_reflected(server: ModuleType) -> None:
    """Any web page may call the server."""
    allow_origins_if(server, lambda origin, allowed: True)


@breaks("cors.others")
def origin_is_compared_by_its_beginning(server: ModuleType) -> None:
    """https://app.example.other is taken for https://app.example."""
    allow_origins_if(server, lambda origin, allowed: any(origin.startswith(each) for each in allowed))


def allow_origins_if(server: ModuleType, condition: Callable[[str, frozenset[str]], bool]) -> None:
    @instead_of(server.Server, "finish_headers")
    def finish_headers(real: Callable, app: Any, headers: list[tuple[str, str]], origin: str | None) -> str:
        request_id, names = real(app, headers, origin), dict(headers)
        if origin and "Access-Control-Allow-Origin" not in names and condition(origin, app.settings.allowed_origins):
            headers.append(("Access-Control-Allow-Origin", origin))
        return request_id


@breaks("cors.preflight")
def preflight_forgets_if_none_match(server: ModuleType) -> None:
    """A web app cannot ask whether its backup is the latest."""
    server.PREFLIGHT["Access-Control-Allow-Headers"] = server.ALLOWED_HEADERS.replace("If-None-Match, ", "")


@breaks("cors.exposed")
def etag_is_not_exposed(server: ModuleType) -> None:
    """A web app cannot read the ETag."""
    server.EXPOSED_HEADERS = server.EXPOSED_HEADERS.removeprefix("ETag, ")


@breaks("cors.vary")
def vary_is_missing(server: ModuleType) -> None:
    """A cache gives one origin what was meant for another."""

    @instead_of(server.Server, "finish_headers")
    def finish_headers(real: Callable, app: Any, headers: list[tuple[str, str]], origin: str | None) -> str:
        request_id = real(app, headers, origin)
        headers[:] = [(name, value) for name, value in headers if name != "Vary"]
        return request_id


# ---- The operator ------------------------------------------------------------------------------------------


@breaks("admin.proof")
def statistics_need_no_key(server: ModuleType) -> None:
    """Anybody may see how many users there are."""
    server.PROOFS["adminKey"] = lambda app, request: None


@breaks("admin.absent")
def admin_key_is_asked_for_where_there_is_none(server: ModuleType) -> None:
    """Where no admin key is configured the statistics are 401."""
    change_setting(server, "admin_key", lambda key: key or "")


@breaks("admin.counts")
def deleted_users_are_counted(server: ModuleType) -> None:
    """The number of users only grows."""

    @instead_of(server, "tally")
    def tally(real: Callable, record: Mapping[str, Any] | None) -> tuple[int, int, int]:
        return (1, 0, 0) if record and "deletedAt" in record else real(record)


@breaks("document.same")
def json_document_is_another(server: ModuleType) -> None:
    """openapi.json is of another version than openapi.yaml."""

    @instead_of(server.Spec, "__init__")
    def load(real: Callable, spec: Any, path: Any) -> None:
        real(spec, path)
        spec.json = spec.json.replace(b'"version":"', b'"version":"0.', 1)


@breaks(test="server_tests/test_server.py::test_the_log_tells_what_happened_and_no_secret")
def credentials_are_logged(server: ModuleType) -> None:
    """Whoever reads the log can read every backup."""

    @on_answer(server)
    def change(environ: Mapping[str, Any], answer: Any) -> None:
        server.log(event="credentials", authorization=environ.get("HTTP_AUTHORIZATION"))


# ---- Durability --------------------------------------------------------------------------------------------


@breaks("durability.acknowledged")
def answers_go_ahead_of_the_disk(server: ModuleType) -> None:
    """What was acknowledged is written a moment later."""
    waiting: dict[str, Any] = {}

    @instead_of(server.Store, "put_record")
    def put_record(real: Callable, store: Any, user_id: str, before: Any, after: Any) -> None:
        if len(waiting) > 2:
            for each in list(waiting):
                real(store, each, *waiting.pop(each))
        waiting[user_id] = before, after

    @instead_of(server.Store, "record")
    def record(real: Callable, store: Any, user_id: str) -> Any:
        return json.loads(json.dumps(waiting[user_id][1])) if user_id in waiting else real(store, user_id)


@breaks("durability.whole")
def record_is_written_before_the_backup(server: ModuleType) -> None:
    """A crash between the two leaves a version without its bytes."""
    blobs: list[Any] = []
    server.Store.put_blob, put_blob = lambda store, *blob: blobs.append(blob), server.Store.put_blob

    @instead_of(server.Store, "put_record")
    def put_record(real: Callable, store: Any, *arguments: Any) -> None:
        real(store, *arguments)
        time.sleep(0.01 * len(blobs))
        while blobs:
            put_blob(store, *blobs.pop())


@breaks("durability.restart")
def restart_forgets_the_limits(server: ModuleType) -> None:
    """After each deployment everybody has all uploads left."""
    served = set()

    @instead_of(server.Store, "put_record")
    def put_record(real: Callable, store: Any, user_id: str, *records: Any) -> None:
        served.add(user_id)
        real(store, user_id, *records)

    @instead_of(server.Store, "record")
    def record(real: Callable, store: Any, user_id: str) -> Any:
        record = real(store, user_id)
        return record | {"uploads": []} if record and user_id not in served else record
