"""Test the console in Chromium, with a real server and the tests' own scorers."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from services.gateway import auth
from services.scorers.base import Need
from services.settings import AuthSettings, EnsembleSettings, LimitSettings
from synod import errors
from synod.contracts import About, Concept, Origin, Outcome, Score, ScoreItem
from synod.errors import NoReferenceFace, SynodError
from synod.images import encode_png

pytestmark = pytest.mark.asyncio(loop_scope="module")  # one Chromium for all
TOKEN = "researcher-token-0123456789"
MARKUP = "<img src=x onerror=\"document.title='broken in'\"><b>bold</b>"
ORIGIN = Origin("blake2b-256:" + "5e" * 32, "1", "official-1")


def brightness(item: ScoreItem) -> Outcome:
    return Score(float(np.mean(item.pixels())) / 255, {"prompt": item.prompt}, ORIGIN)


def objects(item: ScoreItem) -> Outcome:
    """Return GenEval's detail: a ball at the left, a cup at the right, in an image of any size."""
    height, width = item.pixels().shape[:2]
    found = [
        {"class": "ball", "score": 0.97, "box": [width / 8, height / 4, width / 2, height * 3 / 4], "color": "red"},
        {"class": "cup", "score": 0.88, "box": [width * 5 / 8, height / 2, width, height], "color": None},
    ]
    reasons = {"official": ["expected at least 2 cup, found 1"], "soft": []}
    detail = {"official": 0.0, "soft": 0.75, "rule_set": "official", "reasons": reasons, "objects": found}
    return Score(0.0, detail)


def face(item: ScoreItem) -> Outcome:
    if item.reference_pixels()[0].max() == 0:
        raise NoReferenceFace("no face in reference(s) [0]; give images that show one")
    return Score(-0.25, {"box": [0, 0, 8, 8], "reference_boxes": [[2.0, 3.0, 6.0, 9.0]], "cosines": [-0.25]})


def truthful(item: ScoreItem) -> Outcome:
    assert item.reasoning is not None
    return Score(item.reasoning.truth[0], {"segments": list(item.reasoning.segments)})


@pytest.fixture
def scorers(small: Callable[..., Any]) -> dict[str, Any]:
    return {
        "ber": small("ber", ("image", "prompt"), brightness),
        "geneval": small("geneval", ("image", "geneval"), objects),
        "fer": small("fer", ("image", "references"), face, low=-1.0),
        "tier": small("tier", ("reasoning",), truthful),
    }


@pytest.fixture
def image(tmp_path: Path) -> Callable[..., Path]:
    """Return a function that writes a grey PNG and returns its path."""

    def make(name: str = "grey.png", width: int = 16, height: int = 16, level: int = 51) -> Path:
        path = tmp_path / name
        path.write_bytes(encode_png(np.full((height, width, 3), level, np.uint8)))
        return path

    return make


async def tab_to(page: Any, there: str) -> None:
    """Press Tab until the element selected by `there` has the focus; every stop must show its focus."""
    for _ in range(60):
        await page.keyboard.press("Tab")
        assert await page.evaluate(
            """() => {
              for (let at = document.activeElement; at; at = at.parentElement)
                if (getComputedStyle(at).outlineStyle !== 'none') return true;
              return document.activeElement === document.body;
            }"""
        ), "the focus is not visible"
        if await page.evaluate("there => document.activeElement.matches(there)", there):
            return
    raise AssertionError(f"Tab never reaches {there}")


async def summary(page: Any, starts: str = "Done") -> str:
    await page.wait_for_function(
        "starts => document.getElementById('summary').textContent.startsWith(starts)", arg=starts
    )
    return str(await page.text_content("#summary"))


async def score(page: Any, starts: str = "Done", **inputs: Any) -> str:
    """Fill in texts and files, click on Score and return the summary that starts so."""
    for name, value in inputs.items():
        await (page.fill if isinstance(value, str) else page.set_input_files)(f"#{name}", value)
    await page.click("#score")
    return await summary(page, starts)


async def tick(page: Any, *names: str) -> None:
    for box in await page.query_selector_all("#scorers input"):
        await box.set_checked(await box.get_attribute("value") in names)


