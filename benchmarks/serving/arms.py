"""Define the measurements: groups of servers that run together, and the loads on them.

| arm | scorer | load | compared with |
|---|---|---|---|
| ensemble | the five embedded rewards | 32 JPEGs of 512x512, q95 | Flask, LitServe, BentoML, mosec: five servers, five posts at once; mosec with all five in one process |
| device | waits 25 ms a batch of up to 32; one, and five at once | 8 clients, 32 raw 64x64 images | the limit, 1,280 images/s |
| overhead | the image's first sample | 1, 8 and 32 clients, 32 raw images | plain `@serve.batch` behind Serve's default proxy; mosec |
| scaling | waits 100 ms a batch; 1, 2, 4, 8 replicas | 8 clients a replica | its own single replica |
"""  # noqa: E501

from __future__ import annotations

import secrets
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from benchmarks.serving import inputs
from benchmarks.serving.jobs import EMBEDDED
from benchmarks.serving.load import Call
from benchmarks.serving.peers.table import ONE, PEERS, SEVERAL, Setting
from benchmarks.serving.servers import START_LIMIT_S, Launch, post
from services.cluster.local import free_port
from synod.codec import MSGPACK
from synod.contracts import PutImagesRequest, ScoreItem

REWARDS = ("tier", "ber", "der", "fer", "geneval")
DIRECT = "direct"  # instead of a URL: a process calls the scorers directly
WAITING = tuple(f"wait_{i}" for i in range(5))
REPLICAS = (1, 2, 4, 8)
Items = Callable[[int], tuple[ScoreItem, ...]]
HAPROXY = {
    "RAY_SERVE_ENABLE_HA_PROXY": "1",  # it ignores [server] host and listens on 0.0.0.0, but requests need a token
    "RAY_SERVE_USE_GRPC_BY_DEFAULT": "1",
    "RAY_SERVE_DIRECT_INGRESS_MIN_DRAINING_PERIOD_S": "1",
}


@dataclass(frozen=True)
class Point:
    """One load on running servers. `labels` identify it in the results."""

    calls: Sequence[Call]
    wire: str
    labels: Mapping[str, Any]

    @property
    def name(self) -> str:
        return " ".join(str(value) for value in self.labels.values() if value != "")


@dataclass(frozen=True)
class Group:
    """Servers that run together and the points measured on them. `prepare` runs before the first request.

    `scorers_alone`: only the service's scorers use the server cores; its other processes share the client's.
    """

    name: str
    launches: Sequence[Launch]
    points: Sequence[Point]
    prepare: Callable[[], object] = field(default=lambda: None)
    scorers_alone: bool = False


