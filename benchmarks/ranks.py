"""Measure training on two ranks against one, and the sizing model against both.

    python -m benchmarks.ranks                    all parts: about 8 minutes on two idle cores
    python -m benchmarks.ranks --only cost        one part; the file keeps the others

    equality   codes, thresholds and advantages bit for bit over three steps; gradients and SGD weights by difference
    cost       one and two ranks of one thread each: seconds of a step, waiting for the other rank, messages
    wait       the share of a step that waits for scorers of two seconds (benchmarks.reward_wait)
    sizing     the prediction of `benchmarks.sizing` against the measured steps of `cost`, and for 8 to 512 GPUs

`cost` trains the embedded Show-o on the same four groups a step. Scores are random numbers that follow from an image's
pixels and take no time, so a preview passes with a known probability. Two independent runs at the same time show how
much two processes slow each other down without any message. Each part is written to the file when it ends.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import statistics
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Final, get_args, get_type_hints
from unittest.mock import patch

import numpy as np
import torch
import torch.distributed as dist
from torch import nn
from torch.multiprocessing.spawn import spawn as start_processes

from benchmarks import reward_wait
from benchmarks.machine import command, commit, machine
from benchmarks.sizing.__main__ import WORLDS, work_of
from benchmarks.sizing.model import Disk, Network, Policy, Screen, Work, communication_seconds, groups_of_ranks, predict
from benchmarks.sizing.policies import cases
from synod.contracts import ScoreItem
from tests.unit.trainer import world_two
from trainer.algorithms.threshold import ThresholdState
from trainer.distributed import ONE_RANK, Ranks
from trainer.passes import in_step
from trainer.report.metrics import Metrics, Sample, read
from trainer.run import make_policy
from trainer.settings import TrainerSettings, load
from trainer.state import TrainState
from trainer.train import train
from trainer.types import Reward, RewardSpec

ROOT: Final = Path(__file__).resolve().parents[1]
CONFIG: Final = ROOT / "deploy/configs/embedded.toml"
SCREEN: Final = Screen(group=9, batch=12, cap=36, pass_rate=0.4)
NEVER: Final = 10**6
Result = dict[str, Any]


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the parts, and write each when it ends."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.ranks", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--only", choices=PARTS, help="one part")
    parser.add_argument("--steps", type=int, default=4, help="of each run of `cost`; the first is left out")
    parser.add_argument("--groups", type=int, default=4, help="of each step of `cost`")
    parser.add_argument(
        "--out", type=Path, default=ROOT / "benchmarks/results/ranks.json", help="the result (%(default)s)"
    )
    options = parser.parse_args(arguments)
    found: Result = json.loads(options.out.read_text()) if options.out.exists() else {}
    for name in [options.only] if options.only else PARTS:
        _say(f"{name}: started")
        began = time.perf_counter()
        part = PARTS[name](found, options)
        spent = round(time.perf_counter() - began, 1)
        found[name] = {"command": command(), "commit": commit(), "machine": machine(), "seconds": spent, **part}
        options.out.write_text(json.dumps(found, indent=1) + "\n")
        _say(f"{name}: {spent} s, written to {options.out}\n{json.dumps(part, indent=1)}")
    return 0


def _say(message: str) -> None:
    print(message, flush=True)


# -- equality --------------------------------------------------------------------------------------------------------


def equality(*_: object) -> Result:
    """Compare two ranks with one for every policy, kind of training and mode that the tests' harness has."""
    kinds = (world_two.Case(), world_two.Case(trained="lora"), world_two.Case(family="gaussian"))
    modes = get_args(get_type_hints(world_two.Case)["mode"])
    chosen = [replace(case, mode=mode) for mode in modes for case in kinds]
    with TemporaryDirectory() as folder:
        found = world_two.compare(chosen, Path(folder))
    return {"steps": world_two.STEPS, "cases": {name: asdict(figures) for name, figures in found.items()}}


# -- cost ------------------------------------------------------------------------------------------------------------


