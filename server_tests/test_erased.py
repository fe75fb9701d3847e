"""What was deleted or dropped is in no file any more. The whole: `python -m worst_day.erased`."""

from contract_tests.target.process import COMMAND
from worst_day.erased import live


def test_nothing_is_left_of_what_was_deleted_or_dropped(tmp_path):
    outcome = live(tmp_path, 1, 5, lambda _: None, [*COMMAND, "--bound", "EMPTY_LOG_SECONDS=0.5"])
    assert not outcome.found
    assert outcome.done["kills"] >= 1
    assert outcome.searched > 15
