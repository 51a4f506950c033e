"""Test the requirements of the KubeRay operator (ray-operator/controllers) that its CRDs' schemas do not state."""

from __future__ import annotations

import pytest

from tests.chart.rendering import PROFILES, Object, merged, of, pod_templates, profile, render

ON = {"trainer": {"enabled": True}}
OPERATORS = {"ray.io/node-type", "ray.io/group", "ray.io/cluster", "app.kubernetes.io/created-by"}


def heads(objects: list[Object]) -> list[Object]:
    return [template for component, template in pod_templates(objects) if component in ("head", "trainer-head")]


@pytest.mark.parametrize("name", PROFILES)
def test_a_head_has_the_ports_that_the_operator_needs(name: str) -> None:
    """BuildServeService fails without one named serve, and the reconciling of the RayService with it; the dashboard is
    found by its name."""
    for template in heads(render(merged(profile(name), ON))):
        ports = {port["name"]: port["containerPort"] for port in template["spec"]["containers"][0]["ports"]}
        assert ports == {"gcs-server": 6379, "dashboard": 8265, "serve": 8000, "metrics": 8080}


@pytest.mark.parametrize("name", PROFILES)
def test_pods_do_not_override_the_operators_labels(name: str) -> None:
    """A RayService's head Service selects app.kubernetes.io/name=kuberay, which the chart must not replace."""
    for component, template in pod_templates(render(merged(profile(name), ON))):
        reserved = OPERATORS if component == "test" else OPERATORS | {"app.kubernetes.io/name"}
        assert not reserved & set(template["metadata"]["labels"]), component


@pytest.mark.parametrize("name", PROFILES)
def test_the_operator_sets_the_command_of_the_ray_container(name: str) -> None:
    for component, template in pod_templates(render(merged(profile(name), ON))):
        if component != "test":
            first = template["spec"]["containers"][0]
            assert (first["name"], {"command", "args"} & set(first)) == ("ray", set())
            names = [port["name"] for one in template["spec"]["containers"] for port in one["ports"]]
            assert len(names) == len(set(names)), component


@pytest.mark.parametrize("name", PROFILES)
def test_a_disruption_budget_lets_one_pod_go(name: str) -> None:
    """Kubernetes cannot evaluate maxUnavailable or percentages, because RayCluster has no scale subresource."""
    objects = render(profile(name))
    groups = of(objects, "RayService")["spec"]["rayClusterConfig"]["workerGroupSpecs"]
    fewest = {g["template"]["metadata"]["labels"]["app.kubernetes.io/component"]: g["minReplicas"] for g in groups}
    budgets = {
        o["spec"]["selector"]["matchLabels"]["app.kubernetes.io/component"]: o["spec"]
        for o in objects
        if o["kind"] == "PodDisruptionBudget"
    }
    assert {component: spec["minAvailable"] for component, spec in budgets.items()} == {
        component: pods - 1 for component, pods in fewest.items() if pods > 1
    }
    assert all(set(spec) == {"minAvailable", "selector"} for spec in budgets.values())
