"""What the backup server stands on: accounts and their store, limits, I-JSON, HTTP, clock and log.

Nothing here imports `backup_server.py`, and only `http_server.py` imports waitress.
"""
