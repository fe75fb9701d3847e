"""The proof that a request comes from the app: exactly one profile of RFC 9421 (openapi.yaml, "Two proofs").

Unless a case is about the MAC, each signature has the right MAC for what it claims to sign. So a verifier that accepts
any valid signature would accept them all.
"""

import base64
import hashlib
import hmac
import itertools
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from types import SimpleNamespace
from urllib.parse import urlsplit

import pytest
import requests
from http_message_signatures import HTTPMessageSigner, HTTPMessageVerifier, algorithms
from http_message_signatures.resolvers import MappingKeyResolver
from urllib3 import HTTPHeaderDict

from clients.python import backup_client as reference
from contract_tests.target import raw
from contract_tests.target.calls import outcome, sha256
from contract_tests.target.openapi import OPERATIONS

FROZEN = 1_795_510_800  # 2026-11-24T09:00:00Z
LIST = "/api/backup/versions"
HEADERS = ("Authorization", "Content-Digest", "Signature-Input", "Signature")
COMPONENTS = '"@method" "@path" "authorization" "content-digest"'
CREATED, KEYID, ALG = ";created={created}", ';keyid="{keyid}"', ';alg="hmac-sha256"'
PARAMETERS = CREATED + KEYID + ALG
ORDERS = ["".join(parameters) for parameters in itertools.permutations((CREATED, KEYID, ALG))]

DATA = base64.b64encode(b"an encrypted log").decode()
SHA256 = sha256(b"an encrypted log")
UPLOAD = json.dumps({"data": DATA}).encode()
NEW_KEY = "5e" * 32
CHANGE = json.dumps({"data": DATA, "storageKey": NEW_KEY, "baseSha256": SHA256}).encode()
# Each signed operation for a user who has a backup: method, path, body, and its status if the proofs are right.
REQUESTS = {
    "registerUser": ("POST", "/api/register", b"", 200),
    "storeBackup": ("POST", "/api/backup", UPLOAD, 200),
    "fetchBackup": ("GET", "/api/backup", b"", 200),
    "listBackupVersions": ("GET", LIST, b"", 200),
    "fetchBackupVersion": ("GET", "/api/backup/versions/1", b"", 200),
    "changeStorageKey": ("PUT", "/api/user/storage-key", CHANGE, 200),
    "deleteUser": ("DELETE", "/api/user", b"", 204),
}


