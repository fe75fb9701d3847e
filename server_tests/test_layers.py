"""Which part of the repository may import which: the contract tests and the clients stay free of this server."""

import ast
import sys
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

from contract_tests.target.openapi import REPOSITORY

PARTS = ("clients", "contract_tests", "server_tests")
OF_THIS_SERVER = {"backup_server", "server", "server_tests"}
STORES = {"dbm", "sqlite3", "bottle", "waitress"}  # what this server happens to be built on
FORBIDDEN = {
    "clients": OF_THIS_SERVER | STORES | {"contract_tests"},
    "contract_tests": OF_THIS_SERVER | STORES,
    "server_tests": set(),
}
FILES = sorted(path for part in PARTS for path in (REPOSITORY / part).rglob("*.py"))


def name_of(file: Path) -> str:
    """Return the name by which a file is imported."""
    return ".".join(file.relative_to(REPOSITORY).with_suffix("").parts).removesuffix(".__init__")


def imported(file: Path) -> set[str]:
    """Return what a file imports, wherever it does; a name out of a module stands for itself, too."""
    names: set[str] = set()
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.module and not node.level, f"{file}: a relative import"
            names |= {node.module} | {f"{node.module}.{alias.name}" for alias in node.names}
    return names


@pytest.mark.parametrize("part", PARTS)
def test_a_part_imports_what_it_may(part):
    for file in FILES:
        if name_of(file).partition(".")[0] == part:
            assert {name.partition(".")[0] for name in imported(file)} & FORBIDDEN[part] == set(), file


def test_no_module_imports_itself_in_a_circle():
    modules = {name_of(file): imported(file) for file in FILES}
    packages = {name_of(file) for file in FILES if file.name == "__init__.py"}
    graph = {name: (names & modules.keys()) - packages for name, names in modules.items()}
    try:
        list(TopologicalSorter(graph).static_order())
    except CycleError as error:
        pytest.fail(f"a circle: {' -> '.join(error.args[1])}")


def test_no_path_is_changed():
    """Modules are found from the repository's root, by one setting of pytest's."""
    this = Path(__file__)
    assert [file for file in FILES if file != this and "sys.path" in file.read_text()] == []
    assert str(REPOSITORY) in sys.path
