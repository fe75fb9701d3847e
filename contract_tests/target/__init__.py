"""The server under test: its process, requests to it, and its answers held against openapi.yaml."""
