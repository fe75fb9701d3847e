"""What every text of a run leaves out: credentials, keys, signatures and blobs."""

import re
from collections.abc import Iterable

PRIVATE_HEADER = re.compile(r"(?im)^(authorization|signature)(\s*:).*?(?=\r|$)")
REDACTIONS: list[tuple[re.Pattern[str], str]] = [
    (PRIVATE_HEADER, r"\1\2 …"),
    (re.compile(r"(?i)\b(basic|bearer) +(?!realm)[A-Za-z0-9+/=_.~-]{5,}"), r"\1 …"),
    (re.compile(r"=:[A-Za-z0-9+/]{20,}={0,2}:"), "=:…:"),
    (re.compile(r"(?i)\b([0-9a-f]{6})[0-9a-f]{26,}\b"), r"\1…"),  # a key or a digest: they look the same
    (re.compile(r"[A-Za-z0-9+/]{40,}={0,2}"), "…"),
    (re.compile(r"(\\x[0-9a-f]{2}|\\\d|.)\1{60,}"), r"\1…"),
]


def redacted(text: str, secrets: Iterable[str] = ()) -> str:
    """Return the text without these secrets, and without what looks like a key, a signature or a blob."""
    for secret in secrets:
        text = text.replace(secret, "…")
    for pattern, replacement in REDACTIONS:
        text = pattern.sub(replacement, text)
    return text.encode("utf-8", "backslashreplace").decode()  # a lone surrogate cannot be written
