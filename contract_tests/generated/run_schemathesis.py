"""Runs the command of Schemathesis against a target. Its settings are in schemathesis.toml."""

import os
import re
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import yaml

from contract_tests.target.openapi import METHODS, REPOSITORY, SPEC
from contract_tests.target.redaction import redacted
from contract_tests.target.target import Target

HERE = Path(__file__).resolve().parent
USUAL_METHODS = ["get", "put", "post", "delete", "options", "patch"]  # an edge may refuse others
TIMEOUT = 3600  # seconds; enough for a long run


def for_schemathesis() -> dict[str, Any]:
    """Return the spec as Schemathesis needs it.

    It has no `default` responses, because they would make Schemathesis accept every status.
    """
    paths = {
        path: {
            method: operation
            if method not in METHODS
            else operation | {"responses": {k: v for k, v in operation["responses"].items() if k != "default"}}
            for method, operation in item.items()
        }
        for path, item in SPEC["paths"].items()
    }
    return SPEC | {"paths": paths}


def config_file(directory: Path, *, behind_an_edge: bool) -> Path:
    """Return the settings of Schemathesis. Without an edge in front of the target, it also sends TRACE and QUERY."""
    settings = HERE / "schemathesis.toml"
    if not behind_an_edge:
        return settings
    own = directory / "schemathesis.toml"
    own.write_text(f"{settings.read_text()}\n[phases.coverage]\nunexpected-methods = {USUAL_METHODS}\n")
    return own


def run(
    request: pytest.FixtureRequest, target: Target, directory: Path, number: int = 0, **change: str
) -> subprocess.CompletedProcess:
    """Run Schemathesis, print its output, and return the finished process.

    The seed is --fuzz-seed plus `number`. `change` adds variables to the environment.
    """
    document = directory / "openapi.yaml"
    document.write_text(yaml.safe_dump(for_schemathesis(), sort_keys=False))
    options = {
        "--url": target.base_url,
        "--max-examples": request.config.getoption("--fuzz-examples"),
        "--seed": str(request.config.getoption("--fuzz-seed") + number),
    }
    absent = target.observer.lacking | (set() if target.admin_key else {"getAdminStats"})
    environ = {
        "TARGET_URL": target.base_url,
        "TARGET_SECRET": target.secret,
        "TARGET_KEYID": target.keyid,
        "TARGET_ADMIN_KEY": target.admin_key or "",
        "TARGET_AHEAD": str(target.now() - time.time()),
        "PYTHONPATH": str(REPOSITORY),
        "SCHEMATHESIS_HOOKS": "contract_tests.generated.schemathesis_hooks",
    }
    done = subprocess.run(
        [
            *(sys.executable, "-m", "schemathesis.cli"),
            *("--config-file", str(config_file(directory, behind_an_edge=bool(target.observer.edge)))),
            *("run", str(document)),
            *(part for option in options.items() for part in option),
            *(part for operation_id in sorted(absent) for part in ("--exclude-operation-id", operation_id)),
        ],
        cwd=directory,
        env=os.environ | environ | change,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=TIMEOUT,
    )
    print(redacted(done.stdout, target.secrets))
    return done


def requests_sent(done: subprocess.CompletedProcess) -> int:
    """Return how many requests a run sent."""
    (count,) = re.findall("^([0-9]+) requests were sent$", done.stdout, re.MULTILINE)
    return int(count)
