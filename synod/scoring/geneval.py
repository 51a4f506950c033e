"""Read published GenEval metadata lines as items. Also GenEval++'s, where a detector can decide them.

    {"tag": "counting", "include": [{"class": "clock", "count": 2}], "exclude": [..], "prompt": "a photo of two clocks"}

Such a line names no image. Its images lie where GenEval's generator puts them: in `samples/` next to a
`metadata.jsonl`, or, for the eighth line of a file, in `00007/samples/` next to that file. An `image` of the line
itself takes precedence.

GenEval++'s clauses may require a `region` or a `size`, which no detection rule decides, and may omit a count of one. A
line with a `region` or `size` becomes an item with the questions of `checklist`, which a judge answers. A null, with
which tables fill their rows, equals an absent key.

A line of GenEval 2 ({"prompt", "atom_count", "vqa_list": [[question, answer]..], "skills"}) keeps its questions.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, Final

METADATA: Final = ("tag", "include", "exclude")
GENEVAL_2: Final = ("vqa_list", "skills", "atom_count")  # no scorer reads the last two
JUDGE_FIELDS: Final = frozenset({"region", "size"})
NUMBERS: Final = ("one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten")


def is_metadata(fields: Mapping[str, Any]) -> bool:
    """Return whether a line is GenEval metadata rather than an item."""
    return any(fields.get(name) is not None for name in ("include", "vqa_list"))


def item_fields(fields: Mapping[str, Any]) -> dict[str, Any]:
    """Return a metadata line as an item's fields, without nulls.

    The metadata stands under `geneval`, with questions in place of clauses that a judge must decide; other fields stay.
    """
    present = _without_nulls(fields)
    if "vqa_list" in present:
        rest = {name: value for name, value in present.items() if name not in GENEVAL_2}
        return {**rest, "geneval": {"tag": "geneval2", "include": [], "vqa_list": present["vqa_list"]}}
    metadata = with_counts({name: present[name] for name in METADATA if name in present})
    rest = {name: value for name, value in present.items() if name not in METADATA}
    if needs_judge(present):
        with suppress(TypeError, ValueError, IndexError):  # the clauses are wrong, and their reader names the mistake
            metadata = {**metadata, "include": [], "exclude": [], "vqa_list": checklist(metadata)}
    return {**rest, "geneval": metadata}


def checklist(metadata: Mapping[str, Any]) -> list[list[str]]:
    """Return what a line requires as questions with their expected answers, [[question, answer], ..].

    One for the count of each class, one for each colour, position, region and size, and one for each class that must
    not be there: GenEval++'s checklist, in which one missing requirement makes an image wrong. The wording is our own.
    """
    include = metadata["include"]
    names = [clause["class"] for clause in include]
    asked = [
        [f"How many objects of the class '{name}' are in the image?", _number(include, name)]
        for name in dict.fromkeys(names)
    ]
    for clause, name in zip(include, names, strict=True):
        if color := clause.get("color"):
            asked.append([f"How many of the objects of the class '{name}' are {color}?", _number([clause], name)])
        if position := clause.get("position"):
            relation, target = position
            asked.append([f"Is the '{name}' {relation} the '{names[target]}'?", "Yes"])
        if region := clause.get("region"):
            asked.append([f"Is the '{name}' in this part of the image: {region}?", "Yes"])
        if size := clause.get("size"):
            asked.append([f"Is the '{name}' of this size, compared with what else is in the image: {size}?", "Yes"])
    absent = dict.fromkeys(clause["class"] for clause in metadata.get("exclude", ()) if clause["class"] not in names)
    return [*asked, *([f"Is the image without any '{name}'?", "Yes"] for name in absent)]


def _number(clauses: Sequence[Mapping[str, Any]], name: str) -> str:
    """Return how many objects of a class the clauses ask for, in words up to ten."""
    count = sum(clause.get("count", 1) for clause in clauses if clause["class"] == name)
    return NUMBERS[count - 1] if 1 <= count <= len(NUMBERS) else str(count)


def with_counts(metadata: Mapping[str, Any]) -> dict[str, Any]:
    """Return the metadata with a count of 1 in clauses that have none, and without the clauses' nulls."""
    return {name: _counted(value) if name in ("include", "exclude") else value for name, value in metadata.items()}


def needs_judge(fields: Mapping[str, Any]) -> bool:
    """Return whether a clause requires what no detection rule decides; not of clauses that cannot be read."""
    clauses = fields.get("include")
    if not isinstance(clauses, list) or not all(isinstance(c, Mapping) and _is_class(c.get("class")) for c in clauses):
        return False
    return any(c.get(name) is not None for name in JUDGE_FIELDS for c in clauses)


def _is_class(name: object) -> bool:
    return isinstance(name, str) and bool(name)


def samples_dir(folder: Path, index: int) -> Path:
    """Return where the images of line `index` (from 0) of a file in `folder` lie."""
    shared = folder / "samples"
    return shared if shared.is_dir() else folder / f"{index:05d}" / "samples"


def _counted(clauses: object) -> object:
    if not isinstance(clauses, Sequence) or isinstance(clauses, str):
        return clauses
    return [{"count": 1, **_without_nulls(clause)} if isinstance(clause, Mapping) else clause for clause in clauses]


def _without_nulls(fields: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in fields.items() if value is not None}
