"""The reference page: how the server sends it, and what a reader sees in a browser.

It is not part of the contract: a server may leave it out. The first half needs no build, because a copy of the server
gets small files instead of the page. The second half reads the built page in headless Chromium, at the width of a
desktop and of a phone. `tox run -e browser` builds the page and runs these tests.
"""

import re
import textwrap
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from urllib.parse import unquote

import pytest
import requests

from contract_tests.target import openapi
from contract_tests.target.calls import outcome
from contract_tests.target.openapi import SERVER
from contract_tests.target.process import ServerProcess
from contract_tests.target.raw import request, send
from server_tests.serve import tox
from server_tests.this_server import copy_server

# ---- How the server sends it -------------------------------------------------------------------------------

FILES = {
    "index.html": b"<!doctype html><title>a page</title>",
    "page.0123456789ab.css": b"body { margin: 0 }",
    "page.0123456789ab.js": b"'use strict';",
    "page.js.orig": b"what an editor left there",
}
SENT = [  # path, file, media type, and whether a browser may keep it without asking again
    ("/", "index.html", "text/html; charset=utf-8", False),
    ("/reference/page.0123456789ab.css", "page.0123456789ab.css", "text/css; charset=utf-8", True),
    ("/reference/page.0123456789ab.js", "page.0123456789ab.js", "text/javascript; charset=utf-8", True),
]
SHA256_OF_NOTHING = "'sha256-47DEQpj8HBSa+/TImW+5JCeuQeRkm5NMpJWZG3hSuFU='"
POLICY = {
    "default-src": ["'none'"],
    "script-src": ["'self'"],
    "style-src": ["'self'", SHA256_OF_NOTHING],  # an inline style is allowed only if it is empty
    "img-src": ["'self'", "data:"],
    "connect-src": ["'self'"],
    "base-uri": ["'none'"],
    "form-action": ["'none'"],
    "frame-ancestors": ["'none'"],
}

StartServer = Callable[..., ServerProcess]


@pytest.fixture
def start_with_page(start_server: StartServer, tmp_path: Path) -> StartServer:
    """`start_with_page(files)` starts a copy of the server with a reference page of these files, or with none."""

    def start(files: dict[str, bytes]) -> ServerProcess:
        copy = tmp_path / "copy"
        server = copy_server(copy)
        if files:
            (copy / "reference/dist").mkdir(parents=True)
        for name, content in files.items():
            (copy / "reference/dist" / name).write_bytes(content)
        return start_server(BACKUP_SERVER=server)

    return start


def test_the_page_is_sent_as_it_was_built(start_with_page: StartServer):
    server = start_with_page(FILES)
    for path, name, media_type, kept in SENT:
        for method in ("GET", "HEAD"):
            answer = requests.request(method, server.base_url + path, timeout=10)
            assert answer.status_code == 200, path
            assert answer.content == (FILES[name] if method == "GET" else b"")
            assert answer.headers["Content-Length"] == str(len(FILES[name]))
            assert answer.headers["Content-Type"] == media_type
            cached = "public, max-age=31536000, immutable" if kept else "no-cache"
            assert answer.headers["Cache-Control"] == cached
            assert answer.headers["X-Request-Id"]
    server.stop()  # then the log is complete
    routes = [event["route"] for event in server.log() if event["event"] == "request"]
    assert routes == [path for path, *_ in SENT for _ in range(2)]


def test_the_page_may_load_from_its_own_server_alone_and_run_nothing_inline(start_with_page: StartServer):
    server = start_with_page(FILES)
    for path, *_ in SENT:
        headers = requests.get(server.base_url + path, timeout=10).headers
        directives = [directive.split() for directive in headers["Content-Security-Policy"].split(";")]
        assert {name: sources for name, *sources in directives} == POLICY
        assert headers["X-Content-Type-Options"] == "nosniff"
        assert headers["Referrer-Policy"] == "no-referrer"


def test_the_page_takes_no_other_method(start_with_page: StartServer):
    server = start_with_page(FILES)
    for path, *_ in SENT:
        for method in ("POST", "PUT", "DELETE", "OPTIONS", "PATCH", "TRACE", "QUERY"):
            answer = send(server, request(method, path))
            assert outcome(answer) == "405 method_not_allowed"
            assert answer.headers["Allow"] == "GET, HEAD"


def test_nothing_but_the_pages_files_is_sent_and_only_under_their_exact_names(start_with_page: StartServer):
    server = start_with_page(FILES)
    for path in (
        "/index.html",
        "/reference",
        "/reference/",
        "/reference/index.html",
        "/reference/page.css",
        "/reference/page.js.orig",
        "/reference/page.0123456789ab.CSS",
        "/reference/page.0123456789ab.css/",
        "/reference//page.0123456789ab.css",
        "/reference/page%2E0123456789ab.css",
        "/reference/../backup_server.py",
        "/reference/..%2f..%2fbackup_server.py",
        "/reference/dist/page.0123456789ab.css",
        "//",
        "/.",
    ):
        assert outcome(send(server, request("GET", path))) == "404 not_found", path


def test_where_the_page_was_not_built_the_answer_says_how(start_with_page: StartServer):
    server = start_with_page({})
    assert "tox run -e reference" in send(server, request("GET", "/")).json()["detail"]
    for method in ("GET", "HEAD", "POST"):
        answer = send(server, request(method, "/"))
        assert answer.status == 404
        assert answer.headers["Cache-Control"] == "no-store"
    assert requests.get(server.base_url + "/openapi.yaml", timeout=10).status_code == 200


# ---- What a reader sees ------------------------------------------------------------------------------------

WIDTHS = {"desktop": (1280, 900), "phone": (390, 844)}

