"""Faults that take a bound away, or the order that keeps a request small. Few of them can be seen by one client."""

import functools
import math
from tempfile import TemporaryFile
from typing import Any

import backup_server
from server import bounds, http_parser, http_server
from server_tests.broken.fault import breaks, change, instead_of

TESTS = "server_tests/test_bounds.py::test_"
AHEAD = "contract_tests/test_http.py::test_of_requests_that_are_sent_ahead_two_are_answered[250]"
PLACES = f"{TESTS}the_connection_that_waits_longest_is_closed"

# A bound, what it becomes, and the test that catches this. The fault is named after the bound: no-head-seconds.
REMOVED: dict[str, tuple[Any, str]] = {
    "CONNECTIONS": (math.inf, f"{PLACES}[in all]"),
    "CONNECTIONS_OF_AN_ADDRESS": (math.inf, f"{TESTS}addresses_have_places_of_their_own"),
    "RESERVED_DESCRIPTORS": (-math.inf, f"{PLACES}[descriptors]"),
    "HEAD_SECONDS": (math.inf, f"{TESTS}a_head_has_its_time"),
    "IDLE_SECONDS": (math.inf, f"{TESTS}a_connection_may_be_idle_for_a_while"),
    "SILENT_SECONDS": (math.inf, f"{TESTS}a_body_that_stops_gets_an_answer"),
    "ANSWER_SECONDS": (math.inf, f"{TESTS}an_answer_has_its_time"),
    "LINGER_SECONDS": (math.inf, f"{TESTS}the_end_of_a_refused_connection_is_waited_for"),
    "LINGER_BYTES": (math.inf, f"{TESTS}so_much_is_discarded_and_no_more"),
    "DRAIN_SECONDS": (math.inf, f"{TESTS}whoever_reads_nothing_does_not_hold_up_a_stop_for_long"),
    "DRAIN_INCOMPLETE_SECONDS": (math.inf, f"{TESTS}a_request_that_is_half_there_does_not_hold_up_a_stop"),
    "REQUESTS_OF_AN_ADDRESS": (math.inf, f"{TESTS}requests_in_progress_of_an_address"),
    "QUEUE_SECONDS": (math.inf, f"{TESTS}uploads_that_wait_hold_up_nothing_else"),
    "REQUESTS_AHEAD": (math.inf, AHEAD),
    "READS": ((1, math.inf), f"{TESTS}reads_that_wait"),
    "WRITES": ((1, math.inf), f"{TESTS}uploads_that_wait_hold_up_nothing_else"),
    "LARGE_WRITES": ((1, math.inf), f"{TESTS}uploads_that_wait_hold_up_nothing_else"),
    "SMALL_BODY_BYTES": (math.inf, f"{TESTS}a_large_body_waits_beside_the_database"),
    "BODIES_IN_MEMORY": (math.inf, f"{TESTS}room_for_bodies[memory]"),
    "BODIES_ON_DISK": (math.inf, f"{TESTS}room_for_bodies[disk]"),
    "SHARE_OF_A_USER": (1, f"{TESTS}room_for_bodies"),
    "UNREAD_ANSWERS": (math.inf, f"{TESTS}room_for_answers[UNREAD_ANSWERS]"),
    "UNREAD_ANSWERS_OF_AN_ADDRESS": (math.inf, f"{TESTS}room_for_answers[UNREAD_ANSWERS_OF_AN_ADDRESS]"),
    "DAMAGED": (math.inf, "server_tests/test_damage.py::test_so_much_damage_is_remembered"),
    "OPERATOR_SECONDS": (3600, "server_tests/test_maintenance.py::test_whoever_is_slow_or_gone_does_not_stay_long"),
    "OPERATOR_LINE_BYTES": (2**24, "server_tests/test_maintenance.py::test_the_socket_refuses_what_it_does_not_know"),
    "OPERATOR_ACCOUNTS": (math.inf, "server_tests/test_maintenance.py::test_the_socket_refuses_what_it_does_not_know"),
    "METRICS_CONNECTIONS": (math.inf, "server_tests/test_metrics.py::test_whoever_says_nothing_takes_nothing"),
    "METRICS_SECONDS": (math.inf, "server_tests/test_metrics.py::test_a_request_that_drips_is_cut_off"),
    "LOG_BYTES": (math.inf, "server_tests/test_process.py::test_nobody_reads_the_log"),
}


def remove(name: str, value: Any, test: str) -> None:
    """Register the fault that takes a bound away."""
    put_in = functools.partial(change, bounds, name, value)
    put_in.__name__, put_in.__module__ = f"no_{name.lower()}", __name__  # type: ignore[attr-defined]
    put_in.__doc__ = f"{name} is no bound."
    breaks(test=test)(put_in)


for name, (value, test) in REMOVED.items():
    remove(name, value, test)


@breaks("http.refused-body", test=f"{TESTS}nobody_without_an_account_makes_the_server_keep_a_body")
def body_is_received_before_the_head_is_looked_at() -> None:
    """A stranger's body is received to its end."""

    @instead_of(http_server.Channel, "_look_at_head")
    def look(real: Any, channel: Any, request: Any) -> None:
        real(channel, request)
        if request.body is not None:
            request.is_wanted, request.most = True, request.body.expected
            request.body.keep()


@breaks(test=f"{TESTS}a_large_body_waits_beside_the_database")
def large_body_waits_in_the_temporary_directory() -> None:
    """On Fly, that is the slow root disk."""
    change(http_parser, "TemporaryFile", lambda dir: TemporaryFile())


@breaks(test=f"{TESTS}whoever_sends_a_refused_body_sees_the_answer")
def refused_connection_is_closed_at_once() -> None:
    """A reset overtakes the answer."""
    change(http_server.Channel, "_linger", http_server.Channel.handle_close)


@breaks(test=f"{TESTS}no_circle_keeps_a_refused_body")
def refusal_is_in_a_circle() -> None:
    """What a refused request has used stays until the cyclic collector runs."""

    @instead_of(backup_server, "problem_of")
    def problem_of(real: Any, error: Any) -> Any:
        error.itself = error
        return real(error)


@breaks(test=f"{TESTS}uploads_that_wait_hold_up_nothing_else")
def there_is_one_lane() -> None:
    """Reads wait behind uploads."""
    change(http_server.Lanes, "_lane", lambda lanes, request: lanes._writes)
    change(bounds, "WRITES", (1, 1000))
