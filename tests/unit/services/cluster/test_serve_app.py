"""The application that Serve builds from the path of a TOML."""

from __future__ import annotations

from hashlib import sha256
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from synod.errors import SettingsError

OLD, NEW = b'[scorers.a]\nkind = "der"\nmodel = "/tmp"\n', b'[scorers.b]\nkind = "der"\nmodel = "/tmp"\n'


@pytest.fixture
def serve_app() -> Any:
    from services.cluster import serve_app

    return serve_app


def built(serve_app: Any, args: dict[str, Any]) -> Any:
    """Build the application from a config's `args`, as Serve does."""
    from ray.serve._private.api import call_user_app_builder_with_args_if_necessary

    return call_user_app_builder_with_args_if_necessary(serve_app.service, args)


def deployments(application: Any) -> dict[str, Any]:
    gateway = application._bound_deployment
    _, _, handles, _ = gateway.init_args
    return {gateway.name: gateway, **{name: one._bound_deployment for name, one in handles.items()}}


def test_settings_come_from_the_file_and_the_environment(
    serve_app: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "service.toml").write_bytes(NEW)
    monkeypatch.setenv("SYNOD__SCORERS__B__SERVING__REPLICAS", "3")
    monkeypatch.setenv("SYNOD__SERVER__GATEWAY_RESOURCE", "synod_gateway")
    monkeypatch.setenv("SYNOD__SERVER__GATEWAY_REPLICAS", "2")
    arguments = {"config": str(tmp_path / "service.toml"), "metrics_dir": str(tmp_path / "metrics")}
    found = deployments(built(serve_app, arguments))
    assert {name: one.num_replicas for name, one in found.items()} == {"Gateway": 2, "b": 3}
    assert found["Gateway"].ray_actor_options["resources"] == {"synod_gateway": 1}
    assert found["Gateway"].ray_actor_options["num_cpus"] == 0
    for one in found.values():
        assert one.ray_actor_options["runtime_env"]["env_vars"]["PROMETHEUS_MULTIPROC_DIR"] == str(tmp_path / "metrics")


def test_a_gateway_without_a_custom_resource_needs_cpu(serve_app: Any, tmp_path: Path) -> None:
    (tmp_path / "service.toml").write_bytes(NEW)
    arguments = {"config": str(tmp_path / "service.toml"), "metrics_dir": str(tmp_path)}
    options = deployments(built(serve_app, arguments))["Gateway"].ray_actor_options
    assert options["num_cpus"] == pytest.approx(0.1)
    assert not options.get("resources")


def test_a_file_that_arrives_late_is_used(serve_app: Any, tmp_path: Path) -> None:
    path, now = tmp_path / "service.toml", [0.0]

    def sleep(seconds: float) -> None:
        now[0] += seconds
        path.write_bytes(OLD if now[0] < 2 else NEW)

    serve_app.wait_for(path, sha256(NEW).hexdigest(), 60, lambda: now[0], sleep)
    assert now == [2.0]


def test_a_file_that_never_arrives_is_an_error(serve_app: Any, tmp_path: Path) -> None:
    path, now = tmp_path / "service.toml", [0.0]
    path.write_bytes(OLD)

    def sleep(seconds: float) -> None:
        now[0] += seconds

    with pytest.raises(SettingsError, match=sha256(OLD).hexdigest()) as error:
        serve_app.wait_for(path, sha256(NEW).hexdigest(), 5, lambda: now[0], sleep)
    assert sha256(NEW).hexdigest() in str(error.value)
    assert now == [5.0]


@pytest.mark.parametrize("wrong", [{"sha256": "abc"}, {"conf": "x"}, {"patience_s": -1}])
def test_invalid_arguments_are_refused(serve_app: Any, wrong: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        built(serve_app, {"config": "/service.toml", "metrics_dir": "/m", **wrong})
