"""What was due instead of what came: which rule of the order in openapi.yaml answered, and which should have.

The rules are those under "Which problem comes first". A registration has an order of its own from step 21 on.
"""

import json
import re
from dataclasses import dataclass
from typing import Any

from contract_tests.target.openapi import SPEC

OUTCOME = re.compile(r"[1-5][0-9]{2}( [a-z_]+)?")  # as contract_tests.target.calls.outcome names an answer


@dataclass(frozen=True)
class Rule:
    """A rule of the order: its name, its sentence, the outcomes that it gives, and its place in the order."""

    name: str
    sentence: str
    outcomes: frozenset[str]
    place: int


def read_rules() -> tuple[list[Rule], list[Rule]]:
    """Return the rules of the order, and those that replace the ones from step 21 on in a registration."""
    section = SPEC["info"]["description"].partition("\n### Which problem comes first\n")[2].partition("\n## ")[0]
    common, _, of_registration = section.partition("A registration has this order")
    return read_list(common, "rule ", 0), read_list(of_registration, "rule 21 of a registration, no. ", 20)


def read_list(text: str, prefix: str, before: int) -> list[Rule]:
    """Return the rules of a numbered list. `before` is how many rules come before it."""
    items = re.findall(r"^ *(\d+)\. (.+?)(?=\n\n|\n *\d+\. |\Z)", text, re.MULTILINE | re.DOTALL)
    rules = []
    for number, item in items:
        sentence = re.sub(r"\s+", " ", item)
        outcomes, status = set(), ""
        for found, code in re.findall(r"(?:(?<=\()|(?<=gets ))(\d{3})|`(\w+)`", sentence):
            status = found or status
            outcomes |= {f"{status} {code}"} if code else set()
        rules.append(Rule(f"{prefix}{number}", sentence, frozenset(outcomes), before + int(number)))
    return rules


COMMON, OF_REGISTRATION = read_rules()


def rules_for(outcome: str, path: str = "") -> list[Rule]:
    """Return the rules that give an outcome, such as "409 version_conflict". Without a code, only the status counts."""
    if path == "/api/register":
        rules = [rule for rule in COMMON if rule.place <= 20] + OF_REGISTRATION
    else:
        rules = COMMON
    return [rule for rule in rules if any(f"{each} ".startswith(f"{outcome} ") for each in rule.outcomes)]


def explain(came: str, due: list[str], path: str = "") -> list[str]:
    """Return lines about an outcome that was not due: which rule gave it, and which rules give what was due."""
    gave, wanted = rules_for(came, path), [rule for each in due for rule in rules_for(each, path)]
    lines = [f"due: {' or '.join(due)}", *(f"    {rule.name}: {rule.sentence}" for rule in wanted)]
    lines += [f"but {came} came", *(f"    {rule.name}: {rule.sentence}" for rule in gave)]
    if not gave:
        why = "the request was accepted" if came < "400" else "the server failed" if came >= "500" else "what is this?"
        lines.append(f"    no rule of the order gives this: {why}")
    elif not wanted:
        lines.append("so a rule answered that does not apply to this request")
    elif max(rule.place for rule in gave) < min(rule.place for rule in wanted):
        lines.append("so a rule that comes earlier answered first, and it does not apply to this request")
    elif min(rule.place for rule in gave) > max(rule.place for rule in wanted):
        lines.append("so a rule that comes later answered first")
    return lines


def outcome_of(status: int, body: bytes) -> str:
    """Return the outcome of an answer, such as "409 version_conflict", or "409" if its body has no code."""
    try:
        return f"{status} {json.loads(body)['code']}" if status >= 400 else str(status)
    except (ValueError, LookupError, TypeError, RecursionError):
        return str(status)


def came_and_due(op: str, left: Any, right: Any) -> tuple[str, list[str]] | None:
    """Return the outcome that came and those that were due, or None if a failing comparison compares something else.

    `op` is "==" or "in". In tuples that are equated, only the first members are looked at.
    """
    if op == "==" and isinstance(left, tuple) and isinstance(right, tuple) and left and right:
        return came_and_due(op, left[0], right[0])
    wanted = [right] if op == "==" else list(right) if op == "in" and isinstance(right, list | tuple | set) else []
    if not wanted or not all(isinstance(each, int | str) and OUTCOME.fullmatch(str(each)) for each in (left, *wanted)):
        return None
    return str(left), [str(each) for each in wanted]
