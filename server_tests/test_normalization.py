"""The clients normalise alike: by Unicode's own strings, on every code point, and on strings made at random.

A client has the Unicode version of its platform. A string counts if all versions here assign each of its code points.
No later version changes the NFKC of such a string.
"""

import hashlib
import itertools
import json
import random
import re
import runpy
import subprocess
import sys
import unicodedata
from collections.abc import Iterable, Iterator
from functools import cache
from typing import Any

from clients.python import backup_client
from clients.python.backup_client import Derivation
from contract_tests.target.openapi import REPOSITORY
from server_tests.vectors import FIXTURES

FAST = Derivation("v1", 1, backup_client.V1.storage_key_info, backup_client.V1.encryption_key_info)
LINES = 256  # of a password: NFKC never joins two lines, so many strings are tried at once


@cache
def unicodes_strings() -> dict[str, str]:
    """Return the strings of normalization.txt, and their NFKC."""
    lines = (FIXTURES / "normalization.txt").read_text("ascii").splitlines()
    columns = [line.split(";") for line in lines if not line.startswith("#")]
    return {string(source): string(nfkc) for source, nfkc in columns}


def string(code_points: str) -> str:
    return "".join(chr(int(each, 16)) for each in code_points.split(" "))


def code_points(text: str) -> str:
    return " ".join(f"U+{ord(each):04X}" for each in text)


def is_known(text: str) -> bool:
    return all(unicodedata.category(each) != "Cn" for each in text)


def each_code_point() -> Iterator[str]:
    """Yield each code point that this Python assigns, except the surrogates, which have no UTF-8 form."""
    for each in map(chr, range(sys.maxunicode + 1)):
        if unicodedata.category(each) not in ("Cn", "Cs"):
            yield each


def batches(strings: Iterable[Any]) -> Iterator[tuple[Any, ...]]:
    return itertools.batched(strings, LINES, strict=False)


def username(text: str) -> str | None:
    """Return the username that the Python client makes of a text, or None if it refuses it."""
    try:
        return backup_client.normalize_username(text)
    except ValueError:
        return None


def master_key(password: str) -> str:
    return backup_client.derive_keys("alex", password, FAST).master_key.hex()


def test_the_file_is_what_its_script_and_its_readme_say() -> None:
    """Unicode's file is not here, but the second part follows from the first."""
    content = (FIXTURES / "normalization.txt").read_text("ascii")
    parts = re.split(r" that follow from .*\n", content)
    first, second = ([line for line in part.splitlines() if line[0] != "#"] for part in parts)
    script = runpy.run_path(str(FIXTURES / "normalization.py"))
    unicodes = dict([string(column) for column in line.split(";")] for line in first)
    assert script["written"](dict(script["pairs_that_compose"](unicodes))) == second
    counts = [f"{len(lines):,}" for lines in (first, second)]
    assert re.findall(r"^# ([0-9,]+) strings", content, re.MULTILINE) == counts
    readme = (FIXTURES / "README.md").read_text()
    assert all(f"{count} " in readme for count in [*counts, f"{len(first) + len(second):,}"])
    assert "UNICODE LICENSE V3" in (FIXTURES / "unicode_license.txt").read_text()


def test_what_unicodes_file_becomes() -> None:
    line = "1E9B 0323;1E9B 0323;017F 0323 0307;1E69;0073 0323 0307; # a comment"
    text = f"# NFC\n@Part1\n{line}\n0041;0041;0041;0041;0041;\n"
    pairs = runpy.run_path(str(FIXTURES / "normalization.py"))["unicodes_pairs"](text)
    assert pairs == {"\u1e9b\u0323": "\u1e69", "\u017f\u0323\u0307": "\u1e69", "s\u0323\u0307": "\u1e69", "A": "A"}


def test_unicodes_strings_in_usernames() -> None:
    pairs = {source: nfkc for source, nfkc in unicodes_strings().items() if is_known(source)}
    assert len(pairs) > 25_000
    wrong = []
    for source, nfkc in pairs.items():
        plain = nfkc == "".join(map(str.lower, nfkc)) and nfkc.strip() == nfkc
        if username(source) != (nfkc if plain else username(nfkc)):
            wrong.append(code_points(source))
    assert not wrong, f"{len(wrong)} of {len(pairs)}: {wrong[:20]}"


