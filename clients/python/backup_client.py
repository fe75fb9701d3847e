"""The reference client. It shows what the app does, in order.

    keys = derive_keys("Anna", "correct horse battery staple")
    client = BackupClient("https://backup.example", app_secret, keys)
    checked(client.register_user())
    receipt = checked(client.store_backup(encrypt(keys, log, sequence=1))).json()
    log = decrypt(keys, backup_bytes(checked(client.fetch_backup()))).plaintext

The client has four layers: deriving the keys, encrypting, signing, and calling the operations. Each layer uses only
those above it. `device.py` is built on them: it shows what a device saves and when. `openapi.yaml` says what every
request and answer means. `fixtures/` has the value of every step here.
"""

import base64
import hashlib
import hmac
import json
import re
import secrets
import time
import unicodedata
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import urlsplit

import requests
import requests.auth
from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

# ---- Deriving the keys -------------------------------------------------------------------------------------

USER_ID_PREFIX = "dailyreps/v1/user-id/"  # for ever, whatever the derivation

# The 25 code points of Unicode's White_Space property (PropList.txt). Without an argument, str.strip() would also strip
# U+001C to U+001F.
WHITE_SPACE = (
    "\t\n\v\f\r \u0085\u00a0\u1680\u2000\u2001\u2002\u2003\u2004\u2005\u2006\u2007\u2008\u2009\u200a"
    "\u2028\u2029\u202f\u205f\u3000"
)


@dataclass(frozen=True)
class Derivation:
    """A way from a password to the keys: the number of iterations of PBKDF2, and the infos of HKDF."""

    name: str
    iterations: int
    storage_key_info: str
    encryption_key_info: str


V1 = Derivation("v1", 600_000, "dailyreps/v1/storage-key", "dailyreps/v1/encryption-key")
DERIVATIONS: tuple[Derivation, ...] = (V1,)  # newest first


@dataclass(frozen=True)
class Keys:
    """The keys of a username and a password.

    `user_id` and `storage_key` are for the server: 64 lowercase hex characters each. `encryption_key` and `master_key`
    are 32 bytes each and never leave the device. The repr shows no key. `derivation` is the name of the derivation.
    """

    user_id: str
    storage_key: str = field(repr=False)
    encryption_key: bytes = field(repr=False)
    master_key: bytes = field(repr=False)
    derivation: str = V1.name


class AppOutdatedError(Exception):
    """A newer version of the app made this. The app says "update the app", and replaces nothing."""

    sentence = "A newer version of the app made this. Update the app."


def normalize_username(username: str) -> str:
    """Return the form of a username that is hashed.

    Apply NFKC, strip White_Space at both ends, lowercase each code point by itself, and apply NFKC again.
    (`str.lower()` of a whole string would turn a Σ at its end into a final sigma; see SpecialCasing.txt.) Raise
    ValueError if nothing is left: all people without a name would share an account.
    """
    stripped = unicodedata.normalize("NFKC", username).strip(WHITE_SPACE)
    if not stripped:
        raise ValueError("the username is empty")
    return unicodedata.normalize("NFKC", _lowercase(stripped))


def _lowercase(text: str) -> str:
    return "".join(character.lower() for character in text)


def derive_user_id(username: str) -> str:
    """Return SHA-256 of the prefix and the normalised username, as 64 lowercase hex characters."""
    return hashlib.sha256((USER_ID_PREFIX + normalize_username(username)).encode()).hexdigest()


def derive_keys(username: str, password: str, derivation: Derivation = DERIVATIONS[0]) -> Keys:
    """Return the keys of a user: SHA-256 of the username, then PBKDF2 (RFC 8018) and HKDF (RFC 5869) with SHA-256.

    This takes a moment on purpose (600,000 iterations). Raise UnicodeEncodeError for a lone surrogate, which has no
    UTF-8 form.
    """
    return keys_of_password(derive_user_id(username), password, derivation)


