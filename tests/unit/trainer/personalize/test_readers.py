"""Public sets in the forms in which they are published, and what their users stumbled over."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from synod.errors import SettingsError
from tests.unit.trainer.personalize.unify_tree import write_image, write_json
from trainer.personalize.readers import dreambench, dreambench_pp, mc_llava, yollava
from trainer.personalize.records import Question

CHOICE = {"question": "What color is <sks>?", "options": {"A": "red", "B": "blue"}, "correct_answer": "B"}


def yollava_tree(root: Path, asked: Any) -> Path:
    data = root / "yollava-data"
    for name in ("bo", "cy"):
        for part in ("train", "test"):
            for number in range(2):
                write_image(data / part / name / f"{number}.png", number)
        write_image(data / f"train/{name}/negative_example/5.png", 5)
        write_json(data / f"train/{name}/negative_example/scores.json", {"5.png": 0.8})
    if asked is not None:
        write_json(data / yollava.VISUAL_QA, asked)
    return root


@pytest.mark.parametrize(
    "asked",
    [
        {"bo": {"/home/thao/yollava-data/test/bo/1.png": CHOICE}},
        {"./yollava-data/test/bo/1.png": CHOICE},
        {"bo": {"test/bo/1.png": [CHOICE]}},
    ],
)
def test_yollava_has_both_forms_of_questions_and_stale_paths(tmp_path: Path, asked: Any) -> None:
    said: list[str] = []
    records = yollava.read(yollava_tree(tmp_path, asked), said.append)
    bo, cy = records["<bo>"], records["<cy>"]
    image = tmp_path / "yollava-data/test/bo/1.png"
    assert bo.questions == (Question("What color is <bo>? A. red B. blue", "B", image, is_choice=True),)
    assert cy.questions == ()
    assert (len(bo.train), len(bo.test), [path.name for path in bo.hard]) == (2, 2, ["5.png"])
    assert [prompt.text for prompt in bo.prompts] == ["a photo of <bo>"]
    assert len(said) == 1
    assert "classes.json is not there: every concept is an object" in said[0]


def test_yollava_names_the_file_that_is_absent(tmp_path: Path) -> None:
    said: list[str] = []
    write_json(yollava_tree(tmp_path, None) / "yollava-data/classes.json", {"bo": {"kind": "animal", "class": "dog"}})
    records = yollava.read(tmp_path, said.append)
    assert [line.rpartition("/")[2] for line in said] == [
        "yollava-visual-qa.json is not there: no visual questions are asked"
    ]
    assert [(one.concept.kind, one.class_word) for one in records.values()] == [("animal", "dog"), ("object", "thing")]


@pytest.mark.parametrize(
    ("asked", "message"),
    [
        ({"bo": {"test/bo/9.png": CHOICE}}, "test/bo/9.png is not among the images of"),
        ({"bo": {"test/bo/1.png": {**CHOICE, "correct_answer": "C"}}}, "'C' is not among the options A, B"),
        ({"bo": {"test/bo/1.png": {"options": {}}}}, "question: missing"),
        ({"bo": 3}, "a number where an object belongs"),
    ],
)
def test_a_bad_yollava_question_is_named(tmp_path: Path, asked: Any, message: str) -> None:
    with pytest.raises(SettingsError, match=message):
        yollava.read(yollava_tree(tmp_path, asked), print)


@pytest.mark.parametrize("word", ["", "  "])
def test_a_class_without_a_word_is_refused(tmp_path: Path, word: str) -> None:
    write_json(yollava_tree(tmp_path, None) / "yollava-data/classes.json", {"bo": {"kind": "animal", "class": word}})
    with pytest.raises(SettingsError, match=r"classes\.json\.bo\.class: no word of a class"):
        yollava.read(tmp_path, print)
    mc_llava_tree(tmp_path, "two_concept", ("bo",))
    write_json(tmp_path / "two_concept/concept_type.json", {"bo": word})
    with pytest.raises(SettingsError, match=r"concept_type\.json\.bo: no word of a class"):
        mc_llava.read(tmp_path, print)


def mc_llava_tree(root: Path, part: str, names: tuple[str, ...]) -> Path:
    concept = root / part / "concept"
    for name in names:
        for number in range(2):
            write_image(concept / f"train/{name}/{number}.png", number)
            write_image(concept / f"train/{name}/{number}_mask.png", number)
            write_image(concept / f"test/{name}/{number}.png", number)
        write_json(concept / f"test/{name}/vqa.json", {"data/0.png": {"Human": "<image>\nWho is it?", "AI": "<sks>"}})
        write_json(concept / f"test/{name}/qa.json", [{"question": "Where?", "answer": "here"}])
        write_json(concept / f"test/{name}/choice.json", {"1.png": CHOICE})
    write_json(root / part / "scenarios.json", {})
    return root


def test_mc_llava_reads_single_concepts_without_masks(tmp_path: Path) -> None:
    mc_llava_tree(tmp_path, "two_concept", ("bo", "cy"))
    mc_llava_tree(tmp_path, "three_concept", ("di",))
    write_image(tmp_path / "two_concept/multi/bo_cy/0.png", 0)
    write_json(tmp_path / "two_concept/concept_type.json", {"bo": "human", "cy": "pet"})
    said: list[str] = []
    records = mc_llava.read(tmp_path, said.append)
    assert [record.concept.kind for record in records.values()] == ["person", "animal", "object"]
    assert [line.rpartition("three_concept/")[2] for line in said] == [
        'concept_type.json is not there: every concept is an object of the class "thing"'
    ]
    bo, test = records["<bo>"], tmp_path / "two_concept/concept/test/bo"
    assert [path.name for path in bo.train] == ["0.png", "1.png"]
    assert bo.questions == (
        Question("What color is <bo>? A. red B. blue", "B", test / "1.png", is_choice=True),
        Question("Who is it?", "<bo>", test / "0.png"),
        Question("Where?", "here"),
    )


def test_mc_llava_says_which_questions_it_goes_without(tmp_path: Path) -> None:
    mc_llava_tree(tmp_path, "two_concept", ("bo",))
    (tmp_path / "two_concept/concept/test/bo/vqa.json").unlink()
    said: list[str] = []
    records = mc_llava.read(tmp_path / "two_concept", said.append)
    assert len(records["<bo>"].questions) == 2
    assert said[-1].endswith("test/bo/vqa.json is not there: its questions are not asked")


def test_one_name_in_two_parts_is_refused(tmp_path: Path) -> None:
    for part in mc_llava.PARTS:
        mc_llava_tree(tmp_path, part, ("bo",))
    with pytest.raises(SettingsError, match="are both <bo>; rename one"):
        mc_llava.read(tmp_path, print)


PROMPTS = """Classes
subject_name,class
backpack,backpack
dog6,dog

