"""Proxies of the environment: their choice over HTTP and gRPC, and the errors that name them."""

from __future__ import annotations

import asyncio
import ssl
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from synod import cli
from synod.client import AsyncSynodClient, SynodClient
from synod.client.proxy import find_proxy
from synod.errors import PermissionDenied, SettingsError, SynodError, Unavailable

HOST = "http://rewards.corp:8000"
PROXY = "http://proxy.corp:3128"
VARIABLES = ("http_proxy", "https_proxy", "all_proxy", "no_proxy", "grpc_proxy", "no_grpc_proxy")


@pytest.fixture(autouse=True)
def no_variables(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in VARIABLES:
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.upper(), raising=False)


@pytest.mark.parametrize(
    ("url", "environ", "setting"),
    [
        (HOST, {}, None),
        (HOST, {"http_proxy": PROXY}, f"http_proxy={PROXY}"),
        (HOST, {"HTTP_PROXY": PROXY}, f"HTTP_PROXY={PROXY}"),
        (HOST, {"HTTP_PROXY": PROXY, "http_proxy": ""}, None),
        (HOST, {"HTTP_PROXY": PROXY, "REQUEST_METHOD": "GET"}, None),
        (HOST, {"https_proxy": PROXY}, None),
        ("https://rewards.corp", {"https_proxy": PROXY}, f"https_proxy={PROXY}"),
        (HOST, {"ALL_PROXY": PROXY}, f"ALL_PROXY={PROXY}"),
        (HOST, {"http_proxy": "user:secret@proxy.corp:3128"}, "http_proxy=proxy.corp:3128"),
        (HOST, {"http_proxy": "http://user:secret@proxy.corp:3128"}, f"http_proxy={PROXY}"),
        ("grpc://rewards.corp:9000", {"http_proxy": PROXY}, f"http_proxy={PROXY}"),
        ("grpc://rewards.corp:9000", {"grpc_proxy": PROXY, "http_proxy": "http://x:1"}, f"grpc_proxy={PROXY}"),
        ("grpc://rewards.corp:9000", {"HTTP_PROXY": PROXY, "ALL_PROXY": PROXY}, None),
        ("grpc://rewards.corp:9000", {"http_proxy": PROXY, "no_grpc_proxy": "corp"}, None),
    ],
)
def test_applicable_proxy_variable(url: str, environ: dict[str, str], setting: str | None) -> None:
    found = find_proxy(url, environ)
    assert (found.setting if found else None) == setting


@pytest.mark.parametrize("host", ["127.0.0.1", "127.8.8.8", "localhost", "a.localhost", "[::1]", "[::ffff:127.0.0.1]"])
@pytest.mark.parametrize("scheme", ["http", "https", "grpc"])
@pytest.mark.parametrize("proxy", [PROXY, "socks5://proxy:9", "nonsense://"])
def test_loopback_bypasses_the_proxy(host: str, scheme: str, proxy: str) -> None:
    names = ("http_proxy", "https_proxy", "all_proxy", "grpc_proxy")
    assert find_proxy(f"{scheme}://{host}:8000", dict.fromkeys(names, proxy)) is None


@pytest.mark.parametrize(
    ("host", "no_proxy", "direct"),
    [
        ("rewards.corp", "localhost,127.0.0.1,10.0.0.0/8,fd00::/8", False),
        ("10.1.2.3", "localhost,127.0.0.1,10.0.0.0/8,fd00::/8", True),
        ("11.1.2.3", "10.0.0.0/8", False),
        ("[fd12::7]", "10.0.0.0/8, fd00::/8", True),
        ("[fe80::7]", "fd00::/8", False),
        ("[2001:db8::1]", "[2001:db8::1]", True),
        ("[2001:db8::1]", "2001:DB8:0::1", True),
        ("[2001:db8::1]", "[2001:db8::1]:8000", True),
        ("[2001:db8::1]", "[2001:db8::1]:9000", False),
        ("10.1.2.3", "10.1.2.3", True),
        ("10.1.2.3", "10.1.2.3:8000", True),
        ("10.1.2.3", "2.3", False),
        ("rewards.corp", "corp", True),
        ("rewards.corp", ".corp", True),
        ("rewards.corp", "*.corp", True),
        ("REWARDS.corp", "rewards.CORP", True),
        ("rewards.corp", "wards.corp", False),
        ("rewards.corp", "rewards.corp:8000", True),
        ("rewards.corp", "rewards.corp:8001", False),
        ("rewards.corp", "http://rewards.corp", True),
        ("rewards.corp", "a,,*", True),
        ("rewards.corp", "[::1,host:port,%%,[", False),
    ],
)
def test_no_proxy(host: str, no_proxy: str, direct: bool) -> None:
    environ = {"http_proxy": PROXY, "no_proxy": no_proxy}
    assert (find_proxy(f"http://{host}:8000", environ) is None) is direct
    assert (find_proxy(f"grpc://{host}:8000", environ) is None) is direct


