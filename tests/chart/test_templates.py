"""What each value does to what is rendered, case by case."""

from __future__ import annotations

import re
from hashlib import sha256
from typing import Any

import pytest
import yaml

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
TRAINER_POD = "RayJob.spec.rayClusterSpec.workerGroupSpecs.trainer.template.spec"
OWN = {"environments": {"hpsv3": {"image": {"repository": "own", "tag": "1"}, "gpus": 2, "replicas": 3}}}
OWN_CPU = {"environments": {"old": {"image": {"repository": "own", "tag": "1"}, "logicalCpus": 7}}}
HPSV3, OLD = (f"{CLUSTER}.workerGroupSpecs.{group}" for group in ("hpsv3", "old"))
WITH_GPU = {"scorers": {"gpu": {"replicas": 2}}}
ON = {"autoscaling": {"enabled": True}}
LIMITS, CLAIM, NVIDIA = "containers.ray.resources.limits", "persistentVolumeClaim.claimName", "nvidia/DOT/com/gpu"
MISSING = object()


def pick(objects: list[Object], path: str) -> Any:
    """The value at "Kind[name].key.key"; items of a list go by their name, groupName or number. MISSING where there is
    none."""
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


CASES: list[tuple[Object, str, Any]] = [
    # names and images
    ({}, "RayService.metadata.name", "demo-synod"),
    ({"nameOverride": "service"}, "RayService.metadata.name", "demo-service"),
    ({"fullnameOverride": "x" * 36}, "RayService.metadata.name", "x" * 36),
    ({}, f"{GATEWAY_POD}.containers.ray.image", "synod-gateway:0.1.0"),
    ({}, f"{HEAD_POD}.containers.ray.image", "synod-scorer:0.1.0"),
    ({"images": {"scorer": {"tag": "2"}}}, f"{CPU_POD}.containers.ray.image", "synod-scorer:2"),
    ({"images": {"scorer": {"tag": "2"}}}, f"{CPU_POD}.containers.metrics.image", "synod-scorer:2"),
    ({"images": {"gateway": {"tag": "@sha256:ab"}}}, f"{GATEWAY_POD}.containers.ray.image", "synod-gateway@sha256:ab"),
    ({"images": {"gateway": {"tag": "@sha256:ab"}}}, "Pod.spec.containers.score.image", "synod-gateway@sha256:ab"),
    ({"images": {"pullSecrets": [{"name": "r"}]}}, f"{CPU_POD}.imagePullSecrets", [{"name": "r"}]),
    ({"images": {"pullSecrets": [{"name": "r"}]}}, "Pod.spec.imagePullSecrets", [{"name": "r"}]),
    ({"images": {"pullPolicy": "Always"}}, f"{HEAD_POD}.containers.ray.imagePullPolicy", "Always"),
    # environments of scorers
    (OWN, f"{HPSV3}.rayStartParams.resources", '"{\\"hpsv3\\": 1}"'),
    (OWN, f"{HPSV3}.rayStartParams.num-gpus", "2"),
    (OWN, f"{HPSV3}.replicas", 3),
    (OWN, f"{HPSV3}.template.spec.containers.ray.image", "own:1"),
    (OWN, f"{HPSV3}.template.spec.{LIMITS}.{NVIDIA}", 2),
    (OWN, f"{HPSV3}.template.metadata.labels.app/DOT/kubernetes/DOT/io/component", "scorer-hpsv3"),
    (OWN, f"{CPU_POD}.containers.ray.image", "synod-scorer:0.1.0"),
    (OWN, f"{CPU}.rayStartParams.resources", MISSING),
    (OWN, "PodDisruptionBudget[demo-synod-scorer-hpsv3].spec.minAvailable", 2),
    (OWN_CPU, f"{OLD}.rayStartParams.num-cpus", "7"),
    (OWN_CPU, f"{OLD}.rayStartParams.num-gpus", MISSING),
    (OWN_CPU, f"{OLD}.replicas", 1),
    # the cluster
    ({}, f"{CLUSTER}.rayVersion", "2.60.0"),
    ({}, f"{CLUSTER}.authOptions", {"mode": "token"}),
    ({"ray": {"authSecret": "s"}}, f"{CLUSTER}.authOptions", {"mode": "token", "secretName": "s"}),
    ({}, f"{CLUSTER}.headGroupSpec.rayStartParams.num-cpus", "0"),
    ({}, f"{CLUSTER}.headGroupSpec.rayStartParams.object-store-memory", "536870912"),
    ({}, "RayService.spec.excludeHeadPodFromServeSvc", True),
    ({}, "RayService.spec.upgradeStrategy.type", "NewCluster"),
    ({"ray": {"upgradeStrategy": "None"}}, "RayService.spec.upgradeStrategy.type", "None"),
    ({"ray": {"oldClusterSeconds": 7}}, "RayService.spec.rayClusterDeletionDelaySeconds", 7),
    ({}, f"{CLUSTER}.gcsFaultToleranceOptions", MISSING),
    (nested("ray.gcs.redis.address", "r:1"), f"{CLUSTER}.gcsFaultToleranceOptions", {"redisAddress": "r:1"}),
    (
        nested("ray.gcs.redis", {"address": "r:1", "passwordSecret": "s"}),
        f"{CLUSTER}.gcsFaultToleranceOptions.redisPassword.valueFrom.secretKeyRef",
        {"name": "s", "key": "password"},
    ),
    # worker groups
    ({}, f"{GATEWAY}.rayStartParams.resources", '"{\\"synod_gateway\\": 1}"'),
    ({}, f"{GATEWAY}.rayStartParams.num-cpus", "0"),
    ({"gateway": {"replicas": 3}}, f"{GATEWAY}.replicas", 3),
    ({"gateway": {"replicas": 3}}, f"{GATEWAY}.minReplicas", 3),
    (merged({"gateway": {"replicas": 3}}, ON), f"{GATEWAY}.maxReplicas", 3),
    ({}, GPU, MISSING),
    (WITH_GPU, f"{GPU}.replicas", 2),
    (WITH_GPU, f"{GPU}.rayStartParams.num-gpus", "1"),
    (WITH_GPU, f"{GPU_POD}.{LIMITS}.{NVIDIA}", 1),
    (WITH_GPU, f"{GPU_POD}.{LIMITS}.memory", "32Gi"),
    (WITH_GPU, f"{GPU_POD}.containers.metrics.resources.limits.nvidia/DOT/com/gpu", MISSING),
    (WITH_GPU, f"{GPU_POD}.tolerations.0.key", "nvidia.com/gpu"),
    (merged(WITH_GPU, nested("scorers.gpu.gpuResource", "amd.com/gpu")), f"{GPU_POD}.{LIMITS}.amd/DOT/com/gpu", 1),
    ({}, f"{CPU_POD}.{LIMITS}.{NVIDIA}", MISSING),
    (profile("one-gpu"), CPU, MISSING),
    ({}, f"{CLUSTER}.enableInTreeAutoscaling", False),
    ({}, f"{CLUSTER}.autoscalerOptions", MISSING),
    ({}, f"{CPU}.maxReplicas", 1),
    (ON, f"{CPU}.maxReplicas", 4),
    (ON, f"{GPU}.minReplicas", 0),
    (ON, f"{GPU}.replicas", 0),
    (merged(ON, {"scorers": {"cpu": {"replicas": 9}}}), f"{CPU}.replicas", 4),
    (ON, f"{CLUSTER}.autoscalerOptions.idleTimeoutSeconds", 300),
    (ON, f"{CLUSTER}.autoscalerOptions.securityContext.readOnlyRootFilesystem", True),
    ({"scorers": {"cpu": {"nodeSelector": {"disk": "ssd"}}}}, f"{CPU_POD}.nodeSelector", {"disk": "ssd"}),
    ({"head": {"affinity": {"nodeAffinity": {}}}}, f"{HEAD_POD}.affinity", {"nodeAffinity": {}}),
    ({}, f"{GATEWAY_POD}.topologySpreadConstraints.0.topologyKey", "kubernetes.io/hostname"),
    ({"topologySpread": {"topologyKey": ""}}, f"{GATEWAY_POD}.topologySpreadConstraints", MISSING),
    # pods
    ({"pods": {"labels": {"team": "a"}}}, f"{GATEWAY}.template.metadata.labels.team", "a"),
    ({"pods": {"annotations": {"a": "b"}}}, f"{CPU}.template.metadata.annotations.a", "b"),
    ({"pods": {"priorityClassName": "high"}}, f"{HEAD_POD}.priorityClassName", "high"),
    ({"pods": {"user": 77}}, f"{CPU_POD}.securityContext.fsGroup", 77),
    ({"pods": {"extraEnv": [{"name": "A", "value": "b"}]}}, f"{CPU_POD}.containers.ray.env.A.value", "b"),
    ({"pods": {"extraVolumes": [{"name": "d", "emptyDir": {}}]}}, f"{CPU_POD}.volumes.d.emptyDir", {}),
    (
        {"pods": {"extraVolumeMounts": [{"name": "d", "mountPath": "/d"}]}},
        f"{GATEWAY_POD}.containers.ray.volumeMounts.d.mountPath",
        "/d",
    ),
    ({}, f"{CPU_POD}.shareProcessNamespace", True),
    ({}, f"{GATEWAY_POD}.shareProcessNamespace", MISSING),
    ({}, f"{GATEWAY_POD}.containers.ray.startupProbe.httpGet.path", "/readyz"),
    ({}, f"{GATEWAY_POD}.containers.ray.startupProbe.failureThreshold", 360),
    ({}, f"{GATEWAY_POD}.containers.ray.readinessProbe.httpGet", {"path": "/healthz", "port": "http"}),
    ({}, f"{GATEWAY_POD}.containers.ray.livenessProbe.httpGet", {"path": "/api/healthz", "port": 52365}),
    ({}, f"{CPU_POD}.containers.ray.livenessProbe.httpGet", {"path": "/api/healthz", "port": 52365}),
    ({}, f"{CPU_POD}.volumes.shm.emptyDir.sizeLimit", 536870912 + 134217728),
    # the models' cache
    ({}, f"{CPU_POD}.volumes.models.emptyDir", {}),
    ({}, "PersistentVolumeClaim", MISSING),
    (nested("models.cache.enabled", True), "PersistentVolumeClaim.spec.accessModes", ["ReadWriteMany"]),
    (nested("models.cache.enabled", True), f"{CPU_POD}.volumes.models.{CLAIM}", "demo-synod-models"),
    (
        nested("models.cache", {"enabled": True, "storageClass": "nfs"}),
        "PersistentVolumeClaim.spec.storageClassName",
        "nfs",
    ),
    (nested("models.cache", {"enabled": True, "existingClaim": "c"}), "PersistentVolumeClaim", MISSING),
    (nested("models.cache", {"enabled": True, "existingClaim": "c"}), f"{HEAD_POD}.volumes.models.{CLAIM}", "c"),
    # ways in
    ({}, "Service.spec.selector.app/DOT/kubernetes/DOT/io/component", "gateway"),
    ({}, "Service.spec.ports.grpc.port", 9000),
    ({"gateway": {"grpcPort": 0}}, "Service.spec.ports.grpc", MISSING),
    ({"gateway": {"grpcPort": 0}}, f"{GATEWAY_POD}.containers.ray.ports.grpc", MISSING),
    ({"gateway": {"port": 8123}}, "Service.spec.ports.http.port", 8123),
    ({"gateway": {"port": 8123}}, f"{GATEWAY_POD}.containers.ray.ports.http.containerPort", 8123),
    ({"service": {"type": "LoadBalancer", "annotations": {"a": "b"}}}, "Service.metadata.annotations", {"a": "b"}),
    ({}, "Ingress", MISSING),
    (
        {"ingress": {"enabled": True, "host": "h.example", "tlsSecret": "t", "className": "nginx"}},
        "Ingress.spec.tls",
        [{"hosts": ["h.example"], "secretName": "t"}],
    ),
    ({"ingress": {"enabled": True, "host": "h.example", "allowPlainHttp": True}}, "Ingress.spec.tls", MISSING),
    # who may come in
    ({}, "NetworkPolicy[demo-synod-gateway].spec.ingress.0.from", MISSING),
    ({}, "NetworkPolicy[demo-synod-gateway].spec.ingress.0.ports", [{"port": "http"}, {"port": "grpc"}]),
    (
        {"networkPolicy": {"gatewayFrom": [{"ipBlock": {"cidr": "10.0.0.0/8"}}]}},
        "NetworkPolicy[demo-synod-gateway].spec.ingress.0.from.1",
        {"ipBlock": {"cidr": "10.0.0.0/8"}},
    ),
    ({}, "NetworkPolicy[demo-synod-service].spec.podSelector.matchLabels.synod/cluster", "service"),
    ({}, "NetworkPolicy[demo-synod-service-operator].spec.ingress.0.ports", [{"port": 8265}]),
    ({}, "NetworkPolicy[demo-synod-trainer]", MISSING),
    (TRAINER, "NetworkPolicy[demo-synod-trainer].spec.podSelector.matchLabels.synod/cluster", "trainer"),
    ({}, "NetworkPolicy[demo-synod-egress]", MISSING),
    ({"networkPolicy": {"restrictEgress": True}}, "NetworkPolicy[demo-synod-egress].spec.policyTypes", ["Egress"]),
    ({"networkPolicy": {"enabled": False}}, "NetworkPolicy", MISSING),
    # tokens
    ({}, "Secret.metadata.name", "demo-synod-tokens"),
    ({"auth": {"existingSecret": "mine"}}, "Secret", MISSING),
    ({"auth": {"existingSecret": "mine"}}, f"{GATEWAY_POD}.volumes.tokens.secret.secretName", "mine"),
    ({"auth": {"existingSecret": "mine"}}, "Pod.spec.volumes.token.secret.secretName", "mine"),
    ({}, "ServiceAccount.automountServiceAccountToken", False),
    ({"serviceAccount": {"create": False, "name": "sa"}}, "ServiceAccount", MISSING),
    ({"serviceAccount": {"create": False, "name": "sa"}}, f"{CPU_POD}.serviceAccountName", "sa"),
    ({"serviceAccount": {"create": False}}, f"{CPU_POD}.serviceAccountName", "default"),
    ({}, "ServiceAccount.metadata.name", "demo-synod"),
    # disruption
    ({}, "PodDisruptionBudget", MISSING),  # one pod of a kind: a budget could only forbid its leaving
    ({"gateway": {"replicas": 3}}, "PodDisruptionBudget[demo-synod-gateway].spec.minAvailable", 2),
    (WITH_GPU, "PodDisruptionBudget[demo-synod-scorer-gpu].spec.minAvailable", 1),
    (merged(WITH_GPU, ON), "PodDisruptionBudget", MISSING),  # it may shrink to one
    (
        merged(ON, {"scorers": {"cpu": {"minReplicas": 3}}}),
        "PodDisruptionBudget[demo-synod-scorer-cpu].spec.minAvailable",
        2,
    ),
    (merged(WITH_GPU, {"podDisruptionBudget": {"enabled": False}}), "PodDisruptionBudget", MISSING),
    # monitoring
    ({}, "PodMonitor", MISSING),
    ({}, "PrometheusRule", MISSING),
    (nested("monitoring.podMonitor.enabled", True), "PodMonitor.spec.podMetricsEndpoints.http.authorization", MISSING),
    (
        merged(nested("monitoring.podMonitor.enabled", True), {"auth": {"metrics": "token"}}),
        "PodMonitor.spec.podMetricsEndpoints.http.authorization.credentials",
        {"name": "demo-synod-tokens", "key": "token"},
    ),
    (nested("monitoring.podMonitor", {"enabled": True, "labels": {"a": "b"}}), "PodMonitor.metadata.labels.a", "b"),
    (
        nested("monitoring.alerts.enabled", True),
        "PrometheusRule.spec.groups.synod-service.rules.0.alert",
        "SynodGatewaysGone",
    ),
    (
        nested("monitoring.dashboards.enabled", True),
        "ConfigMap[demo-synod-dashboard-service].metadata.labels.grafana_dashboard",
        "1",
    ),
    # the trainer
    ({}, "RayJob", MISSING),
    (TRAINER, "RayJob.spec.submissionMode", "HTTPMode"),
    (TRAINER, "RayJob.spec.entrypoint", "python -m trainer /app/deploy/release/service.toml"),
    (TRAINER, "RayJob.spec.entrypointResources", '{"synod_trainer": 1}'),
    (TRAINER, "RayJob.spec.entrypointNumGpus", 1),
    (TRAINER, "RayJob.spec.backoffLimit", 3),
    (TRAINER, "RayJob.spec.shutdownAfterJobFinishes", True),
    (merged(TRAINER, {"trainer": {"activeDeadlineSeconds": 1209600}}), "RayJob.spec.activeDeadlineSeconds", 1209600),
    (merged(TRAINER, {"trainer": {"gpus": 0}}), "RayJob.spec.entrypointNumGpus", MISSING),
    (merged(TRAINER, {"trainer": {"gpus": 0}}), f"{TRAINER_POD}.{LIMITS}.{NVIDIA}", MISSING),
    (merged(TRAINER, {"trainer": {"gpus": 2}}), f"{TRAINER_POD}.{LIMITS}.{NVIDIA}", 2),
    (TRAINER, f"{TRAINER_POD}.containers.ray.env.SYNOD__TRAINER__RUN_DIR.value", "/checkpoints/train"),
    (TRAINER, f"{TRAINER_POD}.containers.ray.env.RAY_JOB_STOP_WAIT_TIME_S.value", "300"),
    (
        TRAINER,
        f"{TRAINER_POD}.containers.ray.env.SYNOD__TRAINER__SERVICE__URL.value",
        "http://demo-synod.prod.svc:8000",
    ),
    (
        merged(TRAINER, {"trainer": {"overrides": {"SYNOD__TRAINER__SERVICE__URL": "http://other:8000"}}}),
        f"{TRAINER_POD}.containers.ray.env.SYNOD__TRAINER__SERVICE__URL.value",
        "http://other:8000",
    ),
    (TRAINER, f"{TRAINER_POD}.volumes.token.secret.items", [{"key": "token", "path": "token"}]),
    (merged(TRAINER, nested("trainer.startupSeconds", 0)), "RayJob.spec.preRunningDeadlineSeconds", MISSING),
    (TRAINER, f"{TRAINER_POD}.volumes.checkpoints.{CLAIM}", "demo-synod-checkpoints"),
    (TRAINER, "PersistentVolumeClaim.metadata.annotations.helm/DOT/sh/resource-policy", "keep"),
    (merged(TRAINER, nested("trainer.checkpoints.existingClaim", "c")), "PersistentVolumeClaim", MISSING),
    (
        TRAINER,
        f"{TRAINER_POD}.containers.metrics.command",
        ["python", "-m", "trainer.exporter", "/checkpoints/train", "--port", "8001"],
    ),
    # the test
    ({}, "Pod.metadata.annotations.helm/DOT/sh/hook", "test"),
    ({}, "Pod.spec.containers.score.args.0", "--url=http://demo-synod.prod.svc:8000"),
]


