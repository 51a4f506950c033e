"""Any file of prompts: text, JSONL and parquet, good and bad."""

from __future__ import annotations

import json
from pathlib import Path

import pyarrow as pa
import pytest
from pyarrow import parquet

from services.settings import MAX_TEXT_CHARS
from synod.contracts import GenEvalClause, GenEvalMetadata
from synod.errors import SettingsError
from trainer.data.prompts import MAX_CHARS, read_prompts
from trainer.types import Prompt

TWO = {"tag": "counting", "include": [{"class": "dog", "count": 2}], "prompt": "two dogs"}


def write(folder: Path, name: str, content: object) -> Path:
    path = folder / name
    if isinstance(content, dict):
        parquet.write_table(pa.table(content), path)
    elif isinstance(content, list):
        path.write_text("".join(json.dumps(line) + "\n" for line in content))
    else:
        path.write_bytes(content if isinstance(content, bytes) else str(content).encode())
    return path


def read(folder: Path, name: str, content: object, column: str = "prompt") -> list[str]:
    return [prompt.text for prompt in read_prompts(write(folder, name, content), column, pytest.fail)]


@pytest.mark.parametrize(
    ("name", "content", "column"),
    [
        ("a.txt", "a cat\nein Käfer\n", "prompt"),
        ("a.TXT", "\n  a cat \r\n\n\tein Käfer", "prompt"),  # blank lines, Windows line ends, no last line end
        ("a.txt", b"\xef\xbb\xbf" + "a cat\nein Käfer\n".encode(), "prompt"),  # a byte order mark
        ("a.jsonl", [{"prompt": "a cat"}, {"prompt": " ein Käfer"}], "prompt"),
        ("a.jsonl", '{"prompt": "a cat"}\n\n{"prompt": "ein Käfer", "seed": 3, "tag": "x"}', "prompt"),
        ("a.jsonl", [{"id": 1, "caption": "a cat", "prompt": None}, {"caption": "ein Käfer"}], "caption"),
        ("a.parquet", {"prompt": ["a cat", "ein Käfer"], "url": ["", ""]}, "prompt"),
        ("a.parquet", {"n": [1, 2], "caption": pa.array(["a cat", "ein Käfer"]).dictionary_encode()}, "caption"),
    ],
)
def test_every_format_is_read(tmp_path: Path, name: str, content: object, column: str) -> None:
    assert read(tmp_path, name, content, column) == ["a cat", "ein Käfer"]


def test_only_line_feeds_end_a_line(tmp_path: Path) -> None:
    """JSON strings may hold the other characters that Unicode calls line ends."""
    text = "a\u2028cat\u0085or\x0btwo"
    path = write(tmp_path, "a.jsonl", json.dumps({"prompt": text.replace("\x0b", "")}, ensure_ascii=False))
    assert [one.text for one in read_prompts(path, "prompt")] == [text.replace("\x0b", "")]
    assert read(tmp_path, "a.txt", text) == [text]


def test_the_longest_prompt_is_what_the_service_accepts(tmp_path: Path) -> None:
    assert MAX_CHARS == MAX_TEXT_CHARS
    assert read(tmp_path, "a.txt", "x" * MAX_CHARS) == ["x" * MAX_CHARS]


def test_what_a_detector_cannot_decide_becomes_questions(tmp_path: Path) -> None:
    """GenEval++'s region and size; without a count there is one object."""
    line = {"tag": "pos/size", "include": [{"class": "cat", "region": "left"}], "prompt": "a cat on the left"}
    (tmp_path / "plus.jsonl").write_text(json.dumps(line) + "\n")
    (found,) = read_prompts(tmp_path / "plus.jsonl", "prompt")
    assert found.geneval is not None
    assert (found.tag, found.geneval.include) == ("pos/size", ())
    assert [answer for _, answer in found.geneval.vqa_list] == ["one", "Yes"]


def test_geneval_metadata_is_kept(tmp_path: Path) -> None:
    path = write(tmp_path, "a.jsonl", [TWO | {"note": "ignored"}, {"prompt": "a cat", "tag": "mine"}])
    metadata = GenEvalMetadata("counting", (GenEvalClause("dog", 2),))
    assert read_prompts(path, "prompt") == (Prompt("two dogs", "counting", geneval=metadata), Prompt("a cat", "mine"))


def test_questions_of_geneval_2_are_kept(tmp_path: Path) -> None:
    asked = [["How many dogs are there?", "two"]]
    (found,) = read_prompts(write(tmp_path, "a.jsonl", [{"prompt": "two dogs", "vqa_list": asked}]), "prompt")
    assert found == Prompt("two dogs", "geneval2", geneval=GenEvalMetadata("geneval2", (), vqa_list=(tuple(asked[0]),)))


def test_repeated_prompts_are_kept_once(tmp_path: Path) -> None:
    said: list[str] = []
    path = write(tmp_path, "a.txt", "a cat\na dog\na cat\n a cat\n")
    assert [prompt.text for prompt in read_prompts(path, "prompt", said.append)] == ["a cat", "a dog"]
    assert said == [f"{path}: 2 of 4 prompts repeat an earlier one and are left out"]


EDIT = {"prompt": "make it snow", "image": "a.png"}
QUESTION = {"question": "Is it red?", "segments": ["Yes", "No"], "truth": [1, 0]}


