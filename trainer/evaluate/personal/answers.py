"""Answers to a suite's items, by a policy or by another model. A folder of answers has

    replies.jsonl   a line for each item with a question: {"column", "concept", "number", "image", "reply"}
    images/<concept>/<column>/<number>/<image>.png    the drawn images

for the arm "concept", and the same in controls/none, controls/other and controls/black. Column, numbers and what to
ask are in the evaluation's plan.jsonl. Further keys of a line are ignored.

A policy's items are answered in fixed batches. A batch whose lines and files exist is not done again, and one that was
interrupted is done again whole, so an interrupted run leaves the same bytes: rounding depends on a batch's size. Each
question is asked alone: no answer depends on another.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import groupby
from pathlib import Path
from typing import Final, Protocol

from synod.contracts import Pixels
from synod.errors import InvalidRequest, SettingsError
from synod.images import encode_png
from synod.reader import Node
from trainer.evaluate.personal.arms import Arm
from trainer.evaluate.personal.items import Item
from trainer.images import write_whole
from trainer.personalize.records import load_image
from trainer.scenarios import compound
from trainer.types import Query, Seed

REPLIES: Final = "replies.jsonl"
CACHED_IMAGES: Final = 256


class Speaker(Protocol):
    """A policy as the suites use it; `digest` is that of its weights."""

    digest: str

    def answer(self, queries: Sequence[Query], seeds: Sequence[Seed]) -> list[str]:
        """Return a reply to each query."""
        ...

    def draw(self, prompts: Sequence[str], seeds: Sequence[Seed]) -> list[Pixels]:
        """Return a finished image uint8 [H W 3] for each prompt."""
        ...


@dataclass(frozen=True, slots=True)
class Answer:
    """The reply to an item, and the prompt that its image was drawn from; None where there is none."""

    reply: str | None = None
    drawn: str | None = None


def folder_of(answers: Path, arm: Arm) -> Path:
    """Return the folder of an arm's answers."""
    return answers if arm == "concept" else answers / "controls" / arm


def batches(items: Sequence[Item], size: int) -> list[list[Item]]:
    """Return the items in order, in batches of at most `size` of one column."""
    columns = [list(found) for _, found in groupby(items, key=lambda one: one.column)]
    return [column[first : first + size] for column in columns for first in range(0, len(column), size)]


def answer_items(
    items: Sequence[Item],
    speaker: Speaker,
    folder: Path,
    *,
    seed: int,
    size: int,
    rank: int = 0,
    world: int = 1,
    done: Callable[[int], object] = lambda count: None,
) -> None:
    """Answer this rank's share of the items into `folder`: of the batches of `size` items, rank, rank + world, ...

    `done` receives the number of items of each batch. `merge` makes one file of those of all ranks.
    """
    folder.mkdir(parents=True, exist_ok=True)
    known = {key for path in folder.glob("replies*.jsonl") for key in _complete(path)}
    part = _part(folder, rank)
    lines = _complete(part)
    if lines or part.exists():
        write_whole(part, "".join(lines.values()).encode())  # without a line that a kill has cut
    with part.open("ab") as file:
        for batch in batches(items, size)[rank::world]:
            if not all(one.key in known and _has_image(one, folder) for one in batch):
                file.write(b"".join(_answer_batch(batch, speaker, folder, seed)))
                file.flush()
            done(len(batch))


def _answer_batch(batch: Sequence[Item], speaker: Speaker, folder: Path, seed: int) -> Iterator[bytes]:
    """Draw the images of a batch, then yield its lines."""
    asked = [one for one in batch if one.query is not None]
    queries = [Query(one.query or "", None if one.shown is None else _image(one.shown)) for one in asked]
    said = speaker.answer(queries, [one.seed(seed) for one in asked]) if asked else []
    replies = {one.key: reply for one, reply in zip(asked, said, strict=True)}
    drawn = [one for one in batch if one.prompt is not None]
    prompts = {one.key: compound(one.prompt or "", replies.get(one.key, "")) for one in drawn}
    images = speaker.draw(list(prompts.values()), [one.seed(seed) for one in drawn]) if drawn else []
    for one, pixels in zip(drawn, images, strict=True):
        assert one.file is not None
        write_whole(folder / one.file, encode_png(pixels))
    for one in batch:
        place = {"column": one.column, "concept": one.concept, "number": one.number, "image": one.image}
        said_of = {"query": one.query, "shown": one.shown and one.shown.name, "reply": replies.get(one.key)}
        line = {**place, "seed": one.seed(seed), **said_of, "drawn": prompts.get(one.key)}
        yield json.dumps(line).encode() + b"\n"


@lru_cache(CACHED_IMAGES)
def _image(path: Path) -> Pixels:
    return load_image(path)


def _has_image(item: Item, folder: Path) -> bool:
    return item.file is None or (folder / item.file).exists()


def _part(folder: Path, rank: int) -> Path:
    return folder / (f"replies-{rank}.jsonl" if rank else REPLIES)


def merge(items: Sequence[Item], folder: Path) -> None:
    """Write the lines of all ranks into replies.jsonl, in the order of the items; the last line of an item counts."""
    found: dict[str, str] = {}
    for path in sorted(folder.glob("replies*.jsonl")):
        found |= _complete(path)
    if found:
        write_whole(folder / REPLIES, "".join(found[one.key] for one in items if one.key in found).encode())
    for path in folder.glob("replies-*.jsonl"):
        path.unlink()


def read_answers(items: Sequence[Item], folder: Path) -> dict[str, Answer]:
    """Return the answers by item. Raises SettingsError for a line that is none, or of an item that is not asked."""
    known = {one.key: one for one in items}
    found: dict[str, Answer] = {}
    for key, line in _complete(folder / REPLIES).items():
        tree: Mapping[str, object] = json.loads(line)
        if key not in known:
            raise SettingsError(f"{folder / REPLIES}: {key} is not in plan.jsonl; give the answers of this plan")
        drawn = tree.get("drawn")
        found[key] = Answer(None if tree.get("reply") is None else str(tree["reply"]), str(drawn) if drawn else None)
    return found


def _complete(path: Path) -> dict[str, str]:
    """Return the complete lines of a file of replies by their items' keys. Raises SettingsError."""
    if not path.exists():
        return {}
    found: dict[str, str] = {}
    for number, text in enumerate(path.read_bytes().decode(errors="replace").split("\n")[:-1], 1):
        line = f"{text}\n"
        try:
            found[_key(Node(json.loads(line), f"{path}:{number}"))] = line
        except (ValueError, InvalidRequest) as error:
            raise SettingsError(f"{path}:{number} is not a line of replies ({error}); correct or remove it") from None
    return found


def _key(node: Node) -> str:
    column, concept = node.need("column", Node.text), node.need("concept", Node.text)
    node.get("reply", Node.text)
    return f"{column}/{concept}/{node.need('number', Node.integer)}/{node.get('image', Node.integer) or 0}"
