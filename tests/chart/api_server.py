"""A fake Kubernetes API server with what Helm needs: discovery, and storage of the objects that are sent."""

from __future__ import annotations

import base64
import json
import threading
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import urlsplit

import yaml

from tests.chart.rendering import Object

Stored = dict[str, Object]  # by path, "/api/v1/namespaces/prod/secrets/demo"
Groups = dict[str, dict[str, str]]  # apiVersion -> kind -> its plural, as in a path


@contextmanager
def api_server(objects: Iterable[Object]) -> Iterator[tuple[str, Stored]]:
    """Run a server on loopback that knows the kinds of `objects`; yield its kubeconfig and its stored objects."""
    groups: Groups = {}
    for one in objects:
        kind = one["kind"].lower()
        plural = f"{kind[:-1]}ies" if kind.endswith("y") else f"{kind}s"
        groups.setdefault(one["apiVersion"], {})[one["kind"]] = plural
    stored: Stored = {}
    handler = type("Handler", (_Handler,), {"groups": groups, "stored": stored})
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    try:
        yield kubeconfig(f"http://127.0.0.1:{server.server_port}"), stored
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    groups: Groups
    stored: Stored

    def do_GET(self) -> None:
        path = urlsplit(self.path).path
        if path == "/openapi/v2":
            return self._answer(b"")  # no schemas: nothing to validate by
        return self._answer(discovery(path, self.groups) or self.stored.get(path))

    def do_PATCH(self) -> None:
        """Store an applied object, which is sent whole. Convert a Secret's `stringData`, which is write-only."""
        path = urlsplit(self.path).path
        one: Object = yaml.safe_load(self._body())
        assert self.headers["content-type"].startswith("application/apply-patch")
        for key, text in one.pop("stringData", {}).items():
            one.setdefault("data", {})[key] = base64.b64encode(text.encode()).decode()
        self.stored[path] = one
        self._answer(one)

    def do_DELETE(self) -> None:
        self._body()
        self._answer(self.stored.pop(urlsplit(self.path).path, None))

    def _body(self) -> bytes:
        return self.rfile.read(int(self.headers["content-length"]))

    def _answer(self, found: Object | bytes | None) -> None:
        missing = {"kind": "Status", "apiVersion": "v1", "status": "Failure", "reason": "NotFound", "code": 404}
        body = found if isinstance(found, bytes) else json.dumps(found or missing).encode()
        self.send_response(HTTPStatus.NOT_FOUND if found is None else HTTPStatus.OK)
        self.send_header("content-type", "application/json")
        self.send_header("content-length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *arguments: object) -> None:
        """Do not log."""


def kubeconfig(url: str) -> str:
    """Return a kubeconfig of one cluster without credentials."""
    return yaml.safe_dump(
        {
            "apiVersion": "v1",
            "kind": "Config",
            "current-context": "c",
            "clusters": [{"name": "c", "cluster": {"server": url}}],
            "contexts": [{"name": "c", "context": {"cluster": "c", "user": "u"}}],
            "users": [{"name": "u", "user": {}}],
        }
    )


def discovery(path: str, groups: Groups) -> Object | None:
    """Return the discovery document of a path, from which a client learns the available kinds."""
    if path == "/version":
        return {"major": "1", "minor": "32", "gitVersion": "v1.32.0"}
    if path == "/api":
        return {"kind": "APIVersions", "versions": ["v1"]}
    if path == "/apis":
        named = [
            {"groupVersion": version, "version": version.partition("/")[2]} for version in groups if "/" in version
        ]
        found = [
            {"name": one["groupVersion"].partition("/")[0], "versions": [one], "preferredVersion": one} for one in named
        ]
        return {"kind": "APIGroupList", "apiVersion": "v1", "groups": found}
    version = path.removeprefix("/apis/").removeprefix("/api/")
    if version not in groups:
        return None
    verbs = ["create", "delete", "get", "patch"]
    kinds = [{"kind": kind, "name": name, "namespaced": True, "verbs": verbs} for kind, name in groups[version].items()]
    return {"kind": "APIResourceList", "groupVersion": version, "resources": kinds}
