"""Test the compose file: valid, restricted, in agreement with the chart; and run its commands without containers."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any

import pytest
import yaml

from services import __main__ as service_program
from services.cluster.local import free_port

ROOT = Path(__file__).parents[2]
COMPOSE = yaml.safe_load((ROOT / "docker-compose.yml").read_text())
SERVICES: dict[str, Any] = COMPOSE["services"]
OURS = ("service", "service-gpu", "ready", "trainer", "trainer-metrics")


@pytest.mark.skipif(shutil.which("docker-compose") is None, reason="docker-compose is missing: the Debian package")
def test_docker_compose_accepts_the_file() -> None:
    done = subprocess.run(["docker-compose", "config", "--services"], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert set(done.stdout.split()) == set(SERVICES)
    assert {profile for one in SERVICES.values() for profile in one["profiles"]} == {"cpu", "gpu", "trainer"}


@pytest.mark.parametrize("name", SERVICES)
def test_every_service_is_restricted(name: str) -> None:
    one = SERVICES[name]
    assert one["cap_drop"] == ["ALL"]
    assert one["security_opt"] == ["no-new-privileges:true"]
    assert "privileged" not in one
    assert all(str(port).startswith("127.0.0.1:") for port in one.get("ports", []))
    assert one.get("healthcheck") or name == "trainer"
    assert "disable" not in one.get("healthcheck", {}) or name == "ready"  # it runs to its end
    if name in OURS:
        assert one["read_only"] is True
    for volume in one.get("volumes", []):
        source = volume.partition(":")[0]
        assert source in COMPOSE["volumes"] or (ROOT / source).exists(), source


def test_no_secret_is_in_the_environment() -> None:
    for one in SERVICES.values():
        for name, value in (one.get("environment") or {}).items():
            assert not re.search("TOKEN|PASSWORD|SECRET", name) or str(value).startswith("/run/secrets/"), name


def test_monitoring_uses_the_files_of_the_chart() -> None:
    mounts = [mount for name in ("prometheus", "grafana") for mount in SERVICES[name]["volumes"]]
    assert any(mount.startswith("./helm/synod/files/alerts.yaml:") for mount in mounts)
    assert any(mount.startswith("./helm/synod/dashboards:") for mount in mounts)
    scraped = yaml.safe_load((ROOT / "deploy/prometheus/prometheus.yml").read_text())
    ports = {
        one["dns_sd_configs"][0]["names"][0]: one["dns_sd_configs"][0]["port"] for one in scraped["scrape_configs"]
    }
    assert ports == {"service": 8000, "trainer-metrics": int(SERVICES["trainer-metrics"]["command"][-1])}


AFTER = {"trainer": "ready", "prometheus": "ready", "grafana": "prometheus"}


def test_services_start_in_order() -> None:
    """Each waits for the health or the end of a service in its own profiles; both services share a name."""
    waits = {name: one["depends_on"] for name, one in SERVICES.items() if "depends_on" in one}
    assert {name: next(iter(on)) for name, on in waits.items()} == AFTER
    for name, on in waits.items():
        ((other, how),) = on.items()
        ends = SERVICES[other]["healthcheck"] == {"disable": True}
        assert how == {"condition": "service_completed_successfully" if ends else "service_healthy"}
        assert set(SERVICES[name]["profiles"]) <= set(SERVICES[other]["profiles"])
    for service in ("service", "service-gpu"):
        assert SERVICES[service]["networks"] == {"default": {"aliases": ["service"]}}


def test_ready_ends_only_when_the_service_is_ready(tmp_path: Path) -> None:
    status = tmp_path / "status"

    class RewardService(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            asked.append(self.path)
            self.send_response(int(status.read_text()) if self.path == "/readyz" else 404)
            self.end_headers()

        def log_message(self, format: str, *arguments: object) -> None:
            pass

    asked: list[str] = []
    status.write_text("503")
    port = free_port()
    *command, program = SERVICES["ready"]["command"]
    ready = subprocess.Popen([sys.executable, *command[1:], program.replace("service:8000", f"127.0.0.1:{port}")])
    try:
        time.sleep(0.5)  # nobody listens yet
        with HTTPServer(("127.0.0.1", port), RewardService) as server:
            thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05})
            thread.start()
            try:
                assert eventually(lambda: len(asked) >= 2 or ready.poll() is not None)
                assert ready.poll() is None
                status.write_text("200")
                assert eventually(lambda: ready.poll() == 0)
            finally:
                server.shutdown()
                thread.join()
    finally:
        ready.kill()
        ready.wait()


def test_one_gpu_is_reserved_for_the_process_of_all_scorers() -> None:
    (device,) = SERVICES["service-gpu"]["deploy"]["resources"]["reservations"]["devices"]
    assert device == {"driver": "nvidia", "count": 1, "capabilities": ["gpu"]}
    given = {k: v for k, v in SERVICES["service-gpu"]["environment"].items() if k.endswith("__NUM_GPUS")}
    assert given == {"SYNOD__SCORERS__BER__SERVING__NUM_GPUS": "1"}


def test_models_and_state_are_in_named_volumes() -> None:
    """Downloads and state remain for the next container; caches are where the chart's pods have them."""
    for name in ("service", "service-gpu"):
        mounted = {volume.partition(":")[2] for volume in SERVICES[name]["volumes"]}
        assert {"/models", "/run/synod"} <= mounted
        for cache in ("HF_HOME", "TORCH_HOME"):
            assert SERVICES[name]["environment"][cache].startswith("/models/")
    assert "checkpoints:/checkpoints" in SERVICES["trainer"]["volumes"]


