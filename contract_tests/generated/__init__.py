"""Tests whose requests are made up: random lives held against a model, and Schemathesis."""
