"""Servers that are broken on purpose, each in one way. They show that the contract tests find what they should find.

The launcher's `--broken NAME` loads the real server, lets the fault with this name change one thing about it, and
serves. Each module in CATEGORIES is a category of faults. Importing it adds its faults to FAULTS, which has all faults
by name.

    @breaks("backup.base64")
    def unused_bits_are_unchecked() -> None:
        '''One backup has many spellings.'''

        @instead_of(json_schema, "decode_base64")
        def decode_base64(real: Function, text: str) -> bytes | None: ...
"""

import importlib

from server_tests.broken.fault import FAULTS, Fault

__all__ = ["CATEGORIES", "FAULTS", "Fault"]

CATEGORIES = {  # module: the requirements that its faults break
    "proofs": "signature, digest, credentials",
    "isolation": "isolation",
    "backups": "backup, version, etag, base, retry",
    "accounts": "register, key, delete, replay",
    "history": "history",
    "limits": "limits, address",
    "guessing": "guessing",
    "http": "http, order, problem, header",
    "cors": "cors",
    "operator": "admin, document, and what only the operator can see",
    "durability": "durability",
    "space": "space, and what is left of what was deleted",
    "bounds": "what is finite",
    "bucket": "the copy off the machine",
    "clocks": "zones, calendars, fractions of a second, and from which moment something counts",
    "races": "two things at once",
    "crashes": "a crash between two writes",
    "caches": "what goes wrong only at the second time",
    "postgres": "a database that several servers share",
}

for category in CATEGORIES:
    importlib.import_module(f"{__name__}.{category}")
