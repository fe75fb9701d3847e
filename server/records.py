"""Records as bytes: JSON with a format number and a checksum. The one place that knows their form."""

import hashlib
import json
from typing import Any

from server import i_json
from server.accounts import ESTABLISHED_DAYS, Account, Damaged, Deleted, Record, Upload, Version

RECORD_FORMAT = 2


def to_bytes(user_id: str, record: Record, **members: Any) -> bytes:
    """Return a record as bytes: a checksum, a line feed and JSON. `members` are members that the store adds."""
    match record:
        case Account():
            value: dict[str, Any] = {
                "createdAt": record.created_at,
                "storageKeySha256": record.key_sha256,
                "keyVersion": record.key_version,
                "versions": [
                    {
                        "version": version.number,
                        "updatedAt": version.stored_at,
                        "size": version.size,
                        "sha256": version.sha256,
                        "keyVersion": version.key_version,
                    }
                    for version in record.versions
                ],
                "uploadDays": record.upload_days,
                "allotment": record.allotment,
                "uploads": [[upload.moment, upload.signature] for upload in record.uploads],
                # Which of the uploads changed the key. A server that does not know this member reads the others.
                "keyChanges": [index for index, upload in enumerate(record.uploads) if upload.changes_key],
            }
        case Deleted():
            value = {"deletedAt": record.deleted_at} | ({"byOperator": True} if record.by_operator else {})
    text = i_json.encode({"format": RECORD_FORMAT, **value, **members})
    return checksum(user_id, text) + b"\n" + text


def from_bytes(user_id: str, stored: bytes) -> tuple[Record, dict[str, Any]]:
    """Return the record and the store's members, as `to_bytes` got them.

    Raise Damaged if a bit has changed, or if the bytes belong to another user.
    """
    found, _, text = stored.partition(b"\n")
    if found != checksum(user_id, text):
        raise Damaged("the checksum of a record is wrong")
    value = json.loads(text)
    if value.pop("format") != RECORD_FORMAT:
        raise Damaged("a record has a format that this server does not know")
    return record_of(value), value


def record_of(value: dict[str, Any]) -> Record:
    """Remove a record's members from its JSON value. Return the record."""
    if "deletedAt" in value:
        return Deleted(value.pop("deletedAt"), value.pop("byOperator", False))
    changes = value.pop("keyChanges", [])
    return Account(
        created_at=value.pop("createdAt"),
        key_sha256=value.pop("storageKeySha256"),
        key_version=value.pop("keyVersion"),
        versions=tuple(
            Version(
                number=version["version"],
                stored_at=version["updatedAt"],
                size=version["size"],
                sha256=version["sha256"],
                key_version=version["keyVersion"],
            )
            for version in value.pop("versions")
        ),
        # A record of a former version was there before the rules for new accounts. It has no mark on any upload.
        upload_days=value.pop("uploadDays", ESTABLISHED_DAYS),
        allotment=value.pop("allotment", 0),
        uploads=tuple(
            Upload(moment, signature, index in changes)
            for index, (moment, signature) in enumerate(value.pop("uploads"))
        ),
    )


def checksum(user_id: str, text: bytes) -> bytes:
    """Return the SHA-256, in hex, of a userId and its record. It detects a change of any bit of either."""
    return hashlib.sha256(user_id.encode() + b"\n" + text).hexdigest().encode()
