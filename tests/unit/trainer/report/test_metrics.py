"""The records of a run: without NaN, truncated on resuming, readable after a kill; TensorBoard has the same."""

from __future__ import annotations

import json
import struct
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from synod.errors import SettingsError
from trainer.images import write_whole
from trainer.report.metrics import METRICS, SAMPLES, Metrics, Sample, read, steps_saved

IMAGE = np.zeros((4, 4, 3), np.uint8)


def write(run: Path, steps: range, *, resume_at: int = 0, mark: str = "", wandb: str | None = None) -> None:
    with Metrics(run, resume_at=resume_at, wandb=wandb) as metrics:
        for step in steps:
            metrics.log(step, {"reward": step / 10, "mark": mark})
            metrics.log_samples(step, 0, mark, {"finished": [Sample(IMAGE, 0.5)]})


def test_log_writes_a_line_without_nan(tmp_path: Path) -> None:
    with Metrics(tmp_path / "new/run") as metrics:
        values = {"a": float("nan"), "b": {"c": [np.float32("inf"), np.float64(0.5), 2, True]}, "d": None, "e": "<ö>"}
        metrics.log(3, values)
        text = (tmp_path / "new/run" / METRICS).read_text()
    assert text.endswith("\n")
    assert json.loads(text, parse_constant=pytest.fail) == {
        "step": 3, "a": None, "b": {"c": [None, 0.5, 2, True]}, "d": None, "e": "<ö>"
    }  # fmt: skip
    assert read(tmp_path / "new/run") == [json.loads(text)]


def test_resuming_removes_later_records(tmp_path: Path) -> None:
    write(tmp_path, range(5), mark="first")
    write(tmp_path, range(3, 6), resume_at=3, mark="second")
    expected = [(0, "first"), (1, "first"), (2, "first"), (3, "second"), (4, "second"), (5, "second")]
    assert [(r["step"], r["mark"]) for r in read(tmp_path)] == expected
    assert [(r["step"], r["prompt"]) for r in read(tmp_path, SAMPLES)] == expected
    write(tmp_path, range(0), resume_at=2)
    assert [len(read(tmp_path)), len(read(tmp_path, SAMPLES))] == [2, 2]
    assert sorted(path.name for path in (tmp_path / "images").iterdir()) == ["000000", "000001"]
    write(tmp_path, range(1), mark="new")
    assert [(r["step"], r["mark"]) for r in read(tmp_path)] == [(0, "new")]


def test_an_incomplete_line_is_ignored_and_overwritten(tmp_path: Path) -> None:
    write(tmp_path, range(2))
    with (tmp_path / METRICS).open("a") as file:
        file.write('{"step": 2, "rew')
    assert [r["step"] for r in read(tmp_path)] == [0, 1]
    write(tmp_path, range(2, 3), resume_at=2)
    assert [r["step"] for r in read(tmp_path)] == [0, 1, 2]


@pytest.mark.parametrize("line", ["{}", "[1]", "nonsense", '{"step": "1"}', '{"step": 1', "\xff"])
def test_a_broken_line_is_named(tmp_path: Path, line: str) -> None:
    (tmp_path / METRICS).write_text(f'{{"step": 0}}\n{line}\n{{"step": 2}}\n', encoding="latin-1")
    with pytest.raises(SettingsError, match=r"metrics\.jsonl:2 is not a line"):
        Metrics(tmp_path, resume_at=3)


def test_a_run_without_files_has_no_records(tmp_path: Path) -> None:
    assert read(tmp_path / "nowhere") == []


def test_a_run_without_samples_has_no_file_of_them(tmp_path: Path) -> None:
    """Such as a stage of `synod personalize`."""
    for resume_at in (0, 1):
        with Metrics(tmp_path, resume_at) as metrics:
            metrics.log(resume_at, {"loss": 1.0})
    assert [record["step"] for record in read(tmp_path)] == [0, 1]
    assert not (tmp_path / SAMPLES).exists()


def test_samples_name_their_image_files(tmp_path: Path) -> None:
    drawn = np.random.default_rng(0).integers(0, 256, (2, 4, 4, 3), dtype=np.uint8)
    with Metrics(tmp_path) as metrics:
        samples = [Sample(drawn[0], 0.25, "a <hat>"), Sample(drawn[1], None)]
        metrics.log_samples(1_000_000, 1, "a prompt", {"finished": samples, "rejected": []})
    (record,) = read(tmp_path, SAMPLES)
    assert (record["step"], record["group"], record["prompt"]) == (1_000_000, 1, "a prompt")
    found = record["samples"]["finished"]
    assert [(one["score"], one["answer"]) for one in found] == [(0.25, "a <hat>"), (None, "")]
    assert [one["image"] for one in found] == [f"images/1000000/group1-finished-00{i}.png" for i in range(2)]
    for one, image in zip(found, drawn, strict=True):
        np.testing.assert_array_equal(np.asarray(Image.open(tmp_path / one["image"])), image)
    assert record["samples"]["rejected"] == []


