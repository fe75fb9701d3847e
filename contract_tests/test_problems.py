"""Hostile bodies. Each must get the right problem, in the right form. It must change nothing and repeat nothing.

Each request has a real signature, so that the server refuses its body and nothing else.
"""

import gzip
import json
import secrets
from typing import Any

import pytest

from clients.python.backup_client import BackupClient, backup_bytes
from contract_tests.target import raw
from contract_tests.target.calls import outcome, sha256

MARK = "Zebra7"  # is part of what is sent, and must not come back
LATEST = b"the latest version"
BASE = sha256(LATEST)
JSON = {"Content-Type": "application/json"}


def upload(**members: Any) -> bytes:
    """Return a body that is valid except for these members."""
    return json.dumps({"data": "QUFB", "baseSha256": BASE} | members).encode()


def with_data(text: str) -> bytes:
    return upload(data=text)


def with_base(value: Any) -> bytes:
    return upload(baseSha256=value)


NOT_I_JSON = {
    "nothing": b"",
    "white space": b" \n\t\r ",
    "half": upload()[:-1],
    "not JSON": MARK.encode(),
    "single quotes": b"{'data':'QUFB'}",
    "a trailing comma": upload()[:-1] + b",}",
    "a comment": upload() + b"/* " + MARK.encode() + b" */",
    "trailing bytes": upload() + MARK.encode(),
    "two documents": upload() + b" " + upload(),
    "a trailing NUL": upload() + b"\0",
    "UTF-16": upload().decode().encode("utf-16"),
    "bad UTF-8": b'{"data":"QUFB","' + MARK.encode() + b'":"\xff"}',
    "overlong UTF-8": b'{"data":"QUFB","' + MARK.encode() + b'":"\xc0\xaf"}',
    "a surrogate in UTF-8": b'{"data":"QUFB","' + MARK.encode() + b'":"\xed\xa0\x80"}',
    "a line feed in a string": b'{"data":"QU\nFB"}',
    "an unknown escape": b'{"data":"\\x51UFB"}',
    "NaN": b'{"data":NaN}',
    "Infinity": b'{"data":Infinity}',
    "-Infinity": b'{"data":-Infinity}',
    "a leading zero": b'{"data":01}',
    "a plus sign": b'{"data":+1}',
    "hexadecimal": b'{"data":0x1}',
    "a name twice": b'{"data":"QUFB","data":"QUFB"}',
    "a name twice, once escaped": b'{"data":"QUFB","\\u0064ata":"QUFB"}',
    "a name twice, deep down": b'{"data":[{"' + MARK.encode() + b'":1,"' + MARK.encode() + b'":1}]}',
    "a lone surrogate in a value": b'{"data":"\\ud800"}',
    "a lone surrogate in a name": b'{"data":"QUFB","\\udc00":1}',
    "surrogates in the wrong order": b'{"data":"\\udc00\\ud800"}',
    "a lone surrogate deep down": b'{"data":[["\\ud83d"]]}',
    "100,000 open arrays": b"[" * 100_000,
    "a byte order mark": b"\xef\xbb\xbf" + upload(),
    "a byte order mark behind": upload() + b"\xef\xbb\xbf",
    "UTF-16 without a mark": upload().decode().encode("utf-16-le"),
    "UTF-16, big endian": upload().decode().encode("utf-16-be"),
    "UTF-32": upload().decode().encode("utf-32"),
    "UTF-32 without a mark": upload().decode().encode("utf-32-le"),
    "UTF-32, big endian": upload().decode().encode("utf-32-be"),
    "UTF-7": b"+AHs-" + upload()[1:],
    "a form feed in front": b"\f" + upload(),
    "a form feed behind": upload() + b"\f",
    "a vertical tab": b'{\v"data":"QUFB"}',
    "a space that does not break": b"\xc2\xa0" + upload(),
    "a line separator behind": upload() + "\u2028".encode(),
    "a full-width space": '{\u3000"data":"QUFB"}'.encode(),
    "a record separator": b"\x1e" + upload() + b"\n",
    "a prefix against scripts": b")]}',\n" + upload(),
    "a comment in front": b"// x\n" + upload(),
    "a hash in front": b"# x\n" + upload(),
    "no quotes round a name": b'{data:"QUFB"}',
    "no comma": b'{"data":"QUFB" "baseSha256":"' + BASE.encode() + b'"}',
    "two commas": b'{"data":"QUFB",,"baseSha256":"' + BASE.encode() + b'"}',
    "an equals sign": b'{"data"="QUFB"}',
    "True": b'{"data":True}',
    "undefined": b'{"data":undefined}',
    "a number that begins with its point": b'{"data":.5}',
    "a number that ends with its point": b'{"data":1.}',
    "an exponent without digits": b'{"data":1e}',
    "a minus alone": b'{"data":-}',
    "an underscore in a number": b'{"data":1_0}',
    "a negative leading zero": b'{"data":-01}',
    "octal": b'{"data":0o1}',
    "a tab in a string": b'{"data":"QU\tFB"}',
    "a NUL in a string": b'{"data":"QU\0FB"}',
    "an escaped NUL in bytes": b'{"data":"QUFB","x":"\x00"}',
    "an escape of three digits": b'{"data":"\\u051UFB"}',
    "an escape in braces": b'{"data":"\\u{51}UFB"}',
    "an escaped quote": b'{"data":"QUFB","x":"\\\'"}',
    "a backslash at the end": b'{"data":"QUFB\\"}',
    "101 commas": upload(x=[0] * 101),
    "101 commas in a string": upload(x="," * 100),
    "form data": b"data=QUFB",
    "MessagePack": b"\x81\xa4data\xa4QUFB",
    "gzip": gzip.compress(upload()),
}

