"""Build the Serve application from settings: a gateway, a deployment per host. Check the cluster's capacity."""

from __future__ import annotations

import asyncio
import math
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import ray
from fastapi import FastAPI
from ray import serve
from ray.serve import Application, Deployment
from ray.serve.handle import DeploymentHandle

from services import environments
from services.backends import MAX_QUEUED_IMAGES
from services.cluster.backend import RayBackend
from services.cluster.host import Host
from services.cluster.replica import Build
from services.cluster.store import shared
from services.gateway import app, auth
from services.gateway.admission import Admission, Window
from services.gateway.core import Gateway
from services.gateway.ports import Ports
from services.gateway.store import MemoryStore, Store
from services.observability import access_log, metrics, tracing
from services.origin import origin
from services.scorers import registry
from services.scorers.base import ScorerSpec
from services.settings import ClusterSettings, LimitSettings, Settings
from services.settings_types import ScorerSettings, ServingSettings
from synod.errors import SettingsError

GATEWAY = "Gateway"  # scorer names are lower case, so that none can take this one
GATEWAY_CPUS = 0.1
# Serve's own queue stays open (its default of 5 starves batches): the batcher counts images, and refuses too many
MAX_ONGOING = 4096
HEALTH_CHECK_PERIOD_S = 1.0
BATCHES_UNDER_WAY = 4  # per replica: one runs, one forms, two hide the latency; more waits in the gateway, in order
RESOURCE_SHARE = 0.001  # of a custom resource, which decides where replicas run, not how many
ANSWER_BYTES = 2**30  # of a replica's answer to a gateway; Serve's default is 4 MiB, and 256 long details pass it
CALLS_PER_REPLICA = 2  # one runs while the next waits


@serve.ingress()
class Ingress:
    """One gateway process. It builds the web application in the replica, over handles to the scorers."""

    async def __init__(  # type: ignore[misc]  # Serve awaits it
        self,
        settings: Settings,
        specs: Mapping[str, ScorerSpec],
        handles: Mapping[str, DeploymentHandle],
        access_log_file: Path,
    ) -> None:
        if settings.server.access_log:
            access_log.open_log(access_log_file)
        tracing.start(settings.tracing, "synod-gateway")
        app_name = serve.get_replica_context().app_name
        wanted = {host: settings.scorers[host].serving.replicas for host in settings.hosts}
        backend = RayBackend(specs, handles, wanted, app_name, settings.hosts)
        self._gateway = Gateway(
            backend,
            settings.ensembles,
            fitted(settings.limits, await asyncio.to_thread(ray.nodes)),
            admission=Admission(windows(settings), settings.admission.max_queued_images, metrics.report_queue),
            store=await _store(settings, app_name),
        )
        self._gatekeeper = auth.load(settings.auth)
        self._metrics_need_token = settings.auth.metrics == "token"
        self._ports, self._compat = Ports.of(settings.server), settings.compat

    def __serve_build_asgi_app__(self) -> FastAPI:
        return app.build(
            self._gateway,
            self._gatekeeper,
            metrics_need_token=self._metrics_need_token,
            ports=self._ports,
            compat=self._compat,
        )


async def _store(settings: Settings, app_name: str) -> Store:
    """Return a single gateway's own store, or the store that several share."""
    if settings.server.gateway_replicas == 1:
        return MemoryStore(settings.store.max_image_bytes, settings.store.max_scores)
    store = shared(app_name, settings.store)
    await store.open()
    return store


def windows(settings: Settings) -> dict[str, Window]:
    """Return how much work for each scorer a gateway admits at once.

    Images: its share of BATCHES_UNDER_WAY batches per replica, at least one batch, at most what the replicas queue.
    Calls: its share of CALLS_PER_REPLICA per replica, at least CALLS_PER_REPLICA.
    """
    gateways = settings.server.gateway_replicas
    found = {}
    for host, names in settings.hosts.items():
        replicas = settings.scorers[host].serving.most_replicas
        for name in names:
            serving = settings.scorers[name].serving
            per_replica = min(BATCHES_UNDER_WAY * serving.max_batch_images, MAX_QUEUED_IMAGES)
            images = math.ceil(per_replica * replicas / gateways)
            calls = math.ceil(CALLS_PER_REPLICA * replicas / gateways)
            found[name] = Window(max(images, serving.max_batch_images), max(calls, CALLS_PER_REPLICA))
    return found


def specs_of(settings: Settings) -> dict[str, ScorerSpec]:
    """Return what each scorer needs and returns, with the origin of its values."""
    return {
        name: replace(registry.spec(name, scorer), origin=origin(scorer)) for name, scorer in settings.scorers.items()
    }


def application(settings: Settings, metrics_dir: str, build: Build = registry.build) -> Application:
    """Return the service as one Serve application.

    All processes of a node share `metrics_dir`; the access log is next to it.
    """
    env = {metrics.METRICS_DIR_ENV: metrics_dir}
    specs = specs_of(settings)
    cluster = settings.cluster
    hosts = {}
    for host, names in settings.hosts.items():
        serving = settings.scorers[host].serving
        actor = _actor(settings.scorers[host], env)
        deployment = _deployment(Host, host, _count(serving, cluster), actor)
        members = {name: settings.scorers[name] for name in names}
        described = {name: specs[name] for name in names}
        hosts[host] = deployment.bind(described, members, settings.golden, build, traces=settings.tracing)
    receives = {"RAY_SERVE_REPLICA_GRPC_MAX_MESSAGE_LENGTH": str(ANSWER_BYTES)}
    gateway_actor = {**_gateway_takes(settings), "runtime_env": {"env_vars": {**env, **receives}}}
    return _deployment(
        Ingress,
        GATEWAY,
        {"num_replicas": settings.server.gateway_replicas},
        gateway_actor,
    ).bind(settings, specs, hosts, Path(metrics_dir).with_name("access.jsonl"))


