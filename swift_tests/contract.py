"""What swift-openapi-generator gets of openapi.yaml, and what it makes of that: `tox run -e swift -- --generate`.

The generated code is committed, so it must not change with each sentence of the contract, and a machine without Swift
must be able to tell whether it is out of date. So the generator gets an excerpt. The digest of the excerpt is in each
generated file, and `server_tests/test_swift.py` compares it.
"""

import hashlib
import json
import re
from pathlib import Path
from typing import Any

import yaml

REPOSITORY = Path(__file__).resolve().parent.parent
PACKAGE = REPOSITORY / "clients/swift"
GENERATED = PACKAGE / "Sources/DailyRepsBackup/Generated"
OPERATIONS = ("account", "backup")  # the tags of the operations that a device calls
# What the generator does not read, or repeats as a comment.
COMMENTS = {"description", "summary", "example", "examples", "security", "headers", "links"}
BOUNDS = {"pattern", "minLength", "maxLength", "minimum", "maximum", "maxItems"}
# The runtime decodes base64 leniently. The package decodes it itself, so it gets the text.
BASE64 = {"contentEncoding", "format: byte"}


def excerpt() -> dict[str, Any]:
    """Return the part of openapi.yaml that the generator gets.

    Of the responses, these are the successes and 304: a problem has the same form everywhere, and the package reads it
    before the generated code does.
    """
    spec = yaml.safe_load((REPOSITORY / "openapi.yaml").read_text())
    paths: dict[str, Any] = {}
    for path, item in spec["paths"].items():
        for method, operation in item.items():
            if isinstance(operation, dict) and set(operation.get("tags", ())) & set(OPERATIONS):
                responses = {
                    # OpenAPI requires a description.
                    status: reduced(resolved(spec, response)) | {"description": status}
                    for status, response in operation["responses"].items()
                    if status < "400"
                }
                paths.setdefault(path, {})[method] = reduced(operation) | {"responses": responses}
    schemas: dict[str, Any] = {}
    while wanted := references([paths, schemas]) - schemas.keys():
        schemas |= {name: reduced(spec["components"]["schemas"][name]) for name in sorted(wanted)}
    return {
        "openapi": spec["openapi"],
        "info": {"title": spec["info"]["title"], "version": "0"},
        "paths": paths,
        "components": {"schemas": schemas},
    }


def resolved(spec: dict[str, Any], response: dict[str, Any]) -> dict[str, Any]:
    name = response.get("$ref", "").rpartition("/")[2]
    return spec["components"]["responses"][name] if name else response


def references(node: Any) -> set[str]:
    """Return the names of the schemas that a part of the document refers to."""
    return set(re.findall(r'"#/components/schemas/(\w+)"', json.dumps(node)))


def reduced(node: Any, is_names: bool = False) -> Any:
    """Return a part of the document without what is dropped. `is_names`: its keys are names that the contract gives."""
    if isinstance(node, list):
        return [reduced(each) for each in node]
    if not isinstance(node, dict):
        return node
    kept = {}
    for key, value in node.items():
        name = f"{key}: {value}" if key == "format" else str(key)
        if is_names or not (name in COMMENTS | BOUNDS | BASE64 or name.startswith("x-")):
            kept[key] = reduced(value, is_names=key == "properties" and not is_names)
    return kept


def text() -> str:
    """Return the excerpt as the generator gets it: JSON is YAML."""
    return json.dumps(excerpt(), indent=1) + "\n"


def digest() -> str:
    return hashlib.sha256(text().encode()).hexdigest()


def configuration() -> str:
    """Return the configuration of the generator."""
    return json.dumps(
        {
            "generate": ["types", "client"],
            "accessModifier": "internal",
            "namingStrategy": "idiomatic",
            "filter": {"tags": list(OPERATIONS)},
            "additionalFileComments": [
                "`tox run -e swift -- --generate` makes this file from openapi.yaml.",
                f"SHA-256 of the excerpt that was read: {digest()}",
            ],
        }
    )
