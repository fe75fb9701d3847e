"""The limits of an account and of a client address."""

import dataclasses
import re
from collections.abc import Mapping, Sequence
from typing import Any
from unittest import mock

import backup_server
from backup_server import Credentials, Problem, Request, Response, Server, User
from server import clock
from server.accounts import Account, Upload
from server.guessing import Guessing
from server.limits import AddressLimit, Limit, wait_seconds
from server_tests.broken.fault import (
    breaks,
    change,
    change_guessing,
    count_upload,
    instead_of,
    instead_of_handler,
    on_answer,
    shorten_retry_after,
)

# --- Uploads of an account --------------------------------------------------------------------------------------------


def add_to_quota(name: str, number: int) -> None:
    """Accept this many more uploads than the limit with this name allows."""

    @instead_of(backup_server, "wait_seconds")
    def wait_seconds(real: Any, limits: Sequence[Limit], times: Sequence[int], moment: int) -> int:
        other = [dataclasses.replace(limit, quota=limit.quota + number * (limit.name == name)) for limit in limits]
        return real(other, times, moment)


@breaks("limits.hour")
def one_more_upload_an_hour() -> None:
    """Six are accepted, and five promised."""
    add_to_quota("hour", 1)


@breaks("limits.hour")
def one_upload_less_an_hour() -> None:
    """Four are accepted, and five promised."""
    add_to_quota("hour", -1)


@breaks("limits.day")
def one_more_upload_a_day() -> None:
    """Twenty-one are accepted, and twenty promised."""
    add_to_quota("day", 1)