@pytest.mark.parametrize(
    ("values", "path", "expected"), CASES, ids=[f"{i}-{case[1][-60:]}" for i, case in enumerate(CASES)]
)
def test_a_value_has_its_effect(values: Object, path: str, expected: Any) -> None:
    found = pick(render(values), path)
    assert found == expected or (found is MISSING and expected is MISSING)


def test_the_toml_is_mounted_whole_and_its_digest_is_serves() -> None:
    text = 'golden = "x"\n# a comment\n\n[server]\nport = 1\t# "quoted" {{ braces }} $and ~ \'more\'\n'
    objects = render({"config": text})
    assert of(objects, "ConfigMap")["data"]["service.toml"] == text
    assert serve_config(objects)["applications"][0]["args"]["sha256"] == sha256(text.encode()).hexdigest()
    assert of(render(), "ConfigMap")["data"]["service.toml"] == (ROOT / "deploy/configs/embedded.toml").read_text()


def test_settings_change_serves_config_and_no_pod() -> None:
    """Else KubeRay would start a second service for a changed weight."""
    before, after = (
        of(render(v), "RayService")["spec"] for v in ({}, {"overrides": {"SYNOD__SERVER__ACCESS_LOG": "true"}})
    )
    other = of(render({"config": "x = 1"}), "RayService")["spec"]
    assert before["serveConfigV2"] != after["serveConfigV2"] != other["serveConfigV2"]
    assert before["rayClusterConfig"] == after["rayClusterConfig"] == other["rayClusterConfig"]


