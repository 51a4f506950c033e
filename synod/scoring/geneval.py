"""A line of GenEval's metadata, as it is published -> items. Also GenEval++'s, as far as a detector can decide it.

    {"tag": "counting", "include": [{"class": "clock", "count": 2}], "exclude": [..], "prompt": "a photo of two clocks"}

Such a line names no image: they are those that its own generator lays out, `samples/` beside a `metadata.jsonl`,
or `00007/samples/` beside a file of many lines for its eighth. An `image` of the line's own goes before both.

GenEval++'s clauses may ask for a `region` or a `size`, and may leave out a count of one. No rule here reads a region or
a size from boxes, and a verdict on the other half of a prompt would be none: such a line becomes an item without
`geneval`, for a judge. A null, with which tables pad their rows, is the same as an absent key.

A line of GenEval 2 ({"prompt", "atom_count", "vqa_list": [[question, answer]..], "skills"}) keeps its questions.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final

METADATA: Final = ("tag", "include", "exclude")
GENEVAL_2: Final = ("vqa_list", "skills", "atom_count")  # the last two are for analysis, and no scorer reads them
FOR_A_JUDGE: Final = frozenset({"region", "size"})


def is_metadata(fields: Mapping[str, Any]) -> bool:
    """Whether a line is GenEval's rather than an item."""
    return any(fields.get(name) is not None for name in ("include", "vqa_list"))


def item_fields(fields: Mapping[str, Any]) -> dict[str, Any]:
    """Return the line as an item's fields: its metadata under `geneval`, unless it takes a judge; all else as it
    stands, without nulls."""
    given = _present(fields)
    if "vqa_list" in given:
        rest = {name: value for name, value in given.items() if name not in GENEVAL_2}
        return {**rest, "geneval": {"tag": "geneval2", "include": [], "vqa_list": given["vqa_list"]}}
    metadata = with_counts({name: given[name] for name in METADATA if name in given})
    rest = {name: value for name, value in given.items() if name not in METADATA}
    return rest if takes_a_judge(given) else {**rest, "geneval": metadata}


def with_counts(metadata: Mapping[str, Any]) -> dict[str, Any]:
    """Return the metadata with its clauses' counts, 1 where a clause has none, and without the clauses' nulls."""
    return {name: _counted(value) if name in ("include", "exclude") else value for name, value in metadata.items()}


def takes_a_judge(fields: Mapping[str, Any]) -> bool:
    """Whether a clause asks for what no rule set decides."""
    clauses = fields["include"]
    return isinstance(clauses, list) and any(
        isinstance(c, Mapping) and any(c.get(name) is not None for name in FOR_A_JUDGE) for c in clauses
    )


def samples(folder: Path, index: int) -> Path:
    """Where the images of line `index` (from 0) of a file in `folder` lie."""
    beside = folder / "samples"
    return beside if beside.is_dir() else folder / f"{index:05d}" / "samples"


def _counted(clauses: object) -> object:
    if not isinstance(clauses, Sequence) or isinstance(clauses, str):
        return clauses
    return [{"count": 1, **_present(clause)} if isinstance(clause, Mapping) else clause for clause in clauses]


def _present(clause: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in clause.items() if value is not None}