def cost(_: object, options: argparse.Namespace) -> Result:
    """Train the same groups on one rank, on one twice at the same time, and on two ranks."""
    size = {"STEPS": options.steps, "PROMPTS_PER_STEP": options.groups}
    with TemporaryDirectory() as folder:
        alone = _measured(Path(folder) / "alone", size, 1, "one rank")
        twice = _measured(Path(folder) / "twice", size, 1, "two independent runs of one rank", copies=2)
        both = _measured(Path(folder) / "both", size, 2, "two ranks")
        work = work_of(read(Path(folder) / "alone/run-0")[1:], options.groups * (options.steps - 1))
        trained = sum(p.numel() for p in make_policy(_settings(Path(folder), size)).module.parameters())
    seconds = {name: _mean(runs[0], "seconds") for name, runs in (("alone", alone), ("twice", twice), ("both", both))}
    return {
        "settings": {
            "groups": options.groups,
            "steps": options.steps - 1,
            "threads": 1,
            "screen": asdict(SCREEN),
            "trained": trained,
        },
        "world_1": {"step_s": round(seconds["alone"], 3), "previews": _drawn(alone[0]), "work": asdict(work)},
        "two_independent": {
            "step_s": [round(_mean(run, "seconds"), 3) for run in twice],
            "times_slower": round(statistics.fmean(_mean(run, "seconds") for run in twice) / seconds["alone"], 3),
        },
        "world_2": {"step_s": round(seconds["both"], 3), "previews": _drawn(both[0]), "ranks": _shares(both)},
        "speedup": round(seconds["alone"] / seconds["both"], 3),
        "messages_alone": _messages(trained),
    }


@dataclass(frozen=True)
class Step:
    """What one rank spent in one step: in all, waiting for the other at messages, and in messages by kind."""

    seconds: float
    waiting: float
    drawn: list[int]
    messages: dict[str, dict[str, float]]


def _measured(folder: Path, size: Mapping[str, int], world: int, what: str, copies: int = 1) -> list[list[Step]]:
    """Return the steps of each process, the first left out."""
    _say(f"cost: {what}, {size['STEPS']} steps of {size['PROMPTS_PER_STEP']} groups")
    folder.mkdir()
    if world == 1:
        start_processes(_train_alone, (str(folder), size), nprocs=copies)  # type: ignore[no-untyped-call]
    else:
        world_two.spawn(_train, folder, str(folder), size, 0, world=world)
    files = sorted(folder.glob("steps-*.json"))
    return [[Step(**one) for one in json.loads(file.read_text())[1:]] for file in files]


def _train_alone(copy: int, folder: str, size: Mapping[str, int]) -> None:
    torch.set_num_threads(1)
    _train(ONE_RANK, folder, size, copy)


def _train(ranks: Ranks, folder: str, size: Mapping[str, int], copy: int) -> None:
    settings = _settings(Path(folder) / f"run-{copy}", size)
    recorder = _Recorder()
    policy = make_policy(settings)
    with recorder.recording():
        train(settings, policy, PixelRewards(), FixedThreshold(), lambda message: None, ranks=ranks)
    steps = [asdict(step) for step in recorder.steps]
    (Path(folder) / f"steps-{ranks.rank + copy}.json").write_text(json.dumps(steps))


def _settings(run_dir: Path, size: Mapping[str, int]) -> TrainerSettings:
    changed = {
        **size,
        "CHECKPOINT_EVERY": NEVER,
        "RUN_DIR": f'"{run_dir}"',
        "SCREEN__SELECT": "first_above",
        "SCREEN__GROUP_SIZE": SCREEN.group,
        "SCREEN__PREVIEW_BATCH_SIZE": SCREEN.batch,
        "SCREEN__MAX_PREVIEWS": SCREEN.cap,
    }
    return load(CONFIG, {f"SYNOD__TRAINER__{key}": str(value) for key, value in changed.items()})


class PixelRewards:
    """Scores that take no time: random numbers in [0, 1) that follow from the pixels."""

    def submit_previews(self, items: Sequence[ScoreItem], reward: RewardSpec | None = None) -> Future[list[Reward]]:
        return _done([Reward(_random(item, "preview")) for item in items])

    def submit(self, items: Sequence[ScoreItem], reward: RewardSpec) -> Future[list[Reward]]:
        return _done([Reward(_random(item, "image")) for item in items])


def _random(item: ScoreItem, of: str) -> float:
    digest = hashlib.blake2b(item.pixels().tobytes(), digest_size=8, key=of.encode())
    return int.from_bytes(digest.digest(), "big") / 2**64


def _done(rewards: list[Reward]) -> Future[list[Reward]]:
    future: Future[list[Reward]] = Future()
    future.set_result(rewards)
    return future


class FixedThreshold:
    """A threshold that random scores pass with the probability of SCREEN."""

    def initial_state(self) -> ThresholdState:
        return ThresholdState(1 - (SCREEN.pass_rate or 1))

    def update(
        self, state: ThresholdState, scores: Sequence[float], drawn: int, passed: int, capped: bool
    ) -> ThresholdState:
        return state