def _deployment(cls: type, name: str, count: dict[str, Any], actor: dict[str, Any]) -> Deployment:
    return serve.deployment(cls).options(
        name=name,
        **count,
        ray_actor_options=actor,
        max_ongoing_requests=MAX_ONGOING,
        logging_config={"enable_access_log": False},
        health_check_period_s=HEALTH_CHECK_PERIOD_S,  # a dead replica is replaced at the next check
        max_constructor_retry_count=1,  # a model that does not load will not load at the third try either
        graceful_shutdown_wait_loop_s=0.1,
        graceful_shutdown_timeout_s=10,
    )


def _count(serving: ServingSettings, cluster: ClusterSettings) -> dict[str, Any]:
    """Return Serve's options for the number of replicas. Serve scales by the calls in gateways and replicas."""
    if serving.max_replicas is None:
        return {"num_replicas": serving.replicas}
    return {
        "autoscaling_config": {
            "min_replicas": serving.replicas,
            "max_replicas": serving.max_replicas,
            "target_ongoing_requests": CALLS_PER_REPLICA,
            "metrics_interval_s": 1.0,
            "look_back_period_s": 5.0,
            "upscale_delay_s": cluster.upscale_delay_s,
            "downscale_delay_s": cluster.downscale_delay_s,
        }
    }


def _actor(scorer: ScorerSettings, env: Mapping[str, str]) -> dict[str, Any]:
    serving, placement = scorer.serving, environments.placement_of(scorer)
    threads = {} if serving.threads is None else {"OMP_NUM_THREADS": str(serving.threads)}
    python = None if placement is None or placement.child_reason is not None else placement.environment.python
    return {
        "num_cpus": serving.num_cpus,
        "num_gpus": serving.num_gpus,
        "resources": {} if serving.resource is None else {serving.resource: RESOURCE_SHARE},
        "runtime_env": {
            "env_vars": {**env, **threads},
            **({} if python is None else {"py_executable": shlex.quote(python)}),  # Ray puts it into a shell's line
        },
    }


def _gateway_takes(settings: Settings) -> dict[str, Any]:
    resource = settings.server.gateway_resource
    return {"num_cpus": GATEWAY_CPUS} if resource is None else {"num_cpus": 0, "resources": {resource: 1}}


@dataclass(frozen=True, slots=True)
class Demand:
    """The resources that a service needs: logical CPUs in all, and GPUs per scorer replica."""

    cpus: float
    gpus: tuple[float, ...]

    @classmethod
    def of(cls, settings: Settings) -> Demand:
        servings = [settings.scorers[host].serving for host in settings.hosts]
        gateways = settings.server.gateway_replicas * float(_gateway_takes(settings)["num_cpus"])
        cpus = sum(s.replicas * s.num_cpus for s in servings) + gateways
        return cls(cpus, tuple(s.num_gpus for s in servings for _ in range(s.replicas) if s.num_gpus > 0))


def check_capacity(demand: Demand, cpus: float, gpus_of_nodes: Sequence[int]) -> None:
    """Raise SettingsError for a service that would wait for resources forever.

    A share of a GPU cannot span two GPUs, nor whole GPUs two nodes. The largest replica is placed first, where the
    least is left.
    """
    if demand.cpus > cpus + 1e-9:
        raise SettingsError(
            f"the replicas ask for {demand.cpus:g} CPUs, the cluster has {cpus:g}: "
            "lower [scorers.*.serving] num_cpus or replicas, or raise [cluster] num_cpus (it is logical)"
        )
    if not _fits(demand.gpus, gpus_of_nodes):
        raise SettingsError(
            f"the replicas ask for {sum(demand.gpus):g} GPUs (each {', '.join(f'{g:g}' for g in demand.gpus)}), the "
            f"cluster has {sum(gpus_of_nodes)}: lower [scorers.*.serving] num_gpus or replicas, or add GPUs"
        )


def fitted(limits: LimitSettings, nodes: Sequence[Mapping[str, Any]]) -> LimitSettings:
    """Return the limits of a request that every node of `ray.nodes()` can hold. Raises SettingsError."""
    resources = [node["Resources"] for node in nodes if node["Alive"]]
    store, memory = (min(node.get(name, math.inf) for node in resources) for name in ("object_store_memory", "memory"))
    return limits.fitted(memory, store)


def _fits(asked: Sequence[float], gpus_of_nodes: Sequence[int]) -> bool:
    free = [[1.0] * gpus for gpus in gpus_of_nodes]
    for share in sorted(asked, reverse=True):
        whole = max(1, math.ceil(share))
        each = share / whole
        nodes = [node for node in free if sum(room >= each - 1e-9 for room in node) >= whole]
        if not nodes:
            return False
        node = nodes[0]
        tightest = sorted((i for i, room in enumerate(node) if room >= each - 1e-9), key=lambda i: node[i])
        for i in tightest[:whole]:
            node[i] -= each
    return True
