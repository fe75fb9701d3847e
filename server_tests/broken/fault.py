"""What a fault is, and the tools that put one in. A fault that uses a name which the server lacks fails at once."""

import dataclasses
import functools
import importlib
import inspect
import os
from collections.abc import Callable, Mapping
from http.client import responses
from types import SimpleNamespace
from typing import Any
from unittest import mock
from wsgiref.headers import Headers

import backup_server
from server import clock, records
from server.accounts import Account, Upload, Version
from server.guessing import Guessing

Function = Callable[..., Any]
Decorator = Callable[[Function], Function]


# --- The store that the server is on ----------------------------------------------------------------------------------

IS_ON_POSTGRES = "DATABASE_URL" in os.environ
STORE: Any = importlib.import_module("server.postgres.store" if IS_ON_POSTGRES else "server.dbm_store")
HeldRow: Any = STORE.HeldRow
Reader: Any = STORE.PostgresReader if IS_ON_POSTGRES else importlib.import_module("server.dbm_reader").DbmReader


def stored_bytes(store: Any, user_id: str, version: Version) -> bytes | None:
    """Return the bytes of a version as they are stored, damaged or not, or None if the account does not have it."""
    if IS_ON_POSTGRES:
        rows = store.database.read(STORE.DATA, (user_id, version.number))
        return rows[0][0] if rows else None
    row = store.row(user_id)
    slot = row.slot(version) if row else None
    found: bytes | None = None if slot is None else store.blob(user_id, slot)
    return found


def change_account(server: backup_server.Server, user_id: str, **members: Any) -> None:
    """Change members of an account's record behind the server's back. The bytes of its versions stay as they are."""
    store: Any = server.store  # this uses more than the interface of a store
    with store.account(user_id) as held:
        after = dataclasses.replace(held.record, **members)
        if IS_ON_POSTGRES:
            with held._change():
                held._put(records.to_bytes(user_id, after), None)
        else:
            row = dataclasses.replace(held.row, record=after)
            store.write(functools.partial(store.put_row, user_id, held.row, row))


# --- Faults and how they are put in -----------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class Fault:
    """One way to break the server: the requirements that it breaks, what happens, and the function that puts it in.

    `category` is the name of its module. If no client can see the fault, and no requirement is about it, `test` names
    the test of this server that finds it. `needs` names the program that this test needs, if it needs one. `store` is
    "file" or "postgres" if only a store of this kind has what the fault breaks.
    """

    category: str
    requirements: tuple[str, ...]
    description: str
    put_in: Callable[[], None]
    test: str | None = None
    needs: str | None = None
    store: str | None = None


FAULTS: dict[str, Fault] = {}


def breaks(
    *requirements: str, test: str | None = None, needs: str | None = None, store: str | None = None
) -> Callable[[Callable[[], None]], Callable[[], None]]:
    """Register a fault. Its name is that of its function, with hyphens. Its docstring says what goes wrong."""

    def register(put_in: Callable[[], None]) -> Callable[[], None]:
        name, category = put_in.__name__.replace("_", "-"), put_in.__module__.rpartition(".")[2]
        assert name not in FAULTS, name
        FAULTS[name] = Fault(category, requirements, put_in.__doc__ or "", put_in, test, needs, store)
        return put_in

    return register


def change(owner: Any, name: str, value: Any) -> None:
    """Give a name of a module or a class another value, until the process ends."""
    mock.patch.object(owner, name, value).start()


def instead_of(owner: Any, name: str) -> Decorator:
    """Replace a function. The new function gets the real one as its first argument."""
    real = getattr(owner, name)

    def replace(function: Function) -> Function:
        change(owner, name, replacement(real, function))
        return function

    return replace


def instead_of_handler(operation_id: str) -> Decorator:
    """Replace the handler of an operation. The new one gets (real, server, request, **what the handler needs)."""
    real = backup_server.HANDLERS[operation_id]

    def replace(function: Function) -> Function:
        mock.patch.dict(backup_server.HANDLERS, {operation_id: replacement(real, function)}).start()
        return function

    return replace


