"""The arms of the personalization benchmark: each is named once, has settings, and counts in the summary."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from benchmarks.personalization import ablations
from benchmarks.personalization.__main__ import GROUPS, UNIFY, arms, fewer_photographs, main, settings_of, summary
from trainer.data.concepts import read_concepts
from trainer.data.prompts import read_concept_prompts
from trainer.data.source import training_tasks
from trainer.personalize.run import only_concept


def test_every_arm_has_a_name_of_its_own_and_settings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("benchmarks.personalization.__main__.fewer_photographs", lambda *_: UNIFY)
    found = [arm for group in GROUPS for seed in (0, 1) for arm in arms(group, seed)]
    assert len({arm.key for arm in found}) == len(found) == 2 * (6 + 6 + 15 + 18 + 27)
    made = {arm.key: settings_of(arm, tmp_path) for arm in found}
    for total in (0, 1, 4, 8, 16, 32):
        tokens = made[f"tokens-{total:02d}-uma-0"].tokens
        assert tokens.shared + tokens.generation + tokens.understanding == total
    assert made["no_stage_1-untrained-uma-1"].stage_1.epochs == 0
    assert made["grid-0.3x-3-uma-0"].stage_1.epochs * 3 == made["stages-all-uma-0"].stage_1.epochs
    assert made["regions-none-taz-0"].regions == "none"


def test_fewer_photographs_are_a_whole_folder(tmp_path: Path) -> None:
    root = fewer_photographs(tmp_path, 3)
    concept = only_concept(root / "concept/train/taz")
    assert len(concept.train) == len(concept.cropped) == 3
    assert {one.image for one in concept.conversations} == {*concept.train, None}
    assert len(only_concept(UNIFY / "concept/train/taz").train) == 12


def test_the_summary_has_means_and_errors(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("benchmarks.personalization.__main__.commit", lambda: "0000000")  # which starts git
    results = tmp_path / "runs/results"
    results.mkdir(parents=True)
    for name, value in (("a", 0.2), ("b", 0.6)):
        record = {"arm": {"group": "g", "name": "n"}, "figures": {"stage 1": {"der": value}}, "cpu_s": {"stage 1": 9.0}}
        (results / f"{name}.json").write_text(json.dumps(record))
    found = summary(results)["g/n"]["stage 1"]
    assert found["der"] == {"mean": 0.4, "error": pytest.approx(0.2), "n": 2}
    assert found["cpu_s"]["mean"] == 9.0
    out = tmp_path / "out.json"
    assert main(["--summary", "--only", "stages", "--runs", str(tmp_path / "runs"), "--out", str(out)]) == 0
    assert json.loads(out.read_text())["left"] == 6


def test_ablations_have_settings_and_prompts(tmp_path: Path) -> None:
    """Eleven arms for three tables; a training prompt hints at facts of the split "train" alone."""
    arms = ablations.ablations(1, 40)
    assert len({arm.key for arm in arms}) == len(arms) == 11
    assert {arm.name for arm in arms if not arm.steps} == {"class_word", "stages"}
    assert {arm.name for arm in arms if not arm.trained_stages} == {"class_word", "class_word_rl"}
    records = {name: only_concept(UNIFY / "concept/train" / name) for name in ("uma", "taz")}
    ablations.write_prompts(tmp_path, records)
    concepts = read_concepts(UNIFY)
    train, test = (read_concept_prompts(tmp_path / f"{n}.jsonl", concepts) for n in ("prompts", "prompts_heldout"))
    assert ({p.fact for p in train}, {p.fact for p in test}) == ({None, 0, 2}, {None, 1, 3})
    for arm in arms:
        settings = ablations.settings_of(arm, [tmp_path], tmp_path, "http://127.0.0.1:1") if arm.steps else None
        if settings is not None:
            assert (settings.policy.train, settings.seed, settings.steps) == ("rows", 1, 40)
            wanted = {"without_tia": ("visual",), "without_via": ("textual",), "without_und": ()}
            assert settings.data.pathways == wanted.get(arm.name, ("visual", "textual"))
            training_tasks(settings)


def test_tables_pair_each_arm_with_the_whole(tmp_path: Path) -> None:
    for name, values in (("full", (0.5, 0.7)), ("without_tia", (0.2, 0.6))):
        figures = {concept: {"rea_right": value} for concept, value in zip(("uma", "taz"), values, strict=True)}
        (tmp_path / f"ablations-{name}-0.json").write_text(json.dumps({"figures": figures}))
    found = ablations.tables(tmp_path, 2)
    row = found["components"]["without_tia"]["rea_right"]
    assert row == {"mean": 0.4, "error": 0.2, "n": 2, "to_full": -0.2, "to_full_error": 0.1}
    assert found["components"]["full"]["rea_right"]["to_full"] == 0.0
    assert found["rewards"].keys() == {"full"}
