"""Test that every value of the chart has an effect, and the rules of its templates."""

from __future__ import annotations

import re
import subprocess
from collections.abc import Iterator
from hashlib import sha256
from typing import Any

import pytest
import yaml

from helm import generate
from tests.chart.rendering import (
    CHART,
    ROOT,
    Object,
    merged,
    nested,
    notes,
    of,
    pod_templates,
    profile,
    render,
    serve_config,
)

CLUSTER = "RayService.spec.rayClusterConfig"
GATEWAY, CPU, GPU = (f"{CLUSTER}.workerGroupSpecs.{group}" for group in ("gateway", "cpu", "gpu"))
HEAD_POD = f"{CLUSTER}.headGroupSpec.template.spec"
GATEWAY_POD, CPU_POD, GPU_POD = (f"{group}.template.spec" for group in (GATEWAY, CPU, GPU))
TRAINER = {"trainer": {"enabled": True}}
TRAINER_GROUP = "RayJob.spec.rayClusterSpec.workerGroupSpecs.trainer"
TRAINER_POD = f"{TRAINER_GROUP}.template.spec"
TRAINER_HEAD = "RayJob.spec.rayClusterSpec.headGroupSpec.template.spec"
SHARED = {"accessModes": ["ReadWriteMany"]}
WORKERS = {"trainer": {"enabled": True, "workers": 8}}  # on the GPUs of one node
PODS = {"trainer": {"enabled": True, "workers": 8, "pods": 2, "checkpoints": SHARED}}
OWN = {"environments": {"hpsv3": {"image": {"repository": "own", "tag": "1"}, "gpus": 2, "replicas": 3}}}
OWN_CPU = {"environments": {"old": {"image": {"repository": "own", "tag": "1"}, "logicalCpus": 7}}}
HPSV3, OLD = (f"{CLUSTER}.workerGroupSpecs.{group}" for group in ("hpsv3", "old"))
OWN_TOML = '[trainer]\nsteps = 3  # "quoted" {{ braces }}\n'
OWN_SETTINGS = {"trainer": {"enabled": True, "config": OWN_TOML}}
PERSONALIZE_TOML = '[trainer.policy]\nmodel = "a/b"\n[personalize]\ndata = "."\n'
PERSONALIZE_COMMAND = ["synod", "personalize", "CONFIG", "--data=/photographs/bo"]
PERSONALIZE = {"trainer": {"enabled": True, "config": PERSONALIZE_TOML, "command": PERSONALIZE_COMMAND}}
FLOW = {
    "config": (ROOT / "deploy/configs/sd35_flow_grpo.toml").read_text(),
    "scorers": {"gpu": {"replicas": 1}},
    "models": {"cache": {"enabled": True}},
    "trainer": {
        "enabled": True,
        "run": "sd35",
        "command": ["synod", "train", "/app/deploy/configs/sd35_flow_grpo.toml"],  # its prompts are next to it
    },
}
WITH_GPU = {"scorers": {"gpu": {"replicas": 2}}}
ON = {"autoscaling": {"enabled": True}}
LIMITS, CLAIM, NVIDIA = "containers.ray.resources.limits", "persistentVolumeClaim.claimName", "nvidia/DOT/com/gpu"
MISSING = object()


def pick(objects: list[Object], path: str) -> Any:
    """Return the value at "Kind[name].key.key", or MISSING. Items of a list go by their name, groupName or number."""
    head, *keys = re.split(r"\.(?![^\[]*\])", path)
    kind, _, name = head.partition("[")
    found: Any = [o for o in objects if o["kind"] == kind and name.rstrip("]") in ("", o["metadata"]["name"])]
    if not found:
        return MISSING
    found = found[0]
    for key in keys:
        key = key.replace("/DOT/", ".")
        if isinstance(found, list):
            maps = [one for one in found if isinstance(one, dict)]
            named = {str(one.get("name", one.get("groupName", one.get("port")))): one for one in maps}
            found = named.get(key, found[int(key)] if key.isdigit() and int(key) < len(found) else MISSING)
        else:
            found = found.get(key, MISSING)
        if found is MISSING:
            return MISSING
    return found


