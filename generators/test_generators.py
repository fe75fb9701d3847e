"""Generators of clients read openapi.yaml as it is, without an option that loosens anything.

What they make compiles, and it lives a whole life with a real server.

`tox run -e generators` installs the generators and runs these tests. README.md says what came of it. The last tests put
constructs into copies of openapi.yaml that these generators cannot read, so that each check has something to find.
"""

import functools
import hashlib
import importlib
import json
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

from contract_tests.suite.outcomes import not_run
from contract_tests.target.openapi import SPEC, SPEC_PATH
from contract_tests.target.target import Target
from server_tests.serve import tox

HERE = Path(__file__).resolve().parent
TEXT = SPEC_PATH.read_text()
NODE_MODULES = HERE / "typescript/node_modules"
JARS = HERE / "java/jars"


# Where each client is put, if not in a folder of its name.
FOLDERS = {
    "go": "go/api/openapi",
    "hey-api": "typescript/hey-api",
    "oapi-codegen": "go/api/oapi",
    "ogen": "go/api/ogen",
    "openapi-typescript": "typescript/openapi-typescript",
    "orval": "typescript/orval",
    "typescript-fetch": "typescript/typescript-fetch",
}
JAVA = "src/main/java/org/openapitools/client/model"
KOTLIN = "src/main/kotlin/org/openapitools/client/models"
SWIFT = "Sources/OpenAPIClient/Models"
# For each client: the file with the Problem, and how it declares a code, which is a text.
CODE = {
    "csharp": ("src/Org.OpenAPITools/Model/Problem.cs", r"public string Code \{ get; set; \}"),
    "go": ("model_problem.go", r"Code string `"),
    "java": (f"{JAVA}/Problem.java", r"private String code;"),
    "kotlin": (f"{KOTLIN}/Problem.kt", r"val code: kotlin\.String,"),
    "python": ("openapi_client/models/problem.py", r"code: Annotated\[str, "),
    "rust": ("src/models/problem.rs", r"pub code: String,"),
    "swift6": (f"{SWIFT}/Problem.swift", r"public var code: String$"),
    "typescript-fetch": ("models/Problem.ts", r"code: string;"),
    "hey-api": ("types.gen.ts", r"export type ProblemCode = string;"),
    "oapi-codegen": ("oapi.go", r"type ProblemCode = string$"),
    "ogen": ("oas_schemas_gen.go", r"type ProblemCode string$"),
    "openapi-typescript": ("openapi.d.ts", r"ProblemCode: string;"),
    "orval": ("orval.ts", r"export type ProblemCode = string;"),
}
# And the file with the BackupUpload, and how it declares data.
DATA = {
    "csharp": ("src/Org.OpenAPITools/Model/BackupUpload.cs", r"public byte\[\] Data \{ get; set; \}"),
    "go": ("model_backup_upload.go", r"Data string `"),
    "java": (f"{JAVA}/BackupUpload.java", r"private byte\[\] data;"),
    "kotlin": (f"{KOTLIN}/BackupUpload.kt", r"val `data`: kotlin\.ByteArray,"),
    "python": (
        "openapi_client/models/backup_upload.py",
        r"data: Union\[Annotated\[bytes, .+\], Annotated\[str, ",
    ),
    "rust": ("src/models/backup_upload.rs", r"pub data: Vec<u8>,"),
    "swift6": (f"{SWIFT}/BackupUpload.swift", r"public var data: Data$"),
    "typescript-fetch": ("models/BackupUpload.ts", r"data: string;"),
    "hey-api": ("types.gen.ts", r"export type BackupData = string;"),
    "oapi-codegen": ("oapi.go", r"type BackupData = \[\]byte$"),
    "ogen": ("oas_schemas_gen.go", r"type BackupData \[\]byte$"),
    "openapi-typescript": ("openapi.d.ts", r"BackupData: string;"),
    "orval": ("orval.ts", r"export type BackupData = string;"),
}
# Those that are no part of openapi-generator have commands of their own, with {out} and {spec}.
COMMANDS = {
    "hey-api": "openapi-ts -i {spec} -o {out}",
    "oapi-codegen": "oapi-codegen -generate types,client -package oapi -o {out}/oapi.go {spec}",
    "ogen": "ogen --package ogen --target {out} --clean {spec}",
    "openapi-typescript": "openapi-typescript {spec} -o {out}/openapi.d.ts",
    "orval": "orval --input {spec} --output {out}/orval.ts --client fetch --fail-on-warnings",
}
# What openapi-generator is told besides. Kotlin's default, moshi, sends a ByteArray as it is, not in base64.
OPTIONS = {
    "go": {"withGoMod": "false"},
    "java": {"library": "native"},
    "kotlin": {"serializationLibrary": "jackson"},
    "rust": {"packageVersion": "0.0.0"},  # as in rust/Cargo.toml
}