# Some parsers cannot read these: 400. If a parser can, they do not fit the schema: 422.
BEYOND_SOME_PARSERS = {
    "1e999": b'{"data":1e999}',
    "-1e999": b'{"data":-1e999}',
    "5,000 digits": b'{"data":' + b"1" * 5000 + b"}",
    "an unknown member of 4,000 digits": upload(x=int("1" * 4000)),
    "100,000 arrays": b"[" * 100_000 + b"]" * 100_000,
    "100,000 objects": b'{"data":' * 100_000 + b"1" + b"}" * 100_000,
}

NOT_THE_SCHEMA = {  # the body, and the pointers that its errors may have
    "null": (b"null", ["#"]),
    "an array": (b"[]", ["#"]),
    "a string": (json.dumps(MARK).encode(), ["#"]),
    "a number": (b"1", ["#"]),
    "an object without members": (b"{}", ["#/data"]),
    "no data": (json.dumps({"baseSha256": BASE}).encode(), ["#/data"]),
    "data null": (with_data(None), ["#/data"]),
    "data a number": (with_data(1), ["#/data"]),
    "data an array": (with_data([MARK]), ["#/data"]),
    "data empty": (with_data(""), ["#/data"]),
    "not base64": (with_data(f"{MARK}!!"), ["#/data"]),
    "base64 with line breaks": (with_data("QUFB\r\nQUFB"), ["#/data"]),
    "base64 with a trailing newline": (with_data("QUFB\n"), ["#/data"]),
    "base64 after a space": (with_data(" QUFB"), ["#/data"]),
    "base64 of the URL-safe alphabet": (with_data("-_-_"), ["#/data"]),
    "base64 without padding": (with_data("QUE"), ["#/data"]),
    "base64 with too much padding": (with_data("QUFB===="), ["#/data"]),
    "base64 of padding alone": (with_data("===="), ["#/data"]),
    "base64 padded in the middle": (with_data("QQ==QUFB"), ["#/data"]),
    "base64 with two unused bits set": (with_data("QUF="), ["#/data"]),
    "base64 with four unused bits set": (with_data("QR=="), ["#/data"]),
    "base64 of full-width letters": (with_data("ＱＵＦＢ"), ["#/data"]),
    "an emoji": (with_data("\U0001f4aa"), ["#/data"]),
    "base64 in a URL": (with_data("data:application/octet-stream;base64,QUFB"), ["#/data"]),
    "base64 in percent-encoding": (with_data("QUE%3D"), ["#/data"]),
    "base64 of mixed alphabets": (with_data("+-/_"), ["#/data"]),
    "base64 with a NUL": (with_data("QUFB\0"), ["#/data"]),
    "base64 with a mark in front": (with_data("\ufeffQUFB"), ["#/data"]),
    "base64 with one character too many": (with_data("QUFBQ"), ["#/data"]),
    "base64 of one character": (with_data("Q"), ["#/data"]),
    "base64 with one sign of padding for two": (with_data("QQ="), ["#/data"]),
    "base64 with three signs of padding": (with_data("Q==="), ["#/data"]),
    "base64 in two parts": (with_data("QUFB,QUFB"), ["#/data"]),
    "data an object": (with_data({"0": 65}), ["#/data"]),
    "data true": (with_data(True), ["#/data"]),
    "data in another case": (upload(Data="QUFB"), ["#"]),
    "the base in another case": (upload(BaseSha256=BASE), ["#"]),
    "the base under another name": (upload(base_sha256=BASE), ["#"]),
    "a name with a space": (upload(**{"data ": "QUFB"}), ["#"]),
    "base after a space": (with_base(" " + BASE), ["#/baseSha256"]),
    "base before a space": (with_base(BASE + " "), ["#/baseSha256"]),
    "base with its algorithm": (with_base("sha256:" + BASE), ["#/baseSha256"]),
    "base with 0x": (with_base("0x" + BASE), ["#/baseSha256"]),
    "base with 0x, as long": (with_base("0x" + BASE[2:]), ["#/baseSha256"]),
    "base with one capital": (with_base(BASE[:-1] + "F"), ["#/baseSha256"]),
    "base in quotes": (with_base(f'"{BASE}"'), ["#/baseSha256"]),
    "base a list": (with_base([BASE]), ["#/baseSha256"]),
    "base false": (with_base(False), ["#/baseSha256"]),
    "base null": (with_base(None), ["#/baseSha256"]),
    "base a number": (with_base(1), ["#/baseSha256"]),
    "base empty": (with_base(""), ["#/baseSha256"]),
    "base in capitals": (with_base(BASE.upper()), ["#/baseSha256"]),
    "base too short": (with_base(BASE[1:]), ["#/baseSha256"]),
    "base too long": (with_base(BASE + "0"), ["#/baseSha256"]),
    "base with a trailing newline": (with_base(BASE + "\n"), ["#/baseSha256"]),
    "base with a newline for its last character": (with_base(BASE[1:] + "\n"), ["#/baseSha256"]),
    "base in full-width digits": (with_base("１" * 64), ["#/baseSha256"]),
    "two faults": (upload(data=1, baseSha256=1), ["#/baseSha256", "#/data"]),
    "the storage key's member": (upload(storageKey="ab" * 32), ["#"]),
    "an unknown member": (upload(**{MARK: MARK}), ["#"]),  # its name is data of the request and must not come back
    "an unknown member with a surrogate pair": (upload(**{"\U0001f4aa": MARK}), ["#"]),
    "an unknown member of __proto__": (upload(**{"__proto__": {"data": MARK}}), ["#"]),
}

