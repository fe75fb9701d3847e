"""The siege in small: each attack of `bench/attacks.py` for some seconds, with an honest client beside it.

`tox run -e siege` lays the whole siege. Here, the server is in a box of 256 MB if one can be made.
"""

import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from bench.attacks import ATTACKS, Attack
from bench.box import Box, NoBox, box
from bench.process import ROOT
from bench.siege import NotRun, lay
from contract_tests.suite.outcomes import not_run

PATIENCE = 10  # seconds; an answer that takes longer is none
# The server has to answer /health within a second. On a machine that also runs other tests, it gets some more.
MOST_HEALTH_SECONDS = 5


@pytest.fixture
def made(tmp_path: Path) -> Iterator[Box | None]:
    """A box of 256 MB, or None."""
    try:
        with box(tmp_path, ("memory",)) as made:
            yield made
    except NoBox:
        yield None


@pytest.mark.parametrize("attack", [pytest.param(each, id=each.name) for each in ATTACKS if each.scaled])
def test_the_server_holds(attack: Attack, tmp_path: Path, made: Box | None):
    """No honest request fails, /health answers, the memory stays below its bound, and the server stops when told to."""
    try:
        outcome = lay(attack, attack.scaled, tmp_path, made, PATIENCE, MOST_HEALTH_SECONDS)
    except NotRun as error:
        not_run(str(error))
    assert outcome.fell == []


def test_the_siege_is_in_a_box_of_256_mb(tmp_path: Path):
    try:
        with box(tmp_path, ("memory",)):
            pass
    except NoBox as error:
        not_run(str(error))


def test_each_attack_has_a_name_of_its_own():
    names = [attack.name for attack in ATTACKS]
    assert len(set(names)) == len(names)


def test_the_readme_tells_of_each_attack():
    readme = (ROOT / "README.md").read_text()
    assert [attack.name for attack in ATTACKS] == re.findall(r"^\| ([\w /,]+) \| \d+ \| 0 \|", readme, re.MULTILINE)