def run(*command: object, cwd: Path, **environ: str) -> str:
    """Run a command, which must succeed. Return what it wrote to its output."""
    name, *arguments = map(str, command)
    path = shutil.which(name, path=f"{os.environ['PATH']}{os.pathsep}{NODE_MODULES / '.bin'}")
    assert path, f"{name} is missing: `{tox()} run -e generators` installs it"
    done = subprocess.run([path, *arguments], cwd=cwd, env=os.environ | environ, capture_output=True, text=True)
    assert done.returncode == 0, f"{done.stdout}\n{done.stderr}"[-10_000:]
    return done.stdout


def need(command: str, what: str) -> None:
    """End the test as not run if this machine does not have a command that no registry brings."""
    if not shutil.which(command):
        not_run(f"needs {command} ({what})")


# ---- What they make ------------------------------------------------------------------------------------------


def folder(directory: Path, name: str) -> Path:
    return directory / FOLDERS.get(name, name)


def generate(spec: Path, directory: Path, *names: str) -> None:
    """Generate clients into their folders. One process makes those of openapi-generator, as fast as three alone."""
    batch = [name for name in names if name not in COMMANDS]
    for name in batch:
        settings = {"generatorName": name, "inputSpec": str(spec), "outputDir": str(folder(directory, name))}
        settings_and_options = settings | {"additionalProperties": OPTIONS.get(name, {})}
        (directory / f"{name}.yaml").write_text(json.dumps(settings_and_options))
    if batch:
        run("openapi-generator-cli", "batch", "--fail-fast", *(f"{name}.yaml" for name in batch), cwd=directory)
    for name in set(names) - set(batch):
        out = folder(directory, name)
        out.mkdir(parents=True)
        run(*(word.format(out=out, spec=spec) for word in COMMANDS[name].split()), cwd=spec.parent)


def declares(directory: Path, name: str, how: dict[str, tuple[str, str]]) -> bool:
    """Return whether a line of the client's file begins with its pattern."""
    file, pattern = how[name]
    return re.search(rf"^\s*{pattern}", (folder(directory, name) / file).read_text(), re.MULTILINE) is not None


