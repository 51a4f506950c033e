"""The Serve application of a service: its demand for resources, its in-flight limits and its environments."""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from services import environments
from services.origin import origin
from services.settings import ServerSettings, Settings, load
from synod.errors import SettingsError


@pytest.fixture
def graph() -> Any:
    from services.cluster import graph

    return graph


def settings_of(folder: Path, *servings: str) -> Settings:
    scorers = "".join(
        f'[scorers.s{i}]\nkind = "der"\nmodel = "/tmp"\nserving = {{ {serving} }}\n'
        for i, serving in enumerate(servings)
    )
    path = folder / "service.toml"
    path.write_text(scorers)
    return load(path, {})


def test_two_halves_of_a_gpu_fit_and_three_do_not(graph: Any, tmp_path: Path) -> None:
    half = "num_gpus = 0.5"
    graph.check_capacity(graph.Demand.of(settings_of(tmp_path, half, half)), 8, [1])
    with pytest.raises(SettingsError, match=r"need 1.5 GPUs \(each 0.5, 0.5, 0.5\), but the cluster has 1"):
        graph.check_capacity(graph.Demand.of(settings_of(tmp_path, half, half, half)), 8, [1])


def test_each_replica_adds_to_the_demand(graph: Any, tmp_path: Path) -> None:
    demand = graph.Demand.of(settings_of(tmp_path, "replicas = 3, num_gpus = 0.25, num_cpus = 2", "num_cpus = 0.5"))
    assert demand.gpus == (0.25, 0.25, 0.25)
    assert demand.cpus == pytest.approx(6.6)  # the gateway's 0.1 included


def test_max_replicas_sets_serves_autoscaling(graph: Any, tmp_path: Path) -> None:
    settings = settings_of(tmp_path, "replicas = 0, max_replicas = 4", "replicas = 2")
    follows, fixed = (graph._count(settings.scorers[name].serving, settings.cluster) for name in ("s0", "s1"))
    assert fixed == {"num_replicas": 2}
    assert follows["autoscaling_config"].items() >= {"min_replicas": 0, "max_replicas": 4}.items()
    assert follows["autoscaling_config"].items() >= {"upscale_delay_s": 10.0, "downscale_delay_s": 300.0}.items()
    assert graph.Demand.of(settings).cpus == pytest.approx(0.3)  # for the smallest number of replicas


def test_too_many_cpus_are_an_error_with_both_numbers(graph: Any, tmp_path: Path) -> None:
    demand = graph.Demand.of(settings_of(tmp_path, "num_cpus = 3"))
    with pytest.raises(SettingsError, match=r"3\.1 CPUs, but the cluster has 2"):
        graph.check_capacity(demand, 2, [0])


def test_colocated_scorers_need_no_more_resources(graph: Any, tmp_path: Path) -> None:
    colocated = 'colocate_with = "s0", max_batch_images = 8'
    settings = settings_of(tmp_path, "replicas = 2, num_gpus = 0.5", colocated, "num_cpus = 1", colocated)
    assert settings.hosts == {"s0": ("s0", "s1", "s3"), "s2": ("s2",)}
    demand = graph.Demand.of(settings)
    assert demand.gpus == (0.5, 0.5)
    assert demand.cpus == pytest.approx(0.2 + 1 + 0.1)  # two replicas, s2, the gateway
    windows = graph.windows(settings)
    assert {name: window.images for name, window in windows.items()} == {"s0": 256, "s1": 64, "s2": 128, "s3": 64}
    assert windows["s1"].calls == 4


@pytest.mark.parametrize(
    ("serving", "gateways", "images", "calls"),
    [
        ("max_batch_images = 32", 1, 128, 2),
        ("max_batch_images = 32, replicas = 3", 1, 384, 6),
        ("max_batch_images = 32, replicas = 3", 2, 192, 3),
        ("max_batch_images = 32, replicas = 0, max_replicas = 3", 2, 192, 3),
        ("max_batch_images = 32", 8, 32, 2),  # each gateway can still fill a batch
        ("max_batch_images = 600", 1, 2048, 2),  # the limit of a replica's queue
    ],
)
def test_in_flight_limits_of_a_gateway(
    graph: Any, tmp_path: Path, serving: str, gateways: int, images: int, calls: int
) -> None:
    settings = settings_of(tmp_path, serving)
    settings = settings.model_copy(update={"server": ServerSettings(gateway_replicas=gateways)})
    window = graph.windows(settings)["s0"]
    assert (window.images, window.calls) == (images, calls)


def test_scorers_have_origins(graph: Any, tmp_path: Path) -> None:
    (tmp_path / "model").mkdir()
    path = tmp_path / "service.toml"
    path.write_text('[scorers.s0]\nkind = "der"\nmodel = "./model"\n')
    settings = load(path, {})
    assert graph.specs_of(settings)["s0"].origin == origin(settings.scorers["s0"])


@pytest.mark.parametrize(
    ("asked", "nodes", "fits"),
    [
        ((), [], True),
        ((0.5,), [0], False),
        ((0.6, 0.6), [2], True),
        ((0.6, 0.6, 0.6), [2], False),  # 1.8 of 2, but a share cannot span two GPUs
        ((0.4, 0.6, 0.6, 0.4), [2], True),
        ((2.0,), [1, 1], False),  # nor whole GPUs two nodes
        ((2.0, 1.0), [2, 1], True),
        ((2.0, 0.5), [2], False),
        ((0.1,) * 10, [1], True),
        ((0.1,) * 11, [1], False),
    ],
)
def test_placement(graph: Any, asked: tuple[float, ...], nodes: list[int], fits: bool) -> None:
    assert graph._fits(asked, nodes) is fits


@given(st.lists(st.sampled_from([0.25, 0.5, 1.0, 2.0]), max_size=8), st.lists(st.integers(0, 3), max_size=3))
def test_demands_that_fit_never_exceed_the_gpus(asked: list[float], nodes: list[int]) -> None:
    from services.cluster.graph import _fits

    if _fits(asked, nodes):
        assert sum(asked) <= sum(nodes)
        assert _fits(asked[1:], nodes)


@pytest.mark.slow
def test_a_replica_runs_in_its_environment(graph: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    python = tmp_path / "my envs" / "python"
    python.parent.mkdir()
    python.symlink_to(sys.executable)
    ours = environments.probe(sys.executable)
    monkeypatch.setattr(environments, "probe", lambda python, package="": replace(ours, python=python))
    (scorer,) = settings_of(tmp_path, f'python = "{python}"').scorers.values()
    assert graph._actor(scorer, {})["runtime_env"]["py_executable"] == f"'{python}'"
    modules = {**ours.modules, "ray": (), "synod": ("here",)}
    monkeypatch.setattr(environments, "probe", lambda python, package="": replace(ours, modules=modules))
    assert "py_executable" not in graph._actor(scorer, {})["runtime_env"]


def test_a_replica_on_dedicated_nodes_uses_their_python(graph: Any, tmp_path: Path) -> None:
    (scorer,) = settings_of(tmp_path, 'python = "/envs/hpsv3/bin/python", resource = "hpsv3"').scorers.values()
    actor = graph._actor(scorer, {})
    assert "py_executable" not in actor["runtime_env"]
    assert actor["resources"] == {"hpsv3": graph.RESOURCE_SHARE}