def keys_of_password(user_id: str, password: str, derivation: Derivation = DERIVATIONS[0]) -> Keys:
    """Return the same, for a device that has the userId."""
    password_utf8 = unicodedata.normalize("NFKC", password).encode()
    master_key = hashlib.pbkdf2_hmac("sha256", password_utf8, bytes.fromhex(user_id), derivation.iterations, 32)
    return keys_of_master_key(user_id, master_key, derivation)


def keys_of_master_key(user_id: str, master_key: bytes, derivation: Derivation = V1) -> Keys:
    """Return the keys that HKDF-SHA256 with an empty salt derives from the master key."""
    storage_key = HKDF(SHA256(), 32, salt=b"", info=derivation.storage_key_info.encode()).derive(master_key)
    encryption_key = HKDF(SHA256(), 32, salt=b"", info=derivation.encryption_key_info.encode()).derive(master_key)
    return Keys(user_id, storage_key.hex(), encryption_key, master_key, derivation.name)


def derivations_to_try(succeeded: str | None, derivations: Sequence[Derivation] = DERIVATIONS) -> Sequence[Derivation]:
    """Return the derivations that a sign-in tries, in this order: from the newest to the one that has succeeded.

    `succeeded` is the name of the newest one that has succeeded on this device for this account, or None. A server
    could otherwise answer 401 and get a storage key that is easier to attack. Raise AppOutdatedError if the name is
    unknown.
    """
    names = [derivation.name for derivation in derivations]
    if succeeded is None:
        return derivations
    if succeeded not in names:
        raise AppOutdatedError("a newer version of the app moved this account")
    return derivations[: names.index(succeeded) + 1]


# Choosing a password. A sign-in checks none of this.

PASSWORD_CODE_POINTS = 10


def password_problem(password: str, common_passwords: Collection[str]) -> str | None:
    """Return why a password cannot be chosen, "too-short" or "too-common", or None if it can.

    `common_passwords` are the lines of fixtures/common_passwords.txt. Check only a password that is being chosen.
    """
    normalized = unicodedata.normalize("NFKC", password)
    if len(normalized) < PASSWORD_CODE_POINTS:
        return "too-short"
    return "too-common" if _lowercase(normalized) in common_passwords else None


def new_passphrase(words: Sequence[str], count: int = 4) -> str:
    """Return `count` words, drawn at random, with spaces between. `words` is fixtures/passphrase_words.txt."""
    return " ".join(secrets.choice(words) for _ in range(count))


# The recovery code: the master key, written down.

CROCKFORD = "0123456789ABCDEFGHJKMNPQRSTVWXYZ"
RECOVERY_CHARACTERS = 56
# Only ASCII letters have a capital here. str.upper() would also read U+0131 as I and U+017F as S.
HYPHENS = "-\u2010\u2011\u2012\u2013\u2014\u2015\u2212"
_READ_AS = str.maketrans("abcdefghjkmnpqrstvwxyzOoIiLl", "ABCDEFGHJKMNPQRSTVWXYZ001111", WHITE_SPACE + HYPHENS)


class MistypedCodeError(Exception):
    """A recovery code was mistyped, or it belongs to another username."""

    sentence = "This recovery code was mistyped, or it belongs to another username."


def recovery_code(keys: Keys) -> str:
    """Return the recovery code: 8 groups of 7 characters. A change of the password makes it void."""
    content = b"\x01" + keys.master_key
    number = int.from_bytes(content + _recovery_checksum(keys.user_id, content))
    characters = [CROCKFORD[number >> 5 * place & 31] for place in reversed(range(RECOVERY_CHARACTERS))]
    return "-".join("".join(characters[start : start + 7]) for start in range(0, RECOVERY_CHARACTERS, 7))


