"""`synod replay` against a second service; the comparison equals scipy's."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from synod import cli
from synod.contracts import Origin, Outcome, Score, ScoreFailure
from synod.images import encode_png
from synod.scoring.compare import Pair, compare
from tests.unit.synod.reward_services import Bright, RewardService, serving

LOST = ScoreFailure("scorer_failed", "no")
values = st.lists(st.tuples(*[st.sampled_from([0.0, 0.25, 0.5, 1.0, -3.0]) | st.floats(-1e6, 1e6)] * 2), min_size=2)


@given(values)
def test_correlations_equal_scipy(both: list[tuple[float, float]]) -> None:
    x, y = (np.array(side) for side in zip(*both, strict=True))
    found = compare([Pair("", Score(a), Score(b)) for a, b in both])
    assert found.max_difference == np.abs(x - y).max()
    if np.ptp(x) == 0 or np.ptp(y) == 0:
        assert (found.pearson, found.spearman) == (None, None)
        return
    assert found.spearman == pytest.approx(stats.spearmanr(x, y).statistic, abs=1e-9)
    if min(np.ptp(x), np.ptp(y)) > 1e-3:  # scipy warns below of what rounding leaves
        assert found.pearson == pytest.approx(stats.pearsonr(x, y).statistic, abs=1e-6)


def test_changes_are_counted_beyond_the_tolerance() -> None:
    pairs = [Pair(str(i), Score(1.0), Score(1.0 + d)) for i, d in enumerate((0.0, 0.125, -0.25))]
    assert (compare(pairs).changed, compare(pairs, 0.125).changed, compare(pairs).max_difference) == (2, 1, 0.25)


def test_status_changes_are_reported() -> None:
    after: list[Outcome] = [Score(1.0), LOST, Score(2.0), LOST, ScoreFailure("bad_image", "no")]
    before: list[Outcome] = [Score(1.0), Score(1.0), LOST, LOST, LOST]
    found = compare([Pair(str(i), a, b) for i, (a, b) in enumerate(zip(before, after, strict=True))])
    assert (found.n, found.changed, found.max_difference, found.pearson) == (1, 0, 0.0, None)
    assert [pair.label for pair in found.status_changed] == ["1", "2", "4"]
    empty = compare([])
    assert (empty.n, empty.changed, empty.max_difference, empty.spearman, empty.origins_after) == (0, 0, None, None, ())


def test_origins_are_collected() -> None:
    one, other = Origin("m1", "1"), Origin("m2", "1", "soft")
    found = compare([Pair("", Score(1, origin=one), Score(1, origin=other)), Pair("", Score(1, origin=one), LOST)])
    assert (found.origins_before, found.origins_after) == ((one,), (other,))


@pytest.fixture
def log(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, service: RewardService) -> str:
    """Write a log of four items, one failed, in another folder than the images."""
    monkeypatch.chdir(tmp_path)
    Path("logs").mkdir()
    lines = []
    for i, value in enumerate((51, 102, 13, 204)):
        Path(f"{i}.png").write_bytes(encode_png(np.full((2, 2, 3), value, np.uint8)))
        item = {"image": f"{i}.png", "prompt": f"p{i}", "references": ["0.png"], "concept": {"kind": "animal"}}
        lines.append(json.dumps(item))
    Path("items.jsonl").write_text("\n".join(lines))
    given = ["score", "items.jsonl", "--scorers", "ber", "--ensemble", "council", "--out", "logs/out.jsonl"]
    assert cli.main([*given, "--url", service.url]) == 1
    return "logs/out.jsonl"


def replay(url: str, *arguments: str) -> int:
    return cli.main(["replay", *arguments, "--url", url])


def test_replay_on_the_same_service_finds_no_change(
    log: str, service: RewardService, capsys: pytest.CaptureFixture[str]
) -> None:
    assert replay(service.url, log) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].split() == [
        "SCORER",
        "N",
        "CHANGED",
        "MAX",
        "|DIFFERENCE|",
        "PEARSON",
        "SPEARMAN",
        "STATUS",
        "CHANGED",
    ]
    assert [line.split() for line in lines[1:3] + lines[4:5]] == [
        ["ber", "3", "0", "0", "1.0000", "1.0000", "0"],
        ["der", "3", "0", "0", "1.0000", "1.0000", "0"],
        ["ber:", "origin", "m1,", "preprocessing", "1", "->", "m1,", "preprocessing", "1"],
    ]
    assert lines[3].split()[:3] == ["reward", "3", "0"]


def test_replay_compares_scorer_versions(log: str, capsys: pytest.CaptureFixture[str]) -> None:
    """The second scorer adds 1/8 and fails value 102; it scores the item that failed before."""

    class Newer(Bright):
        def outcome(self, item: Any) -> Outcome:
            if item.pixels()[0, 0, 0] == 102:
                return LOST
            return Score(float(np.mean(item.pixels())) / 255 + self.shift, origin=Origin(self.model, "1"))

    with serving(Newer("ber", shift=0.125, model="m2"), Newer("second")) as service:
        assert replay(service.url, log, "--scorers", "ber", "--ensemble", "nobody") == 1
        assert "unknown ensemble 'nobody'" in capsys.readouterr().err
    ensembles = [Newer("ber", shift=0.125, model="m2"), Newer("der"), Newer("second", model="m3")]
    with serving(*ensembles) as service:
        assert replay(service.url, log, "--scorers", "ber", "--out", "again.jsonl") == 1
        printed = capsys.readouterr().out.splitlines()
        assert printed[1].split() == ["ber", "2", "2", "0.125", "1.0000", "1.0000", "2"]
        assert "ber: logs/out.jsonl:2: ok -> scorer_failed" in printed
        assert "ber: logs/out.jsonl:3: scorer_failed -> ok" in printed
        assert "ber: origin m1, preprocessing 1 -> m2, preprocessing 1" in printed
        assert replay(service.url, log, "--scorers", "ber=second", "--json") == 1
        assert json.loads(capsys.readouterr().out)["ber"]["origins_after"] == [
            {"model": "m3", "preprocessing": "1", "rule_set": None}
        ]
        assert replay(service.url, log, "--scorers", "ber", "--tolerance", "0.2", "--json") == 1
        found = json.loads(capsys.readouterr().out)["ber"]
        assert (found["n"], found["changed"]) == (2, 0)
        assert found["status_changed"][0] == {"item": "logs/out.jsonl:2", "before": "ok", "after": "scorer_failed"}
        again = [json.loads(line) for line in Path("again.jsonl").read_text().splitlines()]
        assert again[0]["before"]["scores"]["ber"]["value"] == pytest.approx(0.2)
        assert again[0]["scores"]["ber"]["value"] == pytest.approx(0.325)
        assert again[0]["item"]["image"] == "0.png"
        assert replay(service.url, "again.jsonl", "--scorers", "ber") == 0  # it is a log itself


def test_replay_refuses_replaced_images(log: str, service: RewardService, capsys: pytest.CaptureFixture[str]) -> None:
    Path("1.png").write_bytes(encode_png(np.full((2, 2, 3), 99, np.uint8)))
    Path("3.png").unlink()
    assert replay(service.url, log, "--json") == 1
    found = json.loads(capsys.readouterr().out)["ber"]
    assert found["n"] == 1
    assert [one["after"] for one in found["status_changed"]] == ["bad_image", "bad_image"]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "the log holds no scores"),
        ('{"image": "a.png"}\n{"image": "a.png"}\n', "bad.jsonl:1 is not a line of a score log (it lacks one of item"),
        (
            '{"item": {"image": 3}, "digests": {}, "scorers": [], "ensemble": null, "scores": {}}\n',
            "bad.jsonl:1 is not a line of a score log (item.image: this is",
        ),
    ],
)
def test_invalid_log_is_refused(
    log: str, service: RewardService, text: str, message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    Path("logs/bad.jsonl").write_text(text)
    assert replay(service.url, "logs/bad.jsonl") == 2
    assert message in capsys.readouterr().err
