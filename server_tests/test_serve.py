"""What `tox run -e serve` prints names a command that works, however tox was started."""

from pathlib import Path

import pytest

from contract_tests.target.openapi import REPOSITORY
from server_tests.serve import next_steps, tox

README = (REPOSITORY / "README.md").read_text()


@pytest.mark.parametrize(
    ("programs", "says"),
    [
        ([".venv/bin/tox"], ".venv/bin/tox"),
        ([".venv/bin/tox", "bin/tox", "bin/uvx"], ".venv/bin/tox"),
        (["bin/tox", "bin/uvx"], "tox"),
        (["cache/uv/archive-v0/x/bin/tox", "bin/uvx"], "uvx --python 3.13 tox"),
        (["cache/pipx/x/bin/tox", "bin/pipx"], "pipx run tox"),
        (["bin/uvx", "bin/pipx"], "uvx --python 3.13 tox"),
        ([], "python3.13 -m venv .venv && .venv/bin/pip install --quiet tox && .venv/bin/tox"),
    ],
)
def test_the_next_command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, programs: list[str], says: str):
    for program in programs:
        path = tmp_path / program
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("#!/bin/sh\n")
        path.chmod(0o700)
    monkeypatch.chdir(tmp_path)
    # uvx and pipx put the folder of the tox that they run first.
    folders = {str((tmp_path / program).parent) for program in programs if not program.startswith(".venv")}
    monkeypatch.setenv("PATH", ":".join(sorted(folders, key=lambda folder: "cache" not in folder)))
    assert tox() == says
    assert f"{says} run -e demo -- --base-url http://127.0.0.1:8080" in next_steps("8080")
    assert says == "tox" or says in README
