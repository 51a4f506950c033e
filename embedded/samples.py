"""The shipped sample items: a folder of PNG files and `samples.json`, wire items whose pictures are file names."""

from __future__ import annotations

import base64
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from synod.codec import CODECS
from synod.contracts import ScoreItem

CONCEPT_SCORERS = ("tier", "ber", "der")
GENEVAL_SCORERS = ("ber", "geneval")


@dataclass(frozen=True)
class Sample:
    """One item with the scorers that apply to it. `note` says what is wrong where a sample is wrong on purpose."""

    name: str
    item: ScoreItem
    scorers: tuple[str, ...]
    ensemble: str | None
    note: str | None


def load_samples(folder: Path) -> list[Sample]:
    """Read every sample of `folder`, pictures as their encoded bytes."""
    return [_sample(folder, entry) for entry in json.loads((folder / "samples.json").read_text())]


def _sample(folder: Path, entry: dict[str, Any]) -> Sample:
    def encoded(name: str) -> str:
        return base64.b64encode((folder / name).read_bytes()).decode()

    wire = {key: value for key, value in entry.items() if key != "note"}
    wire["image"] = encoded(entry["image"])
    if "references" in entry:
        wire["references"] = [encoded(name) for name in entry["references"]]
    document = json.dumps({"items": [wire], "scorers": ["ber"]}).encode()
    item = CODECS["application/json"].decode_request(document).items[0]
    person = item.concept is not None and item.concept.kind == "person"
    scorers = GENEVAL_SCORERS if item.geneval else (*CONCEPT_SCORERS, "fer") if person else CONCEPT_SCORERS
    name = Path(entry["image"]).stem
    return Sample(name, item, scorers, "sync_r1" if item.concept else None, entry.get("note"))
