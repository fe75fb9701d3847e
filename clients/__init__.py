"""Clients of the backup server, each written from openapi.yaml and fixtures/."""
