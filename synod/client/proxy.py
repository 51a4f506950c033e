"""Choose the environment's proxy for a URL, once, when a client is made. No I/O.

Over HTTP the variables are curl's: `http_proxy` or `https_proxy` by the URL's scheme, else `all_proxy`; upper
case too. Over gRPC they are gRPC's: `grpc_proxy`, `https_proxy`, `http_proxy`, in lower case. `no_proxy` (over gRPC
`no_grpc_proxy` first) lists what is reached directly: hosts with their subdomains and addresses, each with or without
a port, networks such as `10.0.0.0/8` or `fd00::/8`, or `*`. A loopback address is never reached through a proxy.
"""

from __future__ import annotations

import importlib.util
import ipaddress
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Final
from urllib.parse import SplitResult, urlsplit

from synod.errors import SettingsError

DEFAULT_PORTS: Final = {"http": 80, "https": 443, "grpc": 80, "grpcs": 443}
_SOCKS: Final = ("socks5", "socks5h")


@dataclass(frozen=True, slots=True)
class Proxy:
    """A proxy. `url` may hold credentials; `setting` is the variable and value without them, for messages."""

    url: str
    setting: str


def find_proxy(url: str, environ: Mapping[str, str] = os.environ) -> Proxy | None:
    """Return the proxy for a service's URL, or None when it is reached directly.

    Raises SettingsError for a proxy that cannot be used, naming the variable, its value and the remedy.
    """
    target = urlsplit(url)
    grpc = target.scheme.startswith("grpc")
    host, port = target.hostname or "", _port(target) or DEFAULT_PORTS.get(target.scheme)
    names = ("grpc_proxy", "https_proxy", "http_proxy") if grpc else (f"{target.scheme}_proxy", "all_proxy")
    found = next(((name, value) for name in names for name, value in _set(name, environ, upper=not grpc)), None)
    if found is None or _is_loopback(host) or _is_excluded(host, port, _no_proxy(environ, grpc=grpc)):
        return None
    return _usable(*found, host, ("http",) if grpc else ("http", "https", *_SOCKS))


def _set(name: str, environ: Mapping[str, str], *, upper: bool = True) -> Iterator[tuple[str, str]]:
    """Yield a variable that is set and not empty. Lower case wins over upper case, even when it is empty."""
    spelled = name if name in environ or not upper else name.upper()
    if spelled == "HTTP_PROXY" and "REQUEST_METHOD" in environ:  # in CGI a caller's header sets it (httpoxy)
        return
    if value := environ.get(spelled, "").strip():
        yield spelled, value


def _no_proxy(environ: Mapping[str, str], *, grpc: bool) -> list[str]:
    names = ("no_grpc_proxy", "no_proxy") if grpc else ("no_proxy",)
    value = next((value for name in names for _, value in _set(name, environ)), "")
    return [entry.strip().lower() for entry in value.split(",") if entry.strip()]


def _usable(name: str, value: str, host: str, schemes: tuple[str, ...]) -> Proxy:
    url = value if "://" in value else f"http://{value}"
    scheme, _, rest = url.partition("://")
    shown = f"{name}={scheme + '://' if '://' in value else ''}{rest.rpartition('@')[2]}"
    remedy = f"correct {name}, unset it, or add {host} to no_proxy"
    try:
        parts = urlsplit(url)
        parts.port  # noqa: B018  # raises ValueError for an invalid port
    except ValueError as error:
        raise SettingsError(f"{shown} is not the URL of a proxy ({error}); {remedy}") from None
    if not parts.hostname:
        raise SettingsError(f"{shown} is not the URL of a proxy, because it names no host; {remedy}")
    if parts.scheme not in schemes:
        raise SettingsError(f"{shown} has an unsupported scheme; the supported ones are {', '.join(schemes)}; {remedy}")
    if parts.scheme in _SOCKS and importlib.util.find_spec("socksio") is None:
        raise SettingsError(
            f"{shown} needs the package socksio, which is not installed; pip install 'httpx[socks]', or {remedy}"
        )
    return Proxy(url, shown)


def _is_loopback(host: str) -> bool:
    if host == "localhost" or host.endswith(".localhost"):
        return True
    address = _address(host)
    return address is not None and (address.is_loopback or address.is_unspecified)


def _is_excluded(host: str, port: int | None, entries: list[str]) -> bool:
    return any(_covers(entry, host.lower(), port) for entry in entries)


def _covers(entry: str, host: str, port: int | None) -> bool:
    """Return whether one entry of `no_proxy` covers the host. An invalid entry covers none."""
    if entry == "*":
        return True
    address = _address(host)
    try:
        network = ipaddress.ip_network(entry.strip("[]"), strict=False)
    except ValueError:
        pass
    else:
        return address is not None and address in network
    try:
        parts = urlsplit(entry if "://" in entry else f"//{entry}")
        named, only = parts.hostname or "", parts.port
    except ValueError:
        return False
    if only is not None and only != port:
        return False
    if address is not None:
        return address == _address(named)
    named = named.removeprefix("*").removeprefix(".")
    return bool(named) and (host == named or host.endswith(f".{named}"))


def _address(host: str) -> ipaddress.IPv4Address | ipaddress.IPv6Address | None:
    """Parse a host that is an address; an IPv4-mapped IPv6 address is that IPv4 address."""
    try:
        address = ipaddress.ip_address(host.strip("[]").partition("%")[0])
    except ValueError:
        return None
    mapped = address.ipv4_mapped if isinstance(address, ipaddress.IPv6Address) else None
    return mapped or address


def _port(target: SplitResult) -> int | None:
    try:
        return target.port
    except ValueError:
        return None