NOT_THE_MEDIA_TYPE = {
    "none": {},
    "text": {"Content-Type": "text/plain"},
    "text/json": {"Content-Type": "text/json"},
    "JSON's relatives": {"Content-Type": "application/merge-patch+json"},
    "a longer name": {"Content-Type": "application/jsonp"},
    "a form": {"Content-Type": "application/x-www-form-urlencoded"},
    "a multipart form": {"Content-Type": f"multipart/form-data; boundary={MARK}"},
    "a wild card": {"Content-Type": "*/*"},
    "two": {"Content-Type": "application/json, text/plain"},
    "another charset": {"Content-Type": "application/json; charset=iso-8859-1"},
    "a charset without a value": {"Content-Type": "application/json; charset="},
    "a charset in single quotes": {"Content-Type": "application/json; charset='utf-8'"},
    "a charset with one quote": {"Content-Type": 'application/json; charset="utf-8'},
    "a space in a parameter": {"Content-Type": "application/json; charset =utf-8"},
    "another parameter": {"Content-Type": "application/json; profile=x"},
    "another parameter, too": {"Content-Type": "application/json; charset=utf-8; profile=x"},
    "parameters without a type": {"Content-Type": "; charset=utf-8"},
    "a comma for a semicolon": {"Content-Type": "application/json, charset=utf-8"},
    "gzip named": {**JSON, "Content-Encoding": "gzip"},
    "br": {**JSON, "Content-Encoding": "br"},
    "gzip after identity": {**JSON, "Content-Encoding": "identity, gzip"},
    "deflate": {**JSON, "Content-Encoding": "deflate"},
    "zstd": {**JSON, "Content-Encoding": "zstd"},
    "x-gzip": {**JSON, "Content-Encoding": "x-gzip"},
    "compress": {**JSON, "Content-Encoding": "compress"},
    "aes128gcm": {**JSON, "Content-Encoding": "aes128gcm"},
    "a coding in capitals": {**JSON, "Content-Encoding": "GZIP"},
    "a coding that nobody knows": {**JSON, "Content-Encoding": "x-of-nobody"},
    "UTF-8 for a coding": {**JSON, "Content-Encoding": "utf-8"},
    "base64 for a coding": {**JSON, "Content-Encoding": "base64"},
    "identity after gzip": {**JSON, "Content-Encoding": "gzip, identity"},
    "UTF-16": {"Content-Type": "application/json; charset=utf-16"},
    "UTF-16, little endian": {"Content-Type": "application/json;charset=UTF-16LE"},
    "UTF-32": {"Content-Type": 'application/json; charset="utf-32"'},
    "UTF-8 without its hyphen": {"Content-Type": "application/json; charset=utf8"},
    "UTF-8 with a mark": {"Content-Type": "application/json; charset=utf-8-sig"},
    "UTF-7": {"Content-Type": "application/json; charset=utf-7"},
    "ASCII": {"Content-Type": "application/json; charset=us-ascii"},
    "Latin-1 in quotes": {"Content-Type": 'application/json; charset="latin-1"'},
    "a charset twice": {"Content-Type": "application/json; charset=utf-8; charset=utf-8"},
    "two charsets": {"Content-Type": "application/json; charset=utf-16; charset=utf-8"},
    "two charsets, the other way": {"Content-Type": "application/json; charset=utf-8; charset=utf-16"},
    "two charsets in one": {"Content-Type": "application/json; charset=utf-8,utf-16"},
    "a space before the charset": {"Content-Type": "application/json; charset= utf-8"},
    "a name without a value": {"Content-Type": "application/json; charset"},
    "a boundary": {"Content-Type": f"application/json; boundary={MARK}"},
    "a version": {"Content-Type": "application/json; version=1"},
    "another parameter in front": {"Content-Type": "application/json; odata=verbose; charset=utf-8"},
    "a suffix": {"Content-Type": "application/json+x"},
    "a problem": {"Content-Type": "application/problem+json"},
    "a sequence": {"Content-Type": "application/json-seq"},
    "lines of JSON": {"Content-Type": "application/x-ndjson"},
    "another name for JSON": {"Content-Type": "application/x-json"},
    "no slash": {"Content-Type": "json"},
    "two slashes": {"Content-Type": "application//json"},
    "a space in the name": {"Content-Type": "application /json"},
    "the name in quotes": {"Content-Type": '"application/json"'},
    "bytes": {"Content-Type": "application/octet-stream"},
}


