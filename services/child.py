"""Child: a scorer in a child process, for an environment that cannot run a replica; `synod.worker` is the other end.

The replica's batches go through it as through any scorer, with the same isolation, golden items and metrics. A process
that dies, hangs or breaks the protocol is replaced. Its successor scores the lost items again, in the groups that
isolation forms; an item that ends two processes alone has failed.
"""

from __future__ import annotations

import contextlib
import logging
import os
import signal
import socket
import subprocess
import threading
import time
import weakref
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from services.scorers.custom import CustomSettings
from services.settings_types import ScorerSettings
from synod import frames, records
from synod.contracts import Outcome, ScoreFailure, ScoreItem, ScoreRequest, ScoreResponse
from synod.errors import (
    DeadlineExceeded,
    ImageTooLarge,
    InvalidRequest,
    ReplicaLost,
    ScorerFailed,
    SettingsError,
    SynodError,
    Unavailable,
)
from synod.reader import Node
from synod.worker import PROTOCOL, SCORER

ROOT: Final = Path(__file__).parents[1]
KINDS: Final = "services.scorers.registry:build_tree"  # loads every kind but custom
ITEM_BYTES: Final = frames.MAX_REQUEST_BYTES - 2**26  # of an item's images; the rest of its frame is text
MAX_DEATHS: Final = 12  # in a row without an answer, before restarts are delayed; bisecting for one item takes fewer
MAX_WAIT_S: Final = 60.0
END_S: Final = 5.0
TAIL_LINES: Final = 5
log = logging.getLogger("ray.serve")


@dataclass(frozen=True, slots=True)
class ChildTimeouts:
    """Seconds for a process to start, to load its scorer, and to score a batch (longer than any caller waits)."""

    begin_s: float = 60.0
    load_s: float = 1800.0
    batch_s: float = 600.0


DEFAULT_TIMEOUTS: Final = ChildTimeouts()


class Lost(Exception):
    """The process ended or broke the protocol. `killed`: by SIGKILL, as the kernel does when memory runs out."""

    def __init__(self, why: str, *, killed: bool = False) -> None:
        super().__init__(why)
        self.killed = killed


def build(name: str, settings: ScorerSettings, times: ChildTimeouts = DEFAULT_TIMEOUTS) -> Child:
    """Return the scorer in a process of `serving.python`. Raises SettingsError when it does not start or load."""
    python, described = str(settings.serving.python), settings.model_dump(mode="json")
    if isinstance(settings, CustomSettings):
        return Child(name, python, settings.load, described, (), times)
    return Child(name, python, KINDS, described, (str(ROOT),), times)