def instead_of_proof(scheme: str) -> Decorator:
    """Replace the check of a security scheme. The new one gets (real, server, request)."""
    proof = backup_server.PROOFS[scheme]

    def replace(function: Function) -> Function:
        check = replacement(proof.check, function)
        mock.patch.dict(backup_server.PROOFS, {scheme: proof._replace(check=check)}).start()
        return function

    return replace


def replacement(real: Function, function: Function) -> Function:
    @functools.wraps(real)  # the server reads from a handler's signature what it needs
    def call(*arguments: Any, **options: Any) -> Any:
        return function(real, *arguments, **options)

    return call


# --- Tools for faults of one kind -------------------------------------------------------------------------------------


def on_answer(change_answer: Callable[[dict[str, Any], Any], None]) -> Callable[[dict[str, Any], Any], None]:
    """Put a proxy in front of the app. `change_answer(environ, answer)` changes the status, headers and body."""

    @instead_of(backup_server.App, "__call__")
    def proxy(real: Function, app: Any, environ: dict[str, Any], start_response: Any) -> list[bytes]:
        answer = SimpleNamespace()

        def start(status: str, headers: list[tuple[str, str]], exc_info: Any = None) -> None:
            answer.status, answer.headers = int(status[:3]), Headers(headers)

        answer.body = body = b"".join(real(app, environ, start))
        change_answer(environ, answer)
        if answer.body != body:
            answer.headers["Content-Length"] = str(len(answer.body))
        start_response(f"{answer.status} {responses[answer.status]}", answer.headers.items())
        return [answer.body]

    return change_answer


def add_to_limit(name: str, number: int) -> None:
    """Change one of the limits that the server reads from openapi.yaml."""

    @instead_of(backup_server.Spec, "__init__")
    def load(real: Function, spec: Any, path: Any) -> None:
        real(spec, path)
        spec.limits[name] += number


def change_setting(name: str, change_value: Callable[[Any], Any]) -> None:
    """Change one of the settings that the server reads from its environment."""

    @instead_of(backup_server.Settings, "from_environ")
    def from_environ(real: Function, *arguments: Any) -> Any:
        settings = real(*arguments)
        return dataclasses.replace(settings, **{name: change_value(getattr(settings, name))})


def change_guessing(name: str, change_value: Callable[[int], int]) -> None:
    """Change one of the numbers that the limits on guessing have: an argument of Guessing."""

    @instead_of(Guessing, "__init__")
    def make(real: Function, guessing: Guessing, *arguments: int) -> None:
        numbers = inspect.signature(real).bind(guessing, *arguments).arguments
        real(**numbers | {name: change_value(numbers[name])})


def named_user(server: backup_server.Server, request: backup_server.Request) -> backup_server.User | None:
    """Return the user that a request names, as if its storage key were right, or None if there is no account."""
    credentials = backup_server.credentials_of(request.header("Authorization") or "")
    account = credentials and server.store.find(credentials.user_id)
    if credentials and isinstance(account, Account):
        return backup_server.User(credentials.user_id, account.key_sha256, account, request.address)
    return None


def count_upload(server: backup_server.Server, user_id: str) -> None:
    """Count an upload that made no version."""
    account = server.store.find(user_id)
    assert isinstance(account, Account)
    change_account(server, user_id, uploads=(*account.uploads, Upload(clock.now(), "")))


def body_of(request: backup_server.Request) -> bytes:
    """Return the body of a request ahead of time. It can be read again."""
    body = request.body_stream.read()
    request.body_stream.seek(0)
    return body


def shorten_retry_after(status: int) -> None:
    """Take a second off the Retry-After of this status."""

    @on_answer
    def change_answer(environ: Mapping[str, Any], answer: Any) -> None:
        if answer.status == status and int(answer.headers.get("Retry-After", 0)) > 1:
            answer.headers["Retry-After"] = str(int(answer.headers["Retry-After"]) - 1)
