"""A canary: if the generated requests of Schemathesis have wrong signatures, its run fails."""

from contract_tests.generated import run_schemathesis


def test_a_dead_signer_is_noticed(request, target, tmp_path):
    """With a wrong secret, every signed operation answers 401, and the run must fail because of it."""
    done = run_schemathesis.run(request, target, tmp_path, TARGET_SECRET="not the secret of this server, but as long")
    assert done.returncode != 0
    assert "Authentication failed: 7 operations returned only 401/403 responses" in done.stdout
    assert "Valid data should have been accepted" in done.stdout
