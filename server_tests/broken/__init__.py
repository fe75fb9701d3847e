"""Servers broken on purpose, each in one way: they show that the contract tests find what they are for.

The launcher's `--broken NAME` loads the real server, lets the fault of that name change one thing of it, and serves.
Each module named in CATEGORIES is a category of faults. Its import puts them into FAULTS, which has all faults by name.
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