@pytest.fixture
def user(new_user) -> BackupClient:
    """A user with one backup."""
    client = new_user()
    assert outcome(client.store_backup(LATEST)) == "201"
    return client


def state(client: BackupClient) -> tuple[Any, Any]:
    """Return what a client can see of its account."""
    return client.list_backup_versions().json(), client.fetch_backup().json()


def refuses(client: BackupClient, wants: str, method: str, path: str, body: bytes, headers: Any = None) -> Any:
    """Return the problem that this request gets. Check that it changes nothing and that the answer does not repeat it.

    `wants` are its outcomes, any of several.
    """
    before = state(client)
    answer = client.request(method, path, body=body, headers=JSON if headers is None else headers)
    assert outcome(answer) in wants.split(" or ")
    assert MARK not in answer.text + str(answer.headers)
    assert state(client) == before
    return answer.json()


@pytest.mark.requirement("http.i-json", "storeBackup.400", "problem.unchanged", "problem.silent")
@pytest.mark.parametrize("body", NOT_I_JSON.values(), ids=NOT_I_JSON)
def test_what_is_not_i_json(user, body):
    refuses(user, "400 malformed_request", "POST", "/api/backup", body)


COMMAS = {  # from a number of commas to a value that has them
    "an array": lambda number: [0] * (number + 1),
    "an object": lambda number: {str(each): 0 for each in range(number + 1)},
    "a string": lambda number: "," * number,
}


