"""Run a linter in a folder whose path is plain: python lint/plainly.py COMMAND

Redocly and Spectral read the path of a file as part of a URL. If the path of the checkout has a `#` or a `%41`, they
look for another file, or lose the configured exceptions. Then the command runs beside copies of what it reads.
"""

import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent


@contextmanager
def plain_folder(root: Path) -> Iterator[Path]:
    """Yield the checkout, or if its path is not plain, a folder with openapi.yaml and lint/ until the context ends."""
    if re.fullmatch("[A-Za-z0-9._/-]+", str(root)):
        yield root
        return
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name).resolve()
        (folder / "lint").mkdir()
        for path in (root / "openapi.yaml", *root.glob("lint/*.yaml")):
            shutil.copy(path, folder / path.relative_to(root))
        (folder / "lint/node_modules").symlink_to(root / "lint/node_modules")
        yield folder


if __name__ == "__main__":
    with plain_folder(ROOT) as folder:
        sys.exit(subprocess.run(sys.argv[1:], cwd=folder).returncode)
