"""What pytest loads for these tests: the contract tests' own plugins."""

pytest_plugins = ["contract_tests.suite.plugin", "contract_tests.target.fixtures"]
