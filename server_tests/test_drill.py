"""A drill: the volume is destroyed, and all accounts come back by the commands that docs/operations.md has.

The commands are taken from the text, so a command that no longer works, or is no longer there, fails here. `/data` is a
folder, and a local process is what runs on Fly's machine. `tox run -e bucket` installs the S3 server.
"""

import json
import random
import re
import shlex
import shutil
import subprocess
from pathlib import Path

import pytest

from clients.python.backup_client import blob_of
from contract_tests.target.calls import eventually, outcome
from server_tests.s3 import BUCKET
from server_tests.test_bucket import MANY, health, s3, soon_copied, store, user_of
from server_tests.test_deploy import OPERATIONS, section, table
from server_tests.test_maintenance import TOOL, environment
from server_tests.test_metrics import values_of

__all__ = ["s3"]  # the fixture

ACCOUNTS = 200
VERSIONS = 4  # of each tenth account
RESTORE = [  # the runbook's part, and its command
    ("From the bucket", "restore s3:"),
    ("On Fly", "restore /data"),
]


def part(title):
    """Return the text under a heading of the runbook, of any level, up to the next heading."""
    return re.search(rf"^#+ {re.escape(title)}\n(.*?)(?=^#+ |\Z)", OPERATIONS, re.MULTILINE | re.DOTALL)[1]


def command_of(title, begins):
    """Return the arguments of the one command of maintenance.py in a part of the runbook that begins like this."""
    runs = re.findall(r'fly ssh console -C "/usr/local/bin/python /app/maintenance.py (.+?)"', part(title))
    (found,) = [run for run in runs if run.startswith(begins)]
    return found


def settings_of(title):
    """Return what the runbook sets for the first start of a server on a new volume."""
    ((name, value),) = set(re.findall(r"fly deploy --ha=false -e (\w+)=(\w+)", part(title)))
    return {name: value}


class Machine:
    """What Fly has: a volume, the secrets, and somebody at the console."""

    def __init__(self, s3, volume):
        self.volume, self._secrets = volume, s3.settings()
        volume.mkdir()

    def console(self, command):
        """Run maintenance.py with arguments as they are in the runbook."""
        arguments = shlex.split(command.replace("/data", str(self.volume)).replace("s3://NAME", f"s3://{BUCKET}"))
        environ = environment(Path("nowhere")) | self._secrets
        done = subprocess.run([*TOOL, *arguments], env=environ, capture_output=True, text=True)
        assert done.returncode == 0, (command, done.stdout, done.stderr)

    def destroy_volume(self):
        shutil.rmtree(self.volume)
        self.volume.mkdir()


def fetched(user):
    """Return each version that the server gives out, and the latest one."""
    listed = [receipt["version"] for receipt in json.loads(user.list_backup_versions().content)["versions"]]
    versions = {number: blob_of(json.loads(user.fetch_backup_version(number).content)) for number in listed}
    return versions, blob_of(json.loads(user.fetch_backup().content))


@pytest.mark.parametrize(("title", "begins"), RESTORE)
def test_a_volume_is_destroyed_and_everything_comes_back_by_the_runbook(s3, start_server, tmp_path, title, begins):
    machine = Machine(s3, tmp_path / "volume")
    settings = MANY | s3.settings() | {"DATABASE_PATH": machine.volume / "backup.db", "NEW_STORE": 0}
    server = start_server(**(settings | {"NEW_STORE": 1, "METRICS_PORT": 0}))
    chance = random.Random(1)
    users = []
    for number in range(ACCOUNTS):
        count = VERSIONS if number % 10 == 0 else 1
        users.append(user_of(server, [chance.randbytes(chance.choice([300, 3_000, 30_000])) for _ in range(count)]))
    expected = [fetched(user) for user in users]
    assert sum(len(versions) for versions, _ in expected) == ACCOUNTS + ACCOUNTS // 10 * (VERSIONS - 1)
    assert soon_copied(server, s3, 60)
    assert eventually(lambda: values_of(server)["bucket_lag_seconds{}"] == 0)
    machine.console(command_of("On Fly", "verify"))
    machine.console(command_of("On Fly", "snapshot"))
    (machine.volume / "copy.db").rename(tmp_path / "copy.db")  # `fly ssh sftp get`, and `rm`

    server.kill()
    machine.destroy_volume()
    settings["APP_SECRET_KEY"] = server.secret
    with pytest.raises(RuntimeError, match="there is no store"):
        start_server(**settings)
    assert "`there is no store`" in part("The server does not start")
    if title == "On Fly":
        shutil.copy(tmp_path / "copy.db", machine.volume)  # `fly ssh sftp put`
    machine.console(command_of(title, begins))
    first = start_server(**(settings | settings_of(title)))
    assert eventually(lambda: any(line.get("state") == "copying" for line in first.log()))
    first.stop()
    server = start_server(**settings)
    for user in users:
        user.base_url = server.base_url
    assert [fetched(user) for user in users] == expected
    assert eventually(lambda: health(server)["status"] == "ok" and soon_copied(server, s3), 60)
    machine.console("verify s3://NAME")
    store(users[1], b"and it goes on")
    assert outcome(users[2].delete_user()) == "204"

    documented = {name for names in table("The files of the store", OPERATIONS) for name in names}
    left = {path.name for path in machine.volume.iterdir()} - {"copy.db"}
    assert left <= documented and {"backup.db-wal", "backup.db-bucket", "backup.db.sock"} <= left
    assert "verify s3://NAME" in section("A copy off the machine", OPERATIONS)
