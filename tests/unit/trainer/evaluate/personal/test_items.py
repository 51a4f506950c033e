"""What a suite asks and draws, and what its controls change."""

from __future__ import annotations

import shutil
from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from tests.unit.trainer.personalize.test_readers import CHOICE, mc_llava_tree, yollava_tree
from tests.unit.trainer.personalize.unify_tree import write_image, write_json, write_tree
from trainer.evaluate.personal.arms import ARMS, in_arm
from trainer.evaluate.personal.items import COLUMNS, HARD, RANDOM, SUITES, YES, Item, plan
from trainer.personalize.examples import questions
from trainer.personalize.folder import read_folder
from trainer.personalize.readers import mc_llava, yollava
from trainer.personalize.records import ConceptRecord

Records = dict[str, ConceptRecord]


def test_plan_counts_every_column(items: list[Item]) -> None:
    counts = Counter((one.column, one.concept) for one in items)
    for name in ("<bo>", "<cy>"):
        found = {column: counts[column, name] for column in COLUMNS if counts[column, name]}
        assert found == {
            "rec": 6,  # 2 test images, as many of the other dog, as many random ones
            "vqa": 2,
            "qa": 1,
            "qa_choice": 1,
            "pure": 4,
            "knowledge": 6,
            "rea": 2,
            "dense_rea": 1,
            "rea_gen": 4,
            "dense_gen": 2,
            "dense_rea_gen": 2,
        }
    keys = [one.key for one in items]
    assert len(set(keys)) == len(keys)
    files = [one.file for one in items if one.file is not None]
    assert len(set(files)) == len(files)
    assert "images/bo/pure/1/0.png" in files


def test_a_person_is_drawn_a_hundred_times(tmp_path: Path) -> None:
    records = list(read_folder(write_tree(tmp_path, ("bo", "cy"), ("animal", "person"))).values())
    found = plan(records, ("people",))
    assert len(found) == 100
    assert {(one.concept, one.prompt, one.scorers) for one in found} == {("<cy>", "a photo of <cy>", ("fer",))}


def test_negatives_of_a_class_are_other_concepts(items: list[Item], records: Records) -> None:
    asked = [one for one in items if one.column == "rec" and one.concept == "<bo>"]
    shown = {group: [one.shown for one in asked if one.group == group] for group in (YES, HARD, RANDOM)}
    assert shown[YES] == list(records["<bo>"].test)
    assert sorted(map(str, shown[HARD])) == sorted(map(str, records["<cy>"].test))
    assert set(shown[RANDOM]) <= set(records["<bo>"].random)
    assert [one.right for one in asked] == ["Yes"] * 2 + ["No"] * 4
    assert [one.query for one in asked[:2]] == [one.query for one in asked[2:4]], "negatives are asked the same"


def shown_of(records: Records, name: str) -> dict[str, set[Path | None]]:
    """Return the images of each group of the recognition of a concept, over several seeds."""
    asked = [one for seed in range(20) for one in plan(list(records.values()), ("rec",), seed=seed)]
    return {
        group: {one.shown for one in asked if (one.concept, one.group) == (name, group)} for group in (HARD, RANDOM)
    }


def test_hard_negatives_are_of_the_class_and_not_of_the_kind(tmp_path: Path) -> None:
    root = write_tree(tmp_path, ("bo", "cy", "di", "el"), ("animal", "animal", "animal", "person"))
    info = root / "concept/train/di/info.json"
    info.write_text(info.read_text().replace('"dog"', '"cat"'))
    shutil.rmtree(root / "random_images")
    records = read_folder(root)
    cy, di, el = (set(records[f"<{name}>"].test) for name in ("cy", "di", "el"))
    assert shown_of(records, "<bo>") == {HARD: cy, RANDOM: di | el}
    assert shown_of(records, "<di>")[HARD] == set(), "the only cat"
    for number in range(2):
        write_image(root / f"concept/train/di/negative_example/{number}.png", 200 + number)
    records = read_folder(root)
    assert shown_of(records, "<di>")[HARD] == set(records["<di>"].hard)


def test_concepts_of_an_unknown_class_are_not_alike(tmp_path: Path) -> None:
    """Yo'LLaVA does not say what its concepts are, and comes with images that look alike."""
    records = yollava.read(yollava_tree(tmp_path, None), print)
    bo, cy = records.values()
    assert bo.class_word == cy.class_word
    assert shown_of(records, "<bo>") == {HARD: set(bo.hard), RANDOM: set(cy.test)}
    dog = {"kind": "animal", "class": "dog"}
    write_json(tmp_path / "yollava-data/classes.json", {"bo": dog, "cy": dog})
    records = yollava.read(tmp_path, print)
    assert shown_of(records, "<bo>") == {HARD: set(cy.test), RANDOM: set()}


@pytest.mark.parametrize("suite", ["unify", "yollava", "mc_llava"])
def test_every_question_is_asked_in_a_column_of_its_suite(tmp_path: Path, suite: str) -> None:
    trees = {
        "unify": lambda: read_folder(write_tree(tmp_path)),
        "yollava": lambda: yollava.read(yollava_tree(tmp_path, {"bo": {"test/bo/1.png": CHOICE}}), print),
        "mc_llava": lambda: mc_llava.read(mc_llava_tree(tmp_path, "two_concept", ("bo", "cy")), print),
    }
    records = trees[suite]()
    asked = [one for one in plan(list(records.values()), SUITES[suite]) if "qa" in one.column]
    known = [(name, one) for name, record in records.items() for one in record.questions]
    assert sorted((one.concept, one.query or "", str(one.shown)) for one in asked) == sorted(
        (name, one.text, str(one.image)) for name, one in known
    )
    assert known


