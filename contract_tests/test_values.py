"""Values count as wholes: a difference in any one place makes another value, and another spelling is none.

Each table has a place, or a spelling, in a row. `test_signature.py` has those of the proofs.
"""

from secrets import token_hex

import pytest

from clients.python.backup_client import backup_bytes
from contract_tests.target.calls import outcome, sha256
from contract_tests.target.edge import own_etag

PLACES = range(64)  # of a userId, a key and a SHA-256 in hex
SOME = [0, 1, 7, 8, 15, 16, 31, 32, 47, 48, 62, 63]
A, B = b"the first backup", b"the second backup"


def other_digit(text: str, place: int) -> str:
    """Return a text in hex with another digit in this place."""
    return f"{text[:place]}{int(text[place], 16) ^ 1:x}{text[place + 1 :]}"


# ---- Who it is ---------------------------------------------------------------------------------------------


@pytest.mark.requirement("isolation.whole", "isolation.read", "isolation.delete", "registerUser.201")
@pytest.mark.parametrize("beginning", ["", "0" * 40, "1e" + "0" * 38], ids=["any", "zeros", "an exponent"])
def test_users_of_similar_ids_are_different(target, beginning):
    """Each has another digit in one place. They have the same key, so that nothing else keeps them apart."""
    user_id, key = beginning + token_hex(32)[len(beginning) :], token_hex(32)
    ids = [user_id, *(other_digit(user_id, place) for place in SOME)]
    clients = [target.client((each, key)) for each in ids]
    assert [outcome(client.register_user()) for client in clients] == ["201"] * len(ids)
    for number, client in enumerate(clients):
        assert outcome(client.fetch_backup()) == "404 no_backup"
        assert outcome(client.store_backup(b"of user %d" % number)) == "201"
    for number, client in enumerate(clients):
        assert backup_bytes(client.fetch_backup()) == b"of user %d" % number
    assert outcome(clients[0].delete_user()) == "204"
    assert [outcome(client.fetch_backup()) for client in clients] == ["401 credentials_invalid"] + ["200"] * len(SOME)


@pytest.mark.requirement("credentials.whole", "isolation.read", "isolation.write")
def test_every_character_of_the_storage_key_counts(target, new_user):
    user_id, key = token_hex(32), token_hex(32)
    user = new_user((user_id, key))
    assert outcome(user.store_backup(A)) == "201"
    for place in PLACES:
        other = target.client((user_id, other_digit(key, place)))
        assert outcome(other.fetch_backup()) == "401 credentials_invalid", place
        if place in SOME:
            assert outcome(other.store_backup(B, sha256(A))) == "401 credentials_invalid", place
            assert outcome(other.register_user()) == "409 username_taken", place
    for other in (key[::-1], key[32:] + key[:32], key[1:] + key[0]):
        assert outcome(target.client((user_id, other)).fetch_backup()) == "401 credentials_invalid"
    assert backup_bytes(user.fetch_backup()) == A


@pytest.mark.requirement("key.whole", "key.same", "key.old", "changeStorageKey.200")
def test_a_new_key_may_differ_in_one_character(target, new_user):
    user_id, key = token_hex(32), token_hex(32)
    client, base = new_user((user_id, key)), None
    for place in SOME:
        assert outcome(client.change_storage_key(key, A, base)) == "422 validation_failed"
        key = other_digit(key, place)
        blob = b"before place %d" % place
        changed, old, client = client.change_storage_key(key, blob, base), client, target.client((user_id, key))
        assert outcome(changed) == "200", place
        assert [outcome(each.list_backup_versions()) for each in (old, client)] == ["401 credentials_invalid", "200"]
        base = sha256(blob)


@pytest.mark.requirement("admin.whole", "admin.proof", "getAdminStats.401")
def test_every_character_of_the_admin_key_counts(target, admin_key):
    def other(place: int) -> str:
        return admin_key[:place] + ("x" if admin_key[place] != "x" else "y") + admin_key[place + 1 :]

    wrong = {*map(other, range(len(admin_key))), *(admin_key[:length] for length in range(1, len(admin_key)))}
    wrong |= {admin_key[1:], admin_key + "0", admin_key * 2, admin_key.swapcase(), admin_key[::-1], f'"{admin_key}"'}
    for key in wrong - {admin_key}:
        assert outcome(target.client().get_admin_stats(key)) == "401 admin_key_invalid"
    assert outcome(target.client().get_admin_stats(admin_key)) == "200"


# ---- Which version it is -----------------------------------------------------------------------------------


@pytest.mark.requirement("base.whole", "base.conflict", "storeBackup.409", "changeStorageKey.409")
def test_every_character_of_the_base_counts(new_user):
    client, base = new_user(), sha256(A)
    assert outcome(client.store_backup(A)) == "201"
    for place in PLACES:
        assert outcome(client.store_backup(B, other_digit(base, place))) == "409 version_conflict", place
        if place in SOME:
            changed = client.change_storage_key(token_hex(32), B, other_digit(base, place))
            assert outcome(changed) == "409 version_conflict", place
    for other in ("0" * 64, base[::-1], base[32:] + base[:32], sha256(b""), sha256(B)):
        assert outcome(client.store_backup(B, other)) == "409 version_conflict"
    assert backup_bytes(client.fetch_backup()) == A


