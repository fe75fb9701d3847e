"""The image, built as the Dockerfile says, but without Docker, and run: server_tests/image.py does it.

The checkout was made under umask 077, and somebody has left secrets in it. The image runs as its user, with a read-only
root, and with no more memory than on Fly if this machine can limit it.
"""

import contextlib
import json
import os
import re
import secrets
import shutil
import signal
import stat
import subprocess
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import requests
import yaml

from bench.box import NoBox, box
from clients.python.backup_client import BackupClient
from contract_tests.suite.outcomes import not_run
from server_tests.dockerfile import ROOT
from server_tests.image import Builder, Image, NoImage, check_machine, fetch_supplies, stopped

REVISION = "0123456789abcdef0123456789abcdef01234567"
VERSION = yaml.safe_load((ROOT / "openapi.yaml").read_text())["info"]["version"]
# What must not get into the image, and lies where somebody may have left it.
LEFT_BEHIND = secrets.token_hex(32)
LEFT_AT = (".env", "app.key", "data/backup.db", "requirements/pip.conf", "reference/.env", "server/.env")
SECRETS = {"APP_SECRET_KEY": secrets.token_urlsafe(32), "ADMIN_SECRET_KEY": secrets.token_urlsafe(32)}
STOP_SECONDS = 45


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("image")


@pytest.fixture(scope="module")
def checkout(folder: Path) -> Path:
    """Copy what Git has, and would have, under umask 077, and leave secrets in it."""
    context = folder / "checkout"
    names = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    listed = subprocess.run(names, cwd=ROOT, capture_output=True, text=True, check=True).stdout
    before = os.umask(0o077)
    try:
        for name in filter(None, listed.split("\0")):
            if (ROOT / name).exists():
                (context / name).parent.mkdir(parents=True, exist_ok=True)
                shutil.copyfile(ROOT / name, context / name)
        for name in LEFT_AT:
            (context / name).parent.mkdir(parents=True, exist_ok=True)
            (context / name).write_text(f"APP_SECRET_KEY={LEFT_BEHIND}\n")
    finally:
        os.umask(before)
    return context


@pytest.fixture(scope="module")
def built(folder: Path, checkout: Path) -> dict[str, Image]:
    """Build the image. Return its stages, by name."""
    try:
        check_machine(folder / "python")
        fetch_supplies(folder)
        return Builder(folder, checkout, {"REVISION": REVISION}).build((checkout / "Dockerfile").read_text())
    except NoImage as error:
        not_run(f"the image cannot be built here: {error}")


@pytest.fixture(scope="module")
def image(built: dict[str, Image]) -> Image:
    return list(built.values())[-1]


def new_volume(folder: Path, image: Image) -> Path:
    """Make an empty volume. Its root belongs to whom /data belongs in the image, as on Fly."""
    volume = folder / f"volume-{secrets.token_hex(4)}"
    volume.mkdir()
    status = (image.root / "data").stat()
    os.chown(volume, status.st_uid, status.st_gid)
    volume.chmod(stat.S_IMODE(status.st_mode))
    return volume


@contextlib.contextmanager
def memory_box(folder: Path) -> Iterator[list[str]]:
    """Yield what starts a command in a box with the memory of the machine on Fly, or nothing, if there is no box."""
    with contextlib.ExitStack() as stack:
        try:
            made = stack.enter_context(box(folder, ("memory",)))
        except NoBox:
            yield []
        else:
            yield made.command([])
            assert made.killed() == 0


@contextlib.contextmanager
def serving(image: Image, volume: Path, **environ: str) -> Iterator[tuple[subprocess.Popen[str], dict]]:
    """Run the image's command with its ENV, but at an address for tests. Yield the process, and what it says first."""
    settings = {**SECRETS, "NEW_STORE": "1", "HOST": "127.0.0.1", "PORT": "0", **environ}
    errors = volume.with_suffix(".errors")
    with memory_box(volume.parent) as prefix, errors.open("w") as stderr:
        process = image.process(
            list(image.command),
            environ=settings,
            mounted=(volume, "/data"),
            read_only=True,
            network=True,
            prefix=prefix,
            stdout=subprocess.PIPE,
            stderr=stderr,
        )
        with process, stopped(process):
            line = process.stdout.readline()
            assert line, errors.read_text()[-2000:]
            yield process, json.loads(line)


