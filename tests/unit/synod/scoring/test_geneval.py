"""Published lines of GenEval and GenEval++ become items."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from synod.contracts import GenEvalClause, GenEvalMetadata, ScoreItem
from synod.errors import SettingsError
from synod.images import encode_png
from synod.scoring.geneval import checklist
from synod.scoring.inputs import sources

COUNTING = {
    "tag": "counting",
    "include": [{"class": "clock", "count": 2}],
    "exclude": [{"class": "clock", "count": 3}],
    "prompt": "a photo of two clocks",
}
POSITION = {
    "tag": "position",
    "include": [{"class": "cow", "count": 1}, {"class": "pizza", "count": 1, "position": ["right of", 0]}],
    "prompt": "a photo of a pizza right of a cow",
}
PLUS = {
    "tag": "pos/size",
    "include": [{"class": "cat", "region": "left", "size": "large"}, {"class": "dog", "color": "red"}],
    "prompt": "a large cat on the left and a red dog",
}


def write(path: Path, *lines: dict[str, Any]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return path


def image(path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(encode_png(np.zeros((2, 2, 3), np.uint8)))


def loaded(path: Path) -> list[ScoreItem]:
    items = [source.load().item for source in sources([path], None, ())]
    assert all(isinstance(item, ScoreItem) for item in items)
    return [item for item in items if isinstance(item, ScoreItem)]


def test_published_geneval_file_finds_generated_images(tmp_path: Path) -> None:
    for name in ("00000/samples/0000.png", "00000/samples/0001.png", "00001/samples/0000.png", "00001/grid.png"):
        image(tmp_path / name)
    first, second, third = loaded(write(tmp_path / "evaluation_metadata.jsonl", COUNTING, POSITION))
    assert first == second
    assert first.prompt == "a photo of two clocks"
    assert first.geneval == GenEvalMetadata("counting", (GenEvalClause("clock", 2),), (GenEvalClause("clock", 3),))
    assert third.geneval is not None
    assert loaded(write(tmp_path / "00001/metadata.jsonl", POSITION)) == [third]
    assert third.geneval.include[1] == GenEvalClause("pizza", 1, None, ("right of", 0))


def test_lines_may_name_images_and_have_null_columns(tmp_path: Path) -> None:
    image(tmp_path / "a.png")
    padded = {**COUNTING, "vqa_list": None, "skills": None, "concept": {"kind": "object"}}
    second = {"tag": None, "include": None, "exclude": None, "prompt": "a cat", "vqa_list": [["Is it?", "Yes"]]}
    lines = ({**line, "image": "a.png"} for line in (padded, second))
    first, asked = loaded(write(tmp_path / "lines.jsonl", *lines))
    assert first.geneval == GenEvalMetadata("counting", (GenEvalClause("clock", 2),), (GenEvalClause("clock", 3),))
    assert first.concept is not None
    assert asked.geneval == GenEvalMetadata("geneval2", (), (), (("Is it?", "Yes"),))


def test_undecidable_clauses_make_questions(tmp_path: Path) -> None:
    image(tmp_path / "0.png")
    plain = {**PLUS, "include": [{"class": "dog", "color": "red"}], "tag": "color"}
    judged, counted = loaded(write(tmp_path / "g.jsonl", {**PLUS, "image": "0.png"}, {**plain, "image": "0.png"}))
    assert judged.geneval == GenEvalMetadata(
        "pos/size",
        (),
        (),
        (
            ("How many objects of the class 'cat' are in the image?", "one"),
            ("How many objects of the class 'dog' are in the image?", "one"),
            ("Is the 'cat' in this part of the image: left?", "Yes"),
            ("Is the 'cat' of this size, compared with what else is in the image: large?", "Yes"),
            ("How many of the objects of the class 'dog' are red?", "one"),
        ),
    )
    assert judged.prompt == PLUS["prompt"]
    assert counted.geneval == GenEvalMetadata("color", (GenEvalClause("dog", 1, "red"),))


def test_a_checklist_has_each_requirement_once() -> None:
    """Clauses of one class add up; what is excluded beyond a count is a class that must not be there."""
    clauses = [{"class": "cat", "count": 2, "color": "red"}, {"class": "cat", "color": "blue"}, {"class": "cup"}]
    clauses += [{"class": "dog", "count": 11, "position": ["left of", 2]}]
    found = checklist({"include": clauses, "exclude": [{"class": "cat", "count": 4}, {"class": "car", "count": 1}]})
    assert found == [
        ["How many objects of the class 'cat' are in the image?", "three"],
        ["How many objects of the class 'cup' are in the image?", "one"],
        ["How many objects of the class 'dog' are in the image?", "11"],
        ["How many of the objects of the class 'cat' are red?", "two"],
        ["How many of the objects of the class 'cat' are blue?", "one"],
        ["Is the 'dog' left of the 'cup'?", "Yes"],
        ["Is the image without any 'car'?", "Yes"],
    ]


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        (COUNTING, "00000/samples: .*give the line an 'image'"),
        ({**COUNTING, "image": "a.png", "tags": 1}, "tags: unknown key"),
        ({**COUNTING, "image": "a.png", "include": [{"class": "cat", "count": 0}]}, r"geneval.include\[0\].count"),
        ({**COUNTING, "image": "a.png", "include": 7}, "geneval.include"),
        ({**COUNTING, "image": "a.png", "include": [3]}, r"geneval.include\[0\]"),
        ({"include": [], "image": "a.png"}, "geneval.tag"),
    ],
)
def test_invalid_geneval_line_is_named(tmp_path: Path, line: dict[str, Any], expected: str) -> None:
    with pytest.raises(SettingsError, match=f"g.jsonl:1: .*{expected}"):
        sources([write(tmp_path / "g.jsonl", line)], None, ())
