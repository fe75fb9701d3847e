"""The limits of an account and of a client address."""

import dataclasses
import re
from collections.abc import Mapping, Sequence
from types import SimpleNamespace
from typing import Any

import backup_server
from backup_server import Credentials, Problem, Request, Response, Server, User
from server.limits import AddressLimit, Limit
from server_tests.broken.fault import (
    breaks,
    change,
    count_upload,
    instead_of,
    instead_of_handler,
    instead_of_proof,
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


@breaks("limits.retry-after", "address.retry-after")
def retry_after_is_a_second_short() -> None:
    """A client that waits exactly as long as Retry-After says is refused again."""
    shorten_retry_after(429)


@breaks("limits.free")
def refused_uploads_count() -> None:
    """A device that gets five conflicts is locked out."""

    @instead_of(backup_server, "store_version")
    def store_version(real: Any, server: Server, signature: str, user: User, *arguments: Any) -> Response:
        try:
            return real(server, signature, user, *arguments)
        except Problem:
            count_upload(server, user.user_id)
            raise


@breaks("limits.free")
def retries_count() -> None:
    """A device that loses five answers is locked out."""

    @instead_of(backup_server, "store_version")
    def store_version(real: Any, server: Server, signature: str, user: User, *arguments: Any) -> Response:
        response = real(server, signature, user, *arguments)
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
        if "RateLimit-Policy" in answer.headers:
            answer.headers["RateLimit-Policy"] = '"hour";q=5;w=3600, "day";q=20;w=86400'


# --- Registrations and failures of a client address -------------------------------------------------------------------


def add_one_to_address_quota(name: str) -> None:
    """Accept one more event than the limit with this name allows."""

    @instead_of(AddressLimit, "__init__")
    def make(real: Any, address_limit: AddressLimit, limit: Limit) -> None:
        real(address_limit, dataclasses.replace(limit, quota=limit.quota + (limit.name == name)))


def with_failures(server: Server, **methods: Any) -> SimpleNamespace:
    """Return the server with other methods of its limit of failed credentials."""
    failures = server.failures
    other = {"limit": failures.limit, "wait": failures.wait, "count": failures.count, **methods}
    return SimpleNamespace(**{**vars(server), "failures": SimpleNamespace(**other)})


@breaks("address.registrations")
def one_more_registration_an_hour() -> None:
    """Twenty-one accounts are created from one address."""
    add_one_to_address_quota("registrations")


@breaks("address.failures")
def one_more_failure_in_5_minutes() -> None:
    """Thirty-one keys may be tried from one address."""
    add_one_to_address_quota("failed credentials")


@breaks("address.failures")
def registration_tells_right_keys_without_limit() -> None:
    """username_taken does not count as a failure, so keys are tried by registering."""

    @instead_of_handler("registerUser")
    def register_user(real: Any, server: Server, request: Request, user: Credentials) -> Response:
        return real(with_failures(server, count=lambda address: 0), request, user=user)


@breaks("address.failures")
def malformed_credentials_do_not_count() -> None:
    """Credentials that cannot be right do not count as a failure."""

    @instead_of_proof("userCredentials")
    def check_credentials(real: Any, server: Server, request: Request) -> Credentials:
        if not backup_server.credentials_of(request.header("Authorization") or ""):
            raise backup_server.credentials_invalid()
        return real(server, request)


@breaks("address.failures")
def right_key_is_let_through_past_the_limit() -> None:
    """A blocked address can continue to guess: wrong keys get 429, but the right one does not."""

    @instead_of_proof("userCredentials")
    def check_credentials(real: Any, server: Server, request: Request) -> Credentials:
        return real(with_failures(server, wait=lambda address: 0), request)


@breaks("address.others", "isolation.block")
def all_addresses_are_one() -> None:
    """Behind a proxy everybody has the proxy's address."""
    change(backup_server, "client_address", lambda environ, on_fly: "192.0.2.1")
