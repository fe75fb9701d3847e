"""Generated requests, by schemathesis, signed for real.

pytest contract_tests/test_schemathesis.py --fuzz-examples 1000 --fuzz-seed 1
"""

import fuzz
import pytest


@pytest.mark.requirement("problem.form", "http.schema", "http.i-json", "problem.method", "signature.accepted")
def test_generated_requests(request, target, tmp_path):
    done = fuzz.run(request, target, tmp_path)
    assert done.returncode == 0
    assert "No issues found" in done.stdout
    for phase in ("Examples", "Coverage", "Fuzzing", "Stateful"):
        assert f"✅ {phase}" in done.stdout
