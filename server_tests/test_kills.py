"""Kills lose nothing that was acknowledged. The whole: `python -m worst_day.kills`."""

from contract_tests.target.process import COMMAND
from worst_day.kills import kill_again_and_again


def test_kills_lose_nothing(tmp_path):
    """Each life of the server is short."""
    outcome = kill_again_and_again(tmp_path, 8, 80, 300, 4, seed=1, say=lambda _: None, command=COMMAND)
    assert not outcome.ledger.lost
    assert outcome.kills >= 8
    assert outcome.ledger.acknowledged.total() >= 80
    assert outcome.ledger.compared > 30
