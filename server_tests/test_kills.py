"""Kills lose nothing that was acknowledged. The whole: `python -m worst_day.kills`."""

import sys

from bench.process import ROOT
from worst_day.kills import COMMAND, Outcome, kill_again_and_again


def kill(tmp_path, command=COMMAND) -> Outcome:
    """Kill a server some times. Each of its lives is short."""
    return kill_again_and_again(tmp_path, 8, 300, 30, 4, seed=1, say=lambda _: None, command=command)


def test_kills_lose_nothing(tmp_path):
    outcome = kill(tmp_path)
    assert not outcome.ledger.lost
    assert outcome.kills >= 8
    assert outcome.ledger.acknowledged.total() >= 300
    assert outcome.ledger.compared > 100


def test_a_server_that_loses_something_is_found(tmp_path):
    launcher = [sys.executable, "-P", str(ROOT / "server_tests" / "launcher.py")]
    assert kill(tmp_path, [*launcher, "--broken", "answers-go-ahead-of-the-disk"]).ledger.lost