# Rules of the templates beyond passing a value on: defaults, derived numbers, absent objects.
CASES: list[tuple[Object, str, Any]] = [
    ({"fullnameOverride": "x" * 36}, "RayService.metadata.name", "x" * 36),
    ({}, f"{GATEWAY_POD}.containers.ray.image", "synod-gateway:0.1.0"),
    ({"images": {"gateway": {"tag": "@sha256:ab"}}}, "Pod.spec.containers.score.image", "synod-gateway@sha256:ab"),
    ({"images": {"scorer": {"tag": "2"}}}, f"{CPU_POD}.containers.metrics.image", "synod-scorer:2"),
    # environments of scorers: those with GPUs default to scorers.gpu, the others to scorers.cpu
    (OWN, f"{HPSV3}.rayStartParams.resources", '"{\\"hpsv3\\": 1}"'),
    (OWN, f"{HPSV3}.rayStartParams.num-gpus", "2"),
    (OWN, f"{HPSV3}.template.spec.{LIMITS}.{NVIDIA}", 2),
    (OWN, f"{CPU}.rayStartParams.resources", MISSING),
    (OWN, "PodDisruptionBudget[demo-synod-scorer-hpsv3].spec.minAvailable", 2),
    (OWN_CPU, f"{OLD}.rayStartParams.num-cpus", "7"),
    (OWN_CPU, f"{OLD}.rayStartParams.num-gpus", MISSING),
    # and what they set stays, also 0 and []
    (OWN, f"{HPSV3}.template.spec.tolerations.0.key", "nvidia.com/gpu"),
    (merged(OWN, nested("environments.hpsv3.tolerations", [])), f"{HPSV3}.template.spec.tolerations", MISSING),
    (merged(OWN_CPU, nested("environments.old.replicas", 0)), OLD, MISSING),
    (merged(ON, OWN_CPU, nested("environments.old", {"replicas": 0, "minReplicas": 0})), f"{OLD}.replicas", 0),
    (merged(ON, OWN_CPU), f"{OLD}.minReplicas", 1),
    (merged(ON, OWN_CPU, nested("environments.old.minReplicas", 0)), f"{OLD}.minReplicas", 0),
    (merged(ON, OWN_CPU, nested("environments.old.maxReplicas", 0)), f"{OLD}.minReplicas", 0),
    (merged(ON, OWN_CPU, nested("environments.old.maxReplicas", 0)), f"{OLD}.maxReplicas", 0),
    (
        merged(OWN_CPU, nested("environments.old.resources.requests.cpu", 0)),
        f"{OLD}.template.spec.containers.ray.resources.requests",
        {"cpu": 0, "memory": "6Gi"},
    ),
    # an override by 0 counts in the check of the pods' capacity
    (
        {
            "config": '[scorers.ber]\nkind = "ber"\nserving = { num_gpus = 0.5 }\n',
            "overrides": {"SYNOD__SCORERS__BER__SERVING__NUM_GPUS": "0"},
        },
        "RayService.metadata.name",
        "demo-synod",
    ),
    # the cluster
    ({}, f"{CLUSTER}.authOptions", {"mode": "token"}),
    ({}, f"{CLUSTER}.headGroupSpec.rayStartParams.num-cpus", "0"),
    ({}, f"{CLUSTER}.gcsFaultToleranceOptions", MISSING),
    (nested("ray.gcs.redis.address", "r:1"), f"{CLUSTER}.gcsFaultToleranceOptions", {"redisAddress": "r:1"}),
    ({}, f"{GATEWAY}.rayStartParams.resources", '"{\\"synod_gateway\\": 1}"'),
    ({}, f"{GATEWAY}.rayStartParams.num-cpus", "0"),
    (merged({"gateway": {"replicas": 3}}, ON), f"{GATEWAY}.maxReplicas", 3),
    ({}, GPU, MISSING),
    (WITH_GPU, f"{GPU}.rayStartParams.num-gpus", "1"),
    (WITH_GPU, f"{GPU_POD}.containers.metrics.resources.limits.nvidia/DOT/com/gpu", MISSING),
    ({}, f"{CPU_POD}.{LIMITS}.{NVIDIA}", MISSING),
    (profile("one-gpu"), CPU, MISSING),
    ({}, f"{CLUSTER}.autoscalerOptions", MISSING),
    ({}, f"{CPU}.maxReplicas", 1),
    (ON, f"{CPU}.maxReplicas", 4),
    (ON, f"{GPU}.replicas", 0),
    (merged(ON, {"scorers": {"cpu": {"replicas": 9}}}), f"{CPU}.replicas", 4),
    # pods
    ({"topologySpread": {"topologyKey": ""}}, f"{GATEWAY_POD}.topologySpreadConstraints", MISSING),
    ({}, f"{CPU_POD}.shareProcessNamespace", True),
    ({}, f"{GATEWAY_POD}.shareProcessNamespace", MISSING),
    ({}, f"{GATEWAY_POD}.containers.ray.startupProbe.failureThreshold", 360),
    ({}, f"{GATEWAY_POD}.containers.ray.readinessProbe.httpGet", {"path": "/healthz", "port": "http"}),
    ({}, f"{GATEWAY_POD}.containers.ray.livenessProbe.httpGet", {"path": "/api/healthz", "port": 52365}),
    ({}, f"{CPU_POD}.volumes.shm.emptyDir.sizeLimit", 536870912 + 134217728),
    ({}, f"{CPU_POD}.volumes.models.emptyDir", {}),
    (nested("models.cache.enabled", True), f"{CPU_POD}.volumes.models.{CLAIM}", "demo-synod-models"),
    (nested("models.cache", {"enabled": True, "existingClaim": "c"}), "PersistentVolumeClaim", MISSING),
    # Service, Ingress, NetworkPolicy
    ({"gateway": {"grpcPort": 0}}, "Service.spec.ports.grpc", MISSING),
    ({"gateway": {"grpcPort": 0}}, f"{GATEWAY_POD}.containers.ray.ports.grpc", MISSING),
    ({}, "Ingress", MISSING),
    ({"ingress": {"enabled": True, "host": "h.example", "allowPlainHttp": True}}, "Ingress.spec.tls", MISSING),
    ({}, "NetworkPolicy[demo-synod-gateway].spec.ingress.0.from", MISSING),
    ({}, "NetworkPolicy[demo-synod-service-operator].spec.ingress.0.ports", [{"port": 8265}]),
    (nested("networkPolicy.operatorFrom", []), "NetworkPolicy[demo-synod-service-operator].spec.ingress", []),
    (nested("networkPolicy.metricsFrom", []), "NetworkPolicy[demo-synod-metrics].spec.ingress", []),
    ({}, "NetworkPolicy[demo-synod-trainer]", MISSING),
    ({}, "NetworkPolicy[demo-synod-egress]", MISSING),
    ({"networkPolicy": {"enabled": False}}, "NetworkPolicy", MISSING),
    # tokens and the service account
    ({"auth": {"existingSecret": "mine"}}, "Secret", MISSING),
    ({"auth": {"existingSecret": "mine"}}, "Pod.spec.volumes.token.secret.secretName", "mine"),
    ({}, "ServiceAccount.automountServiceAccountToken", False),
    ({"serviceAccount": {"create": False, "name": "sa"}}, f"{CPU_POD}.serviceAccountName", "sa"),
    ({"serviceAccount": {"create": False}}, f"{CPU_POD}.serviceAccountName", "default"),
    # disruption budgets
    ({}, "PodDisruptionBudget", MISSING),  # a budget of a single pod could only block its eviction
    ({"gateway": {"replicas": 3}}, "PodDisruptionBudget[demo-synod-gateway].spec.minAvailable", 2),
    (merged(WITH_GPU, ON), "PodDisruptionBudget", MISSING),  # autoscaling may reduce the group to one pod
    # monitoring
    ({}, "PodMonitor", MISSING),
    (nested("monitoring.podMonitor.enabled", True), "PodMonitor.spec.podMetricsEndpoints.http.authorization", MISSING),
    (
        merged(nested("monitoring.podMonitor.enabled", True), {"auth": {"metrics": "token"}}),
        "PodMonitor.spec.podMetricsEndpoints.http.authorization.credentials",
        {"name": "demo-synod-tokens", "key": "token"},
    ),
    # the trainer
    (
        PERSONALIZE,
        "RayJob.spec.entrypoint",
        "synod personalize /app/deploy/release/trainer.toml --data=/photographs/bo",
    ),
    (PERSONALIZE, f"{TRAINER_POD}.containers.ray.env.SYNOD__PERSONALIZE__RUN_DIR.value", "/checkpoints/train"),
    (TRAINER, f"{TRAINER_POD}.containers.ray.env.SYNOD__PERSONALIZE__RUN_DIR", MISSING),
    ({}, "RayJob", MISSING),
    (TRAINER, "RayJob.spec.entrypoint", "synod train /app/deploy/release/service.toml"),
    (OWN_SETTINGS, "RayJob.spec.entrypoint", "synod train /app/deploy/release/trainer.toml"),
    (OWN_SETTINGS, "ConfigMap.data.trainer/DOT/toml", OWN_TOML),
    (merged(OWN_SETTINGS, nested("trainer.enabled", False)), "ConfigMap.data.trainer/DOT/toml", MISSING),
    (TRAINER, "ConfigMap.data.trainer/DOT/toml", MISSING),
    (TRAINER, "RayJob.spec.entrypointResources", '{"synod_trainer": 1}'),
    (TRAINER, f"{TRAINER_POD}.containers.ray.env.SYNOD__TRAINER__RUN_DIR.value", "/checkpoints/train"),
    (
        TRAINER,
        f"{TRAINER_POD}.containers.ray.env.SYNOD__TRAINER__REWARDS__URL.value",
        "http://demo-synod.prod.svc:8000",
    ),
    (
        merged(TRAINER, {"trainer": {"overrides": {"SYNOD__TRAINER__REWARDS__URL": "http://other:8000"}}}),
        f"{TRAINER_POD}.containers.ray.env.SYNOD__TRAINER__REWARDS__URL.value",
        "http://other:8000",
    ),
    (merged(TRAINER, {"trainer": {"gpus": 0}}), "RayJob.spec.entrypointNumGpus", MISSING),
    (merged(TRAINER, nested("trainer.startupSeconds", 0)), "RayJob.spec.preRunningDeadlineSeconds", MISSING),
    (TRAINER, "PersistentVolumeClaim.metadata.annotations.helm/DOT/sh/resource-policy", "keep"),
    # a flow policy, whose weights are downloaded once
    (FLOW, "RayJob.spec.entrypoint", "synod train /app/deploy/configs/sd35_flow_grpo.toml"),
    (FLOW, f"{TRAINER_POD}.containers.ray.env.SYNOD__TRAINER__RUN_DIR.value", "/checkpoints/sd35"),
    (FLOW, f"{TRAINER_POD}.containers.ray.env.HF_HOME.value", "/models/huggingface"),
    (FLOW, f"{TRAINER_POD}.volumes.models.{CLAIM}", "demo-synod-models"),
    (FLOW, f"{GPU_POD}.volumes.models.{CLAIM}", "demo-synod-models"),
    (FLOW, f"{TRAINER_POD}.{LIMITS}.{NVIDIA}", 1),
    # its workers in one pod, which also runs the command
    (TRAINER, f"{TRAINER_POD}.containers.ray.env.SYNOD__TRAINER__RANKS__WORKERS", MISSING),
    (TRAINER, f"{TRAINER_GROUP}.rayStartParams.num-cpus", MISSING),
    (TRAINER, f"{TRAINER_POD}.volumes.shm.emptyDir.sizeLimit", 536870912 + 134217728),
    (WORKERS, f"{TRAINER_POD}.containers.ray.env.SYNOD__TRAINER__RANKS__WORKERS.value", "8"),
    (WORKERS, f"{TRAINER_POD}.containers.ray.env.SYNOD__TRAINER__RANKS__GPUS.value", "1"),
    (WORKERS, f"{TRAINER_POD}.{LIMITS}.{NVIDIA}", 8),
    (WORKERS, f"{TRAINER_GROUP}.rayStartParams.num-gpus", "8"),
    (WORKERS, f"{TRAINER_GROUP}.rayStartParams.num-cpus", "8"),
    (WORKERS, f"{TRAINER_GROUP}.replicas", 1),
    (WORKERS, f"{TRAINER_POD}.volumes.shm.emptyDir.sizeLimit", 536870912 + 134217728 + 2**30),
    (WORKERS, "RayJob.spec.entrypointResources", '{"synod_trainer": 1}'),
    (WORKERS, "RayJob.spec.entrypointNumGpus", MISSING),  # the workers' GPUs
    (WORKERS, "PersistentVolumeClaim.spec.accessModes", ["ReadWriteOnce"]),
    (WORKERS, f"{TRAINER_HEAD}.volumes.checkpoints", MISSING),
    (merged(WORKERS, nested("trainer.gpus", 0)), f"{TRAINER_POD}.{LIMITS}.{NVIDIA}", MISSING),
    (merged(WORKERS, nested("trainer.gpus", 0)), f"{TRAINER_GROUP}.rayStartParams.num-cpus", "8"),
    (merged(WORKERS, nested("trainer.gpus", 2)), f"{TRAINER_POD}.{LIMITS}.{NVIDIA}", 16),
    # and in several, where the head runs the command
    *((PODS, f"{TRAINER_GROUP}.{field}", 2) for field in ("replicas", "minReplicas", "maxReplicas")),
    (PODS, f"{TRAINER_POD}.{LIMITS}.{NVIDIA}", 4),
    (PODS, f"{TRAINER_GROUP}.rayStartParams.num-cpus", "4"),
    (PODS, f"{TRAINER_GROUP}.rayStartParams.resources", MISSING),
    (PODS, "RayJob.spec.entrypointResources", MISSING),
    (PODS, f"{TRAINER_HEAD}.{LIMITS}.{NVIDIA}", MISSING),
    (PODS, f"{TRAINER_HEAD}.containers.ray.env.SYNOD__TRAINER__RANKS__WORKERS.value", "8"),
    (PODS, f"{TRAINER_HEAD}.volumes.checkpoints.{CLAIM}", "demo-synod-checkpoints"),
    (PODS, f"{TRAINER_POD}.volumes.checkpoints.{CLAIM}", "demo-synod-checkpoints"),
    (PODS, f"{TRAINER_HEAD}.containers.metrics.command.3", "/checkpoints/train"),
    (PODS, f"{TRAINER_POD}.containers.metrics", MISSING),  # each would report the same run
    (PODS, f"{TRAINER_POD}.containers.ray.env.SYNOD_TOKEN_FILE.value", "/etc/synod/token/token"),
    (PODS, "PersistentVolumeClaim.spec.accessModes", ["ReadWriteMany"]),
    (merged(PODS, nested("trainer.pods", 8)), f"{TRAINER_POD}.volumes.shm.emptyDir.sizeLimit", 536870912 + 134217728),
]