class Child:
    """A scorer whose `score` may be called by one thread at a time, and may raise.

    Without a living process its outcomes are Unavailable: after MAX_DEATHS deaths in a row or a failed start, the next
    start waits a second, then twice as long each time, up to MAX_WAIT_S.
    """

    def __init__(
        self,
        name: str,
        python: str,
        load: str,
        settings: Mapping[str, Any],
        path: Sequence[str] = (),
        times: ChildTimeouts = DEFAULT_TIMEOUTS,
        now_s: Callable[[], float] = time.monotonic,
    ) -> None:
        self._name, self._times, self._now_s = name, times, now_s
        self._command = (python, "-m", "synod.worker")
        self._asked = {"load": load, "name": name, "settings": dict(settings), "path": list(path)}
        self._deaths = 0  # in a row
        self._not_before_s = 0.0
        try:
            self._process: _Process | None = self._start()
        except Lost as lost:
            raise SettingsError(f"scorer '{name}' in {python}: {lost}") from None

    @property
    def pid(self) -> int | None:
        """Return the id of the living process, or None."""
        return None if self._process is None else self._process.pid

    def score(self, items: Sequence[ScoreItem]) -> list[Outcome]:
        """Return one outcome per item. Raises ReplicaLost or MemoryError when a process was lost with several items."""
        try:
            return self._once(items)
        except Lost as lost:
            if len(items) > 1:  # isolation finds the item that caused it
                raise self._error(lost, f"while it scored {len(items)} items; retry") from None
        try:
            return self._once(items)
        except Lost as lost:
            raise self._error(lost, "twice on this item alone", ScorerFailed) from None

    def close(self) -> None:
        """End the process."""
        self._end()
        self._process = None

    def _error(self, lost: Lost, when: str, kind: type[SynodError] = ReplicaLost) -> Exception:
        text = f"the process of scorer '{self._name}' was lost {when}: {lost}"
        return MemoryError(text) if lost.killed else kind(text)

    def _once(self, items: Sequence[ScoreItem]) -> list[Outcome]:
        if (failure := self._revive()) is not None:
            return [failure] * len(items)
        assert self._process is not None
        sent = [self._packed(item) for item in items]
        ready = [one for one in sent if isinstance(one, dict)]
        try:
            answer = self._process.score(ready, self._times.batch_s) if ready else []
        except TimeoutError:
            self._lose()
            late = f"scorer '{self._name}' did not score {len(ready)} items within {self._times.batch_s:g} s"
            stopped = DeadlineExceeded(f"{late}, and its process was ended. Send fewer or smaller images at a time")
            return [ScoreFailure.of(stopped)] * len(items)
        except BaseException:
            self._lose()
            raise
        self._deaths = 0
        if isinstance(answer, Exception):
            raise answer
        found = iter(answer)
        return [one if isinstance(one, ScoreFailure) else next(found) for one in sent]

    def _packed(self, item: ScoreItem) -> records.Tree | ScoreFailure:
        size = sum(len(one) if isinstance(one, bytes) else one.nbytes for one in item.images())
        if size > ITEM_BYTES:
            why = f"the item's images hold {size} bytes; a scorer in a child process takes {ITEM_BYTES} at most"
            return ScoreFailure.of(ImageTooLarge(f"{why}. Send smaller images or fewer references"))
        try:
            tree: records.Tree = records.write(ScoreRequest, ScoreRequest((item,)), lambda data: data)
            return tree
        except InvalidRequest as error:
            return ScoreFailure.of(error)

    def _revive(self) -> ScoreFailure | None:
        """Start a process if there is none and a start is due; return a failure where there is none."""
        if self._process is not None:
            return None
        why = f"its process died {self._deaths} times in a row"
        if self._now_s() >= self._not_before_s:
            try:
                self._process = self._start()
                return None
            except Lost as lost:
                self._deaths = max(self._deaths, MAX_DEATHS)  # one batch tries to load once
                self._lose()
                why = str(lost)
        wait_s = max(self._not_before_s - self._now_s(), 0.0)
        text = f"scorer '{self._name}' has no process: {why}. It is started again in {wait_s:.0f} s; retry then"
        return ScoreFailure.of(Unavailable(text, retry_after_s=wait_s))

    def _lose(self) -> None:
        self.close()
        self._deaths += 1
        if self._deaths > MAX_DEATHS:
            self._not_before_s = self._now_s() + min(2.0 ** (self._deaths - MAX_DEATHS - 1), MAX_WAIT_S)

    def _start(self) -> _Process:
        process = _Process(self._name, self._command)
        self._end = weakref.finalize(self, process.end)
        try:
            process.load(self._asked, self._times)
        except BaseException:
            process.end()
            raise
        return process


