"""The arms of the personalization benchmark: each is named once, has settings, and counts in the summary."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from benchmarks.personalization import __main__ as queue
from benchmarks.personalization import ablations, general
from benchmarks.personalization.__main__ import (
    GROUPS,
    UNIFY,
    Arm,
    arms,
    fewer_photographs,
    main,
    read_results,
    settings_of,
    summary,
)
from synod.contracts import ScoreItem
from synod.errors import SettingsError
from trainer.data.concepts import read_concepts
from trainer.data.prompts import read_concept_prompts
from trainer.data.source import training_tasks
from trainer.personalize.run import only_concept


def test_every_arm_has_a_name_of_its_own_and_settings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("benchmarks.personalization.__main__.fewer_photographs", lambda *_: UNIFY)
    found = [arm for group in GROUPS for seed in (0, 1) for arm in arms(group, seed)]
    assert len({arm.key for arm in found}) == len(found) == 2 * (6 + 6 + 15 + 18 + 27 + 1)
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
    results = tmp_path / "out"
    results.mkdir()
    for name, value in (("a", 0.2), ("b", 0.6)):
        record = {"arm": {"group": "g", "name": "n"}, "figures": {"stage 1": {"der": value}}, "cpu_s": {"stage 1": 9.0}}
        (results / f"{name}.json").write_text(json.dumps(record))
    found = summary(read_results(results))["g/n"]["stage 1"]
    assert found["der"] == {"mean": 0.4, "error": pytest.approx(0.2), "n": 2}
    assert found["cpu_s"]["mean"] == 9.0
    out = tmp_path / "out.json"
    assert main(["--summary", "--only", "stages", "--runs", str(tmp_path / "runs"), "--out", str(out)]) == 0
    assert json.loads(out.read_text())["left"] == 6
    for name in ("a", "b"):
        (results / f"{name}.json").rename(tmp_path / f"{name}.json")
    for _ in range(2):  # what was published once stays
        assert main(["--summary", "--only", "stages", "--runs", str(tmp_path / "runs"), "--out", str(out)]) == 0
        written = json.loads(out.read_text())
        assert (written["arms"], written["earlier"]) == ({}, {"g/n": {"stage 1": found}})
    for name in ("a", "b"):
        (tmp_path / f"{name}.json").rename(results / f"{name}.json")
    (results / "c.json").write_text(json.dumps({**record, "base": "another"}))
    with pytest.raises(SettingsError, match=r"results of 2 base models, such as .*b\.json, .*c\.json"):
        read_results(results)


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
        (tmp_path / f"ablations-{name}-40-0.json").write_text(json.dumps({"figures": figures}))
    found = ablations.tables(tmp_path, 2, 40)
    row = found["components"]["without_tia"]["rea_right"]
    assert row == {"mean": 0.4, "error": 0.2, "n": 2, "to_full": -0.2, "to_full_error": 0.1}
    assert found["components"]["full"]["rea_right"]["to_full"] == 0.0
    assert found["rewards"].keys() == {"full"}


def test_general_prompts_are_compared_with_themselves(monkeypatch: pytest.MonkeyPatch) -> None:
    """Twelve prompts; the judge finds bright images right. Three of them change, and one of those becomes wrong."""
    images = [np.full((2, 2, 3), 200 if i % 2 else 10, np.uint8) for i in range(12)]
    changed = [*images[:9], images[9] // 2, images[10] + 1, images[11] + 1]
    turns, asked = iter((images, images, changed)), list[int]()
    monkeypatch.setattr(general, "drawn", lambda *_: next(turns))

    def right(items: Sequence[ScoreItem]) -> list[bool]:
        asked.append(len(items))
        assert all(one.geneval is not None for one in items)
        return [bool(one.pixels().mean() > 150) for one in items]

    policy: Any = None
    found = general.General(policy, right, seed=0, per_task=2)
    same = {"geneval": 0.5, "geneval_change": 0.0, "geneval_change_error": 0.0, "geneval_equal": 1.0}
    assert found.measure(policy) == same
    assert found.measure(policy) == {
        "geneval": pytest.approx(5 / 12),
        "geneval_change": pytest.approx(-1 / 12),
        "geneval_change_error": pytest.approx(1 / 12),
        "geneval_equal": 0.75,
    }
    assert asked == [12, 0, 3]


def test_each_number_of_steps_has_its_own_results(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """And its own directory of the training; arms without one are shared."""
    trained = list[str]()

    def train(arm: ablations.Ablation, *_: object) -> dict[str, Any]:
        trained.append(arm.key)
        return {"arm": asdict(arm), "figures": {"uma": {"rea_right": arm.steps / 100}}}

    monkeypatch.setattr(queue, "_run_ablation", train)
    monkeypatch.setattr(queue, "commit", lambda: "0000000")
    given = ["--only", "ablations", "--runs", str(tmp_path / "runs"), "--out", str(tmp_path / "out.json")]
    for steps, count in ((40, 11), (10, 9), (40, 0)):
        trained.clear()
        assert main([*given, "--steps", str(steps)]) == 0
        assert len(trained) == count
        table = json.loads((tmp_path / "out.json").read_text())["ablations"]["start"]
        assert (table["full"]["rea_right"]["mean"], table["stages"]["rea_right"]["mean"]) == (steps / 100, 0.0)


@pytest.mark.parametrize(("group", "runner"), [("ablations", "_run_ablation"), ("stages", "run_arm")])
def test_results_of_other_settings_are_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, group: str, runner: str
) -> None:
    """The settings file and the environment are not part of a result's name."""
    monkeypatch.setattr(queue, runner, lambda arm, *_: {"arm": asdict(arm), "figures": {}, "cpu_s": {}})
    monkeypatch.setattr(queue, "commit", lambda: "0000000")
    given = ["--only", group, "--runs", str(tmp_path / "runs"), "--out", str(tmp_path / "out.json")]
    assert main(given) == main(given) == 0
    for name, value in (("PERSONALIZE__NAME_PULL", "0.5"), ("TRAINER__LOSS__IMAGE__BETA", "0.5")):
        with monkeypatch.context() as patch:
            patch.setenv(f"SYNOD__{name}", value)
            if name.startswith("TRAINER") and group != "ablations":
                assert main(given) == 0, "no reward trains it"
                continue
            with pytest.raises(SettingsError, match=f"{name.lower().replace('__', '.')}: 0.*there, 0.5 now"):
                main(given)


