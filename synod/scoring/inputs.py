"""IMAGE, DIR and JSONL arguments -> what to score.

A line of a JSONL is an item as docs/wire.md spells it, whose images are paths, from the JSONL's folder on:

    {"image": "out/1.png", "prompt": "<bo> in a hat", "references": ["bo.png"], "concept": {"kind": "animal"}}

or a line of GenEval's metadata as it is published (`synod.scoring.geneval`).

All lines are read before anything is sent: a line that is no item stops the command. An image that cannot be read
does not: its item fails alone.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from synod.contracts import ScoreItem
from synod.digest import digest_of
from synod.errors import BadImage, InvalidRequest, SettingsError
from synod.formats import load_json
from synod.reader import Node
from synod.records import read_item
from synod.scoring import geneval

SUFFIXES: Final = (".png", ".jpg", ".jpeg", ".webp")
OTHER_SUFFIXES: Final = (".gif", ".bmp", ".tif", ".tiff", ".avif", ".heic", ".heif", ".jxl")  # images, not scored
Note = Callable[[str], None]
MAX_TOLD: Final = 10  # mistakes in one message


@dataclass(frozen=True, slots=True)
class Source:
    """One item to score. `fields` are the wire's, with images as paths that open from `folder`; `where` is what
    messages call it; `digests` (by path, when known) are what the images must still be."""

    fields: Mapping[str, Any]
    folder: Path
    where: str
    digests: Mapping[str, str] = field(default_factory=dict)

    def load(self) -> Loaded:
        """The item with its images read, and their digests by path. An image that cannot be read, or that is not the
        one of `digests`, makes the item a BadImage."""
        found: dict[str, str] = {}

        def read(node: Node) -> bytes:
            path = node.text()
            try:
                data = (self.folder / path).read_bytes()
            except (OSError, ValueError) as error:
                raise BadImage(f"{path}: {getattr(error, 'strerror', None) or error}") from None
            found[path] = digest_of(data)
            if self.digests.get(path, found[path]) != found[path]:
                raise BadImage(f"{path}: not the image that was scored, which was {self.digests[path]}")
            return data

        try:
            return Loaded(self, read_item(Node(self.fields), read), found)
        except BadImage as error:
            return Loaded(self, error, found)


@dataclass(frozen=True, slots=True)
class Loaded:
    """A source with its item, or why there is none; `digests` of the images that were read, by path."""

    source: Source
    item: ScoreItem | BadImage
    digests: Mapping[str, str]


def sources(
    paths: Sequence[Path],
    prompt: str | None,
    references: Sequence[Path],
    source_prompt: str | None = None,
    note: Note = lambda text: None,
) -> list[Source]:
    """What the arguments name, in order; a folder's images by name, those of its folders included. `prompt`,
    `references` and `source_prompt` are for items without their own. Raises SettingsError with every mistake's file
    and line.

    Hidden files, and images of formats that are not scored, are skipped in a folder; `note` gets a sentence about them.
    """
    shared = [str(path.resolve()) for one in references for path in _images(one, note)]
    defaults = {"prompt": prompt, "references": shared or None, "source_prompt": source_prompt}
    found: list[Source] = []
    for path in paths:
        if path.suffix == ".jsonl":
            found += _lines(path, defaults, note)
        else:
            found += (_source({"image": str(p)}, defaults, Path(), str(p)) for p in _images(path, note))
    return found


def _images(path: Path, note: Note) -> list[Path]:
    """The path itself, or the images in the folder that it is. Raises SettingsError."""
    if path.is_dir():
        images = [p for p in path.rglob("*") if p.suffix.lower() in (*SUFFIXES, *OTHER_SUFFIXES) and p.is_file()]
        visible = [p for p in images if not any(part.startswith(".") for part in p.relative_to(path).parts)]
        found = sorted(p for p in visible if p.suffix.lower() in SUFFIXES)
        skipped = _skipped(path, sorted(set(images) - set(visible)), sorted(set(visible) - set(found)))
        if not found:
            none = f"{path}: no image in this folder; it holds none of {', '.join(SUFFIXES)}"
            raise SettingsError("\n".join([none, *skipped]))
        for sentence in skipped:
            note(sentence)
        return found
    try:
        path.open("rb").close()
    except OSError as error:
        raise SettingsError(f"{path}: {error.strerror}; give a PNG, JPEG or WebP file, a folder or a .jsonl") from None
    return [path]


def _skipped(folder: Path, hidden: Sequence[Path], others: Sequence[Path]) -> Iterator[str]:
    """A sentence for each kind of images that are not scored, with their number."""
    if hidden:
        yield (
            f"{folder}: {len(hidden)} hidden image file(s) skipped, such as {hidden[0].relative_to(folder)}; "
            "name a file to score it"
        )
    if others:
        kinds = Counter(path.suffix.lower() for path in others)
        counts = ", ".join(f"{count} {suffix}" for suffix, count in sorted(kinds.items()))
        yield (
            f"{folder}: {len(others)} image file(s) of other formats skipped ({counts}); "
            f"convert them to one of {', '.join(SUFFIXES)} to score them"
        )


def _lines(path: Path, defaults: Mapping[str, Any], note: Note) -> list[Source]:
    found, mistakes = [], []
    for number, line in _text_lines(path):
        try:
            fields = dict(Node(load_json(line)).table(lambda child: child.value))
            for one in _items(fields, path.parent, number - 1, note):
                read_item(Node(one), path_only)
                found.append(_source(one, defaults, path.parent, f"{path}:{number}"))
        except (ValueError, InvalidRequest, RecursionError) as error:
            mistakes.append(f"{path}:{number}: {'nested too deep' if isinstance(error, RecursionError) else error}")
    if mistakes:
        more = len(mistakes) - MAX_TOLD
        told = mistakes[:MAX_TOLD] + ([f"and {more} more"] if more > 0 else [])
        raise SettingsError("\n".join([*told, f"nothing was scored: mend the {len(mistakes)} line(s) of {path}"]))
    return found


def _items(fields: dict[str, Any], folder: Path, index: int, note: Note) -> list[dict[str, Any]]:
    """The items of line `index` (from 0): itself, or those of GenEval's line, one an image."""
    if not geneval.is_metadata(fields):
        return [fields]
    item = geneval.item_fields(fields)
    if item.get("image") is not None:
        return [item]
    try:
        found = _images(geneval.samples(folder, index), note)
    except SettingsError as error:
        raise SettingsError(f"{error}; GenEval's images belong there, or give the line an 'image'") from None
    return [{**item, "image": str(image.relative_to(folder))} for image in found]


def _text_lines(path: Path) -> Iterator[tuple[int, bytes]]:
    try:
        with path.open("rb") as lines:
            for number, line in enumerate(lines, 1):
                if line.strip():
                    yield number, line
    except OSError as error:
        raise SettingsError(f"{path}: {error.strerror}; give a file of one JSON object a line") from None


def _source(fields: Mapping[str, Any], defaults: Mapping[str, Any], folder: Path, where: str) -> Source:
    given = {name: value for name, value in fields.items() if value is not None}
    missing = {name: value for name, value in defaults.items() if value is not None}
    return Source({**missing, **given}, folder, where)


def path_only(node: Node) -> bytes:
    """Stands in for reading an image: checks that a path is there."""
    if not isinstance(node.value, str) or not node.value:
        raise node.error("the path of an image belongs here")
    return b""
