"""What the operator sees: statistics, the document and the log."""

import json
import os
from collections.abc import Callable, Mapping
from typing import Any

import backup_server
from backup_server import Request, Response, Server, Spec
from server.accounts import Deleted, Record
from server.clock import ClockCheck
from server.counts import Counts
from server.health import Writes
from server.housekeeping import Housekeeper
from server.log import Log, log
from server_tests.broken.fault import (
    breaks,
    change_setting,
    instead_of,
    instead_of_handler,
    instead_of_proof,
    on_answer,
)


@breaks("admin.proof")
def statistics_need_no_key() -> None:
    """Anybody may see how many users there are."""

    @instead_of_proof("adminKey")
    def check_admin_key(real: Any, server: Server, request: Request) -> None:
        pass


@breaks("admin.absent")
def admin_key_is_asked_for_where_there_is_none() -> None:
    """If no admin key is configured, the statistics get 401."""
    change_setting("admin_key", lambda key: key or "")


@breaks("getHealth.200")
def health_is_degraded_without_a_reason() -> None:
    """The server is degraded, and does not say which part of it."""

    @instead_of_handler("getHealth")
    def get_health(real: Any, server: Server, request: Request) -> Response:
        return backup_server.answer(200, {"status": "degraded", "version": server.spec.version})


@breaks("health.writes")
def health_does_not_hear_of_failed_writes() -> None:
    """Every write fails, and the server says that all is well."""

    @instead_of(Writes, "failed")
    def failed(real: Any, writes: Writes) -> None:
        pass


@breaks("health.writes")
def health_forgets_a_failed_write_at_once() -> None:
    """A disk that fails now and then is never told, because the next write succeeds."""

    @instead_of(Writes, "have_failed_lately")
    def have_failed_lately(real: Any, writes: Writes) -> bool:
        return writes.are_failing


@breaks(
    test="server_tests/test_health.py::test_a_disk_that_takes_nothing_is_noticed_before_anybody_stores", store="file"
)
def nothing_is_written_when_nobody_stores() -> None:
    """A disk that was remounted read-only is noticed when a user loses an upload."""

    @instead_of(Housekeeper, "_is_probe_due")
    def is_probe_due(real: Any, housekeeper: Housekeeper) -> bool:
        return False


@breaks(test="server_tests/test_health.py::test_a_clock_that_is_set_is_in_doubt_until_it_is_right[302]")
def clock_is_always_believed() -> None:
    """Somebody sets the clock, and the server says that all is well."""

    @instead_of(ClockCheck, "look")
    def look(real: Any, check: ClockCheck) -> int:
        return 0


@breaks("admin.counts")
def deleted_users_are_counted() -> None:
    """The number of users only grows."""

    @instead_of(Counts, "of")
    def of(real: Any, record: Record | None) -> Counts:
        return Counts(users=1) if isinstance(record, Deleted) else real(record)


@breaks("admin.revision")
def revision_is_not_told() -> None:
    """Nobody can see which commit runs."""
    change_setting("revision", lambda revision: None)


@breaks("document.same")
def json_document_is_another() -> None:
    """openapi.json has another version than openapi.yaml."""

    @instead_of(Spec, "__init__")
    def load(real: Any, spec: Spec, path: Any) -> None:
        real(spec, path)
        spec.json = spec.json.replace(b'"version":"', b'"version":"0.', 1)


@breaks(test="server_tests/test_server.py::test_the_log_tells_what_happened_and_no_secret")
def credentials_are_logged() -> None:
    """Anybody who reads the log can read every backup."""

    @on_answer
    def change_answer(environ: Mapping[str, Any], answer: Any) -> None:
        log(event="credentials", authorization=environ.get("HTTP_AUTHORIZATION"))


@breaks(test="server_tests/test_process.py::test_nobody_reads_the_log[stays away]")
def log_waits_for_its_reader() -> None:
    """If nobody reads the log, the server answers nobody."""

    @instead_of(Log, "__call__")
    def write(real: Any, log: Log, **event: Any) -> None:
        os.write(1, log._line(event))


@breaks("admin.whole")
def admin_key_counts_by_its_beginning() -> None:
    """Whoever finds the first character finds the next one."""
    compare_admin_keys(lambda right, sent: right.startswith(sent))


@breaks("admin.whole")
def first_half_of_the_admin_key_is_enough() -> None:
    """Only the first 32 characters of the admin key count."""
    compare_admin_keys(lambda right, sent: len(sent) == len(right) and right[:32] == sent[:32])


@breaks("admin.whole")
def admin_key_may_be_in_capitals() -> None:
    """The admin key is compared without regard to case."""
    compare_admin_keys(lambda right, sent: right.lower() == sent.lower())


@breaks("admin.whole")
def admin_key_is_cut_at_72_bytes() -> None:
    """What stores the admin key reads 72 bytes of it, as bcrypt does."""
    compare_admin_keys(lambda right, sent: right[:72] == sent[:72])


def compare_admin_keys(is_right: Callable[[str, str], bool]) -> None:
    @instead_of_proof("adminKey")
    def check_admin_key(real: Any, server: Server, request: Request) -> Any:
        bearer = backup_server.BEARER.fullmatch(request.header("Authorization") or "")
        if not bearer or not is_right(server.settings.admin_key or "", bearer[1]):
            raise backup_server.Problem("admin_key_invalid", "Send the admin key as a Bearer token.")


@breaks("admin.bytes")
def database_is_counted_without_its_log() -> None:
    """What was stored since the last checkpoint does not count in databaseBytes."""
    change_bytes("databaseBytes", lambda number: 4096)


@breaks("admin.bytes")
def free_bytes_are_those_of_the_whole_volume() -> None:
    """freeBytes does not become less, whatever is stored."""
    change_bytes("freeBytes", lambda number: 10**12)


def change_bytes(name: str, changed: Callable[[int], int]) -> None:
    @instead_of_handler("getAdminStats")
    def get_admin_stats(real: Any, server: Server, request: Request) -> Response:
        stats = json.loads(real(server, request).body)
        return backup_server.answer(200, stats | {name: changed(stats[name])})
