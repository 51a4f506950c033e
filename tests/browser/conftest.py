"""Fixtures: a service on a loopback port, and a Chromium page whose policy violations and requests are recorded."""

from __future__ import annotations

import asyncio
import shutil
import socket
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio
import uvicorn

from services.backends import LocalBackend
from services.gateway import app
from services.gateway.core import Gateway
from services.scorers.base import Need, Scorer, ScorerSpec
from services.settings import EnsembleSettings, LimitSettings
from synod.contracts import Outcome, ScoreItem

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")
FLAGS = ["--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage"]
SHOTS = Path(__file__).parents[2] / "runs" / "console"
WATCH = "document.addEventListener('securitypolicyviolation', e => console.error(`CSP: ${e.violatedDirective}`))"
Serve = Callable[..., AbstractAsyncContextManager[str]]
Open = Callable[..., AbstractAsyncContextManager["Visit"]]


@dataclass
class Small:
    """A scorer that calls `score_one` for each item."""

    spec: ScorerSpec
    score_one: Callable[[ScoreItem], Outcome]

    def score(self, items: Sequence[ScoreItem]) -> list[Outcome]:
        return [self.score_one(item) for item in items]


@pytest.fixture
def small() -> Callable[..., Small]:
    """Return a function that makes a scorer with the range [low, 1]."""

    def make(
        name: str,
        needs: tuple[Need, ...],
        score_one: Callable[[ScoreItem], Outcome],
        low: float = 0.0,
        source: str = "a test",
        summary: str = "a test",
    ) -> Small:
        return Small(ScorerSpec(name, needs, low, 1.0, source, summary), score_one)

    return make


@dataclass
class Visit:
    """A page of the console, the `complaints` of its policy and scripts, and the `urls` that it requested."""

    page: Any
    url: str
    complaints: list[str] = field(default_factory=list)
    urls: list[str] = field(default_factory=list)

    async def shot(self, name: str) -> None:
        """Save a screenshot for manual review."""
        SHOTS.mkdir(parents=True, exist_ok=True)
        await self.page.screenshot(path=SHOTS / f"{name}.png", full_page=True)

    def check(self) -> None:
        assert self.complaints == []
        outside = [url for url in self.urls if not url.startswith((self.url, f"blob:{self.url}"))]
        assert outside == [], "a request left the service"


@pytest.fixture
def serve() -> Serve:
    """Return a context manager that runs a service with the given scorers and yields its URL."""

    @asynccontextmanager
    async def serving(
        scorers: Mapping[str, Scorer],
        ensembles: Mapping[str, EnsembleSettings] | None = None,
        limits: LimitSettings | None = None,
        **of_app: Any,
    ) -> AsyncIterator[str]:
        backend = LocalBackend(scorers)
        gateway = Gateway(backend, ensembles or {}, limits or LimitSettings())
        listener = socket.create_server(("127.0.0.1", 0))
        server = uvicorn.Server(uvicorn.Config(app.build(gateway, **of_app), log_level="error", ws="none"))
        task = asyncio.create_task(server.serve([listener]))
        try:
            yield f"http://127.0.0.1:{listener.getsockname()[1]}/"
        finally:
            server.should_exit = True
            await task
            await backend.close()

    return serving


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def browser() -> AsyncIterator[Any]:
    if CHROMIUM is None:
        pytest.skip("Chromium is missing: apt-get install chromium fonts-dejavu-core")
    from playwright.async_api import async_playwright

    async with async_playwright() as playwright:
        launched = await playwright.chromium.launch(executable_path=CHROMIUM, args=FLAGS)
        yield launched
        await launched.close()


@pytest.fixture
def visit(browser: Any) -> Open:
    """Return a context manager that opens a URL in a new profile and checks the visit at its end."""

    @asynccontextmanager
    async def visiting(url: str, **of_context: Any) -> AsyncIterator[Visit]:
        context = await browser.new_context(viewport={"width": 1280, "height": 900}, **of_context)
        context.set_default_timeout(60_000)
        page = await context.new_page()
        seen = Visit(page, url)
        page.on("request", lambda request: seen.urls.append(request.url))
        page.on("pageerror", lambda error: seen.complaints.append(str(error)))
        page.on("console", lambda message: _listen(seen, message.text))
        page.on("filechooser", lambda _: None)  # before any chooser opens; otherwise it is lost
        await page.add_init_script(WATCH)
        await page.goto(url)
        yield seen
        await context.close()
        seen.check()

    return visiting


@pytest.fixture
def console(serve: Serve, visit: Open) -> Open:
    """Return a context manager that serves scorers, opens their console and waits until it lists them."""

    @asynccontextmanager
    async def opened(*args: Any, color_scheme: str | None = None, **of_app: Any) -> AsyncIterator[Visit]:
        async with serve(*args, **of_app) as url, visit(url, color_scheme=color_scheme) as seen:
            await seen.page.wait_for_selector("#scorers input")
            yield seen

    return opened


def _listen(seen: Visit, text: str) -> None:
    """Record a console message, except for the error statuses that Chromium logs."""
    if not text.startswith("Failed to load resource: the server responded with a status of"):
        seen.complaints.append(text)
