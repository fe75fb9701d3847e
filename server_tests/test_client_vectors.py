"""The reference client, checked with the vectors. An independent library, http-message-signatures, checks both."""

import base64
import hashlib
import hmac
import json
import re
import shutil
import subprocess
import sys
import unicodedata
from collections.abc import Callable
from datetime import UTC, datetime
from functools import cache
from http.client import HTTPConnection
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from urllib.parse import urlsplit

import pytest
import requests
from http_message_signatures import HTTPMessageSigner, HTTPMessageVerifier, InvalidSignature, algorithms
from http_message_signatures.resolvers import MappingKeyResolver

from clients.python import backup_client
from clients.python.backup_client import BackupClient, Keys, Seen, SignatureAuth
from contract_tests.target import openapi
from server_tests import vectors
from server_tests.vectors import FIXTURES, KINDS, VectorError, Vectors

# The cases of each group, as parameters of a test. The id of a failing case is its tcId.


def each(kind: str, group_type: str, result: str | None = None) -> Any:
    found = [pair for pair in vectors.cases(kind, group_type) if result in (None, pair[1]["result"])]
    assert found
    return pytest.mark.parametrize("group, case", [pytest.param(*pair, id=str(pair[1]["tcId"])) for pair in found])


# ---- Derivation --------------------------------------------------------------------------------------------


@each("derivation", "Username")
def test_username(group: Vectors, case: Vectors) -> None:
    if "error" in case:
        with pytest.raises(ValueError):
            backup_client.derive_user_id(case["username"])
        return
    normalized = backup_client.normalize_username(case["username"])
    same = (normalized, backup_client.derive_user_id(case["username"])) == (case["normalized"], case["userId"])
    assert same == (case["result"] == "valid")


@each("derivation", "Keys")
def test_keys(group: Vectors, case: Vectors) -> None:
    infos = group["storageKeyInfo"], group["encryptionKeyInfo"]
    derivation = backup_client.Derivation(group["derivation"], group["iterations"], *infos)
    if group["derivation"] == "v1":
        assert (derivation,) == backup_client.DERIVATIONS
    keys = derived(case["username"], case["password"], derivation)
    found = (keys.user_id, keys.master_key.hex(), keys.storage_key, keys.encryption_key.hex())
    same = found == (case["userId"], case["masterKey"], case["storageKey"], case["encryptionKey"])
    assert same == (case["result"] == "valid")


derived = cache(lambda *arguments: backup_client.derive_keys(*arguments))


@each("derivation", "Expansion")
def test_expansion(group: Vectors, case: Vectors) -> None:
    keys = backup_client.keys_of_master_key("ab" * 32, bytes.fromhex(case["masterKey"]))
    assert (keys.storage_key, keys.encryption_key.hex()) == (case["storageKey"], case["encryptionKey"])


def test_a_password_with_a_lone_surrogate() -> None:
    with pytest.raises(ValueError):
        backup_client.derive_keys("Anna", "a password\ud800")


def test_no_key_shows_in_a_repr() -> None:
    keys = Keys("ab" * 32, "cd" * 32, b"\xef" * 32, b"\x89" * 32)
    assert "cd" not in repr(keys) and r"\xef" not in repr(keys) and r"\x89" not in repr(keys)


@each("derivation", "RecoveryCode")
def test_recovery_code(group: Vectors, case: Vectors) -> None:
    def read() -> Keys:
        return backup_client.read_recovery_code(case["username"], case["code"])

    if case["result"] == "valid":
        keys = read()
        found = (keys.user_id, keys.master_key.hex(), keys.storage_key, keys.encryption_key.hex())
        assert found == (case["userId"], case["masterKey"], case["storageKey"], case["encryptionKey"])
        assert backup_client.recovery_code(keys) == case["shown"]
    else:
        with pytest.raises(ERRORS[case["error"]]):
            read()


ERRORS = {
    "mistyped": backup_client.MistypedCodeError,
    "damaged": backup_client.DecryptionError,
    "update-the-app": backup_client.AppOutdatedError,
}
COMMON_PASSWORDS = (FIXTURES / "common_passwords.txt").read_text("utf-8").splitlines()


@each("derivation", "Password")
def test_password(group: Vectors, case: Vectors) -> None:
    assert backup_client.password_problem(case["password"], COMMON_PASSWORDS) == case.get("error")


