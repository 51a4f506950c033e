"""What all ranks must have alike: digests of files, equal values; `test_distributed` has the refusals on two ranks."""

from __future__ import annotations

from pathlib import Path

import pytest

from synod.errors import SettingsError
from tests.unit.trainer.loops import MakeSettings
from trainer.agreement import OWN
from trainer.checkpoint import differences, fingerprint, folder_digest
from trainer.distributed import Ranks


def test_a_directory_is_alike_by_names_and_contents(tmp_path: Path) -> None:
    seen = set[str]()
    for name, content in (("a/info.json", "x"), ("a/info.json", "y"), ("b.png", "x"), ("c.png", "")):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(content)
        seen.add(folder_digest(tmp_path))
    assert len(seen) == 4
    assert folder_digest(tmp_path) in seen
    assert folder_digest(tmp_path / "b.png") not in seen


def test_settings_of_one_machine_may_differ(tiny_settings: MakeSettings) -> None:
    """Unlike those that decide how often the ranks exchange something, though a run may resume with others."""
    one = tiny_settings()
    assert fingerprint(one, frozenset()).keys() > OWN
    other = tiny_settings(REWARDS__URL="http://other:1", REWARDS__PATIENCE_S="7", STEPS="77", EVALUATE__EVERY="5")
    found = differences(fingerprint(one, OWN), fingerprint(other, OWN), "here", "there")
    assert found == [
        "  trainer.evaluate.every: 0 here, 5 there",
        f"  trainer.steps: {one.steps} here, 77 there",
    ]
    assert fingerprint(one) == fingerprint(other)


def test_different_values_of_the_ranks_are_listed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Ranks, "gather_all", lambda self, value: [value, 20])
    with pytest.raises(SettingsError, match=r"^the ranks have different values \(10, 20\) for the newest step; do so$"):
        Ranks().check_equal(10, "newest step; do so")
