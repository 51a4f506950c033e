"""A scorer in a child process: each way of failing gives a typed failure, and the other items get scores."""

from __future__ import annotations

import logging
import os
import signal
import subprocess
import sys
import textwrap
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from services import child
from services.backends import LocalBackend
from services.child import Child, ChildTimeouts
from services.scorers import registry
from services.scorers.base import score_batch
from services.scorers.custom import Custom, CustomSettings
from synod.contracts import Outcome, Score, ScoreFailure, ScoreItem
from synod.errors import SettingsError
from tests import venvs

pytestmark = pytest.mark.slow

GREYS = (0, 51, 102, 153, 204, 255)
Make = Callable[..., Custom]


def item(prompt: str, grey: int = 51) -> ScoreItem:
    return ScoreItem(image=np.full((4, 6, 3), grey, np.uint8), prompt=prompt)


@pytest.fixture
def make(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Make]:
    """Load scorers of `own_scorer` in child processes, which end with the test."""
    monkeypatch.setenv("PYTHONPATH", venvs.PYTHONPATH)
    made: list[Child] = []

    def build(
        times: ChildTimeouts = child.DEFAULT_TIMEOUTS, entry: str = "own_scorer:load", python: str = "", **options: Any
    ) -> Custom:
        described = CustomSettings(
            kind="custom",
            load=entry,
            needs=("image", "prompt"),
            options={"folder": str(tmp_path), **options},
            serving={"python": python or sys.executable},
        )
        made.append(child.build("own", described, times))
        return Custom(registry.spec("own", described), made[-1])

    yield build
    for one in made:
        one.close()


def lines(path: Path) -> list[str]:
    return path.read_text().split()


def codes(outcomes: list[Outcome]) -> list[str]:
    return [one.code if isinstance(one, ScoreFailure) else "score" for one in outcomes]


def test_values_are_those_of_the_scorer_in_order(make: Make) -> None:
    outcomes = score_batch(make(), [item("fine", grey) for grey in GREYS])
    assert [one.value for one in outcomes if isinstance(one, Score)] == pytest.approx([grey / 255 for grey in GREYS])
    assert {one.detail["pid"] for one in outcomes if isinstance(one, Score)}.isdisjoint({os.getpid()})


def test_output_is_logged_and_leaves_the_protocol_intact(make: Make, caplog: pytest.LogCaptureFixture) -> None:
    logging.getLogger("ray.serve").propagate = True
    scorer = make()
    assert codes(score_batch(scorer, [item("prints hello"), item("fine")])) == ["score", "score"]
    scorer._own.close()  # type: ignore[attr-defined]
    assert "own: stdout hello" in caplog.messages
    assert "own: stderr hello" in caplog.messages


@pytest.mark.parametrize(
    ("prompt", "code", "message"),
    [
        ("raises it", "scorer_failed", "ValueError: cannot read this: it"),
        ("exits 7", "scorer_failed", "twice on this item alone: it ended with status 7; it printed last: last words"),
        ("asserts", "scorer_failed", "AcceleratorError: CUDA error: device-side assert triggered"),
        ("killed SIGSEGV", "scorer_failed", "twice on this item alone: it was ended by SIGSEGV"),
        ("killed SIGKILL", "scorer_failed", "out of memory for this item alone"),
        ("garbage text", "scorer_failed", "it broke the protocol: a frame must start with b'SYN1', not b'hell'"),
        ("garbage huge", "scorer_failed", "a frame of 4294967295 bytes exceeds the limit of 67108864"),
        ("garbage map", "scorer_failed", "results: missing"),
        ("invalid it is blank", "invalid_item", "it is blank"),
        ("nan", "scorer_failed", "nan"),
    ],
)
def test_a_bad_item_fails_alone_with_its_code(make: Make, prompt: str, code: str, message: str) -> None:
    items = [item("fine", grey) for grey in GREYS]
    outcomes = score_batch(make(), [*items[:2], item(prompt), *items[2:]])
    bad = outcomes.pop(2)
    assert isinstance(bad, ScoreFailure)
    assert (bad.code, bad.retryable) == (code, False)
    assert message in bad.message
    assert [one.value for one in outcomes if isinstance(one, Score)] == pytest.approx([grey / 255 for grey in GREYS])