async def test_an_image_can_be_scored_with_the_keyboard_only(console: Any, scorers: Any, image: Any) -> None:
    async with console(scorers) as seen:
        page = seen.page
        await tab_to(page, "input[value=tier]")
        await page.keyboard.press("Space")
        await tab_to(page, "#image")
        async with page.expect_file_chooser() as chooser:
            await page.keyboard.press("Enter")
        await (await chooser.value).set_files(image())
        await tab_to(page, "#prompt")
        await page.keyboard.type("a grey square")
        await tab_to(page, "#reasoning")
        await page.keyboard.type("it is grey")
        await tab_to(page, "#segments input[type=checkbox]")
        await page.keyboard.press("Space")
        await tab_to(page, "#segments input[type=text]")
        await page.keyboard.type("a grey square")
        await tab_to(page, "#add-segment")
        await page.keyboard.press("Enter")
        await page.keyboard.type("a red square")
        await tab_to(page, "#score")
        await page.keyboard.press("Enter")
        assert await summary(page) == "Done: ber 0.200; tier 1.000."
        assert await page.get_attribute("#summary", "aria-live") == "polite"
        await page.fill("#prompt", "")
        await page.focus("#prompt")
        await page.keyboard.type("a square")
        await page.keyboard.press("Control+Enter")
        await page.wait_for_function("() => document.getElementById('answer').textContent.includes('\"a square\"')")
        await summary(page)
        card = page.locator(".card", has_text="ber").first
        assert '"prompt": "a square"' in str(await card.text_content())
        meter = card.get_by_role("meter")
        assert [await meter.get_attribute(f"aria-value{end}") for end in ("min", "now", "max")] == ["0", "0.2", "1"]
        assert ORIGIN.model in str(await card.text_content())


async def test_only_fields_of_selected_scorers_are_shown(console: Any, scorers: Any) -> None:
    needs = {
        "ber": {"image", "prompt", "concept"},
        "geneval": {"image", "geneval"},
        "fer": {"image", "references"},
        "tier": {"image", "reasoning"},
    }
    async with console(scorers) as seen:
        for name, shown in needs.items():
            await tick(seen.page, name)
            found = await seen.page.eval_on_selector_all(
                "[data-need]", "all => all.filter(one => !one.hidden).map(one => one.dataset.need)"
            )
            assert set(found) == shown
        await tick(seen.page)
        await seen.page.click("#score")
        assert await seen.page.text_content("#failure") == "Select a scorer or a reward."


async def test_what_is_known_of_a_concept_is_sent(console: Any, small: Callable[..., Any], image: Any) -> None:
    seen_by_scorer: list[Concept | None] = []

    def known(item: ScoreItem) -> Outcome:
        seen_by_scorer.append(item.concept)
        return Score(0.5)

    async with console({"ber": small("ber", ("image", "prompt"), known)}) as seen:
        page = seen.page

        async def ask(count: int, **texts: str) -> None:
            for name, text in texts.items():
                await page.fill(f"#{name.replace('_', '-')}", text)
            await page.click("#score")
            async with asyncio.timeout(30):
                while len(seen_by_scorer) < count:
                    await asyncio.sleep(0.02)

        await page.set_input_files("#image", image())
        await ask(0, prompt="<bo> on grass", concept_facts="<bo> has a red collar")
        assert "Select the concept's kind" in await page.inner_text("#failure")
        await page.select_option("#kind", "animal")
        await ask(1)
        known_of = {"class_word": "dog", "concept_token": "<bo>", "concept_info": "<bo> is brown."}
        await ask(2, **known_of, concept_facts="  <bo> has a red collar\n\n<bo> likes tea ")
        await ask(3, concept_info="", concept_facts="")
    facts = ("<bo> has a red collar", "<bo> likes tea")
    assert seen_by_scorer == [
        Concept("animal", about=About(facts=facts[:1])),
        Concept("animal", "dog", "<bo>", About("<bo> is brown.", facts)),
        Concept("animal", "dog", "<bo>"),
    ]