@pytest.mark.parametrize(
    ("values", "path", "expected"), CASES, ids=[f"{i}-{case[1][-60:]}" for i, case in enumerate(CASES)]
)
def test_rules_of_the_templates(values: Object, path: str, expected: Any) -> None:
    found = pick(render(values), path)
    assert found == expected or (found is MISSING and expected is MISSING)


SOURCE = (CHART / "values.yaml").read_text()
DEFAULTS: Object = yaml.safe_load(SOURCE)
# With an existing Secret: a generated token would make any two renderings differ.
EVERYTHING = merged(
    profile("production"),
    {
        "networkPolicy": {"restrictEgress": True, "extraEgress": [{}]},
        "trainer": {"workers": 2, "checkpoints": SHARED},
    },
)
PEER = [{"ipBlock": {"cidr": "10.0.0.0/8"}}]
# Values that the marker below cannot stand for, by key.
OTHER_VALUES: Object = {
    "config": (CHART / "files/embedded.toml").read_text() + "# marker",
    "overrides": {"SYNOD__MARKER": "marker"},
    "environments": OWN["environments"],
    "pullPolicy": "Always",
    "upgradeStrategy": "None",
    "type": "LoadBalancer",
    "whenUnsatisfiable": "DoNotSchedule",
    "metrics": "open",
    "startupSeconds": 60,
    "accessModes": ["ReadWriteOncePod"],
    "pullSecrets": [{"name": "marker"}],
    "extraEnv": [{"name": "MARKER", "value": "marker"}],
    "extraVolumes": [{"name": "marker", "emptyDir": {}}],
    "extraVolumeMounts": [{"name": "marker", "mountPath": "/marker"}],
    "tolerations": [{"key": "marker"}],
    "arguments": ["marker"],
    "command": ["synod", "train", "CONFIG", "--url=http://marker"],
    **dict.fromkeys(("gatewayFrom", "metricsFrom", "operatorFrom"), PEER),
    "extraEgress": [{"to": PEER}],
}
NO_EFFECT = {  # on EVERYTHING; they have a case above or in another test
    "auth.generate", "ingress.allowPlainHttp", "scorers.cpu.replicas", "scorers.gpu.replicas", "serviceAccount.create",
}  # fmt: skip
LEAVES = [
    path
    for path, _ in generate.leaves(DEFAULTS, generate.read_comments(SOURCE))
    if ".".join(path) not in NO_EFFECT
]  # fmt: skip


