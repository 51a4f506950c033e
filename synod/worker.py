"""`synod-scorer`: one scorer in an environment of its own, as a child process of the service's replica.

The replica starts it with one end of a socket pair (`--fd`); they exchange frames (`synod.frames`):

    child    {protocol, synod}
    replica  {load: "module:function", name, settings, path: [folder..]}
    child    {ready: true}, or an error
    replica  {score: n}, then n requests of one item each (`synod.records`)
    child    a response of n results, {memory: text} when it ran out of memory, or an error

Standard output and error are the replica's log. The process ends with its connection, whatever it does then.
"""

from __future__ import annotations

import argparse
import importlib
import os
import select
import socket
import sys
import threading
from collections.abc import Mapping, Sequence
from types import SimpleNamespace
from typing import Any, Final

import synod
from synod import frames, records
from synod.contracts import ItemResult, Outcome, Score, ScoreFailure, ScoreItem, ScoreRequest, ScoreResponse
from synod.errors import PayloadTooLarge, ScorerFailed, SynodError, error_of
from synod.formats import read_bin
from synod.reader import Node

PROTOCOL: Final = 1
MAX_TEXT: Final = 2000  # characters of an error
SCORER: Final = "scorer"  # the one key of a result's scores


class Settings(SimpleNamespace):
    """A scorer's settings by attribute, as in the service: `name.options["power"]`, `name.serving.device`."""

    def __init__(self, tree: Mapping[str, Any]) -> None:
        super().__init__(**{**tree, "serving": SimpleNamespace(**tree.get("serving", {}))})
        self.tree = tree


def main(arguments: Sequence[str] | None = None) -> int:
    """Load one scorer and score until the connection closes; 1 when it could not be loaded."""
    parser = argparse.ArgumentParser(prog="synod-scorer", description="one scorer, for the replica that started this")
    parser.add_argument("--fd", type=int, required=True, help="descriptor of a connected stream socket")
    descriptor = parser.parse_args(arguments).fd
    os.set_inheritable(descriptor, False)  # what a scorer starts must not keep the connection open
    with socket.socket(fileno=descriptor) as connection:
        threading.Thread(target=_end_with, args=(connection,), daemon=True).start()
        try:
            frames.send(connection, {"protocol": PROTOCOL, "synod": synod.__version__}, frames.MAX_REPLY_BYTES)
            return _serve(connection)
        except (frames.Closed, ConnectionError):
            return 0


def load(name: str, function: str, settings: Mapping[str, Any]) -> Any:
    """The scorer that `function` ("module:function") gives for (name, settings). Raises ScorerFailed, or as it does."""
    module, _, attribute = function.partition(":")
    scorer = getattr(importlib.import_module(module), attribute)(name, Settings(settings))
    if not callable(getattr(scorer, "score", None)):
        raise ScorerFailed(f"it gave {type(scorer).__name__}, which has no method score(items); return a scorer")
    return scorer


def _serve(connection: socket.socket) -> int:
    asked = frames.receive(connection, frames.MAX_REQUEST_BYTES)
    sys.path.extend(asked["path"])  # last: the environment's own packages come first
    try:
        scorer = load(asked["name"], asked["load"], asked["settings"])
    except Exception as error:
        frames.send(connection, _failed(error), frames.MAX_REPLY_BYTES)
        return 1
    frames.send(connection, {"ready": True}, frames.MAX_REPLY_BYTES)
    while True:
        count = frames.receive(connection, frames.MAX_REQUEST_BYTES)["score"]
        items = [_item(frames.receive(connection, frames.MAX_REQUEST_BYTES)) for _ in range(count)]
        try:
            frames.send(connection, _scored(scorer, items), frames.MAX_REPLY_BYTES)
        except PayloadTooLarge as error:
            frames.send(connection, _failed(ScorerFailed(f"{error}; return less detail")), frames.MAX_REPLY_BYTES)


def _item(message: object) -> ScoreItem:
    request: ScoreRequest = records.read(ScoreRequest, Node(message), read_bin)
    (item,) = request.items
    return item


def _scored(scorer: Any, items: Sequence[ScoreItem]) -> records.Tree:
    try:
        outcomes: list[Outcome] = list(scorer.score(items))
        others = sorted({type(one).__name__ for one in outcomes if not isinstance(one, (Score, ScoreFailure))})
        if others or len(outcomes) != len(items):
            what = f"{others} among its outcomes" if others else f"{len(outcomes)} outcomes"
            raise ScorerFailed(f"the scorer gave {what} for {len(items)} items")
    except Exception as error:
        return _failed(error)
    response = ScoreResponse(tuple(ItemResult({SCORER: one}) for one in outcomes), "")
    tree: records.Tree = records.write(ScoreResponse, response)
    return tree


def _failed(error: Exception) -> records.Tree:
    text = str(error)[:MAX_TEXT].encode(errors="replace").decode()
    if isinstance(error, SynodError):
        return records.error_tree(error_of(error.code, text, retryable=error.retryable))
    text = f"{type(error).__name__}: {text}"
    if isinstance(error, MemoryError) or any(kind.__name__ == "OutOfMemoryError" for kind in type(error).__mro__):
        return {"memory": text}
    return records.error_tree(ScorerFailed(f"the scorer raised {text}"))


def _end_with(connection: socket.socket) -> None:
    """End the process when the other side hangs up, also in the middle of a batch."""
    poll = select.poll()
    poll.register(connection, getattr(select, "POLLRDHUP", 0))  # a hang-up alone, no data
    poll.poll()
    os._exit(1)


if __name__ == "__main__":
    sys.exit(main())
