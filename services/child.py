"""Run a scorer in a child process, for a Python environment that cannot run a replica itself.

The child runs `synod.worker`. The replica treats it like any other scorer: same batches, isolation, golden items and
metrics. A process that dies, hangs or breaks the protocol is replaced, and the items of its batch are scored again in
the smaller groups that isolation forms. An item that is scored alone and ends two processes in a row fails.
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
MAX_IMAGE_BYTES: Final = frames.MAX_REQUEST_BYTES - 2**26  # per item; the rest of the frame is for its text
MAX_DEATHS: Final = 12  # in a row without an answer, before restarts are delayed; one bisection takes fewer
MAX_BACKOFF_S: Final = 60.0
SHUTDOWN_S: Final = 5.0  # between closing the connection and SIGKILL
TAIL_LINES: Final = 5  # of the process's output, quoted in errors
log = logging.getLogger("ray.serve")


@dataclass(frozen=True, slots=True)
class ChildTimeouts:
    """Limits for a process to start, to load its scorer, and to score a batch (longer than any caller waits)."""

    start_s: float = 60.0
    load_s: float = 1800.0
    batch_s: float = 600.0


DEFAULT_TIMEOUTS: Final = ChildTimeouts()


class ProcessLost(Exception):
    """The process ended or broke the protocol. `killed`: SIGKILL ended it, which the kernel sends to free memory."""

    def __init__(self, why: str, *, killed: bool = False) -> None:
        super().__init__(why)
        self.killed = killed


def build(name: str, settings: ScorerSettings, times: ChildTimeouts = DEFAULT_TIMEOUTS) -> Child:
    """Start a process of `serving.python` and load the scorer in it. Raises SettingsError if either fails."""
    python, tree = str(settings.serving.python), settings.model_dump(mode="json")
    if isinstance(settings, CustomSettings):
        return Child(name, python, settings.load, tree, (), times)
    return Child(name, python, KINDS, tree, (str(ROOT),), times)


class Child:
    """A scorer in a child process. One thread at a time may call `score`, which may raise.

    After MAX_DEATHS deaths in a row, or a failed start, the next start is delayed: by one second, then by twice as long
    each time, up to MAX_BACKOFF_S. Until then every outcome is an Unavailable failure.
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
        self._load_message = {"load": load, "name": name, "settings": dict(settings), "path": list(path)}
        self._deaths = 0  # in a row
        self._not_before_s = 0.0
        try:
            self._process: _Process | None = self._start()
        except ProcessLost as lost:
            raise SettingsError(f"scorer '{name}' in {python}: {lost}") from None

    @property
    def pid(self) -> int | None:
        """The id of the running process, or None."""
        return None if self._process is None else self._process.pid

    def score(self, items: Sequence[ScoreItem]) -> list[Outcome]:
        """Return one outcome per item. Raises ReplicaLost or MemoryError if the process dies with several items."""
        try:
            return self._score_once(items)
        except ProcessLost as lost:
            if len(items) > 1:  # isolation finds the item that caused it
                raise self._lost_error(lost, f"while it scored {len(items)} items; retry") from None
        try:
            return self._score_once(items)
        except ProcessLost as lost:
            raise self._lost_error(lost, "twice on this item alone", ScorerFailed) from None

    def close(self) -> None:
        """End the process."""
        self._end()
        self._process = None

    def _lost_error(self, lost: ProcessLost, when: str, kind: type[SynodError] = ReplicaLost) -> Exception:
        text = f"the process of scorer '{self._name}' was lost {when}: {lost}"
        return MemoryError(text) if lost.killed else kind(text)

    def _score_once(self, items: Sequence[ScoreItem]) -> list[Outcome]:
        if (failure := self._ensure_process()) is not None:
            return [failure] * len(items)
        assert self._process is not None
        packed = [self._pack(item) for item in items]
        trees = [one for one in packed if isinstance(one, dict)]
        try:
            answer = self._process.score(trees, self._times.batch_s) if trees else []
        except TimeoutError:
            self._discard_process()
            late = f"scorer '{self._name}' did not score {len(trees)} items within {self._times.batch_s:g} s"
            stopped = DeadlineExceeded(f"{late}, and its process was ended. Send fewer or smaller images at a time")
            return [ScoreFailure.of(stopped)] * len(items)
        except BaseException:
            self._discard_process()
            raise
        self._deaths = 0
        if isinstance(answer, Exception):
            raise answer
        outcomes = iter(answer)
        return [one if isinstance(one, ScoreFailure) else next(outcomes) for one in packed]

    def _pack(self, item: ScoreItem) -> records.Tree | ScoreFailure:
        """Return `item` as a message, or a failure if it does not fit into one or is invalid."""
        size = sum(len(one) if isinstance(one, bytes) else one.nbytes for one in item.images())
        if size > MAX_IMAGE_BYTES:
            why = f"the item's images hold {size} bytes; a scorer in a child process takes {MAX_IMAGE_BYTES} at most"
            return ScoreFailure.of(ImageTooLarge(f"{why}. Send smaller images or fewer references"))
        try:
            tree: records.Tree = records.write(ScoreRequest, ScoreRequest((item,)), lambda data: data)
            return tree
        except InvalidRequest as error:
            return ScoreFailure.of(error)

    def _ensure_process(self) -> ScoreFailure | None:
        """Start a process if none is running and the back-off has passed.

        Return None if a process runs, else a failure that says why none does.
        """
        if self._process is not None:
            return None
        why = f"its process died {self._deaths} times in a row"
        if self._now_s() >= self._not_before_s:
            try:
                self._process = self._start()
                return None
            except ProcessLost as lost:
                self._deaths = max(self._deaths, MAX_DEATHS)  # so that the next start is delayed
                self._discard_process()
                why = str(lost)
        wait_s = max(self._not_before_s - self._now_s(), 0.0)
        text = f"scorer '{self._name}' has no process: {why}. It is started again in {wait_s:.0f} s; retry then"
        return ScoreFailure.of(Unavailable(text, retry_after_s=wait_s))

    def _discard_process(self) -> None:
        self.close()
        self._deaths += 1
        if self._deaths > MAX_DEATHS:
            self._not_before_s = self._now_s() + min(2.0 ** (self._deaths - MAX_DEATHS - 1), MAX_BACKOFF_S)

    def _start(self) -> _Process:
        process = _Process(self._name, self._command)
        self._end = weakref.finalize(self, process.end)
        try:
            process.load(self._load_message, self._times)
        except BaseException:
            process.end()
            raise
        return process


