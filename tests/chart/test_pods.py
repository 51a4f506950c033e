"""What holds for every container of every profile: limits, probes, no rights, nothing writable but what is mounted."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.chart.rendering import PROFILES, Object, pod_templates, profile, render

RUN_TO_THEIR_END = ("test",)  # pods to which probes do not apply


def containers(name: str) -> Iterator[tuple[str, Object, Object]]:
    for component, template in pod_templates(render(profile(name))):
        for kind in ("containers", "initContainers"):
            for container in template["spec"].get(kind, []):
                yield component, template["spec"], container


@pytest.mark.parametrize("name", PROFILES)
def test_every_container_is_bounded_and_without_rights(name: str) -> None:
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
def test_every_container_that_stays_has_probes(name: str) -> None:
    for component, _, container in containers(name):
        if component in RUN_TO_THEIR_END:
            assert not {"livenessProbe", "readinessProbe"} & set(container)
        else:
            assert {"livenessProbe", "readinessProbe"} <= set(container), (component, container["name"])
            ports = {port["name"] for port in container["ports"]}
            for probe in ("startupProbe", "livenessProbe", "readinessProbe"):
                port = container.get(probe, {}).get("httpGet", {}).get("port", 52365)
                assert port == 52365 or port in ports


@pytest.mark.parametrize("name", PROFILES)
def test_every_pod_runs_as_nobody_and_holds_no_credentials(name: str) -> None:
    for component, template in pod_templates(render(profile(name))):
        spec = template["spec"]
        assert spec["securityContext"]["runAsNonRoot"] is True
        assert spec["securityContext"]["runAsUser"] > 0
        assert spec["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
        autoscaler = component == "head" and name == "production"  # asks the API server for pods
        assert spec["automountServiceAccountToken"] is autoscaler
        assert ("serviceAccountName" in spec) is not autoscaler  # then KubeRay names its own
        assert not {"hostNetwork", "hostPID", "hostIPC"} & set(spec)
        assert all("hostPath" not in volume for volume in spec.get("volumes", []))


@pytest.mark.parametrize("name", PROFILES)
def test_every_mount_has_its_volume_and_scratch_is_writable(name: str) -> None:
    for component, spec, container in containers(name):
        volumes = {volume["name"] for volume in spec.get("volumes", [])}
        mounts = {mount["name"]: mount for mount in container.get("volumeMounts", [])}
        assert set(mounts) <= volumes, component
        if container["name"] == "ray":
            for scratch in ("/tmp", "/dev/shm", "/models"):
                assert [m for m in mounts.values() if m["mountPath"] == scratch and not m.get("readOnly")]
            assert mounts["config"]["readOnly"]


@pytest.mark.parametrize("name", PROFILES)
def test_only_those_who_check_tokens_can_read_them(name: str) -> None:
    for component, spec, container in containers(name):
        reads = any(mount["name"] == "tokens" for mount in container.get("volumeMounts", []))
        assert reads == (component in ("head", "gateway") and container["name"] == "ray"), component
        owns = any(mount["name"] == "token" for mount in container.get("volumeMounts", []))
        assert owns == ((component, container["name"]) in (("trainer", "ray"), ("test", "score"))), component
        assert not any(
            "secretKeyRef" in str(one) for one in container.get("env", [])
        )  # files do not leak as variables do
        if reads:
            tokens = next(volume for volume in spec["volumes"] if volume["name"] == "tokens")
            assert [item["key"] for item in tokens["secret"]["items"]] == ["tokens.toml"]
