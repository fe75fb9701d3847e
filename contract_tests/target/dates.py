"""The dates at which a run's servers live, if it is to be at others than today.

CONTRACT_DATES has dates, separated by commas: 2028-02-29,2028-03-01. Each test then begins shortly before midnight, and
one of these dates begins while it runs. That goes for each server that a run starts, unless the test stops its clock.
"""

import itertools
import os
from datetime import UTC, datetime
from typing import Protocol

LEADS = (0.03, 0.3, 1, 0.1, 3)  # how many seconds before the date, in turn
FOUR_YEARS = 1461 * 86_400  # seconds; the same dates come again


class Server(Protocol):
    def now(self) -> float: ...

    def move_clock(self, seconds: float) -> None: ...


def beginnings(dates: str) -> list[int]:
    """Return when these dates begin in UTC, in Unix seconds."""
    return [int(datetime.fromisoformat(date).replace(tzinfo=UTC).timestamp()) for date in sorted(dates.split(","))]


DATES = beginnings(os.environ["CONTRACT_DATES"]) if os.environ.get("CONTRACT_DATES") else []
_leads = itertools.cycle(LEADS)


def come_near(server: Server, lead: float | None = None) -> None:
    """Move a server's clock ahead, to `lead` seconds before the next date, or shortly before, if the run has dates.

    A server that runs should not move far: it would find that nothing was looked after for months.
    """
    if not DATES:
        return
    now, lead = server.now(), lead or next(_leads)
    later = (date + FOUR_YEARS * period for period in itertools.count() for date in DATES)
    server.move_clock(next(date for date in later if date - lead > now) - lead - now)
