"""Ask a vision-language model over HTTP: any endpoint with OpenAI's chat completions (vLLM, SGLang, hosted).

A verdict is JSON by a schema. A verdict that cannot be read is asked for once more, with the fault, and then fails. A
question is asked again after 429, 408, 5xx, a lost connection or a timeout, with jittered pauses on top of Retry-After,
within three times `limits.timeout_s`; one that its batch leaves no time for fails as late. `TokenBudget` and
`RequestPacer` say when a request may start. Threads may share a Judge.
"""

from __future__ import annotations

import functools
import math
import ssl
import time
import weakref
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import Any, Final, TypeVar

import httpx

from services.models.rate_limit import RequestPacer, TokenBudget
from services.models.settings import JudgeEndpoint
from services.models.types import MAX_ANSWER_TOKENS, Completion, Form, Question, Reply, Verdict, png_content
from synod.errors import (
    DeadlineExceeded,
    InvalidRequest,
    Overloaded,
    ScorerFailed,
    SynodError,
    Unavailable,
)
from synod.formats import load_json
from synod.reader import Node, quote
from synod.retry import RetryPolicy
from synod.secret import from_environment, from_file

MAX_ANSWER_BYTES: Final = 2**20
LONGEST_S: Final = 540.0  # of a batch: a replica that runs one for 600 s counts as stuck and is replaced
Asked = TypeVar("Asked")
Answer = TypeVar("Answer")
_RETRY: Final = RetryPolicy(max_retries=8, base_s=0.5, max_s=20.0)


