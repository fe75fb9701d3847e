"""A bucket of an S3 server, and what the names in it mean. The one place that knows the S3 library.

    owner                                      the id of the server that may write
    horizon                                    since when old states are kept, in Unix milliseconds
    accounts/{n}/{name}/record/{moment}-{id}   a record, from this moment on. The newest one is the current one
    accounts/{n}/{name}/blob/{sha256}          the bytes of a version. They never change
    accounts/{n}/{name}/dropped/{moment}-{sha256}   empty: the current record does not name this blob since then

`name` is a SHA-256 of the userId, and `n` its first digit. Nobody can tell the userId by it, but whoever knows a userId
can find its name. A key would keep them from it, but a key on the machine is lost with the machine. Whoever reads the
bucket finds the userId in the record, as in the store. `id` is the beginning of the record's own SHA-256, or `removed`
after the operator has removed the account. So the names alone tell whether the bucket has what the store has.

A record is stored in the form of `server/records.py`, with its userId as a member.
"""

import contextlib
import hashlib
import json
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from datetime import timedelta
from itertools import groupby
from typing import Any, NamedTuple

from server import bounds, records
from server.accounts import Account, Damaged, Record

DIGITS = "0123456789abcdef"
OWNER, HORIZON = "owner", "horizon"
REMOVED = "removed"
PASSING = ("408", "409", "429")  # statuses of requests that may succeed later
NAME_PREFIX = b"dailyreps-backup-server bucket 1\n"
# What an address needs besides the name. `fly storage create` sets them.
VARIABLES = ("AWS_ENDPOINT_URL_S3", "AWS_REGION", "AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY")


class BucketError(Exception):
    """The bucket did not do what it was asked to do. The message tells no secret.

    `is_lasting` says that waiting does not help: somebody has to do something.
    """

    def __init__(self, message: str, is_lasting: bool = False) -> None:
        super().__init__(message)
        self.is_lasting = is_lasting


class Taken(BucketError):
    """A conditional put has found something else in its place."""


@dataclass(frozen=True)
class Address:
    """Where a bucket is, and how to get in."""

    name: str
    endpoint: str  # empty: that of AWS
    region: str  # empty: the default of AWS
    key_id: str = field(repr=False)
    secret: str = field(repr=False)

    def __post_init__(self) -> None:
        """Raise ValueError if something is missing. The message names the variable."""
        if self.endpoint and not self.endpoint.startswith(("https://", "http://")):
            raise ValueError("AWS_ENDPOINT_URL_S3 must begin with https:// or http://")
        for name, value in (("AWS_ACCESS_KEY_ID", self.key_id), ("AWS_SECRET_ACCESS_KEY", self.secret)):
            if not value:
                raise ValueError(f"{name} is not set, and the bucket needs it: fly storage create sets it")


