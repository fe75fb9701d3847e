"""The worst day of a backup server, played through: what can go wrong, in every order, and what may not come of it.

Each module proves one promise of openapi.yaml by going through all cases of something small, or through very many
cases of something large. Each is a command that says how much it has seen, and shows the shortest case that breaks the
promise:

    python -m worst_day.interleavings   each order of two clients' requests, replays, deletions, key changes and time

The exit code is 0 if the promise held, 1 if it broke, 2 if the command could not run.
"""
