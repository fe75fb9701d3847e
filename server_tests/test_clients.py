"""What the clients have in common: the table of clients/README.md, the sentences for a person, the Python example."""

import json
import os
import re
import subprocess
import sys
from collections.abc import Callable
from typing import Any

import pytest

from clients.python import backup_client, device
from contract_tests.target.openapi import REPOSITORY
from contract_tests.target.process import ServerProcess

CLIENTS = REPOSITORY / "clients"
TABLE = re.search(r"^## What each client has\n(.*?)^All leave", (CLIENTS / "README.md").read_text(), re.M | re.S)
assert TABLE
ROWS = [[cell.strip() for cell in row.strip("|").split("|")] for row in TABLE[1].splitlines() if row.startswith("|")]
HEADER, _, *CAPABILITIES = ROWS
OF_THE_APP = {"tell", "Retry-After"}  # what the app gives to a device, and what the server sends


def javascript(*expressions: str) -> list[Any]:
    """Return the values of expressions in Node. `client` is the package, `answers` its module of that name."""
    script = f"""
        const client = await import({json.dumps((CLIENTS / "javascript/src/index.mjs").as_uri())})
        const answers = await import({json.dumps((CLIENTS / "javascript/src/answers.mjs").as_uri())})
        console.log(JSON.stringify([{", ".join(expressions)}]))
    """
    command = ["node", "--input-type=module", "--eval", script]
    return list(json.loads(subprocess.run(command, capture_output=True, text=True, check=True, timeout=60).stdout))


def named(column: str) -> list[str]:
    cells = [row[HEADER.index(column)] for row in CAPABILITIES]
    return [name for cell in cells for name in re.findall(r"`([^`]+)`", cell) if name not in OF_THE_APP]


def test_the_table_names_what_is_there() -> None:
    assert HEADER == ["", "Swift", "JavaScript", "Python"] and len(CAPABILITIES) > 20
    assert all(all(row[1:]) for row in CAPABILITIES), "each cell says something"
    problem = "new client.ProblemError(500, { code: 'x' }, new Headers())"
    examples = {"ProblemError": problem, "BackupError": "new client.BackupError('a')"}
    looked_up = []
    for name in named("JavaScript"):
        owner, _, member = name.partition(".")
        example = examples.get(owner, f"client.{owner}.prototype")
        looked_up.append(f"{json.dumps(member)} in {example}" if member else f"{json.dumps(owner)} in client")
    assert [name for name, found in zip(named("JavaScript"), javascript(*looked_up), strict=True) if not found] == []
    phone = device.Device(device.State(), lambda keys: pytest.fail(), max)
    error = backup_client.ProblemError("x", 500, {})
    for name in named("Python"):
        owner, _, member = name.partition(".")
        found = getattr(device, owner, None) or getattr(backup_client, owner)
        if member:
            found = {"Device": phone, "ProblemError": error}.get(owner, found)
            assert hasattr(type(found), member) or hasattr(found, member), name


def test_the_devices_have_the_same_calls() -> None:
    def snake_case(name: str) -> str:
        return re.sub("[A-Z]", lambda capital: f"_{capital[0].lower()}", name)

    (theirs,) = javascript("Object.getOwnPropertyNames(client.Device.prototype)")
    phone = device.Device(device.State(), lambda keys: pytest.fail(), max)
    ours = {name for name in {*dir(phone)} if not name.startswith("_")}
    assert {snake_case(name) for name in theirs} - {"constructor"} == ours - {"keys"}


def test_a_person_is_told_the_same() -> None:
    assert javascript("answers.SENTENCES") == [backup_client.SENTENCES]
    problems = [("new", 400), ("new", 408), ("new", 429), ("new", 500), ("unavailable", 503)]
    theirs = javascript(*(f"answers.sentence({json.dumps(code)}, {status})" for code, status in problems))
    assert theirs == [backup_client.ProblemError(code, status, {}).sentence for code, status in problems]
    errors = {
        "new client.AppOutdatedError()": backup_client.AppOutdatedError(),
        "new client.DamagedError()": backup_client.DecryptionError(),
        "new client.MistypedCodeError()": backup_client.MistypedCodeError(),
        "new client.LostAnswerError('x')": backup_client.LostAnswerError(0, "x"),
        "new client.MisfitError('x')": backup_client.MisfitError(200, "x"),
        "new client.UnsettledChangeError('change')": device.UnsettledChangeError("change"),
        "new client.UnsettledChangeError('deletion')": device.UnsettledChangeError("deletion"),
    } | {
        f"new client.DeviceError('{reason}')": device.DeviceError(reason)
        for reason in ("not-signed-in", "another-username", "old-password", "not-listed")
    }
    theirs = javascript(*(f"{expression}.message" for expression in errors))
    assert theirs == [backup_client.sentence(error) for error in errors.values()]


def test_the_python_example_runs(start_server: Callable[..., ServerProcess]) -> None:
    readme, example = ((CLIENTS / "python" / name).read_text() for name in ("README.md", "example.py"))
    blocks = re.findall(r"^```(\w*)\n(.*?)^```$", readme, re.M | re.S)
    assert [(language, code in example) for language, code in blocks] == [("python", True)]
    server = start_server()
    done = subprocess.run(
        [sys.executable, "-m", "clients.python.example"],
        cwd=REPOSITORY,
        env=os.environ | {"BACKUP_URL": server.base_url, "APP_SECRET_KEY": server.secret},
        capture_output=True,
        text=True,
        timeout=60,
    )
    first, restored, second, versions = done.stdout.splitlines()
    assert done.returncode == 0 and first.startswith("write this down: ") and first != second, done.stderr
    assert (restored, versions) == ("on the tablet: ['Monday: squat']", "versions: [2, 1]")
