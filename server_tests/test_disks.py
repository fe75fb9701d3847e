"""A full or failing disk loses nothing, and holds nothing up for long. The whole: `python -m worst_day.disks`."""

import sys

from bench.process import ROOT
from bench.siege import NotRun
from contract_tests.suite.outcomes import not_run
from worst_day.disks import COMMAND, Outcome, break_again_and_again


def break_disk(tmp_path, command=COMMAND) -> Outcome:
    try:
        return break_again_and_again(tmp_path, 8, 3, 3, lambda _: None, command)
    except NotRun as error:
        not_run(str(error))


def test_a_disk_that_is_full_or_fails(tmp_path):
    outcome = break_disk(tmp_path)
    assert not outcome.ledger.lost
    assert outcome.faults["full"] >= 2
    assert outcome.ledger.acknowledged.total() > 50
    assert outcome.ledger.refused.total() > 20
    if outcome.not_run:
        not_run(outcome.not_run)
    assert outcome.injected > 5


def test_a_server_that_loses_something_is_found(tmp_path):
    launcher = [sys.executable, "-P", str(ROOT / "server_tests" / "launcher.py")]
    assert break_disk(tmp_path, [*launcher, "--broken", "errors-of-the-disk-are-passed-over"]).ledger.lost
