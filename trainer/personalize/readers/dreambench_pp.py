"""Read DreamBench++ as published (yuangpeng/dreambench_plus, 2024; Peng et al.):

    ROOT/images/<category>/NN.jpg     categories: live_subject/animal, live_subject/human, object, style
    ROOT/captions/<category>/NN.txt   line 1 is the subject, such as kitten; the others are prompts that name it

A subject has one image. Its name is that of the published outputs, such as <live_subject_animal_00_kitten>, and stands
in the prompts for the subject's words.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Final

from synod.contracts import Concept, ConceptKind
from synod.errors import SettingsError
from synod.scoring import show
from trainer.data.files import text
from trainer.personalize.folder import PLAIN
from trainer.personalize.readers.shared import Log
from trainer.personalize.records import IMAGE_SUFFIXES, ConceptPrompt, ConceptRecord

_KINDS: Final[Mapping[str, ConceptKind]] = {"animal": "animal", "human": "person"}


def read(root: Path, log: Log = show.notify) -> dict[str, ConceptRecord]:
    """Return every subject by name. `log` receives which images and prompts are left out. Raises SettingsError."""
    images = sorted(path for path in (root / "images").rglob("*") if path.suffix.lower() in IMAGE_SUFFIXES)
    found: dict[str, ConceptRecord] = {}
    for image in images:
        captions = root / "captions" / image.relative_to(root / "images").with_suffix(".txt")
        if not captions.exists():
            log(f"{image} has no {captions}: it is left out")
            continue
        record = _record(image, captions, log)
        if record.name in found:
            raise SettingsError(f"{image} and {found[record.name].train[0]} are both {record.name}; rename one")
        found[record.name] = record
    if not found:
        raise SettingsError(
            f"{root} has no images/**/NN.jpg with captions/**/NN.txt; give the set's own root as --data"
        )
    return found


def _record(image: Path, captions: Path, log: Log) -> ConceptRecord:
    subject, *lines = [line.strip() for line in text(captions).splitlines() if line.strip()] or [""]
    if not subject:
        raise SettingsError(f"{captions} is empty; line 1 is the subject, and the others are prompts that name it")
    category, slug = image.parent.name, re.sub(r"[<>|\s]+", "_", subject.lower())
    prefix = f"live_subject_{category}" if category in _KINDS else category
    name = f"<{prefix}_{image.stem}_{slug}>"
    word = re.compile(rf"\b{re.escape(subject)}\b", re.IGNORECASE)
    prompts = [word.sub(lambda _: name, line, count=1) for line in lines if word.search(line)]
    if left := len(lines) - len(prompts):
        log(f"{captions}: {left} of {len(lines)} prompts do not name '{subject}': they are left out")
    kept = (ConceptPrompt(PLAIN.format(name), "plain"), *(ConceptPrompt(one, "pure") for one in prompts))
    concept = Concept(_KINDS.get(category, "object"), subject, name)
    return ConceptRecord(concept, image.parent, train=(image,), prompts=kept)
