"""The reference client, and a demo of it."""
