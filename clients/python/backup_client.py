"""A reference client: what the app does, in the order in which it does it.

    keys = derive_keys("Anna", "correct horse battery staple")
    client = BackupClient("https://backup.example", app_secret, keys)
    checked(client.register_user())
    receipt = checked(client.store_backup(encrypt(keys, log))).json()
    log = decrypt(keys, backup_bytes(checked(client.fetch_backup())))

Four layers, each using only those above it: deriving the keys, encrypting, signing, calling the operations.
`openapi.yaml` says what every request and answer means; `fixtures/` has the value of every step here.
"""

import base64
import hashlib
import hmac
import json
import re
import secrets
import time
import unicodedata
from collections.abc import Callable, Mapping
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

PBKDF2_ITERATIONS = 600_000

# The 25 code points of Unicode's White_Space property (PropList.txt). str.strip() without an argument takes
# U+001C to U+001F too.
WHITE_SPACE = (
    "\t\n\v\f\r \u0085\u00a0\u1680\u2000\u2001\u2002\u2003\u2004\u2005\u2006\u2007\u2008\u2009\u200a"
    "\u2028\u2029\u202f\u205f\u3000"
)


@dataclass(frozen=True)
class Keys:
    """What a username and a password yield: `user_id` and `storage_key`, 64 lowercase hex characters each,
    for the server; `encryption_key`, 32 bytes, for nobody. The repr shows neither key."""

    user_id: str
    storage_key: str = field(repr=False)
    encryption_key: bytes = field(repr=False)


def normalize_username(username: str) -> str:
    """Return the username as it is hashed: NFKC, stripped of White_Space at both ends, each code point lowercased.

    By itself: `str.lower()` of a whole string makes a final sigma of a Σ at its end (SpecialCasing.txt).
    """
    stripped = unicodedata.normalize("NFKC", username).strip(WHITE_SPACE)
    return "".join(character.lower() for character in stripped)


def derive_keys(username: str, password: str) -> Keys:
    """Return the keys of a user: SHA-256 of the username, then PBKDF2 (RFC 8018) and HKDF (RFC 5869) with SHA-256.

    Takes a moment on purpose (600,000 iterations). Raises UnicodeEncodeError for a lone surrogate, which has
    no UTF-8.
    """
    user_id = hashlib.sha256(normalize_username(username).encode()).digest()
    password_utf8 = unicodedata.normalize("NFKC", password).encode()
    master_key = hashlib.pbkdf2_hmac("sha256", password_utf8, user_id, PBKDF2_ITERATIONS, 32)
    storage_key, encryption_key = expand_master_key(master_key)
    return Keys(user_id.hex(), storage_key.hex(), encryption_key)


def expand_master_key(master_key: bytes) -> tuple[bytes, bytes]:
    """Return (storage key, encryption key), 32 bytes each, by HKDF-SHA256 with an empty salt."""
    storage_key = HKDF(SHA256(), 32, salt=b"", info=b"dailyreps/v1/storage-key").derive(master_key)
    encryption_key = HKDF(SHA256(), 32, salt=b"", info=b"dailyreps/v1/encryption-key").derive(master_key)
    return storage_key, encryption_key


# ---- Encrypting --------------------------------------------------------------------------------------------

NONCE_BYTES = 12
TAG_BYTES = 16


class DecryptionError(Exception):
    """The blob is not one that these keys made, or it was changed since."""


def encrypt(keys: Keys, plaintext: bytes, nonce: bytes | None = None) -> bytes:
    """Return the blob to store: 12-byte nonce, AES-256-GCM ciphertext, 16-byte tag.

    Leave `nonce` out, except to repeat a test vector: two plaintexts under one nonce and key give both away.
    """
    nonce = secrets.token_bytes(NONCE_BYTES) if nonce is None else nonce
    if len(nonce) != NONCE_BYTES:
        raise ValueError(f"the nonce must have {NONCE_BYTES} bytes")
    return nonce + AESGCM(keys.encryption_key).encrypt(nonce, plaintext, associated_data(keys.user_id))


