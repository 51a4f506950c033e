"""A service on a loopback port and a Chromium that visits it; every visit is watched for what no page may do."""

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
    """A scorer that answers each item by `score_one`."""

    spec: ScorerSpec
    score_one: Callable[[ScoreItem], Outcome]

    def score(self, items: Sequence[ScoreItem]) -> list[Outcome]:
        return [self.score_one(item) for item in items]


@pytest.fixture
def small() -> Callable[..., Small]:
    """`small(name, needs, score_one, low=0.0, source="a test", summary="a test")`: a scorer up to 1."""

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
    """A page of the console, and what it did: `complaints` of the policy and of scripts, `urls` it asked for."""

    page: Any
    url: str
    complaints: list[str] = field(default_factory=list)
    urls: list[str] = field(default_factory=list)

    async def shot(self, name: str) -> None:
        """Keep what is seen, for people to look at."""
        SHOTS.mkdir(parents=True, exist_ok=True)
        await self.page.screenshot(path=SHOTS / f"{name}.png", full_page=True)

    def check(self) -> None:
        assert self.complaints == []
        outside = [url for url in self.urls if not url.startswith((self.url, f"blob:{self.url}"))]
        assert outside == [], "a request left the service"


@pytest.fixture
def serve() -> Serve:
    """`serve(scorers, ensembles={}, limits=None, **of_app)`: the URL of a service, up while the block lasts."""

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
    """`visit(url, **of_context)`: the page in a fresh profile; checked when the block ends."""

    @asynccontextmanager
    async def visiting(url: str, **of_context: Any) -> AsyncIterator[Visit]:
        context = await browser.new_context(viewport={"width": 1280, "height": 900}, **of_context)
        context.set_default_timeout(60_000)
        page = await context.new_page()
        seen = Visit(page, url)
        page.on("request", lambda request: seen.urls.append(request.url))
        page.on("pageerror", lambda error: seen.complaints.append(str(error)))
        page.on("console", lambda message: _listen(seen, message.text))
        page.on("filechooser", lambda _: None)  # from the start: one that opens before it is listened for is lost
        await page.add_init_script(WATCH)
        await page.goto(url)
        yield seen
        await context.close()
        seen.check()

    return visiting


def _listen(seen: Visit, text: str) -> None:
    """A refusal's status is in Chromium's log too, and no complaint."""
    if not text.startswith("Failed to load resource: the server responded with a status of"):
        seen.complaints.append(text)
