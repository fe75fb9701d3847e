"""What pytest loads for these tests: the harness of the contract tests, which lies beside them."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "contract_tests"))

pytest_plugins = ["plugin", "harness"]