def get(url: str, **headers: str) -> requests.Response:
    with requests.Session() as session:
        session.trust_env = False  # no proxy, even if the environment names one
        return session.get(url, headers=headers, timeout=10)


def everything(root: Path) -> dict[str, tuple[object, ...]]:
    """Return what there is in a root, and when each of it was changed last."""
    found = {}
    for path in root.rglob("*"):
        status = path.lstat()
        found[path.relative_to(root).as_posix()] = status.st_mode, status.st_uid, status.st_size, status.st_ctime_ns
    return found


def test_it_runs_as_its_user_with_a_read_only_root(image: Image, folder: Path) -> None:
    before = everything(image.root)
    volume = new_volume(folder, image)
    with serving(image, volume) as (process, first):
        assert (first["event"], first["version"], first["revision"]) == ("serving", VERSION, REVISION)
        status = Path(f"/proc/{process.pid}/status").read_text()
        assert re.search(r"^Uid:\t10001\t10001\t10001\t10001$", status, re.MULTILINE)
        assert re.search(r"^CapEff:\t0+$", status, re.MULTILINE)
        url = first["url"].rstrip("/")
        assert get(f"{url}/health").json() == {"status": "ok", "version": VERSION}
        page = get(url)
        assert (page.status_code, page.headers["Content-Type"]) == (200, "text/html; charset=utf-8")
        user = secrets.token_hex(32), secrets.token_hex(32)
        client = BackupClient(url, SECRETS["APP_SECRET_KEY"], user)
        blob = secrets.token_bytes(300_000)
        assert client.register_user().status_code == 201
        assert client.store_backup(blob).status_code == 201
        assert client.fetch_backup().json()["size"] == len(blob)
        stats = get(f"{url}/admin/stats", Authorization=f"Bearer {SECRETS['ADMIN_SECRET_KEY']}").json()
        assert (stats["version"], stats["revision"], stats["versions"]) == (VERSION, REVISION, 1)
        console = replace(image, user="0")  # `fly ssh console` is root's
        command = ["/usr/local/bin/python", "/app/maintenance.py", "verify", "--database", "/data/backup.db"]
        assert "1 account" in console.run(command, mounted=(volume, "/data"))
        process.send_signal(signal.SIGTERM)
        assert process.wait(STOP_SECONDS) == 0
    assert everything(image.root) == before, "something but /data was written"
    assert "backup.db" in {path.name for path in volume.iterdir()}


def test_a_missing_volume_is_noticed(image: Image, folder: Path) -> None:
    """Without NEW_STORE=1, the image does not start on a volume without a store."""
    with pytest.raises(subprocess.CalledProcessError) as failed:
        image.run(list(image.command), environ=SECRETS, mounted=(new_volume(folder, image), "/data"), read_only=True)
    assert failed.value.returncode == 2 and "there is no store" in failed.value.stderr


def test_an_image_for_a_database(image: Image, folder: Path, checkout: Path) -> None:
    """`--build-arg STORE=postgres` adds the driver, and the module that needs it. No other image has them."""
    assert not (image.root / "app/server/postgres").exists()
    here = folder / "postgres"
    here.mkdir()
    (here / "supplies").symlink_to(folder / "supplies")
    stages = Builder(here, checkout, {"STORE": "postgres"}).build((checkout / "Dockerfile").read_text())
    other = list(stages.values())[-1]
    volume, url = new_volume(here, other), "postgresql://user:hidden@127.0.0.1:1/name"
    with pytest.raises(subprocess.CalledProcessError) as failed:
        environ = SECRETS | {"DATABASE_URL": url}
        other.run(list(other.command), environ=environ, mounted=(volume, "/data"), read_only=True)
    assert "the database cannot be reached" in failed.value.stderr and "hidden" not in failed.value.stderr
    with pytest.raises(subprocess.CalledProcessError) as failed:
        image.run(list(image.command), environ=environ, mounted=(volume, "/data"), read_only=True)
    assert "needs a driver" in failed.value.stderr


