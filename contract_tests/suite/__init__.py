"""What the contract tests are as a suite: requirement ids, outcomes, the pytest plugin, the report."""
