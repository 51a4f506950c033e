"""`synod-scorer`: run one scorer in its own Python environment, as a child process of a replica of the service.

The replica starts it with one end of a socket pair (`--fd`). They exchange frames (`synod.frames`):

    child    {protocol, synod}
    replica  {load: "module:function", name, settings, path: [folder..]}
    child    {ready: true}, or an error
    replica  {score: n}, then n requests of one item each (`synod.records`)
    child    a response of n results, {memory: text} when it ran out of memory, or an error

The replica logs what it prints. The process ends at once when the connection closes, even in the middle of a batch, and
when it cannot use its device any more.
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
from synod.device_errors import is_device_lost, is_out_of_memory
from synod.errors import PayloadTooLarge, ScorerFailed, SynodError, error_of
from synod.formats import read_bin
from synod.reader import Node

PROTOCOL: Final = 1
MAX_ERROR_CHARACTERS: Final = 2000
SCORER: Final = "scorer"  # the one key of a result's scores


class Settings(SimpleNamespace):
    """The settings of a scorer, by attribute as in the service: `settings.serving.device`."""

    def __init__(self, tree: Mapping[str, Any]) -> None:
        super().__init__(**{**tree, "serving": SimpleNamespace(**tree.get("serving", {}))})
        self.tree = tree


def main(arguments: Sequence[str] | None = None) -> int:
    """Load one scorer and score until the connection closes. Return 1 if it cannot be loaded."""
    parser = argparse.ArgumentParser(prog="synod-scorer", description="run one scorer for the replica that starts this")
    parser.add_argument("--fd", type=int, required=True, help="descriptor of a connected stream socket")
    descriptor = parser.parse_args(arguments).fd
    os.set_inheritable(descriptor, False)  # processes that the scorer starts must not keep the connection open
    with socket.socket(fileno=descriptor) as connection:
        threading.Thread(target=_exit_on_hang_up, args=(connection,), daemon=True).start()
        try:
            frames.send(connection, {"protocol": PROTOCOL, "synod": synod.__version__}, frames.MAX_REPLY_BYTES)
            return _serve(connection)
        except (frames.Closed, ConnectionError):
            return 0


def load(name: str, function: str, settings: Mapping[str, Any]) -> Any:
    """Call `function` ("module:function") with (name, settings) and return its scorer.

    Raises what `function` raises, and ScorerFailed if it does not return a scorer.
    """
    module, _, attribute = function.partition(":")
    scorer = getattr(importlib.import_module(module), attribute)(name, Settings(settings))
    if not callable(getattr(scorer, "score", None)):
        raise ScorerFailed(f"it returned {type(scorer).__name__}, which has no method score(items); return a scorer")
    return scorer


def _serve(connection: socket.socket) -> int:
    request = frames.receive(connection, frames.MAX_REQUEST_BYTES)
    sys.path.extend(request["path"])  # at the end, so that the environment's own packages come first
    try:
        scorer = load(request["name"], request["load"], request["settings"])
    except Exception as error:
        frames.send(connection, _error_tree(error), frames.MAX_REPLY_BYTES)
        return 1
    frames.send(connection, {"ready": True}, frames.MAX_REPLY_BYTES)
    while True:
        count = frames.receive(connection, frames.MAX_REQUEST_BYTES)["score"]
        items = [_read_item(frames.receive(connection, frames.MAX_REQUEST_BYTES)) for _ in range(count)]
        try:
            frames.send(connection, _score(scorer, items), frames.MAX_REPLY_BYTES)
        except PayloadTooLarge as error:
            frames.send(connection, _error_tree(ScorerFailed(f"{error}; return less detail")), frames.MAX_REPLY_BYTES)


def _read_item(message: object) -> ScoreItem:
    request: ScoreRequest = records.read(ScoreRequest, Node(message), read_bin)
    (item,) = request.items
    return item


def _score(scorer: Any, items: Sequence[ScoreItem]) -> records.Tree:
    try:
        outcomes: list[Outcome] = list(scorer.score(items))
        unexpected_types = sorted({type(o).__name__ for o in outcomes if not isinstance(o, (Score, ScoreFailure))})
        if unexpected_types or len(outcomes) != len(items):
            what = f"{unexpected_types} among its outcomes" if unexpected_types else f"{len(outcomes)} outcomes"
            raise ScorerFailed(f"the scorer returned {what} for {len(items)} items")
    except Exception as error:
        if is_device_lost(error):
            raise  # ends this process, so that the replica starts another
        return _error_tree(error)
    response = ScoreResponse(tuple(ItemResult({SCORER: one}) for one in outcomes), "")
    tree: records.Tree = records.write(ScoreResponse, response)
    return tree


def _error_tree(error: Exception) -> records.Tree:
    text = str(error)[:MAX_ERROR_CHARACTERS].encode(errors="replace").decode()
    if isinstance(error, SynodError):
        return records.error_tree(error_of(error.code, text, retryable=error.retryable))
    text = f"{type(error).__name__}: {text}"
    if is_out_of_memory(error):
        return {"memory": text}
    return records.error_tree(ScorerFailed(f"the scorer raised {text}"))


def _exit_on_hang_up(connection: socket.socket) -> None:
    """End the process when the other side closes the connection, even in the middle of a batch."""
    poll = select.poll()
    poll.register(connection, getattr(select, "POLLRDHUP", 0))  # wait for a hang-up only, not for data
    poll.poll()
    os._exit(1)


if __name__ == "__main__":
    sys.exit(main())
