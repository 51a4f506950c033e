"""Define the Grafana dashboards; `make chart-docs` writes them as JSON into the chart."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Final

WIDTH: Final = 12  # of 24 columns: two panels a row
HEIGHT: Final = 8


@dataclass(frozen=True, slots=True)
class Panel:
    """A time series panel: PromQL by legend. `unit` is one of Grafana's units."""

    title: str
    unit: str
    queries: dict[str, str]


@dataclass(frozen=True, slots=True)
class Board:
    """A dashboard. `chosen` is a variable, and the series from whose label of that name its values come."""

    title: str
    panels: tuple[Panel, ...]
    chosen: tuple[str, str] | None = None


def _quantiles(series: str, by: str, where: str = "") -> dict[str, str]:
    return {
        f"p{q} {{{{{by}}}}}": f"histogram_quantile(0.{q}, sum by (le, {by}) (rate({series}_bucket{{{where}}}[5m])))"
        for q in (50, 99)
    }


def _mean_of(of: str, over: str) -> str:
    return (
        f'sum by (scorer) (rate(synod_reward_sums_total{{of="{of}",scorer=~"$scorer"}}[10m])) / '
        f'sum by (scorer) (rate(synod_reward_sums_total{{of="{over}",scorer=~"$scorer"}}[10m]))'
    )


def _step(*names: str) -> dict[str, str]:
    return {name: f'synod_training_value{{name="{name}"}}' for name in names}


_SCORER: Final = 'scorer=~"$scorer"'
_BY: Final = "{{scorer}}"
BOARDS: Final = {
    "service": Board(
        "Synod: service",
        (
            Panel("Requests", "reqps", {"{{outcome}}": "sum by (outcome) (rate(synod_requests_total[5m]))"}),
            Panel("Request time", "s", _quantiles("synod_request_seconds", "route", 'route="/v1/score"')),
            Panel("Images", "ops", {"images": "sum(rate(synod_images_total[5m]))"}),
            Panel("Items", "ops", {"items": "sum(rate(synod_items_total[5m]))"}),
            Panel("Time by stage, p99", "s", dict([list(_quantiles("synod_stage_seconds", "stage").items())[1]])),
            Panel("Requests in progress", "none", {"requests": "sum(synod_open_requests)"}),
            Panel("Refused or dropped", "ops", {"{{reason}}": "sum by (reason) (rate(synod_rejects_total[5m]))"}),
            Panel("Requested scores", "ops", {"{{result}}": "sum by (result) (rate(synod_cache_total[5m]))"}),
            Panel("Shared store failures", "ops", {"{{call}}": "sum by (call) (rate(synod_store_failures_total[5m]))"}),
            Panel("Ray: CPUs and GPUs of pods", "percent", {"{{instance}}": "ray_node_cpu_utilization"}),
        ),
    ),
    "scorers": Board(
        "Synod: scorers",
        (
            Panel("Scores", "ops", {_BY: f"sum by (scorer) (rate(synod_scores_total{{{_SCORER}}}[5m]))"}),
            Panel(
                "Failures",
                "ops",
                {"{{scorer}} {{code}}": f"sum by (scorer, code) (rate(synod_score_failures_total{{{_SCORER}}}[5m]))"},
            ),
            Panel("Scorer wait", "s", _quantiles("synod_scorer_seconds", "scorer", _SCORER)),
            Panel("Batch time", "s", _quantiles("synod_batch_seconds", "scorer", _SCORER)),
            Panel(
                "Device time per second, by scorer",
                "percentunit",
                {_BY: f"sum by (scorer) (rate(synod_batch_seconds_sum{{{_SCORER}}}[5m]))"},
            ),
            Panel(
                "Batch fill, mean",
                "percentunit",
                {
                    _BY: f"sum by (scorer) (rate(synod_batch_fill_sum{{{_SCORER}}}[5m])) / "
                    f"sum by (scorer) (rate(synod_batch_fill_count{{{_SCORER}}}[5m]))"
                },
            ),
            Panel(
                "Items per batch, mean",
                "none",
                {
                    _BY: f"sum by (scorer) (rate(synod_batch_items_sum{{{_SCORER}}}[5m])) / "
                    f"sum by (scorer) (rate(synod_batch_items_count{{{_SCORER}}}[5m]))"
                },
            ),
            Panel("Images in replicas", "none", {_BY: f"sum by (scorer) (synod_held_images{{{_SCORER}}})"}),
            Panel(
                "Age of the oldest queued call",
                "s",
                {_BY: f"max by (scorer) (clamp_min(time() - synod_queue_oldest_timestamp_seconds{{{_SCORER}}}, 0))"},
            ),
            Panel(
                "Calls repeated after a lost replica",
                "ops",
                {_BY: f"sum by (scorer) (rate(synod_retries_total{{{_SCORER}}}[5m]))"},
            ),
        ),
        ("scorer", "synod_scores_total"),
    ),
    "reward-health": Board(
        "Synod: reward health",
        (
            Panel("Mean, 10 minutes, in units of the range", "none", {_BY: _mean_of("total", "scores")}),
            Panel("Mean since the start", "none", {_BY: f"avg by (scorer) (synod_reward_mean{{{_SCORER}}})"}),
            Panel("Spread since the start", "none", {_BY: f"avg by (scorer) (synod_reward_std{{{_SCORER}}})"}),
            Panel("Saturation, 10 minutes", "percentunit", {_BY: _mean_of("saturated", "scores")}),
            Panel("Groups with equal scores, 10 minutes", "percentunit", {_BY: _mean_of("flat_groups", "groups")}),
            Panel("Failure share", "percentunit", {_BY: f"max by (scorer) (synod_reward_error_share{{{_SCORER}}})"}),
            Panel(
                "Saturation since the start",
                "percentunit",
                {_BY: f"max by (scorer) (synod_reward_saturation{{{_SCORER}}})"},
            ),
            Panel(
                "Flat groups since the start",
                "percentunit",
                {_BY: f"max by (scorer) (synod_reward_zero_spread{{{_SCORER}}})"},
            ),
            Panel("Drift, in standard deviations", "none", {_BY: f"max by (scorer) (synod_reward_drift{{{_SCORER}}})"}),
        ),
        ("scorer", "synod_reward_sums_total"),
    ),
    "training": Board(
        "Synod: training",
        (
            Panel("Step", "none", {"step": "synod_training_step"}),
            Panel("Time since the last step", "s", {"age": "time() - synod_training_last_step_timestamp_seconds"}),
            Panel("Reward", "none", _step("reward_mean", "reward_std")),
            Panel("Reward components", "none", {"{{name}}": 'synod_training_value{name=~"components/.*"}'}),
            Panel("Loss", "none", _step("loss_text", "loss_image")),
            Panel("KL to the reference", "none", _step("kl_text", "kl_image")),
            Panel("Clip fraction", "percentunit", _step("clip_fraction_text", "clip_fraction_image")),
            Panel("Largest policy ratio", "none", _step("ratio_max_text", "ratio_max_image")),
            Panel("Gradient and learning rate", "none", _step("grad_norm", "lr")),
            Panel("Screen: previews drawn and kept", "none", _step("previews", "kept", "capped")),
            Panel("Screen: pass rate and threshold", "none", _step("pass_rate", "threshold")),
            Panel("Denoising steps saved", "percentunit", _step("denoising_steps_saved_ratio")),
            Panel("Masked rewards and skipped groups", "none", _step("masked", "skipped")),
            Panel("Step time", "s", {"{{name}}": 'synod_training_value{name=~"seconds/.*"}'}),
        ),
    ),
}