def changed(path: tuple[str, ...]) -> Any:
    """Return a valid value for a key that differs from the one in EVERYTHING."""
    value: Any = merged(DEFAULTS, EVERYTHING)
    for key in path:
        value = value[key]
    if path[-1] in OTHER_VALUES:
        return OTHER_VALUES[path[-1]]
    if isinstance(value, bool):
        return not value
    if isinstance(value, int):
        return value + 1
    if path[-1].lower().endswith("resources"):
        return {"limits": {"cpu": "77m", "memory": "77Mi"}, "requests": {"cpu": "77m", "memory": "77Mi"}}
    return {"marker": "marker"} if isinstance(value, dict) else "marker"


@pytest.mark.parametrize("path", LEAVES, ids=".".join)
def test_every_value_changes_what_is_rendered(path: tuple[str, ...]) -> None:
    value = changed(path)
    before, after = (yaml.safe_dump(render(v)) for v in (EVERYTHING, merged(EVERYTHING, nested(".".join(path), value))))
    assert before != after
    assert "marker" not in str(value) or "marker" in after


# Neither of the two texts below is a valid value of these, so the templates need not quote them.
NAMES = {"nameOverride", "fullnameOverride", "run"}
TEXTS = [path for path in LEAVES if changed(path) == "marker" and path[-1] not in NAMES]


