"""The blocking client, over httpx."""

from __future__ import annotations

import time
from types import TracebackType
from typing import Any, Final

import httpx

from synod.client import core
from synod.contracts import ScoreRequest, ScoreResponse
from synod.errors import DeadlineExceeded, Unavailable

CONNECT_S: Final = 5.0
POLL_S: Final = 0.2


class SynodClient:
    """A plane's client; thread-safe, one connection pool. Use it as a context manager, or `close` it.

    `timeout_s` bounds a score request that sets no `timeout_ms` of its own, and every other call. `transport` replaces
    the network, for tests. Every method raises the SynodError that the plane tells of; Unavailable when it cannot be
    reached, DeadlineExceeded when it does not answer in time. A `base_url` that is no HTTP URL is a ValueError.
    """

    def __init__(self, base_url: str, *, timeout_s: float = 60.0, transport: httpx.BaseTransport | None = None) -> None:
        if not base_url.startswith(("http://", "https://")):
            raise ValueError(f"'{base_url}' is no plane's URL; give one such as http://127.0.0.1:8000")
        self._timeout_s = timeout_s
        self._http = httpx.Client(
            base_url=base_url, transport=transport, headers={"accept-encoding": "identity"}, follow_redirects=False
        )

    def score(self, request: ScoreRequest) -> ScoreResponse:
        """One result per item, in order. A score that failed is a ScoreFailure in its place, not an exception."""
        call, sent = core.score_call(request, self._timeout_s)
        return core.read_score(self._send(call), sent)

    def scorers(self) -> list[dict[str, Any]]:
        """The scorers served: name, needs, low, high, source, summary."""
        return core.read_scorers(self._send(core.get_call("/v1/scorers", self._timeout_s)))

    def wait_ready(self, timeout_s: float) -> None:
        """Return once every replica can score. Raises Unavailable after `timeout_s`, saying what is missing."""
        ends_s = time.monotonic() + timeout_s
        while True:
            left_s = ends_s - time.monotonic()
            try:
                missing = core.pending(self._send(core.get_call("/readyz", max(left_s, POLL_S))))
            except Unavailable as error:
                missing = str(error)
            if missing is None:
                return
            if ends_s - time.monotonic() <= POLL_S:
                raise Unavailable(f"not ready after {timeout_s:g} s, waiting for: {missing}")
            time.sleep(POLL_S)

    def close(self) -> None:
        """Close the connections."""
        self._http.close()

    def __enter__(self) -> SynodClient:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _send(self, call: core.Call) -> core.Answer:
        timeout = httpx.Timeout(call.timeout_s, connect=min(CONNECT_S, call.timeout_s))
        try:
            answer = self._http.request(
                call.method, call.path, headers=dict(call.headers), content=call.body, timeout=timeout
            )
        except (httpx.ConnectTimeout, httpx.ConnectError) as error:
            raise Unavailable(
                f"no plane answers at {self._http.base_url} ({error}); start one, or give its URL"
            ) from None
        except httpx.TimeoutException:
            raise DeadlineExceeded(
                f"{self._http.base_url} gave no answer to {call.path} within {call.timeout_s:g} s; allow more time"
            ) from None
        except httpx.RequestError as error:
            raise Unavailable(f"the connection to {self._http.base_url} broke ({error}); retry") from None
        return core.Answer(answer.status_code, answer.headers.get("content-type", ""), answer.content)
