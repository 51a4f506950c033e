"""Install, upgrade and uninstall a release with Helm, against a server that stores the objects."""

from __future__ import annotations

import base64
import tomllib
from collections.abc import Iterator

import helm_python
import pytest

from tests.chart.api_server import Stored, api_server
from tests.chart.rendering import CHART, Object, merged, profile, render

TOKENS = "/api/v1/namespaces/prod/secrets/demo-synod-tokens"
TRAINER: Object = {"trainer": {"enabled": True}}


class Release:
    """The release "demo" in the namespace "prod"."""

    def __init__(self, config: helm_python.Config, stored: Stored) -> None:
        self.config, self.stored = config, stored

    def secret(self) -> dict[str, str]:
        data = self.stored[TOKENS]["data"]
        return {key: base64.b64decode(value).decode() for key, value in data.items()}


@pytest.fixture
def release() -> Iterator[Release]:
    kinds = render(merged(profile("production"), {"auth": {"existingSecret": ""}}))
    with (
        api_server(kinds) as (kubeconfig, stored),
        helm_python.Config(kubeconfig_content=kubeconfig, namespace="prod", storage_driver="memory") as config,
    ):
        yield Release(config, stored)


def test_an_upgrade_keeps_the_generated_token(release: Release) -> None:
    release.config.install(str(CHART), "demo", {}, namespace="prod")
    before = release.secret()
    replicas = {"gateway": {"replicas": 2}}
    for values in (replicas, merged(replicas, TRAINER)):
        release.config.upgrade(str(CHART), "demo", values, namespace="prod")
        assert release.secret() == before
    assert tomllib.loads(before["tokens.toml"])["release"]["token"] == before["token"]
    assert len(before["token"]) == 48
    cluster = release.stored["/apis/ray.io/v1/namespaces/prod/rayservices/demo-synod"]["spec"]["rayClusterConfig"]
    assert cluster["workerGroupSpecs"][0]["replicas"] == 2  # the upgrades were applied


def test_a_deleted_secret_is_created_again(release: Release) -> None:
    release.config.install(str(CHART), "demo", {}, namespace="prod")
    before = release.secret()
    del release.stored[TOKENS]
    release.config.upgrade(str(CHART), "demo", {}, namespace="prod")
    assert release.secret()["token"] not in (before["token"], "")


def test_an_existing_secret_replaces_the_generated_one(release: Release) -> None:
    release.config.install(str(CHART), "demo", {}, namespace="prod")
    release.config.upgrade(str(CHART), "demo", {"auth": {"existingSecret": "mine"}}, namespace="prod")
    assert TOKENS not in release.stored


def test_checkpoints_and_models_outlive_the_release(release: Release) -> None:
    release.config.install(
        str(CHART), "demo", merged(TRAINER, {"models": {"cache": {"enabled": True}}}), namespace="prod"
    )
    release.config.uninstall("demo")
    claims = "/api/v1/namespaces/prod/persistentvolumeclaims/demo-synod-"
    assert set(release.stored) == {f"{claims}models", f"{claims}checkpoints"}
