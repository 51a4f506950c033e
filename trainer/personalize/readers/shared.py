"""Shared by the readers of published sets: questions in the forms that they use, and stale image paths."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Final

from synod.contracts import ConceptKind
from synod.errors import SettingsError
from synod.reader import Node
from trainer.data.files import json_node, text
from trainer.personalize.records import Question

Log = Callable[[str], None]
UNKNOWN_CLASS: Final = "thing"  # of a concept whose class its set does not state
NO_CLASSES: Final = f'every concept is an object of the class "{UNKNOWN_CLASS}"'
_KINDS: Mapping[str, ConceptKind] = {
    **dict.fromkeys(("person", "human", "people", "man", "woman"), "person"),
    **dict.fromkeys(("animal", "pet", "dog", "cat", "live_subject"), "animal"),
}


def kind_of(word: str) -> ConceptKind:
    """Return the kind of a concept from a set's own word for it; "object" for any other word."""
    return _KINDS.get(word.strip().lower(), "object")


def class_word(node: Node) -> str:
    """Return a class word, without blanks around it. Raises InvalidRequest for one without characters."""
    if not (word := node.text().strip()):
        raise node.error("no word of a class; give one, such as dog, or remove the key")
    return word


def read_json(path: Path, without: str, log: Log) -> Node | None:
    """Return a file of a set; None if it is absent, and then `log` receives what is done `without` it."""
    if path.exists():
        return json_node(text(path), str(path))
    log(f"{path} is not there: {without}")
    return None


def question(node: Node, name: str, image: Path | None) -> Question:
    """Read {Human, AI}, {question, answer}, or {question, options: {A, B}, correct_answer}; <sks> is the name."""
    keys = node.mapping().keys()
    asked = node.need("Human" if "Human" in keys else "question", Node.text).replace("<image>", "").strip()
    options = node.get("options", lambda found: found.table(Node.text))
    if options is None:
        found = Question(asked, node.need("AI" if "AI" in keys else "answer", Node.text), image)
    else:
        right = node.need("correct_answer", Node.text)
        if right not in options:
            raise node.error(f"the right answer '{right}' is not among the options {', '.join(options)}")
        listed = " ".join(f"{letter}. {option}" for letter, option in options.items())
        found = Question(f"{asked} {listed}", right, image, is_choice=True)
    asked, right = (one.replace("<sks>", name) for one in (found.text, found.answer))
    return replace(found, text=asked, answer=right)


def questions(node: Node, name: str, folder: Path | None) -> tuple[Question, ...]:
    """Read {image path: question or questions}, or a list of questions without images (`folder` None)."""
    if folder is None:
        listed = node if isinstance(node.value, list) else Node(list(node.mapping().values()), node.path)
        return tuple(question(one, name, None) for one in listed.entries(lambda entry: entry))
    found = []
    for path in node.mapping():
        image = folder / Path(str(path)).name  # published paths are of the authors' machines
        if not image.exists():
            raise SettingsError(f"{node.path}: {path} is not among the images of {folder}")
        one = node.need(str(path), lambda entry: entry)
        asked = one.entries(lambda entry: entry) if isinstance(one.value, list) else (one,)
        found += [question(entry, name, image) for entry in asked]
    return tuple(found)


def concept_folders(folder: Path) -> list[Path]:
    """Return the folders of a folder. Raises SettingsError if there is none."""
    found = sorted(path for path in folder.iterdir() if path.is_dir()) if folder.is_dir() else []
    if not found:
        raise SettingsError(f"{folder} has no folder of a concept; give the set's own root as --data")
    return found
