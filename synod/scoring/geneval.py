"""Read published GenEval metadata lines as items. Also GenEval++'s, where a detector can decide them.

    {"tag": "counting", "include": [{"class": "clock", "count": 2}], "exclude": [..], "prompt": "a photo of two clocks"}

Such a line names no image. Its images lie where GenEval's generator puts them: in `samples/` next to a
`metadata.jsonl`, or, for the eighth line of a file, in `00007/samples/` next to that file. An `image` of the line
itself takes precedence.

GenEval++'s clauses may require a `region` or a `size`, which no detection rule decides, and may omit a count of one. A
line with a `region` or `size` becomes an item without `geneval`, for a judge scorer. A null, with which tables fill
their rows, equals an absent key.

A line of GenEval 2 ({"prompt", "atom_count", "vqa_list": [[question, answer]..], "skills"}) keeps its questions.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final

METADATA: Final = ("tag", "include", "exclude")
GENEVAL_2: Final = ("vqa_list", "skills", "atom_count")  # no scorer reads the last two
JUDGE_FIELDS: Final = frozenset({"region", "size"})


def is_metadata(fields: Mapping[str, Any]) -> bool:
    """Return whether a line is GenEval metadata rather than an item."""
    return any(fields.get(name) is not None for name in ("include", "vqa_list"))


def item_fields(fields: Mapping[str, Any]) -> dict[str, Any]:
    """Return a metadata line as an item's fields, without nulls.

    The metadata stands under `geneval`, unless a judge must decide it; other fields stay.
    """
    present = _without_nulls(fields)
    if "vqa_list" in present:
        rest = {name: value for name, value in present.items() if name not in GENEVAL_2}
        return {**rest, "geneval": {"tag": "geneval2", "include": [], "vqa_list": present["vqa_list"]}}
    metadata = with_counts({name: present[name] for name in METADATA if name in present})
    rest = {name: value for name, value in present.items() if name not in METADATA}
    return rest if needs_judge(present) else {**rest, "geneval": metadata}


def with_counts(metadata: Mapping[str, Any]) -> dict[str, Any]:
    """Return the metadata with a count of 1 in clauses that have none, and without the clauses' nulls."""
    return {name: _counted(value) if name in ("include", "exclude") else value for name, value in metadata.items()}


def needs_judge(fields: Mapping[str, Any]) -> bool:
    """Return whether a clause requires what no detection rule decides."""
    clauses = fields["include"]
    return isinstance(clauses, list) and any(
        isinstance(c, Mapping) and any(c.get(name) is not None for name in JUDGE_FIELDS) for c in clauses
    )


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
