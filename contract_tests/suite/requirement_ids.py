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
# The stages in which a server is built. Each lists ids, or the first parts of ids; the longer name counts. An answer
# with one of STAGES_OF_STATUSES is of that stage, unless its id is listed. A test is of the last stage of its ids, or
# of a later one if it NEEDS more, or if its mark `stage` says so.
STAGES = {
    1: "getHealth getOpenapiYaml getOpenapiJson document problem http.head header.X-Request-Id header.Cache-Control "
    "header.Allow",
    2: "signature digest credentials header.WWW-Authenticate",
    3: "account backup version etag register key delete isolation retry.receipt base.latest registerUser storeBackup "
    "fetchBackup fetchBackupVersion listBackupVersions changeStorageKey deleteUser http.schema http.media-type "
    "header.ETag header.Location problem.pointer problem.unchanged",
    4: "base retry history limits address guessing space order http cors admin getAdminStats header key.same "
    "key.emergency delete.reserved isolation.block backup.largest backup.too-large backup.body registerUser.409 "
    "storeBackup.409 changeStorageKey.409",
    5: "durability erase replay health isolation.order base.race register.race credentials.commit signature.arrival "
    "http.body-time account.damaged backup.damaged retry.mends",
}
STAGE_NAMES = {
    1: "health, documents, 404, 405, problems",
    2: "proofs",
    3: "register, store, fetch",
    4: "conflicts, history, limits",
    5: "races, replays, clocks, crashes",
}
STAGES_OF_STATUSES = {
    **{"401": 2, "403": 2, "400": 4, "408": 5, "413": 4, "429": 4, "431": 4},
    **{"500": 5, "503": 5, "507": 5},
}
# The fixtures that need an account or a server of the test's own, and the first stage that has them.
NEEDS = {"new_user": 3, "user": 3, "start_server": 4, "start_shared_server": 4, "admin_key": 4, "allowed_origin": 4}
PREFIXES = {identifier.partition(".")[0] for identifier in REQUIREMENTS}


def category(identifier: str) -> str:
    """Return the category of an id."""
    prefix = identifier.partition(".")[0]
    return next(name for name, prefixes in CATEGORIES.items() if prefix in prefixes.split())


def stage(identifier: str) -> int:
    """Return the stage of an id."""
    prefix, _, last = identifier.partition(".")
    stages = {name: number for number, names in STAGES.items() for name in names.split()}
    status = STAGES_OF_STATUSES.get(last) if prefix in OPERATIONS else None
    return stages.get(identifier) or status or stages[prefix]


def stage_of(item: Any, ids: list[str]) -> int:
    """Return the stage of a test that names these ids. A test that also fits a public deployment needs no account."""
    fixtures = set(item.fixturenames) - ({"user"} if item.get_closest_marker("public") else set())
    needed = [NEEDS[name] for name in fixtures & NEEDS.keys()]
    needed += [number for mark in item.iter_markers("stage") for number in mark.args]
    return max([stage(identifier) for identifier in ids] + needed, default=1)


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