def test_python_compiles_nothing_when_it_starts(image: Image, folder: Path) -> None:
    """All that the server imports, also for metrics and a bucket, comes from bytecode that is in the image."""
    imports = "import runpy; runpy.run_path('backup_server.py'); import server.metrics, server.replica, obstore.store"
    with image.process(["python", "-v", "-c", imports], read_only=True, stderr=subprocess.PIPE) as process:
        said = process.stderr.read()
    assert process.returncode == 0, said[-2000:]
    loaded = re.findall(r"^# code object from '?(\S+?)'?$", said, re.MULTILINE)
    assert [path for path in loaded if not path.endswith(".pyc")] == []
    for expected in (
        "/app/server/__pycache__/metrics.",
        "/site-packages/obstore/",
        "/lib/python3.13/json/__pycache__/",
    ):
        assert any(expected in path for path in loaded), expected


def test_nobody_but_root_may_change_what_runs_and_everybody_may_read_it(image: Image) -> None:
    for path in image.root.rglob("*"):
        name, status = path.relative_to(image.root).as_posix(), path.lstat()
        if name == "data":
            assert (status.st_uid, stat.S_IMODE(status.st_mode)) == (10001, 0o700)
        elif not path.is_symlink() and not name.startswith(("tmp", "etc")):
            assert status.st_uid == 0 and not status.st_mode & 0o022, name
            assert status.st_mode & 0o444 == 0o444 and (path.is_file() or status.st_mode & 0o111 == 0o111), name


def test_the_image_has_the_server_and_nothing_else(built: dict[str, Image], image: Image, folder: Path) -> None:
    """Beside what the base image has: no cache of pip or npm, no Node, no tests."""
    standard = {path.relative_to(folder / "python").as_posix() for path in (folder / "python").rglob("*")}
    added = {path.relative_to(image.root).as_posix() for path in image.root.rglob("*") if not path.is_dir()} - standard
    packages = "usr/local/lib/python3.13/site-packages/"
    elsewhere = {name for name in added if not name.startswith(("app/", packages)) and "/__pycache__/" not in name}
    assert {name for name in elsewhere if not name.startswith("etc/")} == set()
    tracked = subprocess.run(["git", "ls-files", "server"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    expected = {"backup_server.py", "maintenance.py", "openapi.yaml", *tracked.split()}
    in_app = {name.removeprefix("app/") for name in added if name.startswith("app/")}
    page = {name for name in in_app if name.startswith("reference/dist/")}
    bytecode = {re.sub(r"(\w+)\.py$", r"__pycache__/\1.cpython-313.pyc", name) for name in tracked.split()}
    assert in_app - page == expected | bytecode
    assert {"reference/dist/index.html"} < page
    here = {re.match(r"[^/-]+", name.removeprefix(packages))[0] for name in added if name.startswith(packages)}
    assert "obstore" in here and not here & {"pytest", "setuptools", "wheel"}


def test_no_secret_is_in_the_image(built: dict[str, Image], image: Image) -> None:
    """Neither in a file, nor in what the image says of itself. A layer may have what a later one hides."""
    for stage in (built["base"], image):
        for path in stage.root.rglob("*"):
            if path.is_file() and not path.is_symlink():
                content = path.read_bytes()
                assert LEFT_BEHIND.encode() not in content, path
                assert b"PRIVATE KEY-----" not in content, path
        assert LEFT_BEHIND not in str((stage.environ, stage.labels, stage.arguments))
        assert not re.search("SECRET|TOKEN|PASSWORD|KEY", " ".join([*stage.environ, *stage.arguments]))


def test_the_image_says_what_it_is(image: Image) -> None:
    labels = {name.removeprefix("org.opencontainers.image."): value for name, value in image.labels.items()}
    assert labels.keys() == {"title", "description", "licenses", "version", "revision"}
    assert (labels["version"], labels["revision"], labels["licenses"]) == (VERSION, REVISION, "MIT")
