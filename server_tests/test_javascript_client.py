"""The JavaScript client works with this server, and its types, README and examples agree with its code."""

import json
import os
import re
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from contract_tests.target.openapi import REPOSITORY
from contract_tests.target.process import ServerProcess
from server_tests.test_devices import NO_LIMITS
from server_tests.test_generated_clients import installed_tools

PACKAGE = REPOSITORY / "clients/javascript"
README = (PACKAGE / "README.md").read_text()
EXAMPLES = sorted((PACKAGE / "examples").glob("*.mjs"))


def node(*command: object, **environ: object) -> str:
    """Run Node, which must succeed. Return what it printed."""
    environment = os.environ | {name: str(value) for name, value in environ.items()}
    done = subprocess.run(["node", *map(str, command)], env=environment, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def server(start_shared_server: Callable[..., ServerProcess]) -> ServerProcess:
    return start_shared_server()


def test_a_whole_life(server: ServerProcess) -> None:
    node(PACKAGE / "test/play.mjs", server.base_url, APP_SECRET_KEY=server.secret)


@pytest.mark.client("client.no-false-alarm", "client.sequence", "client.lost-answer")
def test_an_honest_server_raises_no_alarm(start_server: Callable[..., ServerProcess]) -> None:
    """As the test of this name for the Python device: ten lives, in which two devices do and suffer everything."""
    server = start_server(**NO_LIMITS)
    lived = json.loads(node(PACKAGE / "test/random_lives.mjs", server.base_url, 0, 10, APP_SECRET_KEY=server.secret))
    assert min(lived[event] for event in ("changes", "restores", "junk")) > 1  # the lives were lively


# ---- The README and its examples ---------------------------------------------------------------------------


def test_all_code_of_the_readme_is_in_an_example() -> None:
    blocks = re.findall(r"^```(\w*)\n(.*?)^```$", README, re.MULTILINE | re.DOTALL)
    assert {language for language, _ in blocks} == {"js"}
    for _, code in blocks:
        assert any(code in example.read_text() for example in EXAMPLES), code
    shown = "".join(code for _, code in blocks)
    for example in EXAMPLES:  # most of each is in the README
        lines = example.read_text().splitlines()
        assert sum(f"{line}\n" in shown for line in lines) > len(lines) / 2, example.name


def example(name: str, server: ServerProcess, **more: object) -> list[str]:
    environ = {"BACKUP_URL": server.base_url, "APP_SECRET_KEY": server.secret, **more}
    return node(PACKAGE / "examples" / name, **environ).splitlines()


def test_the_example_of_two_devices(server: ServerProcess) -> None:
    code, *said = example("two_devices.mjs", server)
    assert re.fullmatch("write this down: ([0-9A-Z]{7}-){7}[0-9A-Z]{7}", code)
    assert said == [
        "on the tablet: [ 'Monday: squat' ]",
        "merged: [ 'Monday: squat', 'Tuesday: bench', 'Tuesday: row' ]",
        "version 1 has [ 'Monday: squat' ]",
        "restored: [ 'Monday: squat' ]",
    ]


def test_the_example_of_a_change_of_the_password(server: ServerProcess) -> None:
    refused, code = example("change_password.mjs", server)
    assert refused == "Choose another password: this one is too-common."
    assert re.fullmatch("Your new recovery code: ([0-9A-Z]{7}-){7}[0-9A-Z]{7}", code)


def test_the_example_of_a_state_in_a_file(server: ServerProcess, tmp_path: Path) -> None:
    file = tmp_path / "state"
    assert example("state_in_a_file.mjs", server, STATE_FILE=file) == ["version 1, 1 bytes"]
    assert example("state_in_a_file.mjs", server, STATE_FILE=file) == ["version 2, 2 bytes"]
    assert file.stat().st_mode & 0o77 == 0


def test_the_readme_names_each_call_of_a_device() -> None:
    script = f"""
        const {{ Device }} = await import({json.dumps((PACKAGE / "src/index.mjs").as_uri())})
        console.log(JSON.stringify(Object.getOwnPropertyNames(Device.prototype)))
    """
    calls = set(json.loads(node("--input-type=module", "--eval", script))) - {"constructor"}
    rows = re.search(r"^## Calls\n(.*?)^## ", README, re.MULTILINE | re.DOTALL)[1]
    named = {name for row in re.findall(r"^\| (`.*?) \|", rows, re.MULTILINE) for name in re.findall(r"`(\w+)", row)}
    assert named == calls


# ---- The types ---------------------------------------------------------------------------------------------


def compiler() -> Path:
    return installed_tools() / "typescript/bin/tsc"


def test_the_code_has_the_types_that_the_package_ships(tmp_path: Path) -> None:
    """TypeScript checks the code against its comments, with the strictest settings, and makes the types from them."""
    node(compiler(), "--project", PACKAGE, "--outDir", tmp_path)

    def texts(folder: Path) -> dict[str, str]:
        return {file.name: file.read_text() for file in folder.iterdir()}

    assert texts(tmp_path) == texts(PACKAGE / "types"), "node_modules/.bin/tsc -p clients/javascript makes them again"


def test_an_app_in_typescript_compiles(tmp_path: Path) -> None:
    """It finds the package by its name. What the types forbid does not compile."""
    package = tmp_path / "node_modules/@dailyreps/backup-client"
    shutil.copytree(PACKAGE, package, ignore=shutil.ignore_patterns("node_modules", "test", "examples", "README.md"))
    shutil.copy(PACKAGE / "test/usage.ts", tmp_path)
    (tmp_path / "package.json").write_text('{"type": "module"}')
    options = {"strict": True, "exactOptionalPropertyTypes": True, "noUncheckedIndexedAccess": True, "noEmit": True}
    options |= {"target": "es2022", "lib": ["es2022", "dom"], "types": []}
    config = {"compilerOptions": options | {"module": "nodenext"}, "files": ["usage.ts"]}
    (tmp_path / "tsconfig.json").write_text(json.dumps(config))
    node(compiler(), "--project", tmp_path)


# ---- The package -------------------------------------------------------------------------------------------


def test_the_package_ships_what_it_names() -> None:
    manifest: dict[str, Any] = json.loads((PACKAGE / "package.json").read_text())
    for conditions in manifest["exports"].values():
        assert all((PACKAGE / path).is_file() for path in conditions.values())
    assert {"dependencies", "devDependencies", "peerDependencies"} & manifest.keys() == set()
    assert all((PACKAGE / path).is_dir() for path in manifest["files"])


def imports(file: Path) -> set[str]:
    return set(re.findall(r"""^(?:import|export) .*?from ['"](.*?)['"]""", file.read_text(), re.MULTILINE | re.DOTALL))


def test_the_part_for_keys_knows_nothing_of_http() -> None:
    """Nothing of the package needs Node, or anything but its own modules."""
    sources = {f"./{file.name}": imports(file) for file in (PACKAGE / "src").iterdir()}
    assert all(each in sources for found in sources.values() for each in found)
    reached, ahead = set(), ["./crypto.mjs"]
    while ahead:
        name = ahead.pop()
        reached.add(name)
        ahead += sources[name] - reached
    assert reached == {f"./{name}.mjs" for name in ("crypto", "keys", "blob", "signature", "bytes", "errors")}
    for name in reached:
        assert not re.search(r"\bfetch\(|\bHeaders\b|\bResponse\b|https?://", (PACKAGE / "src" / name).read_text())
