"""Clients of the backup server. Each is written from openapi.yaml and fixtures/."""