@pytest.mark.client("client.password-floor")
def test_a_sign_in_checks_no_password() -> None:
    """An account may have an older, weaker password."""
    assert backup_client.password_problem("short", COMMON_PASSWORDS) == "too-short"
    assert derived("Anna", "short").user_id == derived("Anna", backup_client.new_passphrase(["one"])).user_id


def test_lists_of_passwords_and_words() -> None:
    """Each line is as it is compared: the commonest have at least 10 code points, in NFKC and lower case."""
    assert len(COMMON_PASSWORDS) == len(set(COMMON_PASSWORDS)) == 10_000
    for password in COMMON_PASSWORDS:
        assert len(password) >= backup_client.PASSWORD_CODE_POINTS
        assert unicodedata.normalize("NFKC", password) == password
        assert "".join(character.lower() for character in password) == password
    words = (FIXTURES / "passphrase_words.txt").read_text("utf-8").splitlines()
    assert len(words) == len(set(words)) == 6**5
    phrases = {backup_client.new_passphrase(words) for _ in range(20)}
    assert len(phrases) == 20
    for phrase in phrases:
        assert len(phrase.split(" ")) == 4 and set(phrase.split(" ")) <= set(words)
        assert backup_client.password_problem(phrase, COMMON_PASSWORDS) is None


# ---- Encryption --------------------------------------------------------------------------------------------


def keys_of(case: Vectors) -> Keys:
    return Keys(case["userId"], "", bytes.fromhex(case["encryptionKey"]), b"")


@each("encryption", "Blob", "valid")
def test_blob(group: Vectors, case: Vectors) -> None:
    keys, blob, plaintext = keys_of(case), bytes.fromhex(case["blob"]), bytes.fromhex(case["plaintext"])
    header = {"sequence": case["sequence"], "base_sha256": case["baseSha256"]}
    assert backup_client.blob_header(**header).hex() == case["header"]
    assert backup_client.associated_data(keys.user_id, bytes.fromhex(case["header"])).hex() == case["associatedData"]
    assert case["header"] + case["nonce"] + case["ciphertext"] + case["tag"] == case["blob"]
    assert backup_client.encrypt(keys, plaintext, **header, nonce=bytes.fromhex(case["nonce"])) == blob
    assert backup_client.decrypt(keys, blob) == backup_client.Decrypted(plaintext, **header)


@each("encryption", "Blob", "invalid")
def test_blob_refused(group: Vectors, case: Vectors) -> None:
    with pytest.raises(ERRORS[case["error"]]):
        backup_client.decrypt(keys_of(case), bytes.fromhex(case["blob"]))


@each("encryption", "Data")
def test_data(group: Vectors, case: Vectors) -> None:
    def decode() -> bytes:
        return backup_client.decode_data(case["data"], size=case["size"], sha256=case["sha256"])

    if case["result"] == "valid":
        assert decode().hex() == case["blob"]
        assert base64.b64encode(bytes.fromhex(case["blob"])).decode() == case["data"]
    else:
        with pytest.raises(ValueError):
            decode()


@each("encryption", "File")
def test_file(group: Vectors, case: Vectors) -> None:
    plaintext = (FIXTURES / case["file"]).read_bytes()
    assert (len(plaintext), hashlib.sha256(plaintext).hexdigest()) == (case["fileSize"], case["fileSha256"])
    sequence, nonce = case["sequence"], bytes.fromhex(case["nonce"])
    blob = backup_client.encrypt(keys_of(case), plaintext, sequence=sequence, nonce=nonce)
    assert (len(blob), hashlib.sha256(blob).hexdigest()) == (case["size"], case["sha256"])
    assert blob[-16:].hex() == case["tag"]


def test_each_encryption_has_a_nonce_of_its_own() -> None:
    keys = Keys("ab" * 32, "cd" * 32, b"\xef" * 32, b"\x89" * 32)
    one, other = (backup_client.encrypt(keys, b"log", sequence=1) for _ in range(2))
    assert one[:41] == other[:41] and one[41:53] != other[41:53]


@pytest.mark.parametrize(
    "sequence, base, nonce", [(0, None, 12), (-1, None, 12), (2**53, None, 12), (1, "ab" * 31, 12), (1, None, 11)]
)
def test_what_cannot_be_a_header_or_a_nonce(sequence: int, base: str | None, nonce: int) -> None:
    keys = Keys("ab" * 32, "cd" * 32, b"\xef" * 32, b"\x89" * 32)
    with pytest.raises(ValueError):
        backup_client.encrypt(keys, b"log", sequence=sequence, base_sha256=base, nonce=bytes(nonce))


# ---- What a device decides ---------------------------------------------------------------------------------


