"""Test that values that cannot work are refused before installation, with a message that says what to do."""

from __future__ import annotations

from typing import Any

import helm_python
import pytest

from tests.chart.rendering import CHART, PROFILES, ROOT, nested, profile, render

GROWS = {"autoscaling": {"enabled": True}}
PERSONALIZE = '[trainer.policy]\nmodel = "a/b"\n[personalize]\ndata = "."\n'
PERSONALIZE_COMMAND = ["synod", "personalize", "CONFIG"]


@pytest.mark.parametrize(
    ("path", "value", "message"),
    [
        ("gatway.replicas", 2, "gatway"),
        ("gateway.replica", 2, "replica"),
        ("gateway.replicas", 0, "minimum"),
        ("gateway.replicas", "two", "integer"),
        ("gateway.port", 80, "1,024"),
        ("gateway.grpcPort", 80, "'/gateway/grpcPort'.*1,024"),
        ("gateway.grpcPort", -1, "'/gateway/grpcPort'.*1,024"),
        ("gateway.resources.limits", {"cpu": None}, "cpu"),
        ("images.pullPolicy", "Sometimes", "IfNotPresent"),
        ("images.gateway.repository", "", "minLength"),
        ("auth.metrics", "closed", "open"),
        ("ray.upgradeStrategy", "Both", "NewCluster"),
        ("ray.objectStoreBytes", 1000, "minimum"),
        ("service.type", "External", "ClusterIP"),
        ("overrides", {"synod__a": "1"}, "SYNOD__"),
        ("overrides", {"SYNOD__SERVER": {"PORT": 1}}, "SYNOD__SERVER"),
        ("trainer.run", "../other", "pattern"),
        ("trainer.activeDeadlineSeconds", 1, "60"),
        ("trainer.gpus", -1, "minimum: got -1, want 0"),
        ("trainer.workers", -1, "'/trainer/workers': minimum: got -1, want 0"),
        ("trainer.workers", 1.5, "'/trainer/workers': got number, want integer"),
        ("trainer.pods", 0, "'/trainer/pods': minimum: got 0, want 1"),
        ("trainer.command", "synod train CONFIG", "'/trainer/command': got string, want array"),
        ("trainer.command", [], "'/trainer/command': minItems: got 0, want 1"),
        ("trainer.command", ["synod", 3], "'/trainer/command/1': got number, want string"),
        ("trainer.command", ["synod", ""], "'/trainer/command/1': '' does not match pattern"),
        ("trainer.command", ["synod", "a\nb"], "'/trainer/command/1': .* does not match pattern"),
        ("trainer.config", {"trainer": {}}, "'/trainer/config': got object, want string"),
        ("scorers.gpu.gpus", 0, "1"),
        ("scorers.tpu", {}, "tpu"),
        ("environments.hpsv3", {"gpus": 1}, "missing property 'image'"),
        ("environments.gpu", {"image": {"repository": "r", "tag": "1"}}, "invalid propertyName 'gpu'"),
        ("environments.hpsv3", {"image": {"repository": "r", "tag": "1"}, "size": 1}, "size"),
        ("pods.user", 0, "1"),
        ("pods.labels", {"a": 1}, "string"),
        ("networkPolicy.gatewayFrom", {}, "array"),
        ("config", {"server": {}}, "string"),
    ],
)
def test_the_schema_refuses_invalid_values(path: str, value: Any, message: str) -> None:
    with pytest.raises(helm_python.HelmError, match=f"(?s){message}"):
        render(nested(path, value))


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"auth": {"generate": False}}, "auth.existingSecret, or set auth.generate=true"),
        ({"ingress": {"enabled": True, "tlsSecret": "t"}}, "set ingress.host"),
        ({"ingress": {"enabled": True, "host": "h.example"}}, "carry tokens unencrypted"),
        ({"overrides": {"SYNOD__SERVER__HOST": "127.0.0.1"}}, "is set by the chart: use gateway.port"),
        ({"overrides": {"SYNOD__AUTH__TOKENS_FILE": "/x"}}, "is set by the chart"),
        (
            {"config": '[auth]\ntokens_env = "TOKENS"'},
            r"\[auth\] tokens_env is 'TOKENS' .*, but the chart sets tokens_file, .*: remove tokens_env, and name a ",
        ),
        ({"overrides": {"SYNOD__AUTH__TOKENS_ENV": "TOKENS"}}, r"\[auth\] tokens_env is 'TOKENS' in config or overrid"),
        (
            {"config": "[server]\ngrpc_port = 9001", "gateway": {"grpcPort": 0}},
            r"grpc_port is 9001 .* but gateway.grpcPort = 0 .*: remove grpc_port, or set gateway.grpcPort=9001",
        ),
        (
            {"overrides": {"SYNOD__SERVER__GRPC_PORT": 9001}, "gateway": {"grpcPort": 0}},
            r"\[server\] grpc_port is 9001 in config or overrides, but gateway.grpcPort = 0 turns gRPC off",
        ),
        ({"trainer": {"enabled": True, "overrides": {"SYNOD__TRAINER__RUN_DIR": "/x"}}}, "use trainer.run"),
        (
            {"trainer": {"enabled": True, "command": ["synod", "evaluate", "RUN"], "config": "[trainer]"}},
            r'trainer.command \["synod","evaluate","RUN"\] does not read it: add the word CONFIG',
        ),
        (
            {"trainer": {"enabled": True, "command": ["synod", "evaluate", "showlab/show-o", "--suite=geneval"]}},
            r'trainer.command \["synod","evaluate",.*\] has no place for .*: add --out=/checkpoints/NAME',
        ),
        ({"trainer": {"enabled": True, "config": "x = = 1"}}, "trainer.config is not valid TOML: .*line 1"),
        (
            {"trainer": {"enabled": True, "config": "trainer = 3"}},
            r"reads trainer.config, which has no \[trainer\] table",
        ),
        (
            {"trainer": {"enabled": True}, "config": "[server]\nport = 8000"},
            r'trainer.command \["synod","train","CONFIG"\] reads config, which has no .* set trainer.config to a TOML',
        ),
        (
            {"trainer": {"enabled": True, "workers": 16, "pods": 2}},
            r'trainer.pods = 2 share .*accessModes = ."ReadWriteOnce". .*: set it to \[ReadWriteMany\] with',
        ),
        (
            {"trainer": {"enabled": True, "workers": 16, "pods": 3}},
            "workers = 16 cannot be shared equally by trainer.pods = 3: make one a multiple of the other",
        ),
        ({"trainer": {"enabled": True, "pods": 2}}, "trainer.pods = 2, but without workers .* set trainer.workers to"),
        (
            {"trainer": {"enabled": True, "config": "[trainer.ranks]\nworkers = 8"}},
            r"\[trainer.ranks\] workers = 8 .* made for trainer.workers = 0: set trainer.workers=8, or remove the line",
        ),
        (
            {"trainer": {"enabled": True, "workers": 2, "command": ["synod", "evaluate", "CONFIG"]}},
            "trainer.workers = 2, but trainer.command .* is one process: set trainer.workers=0",
        ),
        (
            {"trainer": {"enabled": True, "workers": 2, "config": PERSONALIZE, "command": PERSONALIZE_COMMAND}},
            r'trainer.workers = 2, but trainer.command \["synod","personalize","CONFIG"\] is one process: set',
        ),
        (
            {"trainer": {"enabled": True, "command": PERSONALIZE_COMMAND}},
            r"reads config, which has no \[personalize\] table: set trainer.config to a TOML that has one",
        ),
        (
            {"trainer": {"enabled": True, "overrides": {"SYNOD__PERSONALIZE__RUN_DIR": "/x"}}},
            "SYNOD__PERSONALIZE__RUN_DIR is set by the chart: use trainer.run instead",
        ),
        (
            {"trainer": {"enabled": True, "overrides": {"SYNOD__TRAINER__RANKS__WORKERS": 2}}},
            "RANKS__WORKERS is set by the chart: use trainer.workers instead",
        ),
        (
            {"trainer": {"enabled": True, "overrides": {"SYNOD__TRAINER__RANKS__GPUS": 0}}},
            "RANKS__GPUS is set by the chart: use trainer.gpus instead",
        ),
        (
            {"autoscaling": {"enabled": True}, "scorers": {"cpu": {"minReplicas": 5}}},
            "minReplicas 5 is above maxReplicas 4",
        ),
        (
            {"overrides": {"SYNOD__SCORERS__DER__SERVING__RESOURCE": "hpsv3"}},
            r"scorer 'der' has resource = 'hpsv3', which is not in environments \(there are none\): add it there",
        ),
        (
            {
                "overrides": {
                    "SYNOD__SCORERS__DER__SERVING__RESOURCE": "hpsv3",
                    "SYNOD__SCORERS__DER__SERVING__NUM_GPUS": "1",
                },
                "environments": {"hpsv3": {"image": {"repository": "r", "tag": "1"}}},
            },
            "asks for num_gpus = 1, but a pod has environments.hpsv3.gpus = 0",
        ),
        ({"gateway": {"port": 8080}}, "gateway.port is 8080, a port that Ray uses"),
        ({"gateway": {"grpcPort": 10002}}, "gateway.grpcPort is 10002, a port that Ray uses"),
        ({"gateway": {"grpcPort": 8000}}, "are both 8000: choose two different ports"),
        ({"config": "x = = 1"}, "config is not valid TOML"),
        ({"overrides": {"SYNOD__SCORERS__BR__SERVING__REPLICAS": "2"}}, r"config has no \[scorers.br\]"),
        ({"overrides": {"SYNOD__SCORERS__BER__SERVING__NUM_GPUS": "2"}}, "'ber' asks for num_gpus = 2, but a pod has"),
        ({"overrides": {"SYNOD__SCORERS__BER__SERVING__NUM_GPUS": "0.5"}}, "may ask for 0.5 GPUs, but the pods have 0"),
        (
            {"overrides": {"SYNOD__SCORERS__BER__SERVING": "{num_gpus = 1, max_replicas = 5}"}, **GROWS},
            "may ask for 5 GPUs, but the pods have 4 .*raise scorers.gpu.maxReplicas",
        ),
        (
            {
                "config": (ROOT / "deploy/configs/sync_r1.toml").read_text(),
                "scorers": {"gpu": {"replicas": 1}},
                "overrides": {"SYNOD__SCORERS__BER__SERVING__NUM_GPUS": "0.5"},  # instead of 0.4
            },
            "may ask for 1.1 GPUs, but the pods have 1 ",
        ),
        (
            {"overrides": {"SYNOD__SCORERS__BER__SERVING__MAX_REPLICAS": 41}},
            "may ask for 4.5 CPUs, but the pods have 4 ",
        ),
        (
            {**profile("one-gpu"), "config": (ROOT / "deploy/configs/one_gpu.toml").read_text()},
            "'der' is co-located with 'ber'.* --set overrides=null",
        ),
    ],
)
def test_a_template_refuses_impossible_values(values: dict[str, Any], message: str) -> None:
    with pytest.raises(helm_python.HelmError, match=message):
        render(values)


