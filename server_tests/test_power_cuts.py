"""A power cut at any moment loses nothing that was acknowledged, and leaves nothing half done. The whole: worst_day."""

from contract_tests.suite.outcomes import not_run
from contract_tests.target.process import COMMAND
from worst_day import power_cuts


def test_a_power_cut_at_any_moment(tmp_path):
    try:
        life, recorded = power_cuts.record(tmp_path, 1, 3000, COMMAND)
    except power_cuts.NotRun as error:
        not_run(str(error))
    outcome = power_cuts.cut_everywhere(life, recorded, tmp_path, power_cuts.open_store, lambda _: None, every=2)
    assert not outcome.lost
    assert outcome.images.total() > 500
    assert set(outcome.operations) == {"registerUser", "storeBackup", "changeStorageKey", "deleteUser"}
