"""Score the answers to a suite's items by the service: OUT/rows.jsonl, a line for each item of each arm.

A line is one of a score log (`synod.scoring.log`), so that `synod replay OUT/rows.jsonl` reads it, with the item, its
arm, seed, query, prompt as drawn and reply in `row`. What has all its scores is not scored again, unless its answer has
changed. When all is scored, the lines are put into the order of the plan, so an interrupted evaluation leaves the same
bytes as another. An answer that does not exist is a failure `no_answer` of each scorer.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from typing import Any, Final

from tqdm import tqdm

from synod.client import SynodClient
from synod.contracts import About, Concept, ItemResult, Outcome, Score, ScoreFailure, ScoreItem, ScoreRequest
from synod.digest import digest_of
from synod.errors import NoReferenceFace, SettingsError
from synod.reader import Node
from synod.records import read, write
from synod.scoring import show
from synod.scoring.inputs import Loaded, Source
from synod.scoring.log import ScoreLog
from synod.scoring.run import score_all
from trainer.evaluate.personal.answers import Answer, folder_of, read_answers
from trainer.evaluate.personal.arms import Arm
from trainer.evaluate.personal.items import Item
from trainer.evaluate.personal.measures import Row
from trainer.evaluate.runner import ROWS
from trainer.images import write_whole
from trainer.personalize.records import ConceptRecord, load_images

FACELESS: Final = NoReferenceFace.code
MAX_REFERENCES: Final = 16  # of an item; the service refuses more


@dataclass(frozen=True, slots=True)
class Answered:
    """An item of an arm with its answer; `file` is the drawn image, `seed` what its random numbers follow from."""

    arm: Arm
    item: Item
    answer: Answer
    file: Path | None
    seed: tuple[int, ...]

    @property
    def missing(self) -> bool:
        """Whether there is no answer to score."""
        lacks_reply = self.item.right is not None and self.answer.reply is None
        return lacks_reply or (self.item.prompt is not None and (self.file is None or not self.file.exists()))


def answered(plans: Mapping[Arm, Sequence[Item]], answers: Path, seed: int) -> list[Answered]:
    """Return all items of all arms with their answers. Raises SettingsError."""
    found = []
    for arm, items in plans.items():
        folder = folder_of(answers, arm)
        known = read_answers(items, folder)
        for item in items:
            file = None if item.file is None else folder / item.file
            found.append(Answered(arm, item, known.get(item.key, Answer()), file, item.seed(seed)))
    return found


def score(
    found: Sequence[Answered], records: Mapping[str, ConceptRecord], client: SynodClient, served: set[str], out: Path
) -> list[Row]:
    """Score what has no final scores by the scorers that are `served`, and return all rows in order.

    Raises the SynodError of a service that fails; what was scored is kept.
    """
    shown = {name: _references(record, client, served) for name, record in records.items()}
    sources = [_source(one, records[one.item.concept], shown[one.item.concept], out) for one in found]
    lines = _lines(out / ROWS)
    left = [
        (one, source, tuple(name for name in one.item.scorers if name in served))
        for one, source in zip(found, sources, strict=True)
    ]
    left = [(one, source, names) for one, source, names in left if not _is_final(lines.get(_key(one)), source, names)]
    with ScoreLog(out / ROWS) as log, tqdm(total=len(found), initial=len(found) - len(left), desc="scoring") as bar:
        for names, group in groupby(left, key=lambda one: one[2]):
            template = ScoreRequest((), names)
            for one, loaded, result in _results(client, list(group), template):
                log.write(loaded, template, result, row=_row(one))
                bar.update()
    lines = _lines(out / ROWS)
    write_whole(out / ROWS, b"".join(lines[_key(one)].text for one in found))
    return [Row(one.arm, one.item, one.answer.reply, lines[_key(one)].outcomes) for one in found]


Left = tuple[Answered, Source, tuple[str, ...]]


def _results(
    client: SynodClient, left: Sequence[Left], template: ScoreRequest
) -> Iterator[tuple[Answered, Loaded, ItemResult]]:
    """Yield the result of each, in order; what has no answer or no scorer is not sent."""
    sent = [one for one in left if template.scorers and not one[0].missing]
    scored = score_all(client, [source for _, source, _ in sent], template)
    for one, source, names in left:
        if names and not one.missing:
            done = next(scored)
            assert done.result is not None
            yield one, done.loaded, done.result
        else:
            failure = ScoreFailure("no_answer", f"{one.arm}/{one.item.key} has no answer; add it and run again", True)
            yield one, Loaded(source, ScoreItem(), {}), ItemResult(dict.fromkeys(names, failure))
    assert next(scored, None) is None


def _row(one: Answered) -> dict[str, Any]:
    item = one.item
    return {
        "arm": one.arm,
        "column": item.column,
        "concept": item.concept,
        "number": item.number,
        "image": item.image,
        "group": item.group,
        "seed": list(one.seed),
        "query": item.query,
        "prompt": one.answer.drawn or item.prompt,
        "shown": None if item.shown is None else item.shown.name,
        "reply": one.answer.reply,
    }


@dataclass(frozen=True, slots=True)
class _References:
    every: tuple[Path, ...]
    faces: tuple[Path, ...]


def _references(record: ConceptRecord, client: SynodClient, served: set[str]) -> _References:
    """Return a concept's training images that can be read, and of a person's those that `fer` finds a face in.

    Raises SettingsError if none can be read.
    """
    every = tuple(path for path, _ in load_images(record.train[:MAX_REFERENCES], show.notify, skip_bad=True))
    if not every:
        raise SettingsError(f"{record.folder}: no image of {record.name} can be read; give one to compare with")
    if record.concept.kind != "person" or "fer" not in served:
        return _References(every, every)
    images = [path.read_bytes() for path in every]
    request = ScoreRequest(tuple(ScoreItem(one, references=(one,)) for one in images), ("fer",))
    results = client.score(request).results
    faceless = [isinstance(r.scores["fer"], ScoreFailure) and r.scores["fer"].code == FACELESS for r in results]
    faces = tuple(path for path, lacks in zip(every, faceless, strict=True) if not lacks)
    return _References(every, faces or every)  # without any face every score fails, and says so


def _source(one: Answered, record: ConceptRecord, shown: _References, out: Path) -> Source:
    """Return what is scored; images are paths relative to `out`."""
    item, fields = one.item, dict[str, Any]()
    if one.file is not None:
        fields["image"] = os.path.relpath(one.file, out)
        if {"clip_i", "der", "fer"} & set(item.scorers):
            references = shown.faces if "fer" in item.scorers else shown.every
            fields["references"] = [os.path.relpath(path, out) for path in references]
    fields["prompt"] = item.target if item.target is not None else item.query
    if item.right is not None:
        fields["reasoning"] = {"text": one.answer.reply or "", "segments": [item.right], "truth": [1.0]}
    about = About(record.info or None, record.facts) if "knowledge" in item.scorers else None
    known = record.concept
    fields["concept"] = write(Concept, Concept(known.kind, known.class_word, known.token, about))
    return Source(fields, out, f"{one.arm}/{item.key}")


@dataclass(frozen=True, slots=True)
class _Line:
    text: bytes
    item: Mapping[str, Any]
    digests: Mapping[str, str]
    outcomes: Mapping[str, Outcome]


def _key(one: Answered) -> str:
    return f"{one.arm}/{one.item.key}"


def _lines(path: Path) -> dict[str, _Line]:
    """Return the last complete line of each item of each arm."""
    found: dict[str, _Line] = {}
    for text in path.read_bytes().split(b"\n")[:-1] if path.exists() else ():
        tree = json.loads(text)
        row = tree["row"]
        result: ItemResult = read(ItemResult, Node({"scores": tree["scores"], "reward": None}))
        key = f"{row['arm']}/{row['column']}/{row['concept']}/{row['number']}/{row['image']}"
        found[key] = _Line(text + b"\n", tree["item"], tree["digests"], result.scores)
    return found


def _is_final(line: _Line | None, source: Source, names: Sequence[str]) -> bool:
    """Return whether a line has all scores of the answer as it is now."""
    if line is None or not all(isinstance(line.outcomes.get(name), Score) for name in names):
        return False
    if json.loads(json.dumps(source.fields)) != line.item:
        return False
    image = source.fields.get("image")
    if not names or image is None:
        return True
    path = source.folder / str(image)
    return path.exists() and digest_of(path.read_bytes()) == line.digests.get(str(image))
