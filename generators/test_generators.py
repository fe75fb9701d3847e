"""Three generators read openapi.yaml as it is, without an option that loosens anything: openapi-generator, ogen and
oapi-codegen. What they make compiles, and it works against a real server.

`tox run -e generators` installs them and runs these tests. The last tests put constructs into copies of openapi.yaml
that these generators cannot read, so that each check has something to find.
"""

import importlib
import os
import re
import secrets
import shutil
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from contract_tests.target.openapi import REPOSITORY, SPEC, SPEC_PATH
from contract_tests.target.target import Target

HERE = Path(__file__).resolve().parent
TEXT = SPEC_PATH.read_text()

# For each generator of openapi-generator: the file with the Problem, and how it declares a code, which is a text.
DECLARED = {
    "csharp": ("src/Org.OpenAPITools/Model/Problem.cs", r"public string Code \{ get; set; \}"),
    "java": ("src/main/java/org/openapitools/client/model/Problem.java", r"private String code;"),
    "kotlin": ("src/main/kotlin/org/openapitools/client/models/Problem.kt", r"val code: kotlin\.String,"),
    "python": ("openapi_client/models/problem.py", r"code: Annotated\[str, "),
    "rust": ("src/models/problem.rs", r"pub code: String,"),
    "swift6": ("Sources/OpenAPIClient/Models/Problem.swift", r"public var code: String$"),
    "typescript-fetch": ("models/Problem.ts", r"code: string;"),
}


def run(*command: object, cwd: Path, **environ: str) -> str:
    """Run a command, which must succeed. Return what it wrote to its output."""
    name, *arguments = map(str, command)
    path = shutil.which(name)
    assert path, f"{name} is missing: `tox run -e generators` installs it"
    done = subprocess.run([path, *arguments], cwd=cwd, env=os.environ | environ, capture_output=True, text=True)
    assert done.returncode == 0, f"{done.stdout}\n{done.stderr}"[-10_000:]
    return done.stdout


# ---- openapi-generator ---------------------------------------------------------------------------------------


def openapi_generator(spec: Path, directory: Path, generators: list[str]) -> Path:
    """Generate clients into directory/NAME, all in one process, which takes as long as three alone."""
    for name in generators:
        settings = {"generatorName": name, "inputSpec": spec, "outputDir": directory / name}
        (directory / f"{name}.yaml").write_text("".join(f"{key}: {value}\n" for key, value in settings.items()))
    run("openapi-generator-cli", "batch", "--fail-fast", *(f"{name}.yaml" for name in generators), cwd=directory)
    return directory


def declares_text(directory: Path, generator: str) -> bool:
    """Return whether a generated client declares the code of a Problem as a text."""
    file, pattern = DECLARED[generator]
    return re.search(rf"^ *{pattern}", (directory / generator / file).read_text(), re.MULTILINE) is not None


