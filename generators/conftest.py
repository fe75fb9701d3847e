"""What pytest loads for these tests: the plugins of the contract tests."""

pytest_plugins = ["contract_tests.suite.plugin", "contract_tests.target.fixtures"]