PROSE: str = openapi.SPEC["info"]["description"]
BLOCKS = [textwrap.dedent(block) for _, block in re.findall(r"(?ms)^( *)```\w*\n(.*?)\n\1```$", PROSE)]
HEADINGS = re.findall(r"^#{2,3} (.*)$", PROSE, re.MULTILINE)
OPERATIONS = [
    (path, method, operation)
    for path, item in openapi.SPEC["paths"].items()
    for method, operation in item.items()
    if method in openapi.METHODS
]


@pytest.fixture(scope="module")
def page_server(start_shared_server: StartServer) -> ServerProcess:
    """The server, with the built page."""
    assert (SERVER.parent / "reference/dist/index.html").exists(), f"build the page first: {tox()} run -e reference"
    return start_shared_server()


@pytest.fixture(params=WIDTHS)
def page(request: pytest.FixtureRequest, browser: Any, page_server: ServerProcess) -> Iterator[Any]:
    """The rendered page. When the test ends, its console must be clean, and it must not have called another host."""
    width, height = WIDTHS[request.param]
    context = browser.new_context(viewport={"width": width, "height": height})
    context.set_default_timeout(10_000)  # milliseconds
    page = context.new_page()
    said: list[str] = []
    asked: list[str] = []
    page.on("console", lambda message: said.append(f"{message.type}: {message.text}"))
    page.on("pageerror", lambda error: said.append(f"uncaught: {error}"))
    page.on("requestfailed", lambda failed: said.append(f"failed: {failed.url}"))
    context.on("request", lambda sent: asked.append(sent.url))
    page.goto(page_server.base_url)
    page.locator(place(*OPERATIONS[-1])).wait_for()
    yield page
    context.close()
    assert not said
    assert f"{page_server.base_url}/openapi.json" in asked
    assert [url for url in asked if not url.startswith((f"{page_server.base_url}/", "data:"))] == []


def place(path: str, method: str, operation: dict[str, Any]) -> str:
    """Return the selector of an operation's section on the page."""
    return f'[id="tag/{operation["tags"][0]}/operation/{operation["operationId"]}"]'


def collapsed(text: str) -> str:
    return " ".join(text.split())


def test_the_page_shows_each_operation(page: Any):
    assert len(OPERATIONS) == len(openapi.OPERATIONS)
    for path, method, operation in OPERATIONS:
        shown = page.locator(place(path, method, operation))
        assert shown.get_by_role("heading", name=operation["summary"]).is_visible(), operation["operationId"]
        text = shown.inner_text()
        method = "del" if method == "delete" else method
        assert re.search(rf"^{method}\w*\s+{re.escape(path)}$", text, re.MULTILINE | re.IGNORECASE), text
        assert operation["operationId"] in text
        assert set(operation["responses"]) <= set(text.split())


def test_the_page_shows_the_prose_with_the_signing_example(page: Any):
    shown = [block.rstrip() for block in page.locator("pre").all_inner_texts()]
    signature_base, headers = ([block for block in BLOCKS if block.startswith(start)] for start in ('"@', "Auth"))
    assert len(signature_base) == len(headers) == 1
    assert all(block in shown for block in BLOCKS)
    headings = {collapsed(heading) for heading in page.locator("h1, h2, h3, h4").all_inner_texts()}
    assert {heading.replace("`", "") for heading in HEADINGS} <= headings
    text = collapsed(page.locator("body").inner_text())
    cells = [cell.strip() for row in re.findall(r"^\|(.*)\|$", PROSE, re.MULTILINE) for cell in row.split("|")]
    codes = {code for cell in cells for code in re.findall(r"`([^`]+)`", cell)}
    assert len(codes) > 20
    assert [code for code in codes if collapsed(code) not in text] == []


def test_the_page_fits_its_width(page: Any):
    """Nothing is cut off, and only blocks of code scroll sideways."""
    assert page.evaluate("document.documentElement.scrollWidth <= document.documentElement.clientWidth")
    assert page.evaluate("getComputedStyle(document.body).overflowX") == "visible"
    beyond = page.evaluate(
        """() => [...document.querySelectorAll(".api-content :is(h1, h2, h3, p, li, td, pre)")]
                 .filter((element) => !element.parentElement.closest("pre, .redoc-json"))
                 .filter((element) => element.getBoundingClientRect().right > innerWidth)
                 .map((element) => element.outerHTML.slice(0, 200))"""
    )
    assert beyond == []


def test_the_search_finds_operations_and_prose(page: Any):
    search = page.get_by_role("textbox")
    if not search.is_visible():  # on a phone, before the menu is opened
        page.locator(".menu-content + div").click()
    results = page.get_by_role("search").locator("li")
    for name in ("fetchBackupVersion", "Changing the password", "deleteUser"):
        search.fill("")
        results.first.wait_for(state="detached")
        search.fill(name)
        results.filter(has_text=name).first.wait_for()
    results.filter(has_text="deleteUser").first.click()
    page.wait_for_url("**/#tag/account/operation/deleteUser")
    heading = page.get_by_role("heading", name="Delete the user")
    page.wait_for_function("element => element.getBoundingClientRect().top < innerHeight", arg=heading.element_handle())
    assert heading.is_visible()


def test_each_link_leads_somewhere(page: Any, page_server: ServerProcess):
    links = set(page.locator("a").evaluate_all("links => links.map(link => link.getAttribute('href') ?? '')"))
    anchors = {link.removeprefix("#") for link in links if link.startswith("#")}
    assert len(anchors) > len(OPERATIONS)
    there = set(page.locator("[id]").evaluate_all("elements => elements.map(element => element.id)"))
    assert {unquote(anchor) for anchor in anchors} <= there
    for link in links:
        if link.startswith("/"):
            assert requests.get(page_server.base_url + link, timeout=10).status_code == 200, link