class Killed(BaseException):
    """A process that ends without any clean-up."""


class FakeTrainer:
    """Writes a part of an arm's run, then its result; killed at moment number `until`, counted over all runs."""

    def __init__(self, until: int) -> None:
        self.moment, self.until, self.finished = 0, until, list[str]()

    def tick(self) -> None:
        self.moment += 1
        if self.moment == self.until:
            raise Killed

    def __call__(self, arm: Arm, runs: Path, config: Path) -> dict[str, Any]:
        part = runs / arm.key / "stage-1"
        part.mkdir(parents=True, exist_ok=True)
        self.tick()
        self.finished.append(arm.key)
        return {"arm": asdict(arm), "figures": {"stage 1": {"der": len(arm.key) / 100}}, "cpu_s": {"stage 1": None}}


@pytest.mark.parametrize("until", range(1, 3 * 3 + 1))
def test_a_killed_queue_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, until: int) -> None:
    """Killed in an arm, before its result is renamed, or after: every arm has one result in the end."""
    trainer, replace = FakeTrainer(until), os.replace

    def replaced(source: Path, target: Path) -> None:
        trainer.tick()
        replace(source, target)
        trainer.tick()

    monkeypatch.setattr(queue, "run_arm", trainer)
    monkeypatch.setattr(queue, "arms", lambda group, seed: [Arm(group, "a" * i, "uma", seed) for i in range(3)])
    monkeypatch.setattr(queue, "commit", lambda: "0000000")
    monkeypatch.setattr("trainer.images.os.replace", replaced)
    given = ["--only", "grid", "--runs", str(tmp_path / "runs"), "--out", str(tmp_path / "out.json")]
    with pytest.raises(Killed):
        main(given)
    assert main(given) == 0
    results = sorted((tmp_path / "out").iterdir())
    assert [path.name for path in results] == ["grid--uma-0.json", "grid-a-uma-0.json", "grid-aa-uma-0.json"]
    assert all(json.loads(path.read_text())["figures"] for path in results)
    assert len(trainer.finished) == 3 + (until % 3 == 2)  # a result that was never written is made again, once
    found = json.loads((tmp_path / "out.json").read_text())
    assert found["left"] == 0
    assert set(found["arms"]["grid/a"]["stage 1"]) == {"der"}, "unknown CPU time is not 0"


def test_a_killed_copy_of_photographs_is_made_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(Path, "unlink", lambda *_: (_ for _ in ()).throw(Killed))
        with pytest.raises(Killed):
            fewer_photographs(tmp_path, 3)
    assert len(only_concept(fewer_photographs(tmp_path, 3) / "concept/train/taz").train) == 3


def test_help_names_every_group_and_its_minutes(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["--help"])
    said = capsys.readouterr().out
    for group in GROUPS:
        count = len(list(arms(group, 0)))
        assert re.search(rf"^ +{group} .* {count} arms? +\d+ minutes$", said, re.MULTILINE), group