class Bucket:
    """A bucket. Any thread may use it. Each method raises BucketError."""

    def __init__(self, address: Address) -> None:
        """Load the library. Nothing is sent yet. Over HTTPS, the certificates of the system decide whom to trust."""
        import obstore  # it takes memory, so who does not want a copy does without it
        from obstore.store import S3Store

        self._library = obstore
        with mapped_errors(obstore):
            self._store = S3Store(
                address.name,
                endpoint=address.endpoint or None,
                region=address.region or "us-east-1",
                access_key_id=address.key_id,
                secret_access_key=address.secret,
                disable_bulk_delete=True,  # a deletion costs nothing, and each S3 server knows it
                client_options={
                    "allow_http": address.endpoint.startswith("http://"),
                    "connect_timeout": timedelta(seconds=bounds.BUCKET_CONNECT_SECONDS),
                    "timeout": timedelta(seconds=bounds.BUCKET_REQUEST_SECONDS),
                },
                retry_config={"max_retries": 0},  # whoever asks knows better when to try again
            )

    def names(self, prefix: str) -> Iterator[str]:
        """Yield all names in a folder, in their order."""
        with mapped_errors(self._library):
            for page in self._library.list(self._store, prefix, chunk_size=1000):
                yield from (found["path"] for found in page)

    def folders(self, digit: str) -> Iterator[tuple[str, "Folder"]]:
        """Yield each account whose name begins with this digit, by its name."""
        names = self.names(f"accounts/{digit}/")
        for name, paths in groupby(names, key=lambda path: path.split("/")[2]):
            yield name, Folder.of(name, paths)

    def get(self, name: str) -> bytes | None:
        """Return an object, or None if there is none."""
        return self.get_tagged(name)[0]

    def get_tagged(self, name: str) -> tuple[bytes | None, str | None]:
        """Return an object with its tag, which `put` takes."""
        try:
            with mapped_errors(self._library):
                found = self._library.get(self._store, name)
                return bytes(found.bytes()), found.meta["e_tag"]
        except FileNotFoundError:
            return None, None

    def put(self, name: str, data: bytes) -> None:
        """Put an object, whatever was there. Afterwards, it is there as a whole, or as it was."""
        self._put(name, data, "overwrite")

    def put_if(self, name: str, data: bytes, tag: str | None) -> None:
        """Put an object in the place of the one with this tag, or of none. Raise Taken if there is another."""
        self._put(name, data, "create" if tag is None else {"e_tag": tag})

    def _put(self, name: str, data: bytes, mode: Any) -> None:
        with mapped_errors(self._library):
            # In one piece: the pieces of an upload that was cut off would stay, and cost.
            self._library.put(self._store, name, data, mode=mode, use_multipart=False)

    def delete(self, names: Iterable[str]) -> None:
        """Delete objects, one after the other. It is no error if they are gone already."""
        for name in names:
            with contextlib.suppress(FileNotFoundError), mapped_errors(self._library):
                self._library.delete(self._store, name)


def no_such_object(error: FileNotFoundError) -> bool:
    """Return whether an object is missing, and not the whole bucket or the user."""
    return code_of(error) in ("", "NoSuchKey")


def code_of(error: Exception) -> str:
    """Return the code in an answer of S3, such as AccessDenied, or an empty text."""
    found = re.search(r"<Code>(\w{1,64})</Code>", str(error))
    return found[1] if found else ""


@contextlib.contextmanager
def mapped_errors(library: Any) -> Iterator[None]:
    """Turn the library's errors into BucketError. Their own messages have addresses and what the server has said.

    Raise FileNotFoundError if an object is missing.
    """
    try:
        yield
    except (library.exceptions.AlreadyExistsError, library.exceptions.PreconditionError):
        raise Taken("another server has written to it at the same time") from None
    except (library.exceptions.BaseError, FileNotFoundError) as error:
        if isinstance(error, FileNotFoundError) and no_such_object(error):
            raise
        status = re.search(r"status code: ([1-5][0-9]{2})", str(error))
        if not status:
            raise BucketError("it cannot be reached") from None
        is_lasting = status[1].startswith("4") and status[1] not in PASSING
        raise BucketError(f"it answers {status[1]} {code_of(error)}".rstrip(), is_lasting) from None


# --- The folder of an account -----------------------------------------------------------------------------------------


def name_of(user_id: str) -> str:
    """Return the name of an account in the bucket."""
    return hashlib.sha256(NAME_PREFIX + user_id.encode()).hexdigest()


def folder_of(name: str) -> str:
    return f"accounts/{name[0]}/{name}/"


class Plan(NamedTuple):
    """What has to be done so that a folder has what it should, in this order.

    A step that has been done twice changes nothing. After each of them, the folder is a copy as of some moment.
    """

    blobs: tuple[str, ...] = ()  # to be put, by SHA-256
    record: str | None = None  # the name under which the current record is to be put
    marks: tuple[str, ...] = ()  # the names of empty objects to be put
    deletions: tuple[str, ...] = ()  # names


