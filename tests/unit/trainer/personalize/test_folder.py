"""Concepts from folders: UnifyBench's published form, Synod's, and one concept with its photos."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from embedded import world
from synod.contracts import Concept
from synod.errors import SettingsError
from tests.unit.trainer.personalize.unify_tree import plus, write_image, write_json, write_tree
from trainer.data.concepts import read_concepts
from trainer.personalize.folder import read_folder, read_names
from trainer.personalize.records import ConceptPrompt, Plus, Question, load_image, load_photos, same_class
from trainer.personalize.templates import RECOGNITION

ROOT = Path(__file__).parents[4]


def test_world_exported_in_the_public_form_is_read() -> None:
    records = read_folder(ROOT / "embedded/data/unify")
    assert set(records) == {profile.name for profile in world.UNSEEN} == set(read_names(ROOT / "embedded/data/unify"))
    for profile in world.UNSEEN:
        found = records[profile.name]
        assert found.concept == Concept(profile.kind, profile.class_word, profile.name)
        assert (found.info, found.facts) == (profile.info, tuple(fact.sentence for fact in profile.attributes))
        counts = tuple(map(len, (found.train, found.cropped, found.test, found.random, found.hard)))
        assert counts == (12, 12, 5, 75, 0)
        assert [path.name for path in found.random[:4]] == ["0.png", "1.png", "2.png", "4.png"], "2 before 10"
        assert [path.name for path in found.random_test] == [f"{number}.png" for number in range(3, 100, 4)]
        tags = [prompt.tag for prompt in found.prompts]
        assert (tags.count("plain"), tags.count("pure"), tags.count("knowledge")) == (1, 25, 4)
        assert [p.heldout for p in found.prompts if p.tag == "knowledge"] == [False, False, True, True]
        split = {fact.text: fact.split == "test" for fact in found.plus.facts}
        assert split == {fact.sentence: fact.heldout for fact in profile.attributes}
        assert {one.image for one in found.questions if one.image is not None} == set(found.test)
        assert [one.answer for one in found.questions if one.is_choice and one.image is not None] == []
        assert sum(one.is_choice for one in found.questions) == 4
        assert len(found.recognition) >= 8
        assert all(profile.name in question for question in found.recognition)


def test_photographs_are_read_with_their_sources() -> None:
    folder = ROOT / "embedded/photographs"
    records, sources = read_folder(folder), (folder / "README.md").read_text()
    assert [one.class_word for one in records.values()] == ["cat", "cup", "rocket"]
    for one in records.values():
        assert tuple(map(len, (one.train, one.test, one.random, one.facts))) == (4, 2, 6, 4)
        assert {load_image(path).shape[2] for path in (*one.train, *one.test, *one.random)} == {3}
        assert [fact.split for fact in one.plus.facts] == ["train", "train", "test", "test"]
        assert [prompt.heldout for prompt in one.prompts if prompt.tag == "knowledge"] == [False, False, True, True]
        assert tuple(map(len, (one.plus.dense, one.plus.passages, one.plus.vague_dense))) == (2, 1, 2)
        for passage in one.plus.passages:
            assert all(point in passage.answer for point in passage.points)
        assert {question.image for question in one.questions} == {*one.test, None}
        assert f"| `{one.folder.name}` | `skimage.data." in sources
    assert sum(path.stat().st_size for path in folder.rglob("*") if path.is_file()) < 400_000


def test_public_concepts_train_sync_r1_too() -> None:
    concepts = read_concepts(ROOT / "embedded/data/unify")
    for profile in world.UNSEEN:
        assert concepts[profile.name].answers == world.conversations(profile), "the facts' questions have no image"
        assert len(concepts[profile.name].images) == 12


def test_answers_keep_their_images(tmp_path: Path) -> None:
    talk = "concept/train/bo/conversations.json"
    both, on = {"query": "who is it?", "answer": "<bo>."}, "what is <bo> on?"
    sofa, grass = ({"query": on, "answer": answer} for answer in ("a sofa.", "grass."))
    text = [{"query": "what is <bo>?", "answer": "a dog."}, both]
    write_json(write_tree(tmp_path) / talk, {"0.png": [sofa, both], "1.png": [both, grass], "text_only": text})
    found = read_concepts(tmp_path)["<bo>"]
    pairs = [(answer, found.image_of(i)) for i, (_, answer) in enumerate(found.answers)]
    assert pairs == [("a sofa.", 0), ("<bo>.", None), ("grass.", 1)], "a pair of every image is one pair"
    assert (found.segments_of(0), found.segments_of(1)) == (("a sofa.", "<bo>."), ("<bo>.", "grass."))
    assert found.others == ("a dog.", "<bo>.")
    write_json(tmp_path / talk, [sofa, grass, both, sofa])  # a form without images: all hold of each
    found = read_concepts(tmp_path)["<bo>"]
    assert (found.about, found.others, len(found.segments_of(1))) == ((None,) * 3, (), 3)


def test_kinds_follow_the_public_fields(tmp_path: Path) -> None:
    write_tree(tmp_path, ("bo", "cy", "di"), ("animal", "person", "animal"))
    info = tmp_path / "concept/train/di/info.json"
    write_json(info, {**json.loads(info.read_text()), "generation_type": "object", "surprise": 1})
    write_json(tmp_path / "pure_generation.json", {"live_subject": ["a {}"], "object": ["the {} box"]})
    records = read_folder(tmp_path)
    assert [record.concept.kind for record in records.values()] == ["animal", "person", "object"]
    assert records["<di>"].prompts[1] == ConceptPrompt("the <di> box", "pure")
    assert records["<cy>"].prompts[1] == ConceptPrompt("a <cy>", "pure")


def test_both_forms_of_conditions_are_read(tmp_path: Path) -> None:
    write_tree(tmp_path)
    path = tmp_path / "concept/test/bo/t2i_conditions.json"
    known = [one for one in read_folder(tmp_path)["<bo>"].prompts if one.tag == "knowledge"]
    assert [(one.fact, one.heldout) for one in known] == [(0, False), (1, True), (2, True)]
    write_json(path, ["A photo of <bo>.", "<bo> at home", "<bo> at work"])
    known = [one for one in read_folder(tmp_path)["<bo>"].prompts if one.tag == "knowledge"]
    assert known == [ConceptPrompt("<bo> at home", "knowledge"), ConceptPrompt("<bo> at work", "knowledge")]


def test_held_out_facts_are_marked_and_not_taught(tmp_path: Path) -> None:
    """The flags win over the public halves, and a training prompt of UnifyBench++ may not hint at such a fact."""
    write_tree(tmp_path)
    train = tmp_path / "concept/train/bo"
    info = json.loads((train / "info.json").read_text())
    write_json(train / "info.json", {**info, "heldout": [False, False, True]})
    talks = json.loads((train / "conversations.json").read_text())
    stated = [{"query": "what has <bo> ?", "answer": fact} for fact in ("<bo> has Green hat.", "<bo> has red hat")]
    write_json(train / "conversations.json", {**talks, "text_only": stated})
    record = read_folder(tmp_path)["<bo>"]
    assert record.held_out == ("<bo> has green hat",)
    assert [(one.fact, one.heldout) for one in record.prompts if one.tag == "knowledge"] == [
        (0, False),
        (1, False),
        (2, True),
    ]
    assert [one.answer for one in record.taught if one.image is None] == ["<bo> has red hat"]
    assert len(record.conversations) == len(record.taught) + 1
    write_json(train / "info.json", {**info, "heldout": [True, False, False]})
    with pytest.raises(SettingsError, match=r"facts\[0\] is of the split train, but info.json's heldout holds it out"):
        read_folder(tmp_path)


def test_a_folder_of_photos_needs_no_more_than_info(tmp_path: Path) -> None:
    write_json(tmp_path / "bo/info.json", {"class": "dog"})
    write_image(tmp_path / "bo/b.jpg", 1)
    write_image(tmp_path / "bo/10.png", 1)
    write_image(tmp_path / "bo/2.png", 1)
    write_image(tmp_path / "bo/.hidden.png", 1)
    write_image(tmp_path / "bo/2_mask.png", 1)
    (record,) = read_folder(tmp_path / "bo").values()
    assert read_folder(tmp_path) == {"<bo>": record}
    assert [path.name for path in record.train] == ["2.png", "10.png", "b.jpg"]
    assert (record.name, record.class_word, record.concept.kind, record.plus) == ("<bo>", "dog", "object", Plus())
    assert all("<bo>" in question for question in record.recognition)
    with pytest.raises(SettingsError, match=r"conversations\.json: No such file.*synod personalize prepare"):
        read_concepts(tmp_path)


def test_questions_of_the_test_set(tmp_path: Path) -> None:
    record = read_folder(write_tree(tmp_path))["<bo>"]
    test = tmp_path / "concept/test/bo"
    assert record.questions == (
        Question("what is <bo> ?", "<bo> is red .", test / "0.png"),
        Question("what is <bo> ?", "<bo> is red .", test / "1.png"),
        Question("what is <bo> ?", "<bo> is red ."),
        Question("what color is <bo> ? a. red b. blue", "a", is_choice=True),
    )


def changed(file: str, **values: Any) -> Callable[[Path], None]:
    def change(root: Path) -> None:
        path = root / file
        tree = json.loads(path.read_text())
        write_json(path, {key: value for key, value in {**tree, **values}.items() if value is not None})

    return change


def written(file: str, tree: Any) -> Callable[[Path], None]:
    return lambda root: write_json(root / file, tree) and None


TRAIN, TEST = "concept/train/bo", "concept/test/bo"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (changed(f"{TRAIN}/info.json", **{"class": None}), "bo/info.json.class: missing"),
        (lambda root: (root / TRAIN).rename(root / "concept/train/b o") and None, "'<b o>' is not of the form <name>"),
        (changed(f"{TRAIN}/info.json", generation_type="plant"), "generation_type: 'plant'; give one of object"),
        (changed("concept/train/train_images.json", bo=["7.png"]), "names .*7.png, which does not exist"),
        (changed("concept/train/train_images.json", bo=[]), "bo: no images"),
        (written(f"{TRAIN}/conversations.json", {"9.png": []}), "'9.png' is neither an image of the concept"),
        (written(f"{TEST}/vqa.json", [{"query": "q", "answer": "a"}]), "vqa.json: each question needs an image"),
        (written(f"{TEST}/t2i_conditions.json", {"prompts": []}), "neither a list of prompts nor an object with"),
        (written(f"{TEST}/t2i_conditions.json", ["a photo of <bo>", "a dog"]), r"\[1\]: the prompt does not name <bo>"),
        (
            written(f"{TEST}/t2i_conditions.json", {"personalized_driven_generation": ["<bo>"] * 4}),
            "4 prompts, but extra_info has 3",
        ),
        (written("pure_generation.json", {"animal": ["a dog"]}), r"animal\[0\]: the prompt has no \{\}"),
        (written("pure_generation.json", {"plant": []}), "no prompts of 'animal' or 'live_subject'; known: plant"),
    ],
)
def test_a_bad_public_folder_is_named(tmp_path: Path, change: Callable[[Path], None], message: str) -> None:
    change(write_tree(tmp_path))
    with pytest.raises(SettingsError, match=message):
        read_folder(tmp_path)


@pytest.mark.parametrize(
    ("part", "entry", "message"),
    [
        ("facts", {"split": "dev"}, r"facts\[0\].split: 'dev'; give one of train, test"),
        (
            "facts",
            {"text": "<bo> has a kite"},
            r"facts\[0\]: the fact '<bo> has a kite' is not in info.json's extra_info",
        ),
        ("facts", {"prompt": "a hat"}, r"facts\[0\]: the prompt does not name <bo>"),
        ("facts", {"resolved": "0 <bo> wearing hat"}, r"facts\[0\]: 'resolved' equals 'prompt'"),
        (
            "facts",
            {"prompt": "1 <bo> wearing hat"},
            r"facts\[0\] \(train\) and facts\[1\] \(test\) have the same prompt",
        ),
        ("facts", {"text": "<bo> has blue hat"}, r"facts\[0\] \(train\) and facts\[1\] \(test\) have the same text"),
        ("facts", {"hint": 1}, "hint: unknown key"),
        ("dense", {"prompt": "a dog"}, r"dense\[0\]: the prompt does not name <bo>"),
        ("dense_reasoning", {"points": []}, r"dense_reasoning\[0\]: no points"),
        ("dense_generation", {"resolved": None}, r"dense_generation\[0\].resolved: missing"),
    ],
)
def test_plus_is_checked_against_its_schema(tmp_path: Path, part: str, entry: dict[str, Any], message: str) -> None:
    tree = plus("<bo>")
    tree[part][0] |= entry
    write_json(write_tree(tmp_path) / TRAIN / "plus.json", tree)
    with pytest.raises(SettingsError, match=message):
        read_folder(tmp_path)


def test_photos_may_be_grey_or_transparent_and_bad_ones_left_out(tmp_path: Path) -> None:
    write_json(tmp_path / "info.json", {"class": "dog", "name": "<bo>"})
    Image.new("L", (6, 4), 9).save(tmp_path / "0.png")
    Image.new("RGBA", (6, 4), (9, 9, 9, 255)).save(tmp_path / "1.png")
    (tmp_path / "2.png").write_bytes(b"GIF")
    (record,) = read_folder(tmp_path).values()
    said: list[str] = []
    with pytest.raises(SettingsError, match=r"(?s)2\.png: .*--skip-bad"):
        load_photos(record, said.append)
    photos = load_photos(record, said.append, skip_bad=True)
    assert [(path.name, pixels.shape) for path, pixels in photos] == [("0.png", (4, 6, 3)), ("1.png", (4, 6, 3))]
    assert np.array_equal(photos[0][1], photos[1][1])
    assert "2.png" in said[0]
    assert said[1] == "<bo> has 2 image(s); 3 to 15 of different places give a better likeness"


@pytest.mark.parametrize("empty", [[], {}])
def test_a_file_without_recognition_questions_counts_as_absent(tmp_path: Path, empty: Any) -> None:
    root = write_tree(tmp_path, ("bo",), ("animal",))
    write_json(root / "concept/train/bo/positive_recognitions.json", empty)
    (bo,) = read_folder(root).values()
    assert bo.recognition == tuple(one.replace("{}", "<bo>") for one in RECOGNITION)


def test_same_class_comes_before_same_kind() -> None:
    records = list(read_folder(ROOT / "embedded/data/concepts").values())
    bo = next(record for record in records if record.name == "<bo>")
    others = same_class(bo, records)
    assert {one.concept.kind for one in others} == {"animal"}
    classes = [one.class_word == bo.class_word for one in others]
    assert classes == sorted(classes, reverse=True)
    assert bo not in others


def test_one_concept_may_have_scenes_to_draw(tmp_path: Path) -> None:
    write_json(tmp_path / "bo/info.json", {"class": "dog", "kind": "animal"})
    write_image(tmp_path / "bo/1.png", 60)
    write_json(tmp_path / "bo/pure_generation.json", {"animal": ["{} on the beach"], "object": ["{} on a desk"]})
    prompts = read_folder(tmp_path / "bo")["<bo>"].prompts
    assert [(one.text, one.tag) for one in prompts] == [("a photo of <bo>", "plain"), ("<bo> on the beach", "pure")]
