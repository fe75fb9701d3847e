"""The linters find the faults that these tests put into copies of openapi.yaml."""

import atexit
import configparser
import copy
import json
import shlex
import shutil
import subprocess
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
import yaml

from lint.plainly import plain_folder

LINT = Path(__file__).resolve().parent
ROOT = LINT.parent
SPEC = yaml.safe_load((ROOT / "openapi.yaml").read_text())
SPECTRAL_RULES = yaml.safe_load((LINT / "spectral.yaml").read_text())
REDOCLY_RULES = yaml.safe_load((LINT / "redocly.yaml").read_text())

TOX = configparser.ConfigParser(interpolation=None)
TOX.read(ROOT / "tox.ini")
VALIDATOR, REDOCLY, SPECTRAL, _ = map(shlex.split, TOX["testenv:spec"]["commands"].strip().splitlines())

WITH_FOLDER = ExitStack()
FOLDER = WITH_FOLDER.enter_context(plain_folder(ROOT))  # where the commands run
atexit.register(WITH_FOLDER.close)

ABSENT = object()
REGISTER = "/paths/~1api~1register/post"
STORE = "/paths/~1api~1backup/post"
FETCH = "/paths/~1api~1backup/get"
LIST = "/paths/~1api~1backup~1versions/get"
CHANGE = "/paths/~1api~1user~1storage-key/put"
DELETE = "/paths/~1api~1user/delete"
SCHEMAS = "/components/schemas"
HEADERS = "/components/headers"
RESPONSES = "/components/responses"
JSON_BODY = "content/application~1json"
PROBLEM_BODY = "content/application~1problem+json"
A_BODY = SPEC["paths"]["/api/backup"]["post"]["requestBody"]
A_HEADER = {"$ref": "#/components/headers/RateLimit"}
A_PARAMETER = {
    "name": "callback",
    "in": "query",
    "description": "A callback.",
    "schema": {"type": "string", "pattern": "^x$", "maxLength": 1},
    "example": "x",
}


def reference(name: str) -> dict[str, str]:
    return {"$ref": f"#/components/schemas/{name}"}


