"""A power cut at any moment loses nothing that was acknowledged, and leaves nothing half done. The whole: worst_day."""

import pytest

from contract_tests.suite.outcomes import not_run
from contract_tests.target.process import COMMAND
from worst_day import power_cuts


def cut(tmp_path, *options: str) -> power_cuts.Outcome:
    """Let a server live for a moment, started with these options, and cut its power everywhere."""
    try:
        life, recorded = power_cuts.record(tmp_path, 1, 3000, [*COMMAND, *options])
    except power_cuts.NotRun as error:
        not_run(str(error))
    return power_cuts.cut_everywhere(life, recorded, tmp_path, power_cuts.open_store, lambda _: None)


def test_a_power_cut_at_any_moment(tmp_path):
    outcome = cut(tmp_path)
    assert not outcome.lost
    assert outcome.images.total() > 1000
    assert outcome.events["truncate"] or outcome.events["sync"] > 20
    assert set(outcome.operations) == {"registerUser", "storeBackup", "changeStorageKey", "deleteUser"}


@pytest.mark.parametrize("fault", ["commits-are-not-synced", "record-is-written-before-the-backup"])
def test_a_store_that_does_not_survive_it_is_found(tmp_path, fault):
    assert cut(tmp_path, "--broken", fault).lost
