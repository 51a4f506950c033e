"""What the chart says of other files is true of them: settings, metrics, alerts, documents, versions."""

from __future__ import annotations

import json
import random
import re
import tomllib
import warnings
from collections.abc import Iterator
from pathlib import Path

import helm_python
import pytest
import yaml

from helm import dashboards, generate
from services import settings
from services.gateway import auth
from services.observability import metrics
from services.observability.reward_health import Health, Sums
from synod.errors import SettingsError
from tests.chart.rendering import CHART, PROFILES, ROOT, Object, of, profile, render, serve_config, unpack
from trainer import exporter

ALERTS = yaml.safe_load((CHART / "files/alerts.yaml").read_text())
SERIES = re.compile(r"\b(?:synod|ray)_[a-z_]+\b")


def test_what_is_generated_is_up_to_date() -> None:
    assert [path.name for path, text in generate.generated().items() if path.read_text() != text] == []
    assert {path.stem for path in (CHART / "dashboards").iterdir()} == set(dashboards.BOARDS)


def test_every_value_is_described_and_a_silent_one_is_seen() -> None:
    source = (CHART / "values.yaml").read_text()
    values = yaml.safe_load(source)
    assert len(list(generate.leaves(values, generate.read_comments(source)))) > 80
    silent = "a:\n  # -- told\n  b: 1\n  c: 2\n"
    with pytest.raises(ValueError, match=r"a\.c has no description"):
        list(generate.leaves(yaml.safe_load(silent), generate.read_comments(silent)))


def test_comments_become_descriptions_and_schema() -> None:
    source = '# -- One\n# two\n# @schema {"minimum": 3}\na: 4\n'
    schema = generate.schema(yaml.safe_load(source), generate.read_comments(source))
    assert schema["properties"]["a"] == {"type": "integer", "description": "One two", "minimum": 3}
    assert schema["additionalProperties"] is False


def test_versions_are_the_projects() -> None:
    chart = yaml.safe_load((CHART / "Chart.yaml").read_text())
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert f"ray[serve]=={chart['annotations']['synod/ray-version']}" in project["optional-dependencies"]["service"]
    import synod

    assert synod.__version__.startswith(chart["appVersion"])


with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # Ray's own, at import
    from services.cluster.graph import Demand, check_capacity


@pytest.fixture
def mounted(tmp_path: Path) -> Path:
    """A folder as the head's /app, where the TOML's relative paths resolve to what its image holds."""
    unpack("scorer", tmp_path)
    (tmp_path / "deploy/release").mkdir()
    return tmp_path


