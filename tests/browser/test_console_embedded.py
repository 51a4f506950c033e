"""Test that the console draws the boxes of the embedded scorers at their coordinates."""

from __future__ import annotations

import base64
import json
from pathlib import Path
from typing import Any

import httpx
import pytest

from services.scorers import registry
from services.settings import load

pytestmark = pytest.mark.asyncio(loop_scope="module")
ROOT = Path(__file__).parents[2]
SAMPLES = ROOT / "embedded" / "data" / "samples"
PERSON, POSITION = SAMPLES / "00_ada.png", SAMPLES / "17_position.png"
GENEVAL = {
    "tag": "position",
    "include": [{"class": "dog", "count": 1}, {"class": "ball", "count": 1, "position": ["below", 0]}],
}


async def detail(url: str, scorer: str, **item: Any) -> dict[str, Any]:
    """Return the detail of the same score, requested without the console."""
    async with httpx.AsyncClient(base_url=url, timeout=120) as client:
        answer = await client.post("/v1/score", json={"items": [item], "scorers": [scorer]})
    found: dict[str, Any] = answer.json()["results"][0]["scores"][scorer]["detail"]
    return found


def encoded(path: Path) -> str:
    return base64.b64encode(path.read_bytes()).decode()


async def drawn(page: Any) -> list[list[float]]:
    """Return the boxes over the first image, (x0, y0, x1, y1) in its pixels."""
    found: list[list[float]] = await page.eval_on_selector_all(
        "#answer figure:first-child rect",
        "all => all.map(one => { const [x, y, w, h] = ['x', 'y', 'width', 'height'].map(a => +one.getAttribute(a));"
        " return [x, y, x + w, y + h]; })",
    )
    return found


async def score(page: Any, scorer: str) -> None:
    for box in await page.query_selector_all("#scorers input"):
        await box.set_checked(await box.get_attribute("value") == scorer)
    await page.click("#score")
    await page.wait_for_function(
        "name => document.getElementById('summary').textContent.startsWith(`Done: ${name}`)",
        arg=scorer,
        timeout=120_000,
    )


async def test_boxes_of_the_embedded_scorers_are_drawn(serve: Any, visit: Any) -> None:
    settings = load(ROOT / "deploy" / "configs" / "embedded.toml")
    scorers = {name: registry.build(name, settings.scorers[name]) for name in ("geneval", "fer")}
    async with serve(scorers, settings.ensembles) as url, visit(url) as seen:
        page = seen.page
        await page.wait_for_selector("#scorers input")
        await page.set_input_files("#image", PERSON)
        await page.check("input[value=fer]")
        references = sorted((ROOT / "embedded" / "data" / "concepts" / "ada" / "train").glob("*.png"))[:2]
        await page.set_input_files("#references", references)
        await score(page, "fer")
        faces = await detail(url, "fer", image=encoded(PERSON), references=[encoded(path) for path in references])
        assert await drawn(page) == [pytest.approx(faces["box"])]
        assert await page.locator("#answer rect.face").count() == 1 + len(references)
        await seen.shot("embedded-fer")
        await page.set_input_files("#image", POSITION)
        await page.check("input[value=geneval]")
        await page.fill("#geneval", json.dumps(GENEVAL))
        await score(page, "geneval")
        found = await detail(url, "geneval", image=encoded(POSITION), geneval=GENEVAL)
        assert len(found["objects"]) >= 2
        assert await drawn(page) == [pytest.approx(one["box"]) for one in found["objects"]]
        await seen.shot("embedded-geneval")