def seen(case: Vectors) -> Seen:
    return Seen(case["sequence"], case["sha256"])


@each("devices", "Verdict")
def test_verdict(group: Vectors, case: Vectors) -> None:
    highest, latest = seen(case["highest"]), seen(case["latest"])
    found = backup_client.verdict(highest, latest.sequence, latest.sha256, case["latest"]["baseSha256"])
    assert (found, found in backup_client.ALARMS) == (case["verdict"], case["tell"])
    if latest.sha256 is None:  # there is no version
        assert highest == seen(case["highestAfter"])
        return
    assert backup_client.higher(highest, latest.sequence, latest.sha256) == seen(case["highestAfter"])


@each("devices", "Sequence")
def test_sequence(group: Vectors, case: Vectors) -> None:
    def following() -> int:
        highest = Seen(case["highest"], "ab" * 32)
        return backup_client.next_sequence(case["base"], highest, case.get("restored", 0))

    if case["result"] == "valid":
        assert following() == case["next"]
    else:
        with pytest.raises(OverflowError):
            following()


@each("devices", "SignIn")
def test_derivations_to_try(group: Vectors, case: Vectors) -> None:
    known = [backup_client.Derivation(name, 1, "s", "e") for name in case["derivations"]]
    tried = [derivation.name for derivation in backup_client.derivations_to_try(case["succeeded"], known)]
    assert tried[: len(case["tries"])] == case["tries"]
    if case["outcome"] is None:
        assert tried == case["tries"] and case["inForce"] not in tried


@pytest.mark.client("client.derivations")
def test_a_derivation_that_the_app_does_not_know() -> None:
    with pytest.raises(backup_client.AppOutdatedError):
        backup_client.derivations_to_try("v2")


# ---- Signing -----------------------------------------------------------------------------------------------

FOUR = ("authorization", "content-digest", "signature-input", "signature")
PROFILE = re.compile(r'app=(\("@method" "@path" "authorization" "content-digest"\)((?:;[a-z]+=[^;]*)*))')
PARAMETERS = {"created": "[0-9]{1,15}", "keyid": '"[A-Za-z0-9_-]{1,64}"', "alg": '"hmac-sha256"'}


def parameters_of(text: str) -> dict[str, str] | None:
    """Return the parameters of a signature, or None if they do not follow the profile."""
    pairs = [tuple(part.split("=", 1)) for part in text.split(";")[1:]]
    if sorted(name for name, _ in pairs) != sorted(PARAMETERS):
        return None
    return dict(pairs) if all(re.fullmatch(PARAMETERS[name], value) for name, value in pairs) else None


def header_lines(case: Vectors) -> list[tuple[str, str]]:
    return [(name.lower(), value) for name, _, value in (line.partition(": ") for line in case["headers"])]


def verdict(group: Vectors, case: Vectors) -> str | None:
    """Return the code of the problem that a request must get, or None. This applies the rules in their order."""
    values = {name: [value for other, value in header_lines(case) if other == name] for name in FOUR}
    if not all(values.values()):
        return "signature_missing"
    if any(len(lines) > 1 for lines in values.values()):
        return "signature_invalid"
    authorization, digest, signature_input, signature = (lines[0] for lines in values.values())
    profile = PROFILE.fullmatch(signature_input)
    parameters = profile and parameters_of(profile[2])
    if not profile or not parameters or not re.fullmatch(r"sha-256=:[A-Za-z0-9+/]{43}=:", digest):
        return "signature_invalid"
    params, created, keyid = profile[1], parameters["created"], parameters["keyid"].strip('"')
    if keyid not in group["secrets"]:
        return "signature_invalid"
    base = backup_client.signature_base(case["method"], case["path"], authorization, digest, params)
    mac = hmac.digest(group["secrets"][keyid].encode(), base.encode(), "sha256")
    if signature != f"app=:{base64.b64encode(mac).decode()}:":
        return "signature_invalid"
    if abs(group["serverTime"] - int(created)) > 300:
        return "signature_expired"
    if digest != backup_client.content_digest(case["body"].encode()):
        return "digest_mismatch"
    return None


SIGNING_GROUPS = vectors.load("signing")["testGroups"]
each_group = pytest.mark.parametrize("group", [pytest.param(group, id=group["comment"]) for group in SIGNING_GROUPS])


@each_group
def test_setting_says_the_secrets(group: Vectors) -> None:
    pairs = [entry.rpartition(":") for entry in group["appSecretKey"].split(",")]
    assert {keyid or "app": secret for keyid, _, secret in pairs} == group["secrets"]


