"""`synod score` against a real service: every input is scored exactly once, also after failures."""

from __future__ import annotations

import fcntl
import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest

from synod import cli
from synod.digest import digest_of
from synod.images import encode_png
from tests.unit.synod.reward_services import Bright, RewardService, serving

ROOT = Path(__file__).parents[4]


def image(path: str, value: int) -> None:
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    Path(path).write_bytes(encode_png(np.full((2, 2, 3), value, np.uint8)))


def items(count: int, path: str = "items.jsonl") -> str:
    """Write a JSONL of `count` items, each with its own image and prompt."""
    lines = []
    for i in range(count):
        image(f"images/{i}.png", i % 200 + 20)
        lines.append(json.dumps({"image": f"images/{i}.png", "prompt": f"p{i}"}))
    Path(path).write_text("\n".join(lines) + "\n")
    return path


def logged(path: str = "out.jsonl") -> list[dict[str, Any]]:
    return [json.loads(line) for line in Path(path).read_text().splitlines()]


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def score(service: RewardService, *arguments: str) -> int:
    return cli.main(["score", *arguments, "--url", service.url, "--timeout", "20"])


def test_score_prints_images_folders_and_items(service: RewardService, capsys: pytest.CaptureFixture[str]) -> None:
    image("one.png", 51)
    image("folder/b/2.PNG", 153)
    image("folder/a.png", 102)
    Path("folder/notes.txt").write_text("no image")
    image("refs/r.png", 255)
    own = '"prompt": "own", "source_prompt": "was own", "concept": {"kind": "animal"}'
    Path("more.jsonl").write_text(f'{{"image": "one.png", {own}}}\n')
    arguments = ["one.png", "folder", "more.jsonl", "--prompt", "a cat", "--scorers", "ber,der", "--references", "refs"]
    arguments += ["--source-prompt", "a dog"]
    assert score(service, *arguments) == 0
    printed = capsys.readouterr()
    assert [line.split() for line in printed.out.splitlines()] == [
        ["IMAGE", "ber", "der"],
        ["one.png", "0.2000", "0.2000"],
        ["folder/a.png", "0.4000", "0.4000"],
        ["folder/b/2.PNG", "0.6000", "0.6000"],
        ["one.png", "0.2000", "0.2000"],
    ]
    assert sorted(str(item.prompt) for item in service.scorers["ber"].received) == ["a cat", "a cat", "a cat", "own"]
    assert sorted(str(item.source_prompt) for item in service.scorers["ber"].received) == [*["a dog"] * 3, "was own"]
    assert service.scorers["der"].received[0].reference_pixels()[0][0, 0, 0] == 255
    assert score(service, "more.jsonl", "--ensemble", "council", "--references", "refs") == 0
    assert capsys.readouterr().out.split() == ["IMAGE", "ber", "der", "reward", "one.png", *["0.2000"] * 3]


def test_a_log_holds_inputs_scores_failures_and_origin(service: RewardService) -> None:
    image("in/good.png", 51)
    image("in/bad.png", 13)
    Path("in/items.jsonl").write_text('{"image": "good.png", "prompt": "a"}\n\n{"image": "bad.png", "prompt": "b"}\n')
    assert score(service, "in/items.jsonl", "--scorers", "ber", "--out", "out.jsonl") == 1
    good, bad = logged()
    assert good == {
        "item": {"image": "in/good.png", "prompt": "a"},
        "digests": {"in/good.png": digest_of(Path("in/good.png").read_bytes())},
        "scorers": ["ber"],
        "ensemble": None,
        "scores": {"ber": {"value": pytest.approx(0.2), "detail": {}, "origin": {"model": "m1", "preprocessing": "1"}}},
        "reward": None,
    }
    assert bad["scores"] == {
        "ber": {"error": {"code": "scorer_failed", "retryable": False, "message": "the red value is 13"}}
    }


def test_logged_items_are_not_scored_again(service: RewardService, capsys: pytest.CaptureFixture[str]) -> None:
    source = items(70)
    assert score(service, source, "--scorers", "ber", "--out", "out.jsonl") == 0
    before = Path("out.jsonl").read_bytes()
    for scorer in service.scorers.values():
        scorer.received.clear()
    assert score(service, source, "--scorers", "ber", "--out", "out.jsonl") == 0
    assert Path("out.jsonl").read_bytes() == before
    assert service.scorers["ber"].received == []
    assert "0 items scored, 70 already logged, no failures" in capsys.readouterr().err
    image("images/7.png", 250)  # another image under the same name is another item
    assert score(service, source, "--scorers", "ber", "--out", "out.jsonl") == 0
    assert len(logged()) == 71
    assert score(service, source, "--scorers", "tier", "--out", "out.jsonl") == 1  # another question too
    assert len(logged()) == 141


