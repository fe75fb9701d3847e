"""Start the server for development, with a secret of its own: `tox run -e serve`.

The secret is made at the first start and kept in data/app-secret (outside version control, readable by its
owner alone), so that accounts made today still answer to the same app tomorrow. APP_SECRET_KEY, if set,
takes its place. DEBUG is 1 unless it is set, so that the log keeps the messages and tracebacks of errors.
Every other setting reaches the server as it is in the environment.
"""

import os
import secrets
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
SECRET_FILE = Path("data/app-secret")  # relative to ROOT, as is the server's own ./data/backup.db


def main() -> None:
    """Say what to try next, then become the server: signals and the exit status are its own."""
    os.chdir(ROOT)
    if not os.environ.get("APP_SECRET_KEY"):
        os.environ["APP_SECRET_KEY"] = development_secret(SECRET_FILE)
    os.environ.setdefault("DEBUG", "1")
    print(next_steps(os.environ.get("PORT", "8080")), flush=True)
    os.execv(sys.executable, [sys.executable, "backup_server.py"])


def development_secret(path: Path) -> str:
    """Return the secret kept at `path`, 43 random characters; make it there if there is none."""
    path.parent.mkdir(mode=0o700, exist_ok=True)
    try:
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    except FileExistsError:
        return path.read_text().strip()
    with os.fdopen(descriptor, "w") as file:
        file.write(secrets.token_urlsafe(32) + "\n")
    return path.read_text().strip()


def next_steps(port: str) -> str:
    """Return what to type in a second terminal. (What a `port` of 0 became, the server prints itself.)"""
    base_url = f"http://127.0.0.1:{port if port != '0' else 'PORT'}"
    tox = ".venv/bin/tox" if Path(".venv/bin/tox").exists() else "tox"
    return f"""\
The app's development secret is in {SECRET_FILE}. Try next, in a second terminal:

  curl -i {base_url}/health
  APP_SECRET_KEY="$(cat {SECRET_FILE})" {tox} run -e demo -- --base-url {base_url}

Ctrl-C stops the server.
"""


if __name__ == "__main__":
    main()