@pytest.mark.requirement("http.commas", "http.schema", "http.i-json")
@pytest.mark.parametrize(("number", "wants"), [(100, "422 validation_failed"), (101, "400 malformed_request")])
@pytest.mark.parametrize("value", COMMAS.values(), ids=COMMAS)
def test_100_commas_are_read(user, value, number, wants):
    body = upload(x=value(number - 2))
    assert body.count(b",") == number
    refuses(user, wants, "POST", "/api/backup", body)


@pytest.mark.requirement("http.i-json", "changeStorageKey.400", "key.both")
@pytest.mark.parametrize("name", ["half", "trailing bytes", "bad UTF-8", "a name twice", "NaN"])
def test_a_key_change_that_is_not_i_json(user, name):
    body = NOT_I_JSON[name].replace(b"{", b'{"storageKey":"' + b"ab" * 32 + b'",', 1)
    refuses(user, "400 malformed_request", "PUT", "/api/user/storage-key", body)


@pytest.mark.requirement("http.i-json", "problem.unchanged")
@pytest.mark.parametrize("body", BEYOND_SOME_PARSERS.values(), ids=BEYOND_SOME_PARSERS)
def test_what_some_parsers_do_not_take(user, body):
    refuses(user, "400 malformed_request or 422 validation_failed", "POST", "/api/backup", body)


def named_base64(name: str) -> list[pytest.MarkDecorator]:
    return [pytest.mark.requirement("backup.base64")] if "base64" in name or name == "an emoji" else []


@pytest.mark.requirement("http.schema", "storeBackup.422", "problem.pointer", "problem.unchanged", "problem.silent")
@pytest.mark.parametrize(
    ("body", "pointers"),
    [pytest.param(*case, marks=named_base64(name), id=name) for name, case in NOT_THE_SCHEMA.items()],
)
def test_what_does_not_fit_the_schema(user, body, pointers):
    problem = refuses(user, "422 validation_failed", "POST", "/api/backup", body)
    found = {error["pointer"] for error in problem["errors"]}
    assert found and found <= set(pointers)  # a validator may stop at the first error


@pytest.mark.requirement("backup.base64", "changeStorageKey.422", "key.both")
@pytest.mark.parametrize("name", [name for name in NOT_THE_SCHEMA if "base64" in name])
def test_a_key_change_without_canonical_base64(user, name):
    body = json.dumps(json.loads(NOT_THE_SCHEMA[name][0]) | {"storageKey": "ab" * 32}).encode()
    problem = refuses(user, "422 validation_failed", "PUT", "/api/user/storage-key", body)
    assert {error["pointer"] for error in problem["errors"]} == {"#/data"}


@pytest.mark.requirement("base.content", "base.conflict")
@pytest.mark.parametrize(
    ("base", "wants"),
    [
        (1, "422 validation_failed"),
        ("1", "422 validation_failed"),
        ('"1"', "422 validation_failed"),
        (f'"1-{BASE}"', "422 validation_failed"),
        (f"{1:064x}", "409 version_conflict"),
        (f"{1:<064x}", "409 version_conflict"),
    ],
    ids=["1", "a string", "an entity tag", "a strong entity tag", "padded in front", "padded behind"],
)
def test_a_number_is_no_base(user, base, wants):
    refuses(user, wants, "POST", "/api/backup", with_base(base))


@pytest.mark.requirement("changeStorageKey.422", "http.schema", "problem.pointer", "key.both")
@pytest.mark.parametrize(
    ("storage_key", "pointers"),
    [
        (None, ["#/storageKey"]),
        (1, ["#/storageKey"]),
        ("", ["#/storageKey"]),
        ("AB" * 32, ["#/storageKey"]),
        ("ab" * 31, ["#/storageKey"]),
        ("ab" * 33, ["#/storageKey"]),
        ("ab" * 32 + "\n", ["#/storageKey"]),
        ("ab" * 31 + "a\n", ["#/storageKey"]),
        (" " + "ab" * 32, ["#/storageKey"]),
        ("ab" * 32 + " ", ["#/storageKey"]),
        ("ab" * 31 + "aB", ["#/storageKey"]),
        ("0x" + "ab" * 31, ["#/storageKey"]),
        ("ab" * 31 + "a\0", ["#/storageKey"]),
        (["ab" * 32], ["#/storageKey"]),
        (True, ["#/storageKey"]),
        ("xy" * 32, ["#/storageKey"]),
    ],
)
def test_a_storage_key_that_does_not_fit_the_schema(user, storage_key, pointers):
    body = upload(storageKey=storage_key)
    problem = refuses(user, "422 validation_failed", "PUT", "/api/user/storage-key", body)
    assert {error["pointer"] for error in problem["errors"]} == set(pointers)


