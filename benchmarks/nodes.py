"""A service on three local Ray nodes: a killed node, an upgrade and autoscaling, each under load.

    python -m benchmarks.nodes                      # full counts -> benchmarks/results/nodes.json
    python -m benchmarks.nodes --quick --out FILE   # small counts, as the tests run them

Like `benchmarks.faults` it counts the outcome of every image.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import shutil
import signal
import sys
import tempfile
import threading
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from benchmarks.faults.load import Tally, drive, fresh
from benchmarks.faults.service import ROOT, Running, eventually
from benchmarks.machine import command, machine
from services.cluster.local import environment, free_port
from services.cluster.processes import kill_users_of, users_of
from services.settings import Settings, load

NODES: Final = 3
MOST: Final = 3
SETTINGS: Final = """
[server]
port = {port}
gateway_replicas = 2
[cluster]
upscale_delay_s = 2
downscale_delay_s = 5
[store]
max_scores = 20000
max_image_bytes = 16777216
[scorers.colour]
kind = "ber"
model = "./models"
serving = {{ replicas = 2, num_cpus = 1, max_batch_images = 16, batch_wait_ms = 2 }}
[scorers.busy]
kind = "ber"
model = "./models"
serving = {{ replicas = 1, max_replicas = {most}, max_batch_images = 8 }}
"""
Result = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Nodes:
    """A cluster with a service on it."""

    up: Running
    cluster: Any

    def deploy(self, settings: Settings) -> None:
        """Deploy the service with these settings; see `Running.deploy`."""
        from services.cluster.backend import APP

        self.up.deploy(APP, "/", settings)

    def running(self, deployment: str) -> int:
        """Return how many replicas Serve reports as running."""
        from ray import serve

        from services.cluster.backend import APP

        found = serve.status().applications[APP].deployments[deployment]
        return int(found.replica_states.get("RUNNING", 0))

    def holding(self, deployment: str) -> Any:
        """Return a worker node that runs a replica of the deployment."""
        raylets = {_parent(pid) for pid in self.up.pids(deployment)}
        for node in self.cluster.worker_nodes:
            if _raylet(node) in raylets:
                return node
        raise LookupError(f"no worker node runs a replica of {deployment}")

    def kill(self, node: Any) -> set[int]:
        """SIGKILL all of the node's processes, as in a power failure; return those of the service."""
        raylet = _raylet(node)
        own = {pid for pid in users_of(self.up.temp_dir) if _parent(pid) == raylet}
        service = own & (self.up.pids("colour") | self.up.pids("Gateway"))
        for pid in own:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        self.cluster.remove_node(node, allow_graceful=False)
        return service