def read_for(name: str, folder: Path, **more: str) -> tuple[list[str], dict[str, str]]:
    """Return a service's command and environment, with paths in the container replaced by local ones."""
    mounts = {"/app/": f"{ROOT}/", "/run/secrets/": f"{folder}/secrets/", "/checkpoints": f"{folder}/checkpoints",
              "/run/synod": f"{folder}/run", "/models": f"{folder}/models"}  # fmt: skip

    def here(text: str) -> str:
        for inside, outside in mounts.items():
            text = text.replace(inside, outside)
        return text

    environment = {key: here(str(value)) for key, value in (SERVICES[name].get("environment") or {}).items()}
    return [here(word) for word in SERVICES[name]["command"]], {**environment, **more}


@pytest.fixture
def secrets(tmp_path: Path) -> Path:
    """Create the secrets with the commands at the head of the compose file."""
    (tmp_path / "secrets").mkdir()
    head = (ROOT / "docker-compose.yml").read_text().partition("version:")[0]
    script = "\n".join(line.removeprefix("#").strip() for line in head.splitlines() if "token" in line)
    subprocess.run(["bash", "-ec", script], cwd=tmp_path, check=True)
    (tmp_path / "secrets/tokens").symlink_to(tmp_path / "secrets/tokens.toml")
    return tmp_path


@pytest.mark.parametrize("name", ["service", "service-gpu"])
def test_a_services_settings_load_with_its_environment(
    name: str, secrets: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    command, environment = read_for(name, secrets)
    assert command[:4] == ["python", "-m", "services", "up"]
    for key, value in environment.items():
        monkeypatch.setenv(key, value)
    assert service_program.main(["check", command[4]]) == 0
    assert ("1 GPU" in capsys.readouterr().out) is (name == "service-gpu")


def test_the_documented_tokens_are_accepted(secrets: Path) -> None:
    from services.gateway import auth
    from services.settings import AuthSettings
    from synod.client.headers import find_token

    _, environment = read_for("trainer", secrets)
    token = find_token(None, environment)
    authenticator = auth.load(AuthSettings(tokens_file=str(secrets / "secrets/tokens.toml")))
    assert authenticator.authenticate(f"Bearer {token}", "metrics").name == "compose"


def test_the_trainer_reports_an_unavailable_service(secrets: Path) -> None:
    url = f"http://127.0.0.1:{free_port()}"
    command, environment = read_for("trainer", secrets, SYNOD__TRAINER__REWARDS__PATIENCE_S="0.1", HOME=str(secrets))
    environment["SYNOD__TRAINER__REWARDS__URL"] = url
    done = subprocess.run(
        [sys.executable, *command[1:], "--no-evaluation"],
        env={**environment, "PYTHONPATH": str(ROOT)},
        cwd=secrets,
        capture_output=True,
        text=True,
        timeout=240,
    )
    assert done.returncode == 1
    assert url in done.stderr
    assert "Traceback" not in done.stderr


def test_the_trainers_metrics_and_health_check_work(secrets: Path) -> None:
    command, environment = read_for("trainer-metrics", secrets)
    port = str(free_port())
    command[command.index("8001")] = port
    run = Path(command[command.index("trainer.exporter") + 1])
    run.mkdir(parents=True)
    (run / "metrics.jsonl").write_text('{"step": 3}\n')
    check = [word.replace("8001", port) for word in SERVICES["trainer-metrics"]["healthcheck"]["test"][1:]]
    process = subprocess.Popen([sys.executable, *command[1:]], env={**environment, "PYTHONPATH": str(ROOT)})
    try:
        assert eventually(
            lambda: subprocess.run([sys.executable, *check[1:]], stderr=subprocess.DEVNULL).returncode == 0
        )
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=10) as answer:
            assert "synod_training_step 3" in answer.read().decode()
    finally:
        process.kill()
        process.wait()


def eventually(condition: Callable[[], bool], patience_s: float = 60.0) -> bool:
    ends_s = time.monotonic() + patience_s
    while not condition():
        if time.monotonic() > ends_s:
            return False
        time.sleep(0.2)
    return True
