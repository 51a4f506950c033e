"""The blocking and the asyncio transport over HTTP, by httpx."""

from __future__ import annotations

import contextlib
import time
from collections.abc import AsyncGenerator, Generator, Iterator, Mapping
from typing import Any, Final

import anyio  # a dependency of httpx
import httpx

from synod.client.core import CHECK_URL, Call, Operation, RawResponse, error_of_response, error_type_of_status
from synod.client.headers import trace_headers
from synod.client.proxy import find_proxy
from synod.client.transport import CONNECT_S
from synod.codec import JSON, MSGPACK
from synod.errors import DeadlineExceeded, SettingsError, SynodError, Unavailable

NDJSON: Final = "application/x-ndjson"
_ROUTES: Final[Mapping[Operation, tuple[str, str, str]]] = {  # method, path, accepted answer
    "score": ("POST", "/v1/score", MSGPACK.content_type),
    "stream": ("POST", "/v1/score", NDJSON),
    "put_images": ("PUT", "/v1/images", MSGPACK.content_type),
    "scorers": ("GET", "/v1/scorers", JSON.content_type),
    "ready": ("GET", "/readyz", JSON.content_type),
}


class _Http:
    """What both transports share: a call becomes a request, and an exception an error.

    httpx does not read the proxy variables itself: see `synod.client.proxy`.
    """

    codec = MSGPACK
    part_codec = JSON

    def __init__(self, base_url: str, token: str | None, transport: Any, network: Any, client: Any) -> None:
        self._base_url = base_url
        self._proxy = None if transport is not None else find_proxy(base_url)
        try:
            transport = transport or network(proxy=None if self._proxy is None else self._proxy.url)
        except (httpx.InvalidURL, ValueError, ImportError) as error:
            if self._proxy is None:
                raise
            raise SettingsError(
                f"{self._proxy.setting}: cannot be used as a proxy ({error}); correct or unset it, "
                "or add the service's host to no_proxy"
            ) from None
        headers = {"accept-encoding": "identity"} | ({"authorization": f"Bearer {token}"} if token else {})
        self._http: Any = client(transport=transport, base_url=base_url, headers=headers, follow_redirects=False)

    def _request(self, call: Call) -> dict[str, Any]:
        method, path, accept = _ROUTES[call.operation]
        headers = {"accept": accept, **trace_headers()}
        headers |= {"content-type": self.codec.content_type} if call.body else {}
        timeout = httpx.Timeout(call.timeout_s, connect=min(CONNECT_S, call.timeout_s))
        return {"method": method, "url": path, "headers": headers, "content": call.body, "timeout": timeout}

    @contextlib.contextmanager
    def _errors(self, call: Call) -> Iterator[None]:
        try:
            yield
        except httpx.ProxyError as error:
            assert self._proxy is not None
            raise _refusal_type(str(error))(
                f"the proxy {self._proxy.setting} refuses to connect to {self._base_url} ({error}); "
                "check the proxy and its credentials, or add the service's host to no_proxy"
            ) from None
        except (httpx.ConnectTimeout, httpx.ConnectError) as error:
            if self._proxy is not None:
                raise Unavailable(
                    f"{self._base_url} cannot be reached through the proxy {self._proxy.setting} ({error}); "
                    "check the proxy, or add the service's host to no_proxy"
                ) from None
            raise Unavailable(
                f"no service responds at {self._base_url} ({error}); start one, or correct the URL"
            ) from None
        except (httpx.TimeoutException, TimeoutError):
            path = _ROUTES[call.operation][1]
            raise DeadlineExceeded(
                f"{self._base_url} did not answer {path} within {call.timeout_s:g} s; allow more time"
            ) from None
        except httpx.RequestError as error:
            route = "" if self._proxy is None else f" through the proxy {self._proxy.setting}"
            raise Unavailable(f"the connection to {self._base_url}{route} broke ({error}); retry") from None

    def _raw(self, response: httpx.Response, body: bytes) -> RawResponse:
        headers = response.headers
        wait_s = _seconds(headers.get("retry-after", ""))
        setting = None if self._proxy is None else self._proxy.setting
        return RawResponse(response.status_code, headers.get("content-type", ""), body, wait_s, setting)

    def _refusal(self, response: httpx.Response) -> SynodError:
        raw = self._raw(response, response.content)
        if raw.status == 200:
            return SynodError(f"the response is of type {raw.content_type}, but {NDJSON} was requested; {CHECK_URL}")
        return error_of_response(raw)


class HttpTransport(_Http):
    """Send calls over HTTP; blocking. `transport` replaces the network, for tests.

    A response that is not complete at its deadline is given up at its next part, so a call may end one timeout late. A
    body that is sent slowly is not interrupted.
    """

    def __init__(self, base_url: str, token: str | None, transport: httpx.BaseTransport | None = None) -> None:
        super().__init__(base_url, token, transport, httpx.HTTPTransport, httpx.Client)

    def send(self, call: Call) -> RawResponse:
        ends_s = time.monotonic() + call.timeout_s
        body = bytearray()
        with self._errors(call), self._http.stream(**self._request(call)) as response:
            for piece in response.iter_bytes():
                if time.monotonic() > ends_s:  # httpx's own limit is for each read
                    raise httpx.ReadTimeout("the response is not complete")
                body += piece
            return self._raw(response, bytes(body))

    def stream(self, call: Call) -> Generator[bytes]:
        with self._errors(call), self._http.stream(**self._request(call)) as response:
            if not _is_stream(response):
                response.read()
                raise self._refusal(response)
            for line in response.iter_lines():
                if line:
                    yield line.encode()

    def close(self) -> None:
        self._http.close()


class AsyncHttpTransport(_Http):
    """Send calls over HTTP from one event loop. `transport` replaces the network, for tests."""

    def __init__(self, base_url: str, token: str | None, transport: httpx.AsyncBaseTransport | None = None) -> None:
        super().__init__(base_url, token, transport, httpx.AsyncHTTPTransport, httpx.AsyncClient)

    async def send(self, call: Call) -> RawResponse:
        with self._errors(call), anyio.fail_after(call.timeout_s):  # httpx's own limit is for each read and write
            response = await self._http.request(**self._request(call))
            return self._raw(response, response.content)

    async def stream(self, call: Call) -> AsyncGenerator[bytes]:
        with self._errors(call):
            async with self._http.stream(**self._request(call)) as response:
                if not _is_stream(response):
                    await response.aread()
                    raise self._refusal(response)
                async for line in response.aiter_lines():
                    if line:
                        yield line.encode()

    async def close(self) -> None:
        await self._http.aclose()


def _is_stream(response: httpx.Response) -> bool:
    kind: str = response.headers.get("content-type", "")
    return response.status_code == 200 and kind.partition(";")[0].strip().lower() == NDJSON


def _refusal_type(refusal: str) -> type[SynodError]:
    """Return the error type of a proxy's refusal, such as "407 Proxy Authentication Required"."""
    status = refusal.partition(" ")[0]
    return error_type_of_status(int(status)) if status.isascii() and status.isdigit() else Unavailable


def _seconds(text: str) -> float | None:
    """Read a Retry-After in seconds. Its other form, a date, is ignored: clocks differ."""
    return float(text) if text.isascii() and text.replace(".", "", 1).isdigit() else None
