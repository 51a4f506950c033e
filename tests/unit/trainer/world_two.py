"""Train one case on two ranks under gloo and on one, and measure how far the two runs are apart.

`compare` returns figures; tests assert on them, and `benchmarks.ranks` prints them. All cases share one start of two
processes, which costs more than a case.
"""

from __future__ import annotations

import hashlib
import json
import math
import multiprocessing
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field, fields, replace
from datetime import timedelta
from multiprocessing import reduction
from pathlib import Path
from typing import Any, Final, Literal
from unittest.mock import patch

import torch
import torch.distributed as dist
from safetensors.torch import load_file, save_file
from torch import Tensor
from torch.multiprocessing.spawn import start_processes

from synod.contracts import ScoreItem
from tests import tiny_vlm
from tests.unit.trainer.gaussian_policy import GaussianPolicy, closeness
from tests.unit.trainer.loops import UPDATES_ARE_DEAR, lines, priced
from tests.unit.trainer.reward_services import Judge, brightness, brightness_or_length, redness
from tests.unit.trainer.tiny_flow import FLOW, TEXT, write_pipeline
from tests.unit.trainer.tiny_run import TINY, make_settings, write_data
from tests.unit.trainer.tiny_show_o import make_show_o, make_vocabulary, make_vq
from trainer import checkpoint, distributed
from trainer.algorithms.threshold import make_controller
from trainer.credit import modality_advantages
from trainer.distributed import ONE_RANK, Ranks
from trainer.groups import ScoredGroup
from trainer.optim import learning_rates
from trainer.policy.base import Policy
from trainer.policy.flow.segments import LatentSegment
from trainer.run import make_policy
from trainer.settings import TrainerSettings
from trainer.state import TrainState
from trainer.train import train
from trainer.update import MAX_GRAD_NORM, policy_update

STEPS: Final = 3
PRELOADED: Final = ("pytest", "peft", "torch.utils.tensorboard", "transformers.models.auto.tokenization_auto")
LIMITS: Final = {  # of the differences that follow from the order of sums
    "draw_difference": 1e-5,
    "rounded_difference": 1e-5,
    "gradient_difference": 1e-5,
    "weight_difference": 1e-6,
}
FIGURE_FLOOR: Final = 1e-2  # a figure counts as at least this much: a loss is a sum of both signs, often near 0
GRADIENT_FLOOR: Final = 1e-3  # a tensor's gradient counts as at least this share of the step's largest
# Figures of metrics.jsonl that depend on the order of sums; all others are equal bit for bit.
COSINES: Final = ("gradient_cosine_text", "gradient_cosine_image")  # a split policy does not have them
ROUNDED: Final = (
    *("loss_text", "loss_image", "grad_norm", "kl_text", "kl_image", "ratio_max_text", "ratio_max_image"),
    *("ratio_min_text", "ratio_min_image"),
    *("kl_image_by_step", *COSINES),
)
# Three groups a step: for Show-o a visual, a textual and a GenEval group, which has no text.
COMMON: Final = {
    "PROMPTS_PER_STEP": "3",
    "CHECKPOINT_EVERY": "1",
    "LOSS__BASELINE": "population",
    "SCREEN__AUDIT": "0.5",
    "REWARDS__SURROGATE": "ber",
}
OF_FAMILY: Final = {
    "show_o": {"DATA__GENEVAL_SHARE": "0.3333", "OPTIMIZER__LR": "0.01"},
    "gaussian": {"DATA__GENEVAL_SHARE": "1.0", "OPTIMIZER__LR": "0.1", "LOSS__IMAGE__BETA": "1e-3"},
    "flow": {**FLOW, "POLICY__MODEL": '"./sd3"', "LOSS__IMAGE__LR": "100", "LOSS__IMAGE__BETA": "1e-3"},
    "joint": {  # a language model that answers before a flow draws: UniRL-Zero's scenario 5
        "POLICY__FAMILY": "flow",
        "POLICY__MODEL": '"./sana"',
        "POLICY__MAX_TEXT_LENGTH": "8",
        "POLICY__LANGUAGE__MODEL": '"./language"',
        "POLICY__LANGUAGE__MAX_NEW_TOKENS": "4",
        "DATA__QUERY": '"answer this {prompt}"',
        "REWARDS__TERMS": '[{scorer = "geneval"}, {of = "answer", scorer = "format"}]',
        "LOSS__TEXT__LR": "0.02",
        "LOSS__IMAGE__LR": "10",
        "LOSS__IMAGE__BETA": "1e-3",
    },
}
SCENES: Final = [{"prompt": f"a photo of {words}"} for words in ("red cat", "two dogs", "a dog", "bright cats")]
WORDS: Final = ("a", "photo", "of", "answer", "this", "red", "cat", "dogs", "Yes", "No")  # of the language model