def test_a_process_that_loses_its_device_is_replaced(make: Make, tmp_path: Path) -> None:
    scorer = make()
    assert codes(score_batch(scorer, [item("asserts")])) == ["scorer_failed"]
    assert codes(score_batch(scorer, [item("fine")])) == ["score"]
    assert len(lines(tmp_path / "loads")) == 3


@pytest.mark.parametrize("name", ["SIGSEGV", "SIGKILL"])
def test_one_crash_loses_no_score(make: Make, tmp_path: Path, name: str) -> None:
    outcomes = score_batch(make(), [item("fine", 0), item(f"once {name}", 51), item("fine", 255)])
    assert [one.value for one in outcomes if isinstance(one, Score)] == pytest.approx([0.0, 0.2, 1.0])
    assert len(lines(tmp_path / "loads")) == 2


def test_out_of_memory_halves_the_batch(make: Make, tmp_path: Path) -> None:
    assert codes(score_batch(make(most=2), [item("fine")] * 6)) == ["score"] * 6
    assert len(lines(tmp_path / "loads")) == 1
    assert max(map(int, lines(tmp_path / "runs")[1:])) == 3


def test_a_wrong_number_of_outcomes_is_a_failure(make: Make) -> None:
    outcomes = score_batch(make(short=1), [item("fine")] * 2)
    assert [one.message for one in outcomes if isinstance(one, ScoreFailure)] == [
        "the scorer returned 0 outcomes for 1 items"
    ] * 2


def test_a_hung_process_is_killed_at_the_deadline(make: Make, tmp_path: Path) -> None:
    scorer = make(ChildTimeouts(batch_s=1.0))
    outcomes = score_batch(scorer, [item("fine"), item("hangs")])
    assert codes(outcomes) == ["deadline_exceeded"] * 2
    assert "did not score 2 items within 1 s" in outcomes[0].message  # type: ignore[union-attr]
    assert codes(score_batch(scorer, [item("fine")])) == ["score"]
    assert len(lines(tmp_path / "loads")) == 2


def test_only_the_too_large_item_is_refused(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(child, "MAX_IMAGE_BYTES", 100)
    large = ScoreItem(image=np.zeros((6, 6, 3), np.uint8), prompt="fine")
    outcomes = score_batch(make(), [item("fine"), large])
    assert codes(outcomes) == ["score", "image_too_large"]
    assert "108 bytes; a scorer in a child process takes 100" in outcomes[1].message  # type: ignore[union-attr]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"entry": "nowhere:load"}, "it cannot load: .*ModuleNotFoundError: No module named 'nowhere'"),
        ({"entry": "own_scorer:other"}, "it cannot load: .*has no attribute 'other'"),
        ({"load": "raises"}, r"it cannot load: the scorer raised RuntimeError: no weights in \./nowhere"),
        ({"load": "dies"}, "it was ended by SIGSEGV"),
        ({"load": "nothing"}, "it returned object, which has no method score"),
    ],
)
def test_a_scorer_that_fails_to_load_stops_the_start(make: Make, options: Any, message: str) -> None:
    with pytest.raises(SettingsError, match=f"scorer 'own' in .*{message}"):
        make(**options)


def test_an_interpreter_without_synod_stops_the_start(make: Make, tmp_path: Path, monkeypatch: Any) -> None:
    monkeypatch.delenv("PYTHONPATH")
    monkeypatch.chdir(tmp_path)
    python = venvs.make(tmp_path / "bare", rest=False)
    with pytest.raises(SettingsError, match=r"it ended with status 1; it printed last: .*No module named 'synod'"):
        make(python=python)
    with pytest.raises(SettingsError, match=r"it cannot be started: .*No such file"):
        Child("own", str(tmp_path / "none"), "own_scorer:load", {})


