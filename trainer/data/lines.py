"""Read the files of UniRL-Zero's scenarios: questions, edits, and images to reflect on. All are JSONL.

Images are files, relative to the JSONL's folder.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Final, NamedTuple

from synod.errors import SettingsError
from synod.reader import Node
from trainer.data.files import hint, json_node
from trainer.data.prompts import PLAIN_TAG, checked, geneval_of, numbered
from trainer.personalize.records import load_image
from trainer.types import Line

YES_NO: Final = ("Yes", "No")


class Form(NamedTuple):
    """How a task's lines are read: its reader, and what a line looks like, for messages."""

    read: Callable[[Node, Path], Line]
    example: str


def read_lines(path: Path, task: str, *, check_images: bool = False) -> tuple[Line, ...]:
    """Return the lines of a task's file, in order; `check_images` decodes each image once.

    Raises SettingsError, which names file, line and mistake.
    """
    form = FORMS[task]
    if path.suffix.lower() != ".jsonl":
        raise SettingsError(f"{path}: data.task '{task}' reads a .jsonl file; a line is {form.example}")
    with hint(f"A line of data.task '{task}' is {form.example}"):
        lines = tuple(form.read(json_node(text, f"{path}:{number}"), path.parent) for number, text in numbered(path))
    if not lines:
        raise SettingsError(f"{path}: no lines; a line of data.task '{task}' is {form.example}")
    for image in dict.fromkeys(line.image for line in lines if line.image is not None):
        if not image.is_file():
            raise SettingsError(f"{path} names the image {image}: no such file; paths are relative to {path.parent}")
        if check_images:
            load_image(image)
    return lines


def _question(node: Node, folder: Path) -> Line:
    of = node.fields("question", "image", "segments", "truth", "tag")
    segments = of.need("segments", lambda one: one.entries(Node.text))
    truth = of.need("truth", lambda one: one.entries(lambda entry: entry.number(0, 1)))
    if len(segments) != len(truth) or not any(truth):
        raise node.error(f"{len(segments)} segments and truth {list(truth)}; give one each, at least one of them true")
    tag, image = of.get("tag", Node.text) or PLAIN_TAG, of.get("image", Node.text)
    return Line(
        of.need("question", checked), tag, image=folder / image if image else None, segments=segments, truth=truth
    )


def _edit(node: Node, folder: Path) -> Line:
    of = node.fields("image", "caption", "target_caption", "prompt", "reverse_prompt", "tag")
    return Line(
        of.need("prompt", checked),
        of.get("tag", Node.text) or PLAIN_TAG,
        resolved=of.need("target_caption", checked),
        image=folder / of.need("image", Node.text),
        caption=of.need("caption", checked),
        reverse=of.need("reverse_prompt", checked),
    )


def _reflection(node: Node, folder: Path) -> Line:
    of = node.fields("prompt", "tag", "include", "exclude", "image", "truth")
    found = geneval_of(of) if "include" in of.mapping() else None
    right = float(of.need("truth", Node.boolean))
    return Line(
        of.need("prompt", checked),
        of.get("tag", Node.text) or PLAIN_TAG,
        geneval=found,
        image=folder / of.need("image", Node.text),
        segments=YES_NO,
        truth=(right, 1 - right),
    )


FORMS: Final = {
    "questions": Form(
        _question,
        '{"question": "Is it red?", "image": "cat.png", "segments": ["Yes", "No"], "truth": [1, 0]}, without an image '
        "for a question about none",
    ),
    "edits": Form(
        _edit,
        '{"image": "cat.png", "caption": "a cat", "target_caption": "a cat in snow", "prompt": "make it snow", '
        '"reverse_prompt": "remove the snow"}, and each has its source image',
    ),
    "reflection": Form(
        _reflection,
        '{"prompt": "two cats", "image": "cats.png", "truth": false}, where truth says whether the image shows the '
        "prompt; with tag and include of GenEval for its scorer",
    ),
}
