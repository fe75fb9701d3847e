"""JSON in and out. It is I-JSON (RFC 7493), which every reader understands in the same way."""

import json
import math
from typing import Any

# More than any schema of the contract needs. Megabytes of tiny values would take a hundred times their size in memory.
MOST_COMMAS = 100


class NotIJson(ValueError):
    """The bytes are not I-JSON. The message gives the reason and does not repeat any of the bytes."""


def encode(value: Any) -> bytes:
    """Return a value as compact JSON in UTF-8. Raise UnicodeEncodeError for a lone surrogate."""
    return ENCODER.encode(value).encode()


def decode(body: bytes) -> Any:
    """Return the value of a JSON text. Raise NotIJson if it is not I-JSON or has too many values."""
    try:
        if has_more_commas(body, MOST_COMMAS):
            raise NotIJson("it has too many values")
        text = body.decode()
        value = DECODER.decode(text)
        if "\\" in text and "\\u" in text:  # the search for one character is a hundred times as fast
            encode(value)  # only an escape can make a lone surrogate, which UTF-8 cannot hold
        return value
    except NotIJson:
        raise
    except UnicodeDecodeError:
        reason = "it is not UTF-8"
    except UnicodeEncodeError:
        reason = "it has a lone surrogate"
    except json.JSONDecodeError as error:
        reason = f"{error.msg} at character {error.pos}"
    except RecursionError:
        reason = "it is nested too deeply"
    except ValueError:  # more digits than sys.get_int_max_str_digits()
        reason = "a number has too many digits"
    raise NotIJson(reason)


def has_more_commas(body: bytes, most: int) -> bool:
    """Return whether there are more commas than `most`. (To count them all takes 30 times as long as to find a few.)"""
    at = -1
    for _ in range(most + 1):
        at = body.find(b",", at + 1)
        if at < 0:
            return False
    return True


def unique_members(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """Return an object's members. Raise NotIJson if a name occurs twice (RFC 7493 section 2.3)."""
    members = dict(pairs)
    if len(members) < len(pairs):
        raise NotIJson("a member name occurs twice")
    return members


def finite_number(text: str) -> float:
    """Return a number. Raise NotIJson if it is NaN or outside the range of a double (RFC 7493 section 2.2)."""
    number = float(text)
    if not math.isfinite(number):
        raise NotIJson("a number is not finite")
    return number


ENCODER = json.JSONEncoder(ensure_ascii=False, separators=(",", ":"))
DECODER = json.JSONDecoder(object_pairs_hook=unique_members, parse_float=finite_number, parse_constant=finite_number)
