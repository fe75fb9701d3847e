"""Servers that are broken on purpose, each in one way. They show that the contract tests find what they should find.

The launcher's `--broken NAME` loads the real server, lets the fault with this name change one thing about it, and
serves. Each module in CATEGORIES is a category of faults. Importing it adds its faults to FAULTS, which has all faults
by name.
"""

import importlib

from server_tests.broken.fault import FAULTS, Fault

__all__ = ["CATEGORIES", "FAULTS", "Fault"]

CATEGORIES = (
    "proofs",
    "isolation",
    "backups",
    "accounts",
    "history",
    "limits",
    "http",
    "cors",
    "operator",
    "durability",
)

for category in CATEGORIES:
    importlib.import_module(f"{__name__}.{category}")