@pytest.mark.parametrize("name", PROFILES)
def test_the_service_reads_what_is_rendered_and_its_pods_hold_it(
    name: str, mounted: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    objects = render({**profile(name), "auth": {"generate": True}})
    (mounted / "deploy/release/service.toml").write_text(
        of(objects, "ConfigMap", "demo-synod-config")["data"]["service.toml"]
    )
    tokens = mounted / "tokens.toml"
    tokens.write_text(of(objects, "Secret")["stringData"]["tokens.toml"])
    env = dict(serve_config(objects)["applications"][0]["runtime_env"]["env_vars"])
    env["SYNOD__AUTH__TOKENS_FILE"] = str(tokens)
    loaded = settings.load(mounted / "deploy/release/service.toml", env)
    assert loaded.server.host == "0.0.0.0"
    groups = {g["groupName"]: g for g in of(objects, "RayService")["spec"]["rayClusterConfig"]["workerGroupSpecs"]}
    assert loaded.server.gateway_replicas == groups["gateway"]["replicas"]
    params = [group["rayStartParams"] for group in groups.values() for _ in range(group["replicas"])]
    cpus = sum(float(one["num-cpus"]) for one in params)
    check_capacity(Demand.of(loaded), cpus, [int(one.get("num-gpus", 0)) for one in params])
    caller = auth.load(loaded.auth).authenticate(f"Bearer {of(objects, 'Secret')['stringData']['token']}", "metrics")
    assert caller.name == "release"


@pytest.mark.parametrize("seed", range(12))
def test_the_chart_refuses_what_no_packing_could_hold(seed: int, mounted: Path) -> None:
    """By the service's own count of what its replicas ask for: the chart leaves the packing to Ray."""
    draw = random.Random(seed)
    servings = [
        {
            "replicas": draw.randint(1, 3),
            **({"max_replicas": draw.randint(3, 6)} if draw.random() < 0.5 else {}),
            "num_cpus": draw.choice([0.1, 0.5, 2]),
            **({"num_gpus": draw.choice([0.25, 0.5, 1])} if draw.random() < 0.5 else {}),
        }
        for _ in range(3)
    ]
    fields = [", ".join(f"{key} = {value}" for key, value in one.items()) for one in servings]
    text = "\n".join(f'[scorers.s{i}]\nkind = "psnr"\nserving = {{ {one} }}' for i, one in enumerate(fields))
    path = mounted / "deploy/release/service.toml"
    path.write_text(text)
    loaded = settings.load(path)
    grown = [(one.serving.most_replicas, one.serving) for one in loaded.scorers.values()]
    cpus = sum(most * serving.num_cpus for most, serving in grown)
    gpus = sum(most * serving.num_gpus for most, serving in grown)
    pods = draw.randint(0, 6)
    values: Object = {"config": text, "scorers": {"gpu": {"replicas": pods}}}
    if gpus <= pods and cpus <= 4 + 8 * pods:
        assert render(values)
    else:
        with pytest.raises(helm_python.HelmError, match=r"replicas.* may ask for"):
            render(values)


def test_a_service_without_tokens_would_not_start(mounted: Path) -> None:
    """The chart's default is safe because the settings refuse the alternative."""
    (mounted / "deploy/release/service.toml").write_text(generate.EMBEDDED.read_text())
    with pytest.raises(SettingsError, match="nobody needs a token"):
        settings.load(mounted / "deploy/release/service.toml", {"SYNOD__SERVER__HOST": "0.0.0.0"})


def known_series() -> set[str]:
    """Every name that a scrape may hold: of the service, the trainer, and the one of Ray's that is used."""
    found = set(exporter.HELP) | {"ray_node_cpu_utilization"}
    for family in metrics.REGISTRY.collect():
        suffixes = {"counter": ("_total",), "histogram": ("_bucket", "_sum", "_count")}.get(family.type, ("",))
        found |= {family.name + suffix for suffix in suffixes}
    return found | {f"synod_reward_{name}" for name in Health.__dataclass_fields__}


def expressions() -> Iterator[tuple[str, str]]:
    for group in ALERTS["groups"]:
        yield from ((rule["alert"], rule["expr"]) for rule in group["rules"])
    for name, board in dashboards.BOARDS.items():
        for panel in board.panels:
            yield from ((f"{name}: {panel.title}", expr) for expr in panel.queries.values())
        yield name, board.chosen[1] if board.chosen else ""


def test_every_series_that_is_asked_for_exists() -> None:
    known = known_series()
    assert {name: found for name, expr in expressions() if (found := set(SERIES.findall(expr)) - known)} == {}


def test_every_reward_sum_that_is_asked_for_exists() -> None:
    asked = {of for _, expr in expressions() for of in re.findall(r'of="(\w+)"', expr)}
    assert asked
    assert asked <= set(Sums.__dataclass_fields__)


def test_every_number_of_training_that_is_asked_for_is_one_that_a_step_tells() -> None:
    """Names are those of `trainer.records.step_record` and `trainer.train`, read from their sources."""
    asked = {n for _, expr in expressions() for name in re.findall(r'name=~?"([^"]+)"', expr) for n in name.split("|")}
    sources = "".join((ROOT / f"trainer/{part}.py").read_text() for part in ("records", "train"))
    told = set(re.findall(r'"(\w+)"', sources))
    told |= {f"{n}_{m}" for n in ("loss", "kl", "clip_fraction", "ratio_max") for m in ("text", "image")}
    assert {one.partition("/")[0] for one in asked} <= told


def test_every_ray_series_that_is_asked_for_is_rays_own() -> None:
    import ray

    source = (Path(ray.__file__).parent / "dashboard/modules/reporter/reporter_agent.py").read_text()
    assert {name for _, expr in expressions() for name in SERIES.findall(expr) if name.startswith("ray_")} == {
        "ray_node_cpu_utilization"
    }
    assert '"node_cpu_utilization"' in source


def alerts() -> list[Object]:
    return [rule for group in ALERTS["groups"] for rule in group["rules"]]


@pytest.mark.parametrize("alert", alerts(), ids=lambda alert: str(alert["alert"]))
def test_every_alert_has_a_severity_a_summary_and_a_runbook_entry(alert: Object) -> None:
    assert alert["labels"]["severity"] in ("critical", "warning", "info")
    assert alert["annotations"]["summary"]
    runbook = (ROOT / "docs/operations.md").read_text().partition("## Alerts")[2].partition("\n## ")[0]
    assert re.search(rf"^\| `{alert['alert']}` \|[^|]+\|[^|]+\|$", runbook, re.M)


def test_the_runbook_has_no_alert_that_is_not_there() -> None:
    runbook = (ROOT / "docs/operations.md").read_text().partition("## Alerts")[2].partition("\n## ")[0]
    assert set(re.findall(r"^\| `(\w+)` \|", runbook, re.M)) == {alert["alert"] for alert in alerts()}


@pytest.mark.parametrize("name", dashboards.BOARDS)
def test_a_dashboard_is_whole(name: str) -> None:
    board = json.loads((CHART / f"dashboards/{name}.json").read_text())
    assert board["uid"] == f"synod-{name}"
    places = [(p["gridPos"]["x"], p["gridPos"]["y"]) for p in board["panels"]]
    assert len(set(places)) == len(places)
    variables = {one["name"] for one in board["templating"]["list"]}
    for panel in board["panels"]:
        used = {v for target in panel["targets"] for v in re.findall(r"\$(\w+)", target["expr"])}
        assert used <= variables