@pytest.mark.parametrize(
    ("line", "column", "task", "unread"),
    [
        (EDIT | {"reverse_prompt": "remove the snow"}, "prompt", "edits", "image"),
        (EDIT | {"target_caption": "a cat in snow"}, "prompt", "edits", "image"),
        (EDIT | {"caption": "a cat"}, "prompt", "edits", "image"),
        (QUESTION | {"image": "a.png"}, "question", "questions", "image"),
        (QUESTION, "question", "questions", "segments"),
        ({"prompt": "two cats", "image": "a.png", "truth": False}, "prompt", "reflection", "image"),
    ],
)
def test_lines_of_another_task_are_refused(
    tmp_path: Path, line: dict[str, object], column: str, task: str, unread: str
) -> None:
    rows = {name: [value] for name, value in line.items()}
    for path, where in ((write(tmp_path, "a.jsonl", [line]), ":1"), (write(tmp_path, "a.parquet", rows), "")):
        with pytest.raises(SettingsError) as caught:
            read_prompts(path, column)
        expected = f"{path}{where}: a line of data.task '{task}': its {unread} would not be read; give that task"
        assert str(caught.value).startswith(expected)


@pytest.mark.parametrize("line", [{"image": "a.png", "caption": "a cat"}, {"prompt": "a cat", "caption": "a dog"}])
def test_captions_of_images_may_be_drawn(tmp_path: Path, line: dict[str, object]) -> None:
    """If `column` names them, or if they have no image."""
    paths = write(tmp_path, "a.jsonl", [line]), write(tmp_path, "a.parquet", {name: [v] for name, v in line.items()})
    column = "prompt" if "prompt" in line else "caption"
    assert [[one.text for one in read_prompts(path, column)] for path in paths] == [["a cat"]] * 2


@pytest.mark.parametrize(
    ("name", "content", "column", "message"),
    [
        ("a.csv", "id,prompt\n1,a cat\n", "prompt", "a.csv: a file of prompts ends in .txt or .jsonl or .parquet; con"),
        ("a.txt", "", "prompt", "a.txt: no prompts; give at least one"),
        ("a.txt", "\n \n", "prompt", "a.txt: no prompts; give at least one"),
        (
            "a.txt",
            b"a cat\nk\xe4fer\n",
            "prompt",
            "a.txt is not UTF-8 text (invalid continuation byte at byte 7); s",
        ),
        ("a.jsonl", "", "prompt", "a.jsonl: no prompts; give at least one"),
        ("a.jsonl", "a cat\n", "prompt", "a.jsonl:1 is not valid JSON"),
        ("a.jsonl", '["a cat"]\n', "prompt", "a.jsonl:1: a list where an object belongs. A line of a .jsonl file is"),
        (
            "a.jsonl",
            [{"prompt": "a cat"}, {"caption": "a dog", "id": 1}],
            "prompt",
            "a.jsonl:2: no column 'prompt' among caption, id; name the prompts' one as [trainer.data] column",
        ),
        ("a.jsonl", "{}", "prompt", "a.jsonl:1: no column 'prompt' among none"),
        ("a.jsonl", [{"prompt": ""}], "prompt", "a.jsonl:1.prompt: the prompt is empty"),
        ("a.jsonl", [{"prompt": " \t"}], "prompt", "a.jsonl:1.prompt: the prompt is empty"),
        (
            "a.txt",
            "a cat\n" + "x" * 8193,
            "prompt",
            "a.txt:2: the prompt has 8193 characters, the limit is 8192; shorten",
        ),
        ("a.jsonl", [{"prompt": None}], "prompt", "a.jsonl:1.prompt: missing"),
        ("a.jsonl", [{"prompt": 3}], "prompt", "a.jsonl:1.prompt: a number where a string belongs"),
        ("a.jsonl", '{"prompt": "\\ud800"}', "prompt", "a lone surrogate; send valid Unicode"),
        ("a.jsonl", [{k: v for k, v in TWO.items() if k != "tag"}], "prompt", "a.jsonl:1.tag: missing"),
        ("a.jsonl", [TWO | {"image": "a.png", "truth": True}], "prompt", "a.jsonl:1: a line of data.task 'reflection'"),
        ("a.jsonl", [TWO | {"include": "dogs"}], "prompt", "a.jsonl:1.include: a string where a list belongs"),
        ("a.jsonl", [TWO | {"include": [{"class": "dog", "count": 0}]}], "prompt", "a.jsonl:1.include[0].count: 0"),
        (
            "a.parquet",
            "a cat on a mat\n",
            "prompt",
            "a.parquet cannot be read as parquet: Parquet magic bytes not found",
        ),
        ("a.parquet", {"url": ["x"], "n": [1]}, "prompt", "a.parquet: no column 'prompt' among url, n; name the"),
        ("a.parquet", {"prompt": ["a cat", None]}, "prompt", "a.parquet[1].prompt: null where a string belongs"),
        ("a.parquet", {"prompt": ["a cat", ""]}, "prompt", "a.parquet[1].prompt: the prompt is empty"),
        ("a.parquet", {"prompt": [1]}, "prompt", "a.parquet[0].prompt: a number where a string belongs"),
        ("a.parquet", {"prompt": pa.array([], pa.string())}, "prompt", "a.parquet: no prompts; give at least one"),
    ],
)
def test_a_bad_file_is_named(tmp_path: Path, name: str, content: object, column: str, message: str) -> None:
    path = write(tmp_path, name, content)
    with pytest.raises(SettingsError) as caught:
        read_prompts(path, column)
    assert message in str(caught.value)
    assert str(caught.value).startswith(str(tmp_path))


def test_a_file_that_vanished_is_named(tmp_path: Path) -> None:
    for suffix in ("txt", "jsonl", "parquet"):
        with pytest.raises(SettingsError, match=rf"gone\.{suffix}.*No such file"):
            read_prompts(tmp_path / f"gone.{suffix}", "prompt")