def test_a_new_version_of_the_chart_alone_changes_no_pod() -> None:
    chart = yaml.safe_load((CHART / "Chart.yaml").read_text())
    pods = [template["metadata"] for component, template in pod_templates(render(TRAINER)) if component != "test"]
    assert len(pods) == 5
    assert not any(f"{chart['name']}-{chart['version']}" in str(pod) or "version" in str(pod) for pod in pods)


def test_serve_is_told_what_the_chart_decides() -> None:
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


def test_a_generated_token_is_the_same_in_both_keys_and_new_for_each_release() -> None:
    import tomllib

    secret = of(render(), "Secret")["stringData"]
    entry = tomllib.loads(secret["tokens.toml"])["release"]
    assert entry == {"token": secret["token"], "scopes": ["score", "metrics"]}
    assert len(secret["token"]) >= 43
    assert secret["token"] != of(render(name="other"), "Secret")["stringData"]["token"]


def test_no_secret_is_anywhere_but_in_the_secret() -> None:
    objects = render(TRAINER)
    token = of(objects, "Secret")["stringData"]["token"]
    assert [o["kind"] for o in objects if token in yaml.safe_dump(o)] == ["Secret"]
    assert token not in notes(TRAINER)


def test_the_service_and_the_policies_choose_the_pods_that_they_mean() -> None:
    objects = render(profile("production"))
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
    assert chosen(rule["from"][0]["podSelector"]["matchLabels"]) == service  # the trainer has no way to Ray's ports
    assert all(spec["policyTypes"] == ["Ingress"] for spec in policies.values())
    covered = set.union(*targets.values())
    assert covered >= set(labels) - {"test"}
    for budget in (o for o in objects if o["kind"] == "PodDisruptionBudget"):
        assert len(chosen(budget["spec"]["selector"]["matchLabels"])) == 1


