"""The page about a run: one self-contained HTML file, made from report.html.j2."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jinja2

from contract_tests.suite.outcomes import OUTCOMES, VERDICTS

SLOWEST = 10  # how many of the slowest tests the page lists


@dataclass
class Requirement:
    """A requirement, its verdict and its tests, which are of class run.Test."""

    id: str
    sentence: str
    category: str
    verdict: str
    tests: list[Any]


def page(
    facts: Mapping[str, str],
    requirements: list[Requirement],
    tests: list[Any],
    faults: list[str],
    reasons: Mapping[tuple[str, str], int],
) -> str:
    """Return the page.

    `facts` describe the whole run. `faults` are what made the run fail, apart from failed tests. `reasons` count the
    tests that neither passed nor failed, by (outcome, reason).
    """
    failed = [test for test in tests if test.outcome == "failed"]
    counts = [(verdict, sum(each.verdict == verdict for each in requirements)) for verdict in reversed(VERDICTS)]
    categories: dict[str, list[Requirement]] = {}
    for each in requirements:
        categories.setdefault(each.category, []).append(each)
    return template().render(
        facts=facts,
        proven=f"{dict(counts)['proven']} of {len(requirements)} requirements proven",
        is_good=not failed and not faults,
        failed=failed,
        faults=faults,
        reasons=sorted(reasons.items()),
        counts=[(verdict, count) for verdict, count in counts if count],
        meaning=VERDICTS,
        categories=categories.items(),
        slowest=sorted(tests, key=lambda test: -test.seconds)[:SLOWEST],
        summary=summary(tests),
    )


def template() -> jinja2.Template:
    """Return the template. It escapes every value that it puts into the page. An unknown name is an error."""
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent), autoescape=True, undefined=jinja2.StrictUndefined
    )
    environment.filters |= {"css": css, "short": short, "anchor": anchor}
    return environment.get_template("report.html.j2")


def summary(tests: list[Any]) -> str:
    """Return how many tests had which outcome, and how long all tests took."""
    counts = ((outcome, sum(test.outcome == outcome for test in tests)) for outcome in OUTCOMES)
    shown = ", ".join(f"{count:,} {outcome}" for outcome, count in counts if count)
    return f"{len(tests):,} tests ({shown}), {sum(test.seconds for test in tests):.0f} s in total"


def css(outcome: str) -> str:
    """Return the CSS class of an outcome or a verdict."""
    return outcome.replace(" ", "-")


def short(test: Any) -> str:
    """Return a test's name as the page shows it."""
    return test.name.removeprefix("contract_tests/")


def anchor(test: Any) -> str:
    """Return the HTML id of the section about a failed test."""
    return "test-" + "".join(c if c.isalnum() else "-" for c in test.name)
