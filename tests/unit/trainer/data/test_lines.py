"""Files of questions, edits and images to reflect on: what is read, and every mistake."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from synod.contracts import GenEvalClause, GenEvalMetadata
from synod.errors import SettingsError
from synod.images import encode_png
from trainer.data.lines import read_lines
from trainer.data.prompts import read_prompts
from trainer.types import Line

QUESTION = {"question": "Is it red?", "segments": ["Yes", "No"], "truth": [1, 0]}
EDIT = {
    "image": "cat.png",
    "caption": "a cat",
    "target_caption": "a cat in snow",
    "prompt": "make it snow",
    "reverse_prompt": "remove the snow",
}
REFLECTION = {"prompt": "two cats", "image": "cat.png", "truth": False}
LINES: dict[str, dict[str, Any]] = {"questions": QUESTION, "edits": EDIT, "reflection": REFLECTION}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "cat.png").write_bytes(encode_png(np.zeros((4, 4, 3), np.uint8)))
    (tmp_path / "broken.png").write_bytes(b"not an image")
    return tmp_path


def written(folder: Path, *lines: dict[str, Any], name: str = "lines.jsonl") -> Path:
    (folder / name).write_text("\n".join(map(json.dumps, lines)) + "\n\n")
    return folder / name


def test_lines_of_each_task_are_read(folder: Path) -> None:
    cat = folder / "cat.png"
    path = written(folder, QUESTION, {**QUESTION, "image": "cat.png", "tag": "color"})
    assert read_lines(path, "questions") == (
        Line("Is it red?", "prompt", segments=("Yes", "No"), truth=(1.0, 0.0)),
        Line("Is it red?", "color", image=cat, segments=("Yes", "No"), truth=(1.0, 0.0)),
    )
    (edit,) = read_lines(written(folder, EDIT), "edits", check_images=True)
    expected = {"resolved": "a cat in snow", "image": cat, "caption": "a cat", "reverse": "remove the snow"}
    assert edit == Line("make it snow", "prompt", **expected)  # type: ignore[arg-type]
    counting = {"tag": "counting", "include": [{"class": "cat", "count": 2}]}
    metadata = GenEvalMetadata("counting", (GenEvalClause("cat", 2),))
    assert read_lines(written(folder, REFLECTION, {**REFLECTION, **counting, "truth": True}), "reflection") == (
        Line("two cats", "prompt", image=cat, segments=("Yes", "No"), truth=(0.0, 1.0)),
        Line("two cats", "counting", geneval=metadata, image=cat, segments=("Yes", "No"), truth=(1.0, 0.0)),
    )


@pytest.mark.parametrize(
    ("task", "changes", "message"),
    [
        ("edits", {"image": None}, r"lines.jsonl:1.image: missing. A line of data.task 'edits' is .* its source image"),
        ("edits", {"image": "dog.png"}, r"names the image .*dog.png: no such file; paths are relative to"),
        ("edits", {"image": "broken.png"}, r"broken.png: "),
        ("edits", {"reverse_prompt": " "}, r"reverse_prompt: the prompt is empty"),
        ("edits", {"truth": True}, r"truth: unknown key; known here: image, caption"),
        ("reflection", {"image": None}, r"image: missing. A line of data.task 'reflection' is"),
        ("reflection", {"truth": 1}, r"truth: .*a boolean"),
        ("questions", {"truth": [1]}, r"2 segments and truth \[1.0\]; give one each, at least one of them true"),
        ("questions", {"truth": [0, 0]}, r"at least one of them true"),
        ("questions", {"prompt": "two cats"}, r"prompt: unknown key"),
    ],
)
def test_a_mistake_is_named_with_its_line(folder: Path, task: str, changes: dict[str, Any], message: str) -> None:
    with pytest.raises(SettingsError, match=message):
        read_lines(written(folder, {**LINES[task], **changes}), task, check_images=True)


def test_a_file_of_another_kind_is_refused(folder: Path) -> None:
    with pytest.raises(SettingsError, match=r"no lines; a line of data.task 'edits' is \{"):
        read_lines(written(folder), "edits")
    with pytest.raises(SettingsError, match=r"data.task 'edits' reads a .jsonl file"):
        read_lines(written(folder, name="lines.txt"), "edits")
    for task, line in (("edits", EDIT), ("reflection", REFLECTION)):
        with pytest.raises(SettingsError, match=rf"a line of data.task '{task}': its image would not be read"):
            read_prompts(written(folder, line), "prompt")


def test_a_plain_prompt_may_have_a_tag(folder: Path) -> None:
    (tagged, plain) = read_prompts(written(folder, {"prompt": "a cat", "tag": "cats"}, {"prompt": "a dog"}), "prompt")
    assert (tagged.tag, plain.tag) == ("cats", "prompt")


def test_a_file_too_large_is_not_read(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its size is enough to refuse it; here it is a sparse file of a terabyte."""
    with (folder / "cat.png").open("r+b") as file:
        file.truncate(2**40)
    monkeypatch.setattr(Path, "read_bytes", lambda path: pytest.fail("read into memory"))
    with pytest.raises(SettingsError, match=r"cat\.png: 1099511627776 encoded bytes, the limit is 67108864"):
        read_lines(written(folder, EDIT), "edits", check_images=True)
