"""What pytest loads for these tests."""

pytest_plugins = ["contract_tests.suite.plugin", "contract_tests.target.fixtures"]
