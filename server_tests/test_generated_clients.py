"""What public generators make from openapi.yaml, unchanged: the Python client works, and the TypeScript types compile.

Both are generated into a temporary directory. Nothing generated is kept.
"""

import base64
import importlib
import pkgutil
import re
import secrets
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from pathlib import Path
from types import ModuleType
from typing import Any

import httpx
import pytest

from clients.python import backup_client
from contract_tests.target import openapi
from contract_tests.target.target import Target

HERE = Path(__file__).resolve().parent
TYPESCRIPT = HERE / "typescript"


def run(*command: object, cwd: Path) -> str:
    """Run a command, which must succeed. Return what it printed."""
    done = subprocess.run([str(part) for part in command], cwd=cwd, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout + done.stderr


# ---- Python ------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def generated(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ModuleType]:
    """The package that openapi-python-client generates. It only warns that it does not read YAML."""
    directory = tmp_path_factory.mktemp("python_client")
    options = ["--config", HERE / "python_client.yaml", "--meta", "none", "--output-path", "backup_api"]
    command = [sys.executable, "-m", "openapi_python_client", "generate", "--path", openapi.SPEC_PATH]
    said = run(*command, *options, cwd=directory)
    assert re.findall("^WARNING .+", said, re.MULTILINE) == ["WARNING parsing GET /openapi.yaml within service."]
    assert said.count("Cannot parse") == said.count("(Unsupported content_type application/yaml)") == 1
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(directory)
        yield importlib.import_module("backup_api")


class Middleware:
    """What the app adds to each request of its generated client: the four headers of the proofs, and If-None-Match.

    It is one request hook of httpx. httpx calls it when the body's bytes are final.
    """

    def __init__(self, credentials: backup_client.Keys, secret: str, keyid: str, clock: Callable[[], float]) -> None:
        self.credentials, self.secret, self.keyid, self.clock = credentials, secret, keyid, clock
        self.etag: str | None = None

    def __call__(self, request: httpx.Request) -> None:
        if self.etag is not None:
            request.headers["If-None-Match"] = self.etag
        authorization = backup_client.authorization(self.credentials.user_id, self.credentials.storage_key)
        proof = {"secret": self.secret, "keyid": self.keyid, "created": int(self.clock())}
        path = request.url.raw_path.decode("ascii").partition("?")[0]
        request.headers.update(backup_client.sign(request.method, path, request.content, authorization, **proof))


class Api:
    """The generated client. `api.store_backup(body=…)` returns the answer's status and its parsed body."""

    def __init__(
        self, package: ModuleType, target: Target, *, token: str = "none", middleware: Middleware | None = None
    ):
        def hold_against_the_spec(response: httpx.Response) -> None:
            request, body = response.request, response.read()
            target.observer.check(request.method, request.url.path, response.status_code, response.headers, body)

        hooks = {"request": [middleware] if middleware else [], "response": [hold_against_the_spec]}
        self._client = package.AuthenticatedClient(
            base_url=target.base_url, token=token, raise_on_unexpected_status=True, httpx_args={"event_hooks": hooks}
        )
        self._functions = operations(package)

    def __getattr__(self, name: str) -> Callable[..., tuple[int, Any]]:
        def call(*arguments: Any, **options: Any) -> tuple[int, Any]:
            response = self._functions[name](*arguments, client=self._client, **options)
            self.headers = response.headers
            return int(response.status_code), response.parsed

        return call


def operations(package: ModuleType) -> dict[str, Callable[..., Any]]:
    """Return each operation of the generated client by its name in Python."""
    modules = pkgutil.walk_packages(package.__path__, package.__name__ + ".")
    names = [module.name for module in modules if module.name.count(".") == 3]
    return {name.rpartition(".")[2]: importlib.import_module(name).sync_detailed for name in names}


def snake_case(operation_id: str) -> str:
    return "".join("_" + letter.lower() if letter.isupper() else letter for letter in operation_id)


def test_every_operation_is_generated(generated: ModuleType) -> None:
    assert set(operations(generated)) == {snake_case(operation_id) for operation_id in openapi.OPERATIONS}


def test_a_generated_client_does_a_whole_cycle(generated: ModuleType, target: Any) -> None:
    models = importlib.import_module("backup_api.models")
    username, log, longer_log = secrets.token_hex(16), b'{"workouts":[]}', b'{"workouts":["squat"]}'
    keys = backup_client.derive_keys(username, "correct horse battery staple")
    new_keys = backup_client.derive_keys(username, "a longer and better passphrase")
    for credentials in (keys, new_keys):
        target.client(credentials)  # so that the user is deleted when the test ends, with any key
    middleware = Middleware(keys, target.secret, target.keyid, target.now)
    api = Api(generated, target, middleware=middleware)

    def upload(keys: backup_client.Keys, log: bytes, sequence: int, base: str | None = None) -> tuple[bytes, str]:
        blob = backup_client.encrypt(keys, log, sequence=sequence, base_sha256=base)
        return blob, base64.b64encode(blob).decode()

    def expect(answer: tuple[int, Any], status: int, code: str) -> Any:
        """Assert that an answer is this problem. Return the problem."""
        assert answer[0] == status
        assert isinstance(answer[1], models.Problem) and answer[1].code == code
        return answer[1]

    # Register, and repeat that, as after a lost answer.
    expect(api.fetch_backup(), 401, "credentials_invalid")
    status, registration = api.register_user()
    assert status == 201
    assert abs(registration.created_at - datetime.fromtimestamp(target.now(), UTC)).total_seconds() < 60
    assert api.register_user() == (200, registration)

    # Store, and repeat that.
    expect(api.fetch_backup(), 404, "no_backup")
    blob, data = upload(keys, log, 1)
    status, receipt = api.store_backup(body=models.BackupUpload(data=data))
    assert (status, receipt.version, receipt.size, receipt.key_version) == (201, 1, len(blob), 1)
    assert api.headers["RateLimit"].startswith('"hour";r=')
    assert api.store_backup(body=models.BackupUpload(data=data)) == (200, receipt)

    # Use a second device that has not seen the version.
    blob, data = upload(keys, longer_log, 1)
    conflict = expect(api.store_backup(body=models.BackupUpload(data=data)), 409, "version_conflict")
    assert conflict.current_version == 1 and not conflict.errors and not conflict.server_time
    problem = expect(api.store_backup(body=models.BackupUpload(data="AB==")), 422, "validation_failed")
    assert [error.pointer for error in problem.errors] == ["#/data"]

    # It fetches, merges and stores.
    status, backup = api.fetch_backup()
    assert status == 200 and backup.updated_at == receipt.updated_at
    fetched = backup_client.decode_data(backup.data, size=backup.size, sha256=backup.sha256)
    assert backup_client.decrypt(keys, fetched).plaintext == log
    blob, data = upload(keys, longer_log, 2, backup.sha256)
    status, receipt = api.store_backup(body=models.BackupUpload(data=data, base_sha_256=backup.sha256))
    assert (status, receipt.version) == (201, 2)

    # List the kept versions, and fetch what has not changed.
    status, listed = api.list_backup_versions()
    assert (status, [version.version for version in listed.versions]) == (200, [2, 1])
    assert listed.versions[0] == receipt
    status, older = api.fetch_backup_version(1)
    assert (status, older) == (200, backup)
    middleware.etag = api.headers["ETag"]
    assert api.fetch_backup_version(1) == (304, None)
    assert api.fetch_backup()[0] == 200
    middleware.etag = api.headers["ETag"]
    assert api.fetch_backup() == (304, None)
    middleware.etag = None
    expect(api.fetch_backup_version(3), 404, "no_such_version")

    # Change the password.
    blob, data = upload(new_keys, longer_log, 3, receipt.sha256)
    change = models.StorageKeyChange(storage_key=new_keys.storage_key, data=data, base_sha_256=receipt.sha256)
    status, receipt = api.change_storage_key(body=change)
    assert (status, receipt.version, receipt.key_version) == (200, 3, 2)
    expect(api.fetch_backup(), 401, "credentials_invalid")
    middleware.credentials = new_keys
    status, backup = api.fetch_backup()
    assert status == 200
    assert backup_client.decrypt(new_keys, base64.b64decode(backup.data)).plaintext == longer_log

    # Use a phone with a wrong clock.
    middleware.clock = lambda: target.now() - 3600
    problem = expect(api.list_backup_versions(), 401, "signature_expired")
    middleware.clock = lambda: problem.server_time
    assert api.list_backup_versions()[0] == 200

    # Delete the account.
    middleware.clock = target.now
    assert api.delete_user() == (204, None)
    expect(api.delete_user(), 401, "credentials_invalid")
    expect(api.register_user(), 409, "recently_deleted")
    assert 0 < int(api.headers["Retry-After"]) <= openapi.LIMITS["deletedUserSeconds"]


def test_what_needs_no_user(generated: ModuleType, target: Any) -> None:
    api = Api(generated, target)
    status, health = api.get_health()
    assert (status, health.status) == (200, "ok")
    status, document = api.get_openapi_json()
    assert (status, document.openapi) == (200, "3.1.0")
    assert document.paths.to_dict().keys() == openapi.SPEC["paths"].keys()
    if target.admin_key:
        assert api.get_admin_stats()[0] == 401
        status, stats = Api(generated, target, token=target.admin_key).get_admin_stats()
        assert status == 200 and stats.users >= 0 and stats.database_bytes > 0


# ---- TypeScript --------------------------------------------------------------------------------------------


def installed_tools() -> Path:
    """Return the node_modules of package-lock.json. Install them if they are missing or out of date."""
    tools = TYPESCRIPT / "node_modules"
    installed = tools / ".package-lock.json"  # npm writes it last
    if not installed.exists() or installed.stat().st_mtime < (TYPESCRIPT / "package-lock.json").stat().st_mtime:
        run("npm", "ci", "--silent", cwd=TYPESCRIPT)
    return tools


def test_generated_types_compile(request: pytest.FixtureRequest, tmp_path: Path) -> None:
    """Compile an app that uses every operation with the types of openapi-typescript, with the strictest settings."""
    if request.config.getoption("--base-url"):
        pytest.skip("not run: it is about the openapi.yaml of this repository, but --base-url names another server")
    node = shutil.which("node")
    assert node, "node is missing: requirements/node.txt has it"
    tools = installed_tools()
    for name in ("usage.ts", "tsconfig.json"):
        shutil.copy(TYPESCRIPT / name, tmp_path)
    command = [node, tools / "openapi-typescript/bin/cli.js", openapi.SPEC_PATH, "--output", "openapi.d.ts"]
    run(*command, cwd=tmp_path)
    run(node, tools / "typescript/bin/tsc", "--project", tmp_path, cwd=tmp_path)
