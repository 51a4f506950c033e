"""An evaluation that is stopped, whose service fails or whose scores are lost goes on without drawing twice."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator, Sequence
from pathlib import Path

import httpx
import numpy as np
import pytest
from PIL import Image as Pillow

from synod.client import SynodClient
from synod.contracts import (
    GenEvalMetadata,
    Pixels,
    Score,
)
from synod.errors import SettingsError, SynodError
from synod.scoring.inputs import sources
from synod.scoring.log import read_log
from tests.unit.trainer.evaluate.scoring_service import Service
from trainer.evaluate.base import Row
from trainer.evaluate.prompts import Prompts
from trainer.evaluate.runner import Image, Seed, plan, prepare, rows, run
from trainer.types import Prompt

PROMPTS = [Prompt(f"a photo of {n} cats", "counting", geneval=GenEvalMetadata("counting", ())) for n in range(20)]
IMAGES = plan(range(20), 2)  # more than one request of 32 items


class Painter:
    """Paints noise that follows from the seed; `until` is how many batches it draws before it raises."""

    def __init__(self, until: int = 10**6) -> None:
        self.until, self.batches, self.seeds = until, list[list[str]](), list[Seed]()

    def __call__(self, prompts: Sequence[str], seeds: Sequence[Seed]) -> list[Pixels]:
        if len(self.batches) == self.until:
            raise KeyboardInterrupt
        self.batches.append(list(prompts))
        self.seeds += seeds
        return [np.random.default_rng(seed).integers(0, 256, (4, 4, 3), dtype=np.uint8) for seed in seeds]


@pytest.fixture
def service() -> Service:
    return Service()


@pytest.fixture
def client(service: Service) -> Iterator[SynodClient]:
    with SynodClient("http://service", retries=0, transport=httpx.MockTransport(service)) as client:
        yield client


def evaluate(
    client: SynodClient, out: Path, painter: Painter, batch: int = 3, scorers: Sequence[str] = ("ber",)
) -> None:
    run(Prompts(PROMPTS, scorers), IMAGES, painter, client, scorers, out, seed=7, batch=batch)


def files(out: Path) -> dict[str, bytes]:
    return {str(path.relative_to(out)): path.read_bytes() for path in sorted(out.rglob("*.png"))}


def values(out: Path, scorer: str = "ber") -> list[float | None]:
    outcomes = [row.outcomes.get(scorer) for row in rows(IMAGES, out)]
    return [outcome.value if isinstance(outcome, Score) else None for outcome in outcomes]


def test_every_image_is_drawn_and_scored_once(client: SynodClient, service: Service, tmp_path: Path) -> None:
    painter = Painter()
    evaluate(client, tmp_path, painter)
    assert len(set(painter.seeds)) == len(painter.seeds) == service.num_items == 40
    assert [len(batch) for batch in painter.batches] == [3] * 13 + [1]
    drawn = files(tmp_path)
    assert list(drawn) == [f"{p:05d}/samples/{k:04d}.png" for p in range(20) for k in range(2)]
    for row, value in zip(rows(IMAGES, tmp_path), values(tmp_path), strict=True):
        pixels = np.asarray(Pillow.open(tmp_path / row.file))
        expected = np.random.default_rng([7, 2**31 + 1, row.prompt, row.image]).integers(0, 256, (4, 4, 3), np.uint8)
        np.testing.assert_array_equal(pixels, expected)
        assert value == pytest.approx(float(pixels.mean() / 255))
    sent = {item.prompt for request in service.requests for item in request.items}
    assert sent == {prompt.text for prompt in PROMPTS}
    assert all(item.geneval == PROMPTS[0].geneval for request in service.requests for item in request.items)

    evaluate(client, tmp_path, Painter(until=0))  # nothing is left to draw
    assert service.num_items == 40


def test_the_service_scores_while_images_are_drawn(client: SynodClient, service: Service, tmp_path: Path) -> None:
    scoring = threading.Event()
    service.error = lambda number: scoring.set()

    class Waiting(Painter):
        def __call__(self, prompts: Sequence[str], seeds: Sequence[Seed]) -> list[Pixels]:
            if len(self.seeds) > 32:
                assert scoring.wait(30), "the first 32 images wait for the last"
            return super().__call__(prompts, seeds)

    evaluate(client, tmp_path, Waiting())
    assert len(service.requests) == 2


@pytest.mark.parametrize("until", [0, 1, 5, 12, 13])
def test_a_stopped_evaluation_goes_on(client: SynodClient, service: Service, tmp_path: Path, until: int) -> None:
    first, second = Painter(until), Painter()
    with pytest.raises(KeyboardInterrupt):
        evaluate(client, tmp_path / "stopped", first)
    evaluate(client, tmp_path / "stopped", second, batch=5)
    assert len(first.seeds) == 3 * until
    assert sorted(first.seeds + second.seeds) == sorted({*first.seeds, *second.seeds}), "an image was drawn twice"
    evaluate(client, tmp_path / "whole", Painter())
    assert files(tmp_path / "stopped") == files(tmp_path / "whole")
    assert values(tmp_path / "stopped") == values(tmp_path / "whole")


def test_a_kill_within_a_line_loses_one_score(client: SynodClient, service: Service, tmp_path: Path) -> None:
    evaluate(client, tmp_path, Painter())
    expected = values(tmp_path)
    text = (tmp_path / "rows.jsonl").read_bytes()
    (tmp_path / "rows.jsonl").write_bytes(text[:-20])
    assert values(tmp_path).count(None) == 1
    evaluate(client, tmp_path, Painter(until=0))
    assert service.num_items == 41
    assert values(tmp_path) == expected


def test_a_lost_score_is_missing_and_scored_again(client: SynodClient, service: Service, tmp_path: Path) -> None:
    service.fails = lambda scorer, value: scorer == "ber" and value > 0.5
    evaluate(client, tmp_path, Painter(), scorers=("ber", "hps"))
    found, other = values(tmp_path), values(tmp_path, "hps")
    lost = [value is None for value in found]
    assert 0 < sum(lost) < 40
    assert [value for value in found if value is not None] == [v for v in other if v is not None and v <= 0.5]
    table = Prompts(PROMPTS, ("ber", "hps")).reduce(rows(IMAGES, tmp_path)).cells
    assert (table["ber"]["mean"].missing, table["hps"]["mean"].missing) == (sum(lost), 0)
    assert table["ber"]["mean"].mean == pytest.approx(np.mean([v for v in found if v is not None]))

    sent = service.num_items
    evaluate(client, tmp_path, Painter(until=0), scorers=("ber", "hps"))  # it fails again
    assert service.num_items == sent + sum(lost)
    assert values(tmp_path) == found
    service.fails = lambda scorer, value: False
    evaluate(client, tmp_path, Painter(until=0), scorers=("ber", "hps"))
    assert values(tmp_path) == values(tmp_path, "hps")
    service.fails = lambda scorer, value: True
    evaluate(client, tmp_path, Painter(until=0), scorers=("ber", "new"))
    assert None not in values(tmp_path), "a later failure does not replace a score"
    assert values(tmp_path, "new") == [None] * 40


def test_a_failing_service_keeps_what_was_done(client: SynodClient, service: Service, tmp_path: Path) -> None:
    service.error = lambda number: SynodError("planted") if number == 1 else None
    painter = Painter()
    with pytest.raises(SynodError, match="planted"):
        evaluate(client, tmp_path, painter)
    assert values(tmp_path).count(None) == 8
    assert len(files(tmp_path)) == 40
    evaluate(client, tmp_path, Painter(until=0))
    assert None not in values(tmp_path)
    assert service.num_items == 48


def test_another_scorer_draws_nothing(client: SynodClient, service: Service, tmp_path: Path) -> None:
    evaluate(client, tmp_path, Painter())
    evaluate(client, tmp_path, Painter(until=0), scorers=("hps",))
    assert values(tmp_path) == values(tmp_path, "hps")


def test_a_removed_or_changed_image(client: SynodClient, service: Service, tmp_path: Path) -> None:
    evaluate(client, tmp_path, Painter())
    expected, drawn = values(tmp_path), files(tmp_path)
    file = tmp_path / IMAGES[3].file
    file.unlink()
    again = Painter()
    evaluate(client, tmp_path, again)
    assert again.seeds == [(7, 2**31 + 1, 3, 0)]
    assert (values(tmp_path), files(tmp_path)) == (expected, drawn)

    class Black(Painter):  # as a GPU may round differently
        def __call__(self, prompts: Sequence[str], seeds: Sequence[Seed]) -> list[Pixels]:
            return [np.zeros_like(image) for image in super().__call__(prompts, seeds)]

    file.unlink()
    service.fails = lambda scorer, value: True
    evaluate(client, tmp_path, Black())
    assert values(tmp_path) == [None if n == 3 else value for n, value in enumerate(expected)], "that score is stale"


def test_more_images_of_more_prompts_continue(client: SynodClient, service: Service, tmp_path: Path) -> None:
    few, painter = plan([1, 4], 1), Painter()
    run(Prompts(PROMPTS, ["ber"]), few, painter, client, ["ber"], tmp_path, seed=7, batch=8)
    assert [row.outcomes != {} for row in rows(IMAGES, tmp_path)].count(True) == 2
    rest = Painter()
    evaluate(client, tmp_path, rest)
    assert len(rest.seeds) == 38
    assert [Row(r.prompt, r.image, r.file, {}) for r in rows(few, tmp_path)] == [
        Row(1, 0, "00001/samples/0000.png", {}), Row(4, 0, "00004/samples/0000.png", {})
    ]  # fmt: skip
    assert Image(1, 0) in few


def test_synod_score_and_replay_read_the_directory(client: SynodClient, tmp_path: Path) -> None:
    evaluate(client, tmp_path, Painter())
    assert len(read_log(tmp_path / "rows.jsonl")) == 40
    lines = [{"tag": "counting", "include": [], "prompt": prompt.text} for prompt in PROMPTS]
    (tmp_path / "prompts.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    found = sources([tmp_path / "prompts.jsonl"], None, [])
    assert [source.fields["image"] for source in found] == sorted(files(tmp_path))


def test_other_conditions_are_named(tmp_path: Path) -> None:
    conditions = {"seed": 0, "weights": "aa", "sampler": {"steps": 50}}
    prepare(tmp_path / "out", conditions)
    prepare(tmp_path / "out", conditions)
    with pytest.raises(SettingsError, match=r"another evaluation \(weights was 'aa', now 'bb'\); give --out a new"):
        prepare(tmp_path / "out", {**conditions, "weights": "bb"})
    with pytest.raises(SettingsError, match=r"sampler was \{'steps': 50\}, now \{'steps': 8\}"):
        prepare(tmp_path / "out", {**conditions, "sampler": {"steps": 8}})
    (tmp_path / "other").mkdir()
    (tmp_path / "other/a file").write_text("kept")
    with pytest.raises(SettingsError, match=r"holds other files and no evaluation\.json"):
        prepare(tmp_path / "other", conditions)
    with pytest.raises(SettingsError, match="a file: Not a directory"):
        prepare(tmp_path / "other/a file", conditions)
    (tmp_path / "out/evaluation.json").write_text("[1]")
    with pytest.raises(SettingsError, match="is not the record of an evaluation"):
        prepare(tmp_path / "out", conditions)


def test_a_log_of_another_kind_is_named(client: SynodClient, tmp_path: Path) -> None:
    (tmp_path / "rows.jsonl").write_text('{"step": 1}\n')
    with pytest.raises(SettingsError, match=r"rows\.jsonl:1 is not a line of a score log"):
        evaluate(client, tmp_path, Painter(until=0))
