"""What pytest loads for these tests: the plugins of the contract tests, and an option."""

import pytest

pytest_plugins = ["contract_tests.suite.plugin", "contract_tests.target.fixtures"]


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--generate", action="store_true", help="write the generated code of clients/swift anew")
