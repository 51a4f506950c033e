"""Predict the step of a training on many GPUs. Pure functions of seconds, bytes, and numbers a second.

What is not measured is a named assumption: `Network`, `Service`, `Disk`.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass, fields, replace
from typing import Final

import numpy as np
import numpy.typing as npt

BUCKET_BYTES: Final = 64 * 2**20  # trainer.distributed sums gradients in messages of this size
GATHERS: Final = 12  # documents that the ranks exchange in a step: flags, failures, scores, losses; two messages each
Floats = npt.NDArray[np.float64]


# -- inputs ----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Work:
    """Seconds of one rank on its own.

    preview_s  one preview: answer, denoising to the screening step, decoding, surrogate score
    finish_s   the rest of `Screen.group` images: denoising, decoding, requesting rewards
    update_s   the gradient of a group
    record_s   metrics and images of a group: each rank writes its files, rank 0 also TensorBoard's
    step_s     what happens once a step: waiting for the last rewards, the optimizer
    """

    preview_s: float
    finish_s: float
    update_s: float
    record_s: float = 0.0
    step_s: float = 0.0

    def slower(self, factor: float) -> Work:
        """Return the work of a rank that takes `factor` times as long."""
        return Work(*(factor * getattr(self, one.name) for one in fields(self)))


@dataclass(frozen=True)
class Screen:
    """How a group is drawn: `batch` previews at a time, until `group` of them pass or `cap` are drawn.

    `pass_rate` is the probability that a preview passes; None: exactly `group` are drawn, or, in these shares of the
    groups, twice as many (`select` "auto"):

    screened  `group` of them are finished
    whole     all of them are finished
    """

    group: int = 9
    batch: int = 12
    cap: int = 144
    pass_rate: float | None = 0.25
    screened: float = 0.0
    whole: float = 0.0


@dataclass(frozen=True)
class Policy:
    """What ranks send. `parameters` and `trained` are numbers, in float32.

    `shard` is the number of ranks that share one copy (FSDP2; 1: each has its own). Then an update makes `passes`
    backward passes a group, and a rank gathers the weights `gathers` times in each. `checkpoint_bytes` is per trained
    number: the weight and Adam's two moments.
    """

    parameters: float
    trained: float
    shard: int = 1
    passes: float = 0.0
    gathers: float = 5.0  # measured: text and image, forward, backward (once), and by the reference
    checkpoint_bytes: float = 12.0


@dataclass(frozen=True)
class Network:
    """Assumed bandwidths in one direction: of each GPU to the others of its node, and of the network of a node.

    `latency_s` is the seconds of one message between two ranks.
    """

    gpus_per_node: int = 8
    node_gb_s: float = 300.0  # NVLink of an H100 or H200 has 450
    network_gb_s: float = 50.0  # one port of 400 Gb/s for the whole node
    latency_s: float = 20e-6


@dataclass(frozen=True)
class Service:
    """Assumed throughput of one GPU of the reward service, in images a second; `utilisation` leaves room for peaks."""

    surrogate_images_s: float = 100.0  # the goal of benchmarks/gpu_scorers.py for Sync-R1's four rewards; not measured
    reward_images_s: float = 100.0
    utilisation: float = 0.7
    image_bytes: int = 3 * 512 * 512  # images travel as raw pixels


@dataclass(frozen=True)
class Disk:
    """Assumed write bandwidth of the shared `run_dir` in GB/s, and the steps between two checkpoints."""

    disk_gb_s: float = 1.0
    checkpoint_every: int = 10


@dataclass(frozen=True)
class Prediction:
    """One step of `groups` groups on `world` ranks. Shares are of `step_s`, which includes a part of a checkpoint.

    wait_share      of the mean rank, for the slowest one
    record_share    the GPUs are idle while metrics and images are written
    scorer_gpus     GPUs of the reward service that keep up while images are drawn
    service_mb_s    sent to the service while images are drawn, by all ranks together
    """

    world: int
    groups: int
    step_s: float
    draw_s: float
    wait_share: float
    record_share: float
    communication_s: float
    communication_share: float
    images_per_s: float
    scorer_gpus: float
    service_mb_s: float
    checkpoint_gb: float
    checkpoint_s: float
    checkpoint_share: float


# -- stragglers ------------------------------------------------------------------------------------------------------


def previews_drawn(screen: Screen) -> Floats:
    """Return the distribution of the number of previews of a group; index n is the probability of n.

    After n previews the number that passed is binomial(n, p), so P(at most n drawn) = P(binomial(n, p) >= G) for every
    n = b, 2b, .. below the cap.
    """
    if screen.pass_rate is None:
        density, twice = np.zeros(2 * screen.group + 1), screen.screened + screen.whole
        density[screen.group], density[-1] = 1 - twice, twice
        return density
    density = np.zeros(screen.cap + 1)
    before = 0.0
    for count in range(screen.batch, screen.cap, screen.batch):
        enough = _at_least(screen.group, count, screen.pass_rate)
        density[count], before = enough - before, enough
    density[screen.cap] = 1 - before
    return density


def mean_previews(screen: Screen) -> float:
    """Return the expected number of previews of a group."""
    density = previews_drawn(screen)
    return float(np.arange(len(density)) @ density)


def _at_least(wanted: int, count: int, rate: float) -> float:
    fewer = range(min(wanted, count + 1))
    return max(0.0, 1 - math.fsum(math.comb(count, k) * rate**k * (1 - rate) ** (count - k) for k in fewer))


def groups_of_ranks(groups: int, world: int) -> list[int]:
    """Return the number of groups of each rank: rank r draws the groups r, r + W, ..

    Raises ValueError for fewer groups than ranks, which the trainer refuses.
    """
    if groups < world:
        raise ValueError(
            f"{groups} groups a step for {world} ranks: a rank draws whole groups, so [trainer] prompts_per_step must "
            f"be at least {world}"
        )
    return [len(range(rank, groups, world)) for rank in range(world)]


def slowest_draw(work: Work, screen: Screen, groups: int, world: int) -> float:
    """Return the expected seconds in which the slowest rank draws its groups.

    A rank with g groups takes T = preview * X + (g + W) * finish, where X is the sum of g independent numbers of
    previews, and W the number of groups of which twice as many images are finished. The ranks are independent, so
    P(max T <= t) is the product of theirs, and E[max T] = sum of t * P(max T = t). For large g it is near the mean plus
    preview * sd * sqrt(2 g ln W'), with W' ranks: the excess over the mean, g * (..), falls as sqrt(ln W' / g).
    """
    times, below = [], []
    for count, ranks in sorted(_tally(groups_of_ranks(groups, world)).items()):
        density = np.ones((1, 1))
        for _ in range(count):
            density = _sum_of(density, _drawn_and_whole(screen))
        drawn, whole = np.indices(density.shape)
        seconds = work.preview_s * drawn + (count + whole) * work.finish_s
        order = np.argsort(seconds, axis=None)
        times.append(seconds.ravel()[order])
        below.append((np.minimum(np.cumsum(density.ravel()[order]), 1.0), ranks))
    every = np.unique(np.concatenate(times))
    together = np.ones_like(every)
    for time, (cumulative, ranks) in zip(times, below, strict=True):
        places = np.searchsorted(time, every, side="right")
        together *= np.concatenate(([0.0], cumulative))[places] ** ranks
    return float(np.sum(every * np.diff(together, prepend=0.0)))


def _drawn_and_whole(screen: Screen) -> Floats:
    """Return the distribution of a group's previews and of whether all of them are finished, 0 or 1."""
    if not screen.whole:
        return previews_drawn(screen)[:, None]
    density = np.zeros((2 * screen.group + 1, 2))
    density[screen.group, 0], density[-1] = 1 - screen.screened - screen.whole, (screen.screened, screen.whole)
    return density


def _sum_of(a: Floats, b: Floats) -> Floats:
    """Return the distribution of the sum of two independent pairs of numbers."""
    found = np.zeros((a.shape[0] + b.shape[0] - 1, a.shape[1] + b.shape[1] - 1))
    for i in range(a.shape[1]):
        for j in range(b.shape[1]):
            found[:, i + j] += np.convolve(a[:, i], b[:, j])
    return found


def _tally(counts: Iterable[int]) -> dict[int, int]:
    values, numbers = np.unique(list(counts), return_counts=True)
    return dict(zip(values.tolist(), numbers.tolist(), strict=True))


# -- messages --------------------------------------------------------------------------------------------------------


def all_reduce_seconds(size: float, world: int, network: Network) -> float:
    """Return the seconds in which `world` ranks sum `size` bytes.

    A ring of n ranks sends 2 (n - 1) / n of the bytes over each link (Patarasuk and Yuan 2009). Within a node they go
    by its links, between the N nodes by their networks: 2 (n - 1) / n B / node + 2 (N - 1) / N B / network. Each
    message of BUCKET_BYTES also takes 2 (n - 1 + N - 1) latencies.
    """
    ranks, nodes = _nodes(world, network)
    links = _rounds(ranks) / network.node_gb_s + _rounds(nodes) / network.network_gb_s
    messages = math.ceil(size / BUCKET_BYTES)
    return 2 * (size / 1e9 * links + messages * (ranks + nodes - 2) * network.latency_s)


def gather_seconds(size: float, world: int, network: Network) -> float:
    """Return the seconds in which each of `world` ranks receives its part of `size` bytes from every other rank.

    A reduce-scatter takes the same: half of an all-reduce.
    """
    return all_reduce_seconds(size, world, network) / 2


def communication_seconds(policy: Policy, groups: int, world: int, network: Network) -> float:
    """Return the seconds of all messages of a step, none of them overlapped with computation: an upper bound.

    Replicated, a step sums the gradients of all ranks once. Sharded over the S ranks of a copy (FSDP2), they gather the
    weights once for drawing. In each pass they gather them again and give each rank its part of the gradient; all ranks
    make as many passes as the one with the most groups. Once a step the parts are summed over the W / S copies. In both
    cases the ranks exchange GATHERS documents. Raises ValueError for a world that is not a multiple of the shard.
    """
    if world == 1:
        return 0.0
    if world % policy.shard:
        raise ValueError(f"{world} ranks do not divide into copies of {policy.shard}; give a multiple of it")
    gradients, documents = 4 * policy.trained, 2 * GATHERS * (world - 1) * network.latency_s
    if policy.shard == 1:
        return documents + all_reduce_seconds(gradients, world, network)
    weights = gather_seconds(4 * policy.parameters, policy.shard, network)
    # each rank sums its part over the copies: by its own links within a node, by the one network between nodes
    inside = max(1, network.gpus_per_node // policy.shard)
    copies = replace(network, gpus_per_node=inside, node_gb_s=policy.shard * network.node_gb_s)
    summed = all_reduce_seconds(gradients, world // policy.shard, copies)
    one_pass = policy.gathers * weights + gather_seconds(gradients, policy.shard, network)
    return documents + weights + policy.passes * max(groups_of_ranks(groups, world)) * one_pass + summed


def _nodes(world: int, network: Network) -> tuple[int, int]:
    """Return the ranks of a node, and the nodes."""
    return min(world, network.gpus_per_node), math.ceil(world / network.gpus_per_node)


def _rounds(count: int) -> float:
    return (count - 1) / count


# -- a step ----------------------------------------------------------------------------------------------------------


def predict(
    work: Work,
    screen: Screen,
    policy: Policy,
    groups: int,
    world: int,
    *,
    network: Network = Network(),
    service: Service = Service(),
    disk: Disk = Disk(),
) -> Prediction:
    """Return the prediction of a step of `groups` groups on `world` ranks. Raises ValueError for too few groups."""
    counts = groups_of_ranks(groups, world)
    drawn = mean_previews(screen)
    draw = slowest_draw(work, screen, groups, world)
    mean = groups / world * (work.preview_s * drawn + work.finish_s * (1 + screen.whole) + work.update_s)
    recorded = counts[0] * work.record_s
    wait = draw + counts[0] * work.update_s - mean
    sent = communication_seconds(policy, groups, world, network)
    checkpoint_gb = policy.checkpoint_bytes * policy.trained / 1e9
    checkpoint = checkpoint_gb / disk.disk_gb_s
    step = draw + counts[0] * work.update_s + recorded + work.step_s + sent + checkpoint / disk.checkpoint_every
    previews = groups * (2 * screen.group * screen.screened if screen.pass_rate is None else drawn)
    finished = groups * screen.group * (1 + screen.whole)
    busy = previews / service.surrogate_images_s + finished / service.reward_images_s
    return Prediction(
        world=world,
        groups=groups,
        step_s=step,
        draw_s=draw,
        wait_share=wait / step,
        record_share=recorded / step,
        communication_s=sent,
        communication_share=sent / step,
        images_per_s=finished / step,
        scorer_gpus=busy / (draw * service.utilisation),
        service_mb_s=(previews + finished) * service.image_bytes / draw / 1e6,
        checkpoint_gb=checkpoint_gb,
        checkpoint_s=checkpoint,
        checkpoint_share=checkpoint / disk.checkpoint_every / step,
    )
