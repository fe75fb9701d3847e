"""The requirements of openapi.yaml. Each has an id and a sentence. Every test names the ids that it proves.

    @pytest.mark.requirement("base.conflict", "{operation}.409")

A `{name}` is filled in from the test's parameters. A `*` matches any text, and the mark names every matching id. Use it
only for a test that really checks all of them.
"""

import fnmatch
from collections.abc import Mapping
from typing import Any

from contract_tests.target.openapi import OPERATIONS, SPEC


class UnknownRequirement(Exception):
    """A test names an id that openapi.yaml does not have."""


def collect() -> dict[str, str]:
    """Return every id with its sentence.

    The ids come from the prose, from each status of each operation, and from the headers. Raise KeyError if a status of
    an operation has no sentence. A header without a sentence has no id.
    """
    found: dict[str, str] = dict(SPEC["info"]["x-requirements"])
    for operation in OPERATIONS.values():
        for status, response in operation.responses.items():
            if status != "default":
                found[f"{operation.id}.{status}"] = response["x-requirement"]
    for name, header in SPEC["components"]["headers"].items():
        if "x-requirement" in header:
            found[f"header.{name}"] = header["x-requirement"]
    return found


REQUIREMENTS = collect()

# The categories that --category selects: each lists the first parts of its ids. The first part of any id is a category,
# too.
CATEGORIES = {
    "account": "account register key delete registerUser changeStorageKey deleteUser",
    "backup": "backup version etag base retry storeBackup fetchBackup fetchBackupVersion listBackupVersions",
    "proofs": "signature digest credentials",
    "isolation": "isolation replay",
    "limits": "limits address guessing space",
    "history": "history",
    "http": "http order problem header",
    "cors": "cors",
    "admin": "admin getAdminStats",
    "service": "document health getHealth getOpenapiYaml getOpenapiJson",
    "durability": "durability erase",
}
PREFIXES = {identifier.partition(".")[0] for identifier in REQUIREMENTS}


def category(identifier: str) -> str:
    """Return the category of an id."""
    prefix = identifier.partition(".")[0]
    return next(name for name, prefixes in CATEGORIES.items() if prefix in prefixes.split())


def expand(name: str, parameters: Mapping[str, Any]) -> list[str]:
    """Return the ids that a mark's argument means in a test with these parameters. Raise UnknownRequirement."""
    try:
        filled = name.format_map({key: str(value) for key, value in parameters.items()})
    except (KeyError, ValueError, AttributeError) as error:
        raise UnknownRequirement(f"{name} (there is no parameter {error})") from None
    ids = [identifier for identifier in REQUIREMENTS if fnmatch.fnmatchcase(identifier, filled)]
    if not ids:
        raise UnknownRequirement(filled)
    return ids


def named_by(item: Any) -> list[str]:
    """Return the ids that a pytest item names, filled in and expanded. Raise UnknownRequirement."""
    parameters = item.callspec.params if hasattr(item, "callspec") else {}
    names = [name for mark in item.iter_markers("requirement") for name in mark.args]
    return sorted({identifier for name in names for identifier in expand(name, parameters)})
