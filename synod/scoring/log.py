"""The score log: JSONL with a line per item, so that a run can be resumed and replayed.

    {"item": {"image": "out/1.png", "prompt": ..}, "digests": {"out/1.png": "blake2b-256:.."},
     "scorers": ["ber"], "ensemble": null, "scores": {"ber": {"value": ..} or {"error": ..}}, "reward": null}

`item` is the wire's, with images as paths relative to the log's folder. Only items with final outcomes have a line: one
that failed retryably has none, so the next run scores it again.
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

KEYS = ("item", "digests", "scorers", "ensemble")  # the request: equal in two lines for the same work


@dataclass(frozen=True, slots=True)
class Line:
    """A line of a log: the request, and its result."""

    source: Source
    scorers: tuple[str, ...]
    ensemble: str | None
    result: ItemResult


class ScoreLog:
    """Append to a score log. `truncated` says that its last line was incomplete and has been dropped.

    Raises SettingsError for a file that is not a score log, naming the line, or that another run is writing.
    """

    def __init__(self, path: Path) -> None:
        self._folder = path.resolve().parent
        self._file = _locked(path)
        size, lines = _complete_lines(self._file)
        self._done: defaultdict[str, list[tuple[str, ...]]] = defaultdict(list)
        try:
            for number, line in lines:
                tree = _parsed(path, number, line)
                self._done[_key(tree)].append(_failure_codes(tree))
        except SettingsError:
            self._file.close()
            raise
        self.truncated = self._file.seek(0, os.SEEK_END) > size
        self._file.truncate(size)

    def pop_logged(self, loaded: Loaded, template: ScoreRequest) -> tuple[str, ...] | None:
        """Return the failure codes in this item's line, or None without a line. Each line counts for one item."""
        lines = self._done.get(_key(request_tree(loaded, template, self._folder)))
        return lines.pop(0) if lines else None

    def write(self, loaded: Loaded, template: ScoreRequest, result: ItemResult, **extra: Any) -> None:
        """Append one line; `extra` are further fields, which readers ignore."""
        self._file.write(
            dump_json({**request_tree(loaded, template, self._folder), **result_tree(result), **extra}) + b"\n"
        )
        self._file.flush()

    def __enter__(self) -> ScoreLog:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._file.close()


def read_log(path: Path) -> list[Line]:
    """Read all complete lines. Raises SettingsError for a file that is not a score log, naming the line."""
    try:
        with path.open("rb") as file:
            _, lines = _complete_lines(file)
    except OSError as error:
        raise SettingsError(f"{path}: {error.strerror}; give a log that `synod score --out` wrote") from None
    return [_read_line(path, number, line) for number, line in lines]


def request_tree(loaded: Loaded, template: ScoreRequest, folder: Path) -> Tree:
    """Return the request part of a line, with paths relative to `folder`."""
    source = loaded.source

    def relative(path: Any) -> Any:
        return os.path.relpath(source.folder / path, folder) if isinstance(path, str) else path

    item = dict(source.fields)
    if "image" in item:
        item["image"] = relative(item["image"])
    if "references" in item:
        item["references"] = [relative(path) for path in item["references"]]
    digests = {relative(path): digest for path, digest in loaded.digests.items()}
    return {"item": item, "digests": digests, "scorers": list(template.scorers), "ensemble": template.ensemble}


def result_tree(result: ItemResult) -> Tree:
    """Return {scores, reward} as on the wire."""
    tree: Tree = write(ItemResult, result)
    return tree


def outcomes(result: ItemResult) -> dict[str, Outcome]:
    """Return the outcomes by scorer, and the reward, if there is one, as "reward"."""
    return {**result.scores, **({} if result.reward is None else {"reward": result.reward})}


def failures(result: ItemResult) -> dict[str, ScoreFailure]:
    """Return the failures by scorer or "reward"."""
    return {name: one for name, one in outcomes(result).items() if isinstance(one, ScoreFailure)}


def _failure_codes(tree: Mapping[str, Any]) -> tuple[str, ...]:
    """Return the code of each failure in a line, its reward's included."""
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
        raise SettingsError(f"another run is writing {path}; wait for it, or give another --out") from None
    return file


def _complete_lines(file: BinaryIO) -> tuple[int, Sequence[tuple[int, bytes]]]:
    """Return the number of bytes in complete lines, and these lines with their numbers.

    A last line without a line end, or that is not JSON, is incomplete.
    """
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
        raise _invalid_line(path, number, error) from None
    if not isinstance(tree, Mapping) or not {*KEYS, "scores"} <= set(tree):
        raise _invalid_line(path, number, f"it lacks one of {', '.join((*KEYS, 'scores'))}")
    return tree


def _read_line(path: Path, number: int, line: bytes) -> Line:
    tree = _parsed(path, number, line)
    try:
        result = {"scores": tree["scores"], "reward": tree.get("reward")}
        found: ItemResult = read(ItemResult, Node(result))
        fields = Node(tree["item"], "item").table(lambda child: child.value)
        read_item(Node(fields, "item"), path_only)
        digests = Node(tree["digests"], "digests").table(lambda one: read(Digest, one))
        scorers = each(Node.text)(Node(tree["scorers"], "scorers"))
    except InvalidRequest as error:
        raise _invalid_line(path, number, error) from None
    ensemble = tree["ensemble"]
    return Line(Source(fields, path.parent, f"{path}:{number}", digests), scorers, ensemble, found)


def _invalid_line(path: Path, number: int, why: object) -> SettingsError:
    return SettingsError(f"{path}:{number} is not a line of a score log ({why}); correct or remove it")


def _key(tree: Mapping[str, Any]) -> str:
    return json.dumps([tree[name] for name in KEYS], sort_keys=True)