@pytest.mark.parametrize("path", TEXTS, ids=".".join)
@pytest.mark.parametrize("text", ["*.example.com", "[fd00::7]:6379"])
def test_a_value_that_yaml_would_not_read_as_text_stays_text(path: tuple[str, ...], text: str) -> None:
    rendered = render(merged(EVERYTHING, nested(".".join(path), text)))
    assert any(text in found for found in texts_of(rendered))


def texts_of(tree: Any) -> Iterator[str]:
    """Yield every text in a tree, keys included."""
    if isinstance(tree, str):
        yield tree
    elif isinstance(tree, dict | list):
        for one in (*tree, *tree.values()) if isinstance(tree, dict) else tree:
            yield from texts_of(one)


def test_the_toml_is_mounted_and_its_digest_given_to_serve() -> None:
    text = 'golden = "x"\n# a comment\n\n[server]\nport = 1\t# "quoted" {{ braces }} $and ~ \'more\'\n'
    objects = render({"config": text})
    assert of(objects, "ConfigMap")["data"]["service.toml"] == text
    assert serve_config(objects)["applications"][0]["args"]["sha256"] == sha256(text.encode()).hexdigest()
    assert of(render(), "ConfigMap")["data"]["service.toml"] == (CHART / "files/embedded.toml").read_text()