class _Process:
    """One child process and its connection. Its output goes to the replica's log."""

    def __init__(self, name: str, command: Sequence[str]) -> None:
        self._name, self._python = name, command[0]
        self._tail: deque[str] = deque(maxlen=TAIL_LINES)
        self._connection, child_end = socket.socketpair()
        environ = {key: value for key, value in os.environ.items() if not key.startswith("RAY_")}  # keep Ray's token
        with child_end:
            try:
                self._popen = subprocess.Popen(
                    [*command, "--fd", str(child_end.fileno())],
                    stdin=subprocess.DEVNULL,
                    stdout=subprocess.PIPE,
                    stderr=subprocess.STDOUT,
                    pass_fds=[child_end.fileno()],
                    env={**environ, "PYTHONUNBUFFERED": "1"},
                    start_new_session=True,  # so that Ctrl-C reaches only the replica
                )
            except OSError as error:
                self._connection.close()
                raise ProcessLost(f"it cannot be started: {error}") from None
        self._reader = threading.Thread(target=self._log_output, daemon=True)
        self._reader.start()

    @property
    def pid(self) -> int:
        return self._popen.pid

    def load(self, message: Mapping[str, Any], times: ChildTimeouts) -> None:
        """Receive the greeting, send the load message and wait until the scorer is loaded. Raises ProcessLost."""
        step, limit_s = "start", times.start_s
        try:
            greeting = Node(self._receive(limit_s)).fields("protocol", "synod")
            protocol = greeting.need("protocol", Node.integer)
            if protocol != PROTOCOL:
                raise ProcessLost(
                    f"its synod {greeting.get('synod', Node.text)} speaks protocol {protocol}, the service {PROTOCOL}: "
                    f"install the service's release in {self._python}"
                )
            step, limit_s = "load the scorer", times.load_s
            frames.send(self._connection, message, frames.MAX_REQUEST_BYTES)
            answer = self._receive(limit_s)
            if answer == {"ready": True}:
                return
            if isinstance(answer, dict) and "memory" in answer:
                raise ProcessLost(f"it ran out of memory while it loaded: {answer['memory']}")
            raise ProcessLost(f"it cannot load: {records.read_error(Node(answer)).message}")
        except TimeoutError:
            raise ProcessLost(f"it did not {step} within {limit_s:g} s") from None
        except (InvalidRequest, OSError) as error:
            raise self._process_lost(error) from None

    def score(self, trees: Sequence[records.Tree], timeout_s: float) -> list[Outcome] | Exception:
        """Return the outcomes, or the exception that the scorer raised. Raises ProcessLost and TimeoutError."""
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
            raise self._process_lost(error) from None
        return [one.scores[SCORER] for one in results]

    def end(self) -> None:
        """Close the connection, which ends the process; kill it if it still runs after SHUTDOWN_S."""
        self._connection.close()
        try:
            self._popen.wait(SHUTDOWN_S)
        except subprocess.TimeoutExpired:
            self._popen.kill()
            self._popen.wait()
        self._reader.join(SHUTDOWN_S)  # a process that it started may hold its output open

    def _receive(self, timeout_s: float) -> Any:
        try:
            return frames.receive(self._connection, frames.MAX_REPLY_BYTES, timeout_s)
        except (frames.Closed, frames.BadFrame) as error:
            raise self._process_lost(error) from None

    def _process_lost(self, error: Exception) -> ProcessLost:
        """Return the reason of the loss: how the process ended, or what is wrong with its message."""
        if not isinstance(error, frames.BadFrame | InvalidRequest):  # it closed the connection and is about to end
            with contextlib.suppress(subprocess.TimeoutExpired):
                self._popen.wait(1.0)
        status = self._popen.poll()
        self._reader.join(0.0 if status is None else 1.0)
        last = f"; it printed last: {' | '.join(self._tail)}" if self._tail else ""
        if status is None:
            return ProcessLost(f"it broke the protocol: {error}{last}")
        how = f"it ended with status {status}" if status >= 0 else f"it was ended by {_signal_name(-status)}"
        hint = ", which the kernel sends when memory runs out" if status == -signal.SIGKILL else ""
        return ProcessLost(f"{how}{hint}{last}", killed=status == -signal.SIGKILL)

    def _log_output(self) -> None:
        assert self._popen.stdout is not None
        with self._popen.stdout as stream:
            while line := stream.readline(4096):
                text = line.decode(errors="replace").rstrip()
                self._tail.append(text[:200])
                log.warning("%s: %s", self._name, text)


def _signal_name(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:
        return f"signal {number}"
