"""A pytest plugin that writes which lines of the server each test reaches, in whatever process.

The environment variable MUTATION_LINES names the folder to write to. Each process of the tests writes a file with one
line of JSON for each test: its name, its seconds, and its lines by module.
"""

import json
import mmap
import os
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from mutation import line_map
from mutation.line_map import MODULES, MOST_LINES, SIZE

EVERY_START = "every start"  # the name of a test that only starts a server, and stops it


class Reader:
    """Gives the processes a map for their marks, and reads it after each test."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        file = folder / f"{os.getpid()}.map"
        file.write_bytes(bytes(SIZE))
        with file.open("r+b") as opened:
            self._marks = mmap.mmap(opened.fileno(), SIZE)
        os.environ["MUTATION_MAP"] = str(file)
        line_map.install()

    def read(self, test: str, seconds: float) -> None:
        marks = self._marks[:]
        self._marks[:] = bytes(SIZE)
        lines = {}
        for number, name in enumerate(MODULES):
            own = marks[number * MOST_LINES : (number + 1) * MOST_LINES]
            lines[name] = [line for line, mark in enumerate(own) if mark]
        with (self._folder / f"{os.getpid()}.jsonl").open("a") as file:
            file.write(json.dumps({"test": test, "seconds": round(seconds, 3), "lines": lines}) + "\n")

    def pytest_sessionstart(self, session: pytest.Session) -> None:
        if "MUTATION_EVERY_START" not in os.environ:
            return
        from contract_tests.target.process import ServerProcess  # only here, because it reads the command

        with tempfile.TemporaryDirectory() as folder, ServerProcess(folder):
            pass
        self.read(EVERY_START, 0)

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_protocol(self, item: pytest.Item) -> Iterator[None]:
        started = time.monotonic()
        result = yield
        self.read(item.nodeid, time.monotonic() - started)
        return result


def pytest_load_initial_conftests(early_config: pytest.Config) -> None:
    early_config.pluginmanager.register(Reader(Path(os.environ["MUTATION_LINES"])))
