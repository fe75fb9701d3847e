"""clients/swift builds without a warning, passes its tests against a server, and has the code that the generator makes.

`tox run -e swift` runs this. It needs Swift 6.0 or newer, and says so if there is none. The first run takes a quarter
of an hour, because it compiles the generator.
"""

import os
import re
import shutil
import subprocess
import unicodedata
from collections.abc import Iterator
from pathlib import Path

import pytest

from contract_tests.suite.outcomes import not_run
from contract_tests.target.target import Target
from swift_tests import contract

LEAST = (6, 0)


@pytest.fixture(scope="session")
def swift() -> str:
    """The path of the `swift` to use: the one that SWIFT names, or the one on PATH."""
    path = os.environ.get("SWIFT") or shutil.which("swift")
    if not path:
        not_run("needs Swift 6.0 or newer on PATH, or its command in SWIFT (Debian 13: apt-get install swiftlang)")
    version = subprocess.run([path, "--version"], capture_output=True, text=True, timeout=60).stdout
    found = re.search(r"Swift version (\d+)\.(\d+)", version)
    if not found or tuple(map(int, found.groups())) < LEAST:
        not_run(f"needs Swift 6.0 or newer, but {path} is another")
    return path


def run(swift: str, *arguments: object, cwd: Path = contract.PACKAGE, **environ: str) -> str:
    """Run a command of Swift, which must succeed. Return all that it wrote."""
    done = subprocess.run(
        [swift, *map(str, arguments)],
        cwd=cwd,
        env=os.environ | environ,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    assert done.returncode == 0, done.stdout[-20_000:]
    return done.stdout


def server(target: Target) -> dict[str, str]:
    """Return how the tests in Swift find the server."""
    return {"BACKUP_URL": target.base_url, "APP_SECRET_KEY": f"{target.keyid}:{target.secret}"}


def test_it_builds_without_a_warning(swift: str) -> None:
    for source in contract.PACKAGE.glob("*/**/*.swift"):
        if ".build" not in source.parts:
            source.touch()  # what is compiled already would not be warned of again
    built = run(swift, "build", "--build-tests")
    assert [line for line in built.splitlines() if "warning:" in line] == []


def test_it_passes_its_tests(swift: str, target: Target, tmp_path: Path) -> None:
    cases = tmp_path / "nfkc.txt"
    cases.write_text("".join(f"{text.encode().hex()} {nfkc(text).encode().hex()}\n" for text in texts()))
    told = run(swift, "test", NFKC_CASES=str(cases), **server(target))
    print("\n".join(re.findall(r"NFKC: .*|vectors: .*|.*Test run with .*", told)))
    assert "skipped" not in told


def test_the_program_of_the_readme_runs(swift: str, target: Target) -> None:
    assert run(swift, "run", "Example", **server(target)).endswith("Everything went as it should.\n")


def test_the_generated_code_is_what_the_generator_makes(
    swift: str, tmp_path: Path, pytestconfig: pytest.Config
) -> None:
    generator = contract.PACKAGE / "generator"
    spec, configuration, made = tmp_path / "openapi.yaml", tmp_path / "config.yaml", tmp_path / "made"
    spec.write_text(contract.text())
    configuration.write_text(contract.configuration())
    arguments = ["generate", "--config", configuration, "--output-directory", made, spec]
    run(swift, "run", "swift-openapi-generator", *arguments, cwd=generator)
    if pytestconfig.getoption("generate"):
        shutil.copytree(made, contract.GENERATED, dirs_exist_ok=True)
    for file in made.iterdir():
        assert (contract.GENERATED / file.name).read_text() == file.read_text()


# ---- The texts whose normalisation is compared ---------------------------------------------------------------


def nfkc(text: str) -> str:
    return unicodedata.normalize("NFKC", text)


def texts() -> Iterator[str]:
    """Yield each code point that Python's Unicode version assigns, and what composes, or nearly does."""
    everything = [chr(code) for code in range(0x110000) if not 0xD800 <= code <= 0xDFFF]
    yield from (each for each in everything if unicodedata.category(each) != "Cn")
    kana = [each for each in everything[0x3041:0xFFA0] if "KATAKANA" in unicodedata.name(each, "")]
    yield from (each + mark for each in kana for mark in "\uff9e\uff9f\u3099\u309a")
    syllables = [chr(0x1100 + lead) + chr(0x1161 + vowel) for lead in range(19) for vowel in range(21)]
    yield from (each + tail for each in syllables for tail in ("", "\u11a7", "\u11a8", "\u11c2", "\u11c3"))
    for mark in filter(unicodedata.combining, everything):
        yield from (f"a{mark}", f"a\u0301{mark}", f"{mark}\u0323\u0301")
    for whole in everything:
        parts = unicodedata.normalize("NFD", whole)
        if parts != whole:
            # Beyond 16 bits, too: the low half of such a code point is that of one that composes.
            beyond = chr((ord(parts[0]) & 0xFFFF) + 0x20000)
            yield from (parts, f"{parts}\u0323", f"{parts[0]}\u0323{parts[1:]}", beyond + parts[1:])
    yield "e" + "\u0301\u0323" * 50