@pytest.mark.parametrize(("width", "height"), [(400, 100), (60, 240)])
async def test_boxes_are_drawn_at_their_coordinates(
    console: Any, scorers: Any, image: Any, width: int, height: int
) -> None:
    async with console(scorers) as seen:
        page = seen.page
        await tick(page, "geneval", "fer")
        await page.click("#geneval-example")
        await score(page, image=image("p.png", width, height), references=image("r.png", 8, 12))
        drawn = await page.eval_on_selector_all(
            "#answer figure",
            """figures => figures.map(figure => {
              const at = figure.querySelector('img').getBoundingClientRect();
              const within = one => { const r = one.getBoundingClientRect();
                return [(r.left - at.left) / at.width, (r.top - at.top) / at.height,
                        (r.right - at.left) / at.width, (r.bottom - at.top) / at.height]; };
              return [...figure.querySelectorAll('rect')].map(one => [one.getAttribute('class'), within(one)]);
            })""",
        )
        expected = [
            [
                ("object", [1 / 8, 1 / 4, 1 / 2, 3 / 4]),
                ("object", [5 / 8, 1 / 2, 1, 1]),
                ("face", [0, 0, 8 / width, 8 / height]),
            ],
            [("face", [2 / 8, 3 / 12, 6 / 8, 9 / 12])],
        ]
        for boxes, wanted in zip(drawn, expected, strict=True):
            for (kind, place), (wanted_kind, wanted_place) in zip(sorted(boxes), sorted(wanted), strict=True):
                assert kind == wanted_kind
                assert place == pytest.approx(wanted_place, abs=0.01)
        captions = await page.locator("#answer figcaption").all_inner_texts()
        assert "red ball 0.97, cup 0.88" in captions[0]
        assert "expected at least 2 cup, found 1" in await page.inner_text("#answer")


async def test_failures_are_shown_as_sentences(console: Any, scorers: Any, image: Any, tmp_path: Path) -> None:
    broken = tmp_path / "broken.png"
    broken.write_bytes(image().read_bytes()[:40])
    async with console(scorers) as seen:
        page = seen.page
        assert await score(page, image=broken, prompt="grey") == "Done: ber failed (bad_image)."
        card = await page.inner_text(".card.failed")
        assert "An image cannot be read." in card
        assert "bad_image" in card
        await tick(page, "fer")
        done = await score(page, "Done: fer", image=image(), references=image("dark.png", level=0))
        assert done == "Done: fer failed (no_reference_face)."
        assert "A reference image shows no face." in await page.inner_text(".card.failed")


async def test_the_page_asks_for_a_token_and_retries(serve: Any, visit: Any, scorers: Any, image: Any) -> None:
    authenticator = auth.load(AuthSettings(tokens_env="T"), {"T": f'[ann]\ntoken = "{TOKEN}"\n'})
    async with serve(scorers, authenticator=authenticator, metrics_need_token=True) as url, visit(url) as seen:
        page = seen.page

        async def enter(token: str) -> None:
            await page.fill("#token", token)
            await page.keyboard.press("Enter")

        await page.wait_for_selector("#token-form:not([hidden])")
        assert await page.evaluate("document.activeElement.id") == "token"
        await page.keyboard.type("a wrong token of mine")
        await page.keyboard.press("Enter")
        assert "one word" in str(await page.text_content("#token-why"))
        await enter("a-wrong-token-of-mine")
        await page.wait_for_function("() => document.getElementById('token-why').textContent.includes('unknown')")
        await enter(TOKEN)
        await page.wait_for_selector("#scorers input[value=ber]")
        assert await page.is_hidden("#token-form")
        await page.wait_for_function("() => document.getElementById('health-note').textContent.includes('scope')")
        kept = "[JSON.stringify(localStorage), document.cookie, sessionStorage.getItem('synod.token')]"
        assert await page.evaluate(kept) == ["{}", "", TOKEN]
        assert TOKEN not in await page.content()
        await page.evaluate("sessionStorage.setItem('synod.token', 'revoked-token-0123456789')")
        await page.reload()
        await page.wait_for_selector("#token-form:not([hidden])")
        await enter(TOKEN)
        await page.wait_for_selector("#scorers input[value=ber]")
        await page.set_input_files("#image", image())
        await page.fill("#prompt", "grey")
        await page.click("#forget-token")
        assert await page.evaluate("sessionStorage.getItem('synod.token')") is None
        await page.click("#score")
        await page.wait_for_selector("#token-form:not([hidden])")
        await enter(TOKEN)
        assert await summary(page) == "Done: ber 0.200."
        assert all(TOKEN not in asked for asked in seen.urls)


