"""openapi.yaml agrees with itself, with the issue's tables, and with the table of problems in the code."""

import base64
import hashlib
import re
from collections.abc import Iterator, Mapping
from typing import Any

import pytest
import yaml
from jsonschema import Draft202012Validator

from clients.python import backup_client
from contract_tests.target import answer_checks, openapi
from contract_tests.target.openapi import LIMITS, SPEC, resolved
from server import bounds
from server_tests.this_server import problems

PROSE: str = SPEC["info"]["description"]
PROBLEMS: dict[str, tuple[int, str]] = problems()

UNSIGNED = {"400", "408", "413", "431", "500", "503"}
SIGNED = UNSIGNED | {"401", "403", "429"}
UPLOADS = SIGNED | {"409", "415", "422", "507"}
OPERATIONS = {  # method, path, security, statuses
    "registerUser": ("POST", "/api/register", "user", SIGNED | {"200", "201", "409", "507"}),
    "storeBackup": ("POST", "/api/backup", "user", UPLOADS | {"200", "201"}),
    "fetchBackup": ("GET", "/api/backup", "user", SIGNED | {"200", "304", "404"}),
    "listBackupVersions": ("GET", "/api/backup/versions", "user", SIGNED | {"200"}),
    "fetchBackupVersion": ("GET", "/api/backup/versions/{version}", "user", SIGNED | {"200", "304", "404"}),
    "changeStorageKey": ("PUT", "/api/user/storage-key", "user", UPLOADS | {"200"}),
    "deleteUser": ("DELETE", "/api/user", "user", SIGNED | {"204"}),
    "getHealth": ("GET", "/health", "nothing", UNSIGNED | {"200"}),
    "getAdminStats": ("GET", "/admin/stats", "admin", UNSIGNED | {"200", "401", "404"}),
    "getOpenapiYaml": ("GET", "/openapi.yaml", "nothing", UNSIGNED - {"503"} | {"200"}),
    "getOpenapiJson": ("GET", "/openapi.json", "nothing", UNSIGNED - {"503"} | {"200"}),
}
SECURITY: dict[str, list[Any]] = {
    "user": [{"appSignature": [], "userCredentials": []}],  # both are needed, not one of the two
    "admin": [{"adminKey": []}],
    "nothing": [],
}


def test_operations():
    assert OPERATIONS.keys() == openapi.OPERATIONS.keys()
    assert len(openapi.OPERATIONS) == sum(
        method in openapi.METHODS for item in SPEC["paths"].values() for method in item
    )


@pytest.mark.parametrize("operation_id", OPERATIONS)
def test_operation(operation_id):
    method, path, security, statuses = OPERATIONS[operation_id]
    operation = SPEC["paths"][path][method.lower()]
    assert operation["operationId"] == operation_id
    assert operation["security"] == SECURITY[security]
    assert operation["responses"].keys() == statuses | {"default"}
    has_body = "415" in statuses
    assert ("requestBody" in operation) == has_body
    parameters = [(parameter["in"], parameter["name"]) for parameter in operation.get("parameters", [])]
    assert parameters == [("path", name) for name in re.findall(r"{(\w+)}", path)]


def test_security_schemes():
    assert SPEC["components"]["securitySchemes"].keys() == {"appSignature", "userCredentials", "adminKey"}


# ---- Problems ----------------------------------------------------------------------------------------------


def problem_examples(node: Any) -> Iterator[Mapping[str, Any]]:
    """Yield each example of a problem in the document."""
    if isinstance(node, Mapping):
        if "code" in node and "title" in node and "detail" in node and isinstance(node["code"], str):
            yield node
        for value in node.values():
            yield from problem_examples(value)
    elif isinstance(node, list):
        for value in node:
            yield from problem_examples(value)


def test_the_code_has_exactly_the_problems_of_the_spec():
    schema = SPEC["components"]["schemas"]["ProblemCode"]
    in_schema = schema["examples"]
    assert re.findall("`([a-z0-9_]+)`", schema["description"]) == in_schema
    in_prose = re.findall(r"^\| (\d{3}) \| `(\w+)` \| .+ \|$", PROSE, re.MULTILINE)
    in_code = [(status, code) for code, (status, _) in PROBLEMS.items()]
    assert len(set(in_schema)) == len(in_schema)
    assert set(in_schema) == set(PROBLEMS)
    assert sorted((int(status), code) for status, code in in_prose) == sorted(in_code)


def test_each_problem_has_an_example_that_is_what_the_code_says():
    seen = set()
    for example in problem_examples(resolved(SPEC["components"]["responses"])):
        code = example["code"]
        assert (example["status"], example["title"]) == PROBLEMS[code]
        assert example["type"].endswith(f"/#{code}")
        seen.add(code)
    assert seen == set(PROBLEMS)


