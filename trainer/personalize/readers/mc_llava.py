"""Read MC-LLaVA's set as published (arctanxarc/MC-LLaVA, March 2025), its single concepts:

    ROOT[/two_concept | /three_concept]/concept/train/<c>/N.png  (N_mask.png are masks)
    .../concept/test/<c>/N.png  choice.json  vqa.json {path: {Human, AI}}  qa.json [{question, answer}]
    .../concept_type.json {c: type}

The README describes qa.json and vqa.json the other way round; the set's code reads concept_type.json and cases.json
where its files have scenarios.json. Images of several concepts (multi/) are left out, as both papers do.
"""

from __future__ import annotations

from pathlib import Path

from synod.contracts import Concept
from synod.errors import SettingsError
from synod.reader import Node
from synod.scoring import show
from trainer.data.files import hint, json_node, text
from trainer.personalize.folder import PLAIN
from trainer.personalize.readers.shared import (
    NO_CLASSES,
    UNKNOWN_CLASS,
    Log,
    class_word,
    concept_folders,
    kind_of,
    questions,
    read_json,
)
from trainer.personalize.records import ConceptPrompt, ConceptRecord, Question, images_in
from trainer.personalize.templates import RECOGNITION

PARTS = ("two_concept", "three_concept")


@hint("trainer/personalize/readers/mc_llava.py has the layout")
def read(root: Path, log: Log = show.notify) -> dict[str, ConceptRecord]:
    """Return every concept by name. `log` receives what is done without files that are absent. Raises SettingsError."""
    parts = [root / name for name in PARTS if (root / name).is_dir()] or [root]
    found: dict[str, ConceptRecord] = {}
    for part in parts:
        types = read_json(part / "concept_type.json", NO_CLASSES, log)
        for folder in concept_folders(part / "concept/train"):
            record = _record(folder, part / "concept/test" / folder.name, types, log)
            if record.name in found:
                raise SettingsError(f"{folder} and {found[record.name].folder} are both {record.name}; rename one")
            found[record.name] = record
    return found


def _record(folder: Path, test: Path, types: Node | None, log: Log) -> ConceptRecord:
    name, word = f"<{folder.name}>", (types and types.get(folder.name, class_word)) or UNKNOWN_CLASS
    return ConceptRecord(
        Concept(kind_of(word), word, name),
        folder,
        train=images_in(folder),
        test=images_in(test),
        recognition=tuple(one.replace("{}", name) for one in RECOGNITION),
        questions=tuple(
            one
            for file in ("choice.json", "vqa.json", "qa.json")
            for one in _questions(test / file, name, None if file == "qa.json" else test, log)
        ),
        prompts=(ConceptPrompt(PLAIN.format(name), "plain"),),
    )


def _questions(path: Path, name: str, images: Path | None, log: Log) -> tuple[Question, ...]:
    if not path.exists():
        log(f"{path} is not there: its questions are not asked")
        return ()
    return questions(json_node(text(path), str(path)), name, images)
