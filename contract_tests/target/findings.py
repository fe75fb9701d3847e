"""What is wrong with answers, whatever a test asks for: a header, a content type, a schema.

Such a fault is found at every answer. It is charged to its own requirement, and does not end the test that met it. The
suite collects what was found (`begin`), and reports each requirement once, at the end of the run. Outside of a run,
nobody collects, so the first fault raises AssertionError.
"""

import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from contract_tests.target.exchanges import Exchange

Judgement = Mapping[str, Sequence[str]]  # each requirement that an answer was held against, and what is wrong


@dataclass
class Finding:
    """How many answers were held against a requirement, how many broke it, and the first that did."""

    answers: int = 0
    broken: int = 0
    what: str = ""  # what is wrong with the first
    exchange: Exchange | None = None


@dataclass
class Findings:
    """The findings since `take` was last called, by requirement. `of_test` has what the current test saw broken."""

    found: dict[str, Finding] = field(default_factory=dict)
    of_test: set[str] = field(default_factory=set)
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def add(self, judgement: Judgement, exchange: Exchange | None) -> None:
        with self._lock:
            for requirement, faults in judgement.items():
                finding = self.found.setdefault(requirement, Finding())
                finding.answers += 1
                if faults:
                    self.of_test.add(requirement)
                    finding.broken += 1
                    if finding.broken == 1:
                        finding.what, finding.exchange = "; ".join(faults), exchange

    def take(self) -> dict[str, Finding]:
        """Return the findings, and forget them."""
        with self._lock:
            found, self.found = self.found, {}
        return found


collected: Findings | None = None  # of this process, if a run collects


def begin() -> Findings:
    """Collect what is found from now on."""
    global collected
    collected = Findings()
    return collected


def report(judgement: Judgement, exchange: Exchange | None) -> None:
    """Collect what an answer was held against. If nobody collects, raise AssertionError for what is wrong."""
    if collected is not None:
        collected.add(judgement, exchange)
        return
    wrong = [f"{requirement}: {fault}" for requirement, faults in judgement.items() for fault in faults]
    assert not wrong, wrong