def test_changed_settings_change_no_pod() -> None:
    """KubeRay would start a second service for a changed pod."""
    before, after = (
        of(render(v), "RayService")["spec"] for v in ({}, {"overrides": {"SYNOD__SERVER__ACCESS_LOG": "true"}})
    )
    other = of(render({"config": "x = 1"}), "RayService")["spec"]
    assert before["serveConfigV2"] != after["serveConfigV2"] != other["serveConfigV2"]
    assert before["rayClusterConfig"] == after["rayClusterConfig"] == other["rayClusterConfig"]


def test_a_new_chart_version_changes_no_pod() -> None:
    chart = yaml.safe_load((CHART / "Chart.yaml").read_text())
    pods = [template["metadata"] for component, template in pod_templates(render(TRAINER)) if component != "test"]
    assert len(pods) == 5
    assert not any(f"{chart['name']}-{chart['version']}" in str(pod) or "version" in str(pod) for pod in pods)


@pytest.mark.parametrize(
    "command",
    [
        ["synod", "train", "CONFIG", "--steps", "3"],
        ["synod", "evaluate", "CONFIG", "--suite", "geneval"],
        ["synod", "evaluate", "/checkpoints/train", "--suite", "geneval"],
        ["synod", "evaluate", "CONFIG", "--suite", "unify", "--data", "/photographs"],
        ["synod", "evaluate", "showlab/show-o", "--out=/checkpoints/geneval"],
        ["my-program", "two words", "it's", '"quoted"', "$HOME", "`date`", "a;b", "*", "~", "\\", "CONFIGURED", "-é"],
    ],
)
def test_a_shell_splits_the_entrypoint_into_the_command(command: list[str]) -> None:
    """Ray gives the entrypoint to a shell."""
    entrypoint = of(render(merged(TRAINER, {"trainer": {"command": command}})), "RayJob")["spec"]["entrypoint"]
    words = subprocess.check_output(["sh", "-c", f"printf '%s\\0' {entrypoint}"], text=True).split("\0")[:-1]
    assert words == ["/app/deploy/release/service.toml" if word == "CONFIG" else word for word in command]


