"""Compute the summary from the measurements. Pure functions. A figure without its measurements is None.

A measurement has `arm`, `server`, `way` (wire or setting), `clients`, `images`, and the numbers of `reduce`.
Synod's figures are for its default: REST with msgpack on a gateway's own port. `*_ways` are for the other ways.
"""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from typing import Any

Record = Mapping[str, Any]
WAY = "msgpack"
CLIENTS, IMAGES = 8, 32
DEVICE_LIMIT = 1280.0  # images/s
OWN = ("synod", "synod_own_core", "direct")
PLAIN = "serve"  # Serve's default proxy, one hop
MOSEC = "mosec"


def reduce(raw: Mapping[str, Any]) -> dict[str, Any]:
    """Reduce the client's measurements to medians. `spread` is the slowest and fastest repeat.

    images_per_s, spread: images/s; p50_ms, p99_ms: latencies of requests, over all repeats; cpu_s_per_1000_images: CPU
    time of the servers.
    """
    rates = [one["images"] / one["seconds"] for one in raw["repeats"]]
    images = sum(one["images"] for one in raw["repeats"])
    latencies_ms = sorted(1000 * one for one in raw["latencies_s"])
    return {
        "images_per_s": round(statistics.median(rates), 2),
        "spread": [round(min(rates), 2), round(max(rates), 2)],
        "p50_ms": round(quantile(latencies_ms, 0.50), 2),
        "p99_ms": round(quantile(latencies_ms, 0.99), 2),
        "requests": len(latencies_ms),
        "cpu_s_per_1000_images": round(1000 * sum(one["cpu_s"] for one in raw["repeats"]) / images, 3),
        "bytes_per_image": round(raw["bytes_per_image"]),
        "failed": raw["failed"],
    }


def quantile(ordered: Sequence[float], share: float) -> float:
    """Return the smallest of `ordered` (ascending, at least one) that at least `share` of the values do not exceed."""
    return ordered[max(0, -int(-share * len(ordered) // 1) - 1)]


def summarise(found: Sequence[Record]) -> dict[str, Any]:
    """Return the summary of the measurements that exist."""
    loads = {one["clients"] for one in found if one["arm"] == "ensemble" and one["server"] == "synod"}
    clients = CLIENTS if CLIENTS in loads else min(loads, default=CLIENTS)
    ensemble = [one for one in found if one["arm"] == "ensemble" and _at(one, clients)]
    best = max((one for one in ensemble if one["server"] not in OWN), key=_rate, default=None)
    direct = next((one for one in found if one["server"] == "direct"), None)
    by_clients = sorted({one["clients"] for one in found if one["arm"] == "overhead" and one["images"] == IMAGES})
    ways = sorted({one["way"] for one in found if one["arm"] == "overhead" and one["server"] in OWN})
    return {
        "ensemble_vs_best_peer": ratio(_one(ensemble, "synod", WAY), best),
        "ensemble_vs_best_five_posts": ratio(_one(ensemble, "synod", WAY), _best(ensemble, together=False)),
        "ensemble_vs_best_together": ratio(_one(ensemble, "synod", WAY), _best(ensemble, together=True)),
        "direct_shares": {_name(one): ratio(one, direct) for one in found if one["arm"] == "ensemble"},
        "ensemble_best_peer": None if best is None else f"{best['server']} {best['way']}".strip(),
        "ensemble_clients": clients,
        "ensemble_ways": {one["way"]: ratio(one, best) for one in ensemble if one["server"] == "synod"},
        "device_bound_share": device_share(found, 1),
        "device_bound_five_share": device_share(found, 5),
        "device_bound_p99_ratio": device_p99(found, 1),
        "device_bound_five_p99_ratio": device_p99(found, 5),
        "overhead_vs_default_proxy": {str(c): overhead(found, c, WAY, PLAIN) for c in by_clients},
        "vs_mosec": {str(c): overhead(found, c, WAY, MOSEC) for c in by_clients},
        "overhead_ways": {
            way: {str(c): overhead(found, c, way, PLAIN) for c in by_clients} for way in ways if way != WAY
        },
        "replica_scaling": scaling(found),
    }


def _name(one: Record) -> str:
    return " ".join(str(one[key]) for key in ("server", "way", "clients", "images") if one[key] != "")


def _best(ensemble: Sequence[Record], *, together: bool) -> Record | None:
    """Return the fastest other server with all scorers in one process (`together`) or one process for each."""
    peers = [one for one in ensemble if one["server"] not in OWN and one["server"].endswith("_all") == together]
    return max(peers, key=_rate, default=None)


def ratio(one: Record | None, other: Record | None) -> float | None:
    """Divide the images/s of one by those of the other."""
    return round(_rate(one) / _rate(other), 3) if one and other and _rate(other) else None


def device_share(found: Sequence[Record], scorers: int) -> float | None:
    """Return images/s as a share of the waiting scorers' limit; each of the five scores every image."""
    one = _device(found, scorers)
    return None if one is None else round(_rate(one) / DEVICE_LIMIT, 4)


def device_p99(found: Sequence[Record], scorers: int) -> float | None:
    """Return the p99 of requests, divided by the time that the device needs for all images in flight."""
    one = _device(found, scorers)
    if one is None:
        return None
    in_flight_ms = 1000 * float(one["clients"] * one["images"]) / DEVICE_LIMIT
    return round(float(one["p99_ms"]) / in_flight_ms, 3)


def overhead(found: Sequence[Record], clients: int, way: str, peer: str) -> float | None:
    """Divide Synod's images/s with a trivial scorer by those of `peer`'s fastest setting, at 32 images a request."""
    here = [one for one in found if one["arm"] == "overhead" and _at(one, clients)]
    return ratio(_one(here, "synod", way), max((one for one in here if one["server"] == peer), key=_rate, default=None))


def scaling(found: Sequence[Record]) -> dict[str, float]:
    """Return, per number of replicas, images/s divided by that number and by the images/s of one replica."""
    rates = {int(one["replicas"]): _rate(one) for one in found if one["arm"] == "scaling"}
    return {str(n): round(rates[n] / (n * rates[1]), 4) for n in sorted(rates)} if rates.get(1) else {}


def _device(found: Sequence[Record], scorers: int) -> Record | None:
    return _one([one for one in found if one["arm"] == "device" and one["scorers"] == scorers], "synod", WAY)


def _one(found: Sequence[Record], server: str, way: str) -> Record | None:
    return next((one for one in found if one["server"] == server and one["way"] == way), None)


def _at(one: Record, clients: int) -> bool:
    return bool(one["clients"] == clients and one["images"] == IMAGES)


def _rate(one: Record) -> float:
    return float(one["images_per_s"])