@dataclass(frozen=True)
class Case:
    """What is trained, and how. `mode` is that of the two ranks; one rank always has the whole policy.

    mode     "shard" splits one copy of the policy over the two ranks
    options  overrides of settings, such as {"OPTIMIZER__EMA": "0.9"}, on one rank and on two
    """

    family: Literal["show_o", "gaussian", "flow", "joint"] = "show_o"
    trained: Literal["full", "lora"] = "full"
    mode: Literal["replicate", "shard"] = "replicate"
    options: Mapping[str, str] = field(default_factory=dict)

    @property
    def name(self) -> str:
        options = "".join(f"-{key}={value}" for key, value in self.options.items()).lower()
        return f"{self.family}-{self.trained}-{self.mode}{options}"

    @property
    def alone(self) -> Case:
        """The case with which one rank is compared."""
        return replace(self, mode="replicate")

    def settings(self, folder: Path, run: str, **overrides: str) -> TrainerSettings:
        """Return the settings of a run of this case, in a folder of `prepare`."""
        lora = {"POLICY__LORA__RANK": "4"} if self.trained == "lora" else {}
        size = {"STEPS": str(STEPS), "RUN_DIR": f'"{run}"'}
        shard = {"RANKS__SHARD": "2"} if self.mode == "shard" else {}
        options = {**COMMON, **OF_FAMILY[self.family], **size, **lora, **shard, **self.options, **overrides}
        if self.family == "flow" and not (folder / "sd3").exists():
            write_pipeline(folder / "sd3", "sd3")
        if self.family == "joint":
            return make_settings(folder, TEXT, options, _joint(folder))
        return make_settings(folder, TEXT if self.family == "flow" else TINY, options)


def _joint(folder: Path) -> str:
    """Write a language model, a pipeline and prompts, if they are not there; return the table [trainer.data]."""
    if not (folder / "language").exists():
        write_pipeline(folder / "sana", "sana")
        with torch.random.fork_rng():
            torch.manual_seed(0)
            tiny_vlm.qwen(folder / "language", WORDS)
        (folder / "scenes.jsonl").write_text("\n".join(map(json.dumps, SCENES)) + "\n")
    return 'prompts = "scenes.jsonl"\n'


@dataclass(frozen=True)
class Figures:
    """How far a run on two ranks is from the run on one, and what the run held.

    codes, thresholds, advantages, records
                         whether they are equal bit for bit in every step; codes are all integers that were sampled, the
                         random numbers and the images, records are metrics.jsonl without times and `ROUNDED`
    draw_difference      the largest difference of another number of a rollout: log-probabilities, and the draws of a
                         continuous policy. After an update they depend on the order of sums
    rounded_difference   the largest difference of a figure of `ROUNDED`, relative to it (in a list: to the largest one)
                         or to FIGURE_FLOOR
    gradient_difference  the largest difference of a gradient, relative to the largest gradient of its tensor (or
                         to GRADIENT_FLOOR of the step's largest, if that is more)
    weight_difference    the largest absolute difference of a weight after the last step of SGD
    ranks_agree          whether gradients and thresholds of both ranks are equal bit for bit
    batches              for each step, how many batches of previews each rank drew
    skipped, textless    groups of all steps without an update, and without text
    """

    codes: bool
    thresholds: bool
    advantages: bool
    records: bool
    draw_difference: float
    rounded_difference: float
    gradient_difference: float
    weight_difference: float
    ranks_agree: bool
    batches: tuple[tuple[int, ...], ...]
    skipped: int
    textless: int

    @property
    def red(self) -> list[str]:
        """The figures by which the runs are not equal."""
        exact = ("codes", "thresholds", "advantages", "records", "ranks_agree")
        differing = [name for name in exact if not getattr(self, name)]
        return differing + [name for name, limit in LIMITS.items() if not getattr(self, name) <= limit]


