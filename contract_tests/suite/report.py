"""The page about a run: one HTML file that needs nothing else. `plugin.py` fills it in."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from html import escape
from typing import Any

ORDER = ["failed", "failed as expected", "not run", "skipped", "partly proven", "proven"]
TESTS_FIRST = ["failed", "expected failure", "not run", "skipped", "passed"]
MEANING = {
    "proven": "every test that names it has passed",
    "partly proven": "tests that name it have passed, others were not run",
    "failed": "a test that names it has failed",
    "failed as expected": "failed, and the file of expected failures says why",
    "not run": "something is missing that the run was not given",
    "skipped": "the target declares that it does not do this",
}


@dataclass
class Requirement:
    """A requirement with what came of it; `tests` are plugin.Test."""

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
    """The page. `facts` are about the whole run; `faults` made it fail beside failed tests; `reasons` (outcome,
    reason) say why so many tests did not pass, without having failed."""
    failed = [test for test in tests if test.outcome == "failed"]
    counts = {verdict: sum(each.verdict == verdict for each in requirements) for verdict in reversed(ORDER)}
    is_good = not failed and not faults
    proven = f"{counts['proven']} of {len(requirements)} requirements proven"
    return PAGE.format(
        title=escape(f"{proven} · {facts['target']}"),
        state="good" if is_good else "bad",
        headline=escape(proven),
        verdict="The contract is kept, as far as it was tested." if is_good else "The contract is not kept.",
        bar="".join(
            f'<span class="{css(verdict)}" style="flex-grow:{count}" title="{count} {verdict}"></span>'
            for verdict, count in counts.items()
            if count
        ),
        counts="".join(
            f'<label title="{escape(MEANING[verdict])}"><input type="checkbox" value="{css(verdict)}" checked>'
            f'<b class="badge {css(verdict)}">{count}</b> {verdict}</label>'
            for verdict, count in counts.items()
            if count
        ),
        facts="".join(f"<dt>{escape(name)}</dt><dd>{escape(value)}</dd>" for name, value in facts.items() if value),
        faults=section("What is wrong with the run", "".join(f"<p>{escape(fault)}</p>" for fault in faults)),
        failures=section("What failed", "".join(map(failure, failed))),
        reasons=section(
            "What was not run, and why",
            "".join(
                f"<p>{count} {outcome}: {escape(reason)}</p>" for (outcome, reason), count in sorted(reasons.items())
            ),
        ),
        requirements="".join(group(name, list(members)) for name, members in grouped(requirements)),
        slowest="".join(
            f"<tr><td>{test.seconds:.1f} s</td><td><code>{escape(test.name)}</code></td></tr>"
            for test in sorted(tests, key=lambda test: -test.seconds)[:10]
        ),
        tests=summary(tests),
    )


def summary(tests: list[Any]) -> str:
    outcomes = sorted({test.outcome for test in tests})
    counts = ", ".join(f"{sum(test.outcome == outcome for test in tests):,} {outcome}" for outcome in outcomes)
    return f"{len(tests):,} tests ({counts}), {sum(test.seconds for test in tests):.0f} s in all"


def section(title: str, content: str) -> str:
    return f"<section><h2>{title}</h2>{content}</section>" if content else ""


def css(verdict: str) -> str:
    return verdict.replace(" ", "-")


def grouped(requirements: list[Requirement]) -> Iterable[tuple[str, Iterable[Requirement]]]:
    names = list(dict.fromkeys(each.category for each in requirements))
    for name in names:
        yield name, [each for each in requirements if each.category == name]


def group(name: str, requirements: list[Requirement]) -> str:
    proven = sum(each.verdict == "proven" for each in requirements)
    rows = "".join(map(row, requirements))
    return f"<h3>{escape(name)} <small>{proven} of {len(requirements)}</small></h3>{rows}"


def row(requirement: Requirement) -> str:
    verdict = requirement.verdict
    seconds = sum(test.seconds for test in requirement.tests)
    ordered = sorted(requirement.tests, key=lambda test: (TESTS_FIRST.index(test.outcome), test.name))
    tests = "".join(map(line_of, ordered)) or "<li>no test of it was selected</li>"
    is_open = " open" if verdict == "failed" else ""
    number = len(requirement.tests)
    return f"""<details class="row {css(verdict)}" id="{escape(requirement.id)}"{is_open}><summary>