def read_recovery_code(username: str, code: str) -> Keys:
    """Return the keys of a user from the recovery code. It may be typed in small letters, with or without `-`.

    Raise MistypedCodeError, or AppOutdatedError if a newer version of the app made the code.
    """
    characters = code.translate(_READ_AS)
    if len(characters) != RECOVERY_CHARACTERS or not set(characters) <= set(CROCKFORD):
        raise MistypedCodeError("not a recovery code")
    number = 0
    for character in characters:
        number = number << 5 | CROCKFORD.index(character)
    content, checksum = (number >> 16).to_bytes(33), (number & 0xFFFF).to_bytes(2)
    user_id = derive_user_id(username)
    if checksum != _recovery_checksum(user_id, content):
        raise MistypedCodeError("mistyped, or the code of another username")
    if content[0] != 1:
        raise AppOutdatedError("a newer version of the app made this recovery code")
    return keys_of_master_key(user_id, content[1:], V1)


def _recovery_checksum(user_id: str, content: bytes) -> bytes:
    return hashlib.sha256(b"dailyreps/v1/recovery-code/" + user_id.encode() + content).digest()[:2]


# ---- Encrypting --------------------------------------------------------------------------------------------

FORMAT = b"\x01"
HEADER_BYTES = 41  # the format, the sequence in 8 bytes, the sha256 of the base
NONCE_BYTES = 12
TAG_BYTES = 16
LARGEST_SEQUENCE = 2**53 - 1


class DecryptionError(Exception):
    """The blob was not made with these keys, or it was changed since."""

    sentence = "This backup is damaged, or it was made with another password."


@dataclass(frozen=True)
class Decrypted:
    """What a blob says. `base_sha256` is the sha256 of the version that it was made from, in hex, or None."""

    plaintext: bytes = field(repr=False)
    sequence: int
    base_sha256: str | None


def encrypt(
    keys: Keys, plaintext: bytes, *, sequence: int, base_sha256: str | None = None, nonce: bytes | None = None
) -> bytes:
    """Return the blob to store: a 41-byte header, 12-byte nonce, AES-256-GCM ciphertext, 16-byte tag.

    `base_sha256` is the one that the upload will name. Pass `nonce` only to repeat a test vector. Two plaintexts under
    the same nonce and key reveal both. Raise ValueError for a nonce, sequence or base that cannot be one.
    """
    nonce = secrets.token_bytes(NONCE_BYTES) if nonce is None else nonce
    if len(nonce) != NONCE_BYTES:
        raise ValueError(f"the nonce must be {NONCE_BYTES} bytes long")
    header = blob_header(sequence, base_sha256)
    return header + nonce + AESGCM(keys.encryption_key).encrypt(nonce, plaintext, associated_data(keys.user_id, header))


def decrypt(keys: Keys, blob: bytes) -> Decrypted:
    """Return what a blob says.

    Raise AppOutdatedError for a format that this client does not know: such a blob is never overwritten. Raise
    DecryptionError if the blob belongs to another user or password, or if it is damaged.
    """
    if blob and blob[:1] != FORMAT:
        raise AppOutdatedError("a newer version of the app made this backup")
    if len(blob) < HEADER_BYTES + NONCE_BYTES + TAG_BYTES:
        raise DecryptionError("too short to be a backup")
    header, nonce, sealed = blob[:HEADER_BYTES], blob[HEADER_BYTES:][:NONCE_BYTES], blob[HEADER_BYTES + NONCE_BYTES :]
    try:
        plaintext = AESGCM(keys.encryption_key).decrypt(nonce, sealed, associated_data(keys.user_id, header))
    except InvalidTag:
        raise DecryptionError("not a backup of this user and password, or a damaged backup") from None
    sequence, base = int.from_bytes(header[1:9]), header[9:]
    if not 1 <= sequence <= LARGEST_SEQUENCE:
        raise DecryptionError("a sequence counts from 1 to 2**53 - 1")
    return Decrypted(plaintext, sequence, base.hex() if any(base) else None)


