"""The limits of an account and of a client address."""

import contextlib
import dataclasses
import ipaddress
import re
import threading
from collections.abc import Callable, Mapping, Sequence
from typing import Any
from unittest import mock

import backup_server
from backup_server import Credentials, Problem, Request, Response, Server, User
from server import clock
from server.accounts import Account, Deleted, StorageFull, Upload
from server.address_limit import AddressLimit
from server.guessing import Guessing
from server.limits import Limit, wait_seconds
from server_tests.broken.fault import (
    breaks,
    change,
    change_guessing,
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


# --- What counts, and what does not -----------------------------------------------------------------------------------


@breaks("address.free")
def wrong_admin_key_counts() -> None:
    """An operator's dashboard with an outdated key locks out the people behind the same address."""

    @instead_of_proof("adminKey")
    def check_admin_key(real: Any, server: Server, request: Request) -> Any:
        try:
            return real(server, request)
        except Problem:
            server.guessing.count(None, request.address)
            raise


@breaks("address.free")
def statistics_are_limited_like_an_account() -> None:
    """The operator gets no statistics from an address at which somebody has guessed."""

    @instead_of_proof("adminKey")
    def check_admin_key(real: Any, server: Server, request: Request) -> Any:
        if server.guessing.wait(None, request.address):
            raise Problem("admin_key_invalid", "Wait.")
        return real(server, request)


@breaks("address.free")
def reserved_name_counts_as_a_failure() -> None:
    """A client that asks too early whether it may register again is locked out."""
    on_problem_of_a_registration(
        "recently_deleted", lambda server, request: server.guessing.count(None, request.address)
    )


@breaks("address.free")
def reserved_name_counts_as_a_registration() -> None:
    """A client that asks too early whether it may register again uses up the registrations."""
    on_problem_of_a_registration(
        "recently_deleted", lambda server, request: server.registrations.count(request.address)
    )


@breaks("address.registrations", "guessing.counts")
def taken_name_counts_as_a_registration() -> None:
    """Each attempt to register counts, also one that creates nothing."""
    on_problem_of_a_registration("username_taken", lambda server, request: server.registrations.count(request.address))


def on_problem_of_a_registration(code: str, count: Callable[[Server, Request], object]) -> None:
    """Count something more when a registration gets this problem."""

    @instead_of_handler("registerUser")
    def register_user(real: Any, server: Server, request: Request, user: Credentials) -> Response:
        try:
            return real(server, request, user=user)
        except Problem as problem:
            if problem.code == code:
                count(server, request)
            raise


@breaks("address.free")
def any_refusal_counts_as_a_failure() -> None:
    """Like a filter on the log that bans who gets too many answers of 4xx."""

    @instead_of(backup_server, "store_version")
    def store_version(real: Any, server: Server, request: Request, signature: str, user: User, *rest: Any) -> Response:
        try:
            return real(server, request, signature, user, *rest)
        except Problem as problem:
            if problem.code != "credentials_invalid":
                server.guessing.count(user.user_id, request.address)
            raise


@breaks("address.free")
def outdated_app_counts_as_a_failure() -> None:
    """An old app that asks each minute locks out the updated ones behind the same address."""

    @instead_of_proof("appSignature")
    def check_signature(real: Any, server: Server, request: Request) -> Any:
        try:
            return real(server, request)
        except Problem as problem:
            if problem.code == "app_outdated":
                server.guessing.count(None, request.address)
            raise


@breaks("guessing.counts")
def failure_at_the_commit_does_not_count() -> None:
    """Credentials that became wrong while the body arrived are refused, and not counted."""

    @instead_of(User, "again")
    def again(real: Any, user: User, server: Server, record: Any) -> Account:
        account = user.open(record)
        if account is None:
            raise backup_server.credentials_invalid()
        return account


@breaks("guessing.counts")
def taken_name_does_not_count_for_the_account() -> None:
    """Keys are tried by registering, as many as somebody has addresses."""

    @instead_of_handler("registerUser")
    def register_user(real: Any, server: Server, request: Request, user: Credentials) -> Response:
        try:
            with mock.patch.object(server.guessing, "count", return_value=None):
                return real(server, request, user=user)
        except Problem as problem:
            if problem.code == "username_taken":
                backup_server.count_failure(server, None, request.address)
            raise


@breaks("address.failures", "guessing.counts")
def key_of_a_deleted_account_does_not_count() -> None:
    """The server knows that the account was deleted, and forgives."""

    @instead_of(backup_server, "count_failure")
    def count_failure(real: Any, server: Server, user_id: str | None, address: str) -> None:
        if user_id is None or not isinstance(server.store.find(user_id), Deleted):
            real(server, user_id, address)


@breaks("limits.free")
def upload_that_is_too_large_counts() -> None:
    """A log that has become too large uses up the uploads."""
    count_refused("payload_too_large")


@breaks("limits.free")
def upload_without_its_digest_counts() -> None:
    """A body that was changed on the way uses up the uploads of its user."""

    @instead_of(backup_server, "receive")
    def receive(real: Any, server: Server, request: Request) -> bytes:
        try:
            return real(server, request)
        except Problem:
            credentials = backup_server.credentials_of(request.header("Authorization") or "")
            if credentials and request.operation.id == "storeBackup":
                count_upload(server, credentials.user_id)
            raise


@breaks("limits.free")
def upload_refused_for_space_counts() -> None:
    """An upload is counted before it is stored. If there is no space for it, nobody takes that back."""
    counted: dict[str, list[int]] = {}
    current = threading.local()

    @instead_of(backup_server, "store_next")
    def store_next(real: Any, server: Server, request: Request, signature: str, user: User, *rest: Any) -> Response:
        current.more = counted.setdefault(user.user_id, [])
        try:
            return real(server, request, signature, user, *rest)
        except StorageFull:
            current.more.append(clock.now())
            raise

    @instead_of(backup_server, "wait_seconds")
    def wait_seconds(real: Any, limits: Sequence[Limit], times: Sequence[int], moment: int) -> int:
        return real(limits, sorted([*times, *current.more]), moment)


def count_refused(code: str) -> None:
    """Count an upload that is refused with this code."""

    @instead_of(backup_server, "store_version")
    def store_version(real: Any, server: Server, request: Request, signature: str, user: User, *rest: Any) -> Response:
        try:
            return real(server, request, signature, user, *rest)
        except Problem as problem:
            if problem.code == code:
                count_upload(server, user.user_id)
            raise


# --- Other numbers than the contract's --------------------------------------------------------------------------------


def replace_quota(name: str, quota: Callable[[int], int]) -> None:
    """Count by another number than the deployment has set. The headers show the one that it has set."""

    @instead_of(backup_server, "wait_seconds")
    def wait_seconds(real: Any, limits: Sequence[Limit], times: Sequence[int], moment: int) -> int:
        other = [dataclasses.replace(each, quota=quota(each.quota)) if each.name == name else each for each in limits]
        return real(other, times, moment)


@breaks("limits.settings")
def day_has_the_contracts_number() -> None:
    """Whatever BACKUPS_PER_DAY says, it is 20 a day."""
    replace_quota("day", lambda quota: 20)


@breaks("limits.settings")
def day_has_the_contracts_number_at_most() -> None:
    """BACKUPS_PER_DAY may only be lowered."""
    replace_quota("day", lambda quota: min(quota, 20))


@breaks("limits.settings")
def key_changes_have_the_contracts_number_at_most() -> None:
    """KEY_CHANGES_PER_HOUR may only be lowered."""
    replace_quota("key-hour", lambda quota: min(quota, 3))


@breaks("limits.settings")
def key_changes_a_day_have_the_contracts_number() -> None:
    """Whatever KEY_CHANGES_PER_DAY says, it is 6 a day."""
    replace_quota("key-day", lambda quota: 6)


@breaks("limits.settings")
def account_has_the_contracts_number() -> None:
    """Whatever FAILED_CREDENTIALS_PER_ACCOUNT_PER_DAY says, an account is guarded after 50 failures."""
    change_guessing("per_day", lambda quota: 50)


@breaks("limits.settings")
def known_address_has_the_contracts_number() -> None:
    """FAILED_CREDENTIALS_PER_5_MINUTES does not hold for a known address."""

    @instead_of(Guessing, "__init__")
    def make(real: Any, guessing: Guessing, *arguments: Any, **options: Any) -> None:
        real(guessing, *arguments, **options)
        limit = dataclasses.replace(guessing._pairs.limit, quota=30)
        guessing._pairs = guessing._tables.events("pairs", limit)


# --- Which address it is ----------------------------------------------------------------------------------------------


def address_by(other: Callable[[Any, str, Mapping[str, str], str | None], str]) -> None:
    """Find the client's address by `other(real, connection, headers, header)`."""
    real = backup_server.client_address

    def client_address(connection: str, headers: Mapping[str, str], header: str | None) -> str:
        return other(real, connection, headers, header)

    change(backup_server, "client_address", client_address)


@breaks("address.connection")
def anybody_may_name_an_address() -> None:
    """Without a proxy, the server believes X-Forwarded-For. Whoever guesses sends another address each time."""
    address_by(lambda real, connection, headers, header: real(connection, headers, header or "X-Forwarded-For"))


@breaks("address.proxy")
def well_known_header_is_believed_beside_the_named_one() -> None:
    """Behind a proxy that sets X-Real-IP, the server believes whoever sends Fly-Client-IP."""

    def other(real: Any, connection: str, headers: Mapping[str, str], header: str | None) -> str:
        return str(real(connection, headers, "Fly-Client-IP" if header and "FLY_CLIENT_IP" in headers else header))

    address_by(other)


@breaks("address.proxy")
def first_address_of_a_list_counts() -> None:
    """The first entry of X-Forwarded-For is whatever the client has sent."""

    def other(real: Any, connection: str, headers: Mapping[str, str], header: str | None) -> str:
        firsts = {name: value.partition(",")[0] for name, value in headers.items()}
        return str(real(connection, firsts, header))

    address_by(other)


@breaks("address.proxy")
def all_without_the_header_are_one() -> None:
    """Requests in which the proxy names no address share one limit."""

    def other(real: Any, connection: str, headers: Mapping[str, str], header: str | None) -> str:
        return str(real("192.0.2.1" if header else connection, headers, header))

    address_by(other)


@breaks("address.proxy")
def port_is_a_part_of_the_address() -> None:
    """Behind a proxy that names the port, too, each connection has limits of its own."""

    def other(real: Any, connection: str, headers: Mapping[str, str], header: str | None) -> str:
        sent = headers.get(header.upper().replace("-", "_"), "") if header else ""
        port = sent.rpartition("]:")[2] if "]" in sent else sent.partition(":")[2] if sent.count(":") == 1 else ""
        return f"{real(connection, headers, header)}{port and '%'}{port}"

    address_by(other)


def ipv6_as(form: Callable[[ipaddress.IPv6Address], str | None]) -> None:
    """Count an IPv6 address in another form. None: as the server does."""

    @instead_of(backup_server, "address_in")
    def address_in(real: Any, text: str) -> str | None:
        with contextlib.suppress(ValueError):
            last = text.rpartition(",")[2].strip()
            address = ipaddress.ip_address(last.partition("]")[0].removeprefix("["))
            if isinstance(address, ipaddress.IPv6Address) and (counted := form(address)):
                return counted
        return real(text)


@breaks("address.ipv6")
def mapped_address_is_another_address() -> None:
    """Where a server listens on IPv6 for both, all IPv4 clients are in one /64, and so are one client."""
    ipv6_as(lambda each: str(ipaddress.ip_network((each.packed, 64), strict=False)) if each.ipv4_mapped else None)


@breaks("address.ipv6")
def each_ipv6_address_has_limits_of_its_own() -> None:
    """Somebody with one /64 has 18 quintillion addresses to guess from."""
    ipv6_as(lambda each: None if each.ipv4_mapped else f"{each}/128")


@breaks("address.ipv6")
def ipv6_address_counts_by_its_48() -> None:
    """All customers of a small provider share one limit."""
    ipv6_as(lambda each: None if each.ipv4_mapped else str(ipaddress.ip_network((each.packed, 48), strict=False)))


@breaks("address.ipv6")
def ipv6_network_is_cut_from_the_text() -> None:
    """2001:db8::1 and 2001:db8:0:0::1 are different clients."""

    @instead_of(backup_server, "address_in")
    def address_in(real: Any, text: str) -> str | None:
        counted: str | None = real(text)
        if counted is None or "/64" not in counted:
            return counted
        prefix = (text.strip().split(":") + ["0"] * 4)[:4]
        with contextlib.suppress(ValueError):
            return f"{ipaddress.IPv6Address(':'.join(each or '0' for each in prefix) + '::')}/64"
        return counted


# --- Registrations and failures of a client address -------------------------------------------------------------------


@breaks("address.registrations")
def one_more_registration_an_hour() -> None:
    """Twenty-one accounts are created from one address."""

    @instead_of(AddressLimit, "__init__")
    def make(real: Any, address_limit: AddressLimit, limit: Limit, *tables: Any) -> None:
        real(address_limit, dataclasses.replace(limit, quota=limit.quota + 1), *tables)


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