def test_negatives_are_images_that_training_has_not_seen(tmp_path: Path) -> None:
    """Of enough of them; more images later move none of the earlier ones to the other part."""
    root, seen, asked = write_tree(tmp_path, ("bo",), ("animal",)), set[Path](), set[Path]()
    for count in (7, 8, 12):
        for number in range(count):
            write_image(root / f"random_images/{number}.png", 100 + number)
            write_image(root / f"concept/train/bo/negative_example/{number}.png", 150 + number)
        (record,) = read_folder(root).values()
        drawn = [questions(record, {"random", "hard"}, np.random.default_rng(i)) for i in range(12)]
        trained = {item.image for epoch in drawn for item in epoch if item.image is not None}
        items = [one for seed in range(20) for one in plan([record], ("rec",), seed=seed)]
        shown = {one.shown for one in items if one.shown is not None and one.group != YES}
        if count == 7:
            assert len(trained) == 14
            assert shown <= trained
            continue
        assert (len(trained), len(shown)) == (2 * count * 3 // 4, 2 * count // 4)
        seen |= trained
        asked |= shown
        assert not seen & asked


def test_negatives_follow_from_seed_and_name_alone(records: Records) -> None:
    both = plan(list(records.values()), ("rec",), seed=3)
    alone = [one for one in plan(list(records.values())[::-1], ("rec",), seed=3) if one.concept == "<bo>"]
    assert [one for one in both if one.concept == "<bo>"] == alone
    others = [plan(list(records.values()), ("rec",), seed=seed) for seed in range(6)]
    assert len({tuple(one.shown for one in found) for found in others}) > 1


def test_all_facts_are_given_and_held_out_ones_asked(items: list[Item], records: Records) -> None:
    for one in items:
        if one.column in ("rea", "rea_gen", "dense_rea_gen"):
            assert one.query is not None
            assert all(fact in one.query for fact in records[one.concept].facts)
    rea = [one for one in items if one.column == "rea" and one.concept == "<bo>"]
    assert [one.right for one in rea] == ["<bo> has blue hat", "<bo> has green hat"], "the facts of the test split"
    assert all(one.prompt is None and one.target is None for one in rea)
    drawn = [one for one in items if one.column == "rea_gen"]
    assert {one.target for one in drawn} == {"1 a dog red hat", "2 a dog red hat"}, "scored on the resolved prompt"
    assert [one.group for one in items if one.column == "knowledge"][:6] == [""] * 2 + ["held out"] * 4


def test_facts_are_asked_by_the_given_template(records: Records) -> None:
    columns, template = ("rea", "rea_gen", "dense_rea_gen"), "{name} knows {facts}? {prompt}"
    plain, asked = plan([records["<bo>"]], columns), plan([records["<bo>"]], columns, template=template)
    assert len(asked) == len(plain) > 0
    for one, other in zip(asked, plain, strict=True):
        assert one.query is not None
        assert one.query.startswith("<bo> knows ")
        assert one.query.removeprefix("<bo> knows ").replace("? ", ". ") == other.query
    (none,) = in_arm(asked[:1], "none", records)
    assert none.query is not None
    assert none.query.startswith("a dog knows a dog has "), "no arm but the concept's reads its name"


def test_limit_takes_the_first_of_each_group(records: Records, items: list[Item]) -> None:
    few = plan(list(records.values()), (*SUITES["unify"], *SUITES["unify_pp"]), images=2, limit=1)
    assert set(few) <= set(items)
    assert Counter(one.group for one in few if one.column == "rec") == {YES: 2, HARD: 2, RANDOM: 2}
    assert Counter(one.column for one in few)["pure"] == 4


def test_random_numbers_are_an_items_own(items: list[Item]) -> None:
    seeds = [one.seed(7) for one in items]
    assert len(set(seeds)) == len(seeds)
    assert all(len(seed) == 4 and seed[0] == 7 for seed in seeds)
    assert items[0].seed(7) != items[0].seed(8)


def test_controls_change_the_name_or_the_image(items: list[Item], records: Records) -> None:
    arms = {arm: {one.key: one for one in in_arm(items, arm, records)} for arm in ARMS}
    assert list(arms["concept"].values()) == items
    assert set(arms["none"]) == set(arms["other"]) == set(arms["concept"])
    assert set(arms["black"]) == {one.key for one in items if one.column in ("rec", "vqa")}
    assert all(one.shown is None for one in arms["black"].values())
    for key, one in arms["concept"].items():
        none, other = arms["none"][key], arms["other"][key]
        assert (none.target, none.file, none.seed(1)) == (one.target, one.file, one.seed(1))
        texts = [(item.query, item.prompt, item.right, *item.points) for item in (one, none, other)]
        for text, without, swapped in zip(*texts, strict=True):
            if text is not None:
                assert without is not None
                assert swapped is not None
                assert without == text.replace(one.concept, "a dog")
                assert swapped == text.replace(one.concept, {"<bo>": "<cy>", "<cy>": "<bo>"}[one.concept])
                assert one.concept not in f"{without} {swapped}"


def test_one_concept_has_no_other(tmp_path: Path) -> None:
    records = read_folder(write_tree(tmp_path, ("bo",), ("animal",)))
    items = plan(list(records.values()), ("rec", "pure"))
    assert in_arm(items, "other", records) == []
    assert {one.group for one in items if one.column == "rec"} == {YES, RANDOM}, "no other dog, and no hard negatives"


@pytest.mark.parametrize("suite", SUITES)
def test_suites_name_columns(suite: str) -> None:
    assert set(SUITES[suite]) <= set(COLUMNS)
