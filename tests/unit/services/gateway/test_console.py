"""The console's files, their headers and what they must not contain, without a browser."""

from __future__ import annotations

import re
from collections.abc import AsyncIterator
from pathlib import Path

import httpx
import pytest

from services.gateway import app, auth, console
from services.gateway.core import Gateway
from services.settings import AuthSettings

KINDS = {".html": "text/html", ".css": "text/css", ".js": "text/javascript", ".svg": "image/svg+xml"}
FILES = sorted(path for path in Path(console.__file__).parent.iterdir() if path.suffix in KINDS)
TOKENS = '[ann]\ntoken = "researcher-token-0123456789"\n'


@pytest.fixture
async def guarded(gateway: Gateway) -> AsyncIterator[httpx.AsyncClient]:
    """The page needs no token: it asks the user for one."""
    authenticator = auth.load(AuthSettings(tokens_env="T"), {"T": TOKENS})
    transport = httpx.ASGITransport(app.build(gateway, authenticator))
    async with httpx.AsyncClient(transport=transport, base_url="http://service") as client:
        yield client


async def test_every_console_file_has_the_security_headers(guarded: httpx.AsyncClient) -> None:
    for path, kind in [("/", "text/html"), *((f"/console/{one.name}", KINDS[one.suffix]) for one in FILES)]:
        answer = await guarded.get(path)
        assert (answer.status_code, answer.headers["content-type"].partition(";")[0]) == (200, kind)
        policy = dict(part.split(" ", 1) for part in answer.headers["content-security-policy"].split("; "))
        assert policy == {
            "default-src": "'none'",
            "script-src": "'self'",
            "style-src": "'self'",
            "img-src": "'self' blob:",
            "connect-src": "'self'",
            "base-uri": "'none'",
            "form-action": "'none'",
            "frame-ancestors": "'none'",
            "require-trusted-types-for": "'script'",
        }
        assert answer.headers["x-content-type-options"] == "nosniff"
        assert answer.headers["x-frame-options"] == "DENY"
        assert answer.headers["referrer-policy"] == "no-referrer"


@pytest.mark.parametrize("name", ["__init__.py", "..%2fapp.py", "..%2F..%2Fsettings.py", "%2e%2e", "missing.js", "a/b"])
async def test_only_console_files_are_served(guarded: httpx.AsyncClient, name: str) -> None:
    assert (await guarded.get(f"/console/{name}")).status_code == 404


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.name)
def test_console_files_refer_only_to_each_other(path: Path) -> None:
    text = path.read_text()
    named = re.findall(r"""(?:src|href)="console/([^"]+)"|from "\./([^"]+)"|url\((.*?)\)""", text)
    assert {one for groups in named for one in groups if one} <= {file.name for file in FILES}
    assert re.findall(r"https?://(?!www\.w3\.org/2000/svg)", text) == []
    assert re.findall(r"innerHTML|outerHTML|insertAdjacent|document\.write|\beval\(|localStorage|cookie", text) == []


def test_page_has_no_inline_script_or_style() -> None:
    page = next(path for path in FILES if path.name == "index.html").read_text()
    assert re.findall(r"<script(?![^>]*\bsrc=)|<style|\sstyle=|\son\w+=|javascript:", page) == []