def blob_header(sequence: int, base_sha256: str | None) -> bytes:
    """Return the first 41 bytes of a blob: the format, the sequence, and the sha256 of the base or zeros.

    Raise ValueError if the sequence is not from 1 to 2**53 - 1, or if the base is not a sha256 in hex.
    """
    base = bytes(32) if base_sha256 is None else bytes.fromhex(base_sha256)
    if not 1 <= sequence <= LARGEST_SEQUENCE or len(base) != 32:
        raise ValueError("a header needs a sequence from 1 and a base of 32 bytes")
    return FORMAT + sequence.to_bytes(8) + base


def associated_data(user_id: str, header: bytes) -> bytes:
    """Return the bytes that bind a blob to its user and its header.

    So the server can neither pass off another user's backup nor call an old one new.
    """
    return f"dailyreps/v1/{user_id}".encode("ascii") + header


@dataclass(frozen=True)
class Seen:
    """The highest version that a device has seen. The device saves it together with the log and the base."""

    sequence: int = 0
    sha256: str | None = None


def next_sequence(base_sequence: int | None, highest: Seen, restored: int = 0) -> int:
    """Return the sequence of a new blob: one more than that of its base, of the highest seen, and of `restored`.

    `base_sequence` is 0 without a base, and None if the base cannot be decrypted: it counts as one more than the
    others. `restored` is the sequence of a version that is being restored. Raise OverflowError after 2**53 - 1.
    """
    others = max(highest.sequence, restored)
    sequence = 1 + max(others + 1 if base_sequence is None else base_sequence, others)
    if sequence > LARGEST_SEQUENCE:
        raise OverflowError("there is no sequence after the largest")
    return sequence


def higher(highest: Seen, sequence: int, sha256: str) -> Seen:
    """Return the highest seen after one more version: an acknowledged upload, or the latest version, decrypted.

    Do not call it for a lost answer, nor for an older version that was fetched on purpose.
    """
    return Seen(sequence, sha256) if sequence > highest.sequence else highest


def verdict(highest: Seen, sequence: int, sha256: str | None, base_sha256: str | None) -> str:
    """Compare the latest version, decrypted, with the highest that this device has seen.

    If there is no version, its sequence is 0 and the rest is None.

    "first": nothing to compare with. "same": nothing new. "next": made from the highest seen. "later": others stored in
    between. "unknown-base" and "rollback": merge, never adopt, and tell the person.
    """
    if highest.sequence == 0:
        return "first"
    if sequence <= highest.sequence:
        return "same" if (sequence, sha256) == (highest.sequence, highest.sha256) else "rollback"
    if sequence > highest.sequence + 1:
        return "later"
    return "next" if base_sha256 == highest.sha256 else "unknown-base"


ALARMS = ("rollback", "unknown-base")


# ---- Signing -----------------------------------------------------------------------------------------------


def content_digest(body: bytes) -> str:
    """Return the Content-Digest header of a body, which may be empty (RFC 9530 section 2)."""
    return f"sha-256=:{_base64(hashlib.sha256(body).digest())}:"


def authorization(user_id: str, storage_key: str) -> str:
    """Return the Authorization header: HTTP Basic (RFC 7617)."""
    return f"Basic {_base64(f'{user_id}:{storage_key}'.encode())}"


def signature_params(keyid: str, created: int) -> str:
    """Return the value of `@signature-params` (RFC 9421 section 2.3), in the only profile that the server accepts.

    `created` is in Unix seconds. Raise ValueError if the keyid is not valid.
    """
    if not re.fullmatch("[A-Za-z0-9_-]{1,64}", keyid):
        raise ValueError("a keyid must have 1 to 64 characters of A-Z a-z 0-9 _ -")
    components = '("@method" "@path" "authorization" "content-digest")'
    return f'{components};created={created};keyid="{keyid}";alg="hmac-sha256"'


def signature_base(method: str, path: str, authorization: str, digest: str, params: str) -> str:
    """Return the string to sign (RFC 9421 section 2.5): five lines, with no newline after the last one."""
    return (
        f'"@method": {method}\n'
        f'"@path": {path}\n'
        f'"authorization": {authorization}\n'
        f'"content-digest": {digest}\n'
        f'"@signature-params": {params}'
    )


