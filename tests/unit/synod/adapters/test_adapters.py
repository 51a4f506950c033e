"""Each adapter by its trainer's documented call, against a real service."""

from __future__ import annotations

import asyncio
import inspect
import socket
from collections.abc import Iterator
from contextlib import ExitStack, closing
from functools import partial
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from synod.adapters import flow_grpo, verl
from synod.adapters.connection import Connection
from synod.adapters.trl import item_of_row, reward_function
from synod.contracts import ScoreItem
from synod.errors import BadImage, InvalidRequest, ScorerFailed, Unavailable, UnknownScorer
from tests.unit.synod.reward_services import RewardService

TIER = {"segments": ["a red hat", "a blue kite"], "truth": [1, 0]}


def grey(value: int) -> Any:
    """Return an image of brightness value / 255."""
    return np.full((4, 4, 3), value, np.uint8)


BAD = grey(13)  # 'ber' and 'der' fail it


@pytest.fixture
def nobody() -> Iterator[str]:
    with socket.socket() as taken:  # bound, not listening
        taken.bind(("127.0.0.1", 0))
        yield f"http://127.0.0.1:{taken.getsockname()[1]}"


def run(call: Any, *arguments: Any, **columns: Any) -> Any:
    async def once() -> Any:
        try:
            return await call(*arguments, **columns)
        finally:
            await getattr(call, "close", verl_close)()

    return asyncio.run(once())


@pytest.fixture
def multi_score() -> Iterator[Any]:
    """Make flow_grpo reward functions and close them after the test."""
    with ExitStack() as made:
        yield lambda *given, **named: made.enter_context(closing(flow_grpo.multi_score(*given, **named)))


async def verl_close() -> None:
    for connection in CONNECTIONS:
        await connection.close()


CONNECTIONS: list[Connection] = []


@pytest.fixture(autouse=True)
def remember_connections(monkeypatch: pytest.MonkeyPatch) -> None:
    """Drop verl's connections, which last as long as the process, with the test's loop."""
    CONNECTIONS.clear()

    def remember(url: str, timeout_s: float) -> Connection:
        CONNECTIONS.append(Connection(url, timeout_s=timeout_s, retries=0))
        return CONNECTIONS[-1]

    monkeypatch.setattr(verl, "connection", remember)


def test_trl_returns_values_in_order_and_none_for_missing(service: RewardService) -> None:
    reward = reward_function(service.url, "ber")
    logged: list[tuple[str, float]] = []
    columns = {
        "completion_ids": [[1], [2], [3]],
        "image": [Image.fromarray(grey(51)), Image.fromarray(BAD), Image.fromarray(grey(102))],
        "trainer_state": object(),
        "log_extra": print,
        "log_metric": lambda name, value: logged.append((name, value)),
    }
    rewards = run(reward, prompts=["a", "b", "c"], completions=["x", "y", "z"], **columns)
    assert rewards == [pytest.approx(0.2), None, pytest.approx(0.4)]
    assert inspect.iscoroutinefunction(reward.__call__)
    assert reward.__name__ == "ber"
    assert logged == [("ber/missing_share", pytest.approx(1 / 3))]
    assert sorted(str(item.prompt) for item in service.scorers["ber"].received) == ["a", "b", "c"]


def test_trl_scores_image_completions_and_reasoning_texts(service: RewardService) -> None:
    drawn = [grey(51), Image.fromarray(grey(102))]
    assert run(reward_function(service.url, "ber"), prompts=["a", "b"], completions=drawn) == pytest.approx([0.2, 0.4])
    tier = reward_function(service.url, "tier")
    chat = [[{"role": "assistant", "content": "red"}], [{"role": "assistant", "content": [{"text": "bluish"}]}]]
    assert run(tier, prompts=["?", "?"], completions=chat, reasoning=[TIER, TIER]) == pytest.approx([0.3, 0.6])
    council = reward_function(service.url, ensemble="council")
    columns = {"references": [[grey(1)]], "concept": [{"kind": "animal"}]}
    assert run(council, prompts=["a"], completions=[grey(51)], **columns) == pytest.approx([0.2])


def test_trl_error_names_every_missing_item(service: RewardService) -> None:
    reward = reward_function(service.url, "ber", on_error="raise")
    with pytest.raises(ScorerFailed, match=r"^items\[0\]\.ber: the red value is 13; also missing: items\[2\]\.ber$"):
        run(reward, prompts=["a"] * 3, completions=[BAD, grey(1), BAD + 0])


