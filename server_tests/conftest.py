"""What pytest loads for these tests: the plugins of the contract tests, and the browser."""

import pytest

pytest_plugins = ["contract_tests.suite.plugin", "contract_tests.target.fixtures", "server_tests.chromium"]


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("markers", "client(*ids): the rules for clients in openapi.yaml that a test proves")
