"""Faults of the two proofs: that a request comes from the app, and that it comes from this user."""

import base64
import hmac
import re
import time
from collections.abc import Callable
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import backup_server
from backup_server import Credentials, Problem, Request, Server, User
from clients.python.backup_client import content_digest
from server import clock
from server.accounts import Account, Record
from server_tests.broken.fault import (
    Function,
    add_to_limit,
    body_of,
    breaks,
    change,
    change_setting,
    instead_of,
    instead_of_proof,
    named_user,
    on_answer,
)

# --- It comes from the app --------------------------------------------------------------------------------------------


@breaks("signature.secret")
def any_signature_is_accepted() -> None:
    """No MAC is ever wrong."""
    compare_macs(lambda right, sent: True)


@breaks("signature.whole")
def mac_is_compared_by_its_first_half() -> None:
    """Only the first 16 bytes of the MAC count."""
    compare_macs(lambda right, sent: right[:25] == sent[:25])


def compare_macs(is_right: Callable[[str, str], bool], digest: Callable[..., bytes] = hmac.digest) -> None:
    """Decide by `is_right(right, sent)` which Signature is accepted, and compute the right one by `digest`."""

    def compare_digest(right: Any, sent: Any) -> bool:
        return (is_right if str(sent).startswith("app=:") else hmac.compare_digest)(right, sent)

    change(backup_server, "hmac", SimpleNamespace(digest=digest, compare_digest=compare_digest))


@breaks("signature.missing")
def reads_need_no_signature() -> None:
    """Only requests that write must be signed."""

    @instead_of_proof("appSignature")
    def check_signature(real: Function, server: Server, request: Request) -> Any:
        try:
            return real(server, request)
        except Problem as problem:
            if problem.code != "signature_missing" or request.method != "GET" or not request.header("Authorization"):
                raise
            return None


@breaks("signature.method")
def signature_is_not_bound_to_the_method() -> None:
    """A signature for GET is good for DELETE."""
    unbind("@method", "GET", "POST", "PUT", "DELETE")


@breaks("signature.path")
def signature_is_not_bound_to_the_path() -> None:
    """A signature for one path is good for another."""
    paths = "register", "backup", "backup/versions", "backup/versions/1", "user", "user/storage-key"
    unbind("@path", *(f"/api/{path}" for path in paths))


@breaks("signature.authorization")
def signature_is_not_bound_to_the_credentials() -> None:
    """A signature that was seen with other credentials is good for these, too."""
    unbind("authorization")


@breaks("signature.digest")
def signature_is_not_bound_to_the_digest() -> None:
    """A signature that was seen with another digest is good for this one, too."""
    unbind("content-digest")


def unbind(component: str, *known: str) -> None:
    """Accept a MAC that is right for any known value of a component. The values that are sent become known."""
    lines = {f'"{component}": {value}\n': None for value in known}
    accepted: dict[str, list[str]] = {}  # by the right Signature

    def digest(key: bytes, base: bytes, algorithm: str) -> bytes:
        before, line, after = re.split(rf'^("{component}": .*\n)', base.decode("latin-1"), flags=re.MULTILINE)
        lines[line] = None
        bases = (f"{before}{other}{after}".encode("latin-1") for other in lines)
        right = hmac.digest(key, base, algorithm)
        accepted[signature_of(right)] = [signature_of(hmac.digest(key, other, algorithm)) for other in bases]
        return right

    compare_macs(lambda right, sent: sent in accepted[right], digest)


def signature_of(mac: bytes) -> str:
    return f"app=:{base64.b64encode(mac).decode()}:"


@breaks("digest.mismatch")
def body_is_not_compared_with_its_digest() -> None:
    """The digest is signed, but the body may be another one."""
    ignore_digest_if(lambda request: True)


@breaks("digest.empty")
def digest_of_no_body_is_not_compared() -> None:
    """A request without a body may carry the digest of any body."""
    ignore_digest_if(lambda request: not body_of(request))


def ignore_digest_if(condition: Callable[[Request], bool]) -> None:
    @instead_of(backup_server, "receive")
    def receive(real: Function, server: Server, request: Request) -> Any:
        if condition(request):
            digest = content_digest(body_of(request))
            request = replace(request, headers={**request.headers, "Content-Digest": digest})
        return real(server, request)


@breaks("signature.accepted")
def signature_of_a_put_is_refused() -> None:
    """The server computes the MAC with the method in lowercase: `put`."""

    @instead_of_proof("appSignature")
    def check_signature(real: Function, server: Server, request: Request) -> Any:
        return real(server, replace(request, method=request.method.replace("PUT", "put")))