@breaks("limits.sliding")
def windows_are_fixed() -> None:
    """The count starts again with each hour, so that twice as many uploads fit around its end."""

    @instead_of(Limit, "counted")
    def counted(real: Any, limit: Limit, times: Sequence[int], moment: int) -> Sequence[int]:
        milliseconds = limit.seconds * 1000
        return [time for time in real(limit, times, moment) if time // milliseconds == moment // milliseconds]


@breaks("limits.sliding")
def uploads_of_the_future_count() -> None:
    """A clock that once ran ahead locks everybody out."""

    @instead_of(Limit, "counted")
    def counted(real: Any, limit: Limit, times: Sequence[int], moment: int) -> Sequence[int]:
        return [time for time in times if time > moment - limit.seconds * 1000]


@breaks("limits.retry-after", "address.retry-after", "guessing.retry-after")
def retry_after_is_a_second_short() -> None:
    """A client that waits exactly as long as Retry-After says is refused again."""
    shorten_retry_after(429)


@breaks("limits.free")
def refused_uploads_count() -> None:
    """A device that gets five conflicts is locked out."""

    @instead_of(backup_server, "store_version")
    def store_version(
        real: Any, server: Server, request: Request, signature: str, user: User, *arguments: Any
    ) -> Response:
        try:
            return real(server, request, signature, user, *arguments)
        except Problem:
            count_upload(server, user.user_id)
            raise


@breaks("limits.free")
def retries_count() -> None:
    """A device that loses five answers is locked out."""

    @instead_of(backup_server, "store_version")
    def store_version(
        real: Any, server: Server, request: Request, signature: str, user: User, *arguments: Any
    ) -> Response:
        response = real(server, request, signature, user, *arguments)
        if response.status == 200:
            count_upload(server, user.user_id)
        return response


@breaks("limits.account")
def uploads_of_all_accounts_count() -> None:
    """Five uploads an hour are accepted, from all users together."""
    of_all: list[int] = []

    @instead_of(backup_server, "wait_seconds")
    def wait_seconds(real: Any, limits: Sequence[Limit], times: Sequence[int], moment: int) -> int:
        wait = real(limits, sorted(of_all), moment)
        of_all.extend([] if wait else [moment])
        return wait


@breaks("limits.remaining")
def remaining_uploads_are_one_too_many() -> None:
    """RateLimit shows what was left before the request."""

    @on_answer
    def change_answer(environ: Mapping[str, Any], answer: Any) -> None:
        if rate_limit := answer.headers["RateLimit"]:
            answer.headers["RateLimit"] = re.sub("r=([0-9]+)", lambda r: f"r={int(r[1]) + 1}", rate_limit)


@breaks("limits.policy")
def policy_is_the_default() -> None:
    """RateLimit-Policy shows the contract's numbers, even if the deployment has others."""

    @on_answer
    def change_answer(environ: Mapping[str, Any], answer: Any) -> None:
        if policy := answer.headers["RateLimit-Policy"]:
            numbers = iter([3, 6] if "key" in policy else [5, 20])
            answer.headers["RateLimit-Policy"] = re.sub("q=[0-9]+", lambda _: f"q={next(numbers)}", policy)


# --- Key changes of an account ----------------------------------------------------------------------------------------


@breaks("limits.key-hour")
def one_more_key_change_an_hour() -> None:
    """Four are accepted, and three promised."""
    add_to_quota("key-hour", 1)


@breaks("limits.key-day")
def one_more_key_change_a_day() -> None:
    """Seven are accepted, and six promised."""
    add_to_quota("key-day", 1)


@breaks("limits.key-own", "limits.key-hour")
def key_changes_count_as_uploads() -> None:
    """The record does not keep which uploads changed the key."""
    change(backup_server, "Upload", lambda moment, signature, changes_key: Upload(moment, signature))


@breaks("limits.key-own", "key.emergency")
def uploads_stop_a_key_change() -> None:
    """A thief who stores five versions an hour keeps the owner from changing the password."""

    @instead_of(backup_server, "store_version")
    def store_version(
        real: Any, server: Server, request: Request, signature: str, user: User, *arguments: Any
    ) -> Response:
        if request.operation.id == "changeStorageKey":
            moment, times = clock.now(), sorted(upload.moment for upload in user.account.uploads)
            if wait := wait_seconds(server.account_limits["storeBackup"], times, moment):
                raise Problem("rate_limited", "Wait.", wait, server.rate_limit("changeStorageKey", [], moment))
        return real(server, request, signature, user, *arguments)


@breaks("limits.policy", "limits.key-own")
def key_changes_show_the_limits_of_uploads() -> None:
    """An app learns that five key changes an hour are left."""

    @instead_of(Server, "rate_limit_policy")
    def rate_limit_policy(real: Any, server: Server, operation_id: str) -> Any:
        return real(server, "storeBackup")

    @instead_of(Server, "rate_limit")
    def rate_limit(real: Any, server: Server, operation_id: str, *arguments: Any) -> Any:
        return real(server, "storeBackup", *arguments)


# --- Registrations and failures of a client address -------------------------------------------------------------------


@breaks("address.registrations")
def one_more_registration_an_hour() -> None:
    """Twenty-one accounts are created from one address."""

    @instead_of(AddressLimit, "__init__")
    def make(real: Any, address_limit: AddressLimit, limit: Limit) -> None:
        real(address_limit, dataclasses.replace(limit, quota=limit.quota + 1))


@breaks("address.registrations", "address.silent")
def registration_tells_taken_names_past_the_limit() -> None:
    """Only a registration that would create an account is limited, so names are tried without a limit."""

    @instead_of(backup_server, "refused_registration")
    def refused_registration(real: Any, server: Server, request: Request, user: Credentials, wait: int) -> Problem:
        if isinstance(server.store.find(user.user_id), Account):
            return Problem("username_taken", "This userId is registered with another storageKey.")
        return real(server, request, user, wait)


@breaks("address.silent")
def only_taken_names_count_past_the_limit() -> None:
    """The answers are the same for each name, but those for free names go on for longer."""

    @instead_of(backup_server, "refused_registration")
    def refused_registration(real: Any, server: Server, request: Request, user: Credentials, wait: int) -> Problem:
        if isinstance(server.store.find(user.user_id), Account):
            return real(server, request, user, wait)
        return backup_server.too_many(wait, server.registrations.limit)


@breaks("address.failures")
def one_more_failure_in_5_minutes() -> None:
    """Thirty-one keys may be tried from one address."""
    change_guessing("per_5_minutes", lambda quota: quota + 1)


@breaks("address.failures")
def registration_tells_right_keys_without_limit() -> None:
    """username_taken does not count as a failure, so keys are tried by registering."""

    @instead_of_handler("registerUser")
    def register_user(real: Any, server: Server, request: Request, user: Credentials) -> Response:
        with mock.patch.object(server.guessing, "count", return_value=None):
            return real(server, request, user=user)


@breaks("address.failures")
def malformed_credentials_do_not_count() -> None:
    """Credentials that cannot be right do not count as a failure."""

    @instead_of(Guessing, "count")
    def count(real: Any, guessing: Guessing, user_id: str | None, address: str, may_be_known: bool = True) -> Any:
        return None if user_id is None else real(guessing, user_id, address, may_be_known)


@breaks("address.failures", "guessing.account", "guessing.pair")
def right_key_is_let_through_past_the_limit() -> None:
    """Whoever is blocked can continue to guess: wrong keys get 429, but the right one does not."""
    change(Guessing, "wait", lambda *_: None)


@breaks("address.others", "isolation.block")
def all_addresses_are_one() -> None:
    """Behind a proxy everybody has the proxy's address."""
    change(backup_server, "client_address", lambda *_, **__: "192.0.2.1")