@pytest.mark.requirement("changeStorageKey.422", "http.schema", "key.both")
@pytest.mark.parametrize("body", [upload(), b"[]", upload(storageKey="ab" * 32, **{MARK: 1})])
def test_other_bodies_that_are_no_key_change(user, body):
    refuses(user, "422 validation_failed", "PUT", "/api/user/storage-key", body)


@pytest.mark.requirement("{operation}.415", "http.media-type", "http.media-type-form", "problem.unchanged")
@pytest.mark.parametrize("headers", NOT_THE_MEDIA_TYPE.values(), ids=NOT_THE_MEDIA_TYPE)
@pytest.mark.parametrize(
    ("operation", "method", "path", "body"),
    [
        ("storeBackup", "POST", "/api/backup", upload()),
        ("changeStorageKey", "PUT", "/api/user/storage-key", upload(storageKey="ab" * 32)),
    ],
)
def test_what_is_not_plain_json(user, operation, method, path, body, headers):
    refuses(user, "415 unsupported_media_type", method, path, body, headers)


@pytest.mark.requirement("storeBackup.415", "http.media-type")
def test_gzip(user):
    headers = JSON | {"Content-Encoding": "gzip"}
    refuses(user, "415 unsupported_media_type", "POST", "/api/backup", gzip.compress(upload()), headers)


@pytest.mark.requirement("storeBackup.201", "http.media-type", "http.media-type-form")
@pytest.mark.parametrize(
    "content_type",
    [
        "application/json",
        "Application/JSON",
        "application/json; charset=utf-8",
        "application/json ;charset=UTF-8",
        'application/json;charset="utf-8"',
        'APPLICATION/json;  CHARSET="Utf-8"',
        "application/json;",
        "application/json; ",
        "application/json;;",
        "application/json; charset=utf-8;",
        "application/json; ; charset=utf-8 ; ;",
        "application/json\t;\tcharset=utf-8",
    ],
)
def test_what_is_plain_json(user, content_type):
    answer = user.request("POST", "/api/backup", body=upload(), headers={"Content-Type": content_type})
    assert outcome(answer) == "201"


@pytest.mark.requirement("storeBackup.201", "http.i-json", "backup.bytes")
@pytest.mark.parametrize(
    "body",
    [
        b' \r\n\t{ "data" :\n"QUFB", "baseSha256":"' + BASE.encode() + b'" }\n',
        b'{"\\u0064ata":"\\u0051UFB","baseSha256":"' + BASE.encode() + b'"}',
        b'{"baseSha256":"' + BASE.encode() + b'","data":"QUFB"}',
    ],
)
def test_json_may_be_written_in_many_ways(user, body):
    assert outcome(user.request("POST", "/api/backup", body=body, headers=JSON)) == "201"
    assert backup_bytes(user.fetch_backup()) == b"AAA"


@pytest.mark.requirement("{operation}.400", "http.no-body", "problem.unchanged")
@pytest.mark.parametrize("body", [b"{}", b" ", b"0", MARK.encode(), b"x" * 100_000])
@pytest.mark.parametrize(
    ("operation", "method", "path"),
    [
        ("registerUser", "POST", "/api/register"),
        ("fetchBackup", "GET", "/api/backup"),
        ("listBackupVersions", "GET", "/api/backup/versions"),
        ("fetchBackupVersion", "GET", "/api/backup/versions/1"),
        ("deleteUser", "DELETE", "/api/user"),
    ],
)
def test_a_body_where_none_belongs(user, operation, method, path, body):
    refuses(user, "400 malformed_request", method, path, body)