def compare(
    cases: Sequence[Case], folder: Path, check: Callable[..., None] | None = None, *arguments: Any
) -> dict[str, Figures]:
    """Run every case on one rank and on two, in `folder`; return the figures by the case's name.

    Afterwards the two processes call `check(ranks, *arguments)`.
    """
    prepare(folder)
    alone = {case.alone.name: case.alone for case in cases}
    for case in alone.values():
        run_case(ONE_RANK, case, case.settings(folder, f"one-{case.name}"))
    both = [(case, case.settings(folder, f"two-{case.name}")) for case in cases]
    spawn(_run_cases, folder, both, check, arguments)
    return {
        case.name: measure(
            folder / f"one-{case.alone.name}",
            settings.run_dir,
            settings.screen.preview_batch_size,
            split=case.mode == "shard",
        )
        for case, settings in both
    }


def prepare(folder: Path) -> None:
    """Write prompts, concepts and a tiny Show-o, if they are not there."""
    if (folder / "model").exists():
        return
    write_data(folder)
    (folder / "tokenizer").mkdir()
    make_show_o(make_vocabulary(folder / "tokenizer"), make_vq()).save(folder / "model")


def run_case(ranks: Ranks, case: Case, settings: TrainerSettings) -> TrainState:
    """Train on this rank, by SGD, and record what `Figures` are made of in the run's directory.

    SGD, because the weights of AdamW amplify rounding errors of gradients near 0.
    """
    torch.set_num_threads(1)
    recorder = _Recorder()
    with recorder.recording():
        state = train_case(ranks, case, settings)
    recorder.write(ranks, settings.run_dir, state)
    return state


def train_case(ranks: Ranks, case: Case, settings: TrainerSettings, judge: Judge | None = None) -> TrainState:
    """Train on this rank with the optimizer of the settings."""
    policy: Policy
    if case.family == "gaussian":
        policy = GaussianPolicy()
        policy.keep_reference()
    else:
        policy = make_policy(settings)
    controller = make_controller(settings.screen.threshold, settings.screen.target_pass_rate)
    with ExitStack() as stack:
        stack.enter_context(patch("trainer.checkpoint.KEEP", 9))
        stack.enter_context(patch("trainer.train.log_images", lambda *_: None))
        stack.enter_context(patch("trainer.state.update_costs", priced(UPDATES_ARE_DEAR)))  # clocks differ
        return train(settings, policy, judge or make_judge(case), controller, lambda message: None, ranks=ranks)


def make_judge(case: Case) -> Judge:
    """Return the rewards of the case's family; some rewards of Show-o are missing, so that groups are skipped.

    Those of a flow policy are rounded: the last bit of a few pixels depends on the order of sums.
    """
    if case.family in ("flow", "joint"):
        return Judge(lambda item: round(brightness_or_length(item), 2), lambda item: round(redness(item), 2))
    return Judge(closeness, closeness) if case.family == "gaussian" else Judge(lost_for_cats, redness)


def lost_for_cats(item: ScoreItem) -> float | None:
    """GenEval groups of cats have no reward, so that they are skipped."""
    return None if "cats" in str(item.prompt) else brightness(item)


# -- processes -------------------------------------------------------------------------------------------------------