class Judge:
    """`clock` and `sleep` are in seconds. Connections and threads end with the object."""

    def __init__(
        self,
        endpoint: JudgeEndpoint,
        key: str | None,
        *,
        retry: RetryPolicy = _RETRY,
        clock: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        self._endpoint, self._key, self._retry, self._clock, self._sleep = endpoint, key, retry, clock, sleep
        self._url = f"{endpoint.url.rstrip('/')}/chat/completions"
        headers = {} if key is None else {"authorization": f"Bearer {key}"}
        self._http = httpx.Client(headers=headers, timeout=endpoint.limits.timeout_s, verify=_tls())
        self._threads = ThreadPoolExecutor(endpoint.limits.concurrency, thread_name_prefix="judge")
        self._pace = RequestPacer(endpoint.limits.requests_per_minute, clock, sleep)
        self.budget = TokenBudget(endpoint.limits.max_tokens)
        weakref.finalize(self, _close, self._http, self._threads)

    def ask_all(self, questions: Sequence[Question]) -> list[Verdict | SynodError]:
        """Return a verdict or an error for each question, in order; at most `concurrency` requests at a time."""
        return self._all(self.ask, questions)

    def complete_all(self, completions: Sequence[Completion]) -> list[Reply | SynodError]:
        """Return a reply or an error for each completion, in order; at most `concurrency` requests at a time."""
        return self._all(self.complete, completions)

    def complete(self, completion: Completion, batch_ends_s: float = math.inf) -> Reply:
        """Ask for a completion. Raises JudgeBudget, ScorerFailed, Unavailable and its children.

        ScorerFailed is also raised if first tokens were requested and not reported.
        """
        choice, used = self._send(completion.body(), self._ends_s(batch_ends_s))
        first = () if completion.top_logprobs is None else _first_tokens(choice)
        return Reply(_text(choice), first, used)

    def ask(self, question: Question, batch_ends_s: float = math.inf) -> Verdict:
        """Ask for a verdict. Raises JudgeBudget, ScorerFailed, Unavailable and its children."""
        ends_s = self._ends_s(batch_ends_s)
        messages = [{"role": "user", "content": _content(question)}]
        text, used = self._complete(messages, question.form, ends_s)
        try:
            return _verdict(text, question.form, Verdict(0.0, "", False, used))
        except (InvalidRequest, ValueError, RecursionError) as fault:
            asked = f"That is no verdict: {fault}. Answer again with nothing but the JSON object."
        messages += [{"role": "assistant", "content": text}, {"role": "user", "content": asked}]
        text, more = self._complete(messages, question.form, ends_s)
        try:
            return _verdict(text, question.form, Verdict(0.0, "", True, used + more))
        except (InvalidRequest, ValueError, RecursionError) as fault:
            raise ScorerFailed(f"the judge's verdict cannot be read, nor could its repair: {fault}") from None

    def _all(self, ask: Callable[[Asked, float], Answer], batch: Sequence[Asked]) -> list[Answer | SynodError]:
        """Ask everything of a batch. Requests start until `limits.timeout_s` before LONGEST_S, and may take as long."""
        ends_s = self._clock() + max(LONGEST_S - self._endpoint.limits.timeout_s, 0.0)

        def settled(one: Asked) -> Answer | SynodError:
            try:
                return ask(one, ends_s)
            except SynodError as error:
                return error

        return list(self._threads.map(settled, batch))

    def _ends_s(self, batch_ends_s: float) -> float:
        """Return until when a question may be repeated. Raises DeadlineExceeded if its batch has no time left."""
        now_s = self._clock()
        if now_s > batch_ends_s:
            raise DeadlineExceeded(
                f"the judge took {LONGEST_S:.0f} s for a part of a batch; raise limits.concurrency, or lower the "
                "scorer's serving.max_batch_images"
            )
        return min(now_s + self._endpoint.limits.verdict_timeout_s, batch_ends_s)

    def _complete(self, messages: Sequence[Mapping[str, Any]], form: Form, ends_s: float) -> tuple[str, int]:
        """Return the answer's text and its tokens."""
        about = {
            "messages": list(messages),
            "max_tokens": MAX_ANSWER_TOKENS,
            "response_format": {"type": "json_schema", "json_schema": form.schema()},
        }
        choice, used = self._send(about, ends_s)
        return _text(choice), used

    def _send(self, about: Mapping[str, Any], ends_s: float) -> tuple[Mapping[str, Any], int]:
        """Return the first choice and its tokens. Retries as described above."""
        body = {"model": self._endpoint.model, "temperature": 0.0, **about}
        attempt = 0
        while True:
            self._pace.wait(ends_s)
            with self.budget.request() as charge:
                try:
                    choice, charge.tokens = self._answer(self._post(body))
                    return choice, charge.tokens
                except SynodError as error:
                    charge.unknown = isinstance(error, DeadlineExceeded)  # it may have been answered, and charged
                    pause_s = self._retry.pause_s(error, attempt, ends_s - self._clock())
                    if pause_s is None:
                        raise
            self._sleep(pause_s)
            attempt += 1

    def _post(self, body: Mapping[str, Any]) -> bytes:
        """Return the body of a 200. Raises the error of any other answer."""
        late_s = self._clock() + self._endpoint.limits.timeout_s
        try:
            with self._http.stream("POST", self._url, json=body) as response:
                data = bytearray()
                for chunk in response.iter_bytes():
                    data += chunk
                    if len(data) > MAX_ANSWER_BYTES:
                        raise ScorerFailed(f"the judge's answer is over {MAX_ANSWER_BYTES} bytes")
                    if self._clock() > late_s:  # the client's own limit is for each read
                        raise self._late()
        except httpx.TimeoutException:
            raise self._late() from None
        except httpx.RequestError as error:
            raise Unavailable(f"the judge at {self._url} was lost: {type(error).__name__}") from None
        if response.status_code != 200:
            raise self._refusal(response, bytes(data))
        return bytes(data)

    def _late(self) -> DeadlineExceeded:
        return DeadlineExceeded(f"no answer of the judge within timeout_s = {self._endpoint.limits.timeout_s:g}")

    def _refusal(self, response: httpx.Response, data: bytes) -> SynodError:
        status, wait_s = response.status_code, _seconds(response.headers.get("retry-after", ""))
        if status in (401, 403):  # nothing is quoted: some servers repeat the key
            return ScorerFailed(f"the judge at {self._url} refuses the key ({status}); see key_env and key_file")
        said = self._quoted(data)
        if status == 429:
            return Overloaded(f"the judge is overloaded ({status}): {said}", retry_after_s=wait_s)
        if status == 408 or status >= 500:
            return Unavailable(f"the judge failed ({status}): {said}", retry_after_s=wait_s)
        return ScorerFailed(f"the judge refuses the request ({status}): {said}")

    def _answer(self, data: bytes) -> tuple[Mapping[str, Any], int]:
        """Return the first choice and its tokens. A refusal or an empty text is an answer without a verdict."""
        try:
            tree = load_json(data)
            choice = tree["choices"][0]
            _ = choice["message"]["content"]
            usage = tree.get("usage") or {}
            used = int(usage.get("prompt_tokens", 0)) + int(usage.get("completion_tokens", 0))
        except (InvalidRequest, ValueError, RecursionError, LookupError, TypeError, AttributeError):
            raise ScorerFailed(f"the judge's answer is not a chat completion: {self._quoted(data)}") from None
        if self.budget.limited and used <= 0:
            raise ScorerFailed("the judge reports no usage, so max_tokens cannot be enforced; remove it from limits")
        return choice, used

    def _quoted(self, data: bytes) -> str:
        """Return what a message may quote of an answer: its start, without the key."""
        text = data.decode(errors="replace")
        return quote(text.replace(self._key, "***") if self._key else text, 200)


@functools.cache
def _tls() -> ssl.SSLContext:
    """Reading the authorities takes tenths of a second: once a process."""
    return httpx.create_ssl_context()


def _close(http: httpx.Client, threads: ThreadPoolExecutor) -> None:
    threads.shutdown(wait=False, cancel_futures=True)
    http.close()


def load(endpoint: JudgeEndpoint) -> Judge:
    """Return the judge with its key, from the settings' environment variable or file. Raises SettingsError."""
    return Judge(endpoint, _key(endpoint))


def _key(endpoint: JudgeEndpoint) -> str | None:
    if endpoint.key_env is not None:
        return from_environment("key_env", endpoint.key_env).token()
    if endpoint.key_file is not None:
        return from_file("key_file", endpoint.key_file).token()
    return None


def _content(question: Question) -> list[dict[str, Any]]:
    text = {"type": "text", "text": question.text}
    return [text] if question.png is None else [text, png_content(question.png)]


def _text(choice: Mapping[str, Any]) -> str:
    text = choice["message"]["content"]
    return text if isinstance(text, str) else ""


def _first_tokens(choice: Mapping[str, Any]) -> tuple[tuple[str, float], ...]:
    """Return the likeliest first tokens of a choice. Raises ScorerFailed where the server reported none."""
    try:
        tokens = choice["logprobs"]["content"][0]["top_logprobs"]
        first = tuple((str(one["token"]), float(one["logprob"])) for one in tokens)
    except (LookupError, TypeError, ValueError):
        first = ()
    if not first or any(math.isnan(logprob) or logprob > 1e-3 for _, logprob in first):
        missing = "the judge reports no log-probabilities of its first token"
        raise ScorerFailed(f"{missing}; take a server that answers 'top_logprobs', such as vLLM")
    return first


def _verdict(text: str, form: Form, blank: Verdict) -> Verdict:
    """Return `blank` with value and reason. Raises InvalidRequest, ValueError, RecursionError."""
    node = Node(load_json(text.encode()), "verdict")
    value = form.read(node)
    reason = node.table(lambda child: child).get("reason")
    return replace(blank, value=value, reason="" if reason is None else reason.text())


def _seconds(text: str) -> float | None:
    """Return a Retry-After in seconds; None for its other form, a date."""
    return float(text) if text.isascii() and text.replace(".", "", 1).isdigit() else None
