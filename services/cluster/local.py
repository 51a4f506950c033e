"""RewardService: run the service on this machine, with its own Ray head on loopback.

Functions import Ray when they need it, after RewardService has set `environment`: Ray reads some variables on import.
"""

from __future__ import annotations

import http.client
import logging
import os
import secrets
import shutil
import socket
import tempfile
import time
import urllib.request
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from services.cluster.processes import kill_users_of
from services.settings import Settings
from synod.errors import SettingsError

TEMP_PREFIX = "synod-"
TEMP_PARENT = "/tmp"  # short: a socket's path may have 107 bytes, of which Ray needs about 70
POLL_S = 0.25
RAY_TIMEOUT_TEXT = "timed out during startup"  # in the plain Exception that ray.init raises after 30 s
_no_proxy = urllib.request.build_opener(urllib.request.ProxyHandler({}))


class RewardService:
    """A service on this machine. `start` returns when every replica is ready; `stop` leaves no process or file behind.

    The constructor raises SettingsError for a port in use and for a scorer that needs a custom resource.
    """

    def __init__(self, settings: Settings, run_dir: Path, build: Callable[..., Any] | None = None) -> None:
        check_port(settings.server.host, settings.server.port)
        if settings.server.grpc_port is not None:
            check_port(settings.server.host, settings.server.grpc_port, "[server] grpc_port")
        for name, scorer in settings.scorers.items():
            if scorer.serving.resource is not None:
                raise SettingsError(
                    f"scorer '{name}' has resource = '{scorer.serving.resource}', which no node of this machine's "
                    "cluster has: remove it, or deploy to a cluster whose nodes have it (docs/operations.md)"
                )
        self._settings = settings
        self._run_dir = run_dir
        self._build = {} if build is None else {"build": build}
        self.temp_dir = Path(tempfile.mkdtemp(prefix=TEMP_PREFIX, dir=TEMP_PARENT))
        self._ready = False
        os.environ.update(environment())
        self.url = f"http://{settings.server.host}:{settings.server.port}"

    def start(self, say: Callable[[str], None], stopping: Callable[[], bool] = lambda: False) -> bool:
        """Start, report progress through `say` and wait for readiness. Return False if `stopping` becomes true first.

        Raises SettingsError for settings that this machine cannot serve, and TimeoutError after `ready_timeout_s`.
        """
        server, cluster = self._settings.server, self._settings.cluster
        import ray
        from ray import serve
        from ray.serve.config import HTTPOptions

        from services.cluster import graph
        from services.cluster.backend import APP

        logging.getLogger("ray.serve").setLevel(logging.WARNING)
        ends_s = time.monotonic() + cluster.ready_timeout_s
        metrics_dir = self._run_dir / "metrics"
        shutil.rmtree(metrics_dir, ignore_errors=True)
        metrics_dir.mkdir(parents=True)
        if not self._start_ray(stopping, ends_s):
            return False
        nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]
        cpus, gpus = sum(node.get("CPU", 0.0) for node in nodes), [int(node.get("GPU", 0)) for node in nodes]
        graph.check_capacity(graph.Demand.of(self._settings), cpus, gpus)
        graph.fit_limits(self._settings.limits, ray.nodes())
        if stopping():
            return False
        serve.start(
            http_options=HTTPOptions(host=server.host, port=server.port),
            proxy_location="HeadOnly" if server.listen == "proxy" else "Disabled",
            logging_config={"log_level": "WARNING", "enable_access_log": False},
        )
        app = graph.application(self._settings, str(metrics_dir.resolve()), **self._build)
        target = serve.RunTarget(app, name=APP, route_prefix="/")
        serve.run_many([target], wait_for_applications_running=False)
        self._ready = self._wait(say, stopping, ends_s)
        return self._ready

    def _start_ray(self, stopping: Callable[[], bool], ends_s: float) -> bool:
        """Start the Ray head. Return False if `stopping` becomes true first.

        Ray raises a plain Exception if its own processes do not start within 30 s, a limit that no setting changes. On
        a machine that is slow for a moment, the next attempt succeeds, so this retries for as long as another attempt
        can end before `ends_s`, and then raises TimeoutError.
        """
        import ray

        cluster = self._settings.cluster
        attempts = 0
        while not stopping():
            attempts += 1
            began_s = time.monotonic()
            try:
                ray.init(
                    address="local",
                    num_cpus=cluster.num_cpus,
                    num_gpus=cluster.num_gpus,
                    object_store_memory=cluster.object_store_bytes,
                    include_dashboard=False,
                    log_to_driver=False,
                    logging_level="ERROR",
                    _temp_dir=str(self.temp_dir),
                )
                return True
            except Exception as error:
                if RAY_TIMEOUT_TEXT not in str(error):
                    raise
                took_s = time.monotonic() - began_s
                ray.shutdown()
                kill_users_of(self.temp_dir)
                for path in self.temp_dir.iterdir():
                    shutil.rmtree(path, ignore_errors=True) if path.is_dir() else path.unlink()
                if time.monotonic() + took_s > ends_s:
                    raise TimeoutError(
                        f"Ray's own processes did not start within {took_s:.0f} s, in {attempts} attempts; Ray allows "
                        f"them 30 s, which cannot be set. The load of the machine is {os.getloadavg()[0]:.1f} on "
                        f"{os.cpu_count()} CPUs: stop other work, or raise [cluster] ready_timeout_s "
                        f"({cluster.ready_timeout_s:g} s) to allow more attempts"
                    ) from None
        return False

    def stop(self) -> None:
        """Finish the requests in progress and stop, also after an incomplete `start`. Keep Serve's logs."""
        try:
            import ray
            from ray import serve

            from services.cluster.backend import APP

            if self._ready:
                serve.delete(APP)  # waits for the requests being answered
            ray.shutdown()
        finally:
            self.kill()

    def kill(self) -> None:
        """Kill all processes of the service that still run, copy Serve's logs and delete the temporary directory."""
        logs = self.temp_dir / "session_latest" / "logs" / "serve"
        kill_users_of(self.temp_dir)
        if logs.is_dir():
            shutil.rmtree(self._run_dir / "logs", ignore_errors=True)
            shutil.copytree(logs, self._run_dir / "logs")
        shutil.rmtree(self.temp_dir, ignore_errors=True)

    def _reason(self, deployments: Mapping[str, Any]) -> str:
        """Return a message that says why deployments failed."""
        from services.cluster.readiness import exception_text

        failed = [
            f"'{name}': {exception_text(one.message)}"
            for name, one in deployments.items()
            if "FAIL" in one.status.value
        ]
        return "\n".join(["the service did not start:", *failed, f"the full logs are in {self._run_dir / 'logs'}"])

    def _wait(self, say: Callable[[str], None], stopping: Callable[[], bool], ends_s: float) -> bool:
        """Poll Serve until every deployment runs, then the HTTP endpoint until it is ready."""
        from ray import serve

        from services.cluster.backend import APP

        seen: set[str] = set()
        while not stopping():
            status = serve.status().applications[APP]
            states = {name: one.status.value for name, one in status.deployments.items()}
            for name in sorted(n for n, state in states.items() if state == "HEALTHY" and n not in seen):
                say(f"{name} ready")
                seen.add(name)
            if status.status.value in ("DEPLOY_FAILED", "UNHEALTHY"):
                raise SettingsError(self._reason(status.deployments))
            if status.status.value == "RUNNING" and answers_ready(self.url):
                return True
            if time.monotonic() > ends_s:
                waited = sorted(set(self._settings.hosts) - seen)
                raise TimeoutError(
                    f"not ready after {self._settings.cluster.ready_timeout_s:g} s; still waiting for "
                    f"{', '.join(waited) or 'the gateway'}. Raise [cluster] ready_timeout_s, or read the logs in "
                    f"{self._run_dir / 'logs'}"
                )
            time.sleep(POLL_S)
        return False


