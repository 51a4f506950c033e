"""The serving benchmark's figures against cases worked by hand."""

from __future__ import annotations

from typing import Any

import pytest

from benchmarks.serving.summary import quantile, reduce, scaling, summarise


def record(
    arm: str, server: str, way: str, rate: float, clients: int = 8, images: int = 32, **more: Any
) -> dict[str, Any]:
    fields = {"arm": arm, "server": server, "way": way, "clients": clients, "images": images, "images_per_s": rate}
    return {**fields, "p99_ms": 1.0, **more}


def test_repeats_are_reduced_to_medians_and_cpu_time() -> None:
    repeats = [
        {"images": 100, "seconds": 1.0, "cpu_s": 0.5},
        {"images": 90, "seconds": 0.5, "cpu_s": 0.25},
        {"images": 60, "seconds": 2.0, "cpu_s": 0.5},
    ]
    raw = {"repeats": repeats, "latencies_s": [0.004, 0.001, 0.003, 0.002], "bytes_per_image": 9.6, "failed": 2}
    assert reduce(raw) == {
        "images_per_s": 100.0,
        "spread": [30.0, 180.0],
        "p50_ms": 2.0,
        "p99_ms": 4.0,
        "requests": 4,
        "cpu_s_per_1000_images": 5.0,  # 1.25 s for 250 images
        "bytes_per_image": 10,
        "failed": 2,
    }


@pytest.mark.parametrize(
    ("share", "value"), [(0.0, 1.0), (0.01, 1.0), (0.5, 50.0), (0.99, 99.0), (0.991, 100.0), (1.0, 100.0)]
)
def test_a_quantile_is_the_smallest_value_that_covers_the_share(share: float, value: float) -> None:
    assert quantile([float(n) for n in range(1, 101)], share) == value


def test_a_quantile_of_one_value_is_that_value() -> None:
    assert quantile([7.0], 0.99) == 7.0


def test_the_ensemble_is_compared_with_the_best_peer() -> None:
    """At the same load, with that peer's best setting."""
    found = [
        record("ensemble", "synod", "msgpack", 60.0),
        record("ensemble", "synod", "grpc", 80.0),
        record("ensemble", "mosec", "batch=1", 30.0),
        record("ensemble", "mosec_all", "batch=4", 40.0),
        record("ensemble", "mosec", "batch=1", 900.0, clients=1),
        record("ensemble", "mosec", "batch=1", 900.0, images=8),
        record("overhead", "mosec", "batch=1", 900.0),
    ]
    summary = summarise(found)
    assert summary["ensemble_vs_best_peer"] == 1.5
    assert summary["ensemble_best_peer"] == "mosec_all batch=4"
    assert summary["ensemble_ways"] == {"msgpack": 1.5, "grpc": 2.0}
    assert summary["ensemble_clients"] == 8


def test_every_server_is_compared_with_the_direct_limit() -> None:
    found = [
        record("ensemble", "direct", "", 50.0, clients=1),
        record("ensemble", "synod", "msgpack", 40.0),
        record("ensemble", "synod_own_core", "msgpack", 48.0),
        record("ensemble", "mosec", "batch=1", 20.0),
        record("ensemble", "mosec_all", "batch=1", 50.0),
    ]
    summary = summarise(found)
    assert summary["direct_shares"] == {
        "direct 1 32": 1.0,
        "synod msgpack 8 32": 0.8,
        "synod_own_core msgpack 8 32": 0.96,
        "mosec batch=1 8 32": 0.4,
        "mosec_all batch=1 8 32": 1.0,
    }
    assert (summary["ensemble_vs_best_five_posts"], summary["ensemble_vs_best_together"]) == (2.0, 0.8)
    assert summary["ensemble_ways"] == {"msgpack": 0.8}


def test_one_client_is_compared_if_no_more_were_measured() -> None:
    found = [record("ensemble", "synod", "msgpack", 6.0, clients=1), record("ensemble", "mosec", "x", 8.0, clients=1)]
    summary = summarise(found)
    assert (summary["ensemble_vs_best_peer"], summary["ensemble_clients"]) == (0.75, 1)


def test_device_bound_figures_are_shares_of_the_device_limit() -> None:
    found = [
        record("device", "synod", "msgpack", 1216.0, scorers=1, p99_ms=260.0),
        record("device", "synod", "msgpack", 1152.0, scorers=5, p99_ms=220.0),
    ]
    summary = summarise(found)
    assert (summary["device_bound_share"], summary["device_bound_five_share"]) == (0.95, 0.9)
    assert summary["device_bound_p99_ratio"] == 1.3  # 256 images in flight take 200 ms
    assert summary["device_bound_five_p99_ratio"] == 1.1


def test_overhead_is_compared_with_plain_serve_and_mosec() -> None:
    found = [
        record("overhead", "synod", "msgpack", 300.0, clients=1),
        record("overhead", "synod", "msgpack", 400.0, clients=32),
        record("overhead", "synod", "haproxy", 500.0, clients=32),
        record("overhead", "serve", "", 100.0, clients=1),
        record("overhead", "serve", "", 200.0, clients=32),
        record("overhead", "serve_two_hops", "", 50.0, clients=1),
        record("overhead", "mosec", "batch=1", 500.0, clients=32),
        record("overhead", "mosec", "batch=4", 800.0, clients=32),
        record("overhead", "mosec", "batch=4", 9.0, clients=32, images=1),
    ]
    summary = summarise(found)
    assert summary["overhead_vs_default_proxy"] == {"1": 3.0, "32": 2.0}
    assert summary["vs_mosec"] == {"1": None, "32": 0.5}
    assert summary["overhead_ways"] == {"haproxy": {"1": None, "32": 2.5}}


def test_scaling_is_the_share_of_linear_in_any_order() -> None:
    rates = {4: 1000.0, 1: 320.0, 2: 640.0}
    found = [record("scaling", "synod", "msgpack", rate, clients=8 * n, replicas=n) for n, rate in rates.items()]
    assert scaling(found) == {"1": 1.0, "2": 1.0, "4": 0.7812}


def test_unmeasured_figures_are_none() -> None:
    summary = summarise([])
    assert summary["ensemble_vs_best_peer"] is None
    assert summary["device_bound_share"] is None
    assert (summary["overhead_vs_default_proxy"], summary["replica_scaling"]) == ({}, {})
    assert scaling([record("scaling", "synod", "msgpack", 9.0, replicas=2)]) == {}