# For each rule: where (JSON Pointer) a value breaks it, and which value.
REDOCLY_FAULTS: dict[str, list[tuple[str, Any]]] = {
    "struct": [("/info/version", ABSENT)],
    "info-license": [("/info/license", ABSENT)],  # without recommended-strict it would be a warning
    "no-unused-components": [(f"{SCHEMAS}/Unused", {"type": "object"})],
    "operation-description": [(f"{FETCH}/description", ABSENT)],
    "scalar-property-missing-example": [(f"{SCHEMAS}/Health/properties/status/examples", ABSENT)],
    "rule/operation-id-camel-case": [
        (f"{FETCH}/operationId", "fetch_backup"),
        (f"{FETCH}/operationId", "FetchBackup"),
        (f"{FETCH}/operationId", ABSENT),
    ],
}
SPECTRAL_FAULTS: dict[str, list[tuple[str, Any]]] = {
    "oas3-schema": [("/info/version", ABSENT)],
    "oas3-valid-media-example": [(f"{REGISTER}/responses/200/{JSON_BODY}/example", {})],
    "openapi-tags-alphabetical": [("/tags/0/name", "zebra")],  # not a recommended rule: `all` turns it on
    "owasp:api2:2023-read-restricted": [(f"{FETCH}/security", [])],
    "owasp:api2:2023-no-http-basic": [("/components/securitySchemes/adminKey/scheme", "basic")],
    "owasp:api3:2023-no-unevaluatedProperties": [(f"{SCHEMAS}/Receipt/unevaluatedProperties", True)],
    "owasp:api4:2023-string-limit": [(f"{SCHEMAS}/Health/properties/status/maxLength", ABSENT)],
    "owasp:api4:2023-rate-limit-responses-429": [(f"{FETCH}/responses/429", ABSENT)],
    "owasp:api8:2023-define-error-responses-401": [(f"{FETCH}/responses/401", ABSENT)],
    "owasp:api8:2023-define-cors-origin": [(f"{DELETE}/responses/204/headers/Access-Control-Allow-Origin", ABSENT)],
    "no-body-on-get-or-delete": [(f"{FETCH}/requestBody", A_BODY), (f"{DELETE}/requestBody", A_BODY)],
    "no-null": [
        (f"{SCHEMAS}/Size/type", ["integer", "null"]),
        (f"{SCHEMAS}/Backup/properties/data", {"oneOf": [reference("BackupData"), {"type": "null"}]}),
        (f"{SCHEMAS}/ProblemCode/anyOf", [{"type": "null"}]),
        (f"{SCHEMAS}/ProblemCode/const", None),
        (f"{SCHEMAS}/ProblemCode/enum", ["ok", None]),
    ],
    "no-nullable": [(f"{SCHEMAS}/Size/nullable", True)],
    "no-closed-response-object": [
        (f"{SCHEMAS}/Receipt/additionalProperties", False),
        (f"{SCHEMAS}/ValidationError/additionalProperties", False),  # two references down
        (f"{SCHEMAS}/Problem/unevaluatedProperties", False),
    ],
    "base64-is-bytes": [
        (f"{SCHEMAS}/BackupData/contentEncoding", ABSENT),
        (f"{SCHEMAS}/BackupData/contentEncoding", "base64url"),
        (f"{SCHEMAS}/BackupData/format", ABSENT),
        (f"{SCHEMAS}/StoredData/format", ABSENT),
        (f"{SCHEMAS}/StoredData/format", "binary"),
        (f"{SCHEMAS}/Sha256/format", "byte"),
    ],
    "canonical-base64": [
        (f"{SCHEMAS}/BackupData/pattern", ABSENT),
        (f"{SCHEMAS}/BackupData/pattern", "^[A-Za-z0-9+/]+={0,2}$"),
    ],
    "no-pattern-of-bytes": [
        (f"{SCHEMAS}/StoredData/minLength", 4),
        (f"{SCHEMAS}/StoredData/pattern", "^[A-Za-z0-9+/]*=*$"),
    ],
    "declared-statuses": [
        (f"{FETCH}/responses/default", ABSENT),
        (f"{FETCH}/responses/401", ABSENT),
        (f"{FETCH}/responses/403", ABSENT),
        (f"{FETCH}/responses/408", ABSENT),
        (f"{FETCH}/responses/431", ABSENT),
        (f"{FETCH}/responses/4XX", {"$ref": "#/components/responses/OtherProblem"}),
        (f"{LIST}/responses/200", ABSENT),
        (f"{STORE}/responses/415", ABSENT),
        ("/paths/~1admin~1stats/get/responses/404", ABSENT),
    ],
    "property-camel-case": [
        (f"{SCHEMAS}/Receipt/properties/key_version", {"type": "integer"}),
        (f"{SCHEMAS}/BackupUpload/properties/BaseSha256", {"type": "string"}),
    ],
    "each-body-has-an-example": [
        (f"{FETCH}/responses/200/{JSON_BODY}/example", ABSENT),
        (f"{CHANGE}/requestBody/{JSON_BODY}/example", ABSENT),
        (f"{RESPONSES}/NoBackup/{PROBLEM_BODY}/examples", ABSENT),
        (f"{RESPONSES}/NoBackup/{PROBLEM_BODY}/examples", {}),
        ("/paths/~1api~1backup~1versions~1{version}/get/parameters/0/example", ABSENT),
    ],
    "headers-of-every-answer": [
        (f"{DELETE}/responses/204/headers", ABSENT),
        (f"{RESPONSES}/OtherProblem/headers/X-Request-Id", ABSENT),
        (f"{RESPONSES}/NotModified/headers/Cache-Control", ABSENT),
    ],
    "challenge-with-401": [(f"{RESPONSES}/Unauthorized/headers/WWW-Authenticate", ABSENT)],
    "rate-limit-of-uploads": [
        (f"{STORE}/responses/200/headers/RateLimit", ABSENT),
        (f"{CHANGE}/responses/200/headers/RateLimit-Policy", ABSENT),
        (f"{RESPONSES}/TooManyUploads/headers", ABSENT),
        (f"{HEADERS}/RateLimit-Policy/x-always-sent", ABSENT),
    ],
    "no-required-header": [
        (f"{HEADERS}/X-Request-Id/required", True),
        (f"{RESPONSES}/AdminUnauthorized/headers/WWW-Authenticate/required", True),
    ],
    "no-alternatives": [
        (f"{SCHEMAS}/ProblemCode/anyOf", [{"type": "string"}]),
        (f"{SCHEMAS}/Backup/properties/data", {"oneOf": [reference("BackupData"), reference("Sha256")]}),
    ],
    "no-body-in-a-link": [
        (f"{REGISTER}/responses/201/links/storeBackup/requestBody", {"data": "AA=="}),
    ],
    "no-other-rate-limit": [
        (f"{DELETE}/responses/204/headers/RateLimit", A_HEADER),
        (f"{LIST}/responses/200/headers/X-RateLimit-Limit", A_HEADER),
        (f"{RESPONSES}/VersionConflict/headers/RateLimit", A_HEADER),
    ],
}
# One fault for each command. For Spectral also a fault that it reports only as information.
FAILING = [
    (VALIDATOR, "/info/version", ABSENT),
    (REDOCLY, "/info/license", ABSENT),
    (SPECTRAL, "/tags/0/name", "zebra"),
    (SPECTRAL, f"{LIST}/parameters", [A_PARAMETER]),
]