@pytest.fixture(scope="module")
def generated(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of what openapi-generator makes of openapi.yaml."""
    return openapi_generator(SPEC_PATH, tmp_path_factory.mktemp("generated"), list(DECLARED))


@pytest.mark.parametrize("generator", DECLARED)
def test_the_code_of_a_problem_is_a_text(generated: Path, generator: str) -> None:
    assert declares_text(generated, generator)


def test_the_generated_typescript_compiles(generated: Path) -> None:
    options = ["--noEmit", "--strict", "--target", "es2022", "--module", "esnext", "--moduleResolution", "bundler"]
    compiler = REPOSITORY / "server_tests/typescript/node_modules/typescript/bin/tsc"
    assert compiler.exists(), "TypeScript is missing: `npm ci --prefix server_tests/typescript` installs it"
    run("node", compiler, *options, generated / "typescript-fetch/index.ts", cwd=generated)


@pytest.fixture
def python_client(generated: Path) -> Iterator[ModuleType]:
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(generated / "python")
        yield importlib.import_module("openapi_client")


def test_the_generated_python_works(python_client: Any, target: Target) -> None:
    client = python_client.ApiClient(python_client.Configuration(host=target.base_url))
    assert python_client.ServiceApi(client).get_health().status == "ok"
    assert python_client.ServiceApi(client).get_openapi_json().openapi == SPEC["openapi"]
    with pytest.raises(python_client.ApiException) as raised:
        python_client.BackupApi(client).fetch_backup()
    assert raised.value.status == 401
    assert python_client.Problem.from_json(raised.value.body).code == "signature_missing"


# ---- Go: ogen and oapi-codegen -------------------------------------------------------------------------------


def ogen(spec: Path, directory: Path) -> None:
    """Generate the package ogen in the directory."""
    run("ogen", "--package", "ogen", "--target", directory, "--clean", spec, cwd=spec.parent)


def oapi_codegen(spec: Path, directory: Path) -> None:
    """Generate the package oapi in the directory."""
    directory.mkdir(parents=True)
    file = directory / "oapi.go"
    run("oapi-codegen", "-generate", "types,client", "-package", "oapi", "-o", file, spec, cwd=spec.parent)


@pytest.fixture(scope="module")
def go_clients(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A compiled program that uses both generated clients."""
    directory = tmp_path_factory.mktemp("go")
    for source in (HERE / "go").iterdir():
        if source.is_file():
            shutil.copy(source, directory)
    ogen(SPEC_PATH, directory / "api/ogen")
    oapi_codegen(SPEC_PATH, directory / "api/oapi")
    run("go", "vet", "./...", cwd=directory)
    run("go", "build", "-o", "clients", ".", cwd=directory)
    return directory / "clients"


@pytest.mark.parametrize("client", ["ogen", "oapi"])
def test_a_go_client_does_a_whole_cycle(go_clients: Path, target: Target, client: str) -> None:
    credentials = (secrets.token_hex(32), secrets.token_hex(32))
    target.client(credentials)  # so that the user is deleted when the test ends
    environ = {
        "TARGET_URL": target.base_url,
        "TARGET_USER_ID": credentials[0],
        "TARGET_STORAGE_KEY": credentials[1],
        "TARGET_KEYID": target.keyid,
        "TARGET_SECRET": target.secret,
    }
    decoded = run(go_clients, client, cwd=go_clients.parent, **environ).splitlines()
    assert decoded == ["ok", SPEC["openapi"], "signature_missing", "no_backup", "1", "an encrypted log"]


# ---- What they cannot read -----------------------------------------------------------------------------------


def changed(directory: Path, *replacements: tuple[str, str]) -> Path:
    """Write a copy of openapi.yaml with the first match of each text replaced. Return its path."""
    text = TEXT
    for old, new in replacements:
        assert old in text
        text = text.replace(old, new, 1)
    (directory / "openapi.yaml").write_text(text)
    return directory / "openapi.yaml"


CREATED = "{createdAt: '2026-11-24T09:00:00Z'}"
ALIAS = [(CREATED, "{createdAt: &moment '2026-11-24T09:00:00Z'}"), (CREATED, "{createdAt: *moment}")]
STORE = "description: Store the first backup, without `baseSha256`.\n"
BODY_IN_A_LINK = [(STORE, f"{STORE}              requestBody: {{data: AA==}}\n")]
CODE = "    ProblemCode:\n      type: string\n      pattern: ^[a-z0-9_]+$\n      maxLength: 64\n"
EITHER = [(CODE, "    ProblemCode:\n      anyOf: [{type: string, enum: [not_found]}, {type: string, maxLength: 64}]\n")]
UNREAD = [("              x-ogen-raw-response: true\n", "")]


@pytest.mark.parametrize(
    "generate, replacements, message",
    [
        pytest.param(ogen, ALIAS, "unknown anchor 'moment'", id="ogen, an alias"),
        pytest.param(ogen, EITHER, "complex anyOf", id="ogen, alternatives"),
        pytest.param(ogen, UNREAD, "unsupported content types", id="ogen, YAML"),
        pytest.param(
            lambda spec, directory: openapi_generator(spec, directory, ["kotlin"]),
            BODY_IN_A_LINK,
            "requestBody is not of type `string`",
            id="openapi-generator, a body in a link",
        ),
    ],
)
def test_a_construct_that_is_not_read_is_noticed(
    tmp_path: Path, generate: Callable[[Path, Path], Any], replacements: list[tuple[str, str]], message: str
) -> None:
    spec = changed(tmp_path, *replacements)
    (tmp_path / "out").mkdir()
    with pytest.raises(AssertionError, match=re.escape(message)):
        generate(spec, tmp_path / "out")


def test_alternatives_are_noticed(tmp_path: Path) -> None:
    """Of alternatives, openapi-generator makes a type of its own, which is empty."""
    generators = ["kotlin", "rust", "swift6", "typescript-fetch"]
    openapi_generator(changed(tmp_path, *EITHER), tmp_path, generators)
    assert not [name for name in generators if declares_text(tmp_path, name)]
