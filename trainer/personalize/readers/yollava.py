"""Read Yo'LLaVA's set as published (thaoshibe/YoLLaVA, December 2024):

    ROOT[/yollava-data]/train/<c>/*.png  train/<c>/negative_example/*.png  test/<c>/*.png
    ROOT[/yollava-data]/yollava-visual-qa.json   {c: {path: {question, options, correct_answer}}}, or flat {path: {..}}

Paths in the JSON are of the authors' machines: the last two parts, <c>/N.png, count. The set does not say what a
concept is; classes.json, {c: {"kind", "class"}}, is ours and optional. Its questions without images were not published.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from synod.contracts import CONCEPT_KINDS, Concept
from synod.reader import Node
from synod.scoring import show
from trainer.data.files import hint
from trainer.personalize.folder import PLAIN
from trainer.personalize.readers.shared import (
    NO_CLASSES,
    UNKNOWN_CLASS,
    Log,
    class_word,
    concept_folders,
    questions,
    read_json,
)
from trainer.personalize.records import ConceptPrompt, ConceptRecord, images_in
from trainer.personalize.templates import RECOGNITION

VISUAL_QA, CLASSES = "yollava-visual-qa.json", "classes.json"


@hint("trainer/personalize/readers/yollava.py has the layout")
def read(root: Path, log: Log = show.notify) -> dict[str, ConceptRecord]:
    """Return every concept by name. `log` receives what is done without files that are absent. Raises SettingsError."""
    data = root / "yollava-data" if (root / "yollava-data").is_dir() else root
    at = root if (root / VISUAL_QA).exists() else data
    asked = read_json(at / VISUAL_QA, "no visual questions are asked", log)
    classes = read_json(at / CLASSES, NO_CLASSES, log)
    by_concept = {} if asked is None else _by_concept(asked)
    return {
        f"<{one.name}>": _record(data, one, by_concept.get(one.name), classes)
        for one in concept_folders(data / "train")
    }


def _record(data: Path, folder: Path, asked: Node | None, classes: Node | None) -> ConceptRecord:
    name, test = f"<{folder.name}>", data / "test" / folder.name
    known = None if classes is None else classes.get(folder.name, lambda one: one.fields("kind", "class"))
    kind = known.need("kind", lambda one: one.choice(CONCEPT_KINDS)) if known else "object"
    return ConceptRecord(
        Concept(kind, known.need("class", class_word) if known else UNKNOWN_CLASS, name),
        folder,
        train=images_in(folder),
        test=images_in(test),
        hard=images_in(folder / "negative_example"),
        recognition=tuple(one.replace("{}", name) for one in RECOGNITION),
        questions=() if asked is None else questions(asked, name, test),
        prompts=(ConceptPrompt(PLAIN.format(name), "plain"),),
    )


def _by_concept(node: Node) -> dict[str, Node]:
    """Return the questions by concept, of either form."""
    found: dict[str, dict[str, Any]] = {}
    for key, value in node.mapping().items():
        if isinstance(value, Mapping) and "question" in value:
            found.setdefault(Path(key).parent.name, {})[key] = value
        else:
            found.setdefault(key, {}).update(Node(value, f"{node.path}.{key}").mapping())
    return {name: Node(asked, node.path) for name, asked in found.items()}
