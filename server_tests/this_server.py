"""Helpers that read the code of the server under test."""

import json
import shutil
import subprocess
import sys
from functools import cache
from pathlib import Path

from contract_tests.target.openapi import SERVER


@cache
def problems() -> dict[str, tuple[int, str]]:
    """Return the server's table of problems: (status, title) by code.

    A separate process reads it, so that it comes from the server under test and the modules beside it.
    """
    code = "import backup_server, json; print(json.dumps(backup_server.PROBLEMS))"
    done = subprocess.run([sys.executable, "-c", code], cwd=SERVER.parent, capture_output=True, text=True, check=True)
    return {name: (status, title) for name, (status, title) in json.loads(done.stdout).items()}


def copy_server(directory: Path) -> Path:
    """Copy the server under test, without its reference page, into `directory`. Return the file to run."""
    directory.mkdir(exist_ok=True)
    shutil.copy(SERVER, directory / "backup_server.py")
    shutil.copy(SERVER.parent / "openapi.yaml", directory)
    if (package := SERVER.parent / "server").is_dir():
        shutil.copytree(package, directory / "server", ignore=shutil.ignore_patterns("__pycache__"))
    return directory / "backup_server.py"