def spawn(check: Callable[..., None], folder: Path, *arguments: Any, world: int = 2) -> None:
    """Run `check(ranks, *arguments)` in `world` processes; an assertion that fails in one fails the test.

    They are forked from a server that has imported `PRELOADED`, which takes a process longer than most checks.
    """
    file = folder / f"rendezvous-{len(list(folder.glob('rendezvous-*')))}"
    multiprocessing.set_forkserver_preload([__name__, *PRELOADED])
    given = (_Streams(), check, str(file), world, arguments)
    start_processes(_join, given, nprocs=world, start_method="forkserver")  # type: ignore[no-untyped-call]


class _Streams:
    """Standard output and error of the process that pickles it, taken over by the process that unpickles it.

    A process forked from the server would have those of the test that started the server.
    """

    def __reduce__(self) -> tuple[Callable[..., None], tuple[Any, ...]]:
        return _take_over, (reduction.DupFd(1), reduction.DupFd(2))


def _take_over(output: Any, errors: Any) -> None:
    os.dup2(output.detach(), 1)
    os.dup2(errors.detach(), 2)


def _join(rank: int, _: None, check: Callable[..., None], file: str, world: int, arguments: tuple[Any, ...]) -> None:
    torch.set_num_threads(1)
    file, limit = f"file://{file}", timedelta(seconds=120)  # ranks that wait for each other forever fail the test
    dist.init_process_group("gloo", init_method=file, rank=rank, world_size=world, timeout=limit)
    try:
        with distributed.joined() as ranks:
            assert ranks == Ranks(rank, world)
            check(ranks, *arguments)
            dist.barrier()  # a rank that leaves early closes connections that gloo still uses
    finally:
        dist.destroy_process_group()


def _run_cases(
    ranks: Ranks,
    cases: Sequence[tuple[Case, TrainerSettings]],
    check: Callable[..., None] | None,
    arguments: tuple[Any, ...],
) -> None:
    for case, settings in cases:
        run_case(ranks, case, settings)
    if check is not None:
        check(ranks, *arguments)


# -- what a run records ----------------------------------------------------------------------------------------------


class _Recorder:
    """What was drawn, by which thresholds, with which advantages and gradients, in each step of one rank."""

    def __init__(self) -> None:
        self.steps: list[dict[str, Any]] = []
        self.gradients: dict[str, Tensor] = {}
        self._advantages: dict[str, list[list[float]]] = {}

    @contextmanager
    def recording(self) -> Iterator[None]:
        advantages_of = modality_advantages

        def advantages(*arguments: Any, **options: Any) -> Any:
            found = advantages_of(*arguments, **options)
            self._advantages = {
                modality: [[*map(float, one.places), *one.advantage.tolist()] for one in each]
                for modality, each in found.items()
            }
            return found

        def updating(policy: Policy, optimizer: Any, groups: Sequence[ScoredGroup], *others: Any) -> Any:
            found = policy_update(policy, optimizer, groups, *others)
            self.steps.append({**_drawn(groups), "advantages": self._advantages})
            return found

        def optimizer_of(policy: Policy, settings: TrainerSettings) -> torch.optim.Optimizer:
            made = sgd(policy, settings)
            made.register_step_pre_hook(lambda *_: self._record_gradients(policy))
            return made

        with ExitStack() as stack:
            stack.enter_context(patch("trainer.update.modality_advantages", advantages))
            stack.enter_context(patch("trainer.train.policy_update", updating))
            stack.enter_context(patch("trainer.state.make_optimizer", optimizer_of))
            yield

    def write(self, ranks: Ranks, run: Path, state: TrainState) -> None:
        """Write trace.json and gradients.safetensors of all ranks, by rank 0."""
        thresholds = {key: one.threshold for key, one in state.thresholds.items()}
        agreed = ranks.gather_all([thresholds, {name: _digest(grad) for name, grad in self.gradients.items()}])
        parts = ranks.gather_all(self.steps)
        if ranks.is_first:
            trace = {"steps": parts, "thresholds": thresholds, "ranks_agree": all(one == agreed[0] for one in agreed)}
            (run / "trace.json").write_text(json.dumps(trace))
            save_file(self.gradients, run / "gradients.safetensors")

    def _record_gradients(self, policy: Policy) -> None:
        """Record the clipped gradients; a parameter without one has 0."""
        step = len(self.steps)
        for name, parameter in policy.module.named_parameters():
            if parameter.requires_grad:
                grad = torch.zeros_like(parameter) if parameter.grad is None else parameter.grad
                self.gradients[f"{step}/{name}"] = distributed.whole(grad).detach().clone().contiguous()


