"""Read DreamBench as published (google/dreambooth; Ruiz et al. 2023):

    ROOT/dataset/<subject>/NN.jpg
    ROOT/dataset/prompts_and_classes.txt     lines subject_name,class; then two Python lists of prompts with {0} {1}

The first list is for objects, the second for live subjects, which are the cats and dogs. A prompt's "{0} {1}", a rare
word and the class, becomes the subject's name.
"""

from __future__ import annotations

import re
from pathlib import Path

from synod.contracts import Concept
from synod.errors import SettingsError
from synod.scoring import show
from trainer.data.files import text
from trainer.personalize.folder import PLAIN
from trainer.personalize.readers.shared import Log, concept_folders
from trainer.personalize.records import ConceptPrompt, ConceptRecord, images_in

FILE, LIVE = "prompts_and_classes.txt", ("cat", "dog")
_CLASS = re.compile(r"^([\w-]+),\s*([\w ]+?)\s*$", re.MULTILINE)
_LIST = re.compile(r"\[(.*?)\]", re.DOTALL)
_PROMPT = re.compile(r"""(['"])((?:(?!\1).)*\{0\}(?:(?!\1).)*)\1""")


def read(root: Path, log: Log = show.notify) -> dict[str, ConceptRecord]:
    """Return every subject by name. `log` receives which folders have no class. Raises SettingsError."""
    data = root / "dataset" if (root / "dataset").is_dir() else root
    said = text(data / FILE)
    classes = {name: word for name, word in _CLASS.findall(said) if name != "subject_name"}
    lists = [[found[1] for found in _PROMPT.findall(part)] for part in _LIST.findall(said)]
    lists = [prompts for prompts in lists if prompts]
    if len(lists) != 2:
        raise SettingsError(
            f"{data / FILE} has {len(lists)} lists of prompts with {{0}}; expected two, of objects and of live subjects"
        )
    found = {}
    for folder in concept_folders(data):
        if folder.name in classes:
            record = _record(folder, classes[folder.name], lists)
            found[record.name] = record
        else:
            log(f"{folder} has no class in {FILE}: it is left out")
    return found


def _record(folder: Path, word: str, lists: list[list[str]]) -> ConceptRecord:
    name, is_live = f"<{folder.name}>", word in LIVE
    prompts = [ConceptPrompt(_named(one, name), "pure") for one in lists[is_live]]
    plain = ConceptPrompt(PLAIN.format(name), "plain")
    concept = Concept("animal" if is_live else "object", word, name)
    return ConceptRecord(concept, folder, train=images_in(folder), prompts=(plain, *prompts))


def _named(prompt: str, name: str) -> str:
    return " ".join(prompt.replace("{0} {1}", name).replace("{0}", name).replace("{1}", "").split())