def test_a_problem_is_shown_under_its_status():
    shown: dict[str, set[str]] = {}
    for operation in openapi.OPERATIONS.values():
        for status, response in operation.responses.items():
            for example in problem_examples(response):
                assert status in (str(example["status"]), "default")
                shown.setdefault(example["code"], set()).add(operation.id)
    users = {name for name, (_, _, security, _) in OPERATIONS.items() if security == "user"}
    uploads = {"storeBackup", "changeStorageKey"}
    fetches = {"fetchBackup", "fetchBackupVersion"}
    assert shown == {code: set(OPERATIONS) for code in PROBLEMS} | {
        "app_outdated": users,
        "digest_mismatch": users,
        "signature_missing": users,
        "signature_invalid": users,
        "signature_expired": users,
        "credentials_invalid": users,
        "admin_key_invalid": {"getAdminStats"},
        "no_backup": {"fetchBackup"},
        "no_such_version": {"fetchBackupVersion"},
        "username_taken": {"registerUser"},
        "recently_deleted": {"registerUser"},
        "version_conflict": uploads,
        "unsupported_media_type": uploads,
        "validation_failed": uploads,
        "rate_limited": users,
        "account_damaged": users,
        "backup_damaged": fetches,
        "unavailable": set(OPERATIONS) - {"getOpenapiYaml", "getOpenapiJson"},
        "storage_full": uploads | {"registerUser"},
    }


# ---- Examples ----------------------------------------------------------------------------------------------


def media_types(node: Any, at: str = "") -> Iterator[tuple[str, Mapping[str, Any]]]:
    """Yield each media type object, parameter and header, which are what has a schema, and its place."""
    if isinstance(node, Mapping):
        if isinstance(node.get("schema"), Mapping):
            yield at, node
        for key, value in node.items():
            yield from media_types(value, f"{at}/{key}")
    elif isinstance(node, list):
        for index, value in enumerate(node):
            yield from media_types(value, f"{at}/{index}")


def schemas(node: Any, at: str = "") -> Iterator[tuple[str, Mapping[str, Any]]]:
    """Yield each schema with examples."""
    if isinstance(node, Mapping):
        if isinstance(node.get("examples"), list):
            yield at, node
        for key, value in node.items():
            yield from schemas(value, f"{at}/{key}")


def validate(schema: Any, value: Any) -> None:
    answer_checks.Validator(schema, format_checker=openapi.FORMATS).validate(value)


def test_examples_fit_their_schemas():
    count = 0
    for at, media_type in media_types(resolved(SPEC)):
        values = [example["value"] for example in media_type.get("examples", {}).values()]
        values += [media_type["example"]] if "example" in media_type else []
        assert values or "application/" not in at, f"{at} has no example"
        for value in values:
            validate(media_type["schema"], value)
            count += 1
    assert count > 100


def test_examples_within_schemas_fit():
    found = list(schemas(resolved(SPEC)))
    for _, schema in found:
        for value in schema["examples"]:
            validate(schema, value)
    assert len(found) > 30


def test_schemas_are_schemas():
    for _, media_type in media_types(resolved(SPEC)):
        Draft202012Validator.check_schema(media_type["schema"])


def test_receipts_in_examples_are_of_their_bytes():
    """Data fits its receipt in each example that has both. The documented upload fits the documented answer."""
    uploads = SPEC["paths"]["/api/backup"]["post"]["requestBody"]["content"]["application/json"]["examples"]
    backup = SPEC["paths"]["/api/backup"]["get"]["responses"]["200"]["content"]["application/json"]["example"]
    blob = base64.b64decode(backup["data"])
    assert (backup["size"], backup["sha256"]) == (len(blob), hashlib.sha256(blob).hexdigest())
    assert uploads["first"]["value"]["data"] == backup["data"]
    assert uploads["next"]["value"]["baseSha256"] == backup["sha256"]
    change = SPEC["paths"]["/api/user/storage-key"]["put"]
    sent = change["requestBody"]["content"]["application/json"]["example"]
    got = change["responses"]["200"]["content"]["application/json"]["example"]
    blob = base64.b64decode(sent["data"])
    assert (got["size"], got["sha256"]) == (len(blob), hashlib.sha256(blob).hexdigest())
    assert sent["baseSha256"] == backup["sha256"]


# ---- Worked examples and limits in the prose -----------------------------------------------------------------


def block(after: str) -> str:
    """Return the first fenced block after this text."""
    return PROSE.partition(after)[2].split("```")[1].strip("\n")


