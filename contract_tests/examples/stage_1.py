"""A server that passes stage 1 of the contract tests: health, documents, 404, 405, problems. Start from here.

    python contract_tests/examples/stage_1.py 8080

It reads openapi.yaml, serves it, and takes the paths and methods from it. Nobody can prove anything yet, so each
operation that needs a proof answers 401.
"""

import json
import re
import secrets
import sys
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import yaml

YAML = (Path(__file__).parents[2] / "openapi.yaml").read_bytes()
SPEC = yaml.safe_load(YAML)
PAGES = {
    "/health": ("application/json", json.dumps({"status": "ok", "version": SPEC["info"]["version"]}).encode()),
    "/openapi.yaml": ("application/yaml", YAML),
    "/openapi.json": ("application/json", json.dumps(SPEC).encode()),
}
PATHS = {re.sub(r"\\{\w+\\}", "[^/]+", re.escape(path)): item for path, item in SPEC["paths"].items()}
PATHS.pop("/admin/stats")  # without an admin key, this path does not exist


class Handler(BaseHTTPRequestHandler):
    def answer(self) -> None:
        path = self.requestline.split(" ")[1].partition("?")[0]  # as sent; self.path may have lost a slash
        item = next((item for pattern, item in PATHS.items() if re.fullmatch(pattern, path)), None)
        if item is None:
            return self.problem(404, "not_found", "/openapi.yaml lists the operations.")
        allowed = {method.upper() for method in item} | ({"HEAD"} if path in PAGES else set())
        if self.command not in allowed:
            return self.problem(405, "method_not_allowed", "See Allow.", Allow=", ".join(sorted(allowed)))
        if path in PAGES:
            return self.send(200, *PAGES[path])
        self.problem(401, "signature_missing", "Sign it.", **{"WWW-Authenticate": 'Basic realm="backup"'})

    def problem(self, status: int, code: str, detail: str, **headers: str) -> None:
        members = {
            "type": f"https://example.org/#{code}",
            "title": code,
            "status": status,
            "detail": detail,
            "code": code,
        }
        self.send(status, "application/problem+json", json.dumps(members).encode(), **headers)

    def send(self, status: int, media_type: str, body: bytes, **headers: str) -> None:
        self.send_response(status)
        headers |= {"Cache-Control": "no-store", "X-Request-Id": secrets.token_hex(8), "Content-Type": media_type}
        for name, value in (headers | {"Content-Length": str(len(body))}).items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(b"" if self.command == "HEAD" else body)

    def send_error(self, code: int, *_: object) -> None:
        """Answer a request that http.server cannot read, or whose method it does not know."""
        self.answer() if code == 501 else self.problem(400, "malformed_request", "This is no HTTP.")


server = ThreadingHTTPServer(("127.0.0.1", int(sys.argv[1])), Handler)
print(f"serving on http://127.0.0.1:{server.server_port}", flush=True)
server.serve_forever()
