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
from tests.chart.rendering import (
    CHART,
    PROFILES,
    ROOT,
    Object,
    of,
    pod_templates,
    profile,
    render,
    serve_config,
    unpack,
)
from trainer import exporter
from trainer import settings as trainer_settings
from trainer.settings.personalize import load_personalize

ALERTS = yaml.safe_load((CHART / "files/alerts.yaml").read_text())
SERIES = re.compile(r"\b(?:synod|ray)_[a-z_]+\b")


def test_generated_files_are_up_to_date() -> None:
    assert [path.name for path, text in generate.generated().items() if path.read_text() != text] == []
    assert {path.stem for path in (CHART / "dashboards").iterdir()} == set(dashboards.BOARDS)


def test_every_value_has_a_description() -> None:
    source = (CHART / "values.yaml").read_text()
    values = yaml.safe_load(source)
    assert len(list(generate.leaves(values, generate.read_comments(source)))) > 80
    silent = "a:\n  # -- described\n  b: 1\n  c: 2\n"
    with pytest.raises(ValueError, match=r"a\.c has no description"):
        list(generate.leaves(yaml.safe_load(silent), generate.read_comments(silent)))


def test_comments_become_descriptions_and_schema() -> None:
    source = '# -- One\n# two\n# @schema {"minimum": 3}\na: 4\n'
    schema = generate.schema(yaml.safe_load(source), generate.read_comments(source))
    assert schema["properties"]["a"] == {"type": "integer", "description": "One two", "minimum": 3}
    assert schema["additionalProperties"] is False


def test_versions_match_the_project() -> None:
    chart = yaml.safe_load((CHART / "Chart.yaml").read_text())
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert f"ray[serve]=={chart['annotations']['synod/ray-version']}" in project["optional-dependencies"]["service"]
    import synod

    assert synod.__version__.startswith(chart["appVersion"])


with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # raised by Ray at import
    from services.cluster.graph import Demand, check_capacity


@pytest.fixture
def mounted(tmp_path: Path) -> Path:
    """Return a folder like /app in the head's image, in which the TOML's relative paths resolve."""
    unpack("scorer", tmp_path)
    (tmp_path / "deploy/release").mkdir()
    return tmp_path


@pytest.mark.parametrize("name", PROFILES)
def test_the_rendered_settings_load_and_fit_the_pods(name: str, mounted: Path, monkeypatch: pytest.MonkeyPatch) -> None:
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


@pytest.mark.parametrize("own", [False, True], ids=["service.toml", "trainer.toml"])
def test_the_trainers_settings_load_in_its_pod(own: bool, tmp_path: Path) -> None:
    text = generate.EMBEDDED.read_text().replace("[trainer]\n", "[trainer]\nseed = 17\n") if own else ""
    objects = render({"trainer": {"enabled": True, "config": text, "overrides": {"SYNOD__TRAINER__STEPS": "7"}}})
    unpack("trainer", tmp_path)
    (tmp_path / "deploy/release").mkdir()
    for name, content in of(objects, "ConfigMap", "demo-synod-config")["data"].items():
        (tmp_path / "deploy/release" / name).write_text(content)
    path = of(objects, "RayJob")["spec"]["entrypoint"].split()[-1]
    env = {one["name"]: one["value"] for one in dict(pod_templates(objects))["trainer"]["spec"]["containers"][0]["env"]}
    loaded = trainer_settings.load(str(tmp_path / Path(path).relative_to("/app")), env)
    assert (loaded.steps, str(loaded.run_dir)) == (7, "/checkpoints/train")
    assert loaded.rewards.url == "http://demo-synod.prod.svc:8000"
    assert loaded.seed == (17 if own else 0)


def test_personalize_settings_load_in_its_pod(tmp_path: Path) -> None:
    config = (ROOT / "deploy/configs/personalize.toml").read_text()
    command = ["synod", "personalize", "CONFIG"]
    objects = render({"trainer": {"enabled": True, "run": "uma", "config": config, "command": command}})
    unpack("trainer", tmp_path)
    path = tmp_path / of(objects, "RayJob")["spec"]["entrypoint"].split()[-1].removeprefix("/app/")
    path.parent.mkdir()
    path.write_text(of(objects, "ConfigMap", "demo-synod-config")["data"][path.name])
    env = {one["name"]: one["value"] for one in dict(pod_templates(objects))["trainer"]["spec"]["containers"][0]["env"]}
    loaded = load_personalize(path, env)
    assert (str(loaded.run_dir), loaded.data.name) == ("/checkpoints/uma", "uma")
    assert (loaded.data / "info.json").exists()


