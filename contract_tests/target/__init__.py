"""The server under test: its process, requests to it, and checks of its answers against openapi.yaml."""