@dataclass
class User:
    """A user whose requests can be signed in ways that the profile forbids."""

    client: reference.BackupClient

    def proof(
        self,
        method: str = "GET",
        path: str = LIST,
        body: bytes = b"",
        *,
        components: str = COMPONENTS,
        parameters: str = PARAMETERS,
        label: str = "app",
        created: int | None = None,
        keyid: str | None = None,
        **other: str,
    ) -> dict[str, str]:
        """Return the four headers, with a right MAC. `other` is another secret, authorization or digest."""
        values = {
            "@method": method,
            "@path": path,
            "@query": "?",
            "@request-target": path,
            "@target-uri": self.client.base_url + path,
            "@authority": urlsplit(self.client.base_url).netloc,
            "host": urlsplit(self.client.base_url).netloc,
            "authorization": other.get("authorization") or reference.authorization(*self.client.credentials),
            "content-digest": other.get("digest") or reference.content_digest(body),
        }
        created = int(self.client.now()) if created is None else created
        keyid = self.client.keyid if keyid is None else keyid
        params = f"({components})" + parameters.format(created=created, keyid=keyid)
        lines = [f"{component}: {values[component.split('"')[1]]}" for component in components.split()]
        base = "\n".join([*lines, f'"@signature-params": {params}'])
        mac = hmac.digest(other.get("secret", self.client.secret).encode(), base.encode(), "sha256")
        return {
            "Authorization": values["authorization"],
            "Content-Digest": values["content-digest"],
            "Signature-Input": f"{label}={params}",
            "Signature": f"{label}=:{base64.b64encode(mac).decode()}:",
        }

    def send(
        self,
        headers: Mapping[str, str],
        method: str = "GET",
        path: str = LIST,
        body: bytes = b"",
        *,
        again: Mapping[str, str] | None = None,
    ) -> requests.Response:
        """Send exactly these headers, those of `again` as additional lines, and the media type if there is a body."""
        request = requests.Request(method, self.client.base_url).prepare()
        request.url = self.client.base_url + path  # only now, because prepare() would normalise it
        request.headers = HTTPHeaderDict(headers)
        request.headers.extend(again or {})
        if body:
            request.body = body
            request.headers.update({"Content-Type": "application/json", "Content-Length": str(len(body))})
        return self.client.session.send(request, timeout=30, allow_redirects=False)


def registered(server) -> User:
    client = server.client()
    assert client.register_user().status_code == 201
    return User(client)


@pytest.fixture
def user(request, target) -> User:
    if request.node.get_closest_marker("public"):
        return User(target.client())  # a request whose signature is refused needs no account
    user = registered(target)
    target.client((user.client.credentials[0], NEW_KEY))  # so that the user is deleted even after a key change
    return user


@pytest.mark.requirement("signature.accepted")
@pytest.mark.public
def test_each_signed_operation_is_tried():
    assert set(REQUESTS) == {operation.id for operation in OPERATIONS.values() if operation.signed}


def assert_refused(response: requests.Response, code: str) -> None:
    assert outcome(response) == f"401 {code}"
    assert response.headers["WWW-Authenticate"] == 'Basic realm="backup"'


# ---- The profile -------------------------------------------------------------------------------------------


@pytest.mark.requirement("signature.accepted", "listBackupVersions.200")
def test_the_profile_is_accepted(user):
    assert user.send(user.proof()).status_code == 200


@pytest.mark.public
@pytest.mark.requirement("signature.order")
@pytest.mark.parametrize("parameters", ORDERS)
def test_any_order_of_the_parameters_is_accepted(user, target, parameters):
    answer = user.send(user.proof(parameters=parameters))
    assert outcome(answer) == "401 credentials_invalid"  # the signature was accepted; there is no account


@pytest.mark.stage(3)
@pytest.mark.requirement("signature.order", "signature.whole")
@pytest.mark.parametrize("operation", REQUESTS)
def test_any_order_is_accepted_on_each_operation_and_no_other_order_than_the_signed_one(target, operation):
    method, path, body, status = REQUESTS[operation]
    for parameters in (ORDERS[-1], ORDERS[1]):
        user = registered(target)
        assert user.client.store_backup(b"an encrypted log").status_code == 201
        headers = user.proof(method, path, body, parameters=parameters)
        other = user.proof(method, path, body)["Signature-Input"]
        assert_refused(user.send(headers | {"Signature-Input": other}, method, path, body), "signature_invalid")
        assert user.send(headers, method, path, body).status_code == status
        target.client((user.client.credentials[0], NEW_KEY))


OTHER_PROFILES = {
    "no component": {"components": ""},
    "without @method": {"components": '"@path" "authorization" "content-digest"'},
    "without @path": {"components": '"@method" "authorization" "content-digest"'},
    "without authorization": {"components": '"@method" "@path" "content-digest"'},
    "without content-digest": {"components": '"@method" "@path" "authorization"'},
    "another order": {"components": '"@path" "@method" "authorization" "content-digest"'},
    "a component twice": {"components": COMPONENTS + ' "@path"'},
    "an extra component": {"components": COMPONENTS + ' "host"'},
    "an extra derived component": {"components": COMPONENTS + ' "@query"'},
    "@target-uri for @path": {"components": COMPONENTS.replace("@path", "@target-uri")},
    "@request-target for @path": {"components": COMPONENTS.replace("@path", "@request-target")},
    "a component with a parameter": {"components": COMPONENTS + ";sf"},
    "no parameter": {"parameters": ""},
    "without created": {"parameters": ';keyid="{keyid}";alg="hmac-sha256"'},
    "without keyid": {"parameters": ';created={created};alg="hmac-sha256"'},
    "without alg": {"parameters": ';created={created};keyid="{keyid}"'},
    "created twice": {"parameters": ";created=1" + PARAMETERS},
    "created twice, at the end": {"parameters": PARAMETERS + CREATED},
    "keyid twice": {"parameters": CREATED + KEYID + ALG + KEYID},
    "alg twice": {"parameters": ALG + PARAMETERS},
    "created for keyid": {"parameters": CREATED + ALG + CREATED},
    "a fourth parameter in front": {"parameters": ';nonce="1"' + PARAMETERS},
    "a fourth parameter in the middle": {"parameters": ALG + ';nonce="1"' + CREATED + KEYID},
    "a parameter without a value": {"parameters": PARAMETERS + ";app"},
    "a parameter in capitals": {"parameters": ';Created={created};keyid="{keyid}";alg="hmac-sha256"'},
    "a space between parameters": {"parameters": PARAMETERS.replace(";keyid", "; keyid")},
    "expires": {"parameters": PARAMETERS + ";expires=9999999999"},
    "a space in front of the first component": {"components": " " + COMPONENTS},
    "a space behind the last component": {"components": COMPONENTS + " "},
    "a component of the request": {"components": COMPONENTS.replace('"authorization"', '"authorization";req')},
    "a component in bytes": {"components": COMPONENTS.replace('"content-digest"', '"content-digest";bs')},
    "a component of a key": {"components": COMPONENTS.replace('"content-digest"', '"content-digest";key="sha-256"')},
    "created with an exponent": {"parameters": PARAMETERS.replace("{created}", "{created}e0")},
    "created with an underscore": {"parameters": PARAMETERS.replace("{created}", "1_{created}")},
    "created as true": {"parameters": PARAMETERS.replace("={created}", "=?1")},
    "created without a value": {"parameters": PARAMETERS.replace("={created}", "")},
    "keyid in base64": {"parameters": PARAMETERS.replace('"{keyid}"', ":{keyid}=:")},
    "keyid with an escape": {"parameters": PARAMETERS.replace('"{keyid}"', '"{keyid}\\\\"')},
    "keyid with a space": {"keyid": "app "},
    "keyid with a space in front": {"keyid": " app"},
    "a semicolon at the end": {"parameters": PARAMETERS + ";"},
    "two semicolons": {"parameters": PARAMETERS.replace(";keyid", ";;keyid")},
    "a space around the equals sign": {"parameters": PARAMETERS.replace(";alg=", ";alg =")},
    "the label in capitals": {"label": "APP"},
    "a shorter label": {"label": "ap"},
    "the label in quotes": {"label": '"app"'},
    "a space behind the label": {"label": "app "},
    "a nonce": {"parameters": PARAMETERS + ';nonce="1"'},
    "a tag": {"parameters": PARAMETERS + ';tag="app"'},
    "created as a string": {"parameters": PARAMETERS.replace("{created}", '"{created}"')},
    "created as a decimal": {"parameters": PARAMETERS.replace("{created}", "{created}.0")},
    "created with a leading zero": {"parameters": PARAMETERS.replace("{created}", "0{created}")},
    "created with a sign": {"parameters": PARAMETERS.replace("{created}", "+{created}")},
    "created negative": {"parameters": PARAMETERS.replace("{created}", "-{created}")},
    "created as a date": {"parameters": PARAMETERS.replace("{created}", "@{created}")},
    "created beyond any clock": {"parameters": PARAMETERS.replace("{created}", "{created}" * 500)},
    "created empty": {"parameters": PARAMETERS.replace("{created}", "")},
    "created in Arabic digits": {"parameters": PARAMETERS.replace("{created}", "١٧٩٥")},
    "keyid as a token": {"parameters": PARAMETERS.replace('"{keyid}"', "{keyid}")},
    "an unknown keyid": {"keyid": "app2"},
    "a keyid in capitals": {"keyid": "APP"},
    "a shorter keyid": {"keyid": "ap"},
    "an empty keyid": {"keyid": ""},
    "alg as a token": {"parameters": PARAMETERS.replace('"hmac-sha256"', "hmac-sha256")},
    "alg in capitals": {"parameters": PARAMETERS.replace("hmac-sha256", "HMAC-SHA256")},
    "another alg": {"parameters": PARAMETERS.replace("hmac-sha256", "hmac-sha512")},
    "alg none": {"parameters": PARAMETERS.replace("hmac-sha256", "none")},
    "another label": {"label": "sig1"},
    "a longer label": {"label": "app2"},
    "the wrong secret": {"secret": "not-the-secret-of-this-server-but-as-long"},
    "no secret": {"secret": ""},
}


def proves(name: str) -> str:
    """Return the requirement that a case of OTHER_PROFILES is about."""
    if "secret" in name:
        return "signature.secret"
    if "keyid" in name and "as a token" not in name and "without" not in name:
        return "signature.keyid"
    return "signature.algorithm" if "alg" in name and "without" not in name else "signature.profile"


@pytest.mark.public
@pytest.mark.parametrize(
    "other",
    [
        pytest.param(other, marks=pytest.mark.requirement(proves(name)), id=name)
        for name, other in OTHER_PROFILES.items()
    ],
)
def test_no_other_profile_is(user, other):
    headers = user.proof(**other)
    if not headers["Signature-Input"].isascii():  # how HTTP/1.1 carries UTF-8
        headers["Signature-Input"] = headers["Signature-Input"].encode().decode("latin-1")
    assert_refused(user.send(headers), "signature_invalid")


@pytest.mark.public
@pytest.mark.requirement("signature.profile")
@pytest.mark.parametrize("order", ORDERS)
def test_whatever_the_order_is_each_parameter_is_there_once(user, order):
    """Leave out each parameter, send each twice, and add another one at each place."""
    parts = [f";{part}" for part in order.split(";")[1:]]
    others = [[*parts[:at], *parts[at + 1 :]] for at in range(3)]
    others += [[*parts, part] for part in parts]
    others += [[*parts[:at], ';nonce="1"', *parts[at:]] for at in range(4)]
    for other in others:
        assert_refused(user.send(user.proof(parameters="".join(other))), "signature_invalid")


ALGORITHMS = {  # the algorithm that is really used; alg always says hmac-sha256
    "HMAC-SHA512": lambda key, base: hmac.digest(key, base, "sha512"),
    "half of HMAC-SHA512": lambda key, base: hmac.digest(key, base, "sha512")[:32],
    "HMAC-SHA3-256": lambda key, base: hmac.digest(key, base, "sha3_256"),
    "SHA-256 of secret and base": lambda key, base: hashlib.sha256(key + base).digest(),
    "SHA-256 of base": lambda key, base: hashlib.sha256(base).digest(),
    "HMAC-SHA256 of the base's hash": lambda key, base: hmac.digest(key, hashlib.sha256(base).digest(), "sha256"),
    "HMAC-SHA256 under the hashed secret": lambda key, base: hmac.digest(hashlib.sha256(key).digest(), base, "sha256"),
    "none": lambda key, base: bytes(32),
}


@pytest.mark.public
@pytest.mark.requirement("signature.algorithm")
@pytest.mark.parametrize("algorithm", ALGORITHMS.values(), ids=ALGORITHMS)
def test_no_other_algorithm_in_fact(user, algorithm):
    headers = user.proof()
    params = headers["Signature-Input"].removeprefix("app=")
    base = reference.signature_base("GET", LIST, headers["Authorization"], headers["Content-Digest"], params)
    mac = algorithm(user.client.secret.encode(), base.encode())
    headers["Signature"] = f"app=:{base64.b64encode(mac).decode()}:"
    assert_refused(user.send(headers), "signature_invalid")


@pytest.mark.public
@pytest.mark.requirement("signature.profile", "signature.twice")
def test_no_second_signature_to_choose_from(user):
    right, wrong = user.proof(), user.proof(secret="wrong", label="sig2")
    for first, second in ((right, wrong), (wrong, right), (right, right), (right, user.proof(label="sig2"))):
        joined = {name: f"{first[name]}, {second[name]}" for name in ("Signature-Input", "Signature")}
        assert_refused(user.send(right | joined), "signature_invalid")
        lines = {name: second[name] for name in ("Signature-Input", "Signature")}
        assert_refused(user.send(first, again=lines), "signature_invalid")


def replaced(old: str, new: str):
    return lambda value: value.replace(old, new)


MALFORMED = {
    "hex for base64": ("Signature", lambda value: f"app=:{base64.b64decode(value[5:-1]).hex()}:"),
    "hex in a string": ("Signature", lambda value: f'app="{base64.b64decode(value[5:-1]).hex()}"'),
    "base64 in a string": ("Signature", lambda value: f'app="{value[5:-1]}"'),
    "base64 without padding": ("Signature", replaced("=:", ":")),
    "half of the MAC": (
        "Signature",
        lambda value: f"app=:{base64.b64encode(base64.b64decode(value[5:-1])[:16]).decode()}:",
    ),
    "more than the MAC": (
        "Signature",
        lambda value: f"app=:{base64.b64encode(base64.b64decode(value[5:-1]) + b'.').decode()}:",
    ),
    "no MAC": ("Signature", lambda value: "app=::"),
    "spaces round the MAC": ("Signature", lambda value: value.replace(":", " : ")),
    "a tab in the MAC": ("Signature", lambda value: value[:20] + "\t" + value[20:]),
    "the MAC percent-encoded": ("Signature", replaced("=:", "%3D:")),
    "the label in capitals": ("Signature", replaced("app=", "APP=")),
    "the MAC in a list": ("Signature", lambda value: f"app=({value[4:]})"),
    "the MAC twice": ("Signature", lambda value: value + value[4:]),
    "a signature without colons": ("Signature", replaced(":", "")),
    "a signature without a label": ("Signature", replaced("app=", "")),
    "a signature with a parameter": ("Signature", lambda value: value + ";v=1"),
    "a signature and rubbish": ("Signature", lambda value: value + "x"),
    "a comma behind the signature": ("Signature", lambda value: value + ","),
    "an open list of components": ("Signature-Input", replaced(")", "")),
    "no list of components": ("Signature-Input", replaced("(" + COMPONENTS + ")", COMPONENTS)),
    "a component without quotes": ("Signature-Input", replaced('"@path"', "@path")),
    "a component in capitals": ("Signature-Input", replaced("authorization", "Authorization")),
    "input rubbish": ("Signature-Input", lambda value: "{}"),
    "a digest in hex": ("Content-Digest", lambda value: f"sha-256=:{hashlib.sha256().hexdigest()}:"),
    "a digest without colons": ("Content-Digest", replaced(":", "")),
    "a digest without padding": ("Content-Digest", replaced("=:", ":")),
    "a short digest": ("Content-Digest", lambda value: "sha-256=:AAAA:"),
    "no digest in it": ("Content-Digest", lambda value: "sha-256=::"),
    "a digest with a parameter": ("Content-Digest", lambda value: value + ";v=1"),
    "a digest of another name": ("Content-Digest", replaced("sha-256", "sha-1")),
    "the name in capitals": ("Content-Digest", replaced("sha-256", "SHA-256")),
    "rubbish for a digest": ("Content-Digest", lambda value: "{}"),
    "spaces round the digest": ("Content-Digest", replaced("=:", "= :")),
    "the digest without its name": ("Content-Digest", lambda value: value[8:]),
    "the digest twice": ("Content-Digest", lambda value: value + value[8:]),
    "a digest in the form of RFC 3230": ("Content-Digest", lambda value: f"SHA-256={value[9:-1]}"),
    "a digest in a string": ("Content-Digest", lambda value: f'sha-256="{value[9:-1]}"'),
    "a comma behind the digest": ("Content-Digest", lambda value: value + ","),
    "a digest of 31 bytes": ("Content-Digest", lambda value: f"sha-256=:{base64.b64encode(bytes(31)).decode()}:"),
    "a digest of 33 bytes": ("Content-Digest", lambda value: f"sha-256=:{base64.b64encode(bytes(33)).decode()}:"),
}


@pytest.mark.public
@pytest.mark.requirement("signature.encoding")
@pytest.mark.parametrize(("name", "change"), MALFORMED.values(), ids=MALFORMED)
def test_a_malformed_header(user, name, change):
    headers = user.proof()
    assert headers[name] != change(headers[name])
    if name == "Content-Digest":
        headers = user.proof(digest=change(headers[name]))  # malformed, and signed in this form
    else:
        headers[name] = change(headers[name])
    assert_refused(user.send(headers), "signature_invalid")


def with_header(name: str, change):
    """Return a function from (right headers, user) to the headers with one header changed."""
    return lambda headers, user: headers | {name: change(headers[name])}


FAULTS = {  # how to miss a rule, and a word that names it
    "two signatures on a line": (with_header("Signature", lambda value: f"{value}, {value}"), "label"),
    "the label": (lambda headers, user: user.proof(label="sig1"), "label"),
    "a second signature": (with_header("Signature", lambda value: f"{value}, {value.replace('app', 'sig2')}"), "label"),
    "the label of Signature alone": (with_header("Signature", replaced("app=", "sig1=")), "label"),
    "no component": (lambda headers, user: user.proof(components=""), "component"),
    "other components": (lambda headers, user: user.proof(components=COMPONENTS + ' "host"'), "component"),
    "a missing parameter": (lambda headers, user: user.proof(parameters=CREATED + KEYID), "parameter"),
    "an unknown parameter": (lambda headers, user: user.proof(parameters=PARAMETERS + ";expires=9"), "parameter"),
    "a parameter twice": (lambda headers, user: user.proof(parameters=PARAMETERS + ALG), "parameter"),
    "created as a string": (with_header("Signature-Input", replaced("created=", 'created="1"')), "spell"),
    "another alg": (with_header("Signature-Input", replaced("sha256", "sha512")), "spell"),
    "another spelling of the list": (
        lambda headers, user: user.proof(components=COMPONENTS.replace(" ", "  ")),
        "spell",
    ),
    "no list": (with_header("Signature-Input", replaced("(", "")), "spell"),
    "half a MAC": (with_header("Signature", lambda value: value[:20] + ":"), "spell"),
    "a MAC in a string": (with_header("Signature", replaced(":", '"')), "spell"),
    "another digest": (with_header("Content-Digest", replaced("sha-256", "sha-512")), "spell"),
    "two digests on a line": (with_header("Content-Digest", lambda value: f"{value}, sha-512=:AAAA:"), "spell"),
    "a space before a parameter": (with_header("Signature-Input", replaced(";created", "; created")), "spell"),
    "an unknown keyid": (lambda headers, user: user.proof(keyid="app-of-nobody"), "keyid"),
    "the MAC": (lambda headers, user: user.proof(secret="wrong"), "mac"),
}


@pytest.mark.public
@pytest.mark.requirement("signature.detail")
@pytest.mark.parametrize(("spoil", "word"), FAULTS.values(), ids=FAULTS)
def test_the_detail_names_the_rule_that_was_missed(user, spoil, word):
    headers = user.proof()
    answer = user.send(spoil(headers, user))
    assert_refused(answer, "signature_invalid")
    assert word in answer.json()["detail"].lower()
    assert headers["Authorization"][-20:] not in answer.text


@pytest.mark.public
@pytest.mark.requirement("signature.detail")
def test_each_rule_has_a_detail_of_its_own(user):
    details = {}
    for spoil, word in FAULTS.values():
        details.setdefault(word, set()).add(user.send(spoil(user.proof(), user)).json()["detail"])
    twice = user.send(user.proof(), again={"Signature": user.proof()["Signature"]})
    details["once"] = {twice.json()["detail"]}
    assert "once" in twice.json()["detail"].lower()
    assert len(set().union(*details.values())) == sum(map(len, details.values())), details


@pytest.mark.public
@pytest.mark.requirement("signature.encoding", "signature.profile")
def test_another_digest_than_sha_256(user):
    sha512 = f"sha-512=:{base64.b64encode(hashlib.sha512().digest()).decode()}:"
    sha256 = reference.content_digest(b"")
    for digest in (sha512, f"{sha256}, {sha512}", f"{sha512}, {sha256}", f"{sha256}, {sha256}"):
        assert_refused(user.send(user.proof(digest=digest)), "signature_invalid")


@pytest.mark.public
@pytest.mark.requirement("signature.missing", "{operation}.401", "credentials.challenge", "header.WWW-Authenticate")
@pytest.mark.parametrize("operation", REQUESTS)
@pytest.mark.parametrize("name", HEADERS)
def test_each_header_is_needed(user, operation, name):
    method, path, body, _ = REQUESTS[operation]
    headers = user.proof(method, path, body)
    without = {other: value for other, value in headers.items() if other != name}
    assert_refused(user.send(without, method, path, body), "signature_missing")


@pytest.mark.public
@pytest.mark.edge_may_answer
@pytest.mark.requirement("signature.twice", "{operation}.401", "credentials.challenge", "header.WWW-Authenticate")
@pytest.mark.parametrize("operation", REQUESTS)
@pytest.mark.parametrize("name", HEADERS)
def test_each_header_is_there_only_once(user, operation, name):
    method, path, body, _ = REQUESTS[operation]
    headers = user.proof(method, path, body)
    for value in (headers[name], ""):
        twice = user.send(headers, method, path, body, again={name: value})
        assert_refused(twice, "signature_invalid")
        assert re.search("once|twice", twice.json()["detail"])


@pytest.mark.edge_may_answer
@pytest.mark.requirement("signature.twice")
@pytest.mark.parametrize("name", ["Authorization", "Content-Digest"])
def test_a_header_sent_twice_and_signed_as_the_two(user, name):
    """RFC 9421 section 2.1 joins field lines by a comma. Such a signature is right, but does not follow the profile."""
    once = user.proof()[name]
    headers = user.proof(**{"authorization" if name == "Authorization" else "digest": f"{once}, {once}"})
    assert_refused(user.send(headers | {name: once}, again={name: once}), "signature_invalid")
    if name == "Content-Digest":  # two lines of Authorization may also count as malformed credentials
        assert_refused(user.send(headers), "signature_invalid")


@pytest.mark.requirement("signature.missing")
def test_no_header_at_all(user):
    assert_refused(user.send({}), "signature_missing")


# ---- The MAC -----------------------------------------------------------------------------------------------


@pytest.mark.public
@pytest.mark.requirement("signature.whole")
@pytest.mark.parametrize("bit", [0, 7, 8, 60, 127, 128, 190, 248, 255])
def test_every_bit_of_the_mac_counts(user, bit):
    headers = user.proof()
    mac = bytearray(base64.b64decode(headers["Signature"][5:-1]))
    mac[bit // 8] ^= 1 << bit % 8
    headers["Signature"] = f"app=:{base64.b64encode(mac).decode()}:"
    assert_refused(user.send(headers), "signature_invalid")


BASE64 = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/"


def other_bytes(encoded: str) -> list[str]:
    """Return the base64 of other 32 bytes, canonical as well: each differs in one of the 43 characters."""
    bits = [1] * 42 + [4]  # the last character has two bits that are unused
    return [
        encoded[:place] + BASE64[BASE64.index(encoded[place]) ^ bit] + encoded[place + 1 :]
        for place, bit in enumerate(bits)
    ]


def other_spellings(encoded: str) -> list[str]:
    """Return what a lenient decoder reads as the same 32 bytes: unused bits are set, or something is in between."""
    unused = [encoded[:42] + BASE64[BASE64.index(encoded[42]) + bits] + "=" for bits in (1, 2, 3)]
    return [*unused, encoded + "=", encoded.replace("=", "=="), f"{encoded[:20]} {encoded[20:]}", f"*{encoded}"]


@pytest.mark.requirement("signature.whole", "signature.encoding")
@pytest.mark.parametrize("change", [other_bytes, other_spellings])
def test_every_character_of_the_mac_counts_and_it_has_one_spelling(user, change):
    headers = user.proof()
    for encoded in change(headers["Signature"][5:-1]):
        assert_refused(user.send(headers | {"Signature": f"app=:{encoded}:"}), "signature_invalid")
    assert user.send(headers).status_code == 200


@pytest.mark.requirement("digest.whole", "digest.mismatch", "problem.unchanged")
@pytest.mark.parametrize("operation", ["storeBackup", "changeStorageKey", "fetchBackup", "deleteUser"])
def test_every_character_of_the_digest_counts(user, operation):
    """The signature is right for the digest. The digest is right for the body, except for one character."""
    method, path, body, _ = REQUESTS[operation]
    for encoded in other_bytes(reference.content_digest(body)[9:-1]):
        headers = user.proof(method, path, body, digest=f"sha-256=:{encoded}:")
        assert outcome(user.send(headers, method, path, body)) == "400 digest_mismatch"
    assert user.client.list_backup_versions().json() == {"versions": []}


@pytest.mark.public
@pytest.mark.requirement("signature.encoding")
@pytest.mark.parametrize("operation", ["storeBackup", "fetchBackup"])
def test_a_digest_has_one_spelling(user, operation):
    method, path, body, _ = REQUESTS[operation]
    for encoded in other_spellings(reference.content_digest(body)[9:-1]):
        headers = user.proof(method, path, body, digest=f"sha-256=:{encoded}:")
        assert_refused(user.send(headers, method, path, body), "signature_invalid")


@pytest.mark.public
@pytest.mark.requirement("signature.created")
@pytest.mark.parametrize(
    ("digits", "code"),
    [(14, "signature_expired"), (15, "signature_expired"), *((each, "signature_invalid") for each in (16, 18, 19, 21))],
)
def test_how_many_digits_created_has(user, digits, code):
    for created in ("9" * digits, "1".ljust(digits, "0")):
        assert_refused(user.send(user.proof(created=created)), code)


@pytest.mark.public
@pytest.mark.requirement("signature.method", "signature.path")
@pytest.mark.parametrize("operation", REQUESTS)
def test_a_signature_is_for_one_method_and_path(user, operation):
    method, path, body, _ = REQUESTS[operation]
    headers = user.proof(method, path, body)
    for other_method, other_path, _, _ in REQUESTS.values():
        if (other_method, other_path) != (method, path):
            assert_refused(user.send(headers, other_method, other_path, body), "signature_invalid")


@pytest.mark.public
@pytest.mark.requirement("signature.path")
def test_a_signature_is_for_one_version(user):
    headers = user.proof(path="/api/backup/versions/1")
    assert_refused(user.send(headers, path="/api/backup/versions/2"), "signature_invalid")


@pytest.mark.requirement("signature.authorization")
def test_a_signature_is_for_one_user(user, target):
    headers, other = user.proof(), registered(target).proof()
    assert [user.send(accepted).status_code for accepted in (headers, other)] == [200, 200]
    assert_refused(user.send(headers | {"Authorization": other["Authorization"]}), "signature_invalid")


@pytest.mark.requirement("signature.whole", "signature.profile")
def test_a_signature_is_for_one_created_and_keyid(user):
    headers = user.proof(created=int(user.client.now()) - 10)
    later = user.proof()["Signature-Input"]
    assert_refused(user.send(headers | {"Signature-Input": later}), "signature_invalid")


@pytest.mark.requirement("signature.digest", "digest.mismatch")
def test_a_signature_is_for_one_body(user):
    headers = user.proof("POST", "/api/backup", UPLOAD)
    changed = UPLOAD.replace(b'"data": ', b'"data":')  # the same JSON, other bytes
    response = user.send(headers, "POST", "/api/backup", changed)
    assert outcome(response) == "400 digest_mismatch"
    digest = {"Content-Digest": reference.content_digest(changed)}
    assert_refused(user.send(headers | digest, "POST", "/api/backup", changed), "signature_invalid")


@pytest.mark.requirement("{operation}.400", "digest.empty", "digest.mismatch")
@pytest.mark.parametrize("operation", REQUESTS)
def test_the_digest_of_a_body_that_is_not_sent(user, operation):
    method, path, body, _ = REQUESTS[operation]
    headers = user.proof(method, path, body or b"{}") | ({"Content-Type": "application/json"} if body else {})
    assert outcome(user.send(headers, method, path)) == "400 digest_mismatch"


@pytest.mark.requirement("signature.path", "version.canonical")
def test_the_path_is_signed_as_it_is_sent(user):
    encoded, decoded = "/api/backup/versions/%31", "/api/backup/versions/1"
    assert_refused(user.send(user.proof(path=decoded), path=encoded), "signature_invalid")
    response = user.send(user.proof(path=encoded), path=encoded)
    assert outcome(response) == "404 no_such_version"


@pytest.mark.requirement("signature.query")
def test_no_query_on_a_signed_operation(user):
    response = user.send(user.proof(), path=LIST + "?since=1")
    assert outcome(response) == "400 malformed_request"


@pytest.mark.requirement("digest.mismatch", "order.answers")
def test_a_mismatch_is_told_only_under_right_proofs(user, target):
    wrong_body = ("POST", "/api/backup", UPLOAD + b" ")
    headers = user.proof("POST", "/api/backup", UPLOAD, secret="wrong")
    assert_refused(user.send(headers, *wrong_body), "signature_invalid")
    stranger = User(target.client())
    assert_refused(stranger.send(stranger.proof("POST", "/api/backup", UPLOAD), *wrong_body), "credentials_invalid")
    response = user.send(user.proof("POST", "/api/backup", UPLOAD), *wrong_body)
    assert outcome(response) == "400 digest_mismatch"


# ---- The clock ---------------------------------------------------------------------------------------------


@pytest.mark.requirement("signature.window", "signature.expired")
def test_the_window_of_a_clock_that_runs_on(user):
    """Check the window to within two seconds of its bounds. Without stopping the clock, no more is possible."""
    expired = user.send(user.proof(created=0))
    assert_refused(expired, "signature_expired")
    server_time = expired.json()["serverTime"]
    assert abs(server_time - user.client.now()) <= 300
    for seconds in (-298, -150, 0, 150, 300):
        assert user.send(user.proof(created=server_time + seconds)).status_code == 200
    for seconds in (-86400, -301, 303, 86400):
        assert_refused(user.send(user.proof(created=server_time + seconds)), "signature_expired")


@pytest.mark.requirement("signature.window", "signature.expired")
@pytest.mark.parametrize("fraction", [0.0, 0.999])
def test_created_may_differ_by_300_seconds_both_ways(start_server, fraction):
    server = start_server(frozen=FROZEN)
    user = registered(server)
    server.move_clock(fraction)  # both are whole seconds: the fraction does not count
    for seconds in (-300, 0, 300):
        assert user.send(user.proof(created=FROZEN + seconds)).status_code == 200
    for seconds in (-FROZEN, -86400, -301, 301, 86400):
        response = user.send(user.proof(created=FROZEN + seconds))
        assert_refused(response, "signature_expired")
        assert response.json()["serverTime"] == FROZEN


@pytest.mark.requirement("signature.expired-last")
def test_an_expiry_is_told_only_under_a_right_signature(start_server):
    user = registered(start_server(frozen=FROZEN))
    response = user.send(user.proof(created=FROZEN - 301, secret="wrong"))
    assert_refused(response, "signature_invalid")
    assert "serverTime" not in response.json()


@pytest.mark.public
@pytest.mark.requirement("signature.expired-last")
def test_a_very_old_signature_under_a_wrong_secret(user):
    for created in (0, 1, int(user.client.now()) - 86400, int(user.client.now()) + 86400):
        assert_refused(user.send(user.proof(created=created, secret="wrong")), "signature_invalid")


@pytest.mark.requirement("signature.expired", "order.answers")
def test_an_expiry_is_told_before_a_wrong_body_and_wrong_credentials(start_server):
    user = User(start_server(frozen=FROZEN).client())
    headers = user.proof("POST", "/api/backup", UPLOAD, created=FROZEN - 301)
    assert_refused(user.send(headers, "POST", "/api/backup", UPLOAD + b" "), "signature_expired")


@pytest.mark.requirement("signature.arrival", "signature.window")
@pytest.mark.parametrize(
    ("created", "wants"),
    [(-300, "201"), (-301, "401 signature_expired"), (300, "201"), (301, "401 signature_expired")],
)
def test_created_is_compared_when_the_head_has_arrived(start_server, created, wants):
    """The body comes 200 seconds after the head."""
    server = start_server(frozen=FROZEN)
    user = registered(server)
    lines = [
        f"{name}: {value}"
        for name, value in user.proof("POST", "/api/backup", UPLOAD, created=FROZEN + created).items()
    ]
    lines += ["Content-Type: application/json", f"Content-Length: {len(UPLOAD)}", "Expect: 100-continue"]
    head = raw.request("POST", "/api/backup", headers=tuple(lines))
    _, answer = raw.expect(server, head, UPLOAD, "POST", "/api/backup", lambda: server.move_clock(200))
    assert outcome(answer) == wants
    if "expired" in wants:  # a phone sets its clock by what the clock says now
        assert answer.json()["serverTime"] == int(server.now())


@pytest.mark.requirement("signature.expired", "signature.window")
def test_a_phone_with_a_wrong_clock_mends_it(start_server):
    server = start_server(frozen=FROZEN)
    phone = server.client(clock=lambda: FROZEN + 86400)
    assert phone.mend_clock(phone.register_user())
    assert phone.register_user().status_code == 201


@pytest.mark.stage(3)
@pytest.mark.requirement("signature.expired")
def test_so_does_one_beside_a_clock_that_runs_on(target):
    phone = target.client(clock=lambda: target.now() + 86400)
    assert phone.mend_clock(phone.register_user())
    assert phone.register_user().status_code == 201


# ---- The secrets -------------------------------------------------------------------------------------------

OLD, NEW = "the-secret-of-the-app-of-last-year", "the-secret-of-the-app-of-this-year"


@pytest.mark.requirement("signature.rotation", "signature.keyid", "signature.secret")
def test_two_secrets_at_once_while_the_secret_is_rotated(start_server):
    server = start_server(APP_SECRET_KEY=f"2025:{OLD},this_Year-26:{NEW}")
    user = registered(server)
    both = {"2025": OLD, "this_Year-26": NEW}
    for keyid, secret in both.items():
        assert user.send(user.proof(keyid=keyid, secret=secret)).status_code == 200
    for keyid, secret in [("2025", NEW), ("this_Year-26", OLD), ("app", OLD), ("app", NEW), ("2025", f"2025:{OLD}")]:
        assert_refused(user.send(user.proof(keyid=keyid, secret=secret)), "signature_invalid")
    server.environ["APP_SECRET_KEY"] = f"this_Year-26:{NEW}"
    user.client.base_url = server.restart().base_url
    assert user.send(user.proof(keyid="this_Year-26", secret=NEW)).status_code == 200
    assert_refused(user.send(user.proof(keyid="2025", secret=OLD)), "signature_invalid")


@pytest.mark.requirement("signature.rotation", "signature.keyid")
def test_each_secret_under_its_own_keyid(user, second_keyid):
    keyid, secret = second_keyid
    first = user.client.keyid, user.client.secret
    assert user.send(user.proof(keyid=keyid, secret=secret)).status_code == 200
    assert user.send(user.proof()).status_code == 200
    for wrong in [(keyid, first[1]), (first[0], secret), (keyid + "x", secret), (keyid.swapcase(), secret)]:
        assert_refused(user.send(user.proof(keyid=wrong[0], secret=wrong[1])), "signature_invalid")


@pytest.mark.requirement("signature.retired", "{operation}.403")
@pytest.mark.parametrize("operation", REQUESTS)
def test_an_outdated_app_is_told_to_update(retiring, operation):
    """A retired keyid needs no right MAC, no secret, no right clock and no right credentials."""
    method, path, body, status = REQUESTS[operation]
    user = registered(retiring)
    assert user.client.store_backup(b"an encrypted log").status_code == 201
    stranger = User(retiring.client())
    for headers in [
        user.proof(method, path, body, keyid="old", secret=OLD),
        user.proof(method, path, body, keyid="old", secret=NEW),
        user.proof(method, path, body, keyid="older", secret=OLD),
        user.proof(method, path, body, keyid="old", secret=OLD, created=0),
        user.proof(method, path, body + b" ", keyid="old", secret=OLD, parameters=ORDERS[-1]),
        stranger.proof(method, path, body, keyid="older", secret=OLD, authorization="Basic"),
    ]:
        assert outcome(user.send(headers, method, path, body)) == "403 app_outdated"
    for keyid in ("OLD", "ol", "old2", "oldest"):
        headers = user.proof(method, path, body, keyid=keyid, secret=OLD)
        assert_refused(user.send(headers, method, path, body), "signature_invalid")
    malformed = user.proof(method, path, body, keyid="old", secret=OLD, label="sig1")
    assert_refused(user.send(malformed, method, path, body), "signature_invalid")
    assert user.send(user.proof(method, path, body), method, path, body).status_code == status


@pytest.fixture(scope="module")
def retiring(start_shared_server):
    """A server that has retired a keyid with a secret, and one without."""
    return start_shared_server(
        APP_SECRET_KEY=f"new:{NEW},old:{OLD}", RETIRED_KEYIDS="older,old", REGISTRATIONS_PER_HOUR=1000
    )


LONG = "a-secret-may-be-longer-than-the-64-bytes-of-a-block-of-SHA-256-and-all-of-it-counts"
GENERATIONS = {  # keyid: secret
    "1": OLD,
    "a-2_B": NEW,
    "a-keyid-may-have-64-characters_".ljust(63, "0") + "8": LONG,
    "a-keyid-may-have-64-characters_".ljust(63, "0") + "9": LONG[:64] + "-and-another-end",
    "-": "ключ" * 8 + "é",
    "app": "0123456789abcdef" * 5,
}


@pytest.fixture(scope="module")
def generations(start_shared_server):
    """A server with the secrets of six generations of the app, and two that are retired besides."""
    secrets = ",".join(f"{keyid}:{secret}" for keyid, secret in GENERATIONS.items())
    return start_shared_server(APP_SECRET_KEY=secrets, RETIRED_KEYIDS="0,-0", REGISTRATIONS_PER_HOUR=1000)


@pytest.mark.requirement("signature.rotation", "signature.key", "signature.keyid-form", "signature.keyid")
@pytest.mark.parametrize("keyid", GENERATIONS)
def test_each_of_many_secrets_under_its_own_keyid(generations, keyid):
    assert len(LONG) > 64 == max(map(len, GENERATIONS))
    user = User(generations.client(keyid=keyid, secret=GENERATIONS[keyid]))
    for method, path, body, _ in REQUESTS.values():
        if path == "/api/register":
            assert user.send(user.proof(method, path, body), method, path, body).status_code == 201
        assert user.send(user.proof(method, path, body), method, path, body).status_code in (200, 201, 204, 404)
        if path == "/api/user/storage-key":
            user.client.credentials = (user.client.credentials[0], NEW_KEY)
    for secret in {*GENERATIONS.values(), GENERATIONS[keyid][:64], GENERATIONS[keyid] + "x"} - {GENERATIONS[keyid]}:
        assert_refused(user.send(user.proof(secret=secret)), "signature_invalid")
    others = {keyid[:-1], keyid[1:], keyid + "0", keyid.swapcase(), keyid[:-1] + "x"} - GENERATIONS.keys() - {"0", "-0"}
    for other in others:
        assert_refused(user.send(user.proof(keyid=other)), "signature_invalid")
    for retired in ("0", "-0"):
        assert outcome(user.send(user.proof(keyid=retired))) == "403 app_outdated"


@pytest.mark.requirement("signature.accepted", "signature.secret")
@pytest.mark.parametrize("secret", ["0123456789abcdef" * 2, "bWFkZSBieSBvcGVuc3NsIHJhbmQgLWJhc2U2NCAzMg==", "ключ" * 8])
def test_the_key_is_the_secrets_characters_whatever_they_look_like(start_server, secret):
    assert registered(start_server(APP_SECRET_KEY=secret)).client.secret == secret


# ---- The second proof --------------------------------------------------------------------------------------


@pytest.mark.requirement("credentials.same", "fetchBackup.401", "deleteUser.401")
def test_an_unknown_user_and_a_wrong_key_get_the_same_answer(target, user):
    unknown, wrong = target.client(), target.client((user.client.credentials[0], "0" * 64))
    for operation in REQUESTS:
        if operation == "registerUser":  # it does show the difference: 201 and 409
            continue
        method, path, body, _ = REQUESTS[operation]
        body = body and json.loads(body)
        answers = [client.request(method, path, body=body or None) for client in (unknown, wrong)]
        for answer in answers:
            assert_refused(answer, "credentials_invalid")
        first, second = [(answer.status_code, telling(answer), answer.content) for answer in answers]
        assert first == second


def telling(answer: requests.Response) -> dict[str, str]:
    """Return the headers that might show a difference between two answers. A proxy may add an id to each answer."""
    names = {name.lower() for name in answer.headers} - {"date", "fly-request-id", "cf-ray"}
    return {name: answer.headers[name] for name in names if not name.endswith("request-id")}


NO_CREDENTIALS = {
    "another scheme": lambda user_id, key: f"Bearer {key}",
    "parameters of another scheme": lambda user_id, key: f'Digest username="{user_id}", realm="x"',
    "no scheme": lambda user_id, key: basic(user_id, key).removeprefix("Basic "),
    "nothing behind the scheme": lambda user_id, key: "Basic",
    "not base64": lambda user_id, key: "Basic !",
    "a sign before the base64": lambda user_id, key: basic(user_id, key).replace("Basic ", "Basic !"),
    "a sign in the base64": lambda user_id, key: basic(user_id, key)[:50] + "-" + basic(user_id, key)[50:],
    "a space in the base64": lambda user_id, key: basic(user_id, key)[:50] + " " + basic(user_id, key)[50:],
    "a sign behind the base64": lambda user_id, key: basic(user_id, key) + "*",
    "padding that is too much": lambda user_id, key: basic(user_id, key) + "=",
    "padding of a whole group": lambda user_id, key: basic(user_id, key) + "====",
    "a parameter behind the base64": lambda user_id, key: basic(user_id, key) + ", charset=UTF-8",
    "the base64 in quotes": lambda user_id, key: basic(user_id, key).replace("Basic ", 'Basic "') + '"',
    "not encoded": lambda user_id, key: f"Basic {user_id}:{key}",
    "a third value": lambda user_id, key: basic(user_id, key + ":x"),
    "a space behind the user": lambda user_id, key: basic(user_id + " ", key),
    "a space before the user": lambda user_id, key: basic(" " + user_id, key),
    "a space before the key": lambda user_id, key: basic(user_id, " " + key),
    "a mark before the user": lambda user_id, key: basic("\ufeff" + user_id, key),
    "0x before the user": lambda user_id, key: basic("0x" + user_id, key),
    "a NUL behind the key": lambda user_id, key: basic(user_id, key + "\0"),
    "padding alone": lambda user_id, key: "Basic ====",
    "not UTF-8": lambda user_id, key: "Basic " + base64.b64encode(b"\xff:\xff").decode(),
    "no colon": lambda user_id, key: "Basic " + base64.b64encode((user_id + key).encode()).decode(),
    "no password": lambda user_id, key: basic(user_id, ""),
    "no user": lambda user_id, key: basic("", key),
    "a user in capitals": lambda user_id, key: basic(user_id.upper(), key),
    "a key in capitals": lambda user_id, key: basic(user_id, key.upper()),
    "a key too short": lambda user_id, key: basic(user_id, key[:-1]),
    "a key too long": lambda user_id, key: basic(user_id, key + "0"),
    "a newline behind the key": lambda user_id, key: basic(user_id, key + "\n"),
    "a newline behind the user": lambda user_id, key: basic(user_id + "\n", key),
    "full-width digits": lambda user_id, key: basic(user_id, key[:-1] + "\uff11"),
}


def basic(user_id: str, key: str) -> str:
    return reference.authorization(user_id, key)


@pytest.mark.requirement("credentials.form", "registerUser.401", "credentials.challenge", "header.WWW-Authenticate")
@pytest.mark.parametrize("value", NO_CREDENTIALS.values(), ids=NO_CREDENTIALS)
def test_what_are_no_credentials_of_nobody(target, value):
    """A server without accounts passes this."""
    user = User(target.client())
    for method, path, body, _ in REQUESTS.values():
        headers = user.proof(method, path, body, authorization=value(*user.client.credentials))
        assert_refused(user.send(headers, method, path, body), "credentials_invalid")


@pytest.mark.requirement("credentials.form", "registerUser.201")
@pytest.mark.parametrize("value", NO_CREDENTIALS.values(), ids=NO_CREDENTIALS)
def test_what_are_no_credentials(target, value):
    user = registered(target)
    for method, path, body, _ in REQUESTS.values():
        headers = user.proof(method, path, body, authorization=value(*user.client.credentials))
        assert_refused(user.send(headers, method, path, body), "credentials_invalid")


# ---- Somebody else's implementation of RFC 9421 ------------------------------------------------------------


def oracle(kind, keyid: str, secret: str):
    keys = {keyid: secret.encode()}
    return kind(
        signature_algorithm=algorithms.HMAC_SHA256,
        key_resolver=MappingKeyResolver(public_keys=keys, private_keys=keys),
    )


@pytest.mark.requirement("signature.accepted")
@pytest.mark.parametrize("operation", REQUESTS)
def test_the_server_accepts_what_http_message_signatures_signs(user, operation):
    assert user.send(user.proof("POST", "/api/backup", UPLOAD), "POST", "/api/backup", UPLOAD).status_code == 201
    method, path, body, status = REQUESTS[operation]
    headers = {
        "Authorization": reference.authorization(*user.client.credentials),
        "Content-Digest": reference.content_digest(body),
    }
    oracle(HTTPMessageSigner, user.client.keyid, user.client.secret).sign(
        SimpleNamespace(method=method, url=user.client.base_url + path, headers=headers),
        key_id=user.client.keyid,
        created=datetime.fromtimestamp(int(user.client.now()), UTC),
        label="app",
        covered_component_ids=("@method", "@path", "authorization", "content-digest"),
        use_existing_digest=True,
    )
    assert user.send(headers, method, path, body).status_code == status


@pytest.mark.requirement("signature.accepted")
@pytest.mark.parametrize("operation", REQUESTS)
def test_http_message_signatures_accepts_what_the_server_accepts(user, operation):
    client = user.client
    assert client.store_backup(b"an encrypted log").status_code == 201
    method, path, body, status = REQUESTS[operation]
    response = client.request(method, path, body=json.loads(body) if body else None)
    assert response.status_code == status
    verifier = oracle(HTTPMessageVerifier, user.client.keyid, user.client.secret)
    verifier.max_clock_skew = timedelta(days=700_000)  # it has this machine's clock, not the server's
    (verified,) = verifier.verify(
        response.request,
        max_age=None,
        expect_label=None,
        require_components=("@method", "@path", "authorization", "content-digest"),
        body=response.request.body or b"",
    )
    assert verified.label == "app"
    assert list(verified.parameters) == ["created", "keyid", "alg"]