def test_reward_function_works_in_successive_event_loops(service: RewardService) -> None:
    reward = reward_function(service.url, "ber")
    for _ in range(2):
        assert run(reward, prompts=["a"], completions=[grey(51)]) == pytest.approx([0.2])


def test_verl_scores_a_text(service: RewardService) -> None:
    compute = partial(verl.compute_score, url=service.url, scorer="tier")
    found = run(compute, data_source="d", solution_str="red", ground_truth={"reasoning": TIER}, extra_info={"index": 3})
    assert found == {"score": pytest.approx(0.3)}
    assert service.scorers["tier"].received[0].reasoning.text == "red"  # type: ignore[union-attr]


def test_verl_omni_scores_an_image(service: RewardService) -> None:
    compute = partial(verl.compute_score, url=service.url, scorer="ber")
    image = torch.from_numpy(grey(51)).permute(2, 0, 1)
    extra = {"num_turns": None, "rollout_reward_scores": {}}
    others = {"reward_router_address": None, "model_name": "m"}
    found = run(compute, data_source="d", solution_image=image, ground_truth="a cat", extra_info=extra, **others)
    assert found == {"score": pytest.approx(0.2)}
    assert service.scorers["ber"].received[0].prompt == "a cat"
    assert inspect.iscoroutinefunction(verl.compute_score)


def test_verl_raises_on_missing_scores(service: RewardService, nobody: str) -> None:
    sample = {"data_source": "d", "ground_truth": "a cat", "solution_image": torch.full((3, 2, 2), 13).byte()}
    with pytest.raises(ScorerFailed, match=r"^items\[0\]\.ber: the red value is 13"):
        run(partial(verl.compute_score, url=service.url, scorer="ber"), **sample)
    with pytest.raises(ScorerFailed, match=r"items\[0\]\.reward"):
        run(partial(verl.compute_score, url=service.url, ensemble="council"), **sample)
    with pytest.raises(UnknownScorer):
        run(partial(verl.compute_score, url=service.url, scorer="nobody"), **sample)
    with pytest.raises(Unavailable):
        run(partial(verl.compute_score, url=nobody, scorer="ber"), **sample)


def test_flow_grpo_returns_lists_by_scorer(service: RewardService, multi_score: Any) -> None:
    fn = multi_score("cuda:0", {"ber": 0.5, "der": -2.0}, url=service.url)
    images = torch.stack([torch.full((3, 4, 4), value) for value in (0.2, 0.4)])
    scores, metadata = fn(images, ("a", "b"), [{}, {"tag": "counting", "include": [], "prompt": "b"}], images, True)
    assert {name: torch.as_tensor(values).tolist() for name, values in scores.items()} == {
        "ber": pytest.approx([0.2, 0.4]),
        "der": pytest.approx([0.2, 0.4]),
        "avg": pytest.approx([-0.3, -0.6]),
    }
    assert metadata == {}
    geneval = {item.prompt: item.geneval for item in service.scorers["ber"].received}
    assert geneval["a"] is None
    assert geneval["b"] is not None
    assert geneval["b"].tag == "counting"


def test_flow_grpo_raises_or_masks_missing_scores(service: RewardService, multi_score: Any) -> None:
    images, prompts = np.stack([grey(51), BAD]), ["a", "b"]
    with pytest.raises(ScorerFailed, match=r"^items\[1\]\.ber"):
        multi_score(None, {"ber": 1.0}, url=service.url)(images, prompts, {}, only_strict=True)
    scores, metadata = multi_score(None, {"ber": 1.0}, url=service.url, on_error="mask")(images, prompts, {})
    assert scores == {"ber": [pytest.approx(0.2), None], "avg": [pytest.approx(0.2), None], "valid": [True, False]}
    assert [one.index for one in metadata["missing"]] == [1]
    with pytest.raises((TypeError, RuntimeError)):
        torch.as_tensor(scores["avg"])


def test_unavailable_service_is_raised_even_when_masking(nobody: str, multi_score: Any) -> None:
    with pytest.raises(Unavailable):
        multi_score(None, {"ber": 1.0}, url=nobody, on_error="mask", retries=0)([grey(1)], ["a"], {})
    with pytest.raises(Unavailable):
        run(reward_function(nobody, "ber", retries=0), prompts=["a"], completions=[grey(1)])


