"""A run's last step as Prometheus gauges."""

from __future__ import annotations

import json
import threading
import urllib.error
import urllib.request
from pathlib import Path

import pytest
from prometheus_client.parser import text_string_to_metric_families

from synod.exporter import Exporter
from trainer.exporter import exposition

STEPS = (
    {"step": 0, "reward_mean": 0.25, "threshold": 0.1, "keys": ["a"], "components": {"ber": 0.5}},
    {"step": 1, "reward_mean": 0.5, "threshold": None, "keys": ["b"], "components": {"ber": 0.75, "der": None}},
)


def written(run: Path, tail: str = "") -> Path:
    (run / "metrics.jsonl").write_text("".join(json.dumps(step) + "\n" for step in STEPS) + tail)
    return run


def samples(text: str) -> dict[str, float]:
    return {
        sample.labels.get("name", sample.name): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }


def test_only_the_last_step_is_exported(tmp_path: Path) -> None:
    found = samples(exposition(written(tmp_path)))
    message = found.pop("synod_training_last_step_timestamp_seconds")
    assert message == pytest.approx((tmp_path / "metrics.jsonl").stat().st_mtime)
    assert found == {"synod_training_step": 1, "reward_mean": 0.5, "components/ber": 0.75}


def test_an_incomplete_line_is_not_read(tmp_path: Path) -> None:
    assert samples(exposition(written(tmp_path, '{"step": 2, "rew')))["synod_training_step"] == 1


def test_no_series_before_the_first_step(tmp_path: Path) -> None:
    assert exposition(tmp_path) == ""
    (tmp_path / "metrics.jsonl").touch()
    assert exposition(tmp_path) == ""


def test_it_answers_over_http(tmp_path: Path) -> None:
    run = written(tmp_path)
    with Exporter("127.0.0.1", 0, lambda: exposition(run).encode()) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        url = f"http://127.0.0.1:{server.server_port}"
        with urllib.request.urlopen(f"{url}/metrics", timeout=10) as answer:
            assert samples(answer.read().decode())["reward_mean"] == 0.5
            assert answer.headers["content-type"].startswith("text/plain; version=0.0.4")
        with urllib.request.urlopen(f"{url}/healthz", timeout=10) as answer:
            assert answer.read() == b"ok\n"
        with pytest.raises(urllib.error.HTTPError, match="404"):
            urllib.request.urlopen(f"{url}/", timeout=10)
        server.shutdown()
