"""A policy with the rows of concepts from their files: which arm reads which rows."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.unit.trainer.evaluate.personal.conftest import Service
from tests.unit.trainer.evaluate.scoring_service import connect
from tests.unit.trainer.personalize.tiny_concept import make_policy, make_rows
from tests.unit.trainer.personalize.unify_tree import write_tree
from trainer.__main__ import main
from trainer.evaluate.command import resolve
from trainer.evaluate.draw import Drawer
from trainer.evaluate.personal import command
from trainer.evaluate.personal.answers import read_answers
from trainer.evaluate.personal.arms import ARMS, in_arm
from trainer.evaluate.personal.items import SUITES, plan
from trainer.personalize.files import ConceptInfo, save_concept
from trainer.personalize.folder import read_folder
from trainer.personalize.records import load_image
from trainer.personalize.tokens import base_digest
from trainer.policy import registry
from trainer.policy.show_o.magvit import Magvit
from trainer.policy.show_o.vocabulary import ConceptTokens, Vocabulary
from trainer.types import Query

PHOTOGRAPHS = Path(__file__).parents[5] / "embedded/photographs"
CONCEPTS = ("chelsea", "espresso", "falcon")


@pytest.fixture
def world(tmp_path: Path, vocab: Vocabulary, vq: Magvit, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A model, the rows of five concepts in directories of their names, a folder of <di> and <el>, and a service."""
    policy = make_policy(vocab, vq)
    policy.save(tmp_path / "model")
    for seed, name in enumerate(("di", "el", *CONCEPTS)):
        tokens = ConceptTokens(f"<{name}>", 2, 1, 1)
        rows = make_rows(5, seed)
        rows.bias_R.fill_(-99.0)  # the names are read and never said
        save_concept(tmp_path / name, ConceptInfo(tokens, "dog", "animal", base_digest(policy)), rows)
    write_tree(tmp_path / "data", ("di", "el"))
    service = Service()
    connect(monkeypatch, command, service)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def evaluate(world: Path, *names: str) -> int:
    arguments = ["evaluate", "model", "--concepts", *names, "--suite", "unify", "--data", "data", "--out", "out"]
    return main([*arguments, "--images", "1", "--steps", "2"])


def test_controls_read_no_rows_or_anothers(world: Path) -> None:
    assert evaluate(world, "di", "el") == 0
    records = read_folder(Path("data"))
    items = plan(list(records.values()), SUITES["unify"], images=1)
    found = {
        arm: read_answers(
            in_arm(items, arm, records), world / "out/answers" / ("" if arm == "concept" else f"controls/{arm}")
        )
        for arm in ARMS
    }
    replies = {arm: [found[arm][one.key].reply for one in items if one.key in found[arm]] for arm in ARMS}
    assert replies["concept"] != replies["none"]
    assert replies["concept"] != replies["other"]
    images = [(world / "out/answers" / folder).rglob("*.png") for folder in ("images", "controls/other/images")]
    own, other = ({path.read_bytes() for path in paths} for paths in images)
    assert not own & other

    base = Drawer(resolve("model", "unify").policy)
    for one in in_arm(items, "none", records):
        if one.query is not None:
            shown = None if one.shown is None else load_image(one.shown)
            (said,) = base.answer([Query(one.query, shown)], [one.seed(0)])
            assert found["none"][one.key].reply == said, "without rows it is the model without concepts"


def test_unify_pp_runs_on_the_photographs(world: Path) -> None:
    arguments = ["evaluate", "model", "--concepts", *CONCEPTS, "--suite", "unify_pp", "--data", str(PHOTOGRAPHS)]
    assert main([*arguments, "--out", "out", "--images", "1", "--steps", "2", "--limit", "1"]) == 0
    lines = json.loads((world / "out/table.json").read_text())["table"]
    assert {line["measure"] for line in lines} >= {"Rea BLEU", "Dense Rea points", "Rea Gen CLIP-I", "Dense Rea Gen"}
    for line in lines:
        assert set(line["arms"]) == {"concept", "none", "other"}
        assert all((cell["concepts"], cell["missing"]) == (3, 0) for cell in line["arms"].values())


def test_a_concept_without_rows_is_refused(world: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """MC-LLaVA's users scored three concepts with the rows of one, without a word."""
    assert evaluate(world, "di") == 2
    assert "has no token for 1 of the concepts, <el>" in capsys.readouterr().err
    assert not (world / "out").exists()


def test_rows_of_another_model_are_refused(world: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = world / "di/concept.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "base": "0" * 32}))
    assert evaluate(world, "di", "el") == 2
    assert "were trained on the model of digest" in capsys.readouterr().err


def test_the_policy_of_a_run_has_its_concepts(world: Path) -> None:
    assert evaluate(world, "di", "el") == 0
    concepts = tuple((world / name).resolve() for name in ("di", "el"))
    settings = resolve("model", "unify").policy.model_copy(update={"concepts": concepts})
    registry.load(settings).save(world / "run/policy")
    document = {"policy": settings.model_dump(mode="json"), "rewards": {"url": "http://service"}}
    (world / "run/settings.json").write_text(json.dumps(document))
    arguments = ["--suite", "unify", "--data", "data", "--images", "1", "--steps", "2", "--scorers", "recognition"]
    assert main(["evaluate", "run", *arguments]) == 0
    found = [(world / out / "answers/replies.jsonl").read_bytes() for out in ("out", "run/evaluation/unify")]
    assert found[0] == found[1]