@pytest.mark.client("client.signature")
@each("signing", "Request", "valid")
def test_request_signed(group: Vectors, case: Vectors) -> None:
    body = case["body"].encode()
    headers = backup_client.sign(
        case["method"],
        case["path"],
        body,
        backup_client.authorization(case["userId"], case["storageKey"]),
        secret=group["secrets"][case["keyid"]],
        keyid=case["keyid"],
        created=case["created"],
    )
    sent = dict(header_lines(case))
    params = backup_client.signature_params(case["keyid"], case["created"])
    if order := case.get("parameterOrder"):  # the client need not make it
        components, *parameters = params.split(";")
        params = ";".join([components, *sorted(parameters, key=lambda each: order.index(each.partition("=")[0]))])
        assert sent["signature-input"] == f"app={params}"
    else:
        assert {name.lower(): value for name, value in headers.items()} == {name: sent[name] for name in FOUR}
    base = backup_client.signature_base(
        case["method"], case["path"], sent["authorization"], sent["content-digest"], params
    )
    assert base == case["signatureBase"]
    assert hmac.digest(group["secrets"][case["keyid"]].encode(), base.encode(), "sha256").hex() == case["mac"]
    assert hashlib.sha256(body).hexdigest() == case["bodySha256"]
    assert verdict(group, case) is None


@each("signing", "Request", "invalid")
def test_request_refused(group: Vectors, case: Vectors) -> None:
    assert verdict(group, case) == case["code"]
    assert case["status"] == (400 if case["code"] == "digest_mismatch" else 401)
    if "signatureBase" in case:
        sent = dict(header_lines(case))
        profile = PROFILE.fullmatch(sent["signature-input"])
        params = profile[1] if profile else ""
        base = backup_client.signature_base(
            case["method"], case["path"], sent["authorization"], sent["content-digest"], params
        )
        assert base == case["signatureBase"]


@each_group
def test_server_comes_to_the_same_verdict(group: Vectors, start_server: Callable[..., Any]) -> None:
    server = start_server(
        APP_SECRET_KEY=group["appSecretKey"],
        FAILED_CREDENTIALS_PER_5_MINUTES=1000,  # an accepted signature may belong to a deleted user
        frozen=group["serverTime"],
    )
    address = urlsplit(server.base_url).netloc
    user = next(case for case in group["tests"] if case["result"] == "valid")
    assert server.client((user["userId"], user["storageKey"])).register_user().status_code == 201
    for case in sorted(group["tests"], key=lambda case: case["result"] == "valid"):  # a valid one deletes the user
        status, problem = exchange(address, case)
        if case["result"] == "invalid":
            assert (status, problem.get("code")) == (case["status"], case["code"]), case["tcId"]
        else:
            proof = ("signature_missing", "signature_invalid", "signature_expired", "digest_mismatch")
            assert problem.get("code") not in proof, case["tcId"]
        if problem.get("code") == "signature_expired":
            assert problem["serverTime"] == group["serverTime"]


def exchange(address: str, case: Vectors) -> tuple[int, dict[str, Any]]:
    """Send a request exactly as in the case. Return the status, and the JSON if there is any."""
    body = case["body"].encode()
    connection = HTTPConnection(address, timeout=30)
    connection.putrequest(case["method"], case["path"], skip_accept_encoding=True)
    for line in [*case["headers"], f"Content-Length: {len(body)}"]:
        connection.putheader(*line.split(": ", 1))
    connection.endheaders(body)
    response = connection.getresponse()
    content = response.read()
    connection.close()
    return response.status, json.loads(content or b"{}")


# The oracle: http-message-signatures has its own parser, base and MAC.


class VerifierWithoutClock(HTTPMessageVerifier):
    """The cases' clock stands still, but the library's clock runs. The server checks the expiry."""

    def validate_created_and_expires(self, sig_input: Any, max_age: Any = None) -> None:
        pass


def oracle_keys(group: Vectors) -> MappingKeyResolver:
    keys = {keyid: secret.encode() for keyid, secret in group["secrets"].items()}
    return MappingKeyResolver(public_keys=keys, private_keys=keys)


def message(case: Vectors) -> SimpleNamespace:
    headers = requests.structures.CaseInsensitiveDict(header_lines(case))
    return SimpleNamespace(method=case["method"], url=f"https://backup.example{case['path']}", headers=headers)


COMPONENTS = ("@method", "@path", "authorization", "content-digest")