async def test_markup_is_shown_as_text(console: Any, small: Any, image: Any, tmp_path: Path) -> None:
    def fails(item: ScoreItem) -> Outcome:
        raise errors.InvalidItem(f"no {item.prompt}")

    def says(item: ScoreItem) -> Outcome:
        found = [{"class": MARKUP, "score": 0.5, "box": [1, 1, 9, 9], "color": MARKUP}]
        return Score(0.5, {"reason": MARKUP, MARKUP: item.prompt, "objects": found}, Origin(MARKUP, MARKUP, MARKUP))

    needs: tuple[Need, ...] = ("image", "prompt")
    hostile = {"a": small("a", needs, fails), "b": small("b", needs, says, summary=MARKUP, source=MARKUP)}
    ensembles = {MARKUP: EnsembleSettings(weights={"b": 1.0})}
    async with console(hostile, ensembles) as seen:
        page = seen.page
        await page.select_option("#ensemble", MARKUP)
        named = tmp_path / "<b>bold<b> onerror=x.png"
        named.write_bytes(image().read_bytes())
        text = await score(page, image=named, prompt=MARKUP)
        assert "a failed (invalid_item)" in text
        assert f"{MARKUP} 0.500" in text
        shown = str(await page.text_content("#answer"))
        assert shown.count(MARKUP) >= 5
        assert "<b>bold<b> onerror=x.png" in str(await page.text_content(".files"))
        assert await page.locator("b", has_text="bold").count() == 0
        assert await page.locator("img[onerror]").count() == 0
        assert await page.title() == "Synod console"


async def test_violations_of_the_content_policy_fail_a_test(console: Any, scorers: Any) -> None:
    async with console(scorers) as seen:
        for planted in (
            "setTimeout(() => { const s = document.createElement('script'); s.append('1'); document.body.append(s) })",
            "setTimeout(() => document.body.innerHTML = '<p>')",
            "fetch('http://127.0.0.1:9/').catch(() => 0)",
            "const i = new Image(); i.src = 'http://127.0.0.1:9/x.png'",
        ):
            seen.complaints.clear()
            await seen.page.evaluate(f"() => {{ {planted} }}")
            async with asyncio.timeout(60):
                while not any("CSP" in one for one in seen.complaints):
                    await asyncio.sleep(0.01)
        seen.complaints.clear()
        seen.urls.append("http://elsewhere.example/")
        with pytest.raises(AssertionError, match="left the service"):
            seen.check()
        seen.urls = [one for one in seen.urls if one.startswith(seen.url)]


async def test_health_is_shown_and_updated(serve: Any, visit: Any, small: Any, image: Any) -> None:
    """Use a scorer name that no other test uses: all tests of the process share its metrics."""
    steady = {"steady": small("steady", ("image",), brightness)}
    service = AsyncExitStack()
    async with service, visit(await service.enter_async_context(serve(steady))) as seen:
        page = seen.page
        await page.wait_for_function("() => document.getElementById('service-state').textContent === 'ready'")
        await page.wait_for_selector("#health-rows td:has-text('1 of 1 ready')")
        await score(page, image=image())
        await page.wait_for_function(
            "() => document.getElementById('health-rows').textContent.includes('0.200 ± 0.000')"
        )
        await service.aclose()
        await page.evaluate("document.dispatchEvent(new Event('visibilitychange'))")
        await page.wait_for_function(
            "() => document.getElementById('service-state').textContent.includes('not answer')"
        )
        assert await score(page, "The service") == "The service does not answer."
        seen.complaints.clear()


async def test_stop_cancels_the_request(console: Any, small: Any, image: Any) -> None:
    go_on = threading.Event()

    def slow(item: ScoreItem) -> Outcome:
        go_on.wait(60)
        return Score(1.0)

    quick_and_slow = {"quick": small("quick", ("image",), brightness), "slow": small("slow", ("image",), slow)}
    try:
        async with console(quick_and_slow) as seen:
            page = seen.page
            await page.set_input_files("#image", image())
            await page.focus("#score")
            await page.keyboard.press("Enter")
            await page.wait_for_selector(".card.scored")  # the quick result is shown while the slow one is pending
            assert "waiting" in await page.inner_text(".card.waiting")
            assert await page.get_attribute("#results", "aria-busy") == "true"
            await tab_to(page, "#stop")
            await page.keyboard.press("Enter")
            assert await summary(page, "Stopped") == "Stopped. quick 0.200"
            assert await page.evaluate("document.activeElement.id") == "score"
            go_on.set()
    finally:
        go_on.set()