class _Recorder:
    """Times the messages of a process from outside: before each, all ranks meet at a barrier, which is the waiting."""

    def __init__(self) -> None:
        self.steps: list[Step] = []
        self._began = time.perf_counter()
        self._waiting, self._messages = 0.0, dict[str, dict[str, float]]()

    @contextmanager
    def recording(self) -> Iterator[None]:
        with ExitStack() as stack:
            for name, kind in (("all_reduce", "gradients"), ("all_gather", "documents")):
                stack.enter_context(patch.object(dist, name, self._timed(kind, getattr(dist, name))))
            stack.enter_context(patch.object(TrainState, "advance", self._ending(TrainState.advance)))
            yield

    def _timed(self, kind: str, send: Callable[..., Any]) -> Callable[..., Any]:
        def timed(*given: Any, **options: Any) -> Any:
            began = time.perf_counter()
            dist.barrier()
            met = time.perf_counter()
            found = send(*given, **options)
            self._waiting += met - began
            of = self._messages.setdefault(kind, {"count": 0, "bytes": 0, "seconds": 0.0})
            of["count"] += 1
            of["bytes"] += _bytes(given[0])
            of["seconds"] += time.perf_counter() - met
            return found

        return timed

    def _ending(self, advance: Callable[..., None]) -> Callable[..., None]:
        def ending(state: TrainState, groups: Sequence[Any]) -> None:
            advance(state, groups)
            now = time.perf_counter()
            drawn = [group.previews.screened.drawn for group in groups]
            self.steps.append(Step(now - self._began, self._waiting, drawn, self._messages))
            self._began, self._waiting, self._messages = now, 0.0, {}

        return ending


def _bytes(message: torch.Tensor | Sequence[torch.Tensor]) -> int:
    parts = [message] if isinstance(message, torch.Tensor) else message
    return sum(part.nbytes for part in parts)


def _mean(steps: Sequence[Step], name: str) -> float:
    return statistics.fmean(getattr(step, name) for step in steps)


def _drawn(steps: Sequence[Step]) -> list[list[int]]:
    return [step.drawn for step in steps]


def _shares(ranks: Sequence[Sequence[Step]]) -> list[Result]:
    """Return of each rank the shares of its time in waiting and messages, and the messages of a step."""
    found = []
    for steps in ranks:
        total = sum(step.seconds for step in steps)
        row: Result = {"share_waiting": round(sum(step.waiting for step in steps) / total, 4)}
        for kind in steps[0].messages:
            count, size, spent = (sum(s.messages[kind][key] for s in steps) for key in ("count", "bytes", "seconds"))
            row[kind] = {
                "messages_a_step": count / len(steps),
                "bytes_a_step": size / len(steps),
                "seconds_a_step": round(spent / len(steps), 5),
                "share": round(spent / total, 5),
                "mb_s": round(size / spent / 1e6, 1),
            }
        found.append(row)
    return found


def _messages(size: int) -> Result:
    """Return the medians of a sum of gradients and of a small document, between two ranks that do nothing else."""
    _say("cost: messages of two ranks that do nothing else")
    with TemporaryDirectory() as folder:
        world_two.spawn(_send, Path(folder), folder, size)
        found: Result = json.loads((Path(folder) / "messages.json").read_text())
    return found


def _send(ranks: Ranks, folder: str, size: int) -> None:
    parameters = [nn.Parameter(torch.zeros(size))]
    parameters[0].grad = torch.ones(size)

    def median(send: Callable[[], Any], times: int) -> float:
        spent = []
        for _ in range(times):
            dist.barrier()
            began = time.perf_counter()
            send()
            spent.append(time.perf_counter() - began)
        return statistics.median(spent)

    sums = median(lambda: ranks.sum_gradients(parameters), 11)
    documents = median(lambda: ranks.gather_all([0.5] * 100), 51)
    if ranks.is_first:
        found = {"gradient_bytes": 4 * size, "gradient_s": round(sums, 5), "document_s": round(documents, 6)}
        (Path(folder) / "messages.json").write_text(json.dumps(found))


# -- wait ------------------------------------------------------------------------------------------------------------


def wait(*_: object) -> Result:
    """Return what one rank waits for the reward service, by prompts of a step."""
    return reward_wait.measure()


# -- sizing ----------------------------------------------------------------------------------------------------------


def sizing(found: Mapping[str, Any], *_: object) -> Result:
    """Predict the steps of `cost` from one rank's work and the cost of messages, and steps on many GPUs."""
    if "cost" not in found:
        raise SystemExit("sizing compares itself with cost: run python -m benchmarks.ranks --only cost first")
    return {
        "validation": validation(found["cost"]),
        "record_512_s": _record_seconds(),
        "fsdp2": _split_messages(),
        "predictions": {
            case.name: [asdict(predict(case.work, case.screen, case.policy, 2 * world, world)) for world in WORLDS]
            for case in cases()
        },
    }