@breaks("signature.expired")
def window_is_a_second_too_wide() -> None:
    """A signature is accepted when it is 301 seconds old."""
    add_to_limit("signatureSkewSeconds", 1)


@breaks("signature.window")
def window_is_a_second_too_narrow() -> None:
    """A signature is refused when it is 300 seconds old."""
    add_to_limit("signatureSkewSeconds", -1)


@breaks("signature.expired")
def signature_may_be_from_the_future() -> None:
    """Only the age of a signature counts."""
    change(backup_server, "abs", lambda seconds: max(seconds, 0))


@breaks("signature.expired", "replay.register", "replay.store", "replay.key", "replay.delete")
def signature_never_expires() -> None:
    """`created` is signed, and nobody looks at it."""
    add_to_limit("signatureSkewSeconds", 10**15)


@breaks("signature.expired-last")
def expiry_is_told_before_the_mac_is_checked() -> None:
    """Anybody may ask for the server's time."""

    @instead_of_proof("appSignature")
    def check_signature(real: Function, server: Server, request: Request) -> Any:
        created = re.search(r";created=([0-9]{1,15});", request.header("Signature-Input") or "")
        server_time = clock.now() // 1000
        if created and abs(server_time - int(created[1])) > 300:
            raise Problem("signature_expired", "Sign again.", serverTime=server_time)
        return real(server, request)


@breaks("signature.expired")
def server_time_is_in_milliseconds() -> None:
    """A phone corrects its clock by 57,000 years."""

    @instead_of(Problem, "__init__")
    def make(real: Function, problem: Problem, *arguments: Any, **members: Any) -> None:
        if "serverTime" in members:
            members["serverTime"] *= 1000
        real(problem, *arguments, **members)


@breaks("signature.twice")
def first_of_two_headers_counts() -> None:
    """If a header is sent twice, the server takes the first one."""

    @instead_of(backup_server.Request, "header")
    def header(real: Function, request: Request, name: str) -> str | None:
        value: str | None = real(request, name)
        return value.partition(", ")[0] if value else value


@breaks("signature.profile")
def more_parameters_are_let_pass() -> None:
    """A signature may say when it expires, but is accepted as long as any other."""
    change_profile("){3}", r"){3}(?:;(?:expires|nonce|tag)=[^;]*)?")


@breaks("signature.profile")
def last_of_two_parameters_counts() -> None:
    """A parameter may be there twice."""
    change_profile("){3}", "){3,4}")


def change_profile(part: str, replaced: str) -> None:
    """Change a part of the pattern of Signature-Input."""
    pattern = backup_server.SIGNATURE_INPUT.pattern
    assert part in pattern
    change(backup_server, "SIGNATURE_INPUT", re.compile(pattern.replace(part, replaced)))


@breaks("signature.order")
def parameters_need_their_order() -> None:
    """A library that signs created;alg;keyid is refused."""
    refuse_parameters_if(lambda names: names != ["created", "keyid", "alg"])


@breaks("signature.order")
def keyid_must_not_come_first() -> None:
    """A library that signs keyid;alg;created is refused."""
    refuse_parameters_if(lambda names: names[0] == "keyid")


def refuse_parameters_if(condition: Callable[[list[str]], bool]) -> None:
    @instead_of(backup_server, "read_profile")
    def read_profile(real: Function, *headers: str) -> Any:
        profile = real(*headers)
        if condition(re.findall(";([a-z]+)=", headers[2])):
            raise backup_server.signature_invalid("parameters")
        return profile


@breaks("signature.detail")
def all_details_are_the_same() -> None:
    """A developer has to guess which rule was missed."""
    change(backup_server, "SIGNATURE_FAULTS", dict.fromkeys(backup_server.SIGNATURE_FAULTS, "The signature is wrong."))


@breaks("signature.detail")
def unknown_keyid_is_told_as_a_wrong_mac() -> None:
    """A developer looks for a fault in the signature base, but the keyid is misspelt."""
    faults = backup_server.SIGNATURE_FAULTS
    change(backup_server, "SIGNATURE_FAULTS", {**faults, "keyid": faults["mac"]})


@breaks("signature.retired", "storeBackup.403")
def retired_keyid_is_served() -> None:
    """An outdated app is never told to update."""
    change_setting("retired_keyids", lambda keyids: frozenset())


@breaks("signature.retired")
def retired_keyid_needs_a_secret() -> None:
    """When the operator has thrown the old secret away, an outdated app hears that its signature is wrong."""

    @instead_of_proof("appSignature")
    def check_signature(real: Function, server: Server, request: Request) -> Any:
        try:
            return real(server, request)
        except Problem as problem:
            keyid = re.search('keyid="(.+?)"', request.header("Signature-Input") or "")
            if problem.code == "app_outdated" and keyid and keyid[1] not in server.settings.app_secrets:
                raise backup_server.signature_invalid("keyid") from None
            raise


