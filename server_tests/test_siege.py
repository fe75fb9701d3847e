"""The siege in small: each attack of `bench/attacks.py` for some seconds, with an honest client beside it.

`tox run -e siege` lays the whole siege. Here, the server is in a box of 256 MB if one can be made.
"""

from collections.abc import Iterator
from pathlib import Path

import pytest

from bench.attacks import ATTACKS, Attack
from bench.box import Box, NoBox, box
from bench.siege import NotRun, lay
from contract_tests.suite.outcomes import not_run

PATIENCE = 5  # seconds; an answer that takes longer is none
# The server has to answer /health within a second. On a machine that also runs other tests, it gets some more.
MOST_HEALTH_SECONDS = 3

# What the server does not withstand yet, and why. Take a row away when the server does.
FALLS = {
    "emoji": "four threads keep 40 MB each: the allocator does not give back what a request of several MB has used",
    "idle": "connections that send nothing keep their places for two minutes",
    "slow heads": "a head has no deadline",
    "never read": "an answer has no deadline, and each of 200 requests on a connection is answered",
    "crowd stores": "four uploads are decoded at once, and the allocator keeps their memory",
    "full /tmp": "bodies and answers of some size are written to /tmp",
    "256 descriptors": "the limit of connections does not follow the limit of descriptors",
    "unread log": "a write to standard output waits until somebody reads it",
    "32 store and fetch": "four uploads are decoded at once, and the allocator keeps their memory",
}


@pytest.fixture
def made(tmp_path: Path) -> Iterator[Box | None]:
    """A box of 256 MB, or None."""
    try:
        with box(tmp_path, ("memory",)) as made:
            yield made
    except NoBox:
        yield None


def attack_parameter(attack: Attack):
    reason = FALLS.get(attack.name)
    marks = [pytest.mark.xfail(reason=reason, strict=True)] if reason else []
    return pytest.param(attack, id=attack.name, marks=marks)


@pytest.mark.parametrize("attack", [attack_parameter(attack) for attack in ATTACKS if attack.scaled])
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
    assert FALLS.keys() <= set(names)
