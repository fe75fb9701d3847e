"""clients/swift/README.md names test vectors. They exist, and they have the values that it quotes."""

import re
from typing import Any

import pytest
import yaml

from contract_tests.target import openapi
from contract_tests.target.openapi import REPOSITORY
from server_tests import vectors

APPENDIX = (REPOSITORY / "clients/swift/README.md").read_text()
BLOCKS = re.findall(r"^```(\w+)\n(.*?)^```$", APPENDIX, re.MULTILINE | re.DOTALL)
CODE = "\n".join(block for language, block in BLOCKS if language == "swift" and "PackageDescription" not in block)
NAMED = sorted({int(number) for number in re.findall(r"tcId (\d+)", APPENDIX)})
QUOTED = [
    (int(number), member, value)
    for number, member, value in re.findall(r"^ *// tcId (\d+): ([\w-]+) (.+)$", CODE, re.MULTILINE)
]
GROUPS = [group for kind in vectors.KINDS for group in vectors.load(kind)["testGroups"]]
CASES = {test["tcId"]: test for group in GROUPS for test in group["tests"]}


def member_of(case: dict[str, Any], name: str) -> str:
    """Return a member of a vector or, if there is none, the value of one of its headers."""
    if name in case:
        return str(case[name])
    (value,) = [value for line in case["headers"] for header, value in [line.split(": ", 1)] if header == name]
    return value


@pytest.mark.parametrize("number", NAMED)
def test_each_vector_that_is_named_exists(number: int):
    assert number in CASES


@pytest.mark.parametrize("number, member, value", QUOTED)
def test_each_value_that_is_quoted_is_the_vectors(number: int, member: str, value: str):
    case = CASES[number]
    assert case["result"] == "valid"
    assert member_of(case, member) == value


def test_each_step_of_the_code_names_a_vector():
    """Check every function that computes something, except the client's set-up and use, which no vector shows."""
    before_its_use = CODE.partition("import OpenAPIURLSession")[0]
    steps = re.split(r"^(?=(?:    private )?func )", before_its_use, flags=re.MULTILINE)[1:]
    assert len(steps) > 12
    assert [step.partition("(")[0] for step in steps if "tcId" not in step] == []


def test_what_is_written_as_a_quotation_was_read_as_one():
    assert len(QUOTED) == len(re.findall(r"tcId \d+:", CODE)) > 20


def test_the_generators_configuration_fits_the_contract():
    (configuration,) = [yaml.safe_load(block) for language, block in BLOCKS if language == "yaml"]
    assert set(configuration["filter"]["tags"]) <= {tag["name"] for tag in openapi.SPEC["tags"]}


def test_the_guide_says_that_it_was_not_compiled():
    assert "None of this was compiled" in APPENDIX.partition("##")[0]
