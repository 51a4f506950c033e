"""The demo's summary and report; tests/integration/test_demo.py runs the whole demo."""

from __future__ import annotations

import json
import socket
from pathlib import Path

import numpy as np
import pytest

from embedded import demo
from embedded.report import write_report
from embedded.samples import PHOTOGRAPHS, SAMPLES, Sample, load_samples
from services.scorers.base import score_batch
from synod.contracts import ItemResult, Score, ScoreFailure, ScoreItem
from synod.images import ImageLimits, decode_item, encode_png
from tests.building import build
from tests.unit.trainer.synthetic import make_run
from trainer.evaluate.heldout import AFTER, BEFORE, load_evaluation

ROOT = Path(__file__).parents[3]
FAILURE = ScoreFailure("scorer_failed", "it <b>broke</b>")


@pytest.fixture(scope="module")
def samples() -> list[Sample]:
    return load_samples(SAMPLES)


def test_shipped_samples_cover_every_scorer_and_kind(samples: list[Sample]) -> None:
    assert {name for sample in samples for name in sample.scorers} == {"tier", "ber", "der", "fer", "geneval"}
    assert {s.item.concept.kind for s in samples if s.item.concept} == {"person", "animal", "object"}
    assert any(sample.note for sample in samples)


def test_means_omit_failures_and_failures_are_counted(samples: list[Sample]) -> None:
    results = [
        ItemResult({"ber": Score(0.2), "der": FAILURE}),
        ItemResult({"ber": Score(0.6), "der": Score(0.5)}),
        ItemResult({"ber": FAILURE}),
    ]
    scored = [demo.Scored(s, r) for s, r in zip(samples, results, strict=False)]
    photographs = [demo.Scored(samples[0], ItemResult({"der": Score(1.0)}))]
    summary = demo.summarise(scored, photographs, {"total": 1.0})
    assert summary["scorers"] == {"ber": pytest.approx(0.4), "der": pytest.approx(0.5)}
    assert summary["photographs"] == {"der": 1.0}
    assert (summary["images_scored"], summary["score_failures"]) == (3, 2)


def test_photographs_score_high_only_for_their_subject() -> None:
    photographs = load_samples(PHOTOGRAPHS)
    assert {s.scorers for s in photographs} == {("der",)}
    scorer = build("der", kind="der", model=str(ROOT / "embedded/weights/dinov2-world"))
    outcomes = score_batch(scorer, [decode_item(s.item, ImageLimits(2**20, 2**20)) for s in photographs])
    for sample, outcome in zip(photographs, outcomes, strict=True):
        assert isinstance(outcome, Score)
        assert outcome.value < 0.3 if sample.note else outcome.value > 0.9, sample.name


def test_the_change_of_the_reward_has_a_paired_error(tmp_path: Path) -> None:
    """Against numpy on the rows; the synthetic evaluations lose two pairs, and their rewards rise by .1 or .2."""
    run = make_run(tmp_path / "run", 2)
    found = demo.trained(run)
    sides = [[row.reward for row in load_evaluation(run / name).rows] for name in (BEFORE, AFTER)]
    rises = np.array([b - a for a, b in zip(*sides, strict=True) if a is not None and b is not None])
    assert found["reward_change"] == {
        "mean": pytest.approx(rises.mean()),
        "stderr": pytest.approx(rises.std(ddof=1) / np.sqrt(len(rises))),
        "n": 10,
    }
    answers = [[row.components.get("tier") for row in load_evaluation(run / name).rows] for name in (BEFORE, AFTER)]
    rises = np.array([b - a for a, b in zip(*answers, strict=True) if a is not None and b is not None])
    assert found["changes"]["tier"]["mean"] == pytest.approx(rises.mean())
    json.dumps(found)


def test_a_reward_of_one_prompt_is_shown_without_an_error() -> None:
    assert demo.estimate({"mean": 0.25, "stderr": 0.125}) == "0.250 ± 0.125"
    assert demo.estimate({"mean": -0.25, "stderr": None}, "+.3f") == "-0.250"
    assert demo.estimate({"mean": None, "stderr": None}) == "not measured"


def test_busy_requested_port_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        with pytest.raises(demo.DemoError, match=f"port {port} is busy"):
            demo.pick_port(port)
        monkeypatch.setenv("SYNOD__SERVER__PORT", str(port))
        assert demo.pick_port(None) != port


def test_report_shows_boxes_and_failures_and_escapes(tmp_path: Path, samples: list[Sample]) -> None:
    face, objects = [8.0, 9.0, 20.0, 21.0], [{"class": "cat", "score": 0.5, "box": [1, 2, 3, 4], "color": None}]
    reasons = {"official": [], "soft": ["expected 2 cat, found 1"]}
    geneval = Score(0.5, {"objects": objects, "reasons": reasons, "rule_set": "soft"})
    result = ItemResult({"fer": Score(0.25, {"box": face}), "geneval": geneval, "ber": FAILURE}, FAILURE)
    item = ScoreItem(image=encode_png(np.zeros((32, 48, 3), np.uint8)), prompt="<script>")
    summary = demo.summarise([demo.Scored(samples[0], result)], [], {"total": 1.0})
    write_report(tmp_path / "r.html", [(Sample("x", item, (), None, "wrong"), result)], summary)
    page = (tmp_path / "r.html").read_text()
    assert '<rect class="face" x="8.0" y="9.0" width="12.0" height="12.0">' in page
    assert '<rect class="object" x="1" y="2" width="2" height="2"><title>cat 0.50</title>' in page
    assert "expected 2 cat, found 1" in page
    assert "scorer_failed" in page
    assert "<script>" not in page
    assert "&lt;b&gt;broke" in page
    assert "http" not in page, "the page needs nothing but itself"