<b class="badge {css(verdict)}" title="{verdict}">{verdict.removesuffix(" proven")}</b>
<code>{escape(requirement.id)}</code> <span>{escape(requirement.sentence)}</span>
<small>{number} {"test" if number == 1 else "tests"}, {seconds:.1f} s</small></summary><ul>{tests}</ul></details>
"""


def line_of(test: Any) -> str:
    reason = test.reason.partition("\n")[0] if test.outcome != "passed" else ""
    name = escape(short(test.name))
    link = f'<a href="#{escape(anchor(test))}">{name}</a>' if test.outcome == "failed" else name
    return (
        f'<li><b class="mark {css(test.outcome)}" title="{test.outcome}"></b> <code>{link}</code> '
        f"<small>{test.seconds:.2f} s</small>{f'<em>{escape(reason[:300])}</em>' if reason else ''}</li>"
    )


def short(name: str) -> str:
    return name.removeprefix("contract_tests/")


def anchor(test: Any) -> str:
    return "test-" + "".join(c if c.isalnum() else "-" for c in test.name)


def failure(test: Any) -> str:
    ids = " ".join(f'<a href="#{escape(identifier)}"><code>{escape(identifier)}</code></a>' for identifier in test.ids)
    exchanges = "".join(
        f"<details{' open' if number == 0 else ''}><summary>{'the last exchange' if number == 0 else 'before it'}"
        f"</summary><pre>{escape(each['request'])}</pre><pre class=answer>{escape(each['answer'])}</pre></details>"
        for number, each in enumerate(test.exchanges)
    )
    return (
        f'<article id="{escape(anchor(test))}"><h3><code>{escape(short(test.name))}</code></h3><p>{ids}</p>'
        f"<pre>{escape(test.reason[:3000])}</pre>{exchanges}</article>"
    )


PAGE = """<!doctype html>
<html lang="en">
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{title}</title>
<style>
:root {{ color-scheme: light dark; --text: #1c2330; --quiet: #667085; --page: #f6f7f9; --card: #fff; --line: #e3e6eb;
  --good: #15803d; --bad: #c81e1e; --warn: #a16207; --idle: #64748b; --part: #4d7c0f; }}
@media (prefers-color-scheme: dark) {{ :root {{ --text: #e6e9ef; --quiet: #98a2b3; --page: #12161d; --card: #1a2029;
  --line: #2b3340; --good: #4ade80; --bad: #f87171; --warn: #facc15; --idle: #94a3b8; --part: #a3e635; }} }}
* {{ box-sizing: border-box; }}
body {{ margin: 0 auto; max-width: 68rem; padding: 1.5rem 1rem 4rem; background: var(--page); color: var(--text);
  font: 15px/1.5 system-ui, sans-serif; }}
code {{ overflow-wrap: anywhere; }}
code, pre {{ font: 13px/1.5 ui-monospace, "DejaVu Sans Mono", monospace; }}
a {{ color: inherit; text-underline-offset: 2px; }}
small {{ color: var(--quiet); font-size: 13px; }}
header, section {{ background: var(--card); border: 1px solid var(--line); border-radius: 10px; padding: 1.25rem 1.5rem;
  margin-bottom: 1rem; }}
header {{ border-top: 5px solid var(--good); }} header.bad {{ border-top-color: var(--bad); }}
h1 {{ font-size: 1.6rem; line-height: 1.2; margin: 0; }} h2 {{ font-size: 1.15rem; margin: 0 0 .5rem; }}
h3 {{ font-size: 1rem; margin: 1.25rem 0 .25rem; }}
header p {{ margin: .25rem 0 1rem; color: var(--quiet); }}
.bar {{ display: flex; gap: 2px; height: 10px; border-radius: 5px; overflow: hidden; margin-bottom: 1rem; }}
.bar span {{ min-width: 4px; }}
dl {{ display: grid; grid-template-columns: max-content 1fr; gap: .1rem 1.25rem; margin: 0; }}
dt {{ color: var(--quiet); }} dd {{ margin: 0; overflow-wrap: anywhere; }}
.filters {{ display: flex; flex-wrap: wrap; gap: .5rem 1.25rem; align-items: center; margin-bottom: .5rem; }}
.filters label {{ cursor: pointer; white-space: nowrap; }}
input[type=search] {{ flex: 1 1 12rem; font: inherit; color: inherit; background: var(--page);
  border: 1px solid var(--line); border-radius: 6px; padding: .35rem .7rem; }}
.badge {{ display: inline-block; border-radius: 4px; padding: 0 .45rem; font-size: 12px; line-height: 1.6;
  font-weight: 600; color: var(--card); background: var(--idle); white-space: nowrap; }}
.proven {{ --c: var(--good); }} .failed {{ --c: var(--bad); }} .partly-proven {{ --c: var(--part); }}
.not-run, .skipped {{ --c: var(--idle); }} .failed-as-expected, .expected-failure {{ --c: var(--warn); }}
.passed {{ --c: var(--good); }}
.badge, .bar span, .mark {{ background: var(--c, var(--idle)); }}
.mark {{ display: inline-block; width: .6em; height: .6em; border-radius: 50%; }}
.row {{ border-top: 1px solid var(--line); }}
.row > summary {{ display: grid; grid-template-columns: 6.5rem 12.5rem 1fr max-content; gap: .25rem .75rem;
  padding: .4rem 0; cursor: pointer; list-style: none; align-items: baseline; }}
.row > summary::-webkit-details-marker {{ display: none; }}
.row > summary:hover {{ background: var(--page); }}
.row .badge {{ justify-self: start; white-space: normal; }}
.row ul {{ margin: 0 0 .75rem; padding-left: 1rem; list-style: none; max-height: 22rem; overflow: auto; }}
li {{ overflow-wrap: anywhere; }} em {{ display: block; color: var(--quiet); padding-left: 1.1rem; }}
pre {{ background: var(--page); border: 1px solid var(--line); border-radius: 6px; padding: .75rem; margin: .5rem 0;
  overflow-x: auto; white-space: pre-wrap; overflow-wrap: anywhere; }}
pre.answer {{ border-left: 3px solid var(--idle); }}
article + article {{ border-top: 1px solid var(--line); margin-top: 1rem; padding-top: .25rem; }}
article summary {{ cursor: pointer; color: var(--quiet); }}
td {{ padding: .1rem 1rem .1rem 0; vertical-align: top; overflow-wrap: anywhere; }}
td:first-child {{ white-space: nowrap; }}
[hidden] {{ display: none !important; }}
@media (max-width: 46rem) {{ .row > summary {{ grid-template-columns: max-content 1fr; }}
  .row > summary > span {{ grid-column: 1 / -1; }} .row > summary > small {{ grid-column: 1 / -1; }}
  dl {{ grid-template-columns: 1fr; }} dd {{ margin-bottom: .4rem; }} }}
</style>
<header class="{state}">
<h1>{headline}</h1>
<p>{verdict}</p>
<div class="bar">{bar}</div>
<dl>{facts}<dt>tests</dt><dd>{tests}</dd></dl>
</header>
{faults}
{failures}
{reasons}
<section>
<h2>Requirements</h2>
<div class="filters">{counts}<input type="search" placeholder="search ids, sentences, tests" aria-label="search"></div>
<div id="rows">{requirements}</div>
</section>
<section><h2>What took longest</h2><table>{slowest}</table></section>
<script>
const boxes = [...document.querySelectorAll(".filters input[type=checkbox]")];
const search = document.querySelector("input[type=search]");
function filter() {{
  const on = new Set(boxes.filter((box) => box.checked).map((box) => box.value));
  const words = search.value.toLowerCase().split(/\\s+/).filter(Boolean);
  for (const heading of document.querySelectorAll("#rows h3")) {{
    let shown = 0;
    for (let row = heading.nextElementSibling; row?.matches(".row"); row = row.nextElementSibling) {{
      const text = row.textContent.toLowerCase();
      row.hidden = !on.has(row.classList[1]) || !words.every((word) => text.includes(word));
      shown += !row.hidden;
    }}
    heading.hidden = !shown;
  }}
}}
boxes.forEach((box) => box.addEventListener("change", filter));
search.addEventListener("input", filter);
</script>
</html>
"""
