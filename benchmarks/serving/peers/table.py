"""The other servers: the command, wire and settings of each."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

Setting = Mapping[str, int]
PACKAGE = "benchmarks.serving.peers"
LIMIT_S, MAX_BODY_BYTES, QUEUE = 300, 64 * 2**20, 4096


@dataclass(frozen=True)
class Peer:
    """`command(python, port, setting)` starts it; requests go to `path`. `ensemble` has the settings for the job with
    models. A request has up to 32 images, so that a batch of one request is a full batch."""

    wire: str
    path: str
    command: Callable[[str, int, Setting], list[str]]
    ensemble: Sequence[Setting]

    def environ(self, port: int, scorers: Sequence[str], setting: Setting) -> dict[str, str]:
        variables = {"BENCH_PORT": port, "BENCH_SCORERS": ",".join(scorers)}
        variables |= {f"BENCH_{key.upper()}": value for key, value in setting.items()}
        return {key: str(value) for key, value in variables.items()} | {"BENTOML_DO_NOT_TRACK": "True"}


def _flask(python: str, port: int, setting: Setting) -> list[str]:
    bind = ["--workers", str(setting["workers"]), "--bind", f"127.0.0.1:{port}", "--timeout", str(LIMIT_S)]
    return [python, "-m", "gunicorn", *bind, f"{PACKAGE}.flask_app:app"]


def _litserve(python: str, port: int, setting: Setting) -> list[str]:
    return [python, "-m", f"{PACKAGE}.litserve_app"]


def _bentoml(python: str, port: int, setting: Setting) -> list[str]:
    return [
        python,
        "-m",
        "bentoml",
        "serve",
        f"{PACKAGE}.bentoml_app:Rewards",
        "--host",
        "127.0.0.1",
        "--port",
        str(port),
    ]


def _mosec(python: str, port: int, setting: Setting) -> list[str]:
    limits = ["--timeout", str(1000 * LIMIT_S), "--max-request-size", str(MAX_BODY_BYTES), "--capacity", str(QUEUE)]
    return [
        python,
        "-m",
        f"{PACKAGE}.mosec_app",
        "--address",
        "127.0.0.1",
        "--port",
        str(port),
        *limits,
        "--log-level=warning",
    ]


ONE, SEVERAL = {"batch": 1, "wait_ms": 0}, {"batch": 4, "wait_ms": 10}
PEERS: Mapping[str, Peer] = {
    "flask": Peer("pickle", "/", _flask, ({"workers": 1}, {"workers": 2})),
    "litserve": Peer("json", "/predict", _litserve, (ONE, SEVERAL)),
    "bentoml": Peer("json", "/score", _bentoml, ({"batch": 32}, {"batch": 128})),
    "mosec": Peer("msgpack", "/inference", _mosec, (ONE, SEVERAL)),
}
