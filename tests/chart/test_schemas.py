"""Validate every object of every profile: core kinds with the published schemas of three Kubernetes versions, the rest
with the schemas in their own CRDs (crds/: KubeRay and the Prometheus operator, Apache-2.0)."""

from __future__ import annotations

import functools
import gzip
from pathlib import Path
from typing import Any

import jsonschema
import kubernetes_validate
import pytest
import yaml

from tests.chart.rendering import PROFILES, Object, merged, of, pod_templates, profile, render

VERSIONS = ("1.29", "1.32", "1.35")
CRDS = {
    "RayService": "ray.io_rayservices",
    "RayJob": "ray.io_rayjobs",
    "PodMonitor": "monitoring.coreos.com_podmonitors",
    "PrometheusRule": "monitoring.coreos.com_prometheusrules",
}
EVERYTHING = merged(
    profile("production"),
    {
        "networkPolicy": {"restrictEgress": True, "gatewayFrom": [{"ipBlock": {"cidr": "10.0.0.0/8"}}]},
        "trainer": {"workers": 16, "pods": 2, "checkpoints": {"accessModes": ["ReadWriteMany"]}},
    },
)


@functools.cache
def crd_schema(kind: str, version: str) -> Any:
    path = Path(__file__).parent / f"crds/{CRDS[kind]}.yaml.gz"
    crd = yaml.load(gzip.decompress(path.read_bytes()), yaml.CSafeLoader)
    schema = next(v["schema"]["openAPIV3Schema"] for v in crd["spec"]["versions"] if v["name"] == version)
    schema["properties"]["metadata"] = {"type": "object", "x-kubernetes-preserve-unknown-fields": True}
    return jsonschema.Draft202012Validator(closed(schema))


def closed(schema: Any) -> Any:
    """Convert a structural schema to a JSON schema that refuses unknown fields, which the API server would drop."""
    if isinstance(schema, list):
        return [closed(one) for one in schema]
    if not isinstance(schema, dict):
        return schema
    if schema.get("x-kubernetes-int-or-string"):
        return {"type": ["integer", "string"]}
    found = {key: closed(value) for key, value in schema.items() if key not in ("properties", "format")}
    if "properties" in schema:
        found["properties"] = {name: closed(one) for name, one in schema["properties"].items()}
        if not schema.get("x-kubernetes-preserve-unknown-fields") and "additionalProperties" not in schema:
            found["additionalProperties"] = False
    return found


def errors(one: Object, version: str = "1.32") -> list[str]:
    """Return the errors that an API server would report for an object."""
    if one["kind"] in CRDS:
        schema = crd_schema(one["kind"], one["apiVersion"].partition("/")[2])
        return [f"{'.'.join(map(str, e.absolute_path))}: {e.message[:200]}" for e in schema.iter_errors(one)]
    try:
        kubernetes_validate.validate(one, version, strict=True)
    except kubernetes_validate.ValidationError as error:
        return [str(error)[:300]]
    return []


@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize("name", [*PROFILES, "everything"])
def test_every_object_is_valid(name: str, version: str) -> None:
    objects = render(EVERYTHING if name == "everything" else profile(name))
    found = {f"{one['kind']} {one['metadata']['name']}": errors(one, version) for one in objects}
    assert {key: text for key, text in found.items() if text} == {}
    assert {"RayService", "Service", "ConfigMap", "NetworkPolicy"} <= {one["kind"] for one in objects}


@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize("name", [*PROFILES, "everything"])
def test_every_pod_template_is_a_valid_pod(name: str, version: str) -> None:
    for component, template in pod_templates(render(EVERYTHING if name == "everything" else profile(name))):
        pod = {"apiVersion": "v1", "kind": "Pod", **template, "metadata": {**template["metadata"], "name": component}}
        assert errors(pod, version) == []


def test_planted_mistakes_are_found() -> None:
    service = of(render(), "RayService")
    service["spec"]["rayClusterConfig"]["workerGroupSpecs"][0]["maxReplicas"] = "one"
    service["spec"]["serveConfig"] = "old"
    del service["spec"]["rayClusterConfig"]["headGroupSpec"]["template"]
    found = errors(service)
    assert len(found) == 3
    assert any("serveConfig" in one for one in found)
    policy = of(render(), "Service")
    policy["spec"]["selectors"] = {}
    assert errors(policy)
