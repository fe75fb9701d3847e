"""Servers broken on purpose, each in one way: they show that the contract tests find what they are for.

The launcher's `--broken NAME` loads the real server, lets the fault of that name change one thing of it, and serves.
Each module is a category. `FAULTS` has all faults by name, in the order of the modules below.
"""

from server_tests.broken.fault import FAULTS, Fault

from server_tests.broken import proofs, isolation, backups, accounts, history, limits, http, cors, operator, durability  # noqa: F401, I001 # isort: skip

__all__ = ["FAULTS", "Fault"]
