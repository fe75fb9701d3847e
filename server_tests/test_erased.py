"""What was deleted or dropped is in no file any more. The whole: `python -m worst_day.erased`."""

from contract_tests.target.process import COMMAND
from worst_day.erased import Outcome, live


def search(tmp_path, *options: str) -> Outcome:
    return live(tmp_path, 1, 5, lambda _: None, [*COMMAND, "--bound", "EMPTY_LOG_SECONDS=0.5", *options])


def test_nothing_is_left_of_what_was_deleted_or_dropped(tmp_path):
    outcome = search(tmp_path)
    assert not outcome.found
    assert outcome.done["kills"] >= 1
    assert outcome.searched > 15


def test_a_log_that_keeps_what_was_erased_is_found(tmp_path):
    assert search(tmp_path, "--broken", "log-keeps-what-was-erased").found
