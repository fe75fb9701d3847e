"""Mark each line of the server that runs in this process, so that the tests can read which ran.

The map is a file with one byte for each line of the server, and each process has it in memory. So the tests can read it
at any moment, even after a process was killed. mutation/reached.py reads it.
"""

import mmap
import os
import subprocess
import sys
from functools import cache
from pathlib import Path
from types import CodeType
from typing import Any
from unittest import mock

ROOT = Path(__file__).resolve().parents[1]
SITE = Path(__file__).with_name("site")  # its sitecustomize.py marks in each process that has this folder on its path
FOUND = sorted((ROOT / "server").rglob("*.py"))
MODULES = ("backup_server.py", *(str(path.relative_to(ROOT)) for path in FOUND))
MOST_LINES = 5000  # of one module
SIZE = len(MODULES) * MOST_LINES


def install() -> None:
    """Mark the lines that run from now on, here and in each Python process that this one starts.

    The environment variable MUTATION_MAP names the map.
    """
    with open(os.environ["MUTATION_MAP"], "r+b") as file:
        marks = mmap.mmap(file.fileno(), SIZE)

    @cache
    def place_of(filename: str) -> int | None:  # also in a copy of the server that a test has made
        names = enumerate(MODULES if "/site-packages/" not in filename else ())
        return next((number * MOST_LINES for number, name in names if filename.endswith(f"/{name}")), None)

    def mark(code: CodeType, line: int) -> Any:
        if (place := place_of(code.co_filename)) is None:
            return sys.monitoring.DISABLE
        marks[place + line] = 1

    if sys.monitoring.get_tool(sys.monitoring.COVERAGE_ID):  # a process of xdist marks in the map of its parent
        sys.monitoring.free_tool_id(sys.monitoring.COVERAGE_ID)
    sys.monitoring.use_tool_id(sys.monitoring.COVERAGE_ID, "mutation")
    sys.monitoring.register_callback(sys.monitoring.COVERAGE_ID, sys.monitoring.events.LINE, mark)
    sys.monitoring.set_events(sys.monitoring.COVERAGE_ID, sys.monitoring.events.LINE)
    if not hasattr(subprocess.Popen.__init__, "is_marked"):
        mark_in_others()


def mark_in_others() -> None:
    """Let each process that this one starts mark its lines, whatever its environment."""
    real: Any = subprocess.Popen.__init__

    def start(self: Any, *arguments: Any, env: Any = None, **options: Any) -> None:
        env = dict(os.environ if env is None else env)
        env["PYTHONPATH"] = os.pathsep.join(filter(None, (str(SITE), env.get("PYTHONPATH"))))
        env["MUTATION_MAP"] = os.environ["MUTATION_MAP"]
        real(self, *arguments, env=env, **options)

    start.is_marked = True  # type: ignore[attr-defined]
    mock.patch.object(subprocess.Popen, "__init__", start).start()