def oracle_verify(group: Vectors, case: Vectors) -> None:
    verifier = VerifierWithoutClock(signature_algorithm=algorithms.HMAC_SHA256, key_resolver=oracle_keys(group))
    verifier.verify(message(case), require_components=COMPONENTS, body=case["body"].encode())


@each("signing", "Request", "valid")
def test_oracle_signs_the_same(group: Vectors, case: Vectors) -> None:
    oracle_verify(group, case)
    if "parameterOrder" in case:  # the library has an order of its own
        return
    signed = message(case)
    del signed.headers["Signature"], signed.headers["Signature-Input"], signed.headers["Content-Digest"]
    signer = HTTPMessageSigner(signature_algorithm=algorithms.HMAC_SHA256, key_resolver=oracle_keys(group))
    created = datetime.fromtimestamp(case["created"], UTC)
    signer.sign(
        signed,
        key_id=case["keyid"],
        created=created,
        label="app",
        covered_component_ids=COMPONENTS,
        body=case["body"].encode(),
    )
    sent = dict(header_lines(case))
    assert signed.headers["Content-Digest"] == sent["content-digest"]
    assert signed.headers["Signature-Input"] == sent["signature-input"]
    assert signed.headers["Signature"] == sent["signature"]


@each("signing", "Request", "invalid")
def test_oracle_refuses_what_is_of_the_profile(group: Vectors, case: Vectors) -> None:
    """A signature that breaks only a rule of the profile is valid by RFC 9421. `verdict` must find such a case."""
    if "signatureBase" not in case or case["code"] == "signature_expired":
        return
    with pytest.raises(InvalidSignature):
        oracle_verify(group, case)


@pytest.mark.parametrize("body", [None, b"", b'{"data":"AA=="}', "text é"])
def test_signature_auth_signs_what_is_sent(body: bytes | str | None) -> None:
    """Check the library on a prepared request, with the path as `requests` has encoded it."""
    auth = SignatureAuth("ab" * 32, "cd" * 32, "s" * 32, "k", clock=lambda: 1_767_225_600.9)
    url = "https://backup.example/api/backup/versions/a b/../é%2f?x=1"
    request = requests.Request("PUT", url, data=body, auth=auth).prepare()
    assert request.headers["Content-Digest"] == backup_client.content_digest(_bytes(request.body))
    assert ";created=1767225600;" in request.headers["Signature-Input"]  # whole seconds, not rounded up
    group = {"secrets": {"k": "s" * 32}, "serverTime": 1_767_225_600}
    path = request.path_url.partition("?")[0]
    assert path.isascii() and " " not in path
    headers = [f"{name}: {value}" for name, value in request.headers.items()]
    case = {"method": "PUT", "path": path, "headers": headers, "body": _bytes(request.body).decode()}
    assert verdict(group, case) is None
    oracle_verify(group, case)


def _bytes(body: bytes | str | None) -> bytes:
    return body.encode() if isinstance(body, str) else body or b""


def test_signature_auth_refuses_a_stream() -> None:
    auth = SignatureAuth("ab" * 32, "cd" * 32, "s" * 32)
    with pytest.raises(TypeError):
        requests.Request("POST", "https://backup.example/api/backup", data=iter([b"a"]), auth=auth).prepare()


@pytest.mark.parametrize("keyid", ["", 'a"b', "a b", "ä", "x" * 65, "app\n"])
def test_a_keyid_that_cannot_be_one(keyid: str) -> None:
    with pytest.raises(ValueError):
        backup_client.signature_params(keyid, 0)


# ---- Exchanges ---------------------------------------------------------------------------------------------

BY_A_CLIENT = [pair for pair in vectors.cases("exchanges", "Exchange") if "ServerOnly" not in pair[1]["flags"]]


class Wire(requests.adapters.BaseAdapter):
    """Keeps each request, and answers all of them with the answer of a case."""

    def __init__(self, answer: Vectors) -> None:
        super().__init__()
        self._answer = answer
        self.sent: list[requests.PreparedRequest] = []

    def send(self, request: requests.PreparedRequest, *arguments: Any, **options: Any) -> requests.Response:
        self.sent.append(request)
        response = requests.Response()
        response.status_code = self._answer["status"]
        response.headers.update(self._answer["headers"])
        response._content = json.dumps(self._answer["body"]).encode() if "body" in self._answer else b""
        return response

    def close(self) -> None:
        pass


