"""The steps of a full-size personalization run on a tiny policy, and their figures are those of rows alone."""

from __future__ import annotations

import pytest

from benchmarks import personal_real_size


def test_steps_of_a_tiny_policy() -> None:
    given = ["--device", "cpu", "--tiny", "--dtype", "float32", "--questions", "2", "--images", "1"]
    found = personal_real_size.measure(personal_real_size._parser().parse_args(given))
    assert found["base_unchanged"]
    cases = found["cases"]
    assert {name: list(case) for name, case in cases.items()} == {
        "25 rows": ["stage 1", "stage 2"],
        "33 rows": ["stage 1", "stage 2", "stage 3"],
    }
    width = 64
    for case, number, rows in (("25 rows", 1, 3), ("25 rows", 2, 4), ("33 rows", 2, 4), ("33 rows", 3, 2)):
        step = cases[case][f"stage {number}"]
        assert step["trained_numbers"] == rows * (2 * width + 1)
        assert (step["questions"], step["images"]) == (2, 0 if number == 1 else 1)
        assert step["update"]["peak_gib"] > 0
    for case in cases.values():  # random weights guess
        assert case["stage 2"]["loss_image"] == pytest.approx(found["uniform_image_loss"], abs=0.2)
        assert "loss_image" not in case["stage 1"]


def test_a_missing_gpu_is_named(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    assert personal_real_size.main([]) == 2
    assert "give --device cpu" in capsys.readouterr().err
