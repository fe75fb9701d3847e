"""How many small faults in the server the tests find: `tox run -e mutate`."""