def with_fault(pointer: str, value: Any, spec: Any = SPEC) -> Any:
    """Return a copy of the spec with `value` at this JSON Pointer (RFC 6901); ABSENT removes what is there."""
    spec = copy.deepcopy(spec)
    *steps, last = [step.replace("~1", "/").replace("~0", "~") for step in pointer.split("/")[1:]]
    at = spec
    for step in steps:
        at = at[int(step)] if isinstance(at, list) else at[step]
    if isinstance(at, list):
        at[int(last)] = value
    elif value is ABSENT:
        del at[last]
    else:
        at[last] = value
    return spec


def write(spec: Any, directory: Path) -> Path:
    """Write a copy into a new directory, under the name that the linters' exceptions use. (JSON is YAML.)"""
    directory.mkdir()
    path = directory / "openapi.yaml"
    path.write_text(json.dumps(spec))
    return path


def run(command: list[str], *paths: Path) -> subprocess.CompletedProcess[str]:
    """Run a command of tox.ini in the directory where tox runs it, on these files instead of openapi.yaml."""
    at = command.index("openapi.yaml")
    command = [*command[:at], *map(str, paths), *command[at + 1 :]]
    return subprocess.run(command, cwd=FOLDER, capture_output=True, text=True, check=False)


def redocly(*paths: Path) -> Iterator[tuple[Path, str, str]]:
    """Yield the file, the rule and the JSON Pointer of each finding of Redocly."""
    rest = run([*REDOCLY, "--format", "json", "--max-problems", "1000"], *paths).stdout
    while rest:  # one document for each file
        report, end = json.JSONDecoder().raw_decode(rest)
        rest = rest[end:].lstrip()
        for problem in report["problems"]:
            location = problem["location"][0]
            yield (
                (FOLDER / location["source"]["ref"]).resolve(),
                problem["ruleId"],
                location["pointer"].removeprefix("#"),
            )


def spectral(*paths: Path, ruleset: str = "lint/spectral.yaml") -> Iterator[tuple[Path, str, str]]:
    """Yield the file, the rule and the JSON Pointer of each finding of Spectral."""
    command = [ruleset if word == "lint/spectral.yaml" else word for word in SPECTRAL]
    for finding in json.loads(run([*command, "--format", "json", "--quiet"], *paths).stdout):
        steps = [str(step).replace("~", "~0").replace("/", "~1") for step in finding["path"]]
        yield Path(finding["source"]), finding["code"], "".join(f"/{step}" for step in steps)


Fault = tuple[str, str, Any]  # the rule that finds it, where it is, and the value there


def in_few_copies(faults: list[Fault]) -> list[list[Fault]]:
    """Say which faults to put into one copy: those in different operations, schemas or other parts.

    There, each is told from the others by the pointer of its finding.
    """
    copies: list[dict[tuple[str, ...], Fault]] = []  # the faults by the part that they are in
    for fault in faults:
        part = tuple(fault[1].split("/")[:4])
        for others in copies:
            if part not in others:
                others[part] = fault
                break
        else:
            copies.append({part: fault})
    return [list(others.values()) for others in copies]