def test_a_failed_restart_is_unavailable_until_its_backoff(make: Make, tmp_path: Path) -> None:
    now = [0.0]
    make()  # sets PYTHONPATH
    described = {"options": {"folder": str(tmp_path / "sub"), "load": "dies later"}, "serving": {}}
    (tmp_path / "sub").mkdir()
    one = Child("own", sys.executable, "own_scorer:load", described, now_s=lambda: now[0])
    try:
        assert one.pid is not None
        os.kill(one.pid, signal.SIGKILL)
        waits = []
        for _ in range(4):
            outcomes = score_batch(Custom(registry.spec("own", _described()), one), [item("fine"), item("fine")])
            assert codes(outcomes) == ["unavailable"] * 2
            waits.append(outcomes[0].message)  # type: ignore[union-attr]
            now[0] += 1.5
        loads = len(lines(tmp_path / "sub" / "loads"))
        assert loads == 4  # at 0 s (at first, and after the kill), 1.5 s and 4.5 s, but not at 3 s
        assert "it ended with status 3" in waits[0]
        assert "started again in 1 s" in waits[0]
    finally:
        one.close()


def _described() -> CustomSettings:
    return CustomSettings(kind="custom", load="own_scorer:load", needs=("image",))


def test_the_child_ends_when_the_replica_is_killed(make: Make, tmp_path: Path) -> None:
    """The replica is killed in the middle of a batch, as Serve or the kernel may do."""
    program = textwrap.dedent(f"""
        import sys
        from services.child import Child
        from tests.unit.services.test_child import item
        described = {{"options": {{"folder": {str(tmp_path)!r}}}, "serving": {{}}}}
        one = Child("own", sys.executable, "own_scorer:load", described)
        print(one.pid, flush=True)
        one.score([item("hangs")])
    """)
    make()
    with subprocess.Popen(
        [sys.executable, "-c", program], cwd=venvs.ROOT, stdout=subprocess.PIPE, text=True
    ) as replica:
        assert replica.stdout is not None
        pid = int(replica.stdout.readline())
        while not (tmp_path / "runs").exists():
            time.sleep(0.02)
        replica.kill()
    ends_s = time.monotonic() + 20
    while Path(f"/proc/{pid}").exists() and "Z" not in Path(f"/proc/{pid}/stat").read_text().split()[2]:
        assert time.monotonic() < ends_s, "the child outlived its replica"
        time.sleep(0.02)


def test_rays_variables_are_not_passed_on(make: Make, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("RAY_AUTH_TOKEN", "secret")
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "3")
    own = make()._own
    assert isinstance(own, Child)
    given = Path(f"/proc/{own.pid}/environ").read_bytes().split(b"\0")
    assert b"CUDA_VISIBLE_DEVICES=3" in given
    assert not [one for one in given if one.startswith(b"RAY_")]


async def test_a_built_in_kind_runs_in_a_child_too(tmp_path: Path) -> None:
    """In another interpreter with the same packages it returns the same outcome as in this process."""
    from tests.building import build

    python = venvs.make(tmp_path / "same")
    items = (ScoreItem(image=np.full((16, 16, 3), 90, np.uint8)),)
    outcomes = []
    for serving in ({}, {"python": python}):
        scorer = build(kind="jpeg", direction="compressibility", serving=serving)
        assert (isinstance(scorer, Custom) and isinstance(scorer._own, Child)) == bool(serving)
        backend = LocalBackend({"it": scorer})
        outcomes += await backend.score("it", await backend.stage(items, 1), [0], 60.0)
        await backend.close()
    assert isinstance(outcomes[0], Score)
    assert outcomes[0] == outcomes[1]