def test_unicodes_strings_in_passwords() -> None:
    salt = bytes.fromhex(backup_client.derive_user_id("alex"))
    wrong = []
    for batch in batches(pair for pair in unicodes_strings().items() if is_known(pair[0])):
        sources, nfkcs = ("\n".join(column) for column in zip(*batch, strict=True))
        if master_key(sources) != hashlib.pbkdf2_hmac("sha256", nfkcs.encode(), salt, 1).hex():
            wrong.append(code_points(sources))
    assert not wrong, f"{len(wrong)} passwords: {wrong[:3]}"


def test_what_is_not_among_unicodes_strings_stays() -> None:
    """Check the list itself, too: a code point that Unicode's file has forgotten would show here."""
    (first, *_) = (FIXTURES / "normalization.txt").read_text("ascii").splitlines()
    assert major(unicodedata.unidata_version) <= major(first.removeprefix("# Unicode ")), "normalization.txt is too old"
    others = [each for each in each_code_point() if each not in unicodes_strings()]
    assert len(others) > 100_000
    salt = bytes.fromhex(backup_client.derive_user_id("alex"))
    for batch in batches(others):
        password = "\n".join(batch)
        expected = hashlib.pbkdf2_hmac("sha256", password.encode(), salt, 1).hex()
        assert master_key(password) == expected, code_points(password)


def major(version: str) -> int:
    return int(version.partition(".")[0])


def random_strings() -> Iterator[str]:
    """Yield strings of what is delicate in a normalisation: marks, jamo, white space, letters that change in case."""
    choose = random.Random("normalization").choices
    marks = [each for each in each_code_point() if unicodedata.combining(each)]
    changing = [each for each in unicodes_strings() if len(each) == 1 and is_known(each)]
    letters = [each for each in each_code_point() if each.lower() != each or each.upper() != each]
    jamo = [*map(chr, range(0x1100, 0x1200)), *map(chr, range(0xFFA1, 0xFFDD)), "\uff9e", "\uff9f", "\u3099"]
    pools = [
        marks,
        changing,
        letters,
        jamo,
        list(backup_client.WHITE_SPACE),
        ["\u034f", "\u200d", "\u0345", "a", "\u03a3"],
    ]
    for _ in range(20_000):
        (length,) = choose((1, 2, 3, 5, 8, 40), (1, 4, 4, 4, 4, 1))
        text = "".join(choose(pool)[0] for pool in choose(pools, (5, 5, 3, 3, 1, 2), k=length))
        if is_known(text):
            yield text


def test_the_python_and_the_javascript_client_normalise_alike() -> None:
    strings = [*each_code_point(), *itertools.chain(*unicodes_strings().items()), *random_strings()]
    strings = [text for text in strings if is_known(text)]
    script = REPOSITORY / "server_tests/normalized.mjs"
    command = ["node", script, str(LINES)]
    done = subprocess.run(command, input=json.dumps(strings), capture_output=True, text=True, check=True)
    javascript = json.loads(done.stdout)
    both = list(itertools.compress(strings, javascript["known"]))
    versions = f"Python has Unicode {unicodedata.unidata_version}, Node has {javascript['unicode']}"
    print(f"{versions}: {len(both):,} of {len(strings):,} strings are known to both")
    assert len(both) > 300_000, versions
    wrong = [
        f"{code_points(text)}: {username(text)!a}, not {other!a}"
        for text, other in zip(both, javascript["usernames"], strict=True)
        if username(text) != other
    ]
    assert not wrong, f"{versions}; {len(wrong)} usernames differ: {wrong[:20]}"
    wrong = [
        code_points("\n".join(batch))
        for batch, key in zip(batches(both), javascript["masterKeys"], strict=True)
        if master_key("\n".join(batch)) != key
    ]
    assert not wrong, f"{versions}; {len(wrong)} passwords differ: {wrong[:3]}"
