"""Reads openapi.yaml: the document, its limits and its operations. Every other module asks this one.

The document is the one beside the server that is tested, `SERVER`.
"""

import os
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

import yaml
from jsonschema import FormatChecker

REPOSITORY = Path(__file__).resolve().parents[2]
# The server to test. BACKUP_SERVER names another backup_server.py, with its openapi.yaml and server/ beside it.
SERVER = Path(os.environ.get("BACKUP_SERVER") or REPOSITORY / "backup_server.py").resolve()

SPEC_PATH = SERVER.parent / "openapi.yaml"
SPEC_BYTES = SPEC_PATH.read_bytes()
SPEC: dict[str, Any] = yaml.load(SPEC_BYTES, yaml.CSafeLoader)
LIMITS: dict[str, Any] = SPEC["x-limits"]
RESERVED: int = LIMITS["deletedUserSeconds"]  # how many seconds a deleted userId stays reserved
MAX_DECODED_BYTES: int = SPEC["components"]["schemas"]["BackupData"]["x-maxDecodedBytes"]

METHODS = ("get", "put", "post", "delete", "options", "head", "patch", "trace")
FORMATS = FormatChecker([])


@FORMATS.checks("date-time", raises=ValueError)
def is_timestamp(value: object) -> bool:
    """Return whether a string is RFC 3339 in UTC without fractional seconds, as the contract requires."""
    form = "%Y-%m-%dT%H:%M:%SZ"  # strptime() accepts numbers without leading zeros, too, so write the time again
    return not isinstance(value, str) or datetime.strptime(value, form).strftime(form) == value


def resolved(node: Any) -> Any:
    """Return the node with each $ref replaced by its target. (No schema here contains itself.)"""
    if isinstance(node, Mapping):
        if "$ref" in node:
            target: Any = SPEC
            for step in node["$ref"].removeprefix("#/").split("/"):
                target = target[step]
            return resolved(target)
        return {key: resolved(value) for key, value in node.items()}
    return [resolved(item) for item in node] if isinstance(node, list) else node


@dataclass(frozen=True)
class Operation:
    """One operation: its id, method, path template, whether it is signed, and its responses by status."""

    id: str
    method: str
    path: str
    signed: bool
    responses: dict[str, Any]

    def matches(self, path: str) -> bool:
        """Return whether a path, as sent, belongs to this operation."""
        return re.fullmatch(re.sub(r"\\{\w+\\}", "[^/]+", re.escape(self.path)), path) is not None


def operations() -> Iterator[Operation]:
    """Yield every operation of the spec."""
    for path, item in SPEC["paths"].items():
        for method in METHODS:
            if method in item:
                operation = item[method]
                signed = any("appSignature" in alternative for alternative in operation["security"])
                responses = resolved(operation["responses"])
                yield Operation(operation["operationId"], method.upper(), path, signed, responses)


OPERATIONS = {operation.id: operation for operation in operations()}


def find_operation(method: str, path: str) -> Operation | None:
    """Return the operation that answers this method at this path, as sent. A GET without proofs also answers HEAD."""
    for operation in OPERATIONS.values():
        if operation.matches(path):
            proof = SPEC["paths"][operation.path][operation.method.lower()]["security"]
            if method == operation.method or (method == "HEAD" and operation.method == "GET" and not proof):
                return operation
    return None


def left_out(document: Mapping[str, Any]) -> set[str]:
    """Return the ids of the operations that a server leaves out of `document`, its own /openapi.json."""
    paths = document["paths"]
    return {each.id for each in OPERATIONS.values() if each.method.lower() not in paths.get(each.path, {})}
