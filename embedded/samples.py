"""The shipped sample items: JSON files of items with image paths relative to the file's folder.

`SAMPLES` are drawings of the synthetic world. `PHOTOGRAPHS` are scikit-image's (public domain), scored by DER alone:
the embedded models were trained on drawings, but DER's features still distinguish photographed subjects.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from synod.contracts import ScoreItem
from synod.reader import Node
from synod.records import read_item

DATA = Path(__file__).parent / "data"
SAMPLES = DATA / "samples/samples.json"
PHOTOGRAPHS = Path(__file__).with_name("photographs.json")
CONCEPT_SCORERS = ("tier", "ber", "der")
GENEVAL_SCORERS = ("ber", "geneval")
PHOTOGRAPH_SCORERS = ("der",)


@dataclass(frozen=True)
class Sample:
    """One item with its scorers. `note` says what is wrong in a deliberately wrong sample."""

    name: str
    item: ScoreItem
    scorers: tuple[str, ...]
    ensemble: str | None
    note: str | None


def load_samples(path: Path) -> list[Sample]:
    """Read the samples of a JSON file, with images as encoded bytes."""
    return [_sample(path.parent, entry) for entry in json.loads(path.read_text())]


def _sample(folder: Path, entry: dict[str, Any]) -> Sample:
    def read(node: Node) -> bytes:
        return (folder / node.text()).read_bytes()

    item = read_item(Node({name: value for name, value in entry.items() if name != "note"}), read)
    scorers: tuple[str, ...]
    if item.concept is None:
        scorers = GENEVAL_SCORERS if item.geneval else PHOTOGRAPH_SCORERS
    else:
        scorers = (*CONCEPT_SCORERS, "fer") if item.concept.kind == "person" else CONCEPT_SCORERS
    name = Path(entry["image"]).stem
    return Sample(name, item, scorers, "sync_r1" if item.concept else None, entry.get("note"))