@breaks("signature.arrival")
def created_is_compared_when_the_body_is_complete() -> None:
    """The signature of a slow upload expires on the way."""

    @instead_of(backup_server, "read_body")
    def read_body(real: Function, server: Server, request: Request) -> Any:
        value = real(server, request)
        if backup_server.PROOFS["appSignature"] in request.operation.proofs:
            backup_server.check_signature(server, replace(request, arrival=replace(request.arrival, at=clock.now())))
        return value


@breaks("signature.algorithm")
def algorithm_is_not_looked_at() -> None:
    """`alg` may be anything."""
    change_profile("hmac-sha256", '[^"]*')


@breaks("signature.encoding")
def signature_may_be_hexadecimal() -> None:
    """The server also reads a MAC in hexadecimal digits."""

    @instead_of_proof("appSignature")
    def check_signature(real: Function, server: Server, request: Request) -> Any:
        if digits := re.fullmatch("app=:([0-9a-f]{64}):", request.header("Signature") or ""):
            signature = signature_of(bytes.fromhex(digits[1]))
            request = replace(request, headers={**request.headers, "Signature": signature})
        return real(server, request)


@breaks("signature.keyid")
def unknown_keyid_means_the_first_secret() -> None:
    """A keyid that does not exist is good, too."""

    class Forgiving(dict[str, bytes]):
        def get(self, keyid: str) -> bytes:  # type: ignore[override]
            return super().get(keyid) or next(iter(self.values()))

    change_setting("app_secrets", Forgiving)


@breaks("signature.rotation")
def only_the_first_secret_is_valid() -> None:
    """Users of the app's new version cannot back up."""
    change_setting("app_secrets", lambda app_secrets: dict([next(iter(app_secrets.items()))]))


@breaks("signature.query")
def query_is_ignored() -> None:
    """A signed operation may have a query, which nobody signed."""

    @instead_of_proof("appSignature")
    def check_signature(real: Function, server: Server, request: Request) -> Any:
        return real(server, replace(request, has_query=False))


# --- Another configuration --------------------------------------------------------------------------------------------


@breaks("signature.rotation")
def only_two_secrets_are_valid() -> None:
    """A third generation of the app cannot back up."""
    change_setting("app_secrets", lambda app_secrets: dict(list(app_secrets.items())[:2]))


@breaks("signature.key")
def secret_is_cut_at_64_bytes() -> None:
    """A secret may be longer, but what is behind its 64th byte does not count."""
    change_setting("app_secrets", lambda app_secrets: {keyid: key[:64] for keyid, key in app_secrets.items()})


@breaks("signature.keyid-form")
def keyid_has_32_characters_at_most() -> None:
    """A longer keyid is refused as malformed, although the operator has configured it."""
    change_profile("{1,64}", "{1,32}")


@breaks("signature.keyid-form")
def keyid_may_be_named_by_its_beginning() -> None:
    """If no secret has this keyid, the server takes one whose keyid begins like it."""

    class Forgiving(dict[str, bytes]):
        def get(self, keyid: str) -> bytes | None:  # type: ignore[override]
            longer = (key for name, key in self.items() if name.startswith(keyid[:8]) and len(keyid) > 8)
            return super().get(keyid) or next(longer, None)

    change_setting("app_secrets", Forgiving)


# --- Compared in part, or in another spelling -------------------------------------------------------------------------


@breaks("signature.encoding")
def mac_may_be_spelled_otherwise() -> None:
    """The unused bits at the end of the base64 may be anything."""
    change(backup_server, "SIGNATURE", re.compile("app=:[A-Za-z0-9+/]{43}=:"))
    compare_macs(lambda right, sent: base64.b64decode(right[5:-1]) == base64.b64decode(sent[5:-1]))


@breaks("signature.whole")
def part_of_the_mac_is_skipped() -> None:
    """The MAC is compared in words of four bytes, and the loop leaves one of them out."""
    compare_macs(lambda right, sent: (right[:21], right[29:]) == (sent[:21], sent[29:]))


@breaks("digest.whole")
def digest_is_compared_by_its_first_half() -> None:
    """Only the first 16 bytes of the digest count."""
    compare_digests(lambda right, sent: right[:30] == sent[:30])


@breaks("digest.whole")
def digest_is_compared_by_its_last_half() -> None:
    """Only the last 16 bytes of the digest count."""
    compare_digests(lambda right, sent: right[31:] == sent[31:])