def parts(case: Vectors) -> tuple[str, str, dict[str, str], bytes]:
    """Return method, path, headers and body of an exchange that a client sends."""
    pieces = [piece if isinstance(piece, str) else piece["text"] * piece["times"] for piece in case["request"]]
    head, _, body = "".join(pieces).partition("\r\n\r\n")
    request_line, *lines = head.split("\r\n")
    method, path, _ = request_line.split(" ")
    return method, path, dict(line.split(": ", 1) for line in lines), body.encode("latin-1")


@pytest.mark.parametrize("group, case", [pytest.param(*pair, id=str(pair[1]["tcId"])) for pair in BY_A_CLIENT])
def test_exchange(group: Vectors, case: Vectors) -> None:
    """The client sends the request of its operation, and understands the answer."""
    method, path, headers, body = parts(case)
    created, keyid, user_id, storage_key = 0, "app", "", ""
    if case["operationId"] != "getHealth":
        user_id, storage_key = base64.b64decode(headers["Authorization"].removeprefix("Basic ")).decode().split(":")
        found = re.search(';created=([0-9]+);keyid="(.+?)"', headers["Signature-Input"])
        created, keyid = int(found[1]), found[2]
    session, wire = requests.Session(), Wire(case["answer"])
    session.mount("https://", wire)
    secret = group["secrets"][keyid] if user_id else ""
    client = BackupClient(
        "https://backup.example", secret, (user_id, storage_key), keyid=keyid, clock=lambda: created, session=session
    )
    upload = json.loads(body or b"{}")
    blob, base = base64.b64decode(upload.get("data", "")), upload.get("baseSha256")
    etag, version = headers.get("If-None-Match"), path.rpartition("/")[2]
    call, understands = {
        "getHealth": (client.get_health, {"status": str}),
        "registerUser": (client.register_user, {"createdAt": str}),
        "storeBackup": (lambda: client.store_backup(blob, base), backup_client.receipt_for(blob)),
        "fetchBackup": (lambda: client.fetch_backup(etag), backup_client.RECEIPT),
        "listBackupVersions": (client.list_backup_versions, {"versions": list}),
        "fetchBackupVersion": (lambda: client.fetch_backup_version(int(version), etag), backup_client.RECEIPT),
        "changeStorageKey": (
            lambda: client.change_storage_key(upload["storageKey"], blob, base),
            backup_client.receipt_for(blob),
        ),
        "deleteUser": (client.delete_user, {}),
    }[case["operationId"]]
    response = call()

    (sent,) = wire.sent
    assert (sent.method, sent.path_url) == (method, path)
    assert sent.headers.get("If-None-Match") == etag
    made = sent.headers
    if (sent.body or b"") != body:  # the same JSON in another layout: a client signs whatever bytes it sends
        assert json.loads(sent.body) == upload
        credentials = backup_client.authorization(user_id, storage_key)
        made = backup_client.sign(method, path, body, credentials, secret=secret, keyid=keyid, created=created)
    proofs = ("Authorization", "Content-Digest", "Signature-Input", "Signature")
    assert {name: made.get(name) for name in proofs} == {name: headers.get(name) for name in proofs}

    if case["result"] == "invalid":
        with pytest.raises(backup_client.ProblemError) as caught:
            backup_client.checked(response)
        assert caught.value.code == case["answer"]["body"]["code"]
    elif response.status_code == 304:
        assert backup_client.checked(response) is response
    else:
        found = backup_client.members(response, understands, (200, 201, 204))
        if "data" in found:
            asked = int(version) if case["operationId"] == "fetchBackupVersion" else None
            assert hashlib.sha256(backup_client.blob_of(found, version=asked)).hexdigest() == found["sha256"]


def test_exchanges_of_clients_have_each_operation_and_each_problem_of_a_client() -> None:
    """What is left out for clients is left out for a reason: these are not."""
    cases = [case for _, case in BY_A_CLIENT]
    succeeded = {case["operationId"] for case in cases if case["result"] == "valid"}
    assert succeeded == {
        "getHealth", "registerUser", "storeBackup", "fetchBackup", "listBackupVersions", "fetchBackupVersion",
        "changeStorageKey", "deleteUser",
    }  # fmt: skip
    codes = {case["answer"]["body"]["code"] for case in cases if case["result"] == "invalid"}
    assert codes == {
        "signature_expired", "credentials_invalid", "app_outdated", "no_backup", "no_such_version", "username_taken",
        "recently_deleted", "version_conflict", "payload_too_large", "validation_failed", "rate_limited",
    }  # fmt: skip


