"""Order of scores: the shipped pairs on the embedded weights, and pairs in the wrong order."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest

from services import settings, verify
from services.__main__ import main
from services.scorers import registry
from services.scorers.base import ScorerSpec, score_batch
from synod.contracts import Outcome, Score, ScoreFailure, ScoreItem
from synod.images import encode_png
from synod.scoring.pairs import POLICY, Pair, load, pairs_for
from tests.building import example

ROOT = Path(__file__).parents[3]
SERVICE = '[scorers.light]\nkind = "der"\nmodel = "a/b"\n'


class Brightness:
    """Score the image's mean; fail a black image."""

    spec = ScorerSpec("light", ("image",), 0.0, 1.0, "a test", "a test")

    def score(self, items: Sequence[ScoreItem]) -> list[Outcome]:
        means = [float(item.pixels().mean()) / 255 for item in items]
        return [Score(mean) if mean else ScoreFailure("scorer_failed", "it is dark") for mean in means]


@pytest.fixture
def light(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Write three grey images and settings with one scorer of brightness; return the folder."""
    for name, level in (("white", 255), ("grey", 128), ("black", 0)):
        (tmp_path / f"{name}.png").write_bytes(encode_png(np.full((8, 8, 3), level, np.uint8)))
    (tmp_path / "service.toml").write_text(SERVICE)
    monkeypatch.setattr(registry, "build", lambda name, settings: Brightness())
    return tmp_path


def pairs(folder: Path, *pairs: tuple[str, str, list[str]]) -> Path:
    lines = (
        {"name": f"{a} > {b}", "scorers": who, "better": {"image": f"{a}.png"}, "worse": {"image": f"{b}.png"}}
        for a, b, who in pairs
    )
    path = folder / "pairs.jsonl"
    path.write_text("\n".join(map(json.dumps, lines)))
    return path


@pytest.mark.parametrize(
    ("better", "worse", "who", "status", "expected"),
    [
        ("white", "grey", "light", 0, "holds"),
        ("white", "grey", "der", 0, "1 of 1 relations hold"),
        ("grey", "white", "der", 1, "BROKEN"),
        ("grey", "grey", "der", 1, "BROKEN"),
        ("grey", "black", "der", 1, "scorer_failed"),
        ("black", "grey", "der", 1, "0 of 1 relations hold"),
        ("white", "grey", "ber", 1, "light: the file has no pair for this scorer"),
    ],
)
def test_exit_status_is_1_when_a_relation_fails(
    light: Path, capsys: pytest.CaptureFixture[str], better: str, worse: str, who: str, status: int, expected: str
) -> None:
    path = pairs(light, (better, worse, [who]))
    assert main(["verify", str(light / "service.toml"), "--pairs", str(path)]) == status
    assert expected in capsys.readouterr().out


async def test_each_verdict_has_the_values_of_its_pair() -> None:
    def item(level: int) -> ScoreItem:
        return ScoreItem(image=np.full((4, 4, 3), level, np.uint8))

    received = [Pair(str(n), ("light",), item(n + 1), item(n)) for n in range(1, 200, 3)]
    for pair, verdict in zip(received, await verify.score_pairs(Brightness(), received), strict=True):
        assert (verdict.pair, verdict.holds) == (pair.name, True)
        assert isinstance(verdict.better, Score)
        assert verdict.better.value == pytest.approx((int(pair.name) + 1) / 255)


def test_pairs_option_overrides_the_settings(light: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pairs(light, ("white", "grey", ["der"])).rename(light / "own.jsonl")
    (light / "service.toml").write_text(f'pairs = "./own.jsonl"\n{SERVICE}')
    assert main(["verify", str(light / "service.toml")]) == 0
    assert "white > grey" in capsys.readouterr().out
    other = pairs(light, ("grey", "white", ["der"]))
    assert main(["verify", str(light / "service.toml"), "--pairs", str(other)]) == 1
    assert "white > grey" not in capsys.readouterr().out


A_PAIR = '{"name": "a", "scorers": ["der"], "better": {%s}, "worse": {}}'


@pytest.mark.parametrize(
    ("written", "name", "expected"),
    [
        ("", "", "the settings name no pairs; set 'pairs' or give --pairs"),
        ("", "gone.jsonl", "the pairs file gone.jsonl cannot be read: No such file"),
        ("", "pairs.jsonl", "the pairs file pairs.jsonl holds no pairs"),
        ('\n{"name": "a"}', "pairs.jsonl", "pairs.jsonl:2: better: missing"),
        (A_PAIR % '"imago": "x"', "pairs.jsonl", "pairs.jsonl:1: imago: unknown key"),
        (A_PAIR % '"image": "gone.png"', "pairs.jsonl", "pairs.jsonl:1: gone.png: No such file"),
        ("{", "pairs.jsonl", "pairs.jsonl:1: "),
        ("[]", "pairs.jsonl", "pairs.jsonl:1: "),
        ("\xff", "pairs.jsonl", "pairs.jsonl:1: "),
    ],
)
def test_invalid_pairs_file_is_one_line_and_status_1(
    light: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    written: str,
    name: str,
    expected: str,
) -> None:
    monkeypatch.chdir(light)
    Path("pairs.jsonl").write_bytes(written.encode("latin-1"))
    assert main(["verify", "service.toml", *(["--pairs", name] if name else [])]) == 1
    printed = capsys.readouterr()
    assert printed.out == ""
    assert printed.err.startswith(f"error: {expected}")
    assert printed.err.count("\n") == 1


@pytest.mark.slow
def test_verify_runs_in_its_own_process(tmp_path: Path) -> None:
    """`synod verify` on a scorer that needs no weights; one relation of two is wrong."""
    for name, level in (("flat", 0), ("noise", 255)):
        image = np.random.default_rng(0).integers(0, level + 1, (32, 32, 3), dtype=np.uint8)
        (tmp_path / f"{name}.png").write_bytes(encode_png(image))
    (tmp_path / "service.toml").write_text('[scorers.size]\nkind = "jpeg"\ndirection = "incompressibility"\n')
    path = pairs(tmp_path, ("noise", "flat", ["jpeg"]), ("flat", "noise", ["size"]))
    command = [sys.executable, "-m", "synod.cli", "verify", str(tmp_path / "service.toml"), "--pairs", str(path)]
    environ = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, capture_output=True, text=True, env=environ, timeout=120)
    assert done.returncode == 1, done.stderr
    _, first, second, last = done.stdout.splitlines()
    assert first.split()[:4] == ["size", "noise", ">", "flat"]
    assert (first.split()[-1], second.split()[-1]) == ("holds", "BROKEN")
    assert last == "1 of 2 relations hold"


SHIPPED = pytest.mark.parametrize("path", sorted((ROOT / "deploy/pairs").glob("*.jsonl")), ids=lambda path: path.stem)


class Zero:
    """Score 0 for every item."""

    def __init__(self, spec: ScorerSpec) -> None:
        self.spec = spec

    def score(self, items: Sequence[ScoreItem]) -> list[Outcome]:
        return [Score(0.0)] * len(items)


@SHIPPED
def test_shipped_pairs_cover_the_papers_scorers_with_inputs(path: Path) -> None:
    found = load(path)
    assert {name for pair in found for name in pair.scorers} >= {"tier", "ber", "der", "fer", "geneval"}
    for pair in found:
        for kind in set(pair.scorers) - {POLICY}:
            scorer = Zero(registry.spec(kind, registry.SETTINGS.validate_python(example(kind))))
            assert score_batch(scorer, (pair.better, pair.worse)) == [Score(0.0)] * 2, pair.name


@SHIPPED
def test_shipped_pairs_have_unique_names_and_normal_paths(path: Path) -> None:
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    received = [(line["name"], scorer) for line in lines for scorer in line["scorers"]]
    assert len(received) == len(set(received))
    items = [line[side] for line in lines for side in ("better", "worse")]
    files = {file for item in items for file in (*item.get("references", ()), item.get("image")) if file}
    assert [file for file in files if os.path.normpath(file) != file] == []
    here = {file.name for file in path.parent.glob("*.jpg")}
    assert path.stem != "photographs" or here == files, "every photograph that is shipped is received about"


@pytest.mark.parametrize("name", ["embedded", "gvu", "one_gpu", "rewards_2026", "sync_r1", "unirl_zero"])
def test_every_shipped_scorer_with_weights_has_a_pair(name: str) -> None:
    loaded = settings.load(ROOT / f"deploy/configs/{name}.toml", {})
    assert loaded.pairs is not None
    shipped = load(Path(loaded.pairs))
    alone = [which for which, one in loaded.scorers.items() if not pairs_for(which, one.kind, shipped)]
    assert set(alone) <= {"jpeg", "format", "reflection"}, "those have no weights"


@pytest.mark.parametrize("kind", ["psnr", "ocr", "ber", "der", "fer", "geneval"])
async def test_shipped_pairs_hold(kind: str) -> None:
    """PSNR has no weights, and OCR's are in its package. `synod verify` asks TIER, which is slow to load, too."""
    if kind in ("psnr", "ocr"):
        pytest.importorskip("rapidocr", reason="the extra 'ocr' is not installed")
        path, scorer = ROOT / "deploy/pairs/photographs.jsonl", registry.SETTINGS.validate_python(example(kind))
    else:
        loaded = settings.load(ROOT / "deploy/configs/embedded.toml", {})
        assert loaded.pairs is not None
        path, scorer = Path(loaded.pairs), loaded.scorers[kind]
    own = pairs_for(kind, kind, load(path))
    verdicts = await verify.score_pairs(registry.build(kind, scorer), own)
    assert verdicts
    assert [one for one in verdicts if not one.holds] == []