def test_settings_that_the_chart_sets() -> None:
    env = serve_config(
        render({"gateway": {"replicas": 2, "port": 8123, "grpcPort": 0}, "overrides": {"SYNOD__A__B": 2}})
    )
    assert env["proxy_location"] == "Disabled"
    assert env["applications"][0]["runtime_env"]["env_vars"] == {
        "SYNOD__SERVER__HOST": "0.0.0.0",
        "SYNOD__SERVER__LISTEN": "gateway",
        "SYNOD__SERVER__PORT": "8123",
        "SYNOD__SERVER__GATEWAY_REPLICAS": "2",
        "SYNOD__SERVER__GATEWAY_RESOURCE": "synod_gateway",
        "SYNOD__AUTH__TOKENS_FILE": "/etc/synod/tokens/tokens.toml",
        "SYNOD__AUTH__METRICS": "open",
        "SYNOD__A__B": "2",
    }


def test_a_generated_token_is_in_both_keys_of_its_secret() -> None:
    import tomllib

    secret = of(render(), "Secret")["stringData"]
    entry = tomllib.loads(secret["tokens.toml"])["release"]
    assert entry == {"token": secret["token"], "scopes": ["score", "metrics"]}
    assert len(secret["token"]) >= 43
    assert secret["token"] != of(render(name="other"), "Secret")["stringData"]["token"]


def test_the_token_is_only_in_the_secret() -> None:
    objects = render(TRAINER)
    token = of(objects, "Secret")["stringData"]["token"]
    assert [o["kind"] for o in objects if token in yaml.safe_dump(o)] == ["Secret"]
    assert token not in notes(TRAINER)