def validation(measured: Mapping[str, Any]) -> Result:
    """Return predicted steps of one and two ranks, and their errors against the measured ones.

    expected   by the distribution of previews, as for a cluster
    drawn      by the previews that the measured steps drew, which a few steps do not draw at their mean
    contended  the same, with the slowdown of two independent processes on this machine
    """
    messages, work = measured["messages_alone"], Work(**measured["world_1"]["work"])
    network = Network(
        node_gb_s=messages["gradient_bytes"] / messages["gradient_s"] / 1e9, latency_s=messages["document_s"] / 2
    )
    trained, groups = (measured["settings"][name] for name in ("trained", "groups"))
    policy, slower = Policy(trained, trained), work.slower(measured["two_independent"]["times_slower"])
    found: Result = {"network": asdict(network)}
    for world in (1, 2):
        of = measured[f"world_{world}"]
        predicted = {
            "expected": predict(
                work, SCREEN, policy, groups, world, network=network, disk=Disk(checkpoint_every=NEVER)
            ).step_s,
            "drawn": _drawn_step(work, policy, of["previews"], world, network),
        }
        if world > 1:
            predicted["contended"] = _drawn_step(slower, policy, of["previews"], world, network)
        found[f"world_{world}"] = {"measured_s": of["step_s"]} | {
            name: {"step_s": round(step, 3), "error": round(step / of["step_s"] - 1, 3)}
            for name, step in predicted.items()
        }
    return found


def _drawn_step(work: Work, policy: Policy, previews: Sequence[Sequence[int]], world: int, network: Network) -> float:
    """Return the mean step in which each rank draws the previews of its groups."""
    groups = len(previews[0])
    most = max(groups_of_ranks(groups, world))
    slowest = [
        max(sum(work.preview_s * count + work.finish_s for count in step[rank::world]) for rank in range(world))
        for step in previews
    ]
    rest = most * (work.update_s + work.record_s) + work.step_s
    return statistics.fmean(slowest) + rest + communication_seconds(policy, groups, world, network)


def _split_messages() -> Result:
    """Return how often a backward pass of a tiny Show-o split over two ranks sends its weights and its gradients."""
    with TemporaryDirectory() as folder:
        world_two.prepare(Path(folder))
        case = world_two.Case(mode="shard")
        world_two.spawn(_count_split, Path(folder), case, case.settings(Path(folder), "run", STEPS="1"), folder)
        found: Result = json.loads((Path(folder) / "split.json").read_text())
    return found


def _count_split(ranks: Ranks, case: world_two.Case, settings: TrainerSettings, folder: str) -> None:
    """Count the bytes of the messages of FSDP2 while an update makes its passes."""
    sent, passes = {"all_gather_single": 0, "reduce_scatter_single": 0}, [0]

    def counting(name: str, send: Callable[..., Any]) -> Callable[..., Any]:
        def counted(*given: Any, **options: Any) -> Any:
            message = given[0] if given else options["input"]
            sent[name] += message.nbytes
            return send(*given, **options)

        return counted

    def counted_update(policy: Any, groups: Any, mine: Any, *others: Any) -> Any:
        with ExitStack() as stack:
            for name in sent:
                stack.enter_context(patch.object(dist, name, counting(name, getattr(dist, name))))
            found = in_step(policy, groups, mine, *others)
        passes[0] = max(ranks.gather_all(sum(map(len, mine.values()))))
        return found

    with patch("trainer.update.in_step", counted_update):
        state = world_two.train_case(ranks, case, settings)
    if ranks.is_first:
        size = 4 * sum(parameter.numel() for parameter in state.trained.values()) * passes[0]
        found = {"passes": passes[0], "gathers_a_pass": round(sent["all_gather_single"] / size, 3)}
        found["scatters_a_pass"] = round(sent["reduce_scatter_single"] / size, 3)
        (Path(folder) / "split.json").write_text(json.dumps(found))


def _record_seconds() -> float:
    """Return the CPU seconds in which the images of a group of Show-o 512 are recorded: 9 + 9 + 8, as by default."""
    rng, (y, x) = np.random.default_rng(0), np.mgrid[0:512, 0:512]
    smooth = np.stack([127 + 100 * np.sin(x / 40 + y / 70), 127 + 90 * np.cos(y / 33), x / 2], -1)
    samples = [Sample((smooth + rng.normal(0, 6, smooth.shape)).clip(0, 255).astype(np.uint8), 0.5) for _ in range(26)]
    with TemporaryDirectory() as folder, Metrics(Path(folder)) as metrics:
        began = time.process_time()
        kinds = {"finished": samples[:9], "previews": samples[9:18], "rejected": samples[18:]}
        metrics.log_samples(0, 0, "a prompt", kinds)
        return round(time.process_time() - began, 2)


PARTS: Final[dict[str, Callable[..., Result]]] = {
    "equality": equality,
    "cost": cost,
    "wait": wait,
    "sizing": sizing,
}

if __name__ == "__main__":
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    sys.exit(main())
