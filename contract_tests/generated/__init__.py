"""Tests with generated requests: random lives compared with a model, and Schemathesis."""