def sign(
    method: str, path: str, body: bytes, authorization: str, *, secret: str, keyid: str = "app", created: int
) -> dict[str, str]:
    """Return the four headers that prove a request: Authorization, Content-Digest, Signature-Input and Signature.

    `path` is the path of the request target as it will be sent, without a query. `created` is in Unix seconds. The HMAC
    key is the secret's characters in UTF-8, even if they look like hex or base64 (RFC 9421 section 3.3.3).
    """
    digest = content_digest(body)
    params = signature_params(keyid, created)
    base = signature_base(method, path, authorization, digest, params)
    mac = hmac.digest(secret.encode(), base.encode(), "sha256")
    return {
        "Authorization": authorization,
        "Content-Digest": digest,
        "Signature-Input": f"app={params}",
        "Signature": f"app=:{_base64(mac)}:",
    }


class SignatureAuth(requests.auth.AuthBase):
    """Signs a request of the library `requests` at the last moment, when its path and its body are final.

    `clock` returns the server's time in Unix seconds.
    """

    def __init__(
        self,
        user_id: str,
        storage_key: str,
        secret: str,
        keyid: str = "app",
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._authorization = authorization(user_id, storage_key)
        self._secret = secret
        self._keyid = keyid
        self._clock = clock

    def __call__(self, request: requests.PreparedRequest) -> requests.PreparedRequest:
        if isinstance(request.body, str):  # a form or text; urllib3 would encode it in the same way
            request.body = request.body.encode()
        body = request.body or b""
        if not isinstance(body, bytes):
            raise TypeError("a streamed body cannot be signed, because its digest is sent before it")
        assert request.method and request.url
        request.headers.update(
            sign(
                request.method,
                urlsplit(request.url).path or "/",
                body,
                self._authorization,
                secret=self._secret,
                keyid=self._keyid,
                created=int(self._clock()),
            )
        )
        return request


# ---- Calling the operations --------------------------------------------------------------------------------


LOOPBACK = re.compile(r"https?://(localhost|127(\.\d+){3}|\[::1\])(:|$)", re.IGNORECASE)


class BackupClient:
    """One user on one device. It has a method for each operation of openapi.yaml. Each method sends one request.

    Every method returns the plain `requests.Response`, whatever its status. `checked()` turns a problem into an
    exception. The client repeats no request and follows no redirect. The app decides what to do about a problem.

    `credentials` is `Keys` or a pair (user id, storage key). `timeout` is in seconds. `clock` returns the time of the
    device's clock in Unix seconds. The attribute `clock_offset` is the number of seconds that the server's clock is
    ahead, as far as the client knows (see `mend_clock`).
    """

    def __init__(
        self,
        base_url: str,
        secret: str,
        credentials: Keys | tuple[str, str],
        *,
        keyid: str = "app",
        clock: Callable[[], float] = time.time,
        session: requests.Session | None = None,
        timeout: float = 60,
    ) -> None:
        if isinstance(credentials, Keys):
            credentials = (credentials.user_id, credentials.storage_key)
        self.base_url = base_url.rstrip("/")
        self.secret = secret
        self.keyid = keyid
        self.credentials = credentials
        self.clock_offset = 0
        self.session = session or requests.Session()
        self.timeout = timeout
        self._clock = clock
        self._auth = SignatureAuth(*credentials, secret, keyid, self.now)

    def now(self) -> float:
        """Return the server's time in Unix seconds, as far as this client knows it."""
        return self._clock() + self.clock_offset

    def register_user(self) -> requests.Response:
        """POST /api/register. Registering again with the same key is a harmless retry."""
        return self.request("POST", "/api/register")

    def store_backup(self, blob: bytes, base_sha256: str | None = None) -> requests.Response:
        """POST /api/backup. `base_sha256` is the sha256 of the version that `blob` was made from.

        After a lost answer, call again with the same bytes. If you encrypt again, it is another upload.
        """
        return self.request("POST", "/api/backup", body=_upload(blob, base_sha256))

    def fetch_backup(self, if_none_match: str | None = None) -> requests.Response:
        """GET /api/backup. `if_none_match` is the ETag of the version that you have. 304 means that it is the latest.

        Without it, the answer always has the whole version.
        """
        return self.request("GET", "/api/backup", headers=_if_none_match(if_none_match))

    def list_backup_versions(self) -> requests.Response:
        """GET /api/backup/versions."""
        return self.request("GET", "/api/backup/versions")

    def fetch_backup_version(self, version: int | str, if_none_match: str | None = None) -> requests.Response:
        """GET /api/backup/versions/{version}."""
        return self.request("GET", f"/api/backup/versions/{version}", headers=_if_none_match(if_none_match))

    def change_storage_key(
        self, new_storage_key: str, blob: bytes, base_sha256: str | None = None
    ) -> requests.Response:
        """PUT /api/user/storage-key, signed with the old key. `blob` is encrypted with the new password's key.

        This client keeps the old key. After a 200, use another client, with the new keys. After a lost answer, call
        `list_backup_versions()` with the new keys to find out whether the change happened. Keep both keys until you
        know.
        """
        upload = {"storageKey": new_storage_key, **_upload(blob, base_sha256)}
        return self.request("PUT", "/api/user/storage-key", body=upload)

    def delete_user(self) -> requests.Response:
        """DELETE /api/user. After a lost answer, repeat the call.

        If the repeat gets `credentials_invalid`, the account is deleted, or its password was changed on another device.
        """
        return self.request("DELETE", "/api/user")

    def get_health(self) -> requests.Response:
        """GET /health, unsigned."""
        return self.request("GET", "/health", signed=False)

    def get_admin_stats(self, admin_key: str) -> requests.Response:
        """GET /admin/stats, with the operator's bearer token (RFC 6750)."""
        headers = {"Authorization": f"Bearer {admin_key}"}
        return self.request("GET", "/admin/stats", headers=headers, signed=False)

    def get_openapi(self, extension: str = "json") -> requests.Response:
        """GET /openapi.json, or /openapi.yaml if `extension` is "yaml", unsigned."""
        return self.request("GET", f"/openapi.{extension}", signed=False)

    def request(
        self,
        method: str,
        path: str,
        *,
        body: bytes | Mapping[str, Any] | None = None,
        headers: Mapping[str, str] | None = None,
        signed: bool = True,
    ) -> requests.Response:
        """Send any request. A `body` of bytes is sent as it is, a mapping as JSON with its media type."""
        headers = dict(headers or {})
        if isinstance(body, Mapping):
            headers.setdefault("Content-Type", "application/json")
            body = json.dumps(body, separators=(",", ":")).encode()
        return self.session.request(
            method,
            self.base_url + path,
            data=body,
            headers=headers,
            auth=self._auth if signed else _no_auth,
            proxies={"no_proxy": "*"} if LOOPBACK.match(self.base_url) else None,  # no proxy of the environment
            allow_redirects=False,  # a signature is for one server and one path
            timeout=self.timeout,
        )

    def mend_clock(self, response: requests.Response) -> bool:
        """Take the server's time from a 401 `signature_expired`. If this returns True, call again, once.

        response = client.fetch_backup()
        if client.mend_clock(response):
            response = client.fetch_backup()
        """
        problem = _problem(response)
        if problem.get("code") != "signature_expired" or not isinstance(problem.get("serverTime"), int):
            return False
        self.clock_offset = problem["serverTime"] - int(self._clock())
        return True


UPDATE = "The server does not accept this version of the app. Update the app."
LATER = "The server cannot answer at the moment. Nothing is lost. Try again later."
# What a person can be told about a problem, by its code. For a code that is not here, the status decides.
SENTENCES: Mapping[str, str] = {
    "signature_invalid": UPDATE,
    "signature_expired": "The clock of this device is wrong. Correct it, and try again.",
    "credentials_invalid": "The username or the password is wrong, or a newer version of the app moved this account: "
    "update the app.",
    "app_outdated": UPDATE,
    "no_backup": "There is no backup yet.",
    "no_such_version": "This version is not kept any more. Choose another one.",
    "request_timeout": "The connection is too slow. Try again on a better one.",
    "username_taken": "This username is taken. Choose another one, or enter the password of this one.",
    "recently_deleted": "This account was deleted a moment ago. Try again in a quarter of an hour.",
    "version_conflict": "Another device has stored a newer backup. Try again.",
    "payload_too_large": "The log is too large to back up.",
    "rate_limited": "That was too often. Try again later.",
    "account_damaged": "The account is damaged on the server, and only its operator can help. Keep the app: it has "
    "your log.",
    "backup_damaged": "This version is damaged on the server. Choose another one.",
    "internal_error": LATER,
    "unavailable": LATER,
    "storage_full": "The server has no room for the backup. Try again later.",
}
BY_STATUS = {408: SENTENCES["request_timeout"], 429: SENTENCES["rate_limited"]}
REFUSED = "The server refused this, and nothing was changed. Update the app, or report this to its publisher."
# A code has no key in it, though a hostile server could send back what it got.
CODE = re.compile("(?!.*[0-9a-f]{24})[a-z0-9_]{1,64}")


class ProblemError(Exception):
    """An answer that is a problem (RFC 9457).

    `code` says which problem it is. `problem` is the whole problem, with the members that some codes add:
    `currentVersion`, `serverTime`, `errors`. It is the server's text, so the message of the error has none of it but
    the code. `sentence` is what a person can be told. `retry_after` is after how many seconds to try again, if the
    server says it. If `lost` is True (a status of 500 or more, but for `storage_full` and damage), the request may have
    been done or not, as after a lost answer. `app_outdated` means that the person has to update the app.
    `request_timeout` means that nothing was changed: repeat the request.
    """

    def __init__(
        self, code: str | None, status: int, problem: Mapping[str, Any], retry_after: int | None = None
    ) -> None:
        self.code = code
        self.status = status
        self.problem = problem
        self.retry_after = retry_after
        self.lost = status >= 500 and code not in ("storage_full", "account_damaged", "backup_damaged")
        self.sentence = SENTENCES.get(code or "") or BY_STATUS.get(status) or (LATER if status >= 500 else REFUSED)
        super().__init__(f"{status} {code}: {self.sentence}")


class LostAnswerError(ProblemError):
    """An answer that is not of the contract, for example a proxy's 502 with HTML. The answer of the server is lost."""

    def __init__(self, status: int, why: str) -> None:
        super().__init__(None, status, {"detail": why})
        self.lost = True
        self.sentence = "There is no answer from the server. Nothing is lost. Try again later."
        self.args = (f"{status} lost: {why}",)


class MisfitError(LostAnswerError):
    """A fetched version is not the one that was asked for, or it does not fit its receipt."""


def sentence(error: Exception) -> str:
    """Return what a person can be told about an error of this client."""
    return str(getattr(error, "sentence", "Something went wrong. Nothing is lost. Try again later."))


def checked(response: requests.Response) -> requests.Response:
    """Return the response if it is a success or 304. Otherwise, raise ProblemError.

    Raise LostAnswerError if it is neither a problem nor a success with a body of its media type.
    """
    status, media_type = response.status_code, _media_type(response)
    if status in (204, 304) or (200 <= status < 300 and media_type in ("application/json", "application/yaml")):
        return response
    problem = _problem(response)
    code = problem.get("code")
    if status < 400 or not isinstance(code, str) or not CODE.fullmatch(code):
        raise LostAnswerError(status, "the answer is not of this contract")
    seconds = response.headers.get("Retry-After", "")
    raise ProblemError(code, status, problem, int(seconds) if re.fullmatch("[0-9]{1,9}", seconds) else None)


RECEIPT = {"version": int, "updatedAt": str, "size": int, "sha256": str, "keyVersion": int}


def members(
    response: requests.Response, expected: Mapping[str, Any], statuses: Collection[int] = (200, 201)
) -> dict[str, Any]:
    """Return the JSON object of a success, which has these members of these types, or with these values.

    `statuses` are the successes that the operation has; 204 and 304 give {}. Otherwise, raise as `checked()`.
    """
    if response.status_code in (204, 304) and response.status_code in statuses:
        return {}
    try:
        found = checked(response).json()
    except ValueError:
        found = None
    misfit = response.status_code not in statuses or not isinstance(found, dict)
    if misfit or any(not _is(found.get(name), kind) for name, kind in expected.items()):
        raise LostAnswerError(response.status_code, "the answer is not one of this operation")
    return dict(found)


def receipt_for(blob: bytes) -> dict[str, Any]:
    """Return what the receipt of an uploaded blob must have. An answer with another one is a lost answer."""
    return {**RECEIPT, "size": len(blob), "sha256": hashlib.sha256(blob).hexdigest()}


def _is(value: object, expected: object) -> bool:
    return type(value) is expected if isinstance(expected, type) else value == expected


def backup_bytes(response: requests.Response, *, version: int | None = None, sha256: str | None = None) -> bytes:
    """Return the blob of a fetched version, after checking that it has the size and the sha256 of the receipt.

    `version` is the one that was asked for, if it was a certain one. `sha256` is the one from the list, if it is known.
    Raise ValueError if the answer is about another version, if the data is not canonical base64 (RFC 4648 section 4),
    or if it does not fit.
    """
    return blob_of(response.json(), version=version, sha256=sha256)


def blob_of(backup: Mapping[str, Any], *, version: int | None = None, sha256: str | None = None) -> bytes:
    """Return the blob of an answer's JSON, as `backup_bytes` does."""
    if version not in (None, backup["version"]) or sha256 not in (None, backup["sha256"]):
        raise ValueError("the answer is about another version than the one that was asked for")
    return decode_data(backup["data"], size=backup["size"], sha256=backup["sha256"])


def decode_data(data: str, *, size: int, sha256: str) -> bytes:
    """Return the bytes of `data`, with the same checks as `backup_bytes`. `size` is in bytes."""
    blob = base64.b64decode(data, validate=True)
    if not blob or _base64(blob) != data:  # Python's decoder ignores unused bits
        raise ValueError("the data is not canonical base64 of at least one byte")
    if len(blob) != size or hashlib.sha256(blob).hexdigest() != sha256:
        raise ValueError("the data does not match its receipt")
    return blob


def app_secrets(text: str) -> list[tuple[str, str]]:
    """Return (keyid, secret) for each secret in APP_SECRET_KEY. A single secret needs no keyid: it is "app"."""
    entries = [entry.rpartition(":") for entry in text.split(",")]
    return [(keyid or "app", secret) for keyid, _, secret in entries]


def _base64(data: bytes) -> str:
    return base64.b64encode(data).decode("ascii")


def _upload(blob: bytes, base_sha256: str | None) -> dict[str, str]:
    upload = {"data": _base64(blob)}
    if base_sha256 is not None:  # an account's first backup leaves it out; null is not valid
        upload["baseSha256"] = base_sha256
    return upload


def _if_none_match(etag: str | None) -> dict[str, str]:
    return {} if etag is None else {"If-None-Match": etag}


def _no_auth(request: requests.PreparedRequest) -> requests.PreparedRequest:
    """Keep `requests` from adding credentials from a ~/.netrc."""
    return request


def _media_type(response: requests.Response) -> str:
    return response.headers.get("Content-Type", "").partition(";")[0].strip().lower()


def _problem(response: requests.Response) -> dict[str, Any]:
    """Return the problem in a response's body.

    Return an empty one if the body is no problem, for example in a 502 from a proxy.
    """
    if _media_type(response) != "application/problem+json":
        return {}
    try:
        problem = response.json()
    except ValueError:
        return {}
    return problem if isinstance(problem, dict) else {}