def rows_of(section: str) -> list[list[str]]:
    """Return the cells of each table row in a section of the prose, without the backticks."""
    text = re.split(r"^#{2,3} ", PROSE.partition(f"## {section}\n")[2], flags=re.MULTILINE)[0]
    lines = re.findall(r"^\| (.+) \|$", text, re.MULTILINE)
    return [[cell.replace("`", "") for cell in line.split(" | ")] for line in lines]


def keys_of(derivation: backup_client.Derivation) -> backup_client.Keys:
    return backup_client.derive_keys("alex", "correct horse battery staple", derivation)


def test_the_worked_derivation():
    keys = keys_of(backup_client.V1)
    shown = dict(row for row in rows_of("Keys") if len(row) == 2 and "SHA256" not in row[1] and "SHA-256" not in row[1])
    assert shown == {
        "value": "how to derive it",
        "userId": keys.user_id,
        "master key": keys.master_key.hex(),
        "storageKey": keys.storage_key,
        "encryption key": keys.encryption_key.hex(),
        "recovery code": backup_client.recovery_code(keys),
    }


def test_the_worked_example_of_another_derivation():
    invented = backup_client.Derivation("v2", 1_200_000, "dailyreps/v2/storage-key", "dailyreps/v2/encryption-key")
    keys, newer = keys_of(backup_client.V1), keys_of(invented)
    assert newer.user_id == keys.user_id
    assert rows_of("Other derivations")[1:5] == [
        ["userId", f"{keys.user_id[:8]}…", "the same"],
        ["master key", f"{keys.master_key.hex()[:8]}…", newer.master_key.hex()],
        ["storageKey", f"{keys.storage_key[:8]}…", newer.storage_key],
        ["encryption key", f"{keys.encryption_key.hex()[:8]}…", newer.encryption_key.hex()],
    ]


def test_the_worked_blobs():
    keys = keys_of(backup_client.V1)
    first = backup_client.encrypt(keys, b'{"workouts":[]}', sequence=1, nonce=bytes(range(12)))
    base = hashlib.sha256(first).hexdigest()
    second = backup_client.encrypt(
        keys, b'{"workouts":["squat"]}', sequence=2, base_sha256=base, nonce=bytes(range(16, 28))
    )
    shown = [block("no base, nonce `000102030405060708090a0b`:"), block("nonce `101112131415161718191a1b`:")]
    assert shown == [base64.b64encode(blob).decode() for blob in (first, second)]
    uploads = SPEC["paths"]["/api/backup"]["post"]["requestBody"]["content"]["application/json"]["examples"]
    assert shown == [uploads[name]["value"]["data"] for name in ("first", "next")]
    header = [int(row[0]) for row in rows_of("The blob") if row[0].isdigit()]
    assert header == [1, 8, 32, backup_client.NONCE_BYTES, backup_client.TAG_BYTES]
    overhead = sum(header)
    assert f"A log of up to {openapi.MAX_DECODED_BYTES - overhead:,} bytes fits" in PROSE
    assert f"nonce and tag take {overhead}" in PROSE


def test_the_cost_of_guessing_is_computed():
    """Fifteen thousand guesses a second, as the text says: ten million of them, and four words of 7,776."""
    guesses_a_second = 15_000
    assert "some 15,000 a second" in PROSE
    assert round(10_000_000 / guesses_a_second / 60) == 11 and "eleven minutes" in PROSE
    possibilities = 7776**4
    assert f"{possibilities / 1e15:.1f}" == "3.7" and "3.7\nquadrillion" in PROSE
    assert round(possibilities / guesses_a_second / (365.25 * 86400), -2) == 7700 and "7,700 years" in PROSE


def test_the_worked_signature():
    secret, created = "an-example-secret-for-the-documentation", 1795510800  # 2026-11-24T09:00:00Z
    assert f"at 2026-11-24T09:00:00Z with the secret\n`{secret}` and keyid `app`" in PROSE
    keys = backup_client.derive_keys("alex", "correct horse battery staple")
    body = block("exactly as they will be sent:").encode()
    authorization = backup_client.authorization(keys.user_id, keys.storage_key)
    params = backup_client.signature_params("app", created)
    digest = backup_client.content_digest(body)
    headers = backup_client.sign("POST", "/api/backup", body, authorization, secret=secret, created=created)
    assert f"`{params}`" in PROSE
    assert f"`{backup_client.content_digest(b'')}`" in PROSE
    assert block("path of the request target as sent.") == backup_client.signature_base(
        "POST", "/api/backup", authorization, digest, params
    )
    assert f"`{headers['Signature'].removeprefix('app=:').removesuffix(':')}`" in PROSE
    assert block("Send the four headers:").splitlines() == [f"{name}: {value}" for name, value in headers.items()]