@pytest.mark.parametrize("workers", [{}, PODS], ids=["one process", "workers"])
def test_selectors_of_services_and_policies(workers: Object) -> None:
    objects = render(merged(profile("production"), workers))
    labels = {component: template["metadata"]["labels"] for component, template in pod_templates(objects)}

    def chosen(selector: Object) -> set[str]:
        return {name for name, own in labels.items() if selector.items() <= own.items()}

    assert chosen(of(objects, "Service")["spec"]["selector"]) == {"gateway"}
    policies = {o["metadata"]["name"]: o["spec"] for o in objects if o["kind"] == "NetworkPolicy"}
    targets = {name: chosen(spec["podSelector"]["matchLabels"]) for name, spec in policies.items()}
    service = {"head", "gateway", "scorer-cpu", "scorer-gpu"}
    assert targets["demo-synod-service"] == service
    assert targets["demo-synod-trainer"] == {"trainer-head", "trainer"}
    assert targets["demo-synod-service-operator"] == {"head"}
    assert targets["demo-synod-trainer-operator"] == {"trainer-head"}
    assert targets["demo-synod-gateway"] == {"gateway"}
    (rule,) = policies["demo-synod-service"]["ingress"]
    assert chosen(rule["from"][0]["podSelector"]["matchLabels"]) == service  # not the trainer
    (rule,) = policies["demo-synod-trainer"]["ingress"]
    assert rule.keys() == {"from"}  # the trainer's pods reach each other on every port, as Ray and NCCL need
    assert chosen(rule["from"][0]["podSelector"]["matchLabels"]) == {"trainer-head", "trainer"}
    assert all(spec["policyTypes"] == ["Ingress"] for spec in policies.values())
    covered = set.union(*targets.values())
    assert covered >= set(labels) - {"test"}
    for budget in (o for o in objects if o["kind"] == "PodDisruptionBudget"):
        assert len(chosen(budget["spec"]["selector"]["matchLabels"])) == 1


@pytest.mark.parametrize(
    "peers",
    [{}, {"metricsFrom": [], "operatorFrom": []}, {"metricsFrom": None, "operatorFrom": None}],
    ids=["default", "empty", "null"],
)
def test_only_gateway_ports_are_open_to_all_peers(peers: Object) -> None:
    """Kubernetes reads a rule with an empty `from` as open to all, and leaves a pod open that no policy selects."""
    objects = render(merged(TRAINER, {"networkPolicy": peers}))
    policies = [one for one in objects if one["kind"] == "NetworkPolicy"]
    for policy in policies:
        for rule in policy["spec"]["ingress"]:
            ports = {port["port"] for port in rule.get("ports", [])}
            assert rule.get("from") or ports == {"http", "grpc"}, policy["metadata"]["name"]
    for component, template in pod_templates(objects):
        labels = template["metadata"]["labels"].items()
        assert any(one["spec"]["podSelector"]["matchLabels"].items() <= labels for one in policies), component


def test_notes_name_existing_objects() -> None:
    text = notes(profile("production"))
    objects = render(profile("production"))
    assert f"rayservice {of(objects, 'RayService')['metadata']['name']}" in text
    assert f"svc/{of(objects, 'Service')['metadata']['name']} 8000" in text
    assert "secret synod-tokens " in text
    assert "https://synod.example.org" in text
    assert "The trainer runs `synod train /app/deploy/release/service.toml`" in text
    assert f"rayjob {of(objects, 'RayJob')['metadata']['name']}" in text
    assert f"claim {of(objects, 'PersistentVolumeClaim', 'demo-synod-checkpoints')['metadata']['name']}" in text
    assert " in 8 workers of Ray Train, 4 in each of 2 pods. It stores" in notes(PODS)
    assert "workers of Ray Train" not in text
    assert "delete their RayCluster" not in text
    assert "delete their RayCluster" in notes({"ray": {"upgradeStrategy": "None"}})
    assert "trainer" not in notes()
    for component in re.findall(r"component=([\w-]+)", text):
        assert component in dict(pod_templates(objects))


def test_names_stay_short_enough_for_kuberay() -> None:
    objects = render(merged(TRAINER, nested("monitoring.dashboards.enabled", True)), name="r" * 53)
    for one in objects:
        limit = 47 if one["kind"] in ("RayService", "RayJob") else 63
        assert len(one["metadata"]["name"]) <= limit


def test_every_template_is_rendered() -> None:
    everything = merged(
        profile("production"), {"auth": {"existingSecret": ""}, "networkPolicy": {"restrictEgress": True}}
    )
    kinds = {one["kind"] for one in render(everything)}
    written = {
        kind
        for path in CHART.rglob("templates/**/*.yaml")
        for kind in re.findall(r"^kind: (\w+)", path.read_text(), re.M)
    }
    helper = re.findall(r"^kind: (\w+)", (CHART / "templates/volumes.yaml").read_text(), re.M)
    assert kinds == written | set(helper)
