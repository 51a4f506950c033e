"""RewardService: probes ignore proxies, and a start of Ray that timed out is repeated."""

from __future__ import annotations

import http.server
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from services.cluster import local
from services.cluster.local import RewardService, answers_ready, free_port
from services.settings import Settings


class _Ready(http.server.BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        self.send_response(200)
        self.end_headers()

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def url() -> Iterator[str]:
    server = http.server.HTTPServer(("127.0.0.1", 0), _Ready)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    thread.join()
    server.server_close()


@pytest.mark.parametrize("variable", ["http_proxy", "HTTP_PROXY", "all_proxy"])
def test_loopback_probes_ignore_proxies(url: str, variable: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(variable, "http://127.0.0.1:9")
    monkeypatch.delenv("no_proxy", raising=False)
    monkeypatch.delenv("NO_PROXY", raising=False)
    assert answers_ready(url)
    assert not answers_ready(f"http://127.0.0.1:{free_port()}")


@pytest.fixture
def service(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[RewardService]:
    settings = Settings.model_validate(
        {
            "server": {"port": free_port()},
            "cluster": {"ready_timeout_s": 50.0},
            "scorers": {"psnr": {"kind": "psnr"}},
        },
        context={"folder": tmp_path},
    )
    clock = [0.0]
    monkeypatch.setattr(local.time, "monotonic", lambda: clock[0])
    service = RewardService(settings, tmp_path)
    service.clock = clock  # type: ignore[attr-defined]
    yield service
    service.kill()


def ray_that_fails(monkeypatch: pytest.MonkeyPatch, service: Any, failures: int) -> list[Path]:
    """Make `ray.init` time out after 30 s, that many times; return what each attempt found in the folder."""
    import ray

    found: list[Path] = []

    def init(**options: Any) -> None:
        found.extend(service.temp_dir.iterdir())
        (service.temp_dir / "session").mkdir()
        service.clock[0] += 30
        if (failures_left.pop() if failures_left else 0) > 0:
            raise Exception("The current node timed out during startup. This could happen because some of the raylet")

    failures_left = [1] * failures
    monkeypatch.setattr(ray, "init", init)
    monkeypatch.setattr(ray, "shutdown", lambda: None)
    return found


def test_a_start_that_timed_out_is_repeated(service: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    found = ray_that_fails(monkeypatch, service, 1)
    assert service._start_ray(lambda: False, 65.0)
    assert found == []  # nothing of the first attempt was left


def test_the_error_for_a_slow_machine_has_a_remedy(service: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    ray_that_fails(monkeypatch, service, 9)
    with pytest.raises(TimeoutError, match=r"within 30 s, in 1 attempts.*raise \[cluster\] ready_timeout_s \(50 s\)"):
        service.start(print)


def test_stopping_is_checked_between_attempts(service: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    ray_that_fails(monkeypatch, service, 9)
    assert not service._start_ray(lambda: service.clock[0] > 0, 1000.0)


def test_other_errors_of_ray_are_raised(service: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    import ray

    def init(**options: Any) -> None:
        raise ValueError("something else")

    monkeypatch.setattr(ray, "init", init)
    with pytest.raises(ValueError, match="something else"):
        service._start_ray(lambda: False, 1000.0)