def test_limits_in_the_prose_are_the_limits_that_the_server_reads():
    prose = " ".join(PROSE.split())
    configurable = SPEC["x-configurable-limits"]
    last, days, weeks, months = configurable["KEEP_VERSIONS"].split(",")
    # `created` may be ahead as well as behind, and then the body takes its time.
    acts = 2 * LIMITS["signatureSkewSeconds"] + LIMITS["requestBodySeconds"]
    for sentence in [
        f"A backup is 1 to {openapi.MAX_DECODED_BYTES:,} bytes",
        f"A request body may have at most {LIMITS['requestBodyBytes']:,} bytes",
        f"may differ from the server's clock by {LIMITS['signatureSkewSeconds']} seconds either way",
        f"For {LIMITS['deletedUserSeconds']} seconds, longer than any signature can act",
        f"works {LIMITS['deletedUserSeconds']} seconds after the last attempt",
        f"no earlier than {LIMITS['deletedUserSeconds']} seconds after your last attempt",
        f"From the head on, a request has {LIMITS['requestBodySeconds']} seconds",
        f"If nothing of a body arrives for {bounds.SILENT_SECONDS} seconds",
        f"If a body has more than {bounds.LINGER_BYTES // bounds.MIB} MiB, the connection may end",
        f"can therefore act for up to {acts} seconds",
        f"the empty line that ends them, may have at most {LIMITS['requestHeaderBytes']:,} bytes",
        f"{configurable['BACKUPS_PER_HOUR']} new versions an hour, {configurable['BACKUPS_PER_DAY']} a day",
        f"{configurable['KEY_CHANGES_PER_HOUR']} key changes an hour, {configurable['KEY_CHANGES_PER_DAY']} a day",
        f"{configurable['FAILED_CREDENTIALS_PER_ACCOUNT_PER_DAY']} failed credentials of a `userId` in 24 hours",
        f"**known** to an account for {LIMITS['knownAddressDays']} days",
        f"An account has at most {LIMITS['knownAddresses']} known addresses",
        f"{configurable['REGISTRATIONS_PER_HOUR']} accounts created an hour",
        f"{configurable['FAILED_CREDENTIALS_PER_5_MINUTES']} failed credentials in 5 minutes",
        f"the last {last} versions and the newest version of each of the last {days} UTC days, {weeks} ISO weeks"
        f" and {months} months",
    ]:
        assert sentence in prose
    assert LIMITS["newAddressAttempts"] == 2 and "The first two attempts in 24 hours are compared" in prose
    # No replay may act for longer than the reservation lasts.
    assert LIMITS["deletedUserSeconds"] > acts
    schemas = SPEC["components"]["schemas"]
    assert schemas["Size"]["maximum"] > openapi.MAX_DECODED_BYTES  # a later version may allow larger ones
    # A text that is too long for the schema would get 422, but it must get 413.
    assert schemas["BackupData"]["maxLength"] >= LIMITS["requestBodyBytes"]


# ---- What a generated client needs ---------------------------------------------------------------------------


def test_schemas_suit_a_generated_client():
    """Responses accept new members. No member is nullable. Base64 is always declared, with its pattern."""
    requests = {"BackupUpload", "StorageKeyChange"}
    for name, schema in SPEC["components"]["schemas"].items():
        assert ("additionalProperties" in schema) == (name in requests), name
    text = openapi.SPEC_BYTES.decode()
    assert "null'" not in text and "nullable" not in text
    base64_schemas = {
        name: schema
        for name, schema in SPEC["components"]["schemas"].items()
        if "contentEncoding" in schema or schema.get("format") == "byte"
    }
    assert base64_schemas.keys() == {"BackupData", "StoredData"}
    for schema in base64_schemas.values():
        assert (schema["contentEncoding"], schema["format"]) == ("base64", "byte")
    assert base64_schemas["BackupData"]["pattern"] == (
        "^(?:[A-Za-z0-9+/]{4})*(?:[A-Za-z0-9+/][AQgw]==|[A-Za-z0-9+/]{2}[AEIMQUYcgkosw048]=)?$"
    )
    # A generated client may hold the bytes against them.
    assert not base64_schemas["StoredData"].keys() & {"pattern", "minLength"}


def test_no_anchor_and_no_alias():
    """Some generators (ogen) do not read YAML's anchors."""
    marked = [event for event in yaml.parse(openapi.SPEC_BYTES, yaml.CSafeLoader) if getattr(event, "anchor", None)]
    assert [(event.anchor, event.start_mark.line + 1) for event in marked] == []