def test_a_failed_write_leaves_the_previous_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_whole(tmp_path / "f", b"one")

    def full(path: Path, data: bytes) -> int:
        path.touch()
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(Path, "write_bytes", full)
        with pytest.raises(OSError, match="No space"):
            write_whole(tmp_path / "f", b"two")
    assert [(p.name, p.read_bytes()) for p in tmp_path.iterdir()] == [("f", b"one")]


def test_tensorboard_has_numbers_images_and_texts(tmp_path: Path) -> None:
    with Metrics(tmp_path) as metrics:
        metrics.log(1, {"reward": 0.5, "seconds": {"total": 2}, "lost": float("nan"), "mark": "x", "none": None})
        metrics.log(2, {"reward": 0.75})
        metrics.log_samples(2, 0, "a *prompt*", {"finished": [Sample(IMAGE, 0.5, "an answer")]})
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    board = EventAccumulator(str(tmp_path / "tensorboard"))
    board.Reload()
    tags = board.Tags()
    assert sorted(tags["scalars"]) == ["reward", "seconds/total"]
    assert [(e.step, e.value) for e in board.Scalars("reward")] == [(1, 0.5), (2, 0.75)]
    assert [e.step for e in board.Images("group0/finished")] == [2]
    assert board.Tensors("group0/text_summary")[0].tensor_proto.string_val == [b"    a *prompt*\n    0.50  an answer\n"]


def test_steps_saved_is_a_share_of_all_steps() -> None:
    """Steps of 10 and of 90: a mean of shares would be (.5 + .0) / 2."""
    steps = [
        {"denoising_steps": 5, "denoising_steps_unscreened": 10},
        {"denoising_steps": 90, "denoising_steps_unscreened": 90},
    ]
    assert steps_saved(steps) == pytest.approx(0.05)
    assert steps_saved([]) is None


def wandb_records(file: Path) -> list[Any]:
    """The records of an offline run: a LevelDB log of protobufs, here of one block of 32 KiB."""
    from wandb.proto.wandb_internal_pb2 import Record

    data, at, found = file.read_bytes(), 7, list[Any]()
    assert len(data) < 2**15
    while at < len(data):
        (size,) = struct.unpack_from("<H", data, at + 4)
        found.append(Record.FromString(data[at + 7 : at + 7 + size]))
        at += 7 + size
    return found


@pytest.mark.slow  # wandb starts its own process
def test_wandb_offline_has_the_same_numbers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    wandb = pytest.importorskip("wandb")
    monkeypatch.setenv("WANDB_MODE", "offline")
    write(tmp_path, range(0), wandb="a-project")
    run_id = (tmp_path / "wandb/run-id").read_text()
    with Metrics(tmp_path / "b", wandb="a-project") as metrics:
        for step in range(3):
            metrics.log(step, {"reward": step / 4, "seconds": {"total": 2.0}, "lost": float("nan"), "none": None})
    wandb.teardown()  # its process writes the file
    (file,) = (tmp_path / "b/wandb").glob("offline-run-*/run-*.wandb")
    records = wandb_records(file)
    (run,) = (record.run for record in records if record.HasField("run"))
    assert (run.project, run.display_name) == ("a-project", "b")
    assert run.run_id == (tmp_path / "b/wandb/run-id").read_text() != run_id
    logged = [
        {"/".join(item.nested_key) or item.key: json.loads(item.value_json) for item in record.history.item}
        for record in records
        if record.HasField("history")
    ]
    found = [{name: value for name, value in line.items() if not name.startswith("_")} for line in logged]
    assert found == [{"step": step, "reward": step / 4, "seconds/total": 2.0} for step in range(3)]
    write(tmp_path, range(1), wandb="a-project")
    assert (tmp_path / "wandb/run-id").read_text() == run_id, "a resumed run keeps its id"


def test_wandb_without_its_package_names_the_extra(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "wandb", None)
    with pytest.raises(SettingsError, match=r"needs the package wandb.*synod\[wandb\]"):
        Metrics(tmp_path, wandb="a-project")