def build(name: str, board: Board) -> dict[str, Any]:
    """Build Grafana's JSON. The data source is a variable, so any Prometheus can be selected."""
    source = {"type": "prometheus", "uid": "${source}"}
    panels = [
        {
            "id": i + 1,
            "type": "timeseries",
            "title": panel.title,
            "datasource": source,
            "gridPos": {"x": WIDTH * (i % 2), "y": HEIGHT * (i // 2), "w": WIDTH, "h": HEIGHT},
            "fieldConfig": {"defaults": {"unit": panel.unit}, "overrides": []},
            "targets": [
                {"refId": chr(ord("A") + j), "expr": expr, "legendFormat": legend, "datasource": source}
                for j, (legend, expr) in enumerate(panel.queries.items())
            ],
        }
        for i, panel in enumerate(board.panels)
    ]
    variables: list[dict[str, Any]] = [
        {"name": "source", "label": "Prometheus", "type": "datasource", "query": "prometheus"}
    ]
    if board.chosen is not None:
        label, series = board.chosen
        variables.append(
            {
                "name": label,
                "type": "query",
                "datasource": source,
                "query": f"label_values({series}, {label})",
                "refresh": 2,
                "multi": True,
                "includeAll": True,
                "current": {"text": "All", "value": "$__all"},
            }
        )
    return {
        "uid": f"synod-{name}",
        "title": board.title,
        "tags": ["synod"],
        "schemaVersion": 39,
        "refresh": "15s",
        "time": {"from": "now-3h", "to": "now"},
        "templating": {"list": variables},
        "panels": panels,
    }
