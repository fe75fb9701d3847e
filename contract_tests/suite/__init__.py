"""What turns the contract tests into a suite: requirement ids, outcomes, the pytest plugin, the report."""
