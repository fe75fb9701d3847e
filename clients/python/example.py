"""Two devices of one person: BACKUP_URL=… APP_SECRET_KEY=… python -m clients.python.example."""

import json
import os

from clients.python.backup_client import BackupClient, Keys
from clients.python.device import Device, State


def server(keys: Keys) -> BackupClient:
    return BackupClient(os.environ["BACKUP_URL"], os.environ["APP_SECRET_KEY"], keys)


# A log is bytes, at first none. The log of this app is a sorted list of workouts. To merge is to keep what either has.
def to_bytes(workouts: list[str]) -> bytes:
    return json.dumps(sorted(set(workouts))).encode()


def from_bytes(log: bytes) -> list[str]:
    return list(json.loads(log or "[]"))


def merge(mine: bytes, theirs: bytes) -> bytes:
    return to_bytes(from_bytes(mine) + from_bytes(theirs))


phone = Device(State(), server, merge)
phone.register("Emil", "correct horse battery staple")
print("write this down:", phone.recovery_code)
phone.update(lambda log: to_bytes([*from_bytes(log), "Monday: squat"]))
phone.sync()

# The second device needs the username and the password, and nothing else.
tablet = Device(State(), server, merge)
tablet.sign_in("Emil", "correct horse battery staple")
tablet.sync()
print("on the tablet:", from_bytes(tablet.log))

tablet.change_password("a longer and better passphrase")
print("write this down:", tablet.recovery_code)
print("versions:", [receipt["version"] for receipt in tablet.versions()])
tablet.delete()