def check_port(host: str, port: int, setting: str = "--port or [server] port") -> None:
    """Raise SettingsError if the port is in use."""
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except OSError as error:
            raise SettingsError(
                f"cannot listen on {host}:{port}: {error.strerror}. Stop the process that uses the port, "
                f"or choose another with {setting}"
            ) from None


def free_port() -> int:
    """Return an unused loopback port."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
    return port


def ask(url: str, timeout_s: float) -> http.client.HTTPResponse:
    """GET a URL of a local service, never through a proxy. Raises as `urllib.request.urlopen` does."""
    answer: http.client.HTTPResponse = _no_proxy.open(url, timeout=timeout_s)
    return answer


def answers_ready(url: str) -> bool:
    """Return whether `url`/readyz answers 200."""
    try:
        with ask(f"{url}/readyz", timeout_s=5) as answer:
            return bool(answer.status == 200)
    except (OSError, http.client.HTTPException):
        return False


def environment() -> dict[str, str]:
    """Return Ray's settings that must be environment variables; every process of the service inherits them."""
    return {
        "RAY_USAGE_STATS_ENABLED": "0",  # no telemetry
        "RAY_AUTH_MODE": "token",
        "RAY_AUTH_TOKEN": secrets.token_hex(32),  # for this service only; not written to the home directory
        "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0",  # Ray's switch for one machine: all its ports are on loopback
        "RAY_SERVE_LOG_TO_STDERR": "0",
        # Ray's own metrics and task events, which nothing here reads, take 1.5 % of a core:
        "RAY_enable_metrics_collection": "0",
        "RAY_event_stats": "0",
        "RAY_task_events_report_interval_ms": "0",
        "RAY_SERVE_CONTROL_LOOP_INTERVAL_S": "0.5",  # at Serve's 0.1 the controller takes 3.5 % of a core
        "RAY_worker_niceness": "0",  # with Ray's default of 15, any other program starves the replicas
    }