def sgd(policy: Policy, settings: TrainerSettings) -> torch.optim.Optimizer:
    """Return SGD with the learning rates of the settings, in place of `trainer.optim.make_optimizer`."""
    rates = learning_rates(policy, settings, 0)
    groups = zip(policy.parameter_groups(), rates, strict=True)
    return torch.optim.SGD([{"params": list(group.parameters), "lr": lr} for group, lr in groups])


def _drawn(groups: Sequence[ScoredGroup]) -> dict[str, Any]:
    return {
        "codes": {i: _digests(group) for i, group in enumerate(groups) if group.is_ours},
        "draws": {i: _floats(group) for i, group in enumerate(groups) if group.is_ours},
        "thresholds": [group.previews.threshold for group in groups],
        "drawn": [group.previews.screened.drawn for group in groups],
        "textless": [group.previews.task.query is None for group in groups],
    }


def _digests(group: ScoredGroup) -> list[str]:
    """Return a digest of every integer tensor and random number of the group's rollouts, and of every image.

    Images of latents are left out, because their last bits depend on the order of sums.
    """
    exact = [value for name, value in _tensors(group) if _is_exact(name, value)]
    if not any(isinstance(rollout.image, LatentSegment) for rollout in group.rollouts):
        exact += map(torch.from_numpy, (*group.previews.images, *group.images))
    return [_digest(value) for value in exact]


def _floats(group: ScoredGroup) -> list[float]:
    """Return the other numbers of the group's rollouts."""
    return [x for name, value in _tensors(group) if not _is_exact(name, value) for x in value.flatten().tolist()]


def _is_exact(name: str, value: Tensor) -> bool:
    return not value.is_floating_point() or name.startswith("uniform")


def _tensors(group: ScoredGroup) -> list[tuple[str, Tensor]]:
    segments: list[Any] = [segment for rollout in group.rollouts for segment in rollout.segments]
    found = [(one.name, getattr(segment, one.name)) for segment in segments for one in fields(segment)]
    return [(name, value) for name, value in found if isinstance(value, Tensor)]


def _digest(tensor: Tensor) -> str:
    return hashlib.blake2b(tensor.detach().cpu().contiguous().numpy().tobytes(), digest_size=8).hexdigest()


# -- comparing -------------------------------------------------------------------------------------------------------


def measure(one: Path, two: Path, batch_size: int, *, split: bool = False) -> Figures:
    """Return the figures of two directories that `run_case` wrote, with `batch_size` previews a batch.

    `split`: the two ranks shared one copy of the policy.

    A difference is infinite where only one run has a figure, a tensor or a draw.
    """
    rounded = [name for name in ROUNDED if not (split and name in COSINES)]
    alone, both = (json.loads((run / "trace.json").read_text()) for run in (one, two))
    (single,), parts = alone["steps"], both["steps"]
    return Figures(
        codes=_of_all(parts, "codes") == [step["codes"] for step in single],
        thresholds=alone["thresholds"] == both["thresholds"] and _equal(single, parts, "thresholds"),
        advantages=_equal(single, parts, "advantages"),
        records=lines(one, *ROUNDED) == lines(two, *ROUNDED),
        draw_difference=max(_draw_differences(_of_all(parts, "draws"), [step["draws"] for step in single])),
        rounded_difference=max(_rounded_differences(lines(one), lines(two), rounded)),
        gradient_difference=max(_gradient_differences(one, two)),
        weight_difference=max(_weight_differences(one, two)),
        ranks_agree=both["ranks_agree"],
        batches=tuple(tuple(_batches(part, batch_size) for part in step) for step in _by_step(parts)),
        skipped=sum(line["skipped"] for line in lines(one)),
        textless=sum(sum(step["textless"]) for step in single),
    )


