"""Hostile requests get no 5xx, do not hang, and change nothing of others. The whole: `python -m worst_day.hostile`."""

import sys

from bench.process import ROOT
from worst_day.hostile import COMMAND, Outcome, attack


def send(tmp_path, command=COMMAND) -> Outcome:
    return attack(tmp_path, 2000, 1, 2, lambda _: None, command)


def test_hostile_requests(tmp_path):
    outcome = send(tmp_path)
    assert not outcome.wrong
    assert outcome.statuses.total() >= 2000
    assert {"200", "400", "401", "404", "405", "409", "413", "415", "422"} <= outcome.statuses.keys()


def test_an_answer_of_500_is_found(tmp_path):
    fault = tmp_path / "fault"
    fault.write_text("internal_error")
    launcher = [sys.executable, "-P", str(ROOT / "server_tests" / "launcher.py")]
    assert send(tmp_path, [*launcher, "--fault", str(fault)]).wrong
