"""Start the server for development, with a secret of its own: `tox run -e serve`.

The first start makes the secret and keeps it in data/app-secret, so that accounts made today still work with the same
app tomorrow. The file is outside version control, and only its owner can read it. If APP_SECRET_KEY is set, it replaces
this secret. DEBUG is 1 unless it is set, so that the log keeps the messages and tracebacks of errors. Every other
setting reaches the server unchanged from the environment.
"""

import os
import secrets
import shutil
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
SECRET_FILE = Path("data/app-secret")  # relative to ROOT, as is the server's own ./data/backup.db


def main() -> None:
    """Print what to try next, then become the server, which gets the signals and gives the exit status."""
    os.chdir(ROOT)
    if not os.environ.get("APP_SECRET_KEY"):
        os.environ["APP_SECRET_KEY"] = development_secret(SECRET_FILE)
    os.environ.setdefault("DEBUG", "1")
    print(next_steps(os.environ.get("PORT", "8080")), flush=True)
    os.execv(sys.executable, [sys.executable, "backup_server.py"])


def development_secret(path: Path) -> str:
    """Return the secret in the file at `path`, 43 random characters. If there is no such file, make one."""
    path.parent.mkdir(mode=0o700, exist_ok=True)
    try:
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    except FileExistsError:
        return path.read_text().strip()
    with os.fdopen(descriptor, "w") as file:
        file.write(secrets.token_urlsafe(32) + "\n")
    return path.read_text().strip()


def tox() -> str:
    """Return a command that runs tox, as the README's first table has them."""
    found = shutil.which("tox")
    if Path(".venv/bin/tox").exists():
        return ".venv/bin/tox"
    if found and not {"uv", "pipx"} & set(Path(found).parts):  # theirs are on PATH only while they run
        return "tox"
    if shutil.which("uvx"):
        return "uvx --python 3.13 tox"
    if shutil.which("pipx"):
        return "pipx run tox"
    return "python3.13 -m venv .venv && .venv/bin/pip install --quiet tox && .venv/bin/tox"


def next_steps(port: str) -> str:
    """Return what to type in a second terminal. (If `port` is 0, the server itself prints the real port.)"""
    base_url = f"http://127.0.0.1:{port if port != '0' else 'PORT'}"
    return f"""\
The app's development secret is in {SECRET_FILE}. Try next, in a second terminal:

  curl -i {base_url}/health
  APP_SECRET_KEY="$(cat {SECRET_FILE})" {tox()} run -e demo -- --base-url {base_url}

Ctrl-C stops the server.
"""


if __name__ == "__main__":
    main()
