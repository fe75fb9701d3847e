"""Loads the test vectors of `fixtures/`. Refuses a file if it does not understand all of it."""

import json
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

from jsonschema import Draft202012Validator

FIXTURES = Path(__file__).resolve().parent.parent / "fixtures"
KINDS = ("derivation", "encryption", "devices", "signing", "exchanges")

Vectors = dict[str, Any]


class VectorError(Exception):
    """A file of vectors does not follow schema.json, or contradicts itself."""


@cache
def load(kind: str) -> Vectors:
    """Return the vectors of `fixtures/{kind}.json`. Raise VectorError."""
    return parse((FIXTURES / f"{kind}.json").read_bytes())


def parse(content: bytes) -> Vectors:
    """Return the vectors in a file's bytes. Raise VectorError for an unknown key, a key twice, or a wrong count."""
    vectors = json.loads(content, object_pairs_hook=_without_duplicates)
    for error in _validator().iter_errors(vectors):
        raise VectorError(f"{error.json_path}: {error.message[:200]}")
    tests = [test for group in vectors["testGroups"] for test in group["tests"]]
    if len(tests) != vectors["numberOfTests"]:
        raise VectorError(f"there are {len(tests)} tests, not {vectors['numberOfTests']}")
    if len({test["tcId"] for test in tests}) != len(tests):
        raise VectorError("a tcId occurs twice")
    if {flag for test in tests for flag in test["flags"]} != set(vectors["notes"]):
        raise VectorError("there are flags without a note, or notes without a flag")
    return vectors


def cases(kind: str, group_type: str) -> Iterator[tuple[Vectors, Vectors]]:
    """Yield (group, test) for each test in the groups of one type."""
    for group in load(kind)["testGroups"]:
        if group["type"] == group_type:
            for test in group["tests"]:
                yield group, test


@cache
def _validator() -> Draft202012Validator:
    return Draft202012Validator(json.loads((FIXTURES / "schema.json").read_bytes()))


def _without_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    if len(dict(pairs)) != len(pairs):
        raise VectorError(f"a key occurs twice among {[key for key, _ in pairs]}")
    return dict(pairs)