async def test_a_request_over_the_limit_is_not_sent(console: Any, scorers: Any, image: Any) -> None:
    async with console(scorers, limits=LimitSettings(max_body_bytes=200)) as seen:
        await score(seen.page, "The request is too large", image=image(width=64, height=64), prompt="grey" * 50)
        assert "the limit is 200" in await seen.page.inner_text("#failure")
        assert not any(one.endswith("v1/score") for one in seen.urls)


async def test_a_streamed_part_may_arrive_in_pieces(console: Any, small: Any, image: Any) -> None:
    def wordy(item: ScoreItem) -> Outcome:
        return Score(0.5, {"text": "né☃" * 300_000, "reason": "the end"})

    async with console({"wordy": small("wordy", ("image",), wordy)}) as seen:
        assert await score(seen.page, image=image()) == "Done: wordy 0.500."
        assert await seen.page.inner_text(".reasons") == "the end"


async def test_invalid_metadata_is_reported_at_its_field(console: Any, scorers: Any, image: Any) -> None:
    async with console(scorers) as seen:
        page = seen.page
        await tick(page, "geneval")
        await page.fill("#geneval", '{"tag": ')
        await page.click("#score")
        assert "not valid JSON" in await page.inner_text("#geneval-error")
        assert await page.evaluate("document.activeElement.id") == "geneval"
        await score(page, "The request is not valid", geneval='{"tag": "x", "include": 3}', image=image())
        assert "items[0].geneval.include" in await page.inner_text("#failure")


async def test_every_error_code_has_a_sentence(console: Any, scorers: Any) -> None:
    async with console(scorers) as seen:
        messages = await seen.page.evaluate(
            "async codes => { const { describe } = await import('/console/messages.js'); return codes.map(describe); }",
            sorted(CODES),
        )
        assert "The service refused the request." not in messages
        assert len(set(messages)) == len(CODES)


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [400, 1280])
async def test_layout_contrast_and_labels(console: Any, scorers: Any, image: Any, scheme: str, width: int) -> None:
    """Check for no sideways scrolling, contrast of 4.5 (WCAG AA) and labelled fields; save a screenshot."""
    ensembles = {"sync_r1": EnsembleSettings(by_kind={"animal": {"tier": 0.4, "ber": 0.3, "fer": 0.3}})}
    async with console(scorers, ensembles, color_scheme=scheme) as seen:
        page = seen.page
        await page.set_viewport_size({"width": width, "height": 900})
        await tick(page, "ber", "geneval", "fer", "tier")
        await page.select_option("#ensemble", "sync_r1")
        await page.select_option("#kind", "animal")
        await page.fill("#segments input[type=text]", "a red ball")
        await page.click("#geneval-example")
        files = {
            "image": image("rollout 17.png", 320, 240, 140),
            "references": [image("cat.png", level=80), image("dark.png", level=0)],
        }
        await score(page, **files, prompt="a red ball left of a cup", reasoning="the ball is red")
        assert await page.evaluate("document.documentElement.scrollWidth") <= width
        assert await page.evaluate(UNLABELLED) == []
        assert await page.evaluate(FAINT) == []
        await seen.shot(f"{scheme}-{width}")


CODES = {kind.code for child in SynodError.__subclasses__() for kind in (SynodError, child, *child.__subclasses__())}
UNLABELLED = """() => [...document.querySelectorAll('input, select, textarea, button')]
  .filter(one => !one.labels?.length && !one.ariaLabel && !one.textContent.trim()).map(one => one.outerHTML)"""
FAINT = """() => {
  const rgb = text => text.match(/[\\d.]+/g).map(Number);
  const light = ([r, g, b]) => [r, g, b].map(v => v / 255)
    .map(v => v <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4)
    .reduce((sum, v, i) => sum + v * [0.2126, 0.7152, 0.0722][i], 0);
  const ground = one => { for (; one; one = one.parentElement) {
    const found = rgb(getComputedStyle(one).backgroundColor); if (found[3] !== 0) return found; } };
  const faint = [];
  for (const one of document.querySelectorAll('body *')) {
    const own = [...one.childNodes].some(node => node.nodeType === 3 && node.data.trim());
    if (!own || !one.checkVisibility()) continue;
    const [a, b] = [light(rgb(getComputedStyle(one).color)), light(ground(one))].sort((x, y) => y - x);
    if ((a + 0.05) / (b + 0.05) < 4.5) faint.push(`${one.tagName}.${one.className}: ${one.textContent.slice(0, 30)}`);
  }
  return faint;
}"""
