"""Mark each line of the server that runs in this process, so that the tests can read which ran.

The map is a file with one byte for each line of the server, and each process has it in memory. So the tests can read it
at any moment, even after a process was killed. mutation/reached.py reads it.
"""

import mmap
import os
import sys
from pathlib import Path
from types import CodeType
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
FOUND = sorted((ROOT / "server").rglob("*.py"))
ALL = ("backup_server.py", *(str(path.relative_to(ROOT)) for path in FOUND))
MOST_LINES = 5000  # of one module
SIZE = len(ALL) * MOST_LINES


def install() -> None:
    """Mark the lines that run from now on. The environment variable MUTATION_MAP names the map."""
    with open(os.environ["MUTATION_MAP"], "r+b") as file:
        marks = mmap.mmap(file.fileno(), SIZE)
    places = {str(ROOT / name): number * MOST_LINES for number, name in enumerate(ALL)}

    def mark(code: CodeType, line: int) -> Any:
        if (place := places.get(code.co_filename)) is None:
            return sys.monitoring.DISABLE
        marks[place + line] = 1

    if sys.monitoring.get_tool(sys.monitoring.COVERAGE_ID):  # a process of xdist marks in the map of its parent
        sys.monitoring.free_tool_id(sys.monitoring.COVERAGE_ID)
    sys.monitoring.use_tool_id(sys.monitoring.COVERAGE_ID, "mutation")
    sys.monitoring.register_callback(sys.monitoring.COVERAGE_ID, sys.monitoring.events.LINE, mark)
    sys.monitoring.set_events(sys.monitoring.COVERAGE_ID, sys.monitoring.events.LINE)