@breaks("signature.encoding")
def digest_may_be_spelled_otherwise() -> None:
    """The unused bits at the end of the base64 may be anything."""
    change(backup_server, "CONTENT_DIGEST", re.compile("sha-256=:[A-Za-z0-9+/]{43}=:"))
    compare_digests(lambda right, sent: base64.b64decode(right[9:-1]) == base64.b64decode(sent[9:-1]))


def compare_digests(is_right: Callable[[str, str], bool]) -> None:
    """Decide by `is_right(right, sent)` which Content-Digest is that of the body."""
    ignore_digest_if(
        lambda request: is_right(content_digest(body_of(request)), request.header("Content-Digest") or ""),
    )


@breaks("backup.any-size")
def digest_of_a_large_body_is_not_compared() -> None:
    """A body that is too large for the memory goes to a file, and nobody digests the file."""
    ignore_digest_if(lambda request: len(body_of(request)) > 65_536)


@breaks("credentials.whole")
def middle_of_the_key_does_not_count() -> None:
    """A key is stored as its first and its last 16 characters."""
    real = backup_server.sha256

    def sha256(data: bytes) -> str:
        return str(real(data[:16] + data[-16:] if re.fullmatch(b"[0-9a-f]{64}", data) else data))

    change(backup_server, "sha256", sha256)


@breaks("isolation.whole")
def user_id_counts_by_its_first_half() -> None:
    """The index on the userId has 32 characters, and the account is found by the index."""
    change_user_id(lambda user_id: user_id[:32].ljust(64, "0"))


@breaks("isolation.whole")
def user_id_counts_by_its_last_half() -> None:
    """The userId is read as a number of 128 bits."""
    change_user_id(lambda user_id: f"{int(user_id, 16) % 2**128:064x}")


def change_user_id(changed: Callable[[str], str]) -> None:
    @instead_of(backup_server, "credentials_of")
    def credentials_of(real: Function, authorization: str) -> Credentials | None:
        credentials = real(authorization)
        return credentials and replace(credentials, user_id=changed(credentials.user_id))


@breaks("credentials.form")
def junk_in_credentials_is_skipped() -> None:
    """The decoder of base64 skips what is none, so one pair has many spellings."""

    @instead_of(backup_server, "credentials_of")
    def credentials_of(real: Function, authorization: str) -> Credentials | None:
        scheme, _, encoded = authorization.partition(" ")
        return real(f"{scheme} {re.sub('[^A-Za-z0-9+/]', '', encoded)}")


@breaks("signature.created")
def created_may_have_more_digits() -> None:
    """`created` may be beyond any number that JSON can carry, and is then far in the future."""
    change_profile("{0,14}", "{0,17}")


# --- It comes from this user ------------------------------------------------------------------------------------------


@breaks("credentials.same")
def unknown_user_is_told() -> None:
    """Anybody may ask who has an account."""

    @instead_of_proof("userCredentials")
    def check_credentials(real: Function, server: Server, request: Request) -> Any:
        try:
            return real(server, request)
        except Problem as problem:
            if problem.code != "credentials_invalid" or named_user(server, request):
                raise
            raise Problem("credentials_invalid", "There is no such user.") from None


@breaks("credentials.whole")
def key_is_compared_by_its_beginning() -> None:
    """Only the first four digits of the storage key's hash count."""

    @instead_of(Credentials, "open")
    def open_account(real: Function, credentials: Credentials, record: Record | None) -> Account | None:
        if isinstance(record, Account) and record.key_sha256[:4] == credentials.key_sha256[:4]:
            return record
        return None


@breaks("credentials.commit")
def credentials_are_compared_only_once() -> None:
    """An upload that began before the key was changed is stored after it, under the old key."""

    @instead_of(User, "again")
    def again(real: Function, user: User, server: Server, record: Record | None) -> Account:
        return record if isinstance(record, Account) else user.account

    @instead_of(backup_server, "receive")
    def receive(real: Function, server: Server, request: Request) -> bytes:
        body: bytes = real(server, request)
        time.sleep(0.2 if len(body) > 1_000_000 else 0)  # so that a test need not be lucky
        return body


@breaks("credentials.form")
def credentials_may_be_in_capitals() -> None:
    """One username has many accounts."""
    pattern = backup_server.USER_ID_AND_STORAGE_KEY.pattern
    change(backup_server, "USER_ID_AND_STORAGE_KEY", re.compile(pattern, re.IGNORECASE))


@breaks("credentials.challenge")
def challenge_is_missing() -> None:
    """A 401 does not say which credentials would be accepted."""

    @on_answer
    def remove_challenge(environ: dict[str, Any], answer: Any) -> None:
        del answer.headers["WWW-Authenticate"]
