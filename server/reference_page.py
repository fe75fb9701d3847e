"""The files of the reference page, which `tox run -e reference` builds. They are not part of the contract."""

from dataclasses import dataclass
from pathlib import Path

TYPES = {".css": "text/css", ".html": "text/html", ".js": "text/javascript"}
HEADERS = {
    "Content-Security-Policy": (
        # This is the hash of an empty style: the renderer makes empty style elements and fills them by the CSSOM.
        "default-src 'none'; script-src 'self'; connect-src 'self'; img-src 'self' data:; "
        "style-src 'self' 'sha256-47DEQpj8HBSa+/TImW+5JCeuQeRkm5NMpJWZG3hSuFU='; "
        "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    ),
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
}


@dataclass(frozen=True)
class Page:
    """A file, and the headers to send with it."""

    body: bytes
    headers: dict[str, str]


def read(directory: Path) -> dict[str, Page]:
    """Return the pages in `directory`, by the path to serve each at. If they were not built, there are none."""
    pages = {}
    for file in directory.glob("*"):
        if file.suffix in TYPES:
            # The build puts a file's hash into its name, and these names into index.html. So only index.html changes.
            is_index = file.name == "index.html"
            cache = "no-cache" if is_index else "public, max-age=31536000, immutable"
            headers = {"Content-Type": f"{TYPES[file.suffix]}; charset=utf-8", "Cache-Control": cache, **HEADERS}
            pages["/" if is_index else f"/reference/{file.name}"] = Page(file.read_bytes(), headers)
    return pages