def is_near(found: str, fault: str) -> bool:
    """Return whether a finding is where a fault is, or around it, or inside it."""
    return f"{fault}/".startswith(f"{found}/") or f"{found}/".startswith(f"{fault}/")


@pytest.mark.parametrize(("linter", "faults"), [(redocly, REDOCLY_FAULTS), (spectral, SPECTRAL_FAULTS)])
def test_each_fault_is_found(tmp_path, linter, faults):
    copies = in_few_copies([(rule, pointer, value) for rule, pairs in faults.items() for pointer, value in pairs])
    directory = tmp_path.resolve()
    files: dict[Path, list[Fault]] = {write(SPEC, directory / "sound"): []}
    for number, cases in enumerate(copies):
        spec = SPEC
        for _, pointer, value in cases:
            spec = with_fault(pointer, value, spec)
        files[write(spec, directory / str(number))] = cases
    with ThreadPoolExecutor() as pool:  # a linter needs one CPU, and half a second per copy
        runs = pool.map(lambda paths: list(linter(*paths)), [list(files)[::2], list(files)[1::2]])
        found = [finding for findings in runs for finding in findings]
    for file, cases in files.items():
        places = [(rule, pointer) for path, rule, pointer in found if path == file]
        missed = [
            (rule, pointer)
            for rule, pointer, _ in cases
            if not any(name == rule and is_near(at, pointer) for name, at in places)
        ]
        assert not missed
        assert cases or not places  # the sound one


def test_each_rule_of_our_own_is_put_to_the_test():
    assert REDOCLY_RULES["rules"].keys() <= REDOCLY_FAULTS.keys()
    ours = {rule for rule, definition in SPECTRAL_RULES["rules"].items() if definition != "off"}
    assert ours <= SPECTRAL_FAULTS.keys()


@pytest.mark.parametrize(("command", "pointer", "value"), FAILING)
def test_the_commands_of_tox_fail_at_a_fault(tmp_path, command, pointer, value):
    assert run(command, write(with_fault(pointer, value), tmp_path / "faulty")).returncode == 1


@pytest.mark.parametrize("command", [VALIDATOR, REDOCLY, SPECTRAL])
def test_the_commands_of_tox_fail_without_the_file_and_pass_with_it(tmp_path, command):
    paths = [write(SPEC, tmp_path / "sound"), tmp_path / "missing" / "openapi.yaml"]
    with ThreadPoolExecutor() as pool:
        sound, missing = pool.map(lambda path: run(command, path).returncode, paths)
    assert sound == 0
    assert missing != 0


def test_each_exception_is_needed_and_there_is_no_other(tmp_path):
    """Without the exceptions, the rulesets find exactly the places that the exceptions name."""
    rules = SPECTRAL_RULES["rules"]
    switched_off = {rule for rule in rules if rules[rule] == "off"}
    assert switched_off == {"owasp:api4:2023-rate-limit"}  # two of our own replace it

    excepted = set()
    for override in SPECTRAL_RULES["overrides"]:
        assert override.keys() == {"files", "rules"} and set(override["rules"].values()) == {"off"}
        for place in override["files"]:
            name, _, pointer = place.partition("#")
            assert name == "openapi.yaml"
            excepted |= {(rule, pointer) for rule in override["rules"]}

    (tmp_path / "node_modules").symlink_to(LINT / "node_modules")
    ruleset = tmp_path / "spectral.json"
    ruleset.write_text(json.dumps({key: value for key, value in SPECTRAL_RULES.items() if key != "overrides"}))
    findings = spectral(FOLDER / "openapi.yaml", ruleset=str(ruleset))
    assert {(rule, pointer) for _, rule, pointer in findings} == excepted


@pytest.mark.parametrize("linter", [REDOCLY, SPECTRAL], ids=["redocly", "spectral"])
def test_the_path_of_a_checkout_may_have_any_characters(tmp_path, linter):
    root = tmp_path / "a#b%41 c"
    shutil.copytree(LINT, root / "lint", ignore=shutil.ignore_patterns("node_modules", "__pycache__"))
    shutil.copy(ROOT / "openapi.yaml", root)
    (root / "lint/node_modules").symlink_to(LINT / "node_modules")
    done = subprocess.run(linter, cwd=root, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