@pytest.mark.parametrize(("pods", "runner"), [(1, "trainer"), (2, "trainer-head")])
def test_the_workers_fit_their_pods(pods: int, runner: str, tmp_path: Path) -> None:
    """The pod that runs the command reads settings that ask for what the pods have."""
    values = {"enabled": True, "workers": 8, "pods": pods, "checkpoints": {"accessModes": ["ReadWriteMany"]}}
    overrides = {"SYNOD__TRAINER__RANKS__MAX_FAILURES": 20, "SYNOD__TRAINER__PROMPTS_PER_STEP": 8}
    objects = render({"trainer": {**values, "overrides": overrides}})
    (container, *_) = dict(pod_templates(objects))[runner]["spec"]["containers"]
    unpack("trainer", tmp_path)
    path = tmp_path / "deploy/release/service.toml"
    path.parent.mkdir()
    path.write_text(of(objects, "ConfigMap", "demo-synod-config")["data"]["service.toml"])
    ranks = trainer_settings.load(path, {one["name"]: one["value"] for one in container["env"]}).ranks
    assert (ranks.workers, ranks.gpus, ranks.max_failures) == (8, 1, 20)
    (group,) = of(objects, "RayJob")["spec"]["rayClusterSpec"]["workerGroupSpecs"]
    for resource, each in (("num-gpus", ranks.gpus), ("num-cpus", 1)):  # `trainer.launch` asks for one CPU
        assert group["replicas"] * int(group["rayStartParams"][resource]) == ranks.workers * each


@pytest.mark.parametrize("seed", range(12))
def test_the_chart_refuses_what_the_pods_cannot_hold(seed: int, mounted: Path) -> None:
    """Compare with the service's own sum of its replicas' resources; Ray decides how they are packed."""
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


def test_a_service_without_tokens_does_not_start(mounted: Path) -> None:
    """The settings refuse a public service without tokens, on which the chart relies."""
    (mounted / "deploy/release/service.toml").write_text(generate.EMBEDDED.read_text())
    with pytest.raises(SettingsError, match="no token is required"):
        settings.load(mounted / "deploy/release/service.toml", {"SYNOD__SERVER__HOST": "0.0.0.0"})


def known_series() -> set[str]:
    """Return the names of all series of service and trainer, and the one series of Ray that is used."""
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


def test_every_queried_series_exists() -> None:
    known = known_series()
    assert {name: found for name, expr in expressions() if (found := set(SERIES.findall(expr)) - known)} == {}


def test_every_queried_reward_sum_exists() -> None:
    asked = {of for _, expr in expressions() for of in re.findall(r'of="(\w+)"', expr)}
    assert asked
    assert asked <= set(Sums.__dataclass_fields__)


def test_every_queried_training_value_is_recorded() -> None:
    """The names come from `trainer.report.records.step_record` and `trainer.train`, read from their sources."""
    asked = {n for _, expr in expressions() for name in re.findall(r'name=~?"([^"]+)"', expr) for n in name.split("|")}
    sources = "".join((ROOT / f"trainer/{part}.py").read_text() for part in ("report/records", "train"))
    recorded = set(re.findall(r'"(\w+)"', sources))
    of_modality = ("loss", "kl", "clip_fraction", "ratio_min", "ratio_max")
    recorded |= {f"{name}_{modality}" for name in of_modality for modality in ("text", "image")}
    assert {one.partition("/")[0] for one in asked} <= recorded


def test_every_queried_ray_series_exists() -> None:
    import ray

    source = (Path(ray.__file__).parent / "dashboard/modules/reporter/reporter_agent.py").read_text()
    assert {name for _, expr in expressions() for name in SERIES.findall(expr) if name.startswith("ray_")} == {
        "ray_node_cpu_utilization"
    }
    assert '"node_cpu_utilization"' in source


def alerts() -> list[Object]:
    return [rule for group in ALERTS["groups"] for rule in group["rules"]]


@pytest.mark.parametrize("alert", alerts(), ids=lambda alert: str(alert["alert"]))
def test_every_alert_has_severity_summary_and_runbook(alert: Object) -> None:
    assert alert["labels"]["severity"] in ("critical", "warning", "info")
    assert alert["annotations"]["summary"]
    runbook = (ROOT / "docs/operations.md").read_text().partition("## Alerts")[2].partition("\n## ")[0]
    assert re.search(rf"^\| `{alert['alert']}` \|[^|]+\|[^|]+\|$", runbook, re.M)


def test_the_runbook_lists_only_existing_alerts() -> None:
    runbook = (ROOT / "docs/operations.md").read_text().partition("## Alerts")[2].partition("\n## ")[0]
    assert set(re.findall(r"^\| `(\w+)` \|", runbook, re.M)) == {alert["alert"] for alert in alerts()}


@pytest.mark.parametrize("name", dashboards.BOARDS)
def test_dashboards_are_well_formed(name: str) -> None:
    board = json.loads((CHART / f"dashboards/{name}.json").read_text())
    assert board["uid"] == f"synod-{name}"
    places = [(p["gridPos"]["x"], p["gridPos"]["y"]) for p in board["panels"]]
    assert len(set(places)) == len(places)
    variables = {one["name"] for one in board["templating"]["list"]}
    for panel in board["panels"]:
        used = {v for target in panel["targets"] for v in re.findall(r"\$(\w+)", target["expr"])}
        assert used <= variables
