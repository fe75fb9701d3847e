"""What pytest loads for these tests: the plugins of the contract tests."""

import pytest

pytest_plugins = ["contract_tests.suite.plugin", "contract_tests.target.fixtures"]


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("markers", "client(*ids): the rules for clients in openapi.yaml that a test proves")
