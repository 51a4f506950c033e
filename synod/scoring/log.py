"""The score log: JSONL, one line an item, so that a run can go on after any stop, and be replayed later.

    {"item": {"image": "out/1.png", "prompt": ..}, "digests": {"out/1.png": "blake2b-256:.."},
     "scorers": ["ber"], "ensemble": null, "scores": {"ber": {"value": ..} or {"error": ..}}, "reward": null}

`item` is the wire's with paths for images, from the log's folder on. A line is written whole, and only for an item
whose outcomes are final: one that failed retryably has none, so the next run asks again.
"""

from __future__ import annotations

import fcntl
import json
import os
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, BinaryIO

from synod.contracts import Digest, ItemResult, Outcome, ScoreFailure, ScoreRequest
from synod.errors import InvalidRequest, SettingsError
from synod.formats import dump_json, load_json
from synod.reader import Node, each
from synod.records import Tree, read, read_item, write
from synod.scoring.inputs import Loaded, Source, path_only

KEYS = ("item", "digests", "scorers", "ensemble")  # what was asked: equal in two lines of the same work


@dataclass(frozen=True, slots=True)
class Line:
    """A line that was read: what was asked, and the answer."""

    source: Source
    scorers: tuple[str, ...]
    ensemble: str | None
    result: ItemResult


class ScoreLog:
    """A log that is being written; `torn` tells that its last line was cut off and is dropped.

    Raises SettingsError for a file that is no score log, naming the line, or that another run is writing.
    """

    def __init__(self, path: Path) -> None:
        self._folder = path.resolve().parent
        self._file = _locked(path)
        whole, lines = _whole_lines(self._file)
        self._done: defaultdict[str, list[tuple[str, ...]]] = defaultdict(list)
        try:
            for number, line in lines:
                tree = _parsed(path, number, line)
                self._done[_key(tree)].append(_failure_codes(tree))
        except SettingsError:
            self._file.close()
            raise
        self.torn = self._file.seek(0, os.SEEK_END) > whole
        self._file.truncate(whole)

    def take(self, loaded: Loaded, asked: ScoreRequest) -> tuple[str, ...] | None:
        """The codes of the failures in this item's line, None when it has no line; each line answers for one item."""
        lines = self._done.get(_key(question(loaded, asked, self._folder)))
        return lines.pop(0) if lines else None

    def write(self, loaded: Loaded, asked: ScoreRequest, result: ItemResult, **more: Any) -> None:
        """Append one line; `more` are further fields, which readers ignore."""
        self._file.write(dump_json({**question(loaded, asked, self._folder), **answer(result), **more}) + b"\n")
        self._file.flush()

    def __enter__(self) -> ScoreLog:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._file.close()


def read_log(path: Path) -> list[Line]:
    """Every whole line. Raises SettingsError for a file that is no score log, naming the line."""
    try:
        with path.open("rb") as file:
            _, lines = _whole_lines(file)
    except OSError as error:
        raise SettingsError(f"{path}: {error.strerror}; give a log that `synod score --out` wrote") from None
    return [_read_line(path, number, line) for number, line in lines]


def question(loaded: Loaded, asked: ScoreRequest, folder: Path) -> Tree:
    """What was asked of which images, with paths from `folder` on."""
    source = loaded.source

    def moved(path: Any) -> Any:
        return os.path.relpath(source.folder / path, folder) if isinstance(path, str) else path

    item = dict(source.fields)
    if "image" in item:
        item["image"] = moved(item["image"])
    if "references" in item:
        item["references"] = [moved(path) for path in item["references"]]
    digests = {moved(path): digest for path, digest in loaded.digests.items()}
    return {"item": item, "digests": digests, "scorers": list(asked.scorers), "ensemble": asked.ensemble}


def answer(result: ItemResult) -> Tree:
    """{scores, reward} as the wire has them."""
    tree: Tree = write(ItemResult, result)
    return tree


def outcomes(result: ItemResult) -> dict[str, Outcome]:
    """By scorer, and the reward, if there is one, as "reward"."""
    return {**result.scores, **({} if result.reward is None else {"reward": result.reward})}


def failures(result: ItemResult) -> dict[str, ScoreFailure]:
    """What failed, by scorer or "reward"."""
    return {name: one for name, one in outcomes(result).items() if isinstance(one, ScoreFailure)}


def _failure_codes(tree: Mapping[str, Any]) -> tuple[str, ...]:
    """The code of each outcome in a line that is a failure, its reward's included."""
    scores = tree["scores"]
    outcomes = [*(scores.values() if isinstance(scores, Mapping) else ()), tree.get("reward")]
    errors = [outcome.get("error") for outcome in outcomes if isinstance(outcome, Mapping)]
    return tuple(str(error.get("code")) for error in errors if isinstance(error, Mapping))


def _locked(path: Path) -> BinaryIO:
    try:
        file = path.open("a+b")
    except OSError as error:
        raise SettingsError(f"{path}: {error.strerror}; give a file that can be written") from None
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        file.close()
        raise SettingsError(f"{path}: another run is writing it; wait for it, or give another --out") from None
    return file


def _whole_lines(file: BinaryIO) -> tuple[int, Sequence[tuple[int, bytes]]]:
    """How many bytes of the file are whole lines, and these. A last line that is cut off, or is no JSON, is not one."""
    file.seek(0)
    lines = list(enumerate(file, 1))
    if lines and not (lines[-1][1].endswith(b"\n") and _is_json(lines[-1][1])):
        lines.pop()
    return sum(len(line) for _, line in lines), [(number, line) for number, line in lines if line.strip()]


def _is_json(line: bytes) -> bool:
    try:
        return not line.strip() or isinstance(load_json(line), Mapping)
    except (ValueError, InvalidRequest, RecursionError):
        return False


def _parsed(path: Path, number: int, line: bytes) -> Mapping[str, Any]:
    try:
        tree = load_json(line)
    except (ValueError, InvalidRequest, RecursionError) as error:
        raise _no_line(path, number, error) from None
    if not isinstance(tree, Mapping) or not {*KEYS, "scores"} <= set(tree):
        raise _no_line(path, number, f"it lacks one of {', '.join((*KEYS, 'scores'))}")
    return tree


def _read_line(path: Path, number: int, line: bytes) -> Line:
    tree = _parsed(path, number, line)
    try:
        result = {"scores": tree["scores"], "reward": tree.get("reward")}
        found: ItemResult = read(ItemResult, Node(result))
        fields = Node(tree["item"], "item").table(lambda child: child.value)
        read_item(Node(fields, "item"), path_only)
        digests = Node(tree["digests"], "digests").table(lambda one: str(read(Digest, one)))
        scorers = each(Node.text)(Node(tree["scorers"], "scorers"))
    except InvalidRequest as error:
        raise _no_line(path, number, error) from None
    ensemble = tree["ensemble"]
    return Line(Source(fields, path.parent, f"{path}:{number}", digests), scorers, ensemble, found)


def _no_line(path: Path, number: int, why: object) -> SettingsError:
    return SettingsError(f"{path}:{number}: no line of a score log ({why}); mend or remove it, or give another file")


def _key(tree: Mapping[str, Any]) -> str:
    return json.dumps([tree[name] for name in KEYS], sort_keys=True)