def test_invalid_arguments_are_refused_before_sending(service: RewardService, multi_score: Any) -> None:
    fn = multi_score(None, {"ber": 1.0}, url=service.url)
    with pytest.raises(InvalidRequest, match="1 images, 2 prompts, 1 metadata"):
        fn([grey(1)], ["a", "b"], {})
    with pytest.raises(InvalidRequest, match="2 ref_images for 1 images"):
        fn([grey(1)], ["a"], {}, [grey(1), grey(2)])
    assert service.scorers["ber"].received == []
    for make in (
        lambda: multi_score(None, {}, url=service.url),
        lambda: multi_score(None, {"ber": float("nan")}, url=service.url),
        lambda: reward_function(service.url),
        lambda: reward_function(service.url, "ber", ensemble="council"),
        lambda: reward_function("service:8000", "ber"),
    ):
        with pytest.raises(ValueError, match="give"):
            make()


SYSTEM, DRAW = {"role": "system", "content": "draw"}, {"role": "user", "content": [{"type": "text", "text": "a cup"}]}
ANSWER = {"role": "assistant", "content": [{"text": "so"}, {"image": b"png"}]}
EMPTY, TOOL = {"role": "assistant", "content": None}, {"role": "assistant", "tool_calls": []}


def linked(url: str) -> list[Any]:
    return [{"role": "assistant", "content": [{"type": "image_url", "image_url": {"url": url}}]}]


@pytest.mark.parametrize(
    ("prompt", "completion", "row"),
    [
        ([SYSTEM, DRAW], [ANSWER], {}),
        ("a cup", "text", {"image": b"png"}),
        ("a cup", "text", {"images": [{"bytes": b"png"}]}),
        ("a cup", [ANSWER, EMPTY], {}),
        ("a cup", [ANSWER, EMPTY, TOOL], {}),
        ([DRAW, {"role": "assistant", "content": "Sure:"}], b"png", {}),
        ("a cup", linked("data:image/png;base64,cG5n"), {}),
    ],
)
def test_trl_finds_prompt_and_image(prompt: Any, completion: Any, row: dict[str, Any]) -> None:
    assert item_of_row(prompt, completion, row) == ScoreItem(b"png", "a cup")


def test_trl_refuses_links_and_several_images() -> None:
    with pytest.raises(BadImage, match=r"image_url .https://example.org/a.png. is not fetched"):
        item_of_row("a", linked("https://example.org/a.png"), {})
    with pytest.raises(InvalidRequest, match="images: the column holds 2 images"):
        item_of_row("a", "text", {"images": [b"1", b"2"]})


def test_verl_reads_json_text_and_conversations_in_arrays() -> None:
    assert verl.item_of_sample(None, b"png", '{"prompt": "a blue cup"}', {}) == ScoreItem(b"png", "a blue cup")
    chat = np.array([{"role": "system", "content": "draw"}, {"role": "user", "content": "a cup"}], object)
    assert verl.item_of_sample(None, b"png", "x", {"prompt": chat}) == ScoreItem(b"png", "a cup")
    assert verl.item_of_sample(None, b"png", "x", {"prompt": chat[1:]}) == ScoreItem(b"png", "a cup")
    with pytest.raises(InvalidRequest, match=r"^extra_info.prompt: a int"):
        verl.item_of_sample(None, b"png", "x", {"prompt": 3})
    with pytest.raises(InvalidRequest, match=r"^ground_truth: the text starts with \{"):
        verl.item_of_sample(None, b"png", "{a cup", {})


def test_batch_without_any_score_is_raised(service: RewardService, multi_score: Any) -> None:
    message = r"all 2 scores of 'ber' failed, .*\(scorer_failed: 2\); items\[0\].ber: the red .*on_all_failed='mask'"
    batch = {"prompts": ["a", "b"], "completions": [BAD, BAD + 0]}
    with pytest.raises(ScorerFailed, match=message):
        run(reward_function(service.url, "ber"), **batch)
    assert run(reward_function(service.url, "ber", on_all_failed="mask"), **batch) == [None, None]
    assert run(reward_function(service.url, "ber"), prompts=["a", "b"], completions=[BAD, grey(51)])[0] is None
    with pytest.raises(ScorerFailed, match=message):
        multi_score(None, {"ber": 1.0}, url=service.url, on_error="mask")([BAD, BAD + 0], ["a", "b"], {})
    masked = multi_score(None, {"ber": 1.0}, url=service.url, on_error="mask", on_all_failed="mask")
    assert masked([BAD, BAD + 0], ["a", "b"], {})[0]["ber"] == [None, None]