@pytest.mark.parametrize(
    ("url", "value", "why"),
    [
        (HOST, "ftp://proxy.corp", "unsupported scheme; the supported ones are http, https, socks5, socks5h"),
        (HOST, "http://proxy.corp:port", "is not the URL of a proxy"),
        (HOST, "http://", "names no host"),
        (HOST, "http://[::1", "is not the URL of a proxy"),
        (HOST, "socks5://user:secret@proxy.corp:9", "pip install 'httpx[socks]'"),
        ("grpc://rewards.corp:9000", "https://proxy.corp", "unsupported scheme; the supported ones are http"),
    ],
)
def test_unusable_proxy_is_refused(monkeypatch: pytest.MonkeyPatch, url: str, value: str, why: str) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    monkeypatch.setenv("http_proxy", value)
    for client in (SynodClient, AsyncSynodClient):
        with pytest.raises(SettingsError) as refused:
            client(url)
        message = str(refused.value)
        assert message.startswith(f"http_proxy={value.replace('user:secret@', '')} ")
        assert why in message
        assert "secret" not in message
        assert "unset it, or add rewards.corp to no_proxy" in message


@contextmanager
def answering(status: int, headers: dict[str, str], body: bytes) -> Iterator[tuple[str, list[str]]]:
    """Serve one response to everything; yield the URL and the request lines received."""
    seen: list[str] = []

    class Handler(BaseHTTPRequestHandler):
        def answer(self) -> None:
            seen.append(f"{self.command} {self.path}")
            self.send_response(status)
            for name, value in {**headers, "content-length": str(len(body))}.items():
                self.send_header(name, value)
            self.end_headers()
            self.wfile.write(body)

        do_GET = do_POST = do_CONNECT = answer  # noqa: N815

        def log_message(self, format: str, *args: object) -> None: ...

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}", seen
    server.shutdown()
    thread.join()
    server.server_close()


def refusal(url: str) -> tuple[SynodError, SynodError]:
    """Return the errors that the blocking and the asyncio client raise."""

    async def received() -> None:
        async with AsyncSynodClient(url, timeout_s=20, retries=0) as client:
            await client.scorers()

    with SynodClient(url, timeout_s=20, retries=0) as client, pytest.raises(SynodError) as one:
        client.scorers()
    with pytest.raises(SynodError) as other:
        asyncio.run(received())
    return one.value, other.value


@pytest.mark.parametrize("status", [403, 407])
@pytest.mark.parametrize("scheme", ["http", "https"])
def test_proxy_refusal_names_the_proxy(monkeypatch: pytest.MonkeyPatch, status: int, scheme: str) -> None:
    with answering(status, {"content-type": "text/html"}, b"<html>Squid</html>") as (proxy, seen):
        monkeypatch.setenv(f"{scheme}_proxy", proxy.replace("//", "//user:secret@"))
        for error in refusal(f"{scheme}://rewards.invalid"):
            assert type(error) is PermissionDenied
            assert f"{scheme}_proxy={proxy}" in str(error)
            assert str(status) in str(error)
            assert "no_proxy" in str(error)
            assert "secret" not in str(error)
    target = "GET http://rewards.invalid/v1/scorers" if scheme == "http" else "CONNECT rewards.invalid:443"
    assert seen == [target] * 2


@pytest.mark.parametrize("scheme", ["http", "grpc"])
def test_bad_gateway_of_a_proxy_is_retried(monkeypatch: pytest.MonkeyPatch, scheme: str) -> None:
    with answering(502, {"content-type": "text/html"}, b"<html>no route</html>") as (proxy, _):
        monkeypatch.setenv("http_proxy", proxy)
        for error in refusal(f"{scheme}://rewards.invalid:9000"):
            assert type(error) is Unavailable
            assert f"proxy http_proxy={proxy}" in str(error)


def test_unreachable_proxy_and_its_pages_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:9")
    for error in refusal("http://rewards.invalid"):
        assert type(error) is Unavailable
        assert "cannot be reached through the proxy http_proxy=http://127.0.0.1:9" in str(error)
    with answering(200, {"content-type": "text/html"}, b"<html>log in</html>") as (proxy, _):
        monkeypatch.setenv("http_proxy", proxy)
        for error in refusal("http://rewards.invalid"):
            assert f"the proxy http_proxy={proxy}" in str(error)


@pytest.mark.parametrize(
    "environ",
    [
        {"NO_PROXY": "localhost,127.0.0.1,10.0.0.0/8,fd00::/8"},
        {"no_proxy": "127.0.0.1,[::1]"},
        {"ALL_PROXY": "socks5://127.0.0.1:9"},
        {"http_proxy": "http://127.0.0.1:9"},
    ],
)
def test_command_reaches_loopback_without_proxy(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], environ: dict[str, str]
) -> None:
    for name, value in environ.items():
        monkeypatch.setenv(name, value)
    body = b'{"scorers": [{"name": "ber"}], "ensembles": {}, "limits": {}}'
    with answering(200, {"content-type": "application/json"}, body) as (url, seen):
        assert cli.main(["scorers", "--url", url]) == 0
    assert seen == ["GET /v1/scorers"]
    assert "ber" in capsys.readouterr().out


def test_certificates_of_the_environment_are_used(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "not.pem").write_text("not a certificate")
    monkeypatch.setenv("SSL_CERT_FILE", f"{tmp_path}/not.pem")
    with pytest.raises(ssl.SSLError):
        SynodClient("https://rewards.invalid")
