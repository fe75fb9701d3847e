"""A full or failing disk loses nothing, and holds nothing up for long. The whole: `python -m worst_day.disks`."""

from bench.siege import NotRun
from contract_tests.suite.outcomes import not_run
from contract_tests.target.process import COMMAND
from worst_day.disks import break_again_and_again


def test_a_disk_that_is_full_or_fails(tmp_path):
    try:
        outcome = break_again_and_again(tmp_path, 8, 3, 3, lambda _: None, COMMAND)
    except NotRun as error:
        not_run(str(error))
    assert not outcome.ledger.lost
    assert outcome.faults["full"] >= 2
    assert outcome.ledger.acknowledged.total() > 50
    assert outcome.ledger.refused.total() > 20
    if outcome.not_run:
        not_run(outcome.not_run)
    assert outcome.injected > 5