@pytest.mark.requirement("http.no-body", "order.answers", "problem.unchanged")
@pytest.mark.parametrize(
    ("method", "path"), [("POST", "/api/register"), ("GET", "/api/backup"), ("DELETE", "/api/user")]
)
@pytest.mark.parametrize("line", ["Content-Length: 1", "Transfer-Encoding: chunked"])
def test_a_needless_body_that_nobody_signed(target, new_user, method, path, line):
    """The head tells of it, so it comes before the digest."""
    credentials = secrets.token_hex(32), secrets.token_hex(32)
    user = new_user(credentials)
    user.store_backup(LATEST)
    before = state(user)
    headers = (*raw.signed(target, credentials, method, path), line)
    body = b"1\r\nx\r\n0\r\n\r\n" if "chunked" in line else b"x"
    assert outcome(raw.send(target, raw.request(method, path, headers=headers) + body)) == "400 malformed_request"
    assert state(user) == before


@pytest.mark.requirement("{operation}.400", "http.no-body")
@pytest.mark.public
@pytest.mark.parametrize(
    ("operation", "path"),
    [("getHealth", "/health"), ("getOpenapiYaml", "/openapi.yaml"), ("getOpenapiJson", "/openapi.json")],
)
def test_a_body_where_none_belongs_and_nothing_is_signed(target, operation, path):
    answer = target.client().request("GET", path, body=MARK.encode(), signed=False)
    assert outcome(answer) == "400 malformed_request"
    assert MARK not in answer.text


@pytest.mark.requirement("getAdminStats.400", "http.no-body")
def test_a_body_where_none_belongs_from_the_operator(target, admin_key):
    headers = {"Authorization": f"Bearer {admin_key}"}
    answer = target.client().request("GET", "/admin/stats", body=MARK.encode(), headers=headers, signed=False)
    assert outcome(answer) == "400 malformed_request"
    assert MARK not in answer.text


@pytest.mark.requirement("{operation}.400", "digest.mismatch", "digest.empty", "problem.unchanged")
@pytest.mark.parametrize(
    ("operation", "method", "path", "body"),
    [
        ("registerUser", "POST", "/api/register", b""),
        ("storeBackup", "POST", "/api/backup", upload()),
        ("fetchBackup", "GET", "/api/backup", b""),
        ("listBackupVersions", "GET", "/api/backup/versions", b""),
        ("fetchBackupVersion", "GET", "/api/backup/versions/1", b""),
        ("changeStorageKey", "PUT", "/api/user/storage-key", upload(storageKey="ab" * 32)),
        ("deleteUser", "DELETE", "/api/user", b""),
    ],
)
def test_another_body_than_the_signed_one(target, new_user, operation, method, path, body):
    credentials = secrets.token_hex(32), secrets.token_hex(32)
    user = new_user(credentials)
    user.store_backup(LATEST)
    before = state(user)
    wants = "400 digest_mismatch" if body else "400 malformed_request"  # where no body belongs, the head tells more
    for other in (body + b" ", body[:-1] + b"\n" if body else b"{}", body[:-1] if body else b"x"):
        headers = ("Content-Type: application/json", *raw.signed(target, credentials, method, path, body))
        assert outcome(raw.send(target, raw.request(method, path, other, headers))) == wants
    for signed_body in (b"{}", b" ", b"\0"):  # these bodies are signed, and none is sent
        headers = ("Content-Type: application/json", *raw.signed(target, credentials, method, path, signed_body))
        assert outcome(raw.send(target, raw.request(method, path, headers=headers))) == "400 digest_mismatch"
    assert state(user) == before


@pytest.mark.edge_may_answer
@pytest.mark.requirement("problem.silent", "problem.form")
@pytest.mark.parametrize(
    ("method", "path"),
    [
        (MARK, "/health"),
        (MARK, "/api/backup"),
        ("GET", f"/{MARK}"),
        ("GET", f"/health/{MARK}"),
        ("GET", f"/api/backup?{MARK}"),
        ("GET", f"/api/backup/versions/{MARK}"),
        pytest.param("GET", f"/{MARK} {MARK}", marks=pytest.mark.stage(4)),  # this is no HTTP
        ("GET", "/admin/stats"),
        ("GET", "/api/backup"),
    ],
)
def test_nothing_of_the_request_is_repeated(target, method, path):
    headers = (
        f"Authorization: Bearer {MARK}",
        f"Signature: {MARK}",
        f"Signature-Input: {MARK}",
        f"X-Request-Id: {MARK}",
    )
    answer = raw.send(
        target, raw.request(method, path, headers=(*headers, f"Content-Digest: {MARK}", f"Origin: {MARK}"))
    )
    assert answer.status >= 400
    assert MARK not in answer.text + str(answer.headers)