def decrypt(keys: Keys, blob: bytes) -> bytes:
    """Return the plaintext of a blob. Raises DecryptionError if it is another user's or password's, or damaged."""
    if len(blob) < NONCE_BYTES + TAG_BYTES:
        raise DecryptionError("too short to be a backup")
    try:
        nonce, sealed = blob[:NONCE_BYTES], blob[NONCE_BYTES:]
        return AESGCM(keys.encryption_key).decrypt(nonce, sealed, associated_data(keys.user_id))
    except InvalidTag:
        raise DecryptionError("not a backup of this user and password, or a damaged one") from None


def associated_data(user_id: str) -> bytes:
    """Return what binds a blob to its user: the server cannot pass one user's backup off as another's."""
    return f"dailyreps/v1/{user_id}".encode("ascii")


# ---- Signing -----------------------------------------------------------------------------------------------


def content_digest(body: bytes) -> str:
    """Return the Content-Digest header of a body, the empty one included (RFC 9530 section 2)."""
    return f"sha-256=:{_base64(hashlib.sha256(body).digest())}:"


def authorization(user_id: str, storage_key: str) -> str:
    """Return the Authorization header: HTTP Basic (RFC 7617)."""
    return f"Basic {_base64(f'{user_id}:{storage_key}'.encode())}"


def signature_params(keyid: str, created: int) -> str:
    """Return the value of `@signature-params` (RFC 9421 section 2.3): the one profile that the server accepts.

    `created` is in Unix seconds. Raises ValueError for a keyid that could not be one.
    """
    if not re.fullmatch("[A-Za-z0-9_-]{1,64}", keyid):
        raise ValueError("a keyid has 1 to 64 of the characters A-Z a-z 0-9 _ -")
    components = '("@method" "@path" "authorization" "content-digest")'
    return f'{components};created={created};keyid="{keyid}";alg="hmac-sha256"'


def signature_base(method: str, path: str, authorization: str, digest: str, params: str) -> str:
    """Return the string that is signed (RFC 9421 section 2.5): five lines, no newline after the last."""
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

    `path` is the request target's path as it will be sent, without a query; `created` is in Unix seconds. The
    HMAC key is the secret's characters in UTF-8, whatever they look like (RFC 9421 section 3.3.3).
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
    """Signs a request of `requests` at the last moment, when its path and its body's bytes are final.

    `clock` tells the server's time in Unix seconds.
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
        if isinstance(request.body, str):  # as for a form or text; urllib3 would encode it the same way
            request.body = request.body.encode()
        body = request.body or b""
        if not isinstance(body, bytes):
            raise TypeError("a streamed body cannot be signed: its digest goes ahead of it")
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


class BackupClient:
    """One user on one device: a method for each operation of openapi.yaml, each a single request.

    Every method returns the plain `requests.Response`, whatever its status; `checked()` makes an exception of
    a problem. Nothing is repeated and no redirect followed: what to do about a problem, the app decides.

    `credentials` are `Keys` or a pair (user id, storage key); `clock` is the device's clock in Unix seconds,
    and `clock_offset` the seconds that the server's is ahead of it, as far as known (see `mend_clock`).
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
        timeout: float = 30,
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

        After a lost answer, call again with the same bytes: encrypting anew would make it another upload.
        """
        return self.request("POST", "/api/backup", body=_upload(blob, base_sha256))

    def fetch_backup(self, if_none_match: str | None = None) -> requests.Response:
        """GET /api/backup. `if_none_match` is the ETag of the version at hand; 304 says it is the latest."""
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
        """PUT /api/user/storage-key, proven by the old key; `blob` is encrypted with the new password's key.

        This client keeps the old key. Use another with the new keys after a 200, and after a lost answer, to
        see by `list_backup_versions()` whether the change happened. Drop neither key before it is known.
        """
        upload = {"storageKey": new_storage_key, **_upload(blob, base_sha256)}
        return self.request("PUT", "/api/user/storage-key", body=upload)

    def delete_user(self) -> requests.Response:
        """DELETE /api/user. After a lost answer, repeat: `credentials_invalid` then says that it was done."""
        return self.request("DELETE", "/api/user")

    def get_health(self) -> requests.Response:
        """GET /health, unsigned."""
        return self.request("GET", "/health", signed=False)

    def get_admin_stats(self, admin_key: str) -> requests.Response:
        """GET /admin/stats, with the operator's bearer token (RFC 6750)."""
        headers = {"Authorization": f"Bearer {admin_key}"}
        return self.request("GET", "/admin/stats", headers=headers, signed=False)

    def get_openapi(self, extension: str = "json") -> requests.Response:
        """GET /openapi.json, or `extension` "yaml", unsigned."""
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
        """Send any request at all: `body` as it is, or as JSON with its media type if it is a mapping."""
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
            allow_redirects=False,  # a signature is for one server and one path
            timeout=self.timeout,
        )

    def mend_clock(self, response: requests.Response) -> bool:
        """Take over the server's time from a 401 `signature_expired`. True says: now call again, once.

        response = client.fetch_backup()
        if client.mend_clock(response):
            response = client.fetch_backup()
        """
        problem = _problem(response)
        if problem.get("code") != "signature_expired" or not isinstance(problem.get("serverTime"), int):
            return False
        self.clock_offset = problem["serverTime"] - int(self._clock())
        return True


