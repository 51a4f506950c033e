"""Build the Serve application from settings: the gateway and one deployment per host. Check the cluster's capacity."""

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
from services.cluster.hosted_scorer import Build
from services.cluster.store import shared_store
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

GATEWAY = "Gateway"  # cannot be a scorer's name: those are lower case
GATEWAY_CPUS = 0.1
# High enough that Serve never queues calls (its default of 5 starves batches); the batcher limits the images instead.
MAX_ONGOING_REQUESTS = 4096
HEALTH_CHECK_PERIOD_S = 1.0
# Per replica: one running, one forming, two to hide network latency; the rest queue in the gateway.
MAX_BATCHES_IN_FLIGHT = 4
CALLS_PER_REPLICA = 2  # one running, one waiting
RESOURCE_SHARE = 0.001  # of a custom resource, which decides on which nodes replicas run, not how many
MAX_ANSWER_BYTES = 2**30  # from a replica to a gateway; 256 long details exceed Serve's default of 4 MiB


@serve.ingress()
class Ingress:
    """One gateway process: it builds the web application, which calls the scorers through `handles`."""

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
            fit_limits(settings.limits, await asyncio.to_thread(ray.nodes)),
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
    """Return a store in this process if there is one gateway, else the store that all gateways share."""
    if settings.server.gateway_replicas == 1:
        return MemoryStore(settings.store.max_image_bytes, settings.store.max_scores)
    store = shared_store(app_name, settings.store)
    await store.open()
    return store


def windows(settings: Settings) -> dict[str, Window]:
    """Return the in-flight limits of one gateway for each scorer. All gateways share the load equally.

    Images: MAX_BATCHES_IN_FLIGHT batches per replica, at most what the replica queues, divided by the number of
    gateways; at least one batch. Calls: CALLS_PER_REPLICA per replica, divided alike; at least CALLS_PER_REPLICA.
    """
    gateways = settings.server.gateway_replicas
    found = {}
    for host, names in settings.hosts.items():
        replicas = settings.scorers[host].serving.most_replicas
        for name in names:
            serving = settings.scorers[name].serving
            per_replica = min(MAX_BATCHES_IN_FLIGHT * serving.max_batch_images, MAX_QUEUED_IMAGES)
            images = math.ceil(per_replica * replicas / gateways)
            calls = math.ceil(CALLS_PER_REPLICA * replicas / gateways)
            found[name] = Window(max(images, serving.max_batch_images), max(calls, CALLS_PER_REPLICA))
    return found


def specs_of(settings: Settings) -> dict[str, ScorerSpec]:
    """Return the specification of each scorer, including the origin of its scores."""
    return {
        name: replace(registry.spec(name, scorer), origin=origin(scorer)) for name, scorer in settings.scorers.items()
    }


def application(settings: Settings, metrics_dir: str, build: Build = registry.build) -> Application:
    """Return the service as one Serve application.

    All processes of a node write to `metrics_dir`; the access log is next to it.
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
        member_specs = {name: specs[name] for name in names}
        hosts[host] = deployment.bind(member_specs, members, settings.golden, build, traces=settings.tracing)
    gateway_env = {**env, "RAY_SERVE_REPLICA_GRPC_MAX_MESSAGE_LENGTH": str(MAX_ANSWER_BYTES)}
    gateway_actor = {**_gateway_resources(settings), "runtime_env": {"env_vars": gateway_env}}
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
        max_ongoing_requests=MAX_ONGOING_REQUESTS,
        logging_config={"enable_access_log": False},
        health_check_period_s=HEALTH_CHECK_PERIOD_S,  # a failed replica is replaced after the next check
        max_constructor_retry_count=1,  # loading a model fails the same way every time
        graceful_shutdown_wait_loop_s=0.1,
        graceful_shutdown_timeout_s=10,
    )


def _count(serving: ServingSettings, cluster: ClusterSettings) -> dict[str, Any]:
    """Return Serve's options for the number of replicas. Autoscaling follows the calls in gateways and replicas."""
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
            **({} if python is None else {"py_executable": shlex.quote(python)}),  # Ray passes it to a shell
        },
    }


def _gateway_resources(settings: Settings) -> dict[str, Any]:
    resource = settings.server.gateway_resource
    return {"num_cpus": GATEWAY_CPUS} if resource is None else {"num_cpus": 0, "resources": {resource: 1}}


@dataclass(frozen=True, slots=True)
class Demand:
    """The resources that a service needs: the total of logical CPUs, and the GPUs of each scorer replica."""

    cpus: float
    gpus: tuple[float, ...]

    @classmethod
    def of(cls, settings: Settings) -> Demand:
        servings = [settings.scorers[host].serving for host in settings.hosts]
        gateways = settings.server.gateway_replicas * float(_gateway_resources(settings)["num_cpus"])
        cpus = sum(s.replicas * s.num_cpus for s in servings) + gateways
        return cls(cpus, tuple(s.num_gpus for s in servings for _ in range(s.replicas) if s.num_gpus > 0))


def check_capacity(demand: Demand, cpus: float, gpus_of_nodes: Sequence[int]) -> None:
    """Raise SettingsError if the cluster can never have the resources that the service needs.

    A fraction of a GPU must be on one GPU, and whole GPUs on one node. The check places the largest replicas first,
    each on the GPUs with the least capacity left.
    """
    if demand.cpus > cpus + 1e-9:
        raise SettingsError(
            f"the replicas need {demand.cpus:g} CPUs, but the cluster has {cpus:g}: "
            "lower [scorers.*.serving] num_cpus or replicas, or raise [cluster] num_cpus (it is logical)"
        )
    if not _fits(demand.gpus, gpus_of_nodes):
        raise SettingsError(
            f"the replicas need {sum(demand.gpus):g} GPUs (each {', '.join(f'{g:g}' for g in demand.gpus)}), but the "
            f"cluster has {sum(gpus_of_nodes)}: lower [scorers.*.serving] num_gpus or replicas, or add GPUs"
        )


def fit_limits(limits: LimitSettings, nodes: Sequence[Mapping[str, Any]]) -> LimitSettings:
    """Fit the request limits to the smallest node of `ray.nodes()`. Raises SettingsError if that cannot hold them."""
    resources = [node["Resources"] for node in nodes if node["Alive"]]
    store, memory = (min(node.get(name, math.inf) for node in resources) for name in ("object_store_memory", "memory"))
    return limits.fitted(memory, store)


def _fits(demands: Sequence[float], gpus_of_nodes: Sequence[int]) -> bool:
    nodes = [[1.0] * gpus for gpus in gpus_of_nodes]  # the free part of each GPU
    for demand in sorted(demands, reverse=True):
        count = max(1, math.ceil(demand))
        share = demand / count
        node = next((node for node in nodes if sum(free >= share - 1e-9 for free in node) >= count), None)
        if node is None:
            return False
        tightest = sorted((i for i, free in enumerate(node) if free >= share - 1e-9), key=lambda i: node[i])
        for i in tightest[:count]:
            node[i] -= share
    return True
