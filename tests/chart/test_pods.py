"""Check every container of every profile: limits, probes, no privileges, and only mounts are writable."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.chart.rendering import PROFILES, Object, pod_templates, profile, render

RUN_TO_COMPLETION = ("test",)  # pods to which probes do not apply


def containers(name: str) -> Iterator[tuple[str, Object, Object]]:
    for component, template in pod_templates(render(profile(name))):
        for kind in ("containers", "initContainers"):
            for container in template["spec"].get(kind, []):
                yield component, template["spec"], container


@pytest.mark.parametrize("name", PROFILES)
def test_every_container_has_limits_and_no_privileges(name: str) -> None:
    seen = set()
    for component, _, container in containers(name):
        seen.add((component, container["name"]))
        assert {"cpu", "memory"} <= set(container["resources"]["limits"]), component
        assert {"cpu", "memory"} <= set(container["resources"]["requests"]), component
        security = container["securityContext"]
        assert security["runAsNonRoot"] is True
        assert security["readOnlyRootFilesystem"] is True
        assert security["allowPrivilegeEscalation"] is False
        assert security["capabilities"] == {"drop": ["ALL"]}
        assert security["seccompProfile"] == {"type": "RuntimeDefault"}
    assert {("head", "ray"), ("gateway", "ray"), ("test", "score")} <= seen


@pytest.mark.parametrize("name", PROFILES)
def test_every_long_running_container_has_probes(name: str) -> None:
    for component, _, container in containers(name):
        if component in RUN_TO_COMPLETION:
            assert not {"livenessProbe", "readinessProbe"} & set(container)
        else:
            assert {"livenessProbe", "readinessProbe"} <= set(container), (component, container["name"])
            ports = {port["name"] for port in container["ports"]}
            for probe in ("startupProbe", "livenessProbe", "readinessProbe"):
                port = container.get(probe, {}).get("httpGet", {}).get("port", 52365)
                assert port == 52365 or port in ports


@pytest.mark.parametrize("name", PROFILES)
def test_every_pod_runs_without_root_and_credentials(name: str) -> None:
    for component, template in pod_templates(render(profile(name))):
        spec = template["spec"]
        assert spec["securityContext"]["runAsNonRoot"] is True
        assert spec["securityContext"]["runAsUser"] > 0
        assert spec["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
        autoscaler = component == "head" and name == "production"  # creates pods through the API server
        assert spec["automountServiceAccountToken"] is autoscaler
        assert ("serviceAccountName" in spec) is not autoscaler  # KubeRay then sets its own
        assert not {"hostNetwork", "hostPID", "hostIPC"} & set(spec)
        assert all("hostPath" not in volume for volume in spec.get("volumes", []))


@pytest.mark.parametrize("name", PROFILES)
def test_every_mount_has_a_volume_and_scratch_is_writable(name: str) -> None:
    for component, spec, container in containers(name):
        volumes = {volume["name"] for volume in spec.get("volumes", [])}
        mounts = {mount["name"]: mount for mount in container.get("volumeMounts", [])}
        assert set(mounts) <= volumes, component
        if container["name"] == "ray":
            for scratch in ("/tmp", "/dev/shm", "/models"):
                assert [m for m in mounts.values() if m["mountPath"] == scratch and not m.get("readOnly")]
            assert mounts["config"]["readOnly"]


@pytest.mark.parametrize("name", PROFILES)
def test_only_containers_that_check_tokens_mount_them(name: str) -> None:
    for component, spec, container in containers(name):
        reads = any(mount["name"] == "tokens" for mount in container.get("volumeMounts", []))
        assert reads == (component in ("head", "gateway") and container["name"] == "ray"), component
        owns = any(mount["name"] == "token" for mount in container.get("volumeMounts", []))
        assert owns == ((component, container["name"]) in (("trainer", "ray"), ("test", "score"))), component
        assert not any("secretKeyRef" in str(one) for one in container.get("env", []))  # files leak less than variables
        if reads:
            tokens = next(volume for volume in spec["volumes"] if volume["name"] == "tokens")
            assert [item["key"] for item in tokens["secret"]["items"]] == ["tokens.toml"]
