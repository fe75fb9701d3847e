"""The box: cgroups that give a process as little as the smallest machine on Fly has.

It needs Linux with cgroups of version 1 and the right to make them (root). If it cannot be made, NoBox says why.
"""

import contextlib
import os
import secrets
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

CGROUPS = Path("/sys/fs/cgroup")
CONTROLLERS = ("memory", "cpu", "blkio")
MEMORY_BYTES = 256 * 1024 * 1024
DISK_BYTES_PER_SECOND = 16 * 1024 * 1024
DISK_OPERATIONS_PER_SECOND = 4000
WHAT_IT_IS = "256 MB, one CPU, a disk of 16 MiB/s and 4,000 operations/s"


class NoBox(Exception):
    """The box cannot be made here. The message says why."""


@dataclass(frozen=True)
class Box:
    """A box that exists. Processes that `command` starts are in it, with everything that they start."""

    name: str
    controllers: tuple[str, ...] = CONTROLLERS  # which of them limit anything

    def command(self, command: list[str]) -> list[str]:
        """Return the command that runs `command` in the box. It has the same process id."""
        script = "".join(f"echo $$ >{self._folder(each) / 'cgroup.procs'} && " for each in self.controllers)
        return ["sh", "-c", f'{script}exec "$@"', "sh", *command]

    def killed(self) -> int:
        """Return how many processes the kernel has killed because the box was out of memory."""
        text = (self._folder("memory") / "memory.oom_control").read_text()
        return int(dict(line.split() for line in text.splitlines())["oom_kill"])

    def disk_bytes(self) -> dict[str, int]:
        """Return how many bytes the box has read from disks and written to them: {"Read": n, "Write": n}."""
        counts = {"Read": 0, "Write": 0}
        for line in (self._folder("blkio") / "blkio.throttle.io_service_bytes").read_text().splitlines():
            match line.split():
                case [_, kind, number] if kind in counts:
                    counts[kind] += int(number)
        return counts

    def _folder(self, controller: str) -> Path:
        return CGROUPS / controller / self.name

    def _settings(self, device: str) -> dict[str, dict[str, str]]:
        disk = {
            f"blkio.throttle.{way}_{unit}_device": f"{device} {most}"
            for way in ("read", "write")
            for unit, most in (("bps", DISK_BYTES_PER_SECOND), ("iops", DISK_OPERATIONS_PER_SECOND))
        }
        return {
            "memory": {"memory.limit_in_bytes": str(MEMORY_BYTES)},
            "cpu": {"cpu.cfs_period_us": "100000", "cpu.cfs_quota_us": "100000"},
            "blkio": disk,
        }

    def _make(self, device: str) -> None:
        for controller in self.controllers:
            self._folder(controller).mkdir()
            for name, value in self._settings(device)[controller].items():
                (self._folder(controller) / name).write_text(value)

    def _remove(self) -> None:
        for controller in self.controllers:
            for _ in range(50):  # the kernel needs a moment after the last process has ended
                try:
                    self._folder(controller).rmdir()
                    break
                except FileNotFoundError:
                    break
                except OSError:
                    time.sleep(0.1)


@contextlib.contextmanager
def box(directory: Path, controllers: tuple[str, ...] = CONTROLLERS) -> Iterator[Box]:
    """Make a box whose disk is the one that has `directory`. Raise NoBox. End its processes before the block ends."""
    made = Box(f"dailyreps-{secrets.token_hex(4)}", controllers)
    try:
        made._make(disk_of(directory) if "blkio" in controllers else "")
    except OSError as error:
        made._remove()
        raise NoBox(f"cgroups of version 1 cannot be made: {error.strerror}") from None
    try:
        yield made
    finally:
        made._remove()


def disk_of(directory: Path) -> str:
    """Return the numbers of the disk that has this directory, as major:minor. Raise NoBox if it is on no disk."""
    number = directory.stat().st_dev
    device = Path(f"/sys/dev/block/{os.major(number)}:{os.minor(number)}")
    if not device.exists():
        raise NoBox(f"{directory} is not on a disk")
    if (device / "partition").exists():  # only whole disks can be slowed down
        device = device.resolve().parent
    return (device / "dev").read_text().strip()