class _Process:
    """One child process. Its output is logged."""

    def __init__(self, name: str, command: Sequence[str]) -> None:
        self._name, self._python = name, command[0]
        self._tail: deque[str] = deque(maxlen=TAIL_LINES)
        self._connection, theirs = socket.socketpair()
        environ = {key: value for key, value in os.environ.items() if not key.startswith("RAY_")}  # Ray's token is ours
        with theirs:
            try:
                self._popen = subprocess.Popen(
                    [*command, "--fd", str(theirs.fileno())],
                    stdin=subprocess.DEVNULL,
                    stdout=subprocess.PIPE,
                    stderr=subprocess.STDOUT,
                    pass_fds=[theirs.fileno()],
                    env={**environ, "PYTHONUNBUFFERED": "1"},
                    start_new_session=True,  # Ctrl-C is the replica's to handle
                )
            except OSError as error:
                self._connection.close()
                raise Lost(f"it cannot be started: {error}") from None
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    @property
    def pid(self) -> int:
        return self._popen.pid

    def load(self, asked: Mapping[str, Any], times: ChildTimeouts) -> None:
        """Wait for the greeting and have the scorer loaded. Raises Lost."""
        waits = "begin", times.begin_s
        try:
            greeting = Node(self._receive(times.begin_s)).fields("protocol", "synod")
            protocol = greeting.need("protocol", Node.integer)
            if protocol != PROTOCOL:
                raise Lost(
                    f"its synod {greeting.get('synod', Node.text)} speaks protocol {protocol}, the service {PROTOCOL}: "
                    f"install the service's release in {self._python}"
                )
            waits = "load the scorer", times.load_s
            frames.send(self._connection, asked, frames.MAX_REQUEST_BYTES)
            answer = self._receive(times.load_s)
            if answer == {"ready": True}:
                return
            if isinstance(answer, dict) and "memory" in answer:
                raise Lost(f"it ran out of memory while it loaded: {answer['memory']}")
            raise Lost(f"it cannot load: {records.read_error(Node(answer)).message}")
        except TimeoutError:
            raise Lost(f"it did not {waits[0]} within {waits[1]:g} s") from None
        except (InvalidRequest, OSError) as error:
            raise self._lost(error) from None

    def score(self, trees: Sequence[records.Tree], timeout_s: float) -> list[Outcome] | Exception:
        """Return its outcomes, or what the scorer raised. Raises Lost and TimeoutError."""
        ends_s = time.monotonic() + timeout_s
        try:
            self._connection.settimeout(timeout_s)
            frames.send(self._connection, {"score": len(trees)}, frames.MAX_REQUEST_BYTES)
            for one in trees:
                frames.send(self._connection, one, frames.MAX_REQUEST_BYTES)
            answer = self._receive(max(ends_s - time.monotonic(), 0.001))
            if isinstance(answer, dict) and "memory" in answer:
                return MemoryError(str(answer["memory"]))
            if isinstance(answer, dict) and "error" in answer:
                return records.read_error(Node(answer))
            response: ScoreResponse = records.read(ScoreResponse, Node(answer))
            results = response.results
            if [list(one.scores) for one in results] != [[SCORER]] * len(trees):
                raise InvalidRequest(f"{len(results)} results for {len(trees)} items")
        except TimeoutError:
            raise
        except (InvalidRequest, OSError) as error:
            raise self._lost(error) from None
        return [one.scores[SCORER] for one in results]

    def end(self) -> None:
        """Close the connection, which ends the process; kill it if it does not end."""
        self._connection.close()
        try:
            self._popen.wait(END_S)
        except subprocess.TimeoutExpired:
            self._popen.kill()
            self._popen.wait()
        self._reader.join(END_S)  # what it started may hold its output open

    def _receive(self, timeout_s: float) -> Any:
        try:
            return frames.receive(self._connection, frames.MAX_REPLY_BYTES, timeout_s)
        except (frames.Closed, frames.BadFrame) as error:
            raise self._lost(error) from None

    def _lost(self, error: Exception) -> Lost:
        """Return why it was lost: how it ended, or what is wrong with its message."""
        if not isinstance(error, frames.BadFrame | InvalidRequest):  # it closed the connection and is about to end
            with contextlib.suppress(subprocess.TimeoutExpired):
                self._popen.wait(1.0)
        status = self._popen.poll()
        self._reader.join(0.0 if status is None else 1.0)
        last = f"; it printed last: {' | '.join(self._tail)}" if self._tail else ""
        if status is None:
            return Lost(f"it broke the protocol: {error}{last}")
        how = f"it ended with status {status}" if status >= 0 else f"it was ended by {_signal(-status)}"
        hint = ", as by the kernel when memory runs out" if status == -signal.SIGKILL else ""
        return Lost(f"{how}{hint}{last}", killed=status == -signal.SIGKILL)

    def _read(self) -> None:
        assert self._popen.stdout is not None
        with self._popen.stdout as stream:
            while line := stream.readline(4096):
                text = line.decode(errors="replace").rstrip()
                self._tail.append(text[:200])
                log.warning("%s: %s", self._name, text)


def _signal(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:
        return f"signal {number}"