Prompts
Object Prompts
prompt_list = [
'a {0} {1} in the jungle'.format(unique_token, class_token),
"a {0} {1} on top of a child's bed".format(unique_token, class_token)
]

Live Subject Prompts
prompt_list = ["a {0} {1} wearing a red hat".format(unique_token, class_token)]
"""


def dreambench_tree(root: Path, prompts: str = PROMPTS) -> Path:
    for name in ("backpack", "dog6", "new"):
        write_image(root / f"dataset/{name}/00.jpg", 0)
    (root / "dataset/prompts_and_classes.txt").write_text(prompts)
    return root


def test_dreambench_has_a_list_for_live_subjects(tmp_path: Path) -> None:
    said: list[str] = []
    records = dreambench.read(dreambench_tree(tmp_path), said.append)
    pure = {name: [p.text for p in one.prompts if p.tag == "pure"] for name, one in records.items()}
    assert pure == {
        "<backpack>": ["a <backpack> in the jungle", "a <backpack> on top of a child's bed"],
        "<dog6>": ["a <dog6> wearing a red hat"],
    }
    assert [(one.concept.kind, one.class_word) for one in records.values()] == [
        ("object", "backpack"),
        ("animal", "dog"),
    ]
    assert said == [f"{tmp_path / 'dataset/new'} has no class in prompts_and_classes.txt: it is left out"]


def test_dreambench_without_both_lists_is_refused(tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match=r"has 1 lists of prompts with \{0\}"):
        dreambench.read(dreambench_tree(tmp_path, PROMPTS.partition("Live")[0]))


def dreambench_pp_tree(root: Path) -> Path:
    captions = {
        "live_subject/animal/00": "Kitten\n a kitten on a sofa\n\nA painting of the kitten and a kitten\ntwo kittens\n",
        "live_subject/human/00": "old man\nan old man reads\n",
        "style/03": "ink drawing\na boat, ink drawing\n",
    }
    for place, said in captions.items():
        write_image(root / f"images/{place}.jpg", 0)
        (root / f"captions/{place}.txt").parent.mkdir(parents=True)
        (root / f"captions/{place}.txt").write_text(said)
    write_image(root / "images/object/00.jpg", 0)
    return root


def test_dreambench_pp_has_one_image_a_subject(tmp_path: Path) -> None:
    said: list[str] = []
    records = dreambench_pp.read(dreambench_pp_tree(tmp_path), said.append)
    assert [(one.name, one.concept.kind, one.class_word) for one in records.values()] == [
        ("<live_subject_animal_00_kitten>", "animal", "Kitten"),
        ("<live_subject_human_00_old_man>", "person", "old man"),
        ("<style_03_ink_drawing>", "object", "ink drawing"),
    ]
    kitten = records["<live_subject_animal_00_kitten>"]
    assert kitten.train == (tmp_path / "images/live_subject/animal/00.jpg",)
    assert [one.text for one in kitten.prompts if one.tag == "pure"] == [
        "a <live_subject_animal_00_kitten> on a sofa",
        "A painting of the <live_subject_animal_00_kitten> and a kitten",
    ]
    assert len(said) == 2
    assert "1 of 3 prompts do not name 'Kitten': they are left out" in said[0]
    assert "object/00.jpg has no " in said[1]


@pytest.mark.parametrize("captions", [None, "\n"])
def test_dreambench_pp_names_what_is_absent(tmp_path: Path, captions: str | None) -> None:
    write_image(tmp_path / "images/object/00.jpg", 0)
    if captions is not None:
        (tmp_path / "captions/object").mkdir(parents=True)
        (tmp_path / "captions/object/00.txt").write_text(captions)
    with pytest.raises(
        SettingsError, match="own root as --data" if captions is None else r"00\.txt is empty; line 1 is"
    ):
        dreambench_pp.read(tmp_path, print)


@pytest.mark.parametrize("read", [yollava.read, mc_llava.read])
def test_another_folder_is_not_taken_for_a_set(tmp_path: Path, read: Any) -> None:
    with pytest.raises(SettingsError, match=r"has no folder of a concept; give the set.s own root"):
        read(tmp_path, print)
