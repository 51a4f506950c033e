"""Read IMAGE, DIR and JSONL arguments.

A line of a JSONL is an item as in docs/wire.md, with images as paths relative to the JSONL's folder:

    {"image": "out/1.png", "prompt": "<bo> in a hat", "references": ["bo.png"], "concept": {"kind": "animal"}}

or a published line of GenEval metadata (`synod.scoring.geneval`).

All lines are read before anything is sent, and an invalid line stops the command. An image that cannot be read fails
only its item.
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
OTHER_SUFFIXES: Final = (".gif", ".bmp", ".tif", ".tiff", ".avif", ".heic", ".heif", ".jxl")  # not scored
Notify = Callable[[str], None]
MAX_LISTED: Final = 10  # invalid lines listed in one message


@dataclass(frozen=True, slots=True)
class Source:
    """One item to score: the wire's `fields`, with images as paths relative to `folder`.

    `label` names the item in messages. `digests`, by path, are those that the images must have, where known.
    """

    fields: Mapping[str, Any]
    folder: Path
    label: str
    digests: Mapping[str, str] = field(default_factory=dict)

    def load(self) -> Loaded:
        """Read the item's images and return it with their digests by path.

        An image that cannot be read, or does not match `digests`, makes the item a BadImage.
        """
        found: dict[str, str] = {}

        def read(node: Node) -> bytes:
            path = node.text()
            try:
                data = (self.folder / path).read_bytes()
            except (OSError, ValueError) as error:
                raise BadImage(f"{path}: {getattr(error, 'strerror', None) or error}") from None
            found[path] = digest_of(data)
            if self.digests.get(path, found[path]) != found[path]:
                raise BadImage(
                    f"{path} has changed: the digest of the scored image is {self.digests[path]}, now {found[path]}"
                )
            return data

        try:
            return Loaded(self, read_item(Node(self.fields), read), found)
        except BadImage as error:
            return Loaded(self, error, found)


@dataclass(frozen=True, slots=True)
class Loaded:
    """A source with its item, or the error that prevents it; `digests` of the images read, by path."""

    source: Source
    item: ScoreItem | BadImage
    digests: Mapping[str, str]


def sources(
    paths: Sequence[Path],
    prompt: str | None,
    references: Sequence[Path],
    source_prompt: str | None = None,
    notify: Notify = lambda text: None,
) -> list[Source]:
    """List the sources that the arguments name, in order; images of folders and subfolders by name.

    `prompt`, `references` and `source_prompt` apply to items without their own. In a folder, hidden files and images
    of formats that are not scored are skipped; `notify` receives a sentence about them. Raises SettingsError that lists
    the file and line of each invalid line.
    """
    shared = [str(path.resolve()) for one in references for path in _images(one, notify)]
    defaults = {"prompt": prompt, "references": shared or None, "source_prompt": source_prompt}
    found: list[Source] = []
    for path in paths:
        if path.suffix == ".jsonl":
            found += _lines(path, defaults, notify)
        else:
            found += (_source({"image": str(p)}, defaults, Path(), str(p)) for p in _images(path, notify))
    return found


def _images(path: Path, notify: Notify) -> list[Path]:
    """Return the path itself or, of a folder, the images in it. Raises SettingsError."""
    if path.is_dir():
        images = [p for p in path.rglob("*") if p.suffix.lower() in (*SUFFIXES, *OTHER_SUFFIXES) and p.is_file()]
        visible = [p for p in images if not any(part.startswith(".") for part in p.relative_to(path).parts)]
        found = sorted(p for p in visible if p.suffix.lower() in SUFFIXES)
        skipped = _skipped(path, sorted(set(images) - set(visible)), sorted(set(visible) - set(found)))
        if not found:
            problem = f"the folder {path} holds no image; supported are {', '.join(SUFFIXES)}"
            raise SettingsError("\n".join([problem, *skipped]))
        for sentence in skipped:
            notify(sentence)
        return found
    try:
        path.open("rb").close()
    except OSError as error:
        raise SettingsError(f"{path}: {error.strerror}; give a PNG, JPEG or WebP file, a folder or a .jsonl") from None
    return [path]


def _skipped(folder: Path, hidden: Sequence[Path], others: Sequence[Path]) -> Iterator[str]:
    """Yield a sentence with the number of hidden images, and one with that of unsupported images."""
    if hidden:
        yield (
            f"{len(hidden)} hidden image file(s) in {folder} were skipped, such as {hidden[0].relative_to(folder)}; "
            "name a file on the command line to score it"
        )
    if others:
        kinds = Counter(path.suffix.lower() for path in others)
        counts = ", ".join(f"{count} {suffix}" for suffix, count in sorted(kinds.items()))
        yield (
            f"{len(others)} image file(s) of unsupported formats in {folder} were skipped ({counts}); "
            f"convert them to one of {', '.join(SUFFIXES)} to score them"
        )


def _lines(path: Path, defaults: Mapping[str, Any], notify: Notify) -> list[Source]:
    found, mistakes = [], []
    for number, line in _text_lines(path):
        try:
            fields = dict(Node(load_json(line)).table(lambda child: child.value))
            for one in _items(fields, path.parent, number - 1, notify):
                read_item(Node(one), path_only)
                found.append(_source(one, defaults, path.parent, f"{path}:{number}"))
        except (ValueError, InvalidRequest, RecursionError) as error:
            mistakes.append(f"{path}:{number}: {'nested too deep' if isinstance(error, RecursionError) else error}")
    if mistakes:
        more = len(mistakes) - MAX_LISTED
        listed = mistakes[:MAX_LISTED] + ([f"and {more} more"] if more > 0 else [])
        raise SettingsError("\n".join([*listed, f"nothing was scored; correct the {len(mistakes)} line(s) of {path}"]))
    return found


def _items(fields: dict[str, Any], folder: Path, index: int, notify: Notify) -> list[dict[str, Any]]:
    """Return the items of line `index` (from 0): the line itself, or one item per image of a GenEval line."""
    if not geneval.is_metadata(fields):
        return [fields]
    item = geneval.item_fields(fields)
    if item.get("image") is not None:
        return [item]
    try:
        found = _images(geneval.samples_dir(folder, index), notify)
    except SettingsError as error:
        raise SettingsError(f"{error}; put GenEval's images there, or give the line an 'image'") from None
    return [{**item, "image": str(image.relative_to(folder))} for image in found]


def _text_lines(path: Path) -> Iterator[tuple[int, bytes]]:
    try:
        with path.open("rb") as lines:
            for number, line in enumerate(lines, 1):
                if line.strip():
                    yield number, line
    except OSError as error:
        raise SettingsError(f"{path}: {error.strerror}; give a file with one JSON object per line") from None


def _source(fields: Mapping[str, Any], defaults: Mapping[str, Any], folder: Path, label: str) -> Source:
    given = {name: value for name, value in fields.items() if value is not None}
    missing = {name: value for name, value in defaults.items() if value is not None}
    return Source({**missing, **given}, folder, label)


def path_only(node: Node) -> bytes:
    """Check, instead of reading an image, that the node holds a path."""
    if not isinstance(node.value, str) or not node.value:
        raise node.error("this is not the path of an image")
    return b""