def node_killed(nodes: Nodes, images: int) -> Result:
    """Kill a node with a scorer's replica, all its processes at once, under 16 clients."""
    tally, times, lost = Tally(), list[float](), set[int]()

    def kill() -> None:
        began_s = time.monotonic()
        lost.update(nodes.kill(nodes.holding("colour")))
        nodes.up.await_replicas("colour", 2, without=sorted(lost))
        nodes.up.await_replicas("Gateway", 2, without=sorted(lost))
        times.append(time.monotonic() - began_s)

    seen = drive(nodes.up.url, fresh(images), "colour", tally, at={images // 4: kill})
    held = {
        "no score is lost, doubled, disordered or invented": tally.complete() and tally.asked >= images,
        "the node ran replicas of the service": bool(lost),
    }
    counted = {"replicas_lost": len(lost), "whole_after_s": round(times[0], 1), "attempts": dict(seen)}
    return tally.counts() | counted | {"held": held}


def upgraded(nodes: Nodes, images: int) -> Result:
    """Change settings, so that Serve replaces every replica and gateway in turn, under 16 clients."""
    tally, times = Tally(), list[float]()

    def upgrade() -> None:
        before = nodes.up.pids("colour") | nodes.up.pids("Gateway")
        began_s = time.monotonic()
        server = nodes.up.settings.server.model_copy(update={"access_log": True})
        colour = nodes.up.settings.scorers["colour"]
        changed = colour.model_copy(update={"serving": colour.serving.model_copy(update={"batch_wait_ms": 3.0})})
        scorers = {**nodes.up.settings.scorers, "colour": changed}
        nodes.deploy(nodes.up.settings.model_copy(update={"server": server, "scorers": scorers}))
        for deployment in ("colour", "Gateway"):
            nodes.up.await_replicas(deployment, 2, without=sorted(before))
        times.append(time.monotonic() - began_s)

    seen = drive(nodes.up.url, fresh(images), "colour", tally, at={images // 4: upgrade})
    held = {"no score is lost, doubled, disordered or invented": tally.complete() and tally.asked >= images}
    return tally.counts() | {"took_place_in_s": round(times[0], 1), "attempts": dict(seen), "held": held}


def scaled(nodes: Nodes, images: int) -> Result:
    """Load a scorer beyond one replica with 16 clients, then stop; the replicas must follow."""
    tally, began_s = Tally(), time.monotonic()
    rose: list[float] = []
    watched = threading.Event()

    def watch() -> None:
        while not watched.is_set():
            if nodes.running("busy") == MOST:
                rose.append(time.monotonic() - began_s)
                return
            time.sleep(0.2)

    def full() -> None:
        eventually(lambda: bool(rose), f"{MOST} replicas of busy")

    watcher = threading.Thread(target=watch)
    watcher.start()
    try:
        seen = drive(nodes.up.url, fresh(images), "busy", tally, at={8: full})
    finally:
        watched.set()
        watcher.join()
    ended_s = time.monotonic()
    eventually(lambda: nodes.running("busy") == 1, "one replica of busy")
    counted = {"to_most_s": round(rose[0], 1), "to_one_s": round(time.monotonic() - ended_s, 1), "most": MOST}
    held = {"no score is lost, doubled, disordered or invented": tally.complete() and tally.asked >= images}
    return tally.counts() | counted | {"attempts": dict(seen), "held": held}


CASES: Final[dict[str, tuple[Callable[[Nodes, int], Result], int, int]]] = {  # images: full, quick
    "scaled": (scaled, 1280, 320),
    "upgraded": (upgraded, 5120, 640),
    "node_killed": (node_killed, 5120, 640),
}


@contextmanager
def started(folder: Path) -> Iterator[Nodes]:
    """Run the cluster with a ready service, and stop all of it at the end."""
    os.environ.update(environment())  # before Ray is imported
    os.environ["PYTHONPATH"] = str(ROOT)
    warnings.simplefilter("ignore")  # Ray's own
    for name in ("models", "metrics"):
        (folder / name).mkdir(parents=True)
    config = folder / "service.toml"
    config.write_text(SETTINGS.format(port=free_port(), most=MOST))
    settings = load(config, {})
    temp_dir = Path(tempfile.mkdtemp(prefix="synod-", dir="/tmp"))
    os.environ["RAY_TMPDIR"] = str(temp_dir)  # where Ray leaves the cluster's address
    (temp_dir / "ray").mkdir()
    import ray
    from ray import serve
    from ray.cluster_utils import Cluster

    one = {"object_store_memory": 128 * 2**20, "include_dashboard": False}
    try:
        cluster = Cluster(True, head_node_args={**one, "num_cpus": 1, "temp_dir": str(temp_dir)})
        for _ in range(NODES - 1):
            cluster.add_node(num_cpus=4, **one)
        ray.init(address=cluster.address, log_to_driver=False, logging_level="CRITICAL")
        serve.start(proxy_location="Disabled", logging_config={"log_level": "WARNING", "enable_access_log": False})
        url = f"http://127.0.0.1:{settings.server.port}"
        nodes = Nodes(Running(url, folder, settings, temp_dir, 0), cluster)
        nodes.deploy(settings)
        for deployment in ("colour", "Gateway"):
            nodes.up.await_replicas(deployment, 2)
        yield nodes
    finally:
        ray.shutdown()
        kill_users_of(temp_dir)
        shutil.rmtree(temp_dir, ignore_errors=True)


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.nodes", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--quick", action="store_true", help="small counts")
    parser.add_argument(
        "--out", type=Path, default=ROOT / "benchmarks/results/nodes.json", help="the result (%(default)s)"
    )
    options = parser.parse_args(arguments)
    found: dict[str, Result] = {}
    with tempfile.TemporaryDirectory(prefix="synod-nodes-") as folder, started(Path(folder) / "service") as nodes:
        for name, (case, full, quick) in CASES.items():
            found[name] = {"does": case.__doc__, **case(nodes, quick if options.quick else full)}
            print(name, json.dumps(found[name]), flush=True)
    options.out.parent.mkdir(parents=True, exist_ok=True)
    report = {"command": command(), "machine": machine(), "nodes": NODES, "cases": found}
    options.out.write_text(json.dumps(report, indent=1) + "\n")
    broken = [
        f"{name}: failed: {check}" for name, one in found.items() for check, passed in one["held"].items() if not passed
    ]
    print("\n".join(broken) or "every check passed")
    return 1 if broken else 0


def _raylet(node: Any) -> int:
    pid: int = node.all_processes["raylet"][0].process.pid
    return pid


def _parent(pid: int) -> int:
    try:
        return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])
    except OSError:
        return 0


if __name__ == "__main__":
    sys.exit(main())
