"""Start server_tests/launcher.py, and mark each line of the server that runs, so that the tests can read which ran.

    python -P -m mutation.line_map MAP ARGUMENTS...    # the arguments are those of the launcher

MAP is a file with one byte for each line of the server, and the server has it in memory. So the tests can read it at
any moment, even after the server was killed. mutation/reached.py reads it.
"""

import mmap
import runpy
import sys
from pathlib import Path
from types import CodeType
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
MODULES = ("backup_server.py", *sorted(f"server/{path.name}" for path in (ROOT / "server").glob("*.py")))
MOST_LINES = 5000  # of one module
SIZE = len(MODULES) * MOST_LINES


def main() -> None:
    with open(sys.argv[1], "r+b") as file:
        marks = mmap.mmap(file.fileno(), SIZE)
    places = {str(ROOT / name): number * MOST_LINES for number, name in enumerate(MODULES)}

    def mark(code: CodeType, line: int) -> Any:
        if (place := places.get(code.co_filename)) is None:
            return sys.monitoring.DISABLE
        marks[place + line] = 1

    sys.monitoring.use_tool_id(sys.monitoring.COVERAGE_ID, "mutation")
    sys.monitoring.register_callback(sys.monitoring.COVERAGE_ID, sys.monitoring.events.LINE, mark)
    sys.monitoring.set_events(sys.monitoring.COVERAGE_ID, sys.monitoring.events.LINE)
    launcher = str(ROOT / "server_tests" / "launcher.py")
    sys.argv = [launcher, *sys.argv[2:]]
    runpy.run_path(launcher, run_name="__main__")


if __name__ == "__main__":
    main()
