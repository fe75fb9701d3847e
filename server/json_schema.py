"""Validation against the schemas of openapi.yaml: JSON Schema 2020-12. Validation also decodes base64."""

import json
import re
from collections.abc import Iterator, Mapping
from typing import Any

import jsonschema
import pybase64

Schema = Mapping[str, Any]
Errors = list[dict[str, str]]  # each has `pointer` and `detail`, as in RFC 9457 section 3

# What a schema may contain besides the keywords that the validator knows.
ANNOTATIONS = {"title", "description", "examples", "format", "contentEncoding", "x-maxDecodedBytes"}

DETAILS = {  # by keyword; no detail repeats what was sent
    "type": "must be of type {}",
    "pattern": "must match {}",
    "minLength": "must have at least {} characters",
    "maxLength": "must have at most {} characters",
    "additionalProperties": "has a member that the schema does not have",
}
NOT_BASE64 = "must be canonical base64 (RFC 4648 section 4, padded, unused bits zero)"


class UnknownKeyword(Exception):
    """A schema has a keyword that nothing here checks. The message names it."""


class ObjectValidator:
    """The schema of a JSON object, compiled once. It decodes members in base64 to bytes."""

    def __init__(self, schema: Schema) -> None:
        """Compile the schema. Raise UnknownKeyword, or SchemaError if it is not valid itself."""
        check_keywords(schema)
        Validator.check_schema(schema)
        self._validator = Validator(schema)
        self._encoded = [name for name, member in schema["properties"].items() if "contentEncoding" in member]
        if json.dumps(schema).count('"contentEncoding"') > len(self._encoded):
            raise UnknownKeyword("contentEncoding, except for a member of the object itself")

    def read(self, value: Any) -> tuple[dict[str, Any], Errors]:
        """Return the object's members, and its errors. Use the members only if there is no error."""
        errors = errors_of(self._validator, value)
        members = dict(value) if isinstance(value, dict) else {}
        for name in self._encoded:
            if isinstance(members.get(name), str):
                members[name] = decode_base64(members[name])
                if members[name] is None:
                    errors.append({"pointer": f"#/{name}", "detail": NOT_BASE64})
        return members, errors


def check_keywords(schema: Schema) -> None:
    """Raise UnknownKeyword if the schema, or one inside it, has a keyword that nothing here checks."""
    if unknown := set(schema) - set(Validator.VALIDATORS) - ANNOTATIONS:
        raise UnknownKeyword(", ".join(sorted(unknown)))
    if schema.get("contentEncoding", "base64") != "base64":
        raise UnknownKeyword("a contentEncoding other than base64")
    items = [schema["items"]] if "items" in schema else []
    for subschema in [*schema.get("properties", {}).values(), *schema.get("anyOf", []), *items]:
        check_keywords(subschema)


def check_pattern(validator: Any, pattern: str, instance: Any, schema: Schema) -> Iterator[Any]:
    # Skip the pattern of a base64 string: the decoder checks the same in a third of the time.
    # In a schema (ECMA-262) `$` is the very end; in Python it also stands before a line feed at the end.
    pattern = re.sub(r"\$$", r"\\Z", pattern)
    if "contentEncoding" not in schema and isinstance(instance, str) and not re.search(pattern, instance):
        yield jsonschema.ValidationError("does not match")


Validator = jsonschema.validators.extend(  # type: ignore[no-untyped-call]
    jsonschema.Draft202012Validator, {"pattern": check_pattern}
)


def errors_of(validator: Any, value: Any) -> Errors:
    """Return the errors of a value. Each place where it violates the schema occurs once for each reason."""
    found = []
    for error in validator.iter_errors(value):
        pointer = "".join(["#", *(f"/{part}" for part in error.absolute_path)])
        if error.validator == "required":
            missing = (name for name in error.validator_value if name not in error.instance)
            found += [(f"{pointer}/{name}", "is required") for name in missing]
        else:
            detail = DETAILS.get(error.validator, "does not fit the schema")
            found.append((pointer, detail.format(error.validator_value)))
    return [{"pointer": pointer, "detail": detail} for pointer, detail in dict.fromkeys(found)]


def decode_base64(text: str) -> bytes | None:
    """Return the bytes of canonical base64 (RFC 4648 sections 3.5 and 4), or None if the text is not that."""
    try:
        data = pybase64.b64decode(text, validate=True)
    except ValueError:
        return None
    # The decoder ignores unused bits. Encode the last group again to see them.
    return data if pybase64.b64encode(data[(len(data) - 1) // 3 * 3 :]).decode() == text[-4:] else None
