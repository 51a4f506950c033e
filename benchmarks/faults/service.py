"""A real service to inject faults into, with two gateways and scorers without models."""

from __future__ import annotations

import base64
import json
import os
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import httpx

from benchmarks.faults.scorers import BUSY_BATCH, LOG, build, image_of, value
from services.cluster.local import RewardService, environment, free_port
from services.cluster.processes import users_of
from services.settings import Settings, load
from synod.images import encode_png

ROOT: Final = Path(__file__).resolve().parents[2]
GOLDEN_NUMBER: Final = 0xC02010  # red; blue in BGR order
QUEUE: Final = 64
ALONE: Final = "alone"  # a second application with one gateway and one scorer, which isolates a request's cost
SETTINGS: Final = """
golden = "./golden.json"
[server]
port = {port}
gateway_replicas = 2
[cluster]
num_cpus = 16
object_store_bytes = 134217728
ready_timeout_s = 900
[admission]
max_queued_images = {queue}
[store]
max_scores = 20000
max_image_bytes = 16777216
[scorers.colour]
kind = "ber"
model = "./models"
serving = {{ replicas = 2, max_batch_images = 16, batch_wait_ms = 2 }}
[scorers.nan]
kind = "ber"
model = "./models"
[scorers.busy]
kind = "ber"
model = "./models"
serving = {{ max_batch_images = {busy_batch} }}
"""
PATIENCE_S: Final = 600.0  # generous, for a busy machine


@dataclass(frozen=True, slots=True)
class Running:
    """A running service: its address, its folder, and the temporary folder that only its processes use."""

    url: str
    folder: Path
    settings: Settings
    temp_dir: Path
    alone_port: int

    @property
    def alone_url(self) -> str:
        """The URL of the application ALONE, which serves `logged`."""
        return f"http://127.0.0.1:{self.alone_port}"

    @property
    def log(self) -> Path:
        """The file of images that reached the device of `logged`."""
        return self.folder / "models" / LOG

    def pids(self, deployment: str) -> set[int]:
        """Return the process ids of a deployment's replicas."""
        return {pid for pid in users_of(self.temp_dir) if _title(pid).endswith(f":{deployment}")}

    def rss_mib(self, pids: set[int]) -> float:
        """Return the processes' total resident memory in MiB; ended ones count as 0."""
        return sum(map(_rss_mib, pids))

    def await_replicas(self, deployment: str, replicas: int, without: Sequence[int] = ()) -> None:
        """Wait until all replicas run, none of them in `without`, and the service is ready."""

        def restored() -> bool:
            pids = self.pids(deployment)
            return len(pids) == replicas and not pids & set(without) and _answers(f"{self.url}/readyz")

        eventually(restored, f"{replicas} processes of {deployment}")

    def deploy(self, name: str, route: str | None, settings: Settings) -> None:
        """Deploy an application with these settings on this cluster, without waiting for it."""
        from ray import serve

        from services.cluster import graph

        made = graph.application(settings, str((self.folder / "metrics").resolve()), build)
        target = serve.RunTarget(made, name=name, route_prefix=route)
        serve.run_many([target], wait_for_applications_running=False)

    @contextmanager
    def application(self, name: str, route: str | None, settings: Settings) -> Iterator[None]:
        """Deploy a further application, without waiting for it, and delete it at the end."""
        from ray import serve

        self.deploy(name, route, settings)
        try:
            yield
        finally:
            serve.delete(name)

    def changed(self, scorer: str, gateways: int = 1, port: int | None = None, **serving: Any) -> Settings:
        """Return settings with one scorer only, on `port` or a free one."""
        one = self.settings.scorers["nan"]
        fresh = one.model_copy(update={"serving": one.serving.model_copy(update=serving)})
        server = self.settings.server.model_copy(update={"gateway_replicas": gateways, "port": port or free_port()})
        return self.settings.model_copy(update={"scorers": {scorer: fresh}, "server": server})


@contextmanager
def running(folder: Path) -> Iterator[Running]:
    """Run a service in this process's own Ray session and stop it at the end."""
    os.environ.update(environment())  # before Ray is imported
    os.environ["PYTHONPATH"] = str(ROOT)  # workers import the scorers too
    (folder / "models").mkdir(parents=True, exist_ok=True)
    golden = {"image": base64.b64encode(encode_png(image_of(GOLDEN_NUMBER))).decode()}
    recorded = dict.fromkeys(("colour", "nan", "busy", "logged", "swapped"), value(GOLDEN_NUMBER))
    (folder / "golden.json").write_text(json.dumps([{"item": golden, "scores": recorded}]))
    config = folder / "service.toml"
    config.write_text(SETTINGS.format(port=free_port(), queue=QUEUE, busy_batch=BUSY_BATCH))
    settings = load(config, {})
    service = RewardService(settings, folder, build)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Ray's own
        try:
            if not service.start(print):
                raise RuntimeError("the service did not start")
            up = Running(service.url, folder, settings, service.temp_dir, free_port())
            with up.application(ALONE, f"/{ALONE}", up.changed("logged", port=up.alone_port, max_batch_images=4)):
                eventually(lambda: _answers(f"{up.alone_url}/healthz"), f"application {ALONE}")
                yield up
        finally:
            service.stop()


def eventually(condition: Callable[[], bool], what: str) -> None:
    """Poll the condition until it is true. Raises TimeoutError after PATIENCE_S."""
    ends_s = time.monotonic() + PATIENCE_S
    while not condition():
        if time.monotonic() > ends_s:
            raise TimeoutError(f"gave up waiting for {what} after {PATIENCE_S:g} s")
        time.sleep(0.1)


def _answers(url: str) -> bool:
    try:
        return httpx.get(url, timeout=30).status_code == 200
    except httpx.HTTPError:
        return False


def _title(pid: int) -> str:
    """The title "ray::ServeReplica:APP:DEPLOYMENT" of a Serve replica, without its current method, or ""."""
    try:
        title = Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
    except OSError:
        return ""
    return title.strip().partition(".")[0] if title.startswith("ray::ServeReplica:synod:") else ""


def _rss_mib(pid: int) -> float:
    try:
        pages = int(Path(f"/proc/{pid}/statm").read_text().split()[1])
    except (OSError, IndexError):
        return 0.0
    return pages * os.sysconf("SC_PAGE_SIZE") / 2**20