class ProblemError(Exception):
    """An answer that is a problem (RFC 9457). `code` says which, and is None if a body is not of that type;
    `problem` is the whole of it, with what some codes add: `currentVersion`, `serverTime`, `errors`."""

    def __init__(self, code: str | None, status: int, problem: Mapping[str, Any]) -> None:
        super().__init__(f"{status} {code or 'without a code'}: {problem.get('detail', 'no detail')}")
        self.code = code
        self.status = status
        self.problem = problem


def checked(response: requests.Response) -> requests.Response:
    """Return the response if it is a success or 304. Raises ProblemError otherwise."""
    if 200 <= response.status_code < 300 or response.status_code == 304:
        return response
    problem = _problem(response)
    raise ProblemError(problem.get("code"), response.status_code, problem)


def backup_bytes(response: requests.Response) -> bytes:
    """Return the blob of a fetched version, once its size and sha256 are found to be the receipt's.

    Raises ValueError for data that is not canonical base64 (RFC 4648 section 4) or not the receipt's bytes.
    """
    backup = response.json()
    return decode_data(backup["data"], size=backup["size"], sha256=backup["sha256"])


def decode_data(data: str, *, size: int, sha256: str) -> bytes:
    """Return the bytes of `data`, under the same conditions as in `backup_bytes`."""
    blob = base64.b64decode(data, validate=True)
    if not blob or _base64(blob) != data:  # Python's decoder lets unused bits be anything
        raise ValueError("the data is not canonical base64 of at least one byte")
    if len(blob) != size or hashlib.sha256(blob).hexdigest() != sha256:
        raise ValueError("the data is not what its receipt says")
    return blob


def _base64(data: bytes) -> str:
    return base64.b64encode(data).decode("ascii")


def _upload(blob: bytes, base_sha256: str | None) -> dict[str, str]:
    upload = {"data": _base64(blob)}
    if base_sha256 is not None:  # left out, not null, for an account's first backup
        upload["baseSha256"] = base_sha256
    return upload


def _if_none_match(etag: str | None) -> dict[str, str]:
    return {} if etag is None else {"If-None-Match": etag}


def _no_auth(request: requests.PreparedRequest) -> requests.PreparedRequest:
    """Keep `requests` from adding credentials of a ~/.netrc."""
    return request


def _problem(response: requests.Response) -> dict[str, Any]:
    """Return the problem in a response's body; empty if there is none, as for a 502 of something in between."""
    if response.headers.get("Content-Type", "").partition(";")[0].strip().lower() != "application/problem+json":
        return {}
    try:
        problem = response.json()
    except ValueError:
        return {}
    return problem if isinstance(problem, dict) else {}