def _by_step(parts: Sequence[Sequence[Any]]) -> list[tuple[Any, ...]]:
    """Return the records of all ranks for each step."""
    return list(zip(*parts, strict=True))


def _equal(single: Sequence[Any], parts: Sequence[Sequence[Any]], key: str) -> bool:
    """Return whether every rank recorded what the single process did, in every step."""
    return all([step[key] for step in part] == [step[key] for step in single] for part in parts)


def _of_all(parts: Sequence[Sequence[Any]], key: str) -> list[dict[str, Any]]:
    """Return what each rank recorded of its own groups, of all groups, for each step."""
    return [{group: found for part in step for group, found in part[key].items()} for step in _by_step(parts)]


def _draw_differences(one: Sequence[Mapping[str, Any]], two: Sequence[Mapping[str, Any]]) -> Iterator[float]:
    for ours, theirs in zip(one, two, strict=True):
        for group, numbers in ours.items():
            other = theirs.get(group, [])
            same = len(numbers) == len(other)
            yield max(abs(x - y) for x, y in zip(numbers, other, strict=True)) if same else math.inf


def _batches(step: Mapping[str, Any], size: int) -> int:
    """Return how many batches of previews a rank drew in a step."""
    return sum(math.ceil(step["drawn"][int(group)] / size) for group in step["codes"])


def _rounded_differences(
    one: Sequence[Mapping[str, Any]], two: Sequence[Mapping[str, Any]], names: Sequence[str]
) -> Iterator[float]:
    for ours, theirs in zip(one, two, strict=True):
        for name in names:
            own, other = (one if isinstance(one, list) else [one] for one in (ours[name], theirs[name]))
            if [x is None for x in own] != [x is None for x in other]:
                yield math.inf
                continue
            pairs = [(x, y) for x, y in zip(own, other, strict=True) if x is not None]
            most = max([FIGURE_FLOOR, *(abs(x) for x, _ in pairs)])
            yield from (abs(y - x) / most for x, y in pairs)


def _gradient_differences(one: Path, two: Path) -> Iterator[float]:
    ours, theirs = _gradients(one), _gradients(two)
    if ours.keys() != theirs.keys():
        yield math.inf
        return
    largest: dict[str, float] = {}
    for name, grad in ours.items():
        step = name.split("/")[0]
        largest[step] = max(largest.get(step, 0.0), float(grad.abs().max()))
    for name, grad in ours.items():
        size = max(float(grad.abs().max()), GRADIENT_FLOOR * largest[name.split("/")[0]])
        yield float((theirs[name] - grad).abs().max()) / size if size else float(theirs[name].abs().max())


def _gradients(run: Path) -> dict[str, Tensor]:
    """Return "step/name" -> the gradient before it was clipped, by the norm that the run recorded."""
    norms = {line["step"]: line["grad_norm"] for line in lines(run)}
    found = load_file(run / "gradients.safetensors")
    return {key: grad * max(1.0, norms[int(key.split("/")[0])] / MAX_GRAD_NORM) for key, grad in found.items()}


def _weight_differences(one: Path, two: Path) -> Iterator[float]:
    ours, theirs = last_tensors(one), last_tensors(two)
    if ours.keys() != theirs.keys():
        yield math.inf
        return
    for name, tensor in ours.items():
        yield float((theirs[name] - tensor).abs().max())


def last_tensors(run: Path) -> dict[str, Tensor]:
    """Return every tensor of a run's last checkpoint."""
    found = checkpoint.latest(run / "checkpoints")
    assert found is not None
    return load_file(found / "tensors.safetensors")
