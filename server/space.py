"""What may be stored on a volume that many share. Sizes are in bytes. It decides, and knows nothing of files.

Limits per client address cannot keep a volume from being filled: an honest address may store 25 MiB an hour. Therefore,
an account has a quota. New accounts share a part of the volume, and the others grow by a part of it each day: a volume
that becomes larger by itself does so no faster than somebody notices. And when an account may not grow, it makes room
for its newest version by its own oldest one, so that nobody takes from the others.
"""

from collections.abc import Sequence
from dataclasses import replace

from server.accounts import ESTABLISHED_DAYS, Account, StorageFull, Version, Volume
from server.clock import DAY

GIB = 1024**3
NEW_ACCOUNTS_SHARE = 1 / 3  # of the volume, for all new accounts together
GROWTH_A_DAY = 1 / 10  # of the volume, for all other accounts together. Otherwise, 500 of them fill 10 GB in a day
# What a record takes in the file, about: by itself, for each upload that it remembers, and for each version.
RECORD_BYTES = 1000
RECORD_UPLOAD_BYTES = 150
RECORD_VERSION_BYTES = 400

# Marks: part of the volume that has to be free, but no more than so many bytes. They lie beyond the mark at which Fly
# makes the volume larger (auto_extend_size_threshold in fly.toml: 80 % used), or it would never grow.
REGISTRATION_MARK = 0.15, 1 * GIB
GROWTH_MARK = 0.10, GIB // 2


def is_below(volume: Volume, mark: tuple[float, int]) -> bool:
    """Return whether less is free than a mark demands."""
    part, most = mark
    return volume.free < min(part * volume.total, most)


def takes_accounts(volume: Volume) -> bool:
    """Return whether there is room for more accounts, and for one more that is new."""
    return not is_below(volume, REGISTRATION_MARK) and is_in_share(volume, RECORD_BYTES)


def is_in_share(volume: Volume, growth: int) -> bool:
    """Return whether the new accounts may have so many more bytes together."""
    return volume.new_accounts + growth <= NEW_ACCOUNTS_SHARE * volume.total


def lets_grow(volume: Volume, account: Account, growth: int) -> bool:
    """Return whether an account may have so many more bytes than before."""
    if is_below(volume, GROWTH_MARK):
        return False
    if is_established(account):
        return volume.grown_today + growth <= GROWTH_A_DAY * volume.total
    return is_in_share(volume, growth)


def fitted(volume: Volume, before: Account, after: Account) -> Account:
    """Return the account that may replace `before`: `after`, if need be with fewer of the oldest versions.

    An account that may not grow keeps its allotment. Otherwise, a log that becomes a little larger each day would drop
    two versions for each new one, and soon have no room any more. Raise StorageFull.
    """
    allotment = allotted(before)
    if lets_grow(volume, after, max(1, size_of(after.versions) - allotment)):
        return replace(after, allotment=0)
    versions = within(after.versions, allotment)
    if size_of(versions) > allotment:
        raise StorageFull("the account may not grow now")
    return replace(after, versions=versions, allotment=allotment)


def allotted(account: Account) -> int:
    """Return how many bytes of versions an account has or, if it gave some up, may have again."""
    return max(account.allotment, size_of(account.versions))


def counted(account: Account) -> int:
    """Return how many bytes of the share of new accounts one of them uses up, with its record."""
    record = RECORD_UPLOAD_BYTES * len(account.uploads) + RECORD_VERSION_BYTES * len(account.versions)
    return RECORD_BYTES + record + allotted(account)


def is_established(account: Account) -> bool:
    """Return whether an account has stored on so many days that it is no longer new."""
    return account.upload_days >= ESTABLISHED_DAYS


def upload_days_at(account: Account, moment: int) -> int:
    """Return on how many different days (UTC) an account has stored, if it stores at this moment, too."""
    has_stored_today = bool(account.uploads) and account.uploads[-1].moment // DAY == moment // DAY
    return min(account.upload_days + (not has_stored_today), ESTABLISHED_DAYS)


def size_of(versions: Sequence[Version]) -> int:
    return sum(version.size for version in versions)


def within(versions: Sequence[Version], most: int) -> tuple[Version, ...]:
    """Drop the oldest versions until all together have no more than `most` bytes.

    The last two stay, and the newest of an earlier day than that of the newest version, even if that is more: a thief
    who stores junk all day does not drive out what was there before.
    """
    newest = versions[-1]
    earlier = [version for version in versions if version.stored_at // DAY < newest.stored_at // DAY]
    fixed = {*versions[-2:], *earlier[-1:]}
    left, size = list(versions), size_of(versions)
    for version in versions:
        if size <= most:
            break
        if version not in fixed:
            left.remove(version)
            size -= version.size
    return tuple(left)
