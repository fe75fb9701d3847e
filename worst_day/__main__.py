"""Run the whole worst day, one part after the other: `tox run -e worst-day`.

Each part prints what it did and what was lost. A part that needs something which this machine does not have, such as
strace or a file system that can be mounted, is *not run*, and says why.

exit codes: 0 every part that was run held, 1 one did not
"""

import argparse
import subprocess
import sys
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
# A part is a module of this package, with its arguments in the quick form.
PARTS: dict[str, list[str]] = {
    "kills": ["--kills", "20", "--acknowledged", "1000"],
    "power_cuts": ["--rounds", "1", "--blob-bytes", "3000"],
    "disks": ["--faults", "10"],
    "hostile": ["--requests", "4000"],
    "erased": ["--rounds", "3"],
    "space": ["--bytes", "150000000", "--addresses", "10", "--days", "3"],
    "interleavings": ["--depth", "4"],
}
NOT_RUN = 2  # the exit code of a part that cannot be run here


def main() -> int:
    parser = argparse.ArgumentParser(
        prog="worst_day", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--only", choices=PARTS, help="only this part")
    parser.add_argument("--quick", action="store_true", help="the small form of each part: two minutes in all")
    arguments = parser.parse_args()
    results, started = {}, time.monotonic()
    for name, quick in PARTS.items():
        if arguments.only in (None, name):
            print(f"\n--- {name} ---", flush=True)
            command = [sys.executable, "-m", f"worst_day.{name}", *(quick if arguments.quick else [])]
            code = subprocess.run(command, cwd=ROOT, check=False).returncode
            results[name] = {0: "held", NOT_RUN: "not run"}.get(code, f"FELL ({code})")
    print(f"\nThe worst day, in {time.monotonic() - started:.0f} s:")
    for name, result in results.items():
        print(f"  {name:<15} {result}")
    return int(any(result.startswith("FELL") for result in results.values()))


if __name__ == "__main__":
    sys.exit(main())
