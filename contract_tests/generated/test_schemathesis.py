"""Requests that Schemathesis generates, with real signatures. `tox run -e fuzz` sends many more of them."""

import pytest

from contract_tests.generated import run_schemathesis


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if "number" in metafunc.fixturenames:
        metafunc.parametrize("number", range(metafunc.config.getoption("--fuzz-runs")))


@pytest.mark.requirement("problem.form", "http.schema", "http.i-json", "problem.method", "signature.accepted")
def test_generated_requests(request, target, tmp_path, record_property, number):
    done = run_schemathesis.run(request, target, tmp_path, number)
    assert done.returncode == 0
    assert "No issues found" in done.stdout
    for phase in ("Examples", "Coverage", "Fuzzing", "Stateful"):
        assert f"✅ {phase}" in done.stdout
    sent = run_schemathesis.requests_sent(done)
    record_property("generated requests", sent)
    assert sent * request.config.getoption("--fuzz-runs") >= request.config.getoption("--fuzz-requests")