# ---- How the client reads an answer ------------------------------------------------------------------------


def answer(status: int, content_type: str, body: bytes) -> requests.Response:
    response = requests.Response()
    response.status_code = status
    response.headers["Content-Type"] = content_type
    response._content = body
    return response


def test_checked() -> None:
    assert backup_client.checked(answer(201, "application/json", b"{}")).status_code == 201
    assert backup_client.checked(answer(304, "", b"")).status_code == 304
    problem = {"code": "version_conflict", "detail": "Fetch first.", "currentVersion": 3}
    with pytest.raises(backup_client.ProblemError, match="^409 version_conflict: Another device has") as caught:
        backup_client.checked(answer(409, "application/problem+json; charset=utf-8", json.dumps(problem).encode()))
    assert (caught.value.code, caught.value.status) == ("version_conflict", 409)
    assert caught.value.problem["currentVersion"] == 3


@pytest.mark.parametrize(
    "status, content_type, body",
    [
        (502, "text/html", b"<h1>Bad Gateway</h1>"),
        (500, "application/problem+json", b"not JSON"),
        (500, "application/problem+json", b"[]"),
        (302, "text/plain", b""),
        (404, "application/json", b'{"code": "no_backup"}'),
        (401, "application/problem+json", b'{"title": "no code"}'),
    ],
)
@pytest.mark.client("client.lost-answer")
def test_checked_without_a_problem(status: int, content_type: str, body: bytes) -> None:
    with pytest.raises(backup_client.LostAnswerError) as caught:
        backup_client.checked(answer(status, content_type, body))
    assert (caught.value.code, caught.value.status, caught.value.lost) == (None, status, True)


RECEIPT = {"version": 1, "updatedAt": "2026-11-24T09:00:00Z", "size": 69, "sha256": "ab" * 32, "keyVersion": 1}


@pytest.mark.client("client.lost-answer")
@pytest.mark.parametrize(
    "content_type, body",
    [
        ("text/html", b"<p>Welcome to this network</p>"),
        ("application/json", b"{"),
        ("application/json", b"[]"),
        ("application/json", b"{}"),
        ("application/json", json.dumps(RECEIPT | {"version": "1"}).encode()),
        ("application/json", json.dumps(RECEIPT | {"version": True}).encode()),
        ("", b""),
    ],
)
def test_a_success_that_is_none(content_type: str, body: bytes) -> None:
    with pytest.raises(backup_client.LostAnswerError):
        backup_client.members(answer(200, content_type, body), backup_client.RECEIPT)


@pytest.mark.client("client.lost-answer")
@pytest.mark.parametrize("status", [201, 202, 204, 206, 304])
def test_another_success_than_that_of_the_operation(status: int) -> None:
    content = json.dumps(RECEIPT).encode()
    with pytest.raises(backup_client.LostAnswerError):
        backup_client.members(answer(status, "application/json", content), backup_client.RECEIPT, (200,))


def test_members_of_a_success() -> None:
    content = json.dumps(RECEIPT | {"later": "a member that a later version adds"}).encode()
    found = backup_client.members(answer(201, "application/json", content), backup_client.RECEIPT)
    assert found["sha256"] == "ab" * 32


@pytest.mark.client("client.version")
def test_an_answer_about_another_version() -> None:
    blob = b"a blob"
    receipt = {"version": 3, "size": len(blob), "sha256": hashlib.sha256(blob).hexdigest()}
    content = json.dumps(receipt | {"data": base64.b64encode(blob).decode()}).encode()
    response = answer(200, "application/json", content)
    assert backup_client.backup_bytes(response, version=3, sha256=receipt["sha256"]) == blob
    for other in ({"version": 2}, {"sha256": "ab" * 32}):
        with pytest.raises(ValueError):
            backup_client.backup_bytes(response, **other)


@pytest.mark.client("client.lost-answer")
@pytest.mark.parametrize(
    "status, code, lost",
    [
        (403, "app_outdated", False),
        (408, "request_timeout", False),
        (500, "backup_damaged", False),
        (500, "account_damaged", False),
        (500, "internal_error", True),
        (503, "unavailable", True),
        (503, "of_a_later_version", True),
        (507, "storage_full", False),
    ],
)
def test_problems_that_say_what_to_do(status: int, code: str, lost: bool) -> None:
    content = json.dumps({"code": code, "status": status}).encode()
    with pytest.raises(backup_client.ProblemError) as caught:
        backup_client.checked(answer(status, "application/problem+json", content))
    assert (caught.value.code, caught.value.status, caught.value.lost) == (code, status, lost)


