"""Tests that hold any server against openapi.yaml, by HTTP alone. README.md says how they are used."""