def test_only_the_gateways_ports_are_open_to_everyone() -> None:
    for policy in (o for o in render() if o["kind"] == "NetworkPolicy"):
        for rule in policy["spec"]["ingress"]:
            ports = {port["port"] for port in rule.get("ports", [])}
            assert rule.get("from") or ports == {"http", "grpc"}, policy["metadata"]["name"]


def test_notes_name_what_is_there() -> None:
    told = notes(profile("production"))
    objects = render(profile("production"))
    assert f"rayservice {of(objects, 'RayService')['metadata']['name']}" in told
    assert f"svc/{of(objects, 'Service')['metadata']['name']} 8000" in told
    assert "secret synod-tokens " in told
    assert "https://synod.example.org" in told
    assert f"rayjob {of(objects, 'RayJob')['metadata']['name']}" in told
    assert f"claim {of(objects, 'PersistentVolumeClaim', 'demo-synod-checkpoints')['metadata']['name']}" in told
    assert "delete their RayCluster" not in told
    assert "delete their RayCluster" in notes({"ray": {"upgradeStrategy": "None"}})
    assert "trainer" not in notes()
    for component in re.findall(r"component=([\w-]+)", told):
        assert component in dict(pod_templates(objects))


def test_names_stay_short_enough_for_kuberay() -> None:
    objects = render(merged(TRAINER, nested("monitoring.dashboards.enabled", True)), name="r" * 53)
    for one in objects:
        limit = 47 if one["kind"] in ("RayService", "RayJob") else 63
        assert len(one["metadata"]["name"]) <= limit


def test_every_template_was_rendered_by_some_case() -> None:
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