@pytest.mark.client("client.clock")
def test_mend_clock() -> None:
    backup = BackupClient("http://127.0.0.1:1", "s" * 32, ("ab" * 32, "cd" * 32), clock=lambda: 1000.5)
    problem = {"code": "signature_expired", "serverTime": 5000}
    expired = answer(401, "application/problem+json", json.dumps(problem).encode())
    assert backup.mend_clock(expired) and backup.now() == 5000.5
    other = answer(401, "application/problem+json", b'{"code": "signature_invalid", "serverTime": 9}')
    assert not backup.mend_clock(other) and backup.now() == 5000.5


# ---- The rules for clients ---------------------------------------------------------------------------------


def test_each_rule_for_clients_is_named_by_a_vector_or_a_test() -> None:
    rules = set(openapi.SPEC["info"]["x-client-requirements"])
    groups = [group for kind in KINDS for group in vectors.load(kind)["testGroups"]]
    named = {rule for group in groups for rule in group.get("requirements", ())}
    for path in Path(__file__).parent.glob("test_*.py"):
        for mark in re.findall(r"@pytest\.mark\.client\(([^)]*)\)", path.read_text()):
            named |= set(re.findall(r'"(client\.[a-z-]+)"', mark))
    assert named == rules


# ---- The files ---------------------------------------------------------------------------------------------


@pytest.fixture
def fixtures_copy(tmp_path: Path) -> Path:
    return Path(shutil.copytree(FIXTURES, tmp_path / "fixtures"))


def generate_check(directory: Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(directory / "generate.py"), "--check"]
    return subprocess.run(command, capture_output=True, text=True)


def test_files_are_what_the_generator_writes_and_a_changed_file_is_noticed(fixtures_copy: Path) -> None:
    """One run shows both, because it takes long. encryption.json has the SHA-256 of the log as it should be."""
    log = fixtures_copy / "training_log.json"
    log.write_bytes(log.read_bytes().replace(b'"reps":5', b'"reps":6', 1))
    done = generate_check(fixtures_copy)
    assert done.returncode == 1
    outcomes = {line.split()[0]: line.split()[-1] for line in done.stdout.splitlines()}
    assert outcomes == {f"{kind}.json": "unchanged" for kind in KINDS} | {"training_log.json": "differs"}


def test_training_log() -> None:
    content = (FIXTURES / "training_log.json").read_bytes()
    assert 290_000 < len(content) < 320_000
    assert len(json.loads(content)["sessions"]) > 150


def test_ids_are_unique_in_all_files() -> None:
    ids = [test["tcId"] for kind in KINDS for group in vectors.load(kind)["testGroups"] for test in group["tests"]]
    assert len(set(ids)) == len(ids) >= 150


def spoil_test(key: str, value: Any) -> Callable[[Vectors], None]:
    return lambda document: document["testGroups"][0]["tests"][0].update({key: value})


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    "spoil",
    [
        pytest.param(lambda document: document.update(extra=1), id="unknown key in the file"),
        pytest.param(lambda document: document["testGroups"][0].update(extra=1), id="unknown key in a group"),
        pytest.param(spoil_test("extra", 1), id="unknown key in a test"),
        pytest.param(spoil_test("result", "acceptable"), id="unknown result"),
        pytest.param(spoil_test("flags", ["NoSuchFlag"]), id="flag without a note"),
        pytest.param(spoil_test("tcId", None), id="no id"),
        pytest.param(lambda document: document["notes"].update(Unused="nothing"), id="note without a flag"),
        pytest.param(lambda document: document.update(numberOfTests=1), id="wrong count"),
        pytest.param(lambda document: document["testGroups"][0].update(type="Other"), id="unknown group"),
        pytest.param(
            lambda document: document["testGroups"][0]["tests"][1].update(
                tcId=document["testGroups"][0]["tests"][0]["tcId"]
            ),
            id="id twice",
        ),
    ],
)
def test_loader_refuses(kind: str, spoil: Callable[[Vectors], None]) -> None:
    content = (FIXTURES / f"{kind}.json").read_bytes()
    document = json.loads(content)
    spoil(document)
    with pytest.raises(VectorError):
        vectors.parse(json.dumps(document).encode())


def test_loader_refuses_a_key_twice() -> None:
    content = (FIXTURES / "signing.json").read_bytes()
    with pytest.raises(VectorError):
        vectors.parse(content.replace(b'"kind":', b'"kind": "signing", "kind":', 1))
