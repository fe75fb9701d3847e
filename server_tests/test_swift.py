"""What can be told of clients/swift without a Swift toolchain. `tox run -e swift` compiles it and runs it."""

import itertools
import json
import re

import pytest

from clients.python import backup_client, device
from contract_tests.target.openapi import LIMITS, MAX_DECODED_BYTES, REPOSITORY, SPEC
from server_tests import vectors
from swift_tests import contract

CLIENTS = REPOSITORY / "clients"
README = (contract.PACKAGE / "README.md").read_text()
BLOCKS = re.findall(r"^```swift\n(.*?)^```$", README, re.MULTILINE | re.DOTALL)
SOURCES = {
    file.relative_to(contract.PACKAGE).as_posix(): file.read_text()
    for folder in ("Sources", "Example", "Tests")
    for file in (contract.PACKAGE / folder).rglob("*.swift")
}
GROUPS = [group for kind in vectors.KINDS for group in vectors.load(kind)["testGroups"]]
CASES = {test["tcId"] for group in GROUPS for test in group["tests"]}


def test_the_generated_code_is_of_this_contract():
    """If this fails, the contract has changed for a client: run `tox run -e swift -- --generate`, which needs Swift."""
    for name in ("Client.swift", "Types.swift"):
        assert f"excerpt that was read: {contract.digest()}\n" in (contract.GENERATED / name).read_text()


def test_the_excerpt_has_what_a_device_calls():
    excerpt = contract.excerpt()
    operations = {each["operationId"]: each for item in excerpt["paths"].values() for each in item.values()}
    assert set(operations) == {
        each["operationId"]
        for item in SPEC["paths"].values()
        for each in item.values()
        if isinstance(each, dict) and "service" not in each.get("tags", ["service"])
    }
    assert set(operations["fetchBackup"]["responses"]) == {"200", "304"}
    assert list(excerpt["components"]["schemas"]["BackupUpload"]["properties"]) == ["data", "baseSha256"]
    assert "description" not in json.dumps(excerpt["components"])


@pytest.mark.parametrize("block", BLOCKS, ids=lambda block: block.splitlines()[0])
def test_the_readme_shows_code_that_compiles(block: str):
    assert any(block in text for name, text in SOURCES.items() if not name.startswith("Tests/"))


def test_the_readme_has_code():
    assert len(BLOCKS) > 4


@pytest.mark.parametrize("suite, test", sorted(set(re.findall(r"`(\w+Tests)(?:\.(\w+))?`", README))))
def test_each_test_that_is_named_exists(suite: str, test: str):
    (text,) = [text for text in SOURCES.values() if f"struct {suite} {{" in text]
    assert not test or f"func {test}(" in text


@pytest.mark.parametrize("rule", SPEC["info"]["x-client-requirements"])
def test_each_rule_for_clients_has_a_test_in_swift(rule: str):
    tests = [line for name, text in SOURCES.items() if name.startswith("Tests/") for line in text.splitlines()]
    assert any(line.strip().startswith("// client.") and rule in line.strip("/ ").split(", ") for line in tests)


@pytest.mark.parametrize("number", sorted(set(re.findall(r"tcId (\d+)", README))))
def test_each_vector_that_is_named_exists(number: str):
    assert int(number) in CASES


def test_a_person_is_told_the_same_as_by_the_other_clients():
    errors = SOURCES["Sources/DailyRepsBackup/BackupError.swift"]
    constants = dict(re.findall(r'^private let (\w+) = "(.*)"$', errors, re.MULTILINE))
    told = re.findall(r'^    "(\w+)":\s+(?:"(.*)"|(\w+)),$', errors.partition("private let sentences")[2], re.MULTILINE)
    assert {code: text or constants[name] for code, text, name in told} == backup_client.SENTENCES
    joined = re.sub(r'"\s+\+ "', "", errors + SOURCES["Sources/DailyRepsCrypto/Errors.swift"])
    others = [
        backup_client.LostAnswerError(0, ""),
        backup_client.ProblemError("new", 400, {}),
        backup_client.AppOutdatedError(),
        backup_client.DecryptionError(),
        backup_client.MistypedCodeError(),
        *(device.UnsettledChangeError(what) for what in ("change", "deletion")),
        *(device.DeviceError(why) for why in ("not-signed-in", "another-username", "old-password", "not-listed")),
    ]
    for error in others:
        assert f'"{backup_client.sentence(error)}"' in joined


def test_the_table_of_the_clients_names_what_is_there():
    rows = re.findall(r"^\|[^|]+\|([^|]+)\|[^|]+\|[^|]+\|$", (CLIENTS / "README.md").read_text(), re.MULTILINE)
    names = {name for cell in rows for name in re.findall(r"`([\w.]+)`", cell)} - {"tell"}
    assert {"Device.sync", "Keys"} <= names
    public = "\n".join(text for name, text in SOURCES.items() if name.startswith("Sources/"))
    for owner, _, member in (name.partition(".") for name in names):
        declared = rf"(?:actor|class|struct|enum|extension|func|typealias) {owner}\b"
        assert re.search(declared, public), owner
        assert not member or re.search(rf"(?:func|var|case) {member}\b", public), (owner, member)


def test_the_numbers_are_those_of_the_contract():
    device = SOURCES["Sources/DailyRepsBackup/Device.swift"]
    assert f"signatureActs = {LIMITS['deletedUserSeconds']}.0\n" in device
    assert f"largestLog = {MAX_DECODED_BYTES:_} - headerBytes" in SOURCES["Sources/DailyRepsCrypto/Blob.swift"]
    largest = f"{MAX_DECODED_BYTES - 69:,} bytes"
    assert largest in SOURCES["Sources/DailyRepsBackup/BackupError.swift"]
    assert largest in SPEC["info"]["description"]


DECLARES = re.compile(r" *public (?:final |static )*(?:actor|class|enum|func|init|let|protocol|struct|typealias|var)\b")
# What a protocol asks for, which its own documentation describes, and an initialiser of nothing.
ASKED_FOR = re.compile(r"errorDescription|[dD]escription: String|customMirror|func urlSession|init\(\) \{\}")


@pytest.mark.parametrize("name", sorted(name for name in SOURCES if re.match("Sources/[^/]+/[^/]+$", name)))
def test_what_is_public_is_documented(name: str):
    lines = SOURCES[name].splitlines()
    declared = [
        (before.strip(), line)
        for before, line in itertools.pairwise(lines)
        if DECLARES.match(line) and not ASKED_FOR.search(line)
    ]
    assert [line for before, line in declared if not before.startswith(("///", "@"))] == []


def test_the_pins_are_of_the_real_addresses():
    for folder in (contract.PACKAGE, contract.PACKAGE / "generator"):
        pins = json.loads((folder / "Package.resolved").read_text())["pins"]
        assert pins
        for pin in pins:
            assert pin["kind"] == "remoteSourceControl"
            assert re.fullmatch(r"https://github\.com/[\w.-]+/[\w.-]+", pin["location"])
            assert re.fullmatch("[0-9a-f]{40}", pin["state"]["revision"]) and pin["state"]["version"]
