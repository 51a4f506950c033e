"""Evaluate the alerts with Prometheus' own tool (Debian package prometheus)."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.chart.rendering import CHART, nested, of, render

pytestmark = pytest.mark.skipif(
    shutil.which("promtool") is None, reason="promtool is missing: Debian package prometheus"
)
RULES = CHART / "files/alerts.yaml"
N = 'namespace="n"'
FAILS = f'synod_score_failures_total{{{N},scorer="ber",code="scorer_failed"}}'
SCORES = f'synod_scores_total{{{N},scorer="ber"}}'
SUMS = 'synod_reward_sums_total{{namespace="n",scorer="ber",of="{}"}}'

# alert -> (series that fire it and those that do not, by minutes, when to look)
FIRE: dict[str, tuple[dict[str, str], dict[str, str], str]] = {
    "SynodGatewaysGone": (
        {f"synod_open_requests{{{N}}}": "1x10 _x60"},
        {f"synod_open_requests{{{N}}}": "1x70"},
        "30m",
    ),
    "SynodScoresFail": ({FAILS: "0+10x60", SCORES: "0+90x60"}, {FAILS: "0+4x60", SCORES: "0+96x60"}, "40m"),
    "SynodInternalErrors": (
        {f'synod_requests_total{{{N},route="/v1/score",outcome="internal"}}': "0+1x60"},
        {f'synod_requests_total{{{N},route="/v1/score",outcome="ok"}}': "0+9x60"},
        "20m",
    ),
    "SynodRefusesWork": (
        {f'synod_rejects_total{{{N},reason="overloaded"}}': "0+1x60"},
        {f'synod_rejects_total{{{N},reason="deadline_exceeded"}}': "0+1x60"},
        "40m",
    ),
    "SynodQueueWaits": (
        {f'synod_queue_oldest_timestamp_seconds{{{N},scorer="ber"}}': "10x60"},
        {f'synod_queue_oldest_timestamp_seconds{{{N},scorer="ber"}}': "0+60x60"},
        "20m",
    ),
    "SynodReplicasDie": (
        {f'synod_retries_total{{{N},scorer="ber"}}': "0+1x90"},
        {f'synod_retries_total{{{N},scorer="ber"}}': "0+0x20 1x70"},
        "60m",
    ),
    "SynodStoreUnavailable": (
        {f'synod_store_failures_total{{{N},call="get"}}': "0+1x60"},
        {f'synod_store_failures_total{{{N},call="get"}}': "5x60"},
        "30m",
    ),
    "SynodRewardSaturated": (
        {SUMS.format("saturated"): "0+95x120", SUMS.format("scores"): "0+100x120"},
        {SUMS.format("saturated"): "0+1x120", SUMS.format("scores"): "0+1x120"},  # too few to say anything
        "90m",
    ),
    "SynodRewardFlat": (
        {SUMS.format("flat_groups"): "0+95x120", SUMS.format("groups"): "0+100x120"},
        {SUMS.format("flat_groups"): "0+50x120", SUMS.format("groups"): "0+100x120"},
        "90m",
    ),
    "SynodRewardDrifts": (
        {f'synod_reward_drift{{{N},scorer="ber"}}': "-4x90"},
        {f'synod_reward_drift{{{N},scorer="ber"}}': "-2x90"},
        "60m",
    ),
    "SynodTrainingStands": (
        {f"synod_training_last_step_timestamp_seconds{{{N}}}": "60x200"},
        {f"synod_training_last_step_timestamp_seconds{{{N}}}": "0+60x200"},
        "90m",
    ),
    "SynodTrainingSkipsGroups": (
        {f'synod_training_value{{{N},name="skipped"}}': "1x200"},
        {f'synod_training_value{{{N},name="skipped"}}': "0x9 1x1 0x190"},
        "120m",
    ),
    "SynodPolicyDiverges": (
        {f'synod_training_value{{{N},name="kl_image"}}': "2x60"},
        {f'synod_training_value{{{N},name="grad_norm"}}': "2x60"},
        "30m",
    ),
}


def firing(tmp_path: Path, series: dict[str, str], alert: str, at: str, *, expected: bool) -> str:
    """Run promtool on a test that expects the alert to fire, or not to; return its complaint, or an empty text."""
    expr = f'count(ALERTS{{alertname="{alert}",alertstate="firing"}}) or vector(0)'
    test: dict[str, Any] = {
        "interval": "1m",
        "input_series": [{"series": name, "values": values} for name, values in series.items()],
        "promql_expr_test": [{"expr": expr, "eval_time": at, "exp_samples": [{"value": int(expected)}]}],
    }
    path = tmp_path / "test.yaml"
    path.write_text(yaml.safe_dump({"rule_files": [str(RULES)], "evaluation_interval": "1m", "tests": [test]}))
    done = subprocess.run(["promtool", "test", "rules", str(path)], capture_output=True, text=True)
    return "" if done.returncode == 0 else done.stdout + done.stderr


@pytest.mark.parametrize("alert", FIRE)
def test_an_alert_fires_only_on_its_condition(alert: str, tmp_path: Path) -> None:
    bad, good, at = FIRE[alert]
    assert firing(tmp_path, bad, alert, at, expected=True) == ""
    assert firing(tmp_path, good, alert, at, expected=False) == ""


def test_every_alert_is_tested() -> None:
    assert set(FIRE) == {
        rule["alert"] for group in yaml.safe_load(RULES.read_text())["groups"] for rule in group["rules"]
    }


def test_the_rendered_rules_are_valid(tmp_path: Path) -> None:
    rules = of(render(nested("monitoring.alerts.enabled", True)), "PrometheusRule")["spec"]
    assert rules == yaml.safe_load(RULES.read_text())
    (tmp_path / "rules.yaml").write_text(yaml.safe_dump(rules))
    done = subprocess.run(
        ["promtool", "check", "rules", "--lint-fatal", str(tmp_path / "rules.yaml")], capture_output=True
    )
    assert done.returncode == 0, done.stdout
