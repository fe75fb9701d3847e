"""Servers broken on purpose, each in one way: what shows that the contract tests find what they are for."""

from server_tests.broken.faults import FAULTS, Fault

__all__ = ["FAULTS", "Fault"]