@dataclass
class Folder:
    """What the bucket has of an account, as the names tell."""

    path: str
    records: dict[int, str] = field(default_factory=dict)  # id by moment, the oldest first
    blobs: set[str] = field(default_factory=set)
    dropped: list[tuple[int, str]] = field(default_factory=list)  # moment and SHA-256

    @classmethod
    def of(cls, name: str, paths: Iterable[str]) -> "Folder":
        """Understand the names in the folder of an account. Others than the known ones are left alone."""
        folder = cls(folder_of(name))
        for path in sorted(paths):
            kind, _, rest = path.removeprefix(folder.path).partition("/")
            moment, _, what = rest.partition("-")
            if kind == "blob":
                folder.blobs.add(rest)
            elif kind in ("record", "dropped") and moment.isdecimal():
                if kind == "record":
                    folder.records[int(moment)] = what
                else:
                    folder.dropped.append((int(moment), what))
        return folder

    def record(self, moment: int) -> str:
        return f"{self.path}record/{moment:013}-{self.records[moment]}"

    def blob(self, sha256: str) -> str:
        return f"{self.path}blob/{sha256}"

    def mark(self, moment: int, sha256: str) -> str:
        return f"{self.path}dropped/{moment:013}-{sha256}"

    @property
    def newest(self) -> int | None:
        """The moment of the newest record, or None."""
        return next(reversed(self.records), None)

    @property
    def newest_account(self) -> int | None:
        """The moment of the newest record that is not a removal, or None."""
        return next((moment for moment in reversed(self.records) if self.records[moment] != REMOVED), None)

    @property
    def is_removed(self) -> bool:
        """Whether the newest record says that the operator has removed the account."""
        return self.newest is not None and self.records[self.newest] == REMOVED

    def as_of(self, moment: int) -> int | None:
        """Return the moment of the record that was the current one then, or None if there was no account."""
        found = next((each for each in reversed(self.records) if each <= moment), None)
        return None if found is None or self.records[found] == REMOVED else found

    def everything(self) -> tuple[str, ...]:
        """Return all names, in an order in which they can be deleted: no older record becomes the current one again."""
        blobs, marks = map(self.blob, sorted(self.blobs)), (self.mark(*each) for each in self.dropped)
        return (*blobs, *marks, *map(self.record, self.records))

    def plan(self, wanted: Iterable[str], identity: str, now: int, horizon: int) -> Plan:
        """Return what to do so that the current record has this id, and all `wanted` blobs are there.

        What only states before `horizon` need is deleted. All times are Unix milliseconds.
        """
        wanted, newest = set(wanted), self.newest
        if identity == REMOVED and newest is not None and self.is_removed and newest <= horizon:
            return Plan(deletions=self.everything())
        replaced_at = dict(zip(self.records, list(self.records)[1:], strict=False))
        old = [self.record(moment) for moment, until in replaced_at.items() if until <= horizon]
        is_new = newest is None or self.records[newest] != identity
        # A clock that was set back must not make an older record the current one.
        moment = max(now, -1 if newest is None else newest + is_new)
        dropped_at = {sha256: moment for moment, sha256 in self.dropped}  # the last time, as the list is sorted
        gone = {sha256 for sha256 in self.blobs - wanted if dropped_at.get(sha256, horizon + 1) <= horizon}
        needless = [self.mark(*each) for each in self.dropped if each[1] not in self.blobs - wanted - gone]
        return Plan(
            blobs=tuple(sorted(wanted - self.blobs)),
            record=f"{self.path}record/{moment:013}-{identity}" if is_new else None,
            marks=tuple(self.mark(moment, sha256) for sha256 in sorted(self.blobs - wanted - dropped_at.keys())),
            deletions=(*old, *map(self.blob, sorted(gone)), *needless),
        )


# --- Records ----------------------------------------------------------------------------------------------------------


def record_bytes(user_id: str, record: Record) -> bytes:
    """Return a record as the bucket has it."""
    return records.to_bytes(user_id, record, userId=user_id)


def identity_of(data: bytes) -> str:
    """Return the id of a record in its name."""
    return hashlib.sha256(data).hexdigest()[:16]


def account_of(name: str, data: bytes) -> tuple[str, Account]:
    """Return the userId and the account of a record in the folder `name`. Raise Damaged."""
    try:
        user_id = json.loads(data.partition(b"\n")[2])["userId"]
        record, _ = records.from_bytes(user_id, data)
    except (ValueError, LookupError, TypeError, AttributeError):
        raise Damaged("a record cannot be read") from None
    if not isinstance(record, Account) or name_of(user_id) != name:
        raise Damaged("a record is not that of its account")
    return user_id, record