@pytest.fixture(scope="module")
def generated(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """Return a function that generates a client from openapi.yaml, once, and returns the folder of all clients.

    In go/ and typescript/ are the programs that use the clients, too.
    """
    directory = tmp_path_factory.mktemp("generated")
    for language in ("go", "typescript"):
        (directory / language).mkdir()
        for source in (HERE / language).iterdir():
            if source.suffix in (".go", ".mod", ".sum", ".ts"):
                shutil.copy(source, directory / language)
    (directory / "typescript/node_modules").symlink_to(NODE_MODULES)
    make_once = functools.cache(lambda *names: generate(SPEC_PATH, directory, *names))
    batch = [name for name in CODE if name not in COMMANDS]

    def make(name: str) -> Path:
        make_once(*([name] if name in COMMANDS else batch))
        return directory

    return make


@pytest.mark.parametrize("name", CODE)
def test_the_code_of_a_problem_is_a_text(generated: Callable[[str], Path], name: str) -> None:
    assert declares(generated(name), name, CODE)


@pytest.mark.parametrize("name", CODE)
def test_the_type_of_data(generated: Callable[[str], Path], name: str) -> None:
    assert declares(generated(name), name, DATA)


# ---- It compiles ---------------------------------------------------------------------------------------------


def tsc(directory: Path, *arguments: str) -> None:
    options = ["--strict", "--target", "es2022", "--types", "node"]
    run("node", NODE_MODULES / "typescript/bin/tsc", *options, *arguments, cwd=directory / "typescript")


def tsc_alone(directory: Path, file: str) -> None:
    tsc(directory, "--noEmit", "--module", "esnext", "--moduleResolution", "bundler", file)


def classpath() -> str:
    """Return the jars that Maven has brought. They must be those that jars.sha256 pins."""
    need("mvn", "Maven, which brings the jars")
    pinned = {name: sha256 for sha256, name in map(str.split, (HERE / "java/jars.sha256").read_text().splitlines())}
    assert {jar.name: hashlib.sha256(jar.read_bytes()).hexdigest() for jar in JARS.glob("*")} == pinned
    return os.pathsep.join(str(JARS / name) for name in pinned)


def javac(directory: Path) -> None:
    need("javac", "a JDK")
    sources = [HERE / "java/Life.java", *(directory / "java/src/main").rglob("*.java")]
    run("javac", "-nowarn", "-cp", classpath(), "-d", "classes", *sources, cwd=directory / "java")


def kotlinc(directory: Path) -> None:
    need("java", "a JDK")
    jars = classpath()
    compiler = [
        "java",
        "-cp",
        jars,
        "org.jetbrains.kotlin.cli.jvm.K2JVMCompiler",
        "-no-stdlib",
        "-no-reflect",
        "-nowarn",
    ]
    run(*compiler, "-classpath", jars, "-d", "classes", "src/main/kotlin", cwd=directory / "kotlin")


def cargo(directory: Path) -> None:
    need("cargo", "Rust")
    shutil.copy(HERE / "rust/Cargo.lock", directory / "rust")
    # The default feature is the TLS of the machine, which needs its headers.
    run("cargo", "check", "--locked", "--offline", "--no-default-features", cwd=directory / "rust")


def swift(directory: Path) -> None:
    need("swift", "Swift 6")
    run("swift", "build", cwd=directory / "swift6")


def go(directory: Path, package: str) -> None:
    run("go", "vet", package, cwd=directory / "go")


COMPILERS: dict[str, Callable[[Path], None]] = {
    "go": functools.partial(go, package="./api/openapi"),
    "java": javac,
    "kotlin": kotlinc,
    "rust": cargo,
    "swift6": swift,
    "typescript-fetch": functools.partial(tsc_alone, file="typescript-fetch/index.ts"),
    "hey-api": functools.partial(tsc_alone, file="hey-api/index.ts"),
    "oapi-codegen": functools.partial(go, package="./api/oapi"),
    "ogen": functools.partial(go, package="./api/ogen"),
    "openapi-typescript": functools.partial(tsc_alone, file="openapi-typescript/openapi.d.ts"),
    "orval": functools.partial(tsc_alone, file="orval/orval.ts"),
}


@pytest.mark.parametrize("name", COMPILERS)
def test_it_compiles(generated: Callable[[str], Path], name: str) -> None:
    COMPILERS[name](generated(name))


# ---- It works ------------------------------------------------------------------------------------------------

FIRST = hashlib.sha256(
    bytes(range(256))
).hexdigest()  # of the first backup: each byte once, which no text encoding spares
LIFE = [  # what each program prints
    "getHealth ok",
    f"document {SPEC['openapi']}",
    "fetchBackup signature_missing",
    "registerUser signature_expired",  # the clock of the device is an hour behind
    "registerUser 201",
    "fetchBackup no_backup",
    "storeBackup 1",
    f"fetchBackup 1 {FIRST}",
    "fetchBackup 304",
    "storeBackup version_conflict",
    "storeBackup 2",
    "listBackupVersions 2 1",
    f"fetchBackupVersion 1 {FIRST}",
    "changeStorageKey 3 2",
    "fetchBackup credentials_invalid",  # with the old key
    f"fetchBackup 3 {FIRST}",
    "deleteUser 204",
    "fetchBackup credentials_invalid",
]


def go_program(directory: Path) -> list[object]:
    run("go", "vet", ".", cwd=directory / "go")
    run("go", "build", "-o", "life", ".", cwd=directory / "go")
    return [directory / "go/life"]


def typescript_program(directory: Path) -> list[object]:
    tsc(directory, "--module", "commonjs", "--moduleResolution", "node10", "--outDir", "js", "life.ts")
    return ["node", directory / "typescript/js/life.js"]


def java_program(directory: Path) -> list[object]:
    javac(directory)
    return ["java", "-cp", f"{classpath()}{os.pathsep}{directory / 'java/classes'}", "Life"]


LIVES: dict[str, tuple[Callable[[Path], list[object]], list[str]]] = {  # how to build a program, and its clients
    "go": (go_program, ["ogen", "oapi-codegen"]),
    "typescript": (typescript_program, ["hey-api"]),
    "java": (java_program, ["java"]),
}


@pytest.mark.parametrize("language, name", [(language, name) for language in LIVES for name in LIVES[language][1]])
def test_a_whole_life(generated: Callable[[str], Path], target: Target, language: str, name: str) -> None:
    build, clients = LIVES[language]
    directory = [generated(client) for client in clients][0]
    user_id, key, new_key = (secrets.token_hex(32) for _ in range(3))
    for credentials in ((user_id, key), (user_id, new_key)):
        target.client(credentials)  # so that the user is deleted when the test ends
    environ = {
        "TARGET_URL": target.base_url,
        "TARGET_USER_ID": user_id,
        "TARGET_STORAGE_KEY": key,
        "TARGET_NEW_KEY": new_key,
        "TARGET_KEYID": target.keyid,
        "TARGET_SECRET": target.secret,
    }
    assert run(*build(directory), name, cwd=directory, **environ).splitlines() == LIFE


@pytest.fixture
def python_client(generated: Callable[[str], Path]) -> Iterator[ModuleType]:
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(generated("python") / "python")
        yield importlib.import_module("openapi_client")


def test_the_generated_python_works(python_client: Any, target: Target) -> None:
    client = python_client.ApiClient(python_client.Configuration(host=target.base_url))
    assert python_client.ServiceApi(client).get_health().status == "ok"
    assert python_client.ServiceApi(client).get_openapi_json().openapi == SPEC["openapi"]
    with pytest.raises(python_client.ApiException) as raised:
        python_client.BackupApi(client).fetch_backup()
    assert raised.value.status == 401
    assert python_client.Problem.from_json(raised.value.body).code == "signature_missing"
    backup = '{"data": "AAH/"}'  # the type says bytes or text; what comes and goes is the text
    assert python_client.BackupUpload.from_json(backup).data == "AAH/"
    assert python_client.BackupUpload.from_json(backup).to_json() == backup


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
PROBLEM_CODE = "    ProblemCode:\n      type: string\n      pattern: ^[a-z0-9_]+$\n      maxLength: 64\n"
EITHER = [
    (
        PROBLEM_CODE,
        "    ProblemCode:\n      anyOf: [{type: string, enum: [not_found]}, {type: string, maxLength: 64}]\n",
    )
]
UNREAD = [("              x-ogen-raw-response: true\n", "")]


@pytest.mark.parametrize(
    "name, replacements, message",
    [
        pytest.param("ogen", ALIAS, "unknown anchor 'moment'", id="ogen, an alias"),
        pytest.param("ogen", EITHER, "complex anyOf", id="ogen, alternatives"),
        pytest.param("ogen", UNREAD, "unsupported content types", id="ogen, YAML"),
        pytest.param(
            "kotlin",
            BODY_IN_A_LINK,
            "requestBody is not of type `string`",
            id="openapi-generator, a body in a link",
        ),
    ],
)
def test_a_construct_that_is_not_read_is_noticed(
    tmp_path: Path, name: str, replacements: list[tuple[str, str]], message: str
) -> None:
    with pytest.raises(AssertionError, match=re.escape(message)):
        generate(changed(tmp_path, *replacements), tmp_path, name)


def test_alternatives_are_noticed(tmp_path: Path) -> None:
    """Of alternatives, openapi-generator makes a type of its own, which is empty."""
    generators = ["kotlin", "rust", "swift6", "typescript-fetch"]
    generate(changed(tmp_path, *EITHER), tmp_path, *generators)
    assert not [name for name in generators if declares(tmp_path, name, CODE)]


def test_data_without_a_format_is_noticed(tmp_path: Path) -> None:
    """Of `contentEncoding` alone, ogen and most of openapi-generator make a text."""
    generators = ["csharp", "java", "kotlin", "ogen", "rust", "swift6"]
    generate(changed(tmp_path, ("      format: byte\n", "")), tmp_path, *generators)
    assert not [name for name in generators if declares(tmp_path, name, DATA)]


# ---- The README ----------------------------------------------------------------------------------------------


def pinned() -> dict[str, str]:
    """Return the version of each generator that tox installs."""
    texts = [
        (HERE / name).read_text() for name in ("../requirements/generators.txt", "go/go.mod", "typescript/package.json")
    ]
    forms = [r"^(openapi-generator)-cli==(\S+)", r"([^/\s]+)(?:/v2)? v(\S+)", r'"(\S+)": "(\S+)"']
    return {
        name: version for text, form in zip(texts, forms, strict=True) for name, version in re.findall(form, text, re.M)
    }


def test_the_readme_is_about_these_clients() -> None:
    rows = [
        [cell.strip() for cell in line.strip("|").split("|")]
        for line in (HERE / "README.md").read_text().splitlines()
        if line.startswith("| `")
    ]
    assert [client.strip("`") for client, *_ in rows] == list(CODE)
    versions = pinned()
    lives = {name for _, clients in LIVES.values() for name in clients}
    for cell, generator, version, data, compiled, life in rows:
        client = cell.strip("`")
        assert version == versions[generator], client
        declared = DATA[client][1]
        assert data.startswith("text" if "str" in declared.lower() else "bytes"), client
        assert (compiled in ("not tried", "needs none")) == (client not in COMPILERS), client
        assert (life == "yes") == (client in lives), client
