"""Hostile requests get no 5xx, do not hang, and change nothing of others. The whole: `python -m worst_day.hostile`."""

from worst_day.hostile import COMMAND, Outcome, attack

# The server, with JSON that cannot be read without an error that nobody foresaw.
STARTED_BROKEN = """
import sys, backup_server
from server import i_json

real = i_json.decode

def decode(text):
    if text.startswith(b"[["):
        raise RecursionError
    return real(text)

i_json.decode = decode
sys.exit(backup_server.main([]))
"""


def send(tmp_path, command=COMMAND) -> Outcome:
    return attack(tmp_path, 2000, 1, 2, lambda _: None, command)


def test_hostile_requests(tmp_path):
    outcome = send(tmp_path)
    assert not outcome.wrong
    assert outcome.statuses.total() >= 2000
    assert {"200", "400", "401", "404", "405", "409", "413", "415", "422"} <= outcome.statuses.keys()


def test_a_server_that_breaks_is_found(tmp_path):
    """Deep nesting is an error that nobody foresaw."""
    command = [*COMMAND[:1], "-c", STARTED_BROKEN]
    assert send(tmp_path, command).wrong
