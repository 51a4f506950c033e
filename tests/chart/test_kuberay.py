"""What the KubeRay operator (ray-operator/controllers) asks of pods that no schema of its CRDs tells."""

from __future__ import annotations

import pytest

from tests.chart.rendering import PROFILES, Object, merged, of, pod_templates, profile, render

ON = {"trainer": {"enabled": True}}
OPERATORS = {"ray.io/node-type", "ray.io/group", "ray.io/cluster", "app.kubernetes.io/created-by"}


def heads(objects: list[Object]) -> list[Object]:
    return [template for component, template in pod_templates(objects) if component in ("head", "trainer-head")]


@pytest.mark.parametrize("name", PROFILES)
def test_the_ports_of_a_head_are_those_that_the_operators_services_are_made_of(name: str) -> None:
    """BuildServeService fails without one named serve, and the reconciling of the RayService with it; the dashboard is
    found by its name."""
    for template in heads(render(merged(profile(name), ON))):
        ports = {port["name"]: port["containerPort"] for port in template["spec"]["containers"][0]["ports"]}
        assert ports == {"gcs-server": 6379, "dashboard": 8265, "serve": 8000, "metrics": 8080}


@pytest.mark.parametrize("name", PROFILES)
def test_labels_by_which_the_operator_selects_are_its_own(name: str) -> None:
    """A RayService's head Service selects app.kubernetes.io/name=kuberay, which a label of ours would replace."""
    for component, template in pod_templates(render(merged(profile(name), ON))):
        taken = OPERATORS if component == "test" else OPERATORS | {"app.kubernetes.io/name"}
        assert not taken & set(template["metadata"]["labels"]), component


@pytest.mark.parametrize("name", PROFILES)
def test_the_first_container_is_rays_and_its_command_is_left_to_the_operator(name: str) -> None:
    for component, template in pod_templates(render(merged(profile(name), ON))):
        if component != "test":
            first = template["spec"]["containers"][0]
            assert (first["name"], {"command", "args"} & set(first)) == ("ray", set())
            names = [port["name"] for one in template["spec"]["containers"] for port in one["ports"]]
            assert len(names) == len(set(names)), component


@pytest.mark.parametrize("name", PROFILES)
def test_a_budget_can_be_counted_and_lets_one_pod_go(name: str) -> None:
    """RayCluster has no scale subresource: of maxUnavailable and of percentages Kubernetes makes "none may go"."""
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