@pytest.mark.requirement("base.whole", "base.conflict", "base.current")
def test_without_a_version_no_base_fits(new_user):
    client = new_user()
    for base in ("0" * 64, "f" * 64, sha256(b""), sha256(A)):
        answer = client.store_backup(A, base)
        assert (outcome(answer), answer.json()["currentVersion"]) == ("409 version_conflict", 0)


OTHER_ETAGS = {  # what is none of the version's ETag, of which {v} is the version and {s} the sha256
    "another digest of the same version": '"{v}-{x}"',
    "another version of the same digest": '"1-{s}"',
    "a later version of the same digest": '"3-{s}"',
    "a longer version": '"1{v}-{s}"',
    "a version with a zero in front": '"0{v}-{s}"',
    "a longer digest": '"{v}-{s}0"',
    "something in front": '"x{v}-{s}"',
    "a space in it": '" {v}-{s}"',
    "a space behind": '"{v}-{s} "',
    "the version alone": '"{v}"',
    "the digest alone": '"{s}"',
    "an underscore": '"{v}_{s}"',
    "the digest in capitals": '"{v}-{S}"',
    "half of the digest": '"{v}-{half}"',
    "the beginning of it": '"{v}-"',
    "nothing": '""',
    "a star in quotes": '"*"',
    "no quotes": "{v}-{s}",
    "single quotes": "'{v}-{s}'",
    "one quote": '"{v}-{s}',
    "others in a list": '"1-{s}", "{v}-{x}", W/"3-{s}"',
    "the two halves in a list": '"{v}-{half}", "{rest}"',
    "in quotes with others": '"a {v}-{s} b"',
}


@pytest.mark.edge_may_answer
@pytest.mark.requirement("etag.whole", "etag.other", "fetchBackup.200", "fetchBackupVersion.200")
@pytest.mark.parametrize("etag", OTHER_ETAGS.values(), ids=OTHER_ETAGS)
def test_what_is_not_the_etag(new_user, etag):
    client, digest = new_user(), sha256(B)
    client.store_backup(A)
    client.store_backup(B, sha256(A))
    names = {"v": 2, "s": digest, "S": digest.upper(), "x": sha256(A), "half": digest[:32], "rest": digest[32:]}
    condition = etag.format_map(names)
    for fetched in (client.fetch_backup(condition), client.fetch_backup_version(2, condition)):
        assert fetched.status_code == 200
        assert backup_bytes(fetched) == B


@pytest.mark.requirement("etag.whole", "etag.other", "etag.match", "fetchBackup.304")
def test_every_character_of_the_etag_counts(new_user):
    client, digest = new_user(), sha256(A)
    client.store_backup(A)
    for place in PLACES:
        assert client.fetch_backup(f'"1-{other_digit(digest, place)}"').status_code == 200, place
    assert client.fetch_backup(f'"1-{digest}"').status_code == 304


@pytest.mark.requirement("etag.match", "fetchBackup.304", "fetchBackupVersion.304")
@pytest.mark.parametrize("place", [0, 1, 7, 8, 9, 50, 99])
def test_the_etag_may_be_anywhere_in_a_long_list(new_user, place):
    client = new_user()
    client.store_backup(A)
    etag = own_etag(client.fetch_backup().headers)
    listed = [f'"{number}-{number:064}"' if number % 2 else f'W/"{number},x"' for number in range(99)]
    listed.insert(place, etag or "")
    for condition in (", ".join(listed), ",".join(listed), " , ,".join(listed)):
        assert client.fetch_backup(condition).status_code == 304
        assert client.fetch_backup_version(1, condition).status_code == 304


@pytest.mark.requirement("etag.other", "etag.whole", "delete.fresh")
def test_the_etag_of_a_deleted_account_is_another(start_server):
    """The new account has a version of the same number. A device that knows the old one has to get the new one."""
    server = start_server(frozen=1_800_000_000)
    client = server.client()
    etags = []
    for blob in (A, B):
        assert outcome(client.register_user()) == "201"
        assert outcome(client.store_backup(blob)) == "201"
        etags.append(own_etag(client.fetch_backup().headers))
        assert [client.fetch_backup(etag).status_code for etag in etags] == [200, 304][-len(etags) :]
        assert outcome(client.delete_user()) == "204"
        server.move_clock(901)


# ---- Which bytes they are ----------------------------------------------------------------------------------

SIZES = [1, 64, 300, 70_000, 300_000, 1_500_000]


@pytest.mark.requirement("retry.whole", "retry.receipt", "backup.bytes", "storeBackup.201")
@pytest.mark.parametrize("size", SIZES)
def test_an_upload_that_differs_in_one_byte_is_no_retry(new_user, size):
    client = new_user()
    latest = bytearray(token_hex(size).encode()[:size])
    assert outcome(client.store_backup(bytes(latest))) == "201"
    for place in sorted({0, size // 3, size // 2, size - 1}):
        base = sha256(bytes(latest))
        latest[place] ^= 1
        assert outcome(client.store_backup(bytes(latest), base)) == "201", place
        assert outcome(client.store_backup(bytes(latest), base)) == "200", place
        assert backup_bytes(client.fetch_backup()) == latest
    for other in (latest + b"0", latest[:-1] or b"00", bytes([*latest[1:], latest[0] ^ 2])):
        assert outcome(client.store_backup(bytes(other), sha256(b"stale"))) == "409 version_conflict"