@dataclass(frozen=True)
class Bench:
    """The folder for files, the Python of the other servers, and the amount: "quick", "default" or "full"."""

    folder: Path
    python: str
    amount: str
    _encoders: dict[str, Callable[[], bytes]] = field(default_factory=dict)

    def groups(self) -> Iterator[Group]:
        """Yield all groups to measure, Synod's first."""
        yield from self._ensemble()
        yield self._device()
        yield from self._overhead()
        yield self._scaling()

    def _ensemble(self) -> Iterator[Group]:
        full = [(c, n) for c in (1, 8, 32, 64) for n in (1, 8, 32)]
        loads = {"quick": [(1, 32)], "default": [(1, 32), (8, 32)], "full": full}[self.amount]
        base = {"arm": "ensemble", "server": "synod"}
        yield self._service(
            "ensemble",
            EMBEDDED,
            [(base, way, REWARDS, loads) for way in ("msgpack", "json", "grpc")],
            inputs.ensemble_items,
        )
        yield self._service(
            "ensemble own core",
            EMBEDDED,
            [({**base, "server": "synod_own_core"}, "msgpack", REWARDS, [(1, 32), (8, 32)])],
            inputs.ensemble_items,
            scorers_alone=True,
        )
        yield self._direct()
        for name, peer in PEERS.items():
            for setting in peer.ensemble:
                yield self._peer("ensemble", name, REWARDS, setting, loads, inputs.ensemble_items)
        for setting in PEERS["mosec"].ensemble:
            yield self._peer("ensemble", "mosec", REWARDS, setting, loads, inputs.ensemble_items, together=True)

    def _direct(self) -> Group:
        """Return the group that calls the same scorers directly in one process, without a server."""
        bodies = self._bodies(
            "peer-msgpack",
            REWARDS,
            inputs.ensemble_items,
            inputs.ITEMS,
            lambda some: inputs.peer_body(some, REWARDS, "msgpack"),
        )
        labels = {"arm": "ensemble", "server": "direct", "way": "", "clients": 1, "images": inputs.ITEMS}
        return Group("ensemble direct", [], [Point([Call(DIRECT, bodies, {})], "msgpack", labels)])

    def _device(self) -> Group:
        chosen = (WAITING[:1], WAITING)
        points = [({"arm": "device", "server": "synod", "scorers": len(s)}, "msgpack", s, [(8, 32)]) for s in chosen]
        return self._service("device", self._fakes("device", dict.fromkeys(WAITING, 1)), points, inputs.raw_items)

    def _overhead(self) -> Iterator[Group]:
        full = [(c, n) for c in (1, 8, 32, 64) for n in (1, 8, 32)]
        loads = full if self.amount == "full" else [(1, 32), (8, 32), (32, 32)]
        config, base = self._fakes("overhead", {"trivial": 1}), {"arm": "overhead", "server": "synod"}
        own = [(base, way, ("trivial",), loads) for way in ("msgpack", "grpc")]
        yield self._service("overhead", config, own, inputs.raw_items)
        for way, environ in (("proxy", {}), ("haproxy", HAPROXY)):
            points = [(base, way, ("trivial",), loads)]
            proxied = {**environ, "SYNOD__SERVER__LISTEN": "proxy"}
            yield self._service(f"overhead {way}", config, points, inputs.raw_items, proxied)
        yield self._serve(loads)
        for setting in (ONE, SEVERAL):
            yield self._peer("overhead", "mosec", ("trivial",), setting, loads, inputs.raw_items)

    def _scaling(self) -> Group:
        base = {"arm": "scaling", "server": "synod"}
        points = [({**base, "replicas": n}, "msgpack", (f"slow_{n}",), [(8 * n, 32)]) for n in REPLICAS]
        return self._service(
            "scaling", self._fakes("scaling", {f"slow_{n}": n for n in REPLICAS}), points, inputs.raw_items
        )

    def _service(
        self,
        name: str,
        config: Path,
        grids: Sequence[tuple[Mapping[str, Any], str, Sequence[str], Sequence[tuple[int, int]]]],
        items: Items,
        environ: Mapping[str, str] | None = None,
        *,
        scorers_alone: bool = False,
    ) -> Group:
        """Return a service with tokens, limits, digests and metrics, but without reuse of scores."""
        port, grpc_port, token = free_port(), free_port(), secrets.token_urlsafe(32)
        run_dir = self.folder / name.replace(" ", "_")
        overrides = {
            "SYNOD__SERVER__PORT": str(port),
            "SYNOD__CLUSTER__READY_TIMEOUT_S": str(START_LIMIT_S),
            "SYNOD__STORE__MAX_SCORES": "0",
            "SYNOD__AUTH__TOKENS_ENV": "BENCH_TOKENS",
            "BENCH_TOKENS": f'[bench]\ntoken = "{token}"\n',
            **(environ or {"SYNOD__SERVER__GRPC_PORT": str(grpc_port)}),
        }
        command = [sys.executable, "-m", "benchmarks.serving.service", str(config), str(run_dir)]
        headers = {"Authorization": f"Bearer {token}"}

        def point(labels: Mapping[str, Any], way: str, scorers: Sequence[str], clients: int, images: int) -> Point:
            wire = way if way in ("json", "grpc") else "msgpack"
            url = f"grpc://127.0.0.1:{grpc_port}" if wire == "grpc" else f"http://127.0.0.1:{port}/v1/score"
            sent = headers if wire == "grpc" else {**headers, "Content-Type": inputs.TYPES[wire]}
            bodies = self._bodies(
                f"synod-{wire}", scorers, items, images, lambda some: inputs.synod_body(some, scorers, wire)
            )
            labelled = {**labels, "way": way, "clients": clients, "images": images}
            return Point([Call(url, bodies, sent)], f"synod {wire}", labelled)

        def put() -> None:
            images = tuple(dict.fromkeys(r for s in range(inputs.SETS) for r in inputs.references(items(s))))
            body = MSGPACK.encode_put(PutImagesRequest(images))
            post(f"http://127.0.0.1:{port}/v1/images", body, {**headers, "Content-Type": MSGPACK.content_type}, "PUT")

        points = [point(labels, way, s, c, n) for labels, way, s, loads in grids for c, n in loads]
        prepare = put if items is inputs.ensemble_items else lambda: None
        return Group(f"synod {name}", [Launch(command, overrides)], points, prepare, scorers_alone)

    def _peer(
        self,
        arm: str,
        name: str,
        scorers: Sequence[str],
        setting: Setting,
        loads: Sequence[tuple[int, int]],
        items: Items,
        *,
        together: bool = False,
    ) -> Group:
        """Return a group of one server per scorer, or of one server for all (`together`)."""
        peer = PEERS[name]
        way = ",".join(f"{key}={value}" for key, value in setting.items())
        shares = [tuple(scorers)] if together else [(one,) for one in scorers]
        ports = [free_port() for _ in shares]
        launches = [
            Launch(peer.command(self.python, port, setting), peer.environ(port, share, setting))
            for port, share in zip(ports, shares, strict=True)
        ]
        server = f"{name}_all" if together else name

        def call(port: int, share: Sequence[str], images: int) -> Call:
            bodies = self._bodies(
                f"peer-{peer.wire}", share, items, images, lambda some: inputs.peer_body(some, share, peer.wire)
            )
            return Call(f"http://127.0.0.1:{port}{peer.path}", bodies, {"Content-Type": inputs.TYPES[peer.wire]})

        points = [
            Point(
                [call(port, share, n) for port, share in zip(ports, shares, strict=True)],
                name if name == "bentoml" else peer.wire,
                {"arm": arm, "server": server, "way": way, "clients": c, "images": n},
            )
            for c, n in loads
        ]
        return Group(f"{arm} {server} {way}", launches, points)

    def _serve(self, loads: Sequence[tuple[int, int]]) -> Group:
        port, scorers = free_port(), ("trivial",)
        environ = {"BENCH_PORT": str(port), "BENCH_SCORERS": "trivial"}
        launch = Launch([sys.executable, "-m", "benchmarks.serving.peers.serve_app"], environ)

        def point(server: str, path: str, clients: int, images: int) -> Point:
            bodies = self._bodies(
                "peer-msgpack",
                scorers,
                inputs.raw_items,
                images,
                lambda some: inputs.peer_body(some, scorers, "msgpack"),
            )
            call = Call(f"http://127.0.0.1:{port}{path}", bodies, {"Content-Type": inputs.TYPES["msgpack"]})
            labels = {"arm": "overhead", "server": server, "way": "", "clients": clients, "images": images}
            return Point([call], "msgpack", labels)

        hops = (("serve_two_hops", "/two"), ("serve", "/"))  # the app at /two starts last
        return Group("overhead serve", [launch], [point(server, path, c, n) for server, path in hops for c, n in loads])

    def write_bodies(self, group: Group) -> None:
        """Write the request bodies of the group's points that do not exist yet."""
        for path in {body for point in group.points for call in point.calls for body in call.bodies}:
            if not Path(path).is_file():
                Path(path).parent.mkdir(parents=True, exist_ok=True)
                Path(path).write_bytes(self._encoders[path]())

    def _bodies(
        self,
        kind: str,
        scorers: Sequence[str],
        items: Items,
        images: int,
        encode: Callable[[Sequence[ScoreItem]], bytes],
    ) -> list[str]:
        """Return the path of each set's body; `write_bodies` writes the files."""
        name = f"{kind}-{'+'.join(scorers)}-{images}"
        paths = [str(self.folder / "bodies" / f"{name}-{number}") for number in range(inputs.SETS)]
        self._encoders.update({path: lambda n=n: encode(items(n)[:images]) for n, path in enumerate(paths)})  # type: ignore[misc]
        return paths

    def _fakes(self, name: str, replicas: Mapping[str, int]) -> Path:
        """Write a TOML of scorers without models, in its own folder: the scorers' digest covers the folder."""
        folder = self.folder / "configs" / name
        folder.mkdir(parents=True, exist_ok=True)
        tables = [
            f'[scorers.{scorer}]\nkind = "ber"\nmodel = "./"\nserving = {{ replicas = {n} }}\n'
            for scorer, n in replicas.items()
        ]
        path = folder / "service.toml"
        path.write_text("\n".join(["[cluster]\nnum_cpus = 8 # logical\n", *tables]))
        return path
