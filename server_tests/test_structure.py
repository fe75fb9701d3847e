"""Who may import what. Imports between the modules go one way, and only one module imports each library."""

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
SOURCES = (
    "backup_server.py",
    "maintenance.py",
    "server/**/*.py",
    "contract_tests/**/*.py",
    "server_tests/**/*.py",
    "clients/**/*.py",
)
FILES = {
    ".".join(file.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__"): file
    for pattern in SOURCES
    for file in ROOT.glob(pattern)
    if "node_modules" not in file.parts
}


def imports(name: str) -> Iterator[str]:
    """Yield the full name of each module that a module imports, even deep inside a function."""
    for node in ast.walk(ast.parse(FILES[name].read_bytes())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0 and node.module, f"{name}: a relative import"
            for alias in node.names:
                is_module = f"{node.module}.{alias.name}" in FILES
                yield f"{node.module}.{alias.name}" if is_module else node.module


IMPORTS = {name: set(imports(name)) for name in FILES}


def is_part(name: str, package: str) -> bool:
    return name == package or name.startswith(f"{package}.")


@pytest.mark.parametrize(
    ("library", "where"),
    [
        ("waitress", {"server.http_parser", "server.http_server"}),
        ("bottle", {"backup_server"}),
        ("dbm", {"server.dbm_reader"}),
        ("obstore", {"server.bucket"}),
        ("psycopg", {"server.postgres.database"}),
    ],
)
def test_the_server_knows_a_library_in_one_place(library, where):
    users = {name for name in FILES if any(is_part(each, library) for each in IMPORTS[name])}
    assert {name for name in users if is_part(name, "server") or name == "backup_server"} == where


@pytest.mark.parametrize(
    ("package", "stranger"),
    [
        *(("server", each) for each in ("backup_server", "maintenance")),
        *(("maintenance", each) for each in ("backup_server", "sqlite3", "dbm")),
        *(("contract_tests", each) for each in ("backup_server", "server", "server_tests", "sqlite3", "dbm")),
        *(("clients", each) for each in ("backup_server", "server", "server_tests", "contract_tests")),
    ],
)
def test_what_a_package_does_not_know(package, stranger):
    found = {
        name: each for name in FILES if is_part(name, package) for each in IMPORTS[name] if is_part(each, stranger)
    }
    assert found == {}


def test_imports_run_in_no_circle():
    waiting = {name: {each for each in IMPORTS[name] if each in FILES and each != name} for name in FILES}
    while free := {name for name, needs in waiting.items() if not needs & waiting.keys()}:
        for name in free:
            del waiting[name]
    assert waiting == {}


def test_nobody_changes_where_modules_are_looked_for():
    this = Path(__file__).resolve()
    assert [name for name, file in FILES.items() if file != this and "sys.path" in file.read_text()] == []


def test_one_class_knows_bottle():
    for node in ast.parse(FILES["backup_server"].read_bytes()).body:
        is_app = isinstance(node, ast.ClassDef) and node.name == "App"
        names = {each.id for each in ast.walk(node) if isinstance(each, ast.Name)}
        assert is_app == ("bottle" in names), ast.unparse(node)[:100]


def test_the_readme_of_these_tests_names_each_module():
    text = (ROOT / "server_tests/README.md").read_text()
    assert [file.name for file in (ROOT / "server_tests").glob("test_*.py") if f"`{file.name}`" not in text] == []
