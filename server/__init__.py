"""What the backup server builds on: accounts and their store, limits, I-JSON, HTTP, the process, clock and log.

Nothing here imports `backup_server.py`, and only `http_server.py` imports waitress.
"""