def test_pods_may_share_an_existing_claim() -> None:
    """The chart cannot know its access modes."""
    trainer = {"enabled": True, "workers": 2, "pods": 2, "checkpoints": {"existingClaim": "mine"}}
    assert "PersistentVolumeClaim" not in {one["kind"] for one in render({"trainer": trainer})}


RULE = "has lower-case letters, digits and '-' only, starts with a letter"


@pytest.mark.parametrize(
    ("release", "values", "named"),
    [
        ("82ac5612-3bd9", {}, "release name '82ac5612-3bd9' and nameOverride '' give"),
        ("my.service", {}, "release name 'my.service' and nameOverride '' give"),
        ("1synod", {}, "'1synod'"),
        ("demo", {"nameOverride": "my_service"}, "release name 'demo' and nameOverride 'my_service' give"),
        ("demo", {"nameOverride": "Service"}, "the name 'demo-Service'"),
        ("demo", {"fullnameOverride": "0service"}, "fullnameOverride '0service' gives"),
        ("demo", {"fullnameOverride": "a.b"}, "fullnameOverride 'a.b' gives"),
        ("demo", {"fullnameOverride": "-a"}, "fullnameOverride '-a' gives"),
    ],
)
def test_invalid_names_are_refused(release: str, values: dict[str, Any], named: str) -> None:
    with pytest.raises(helm_python.HelmError) as refused:
        render(values, name=release)
    message = str(refused.value)
    assert named in message
    assert RULE in message
    assert "set fullnameOverride to a valid name of at most 36 characters, or choose another release name" in message


def test_name_override_must_be_a_valid_label() -> None:
    with pytest.raises(helm_python.HelmError, match="nameOverride 'my service' is also a label"):
        render({"nameOverride": "my service", "fullnameOverride": "service"})


@pytest.mark.parametrize("release", ["82ac5612-3bd9", "my.service", "123"])
def test_fullname_override_allows_any_release_name(release: str) -> None:
    objects = render({"fullnameOverride": "service"}, name=release)
    assert all(str(one["metadata"]["name"]).startswith("service") for one in objects)
    assert all(one["metadata"]["labels"]["app.kubernetes.io/instance"] == release for one in objects)


@pytest.mark.parametrize("name", PROFILES)
def test_lint_finds_only_the_missing_icon(name: str) -> None:
    found = helm_python.lint(str(CHART), profile(name), strict=True)
    assert found["errors"] == []
    assert [one["error"] for one in found["messages"]] == ["icon is recommended"]