def test_equal_lines_are_separate_items(service: RewardService) -> None:
    image("a.png", 51)
    Path("items.jsonl").write_text('{"image": "a.png", "prompt": "p"}\n' * 3)
    for _ in range(2):
        assert score(service, "items.jsonl", "--scorers", "ber", "--out", "out.jsonl") == 0
        assert len(logged()) == 3


@pytest.mark.parametrize("tear", [lambda last: last[:-30], lambda last: last[:-1], lambda last: b"\x00" * 40 + b"\n"])
def test_truncated_last_line_is_scored_again(
    service: RewardService, tear: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    source = items(5)
    score(service, source, "--scorers", "ber", "--out", "out.jsonl")
    whole = Path("out.jsonl").read_bytes()
    *kept, last = whole.splitlines(keepends=True)
    Path("out.jsonl").write_bytes(b"".join(kept) + tear(last))
    assert score(service, source, "--scorers", "ber", "--out", "out.jsonl") == 0
    assert Path("out.jsonl").read_bytes() == whole
    assert "the last line of out.jsonl is incomplete; its item is scored again" in capsys.readouterr().err


@pytest.mark.parametrize("line", [b"{\n", b'{"item": {}}\n', b"[]\n", b"\xff\n"])
def test_corrupt_line_inside_the_log_is_refused(
    service: RewardService, line: bytes, capsys: pytest.CaptureFixture[str]
) -> None:
    source = items(2)
    score(service, source, "--scorers", "ber", "--out", "out.jsonl")
    first, second = Path("out.jsonl").read_bytes().splitlines(keepends=True)
    Path("out.jsonl").write_bytes(first + line + second)
    assert score(service, source, "--scorers", "ber", "--out", "out.jsonl") == 2
    assert "out.jsonl:2 is not a line of a score log" in capsys.readouterr().err
    assert Path("out.jsonl").read_bytes() == first + line + second


def test_unreadable_images_fail_alone(service: RewardService, capsys: pytest.CaptureFixture[str]) -> None:
    source = items(40)
    Path("images/3.png").write_bytes(b"no image")
    Path("images/5.png").unlink()
    Path("images/7.png").write_bytes(encode_png(np.zeros((2, 2, 3), np.uint8))[:40])
    assert score(service, source, "--scorers", "ber", "--ensemble", "council", "--out", "out.jsonl") == 1
    lines = logged()
    assert [line["item"]["prompt"] for line in lines] == [f"p{i}" for i in range(40)]
    codes = {
        i: line["scores"]["ber"]["error"]["code"] for i, line in enumerate(lines) if "error" in line["scores"]["ber"]
    }
    assert codes == dict.fromkeys((3, 5, 7), "bad_image")
    assert lines[5]["scores"]["ber"]["error"]["message"] == "images/5.png: No such file or directory"
    assert lines[5]["digests"] == {}
    assert lines[5]["reward"]["error"]["code"] == "bad_image"
    capsys.readouterr()
    assert score(service, "items.jsonl", "--scorers", "ber") == 1
    printed = capsys.readouterr()
    assert printed.out.splitlines()[6].split() == ["images/5.png", "bad_image"]
    assert printed.err.splitlines()[1] == "synod: items.jsonl:6: ber: images/5.png: No such file or directory"


def test_invalid_lines_are_listed_and_nothing_is_scored(
    service: RewardService, capsys: pytest.CaptureFixture[str]
) -> None:
    image("a.png", 1)
    bad = ['{"image": "a.png"', '{"image": "a.png", "promt": "x"}', '{"image": 3}', '{"references": "a.png"}', "7"]
    Path("items.jsonl").write_text("\n".join(['{"image": "a.png"}', *bad]) + "\n")
    assert score(service, "items.jsonl", "--scorers", "ber", "--out", "out.jsonl") == 2
    output = capsys.readouterr().err.splitlines()
    assert [line.removeprefix("synod: ").split(":")[:2] for line in output[:5]] == [
        ["items.jsonl", str(number)] for number in range(2, 7)
    ]
    assert "promt: unknown key" in output[1]
    assert "image: this is not the path of an image" in output[2]
    assert output[5] == "nothing was scored; correct the 5 line(s) of items.jsonl"
    assert not Path("out.jsonl").exists()
    assert service.scorers["ber"].received == []


def test_invalid_item_fails_alone() -> None:
    source = items(20)
    lines = Path(source).read_text().splitlines()
    lines[4] = json.dumps({"image": "images/4.png", "prompt": "x" * 9000})
    Path(source).write_text("\n".join(lines))
    with serving(Bright("ber")) as service:
        assert score(service, source, "--scorers", "ber", "--out", "out.jsonl") == 1
        assert score(service, source, "--scorers", "nobody", "--out", "other.jsonl") == 1
    codes = [line["scores"]["ber"].get("error", {}).get("code") for line in logged()]
    assert codes == [None] * 4 + ["payload_too_large"] + [None] * 15
    assert logged("other.jsonl") == []


def test_retryable_failures_are_not_logged(capsys: pytest.CaptureFixture[str]) -> None:
    class Late(Bright):
        def outcome(self, item: Any) -> Any:
            from synod.contracts import ScoreFailure

            if item.prompt == "p2" and not self.shift:
                return ScoreFailure("deadline_exceeded", "too late", True)
            return super().outcome(item)

    source = items(4)
    with serving(late := Late("ber")) as service:
        assert score(service, source, "--scorers", "ber", "--out", "out.jsonl") == 1
        assert [line["item"]["prompt"] for line in logged()] == ["p0", "p1", "p3"]
        assert "The first: items.jsonl:3: ber" in capsys.readouterr().err
        late.shift = 0.5
        assert score(service, source, "--scorers", "ber", "--out", "out.jsonl") == 0
    assert [line["item"]["prompt"] for line in logged()] == ["p0", "p1", "p3", "p2"]


def test_concurrent_runs_cannot_share_a_log(service: RewardService, capsys: pytest.CaptureFixture[str]) -> None:
    with Path("out.jsonl").open("w") as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        assert score(service, items(1), "--scorers", "ber", "--out", "out.jsonl") == 2
    assert "another run is writing out.jsonl" in capsys.readouterr().err


@contextmanager
def process(port: int, *arguments: str) -> Iterator[subprocess.Popen[bytes]]:
    command = [sys.executable, "-m", "tests.unit.synod.scoring.dying_service", str(port), "tally", *arguments]
    with subprocess.Popen(command, env={**os.environ, "PYTHONPATH": str(ROOT)}) as running:
        try:
            for _ in range(1200):
                try:
                    httpx.get(f"http://127.0.0.1:{port}/healthz")
                    break
                except httpx.TransportError:
                    time.sleep(0.05)
            yield running
        finally:
            running.kill()


@pytest.mark.slow
def test_resumed_run_logs_every_item_once(capsys: pytest.CaptureFixture[str]) -> None:
    source, count = items(400), 400
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    arguments = ["score", source, "--scorers", "ber", "--out", "out.jsonl", "--url", f"http://127.0.0.1:{port}"]
    with process(port, "200") as service:
        assert cli.main([*arguments, "--timeout", "60"]) == 1
        assert service.wait(20) == -signal.SIGKILL
    first = [line["item"]["prompt"] for line in logged()]
    assert 0 < len(first) <= 200
    assert "out.jsonl keeps what was scored; run the command again to continue" in capsys.readouterr().err
    scored_first = set(Path("tally").read_text().split())
    assert set(first) <= scored_first
    Path("tally").write_text("")
    with process(port):
        assert cli.main([*arguments, "--timeout", "60"]) == 0
    assert sorted(line["item"]["prompt"] for line in logged()) == sorted(f"p{i}" for i in range(count))
    again = Path("tally").read_text().split()
    assert sorted(again) == sorted({f"p{i}" for i in range(count)} - set(first))  # none of the log's was received again
    values = {line["item"]["prompt"]: line["scores"]["ber"]["value"] for line in logged()}
    assert values == {f"p{i}": pytest.approx((i % 200 + 20) / 255) for i in range(count)}


def test_skipped_files_are_reported(service: RewardService, capsys: pytest.CaptureFixture[str]) -> None:
    for name in ("in/0001.png", "in/._0001.png", "in/.ipynb_checkpoints/0001-checkpoint.png", "in/a.GIF", "in/b.tiff"):
        image(name, 51)
    assert score(service, "in", "--scorers", "ber", "--prompt", "a") == 0
    printed = capsys.readouterr()
    assert [line.split()[0] for line in printed.out.splitlines()] == ["IMAGE", "in/0001.png"]
    assert "2 hidden image file(s) in in were skipped, such as ._0001.png" in printed.err
    assert "2 image file(s) of unsupported formats in in were skipped (1 .gif, 1 .tiff)" in printed.err


def test_failures_of_an_earlier_run_are_reported_again(
    service: RewardService, capsys: pytest.CaptureFixture[str]
) -> None:
    image("in/good.png", 51)
    image("in/bad.png", 13)
    for _ in range(2):
        assert score(service, "in", "--scorers", "ber", "--prompt", "a", "--out", "out.jsonl") == 1
    printed = capsys.readouterr().err
    assert "0 items scored, 2 already logged, 1 failures (scorer_failed: 1)" in printed
    assert "1 of the logged items failed and are not scored again" in printed
    lines = [line for line in Path("out.jsonl").read_text().splitlines() if '"error"' not in line]
    Path("out.jsonl").write_text("\n".join(lines) + "\n")
    service.scorers["ber"].received.clear()
    assert score(service, "in", "--scorers", "ber", "--prompt", "a", "--out", "out.jsonl") == 1
    assert len(service.scorers["ber"].received) == 1
