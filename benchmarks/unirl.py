"""What reinforcement learning teaches the small models in UniRL-Zero's scenarios, each against the start.

    make up CONFIG=deploy/configs/unirl_zero_embedded.toml && python -m benchmarks.unirl
    python -m benchmarks.unirl --only reasoning       # parts of it, into the same file

    questions   scenario 2: --steps of 2 x 8 answers, yes or no, to questions about images, and the same on rewards
                permuted within each group
    reasoning   scenario 5: the language model says where everything is, and the image is drawn from both; trained
                together, the language model alone, and the image model alone
    edits       scenario 4: edits that are edited back, with both similarities at guidance 1, 3, 5 and 7
    reflection  scenario 6: a verdict on an image, which is then redrawn by its feedback

Edits and reflection start from a policy that reads a source image, --editor. Every part is written into OUT when it is
finished, next to the others; the first held-out images before and after a training are next to OUT as PNG. Held-out
images are drawn by the ODE, with the same random numbers before and after. The same command skips what is finished and
continues what was started; Ctrl-C, SIGTERM and --hours stop it.

Minutes of one core, next to another training: questions 4, reasoning 20 for each arm that trains the image model and 5
for the language model alone, edits 40, reflection 20.
"""

from __future__ import annotations

import argparse
import math
import shutil
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import closing
from dataclasses import asdict
from pathlib import Path
from typing import Final

import numpy as np

from benchmarks import flow, unirl_data
from benchmarks.arguments import count, exit_with
from benchmarks.arms import Tree
from benchmarks.dgs import open_service
from benchmarks.flow import Measure, Part
from benchmarks.learning import figures
from benchmarks.measures import changes, to_document
from synod.contracts import Pixels
from synod.errors import SettingsError
from trainer.evaluate.compare import Evaluation, Paired, Row, compare, matched, summary
from trainer.evaluate.heldout import AFTER, BEFORE, evaluate, held_out, load_evaluation, save_evaluation
from trainer.policy.base import Policy
from trainer.report.metrics import read
from trainer.run import make_policy
from trainer.settings import TrainerSettings
from trainer.types import Task

ROOT: Final = Path(__file__).resolve().parents[1]
STEPS: Final = {"questions": 60, "reasoning": 100, "edits": 60, "reflection": 100}
TRAINED_ON: Final = 1000  # lines of a training file
ANSWERING: Final[Tree] = {"policy": {"trains": ("text",)}, "loss": {"image": {"lr": None}}}  # the language model alone
ARMS: Final[Mapping[str, Tree]] = {
    "together": {},
    "language model alone": ANSWERING,
    "image model alone": {"policy": {"trains": ("image",)}, "loss": {"text": {"lr": None}}},
}
GUIDANCE: Final = (1.0, 3.0, 5.0, 7.0)
EDITED: Final = ("clip_direction", "like_source")  # similarities of the edited image: to the edit, and to its source
EDITING: Final[Tree] = {
    "policy": {"edits": True, "language": None},
    "rewards": {
        "terms": (
            {"scorer": "clip_direction", "weight": 4.0},
            {"of": "cycled", "scorer": "clip_i"},
            {"scorer": "like_source", "weight": 0.0},
        )
    },
    "loss": {"image": {"beta": 3e-4}, "text": {"lr": None}},
}


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure the parts that are not finished; exit status 0: all that were asked for are."""
    return flow.measure(_parser().parse_args(arguments), PARTS)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.unirl", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    steps = ", ".join(f"{name} {number}" for name, number in STEPS.items())
    parser.add_argument("--only", nargs="+", choices=PARTS, default=list(PARTS), metavar="PART", help=", ".join(PARTS))
    parser.add_argument("--steps", type=count, help=f"of each training ({steps})")
    parser.add_argument("--prompts", type=count, default=400, help="held-out prompts, before and after (400)")
    parser.add_argument("--hours", type=float, default=math.inf, help="stop after this time")
    parser.add_argument("--config", type=Path, default=ROOT / "deploy/configs/unirl_zero_embedded.toml")
    parser.add_argument("--editor", type=Path, default=ROOT / "build/weights/sana-editor", help="(%(default)s)")
    parser.add_argument("--url", help="the service (default: the settings')")
    parser.add_argument("--runs", type=Path, default=ROOT / "runs/unirl", help="where data and runs go")
    parser.add_argument("--out", type=Path, default=ROOT / "benchmarks/results/unirl.json")
    return parser


def _settings(options: argparse.Namespace, part: str, run_dir: Path, *changed: Tree) -> TrainerSettings:
    own: Tree = {"steps": options.steps or STEPS[part], "evaluate": {"prompts": options.prompts}}
    return flow.settings_of(options, run_dir, own, *changed)


def _run(
    options: argparse.Namespace,
    settings: TrainerSettings,
    deadline: float,
    *,
    permuted: bool = False,
    policy: Policy | None = None,
) -> tuple[Evaluation, Evaluation] | None:
    """Train one run; return the evaluations before and after it, or None if it was stopped."""
    if not flow.train(settings, options.runs, deadline, permuted=permuted, policy=policy):
        return None
    return load_evaluation(settings.run_dir / BEFORE), load_evaluation(settings.run_dir / AFTER)


def _data(options: argparse.Namespace, task: str) -> Tree:
    """Write the files of a task, and return the settings that name them."""
    folder = options.runs / "data"
    train = unirl_data.write(folder, task, "train", TRAINED_ON).resolve()
    heldout = unirl_data.write(folder, task, "heldout", options.prompts).resolve()
    return {"task": task, "prompts": train, "heldout": heldout}


def _of(both: tuple[Evaluation, Evaluation], value: Callable[[Row], float | None]) -> Paired:
    return compare(matched(*both), value)


def _up(change: Paired) -> bool:
    return change.verdict == "up"


def _recorded(run_dir: Path, both: tuple[Evaluation, Evaluation]) -> Part:
    """Return what a training recorded, the changes of held-out images, and how long its replies were."""
    lengths = [record["reply_length"] for record in read(run_dir) if record["reply_length"] is not None]
    return {
        **figures(run_dir),
        "heldout": to_document(changes(*both)),
        "reply characters, first and last 10 steps": [summary(part).mean for part in (lengths[:10], lengths[-10:])],
    }


def train_questions(options: argparse.Namespace, deadline: float) -> Part | None:
    """Train on whether an answer is right, and on permuted rewards."""
    found: dict[str, Part] = {}
    right: dict[str, Paired] = {}
    own: Tree = {
        "data": _data(options, "questions"),
        "rewards": {"terms": ({"of": "answer", "scorer": "recognition"},)},
    }
    for name in ("rewards", flow.CONTROL):
        run_dir = options.runs / f"questions-{name}"
        settings = _settings(options, "questions", run_dir, ANSWERING, own)
        both = _run(options, settings, deadline, permuted=name == flow.CONTROL)
        if both is None:
            return None
        right[name] = _of(both, lambda row: row.components.get("recognition"))
        found[name] = {**_recorded(run_dir, both), "right": asdict(right[name])}
    gained = right["rewards"].difference
    verdicts = {
        "10 points more are right": None if gained is None else gained >= 0.1 and _up(right["rewards"]),
        "control within 2 errors of 0": right[flow.CONTROL].verdict == "",
    }
    return {**found, "verdicts": verdicts}


def train_reasoning(options: argparse.Namespace, deadline: float) -> Part | None:
    """Train both models, and each alone."""
    found: dict[str, Part] = {}
    soft: dict[str, Paired] = {}
    formatted: dict[str, float | None] = {}
    for name, arm in ARMS.items():
        run_dir = options.runs / f"reasoning-{name.replace(' ', '-')}"
        both = _run(options, _settings(options, "reasoning", run_dir, arm), deadline)
        if both is None:
            return None
        soft[name] = _of(both, lambda row: row.components.get("geneval"))
        after = _of(both, lambda row: row.components.get("format")).after
        formatted[name], found[name] = after.mean, {**_recorded(run_dir, both), "format after": after.mean}
        if name == "together":
            flow.show(run_dir, options.out.with_name("unirl_reasoning.png"))
    in_format = formatted["together"]
    verdicts = {
        "95 % in the format": None if in_format is None else in_format >= 0.95,
        "soft score up by 2 errors": _up(soft["together"]),
    }
    return {**found, "verdicts": verdicts}


def train_edits(options: argparse.Namespace, deadline: float) -> Part | None:
    """Train cycle edits; return the change of the reward, and both similarities by guidance before and after.

    Raises SettingsError if the run is finished, but its trained policy is missing.
    """
    run_dir = options.runs / "edits"
    trained = run_dir / "trained"
    if (run_dir / AFTER).exists() and not trained.exists():
        raise SettingsError(
            f"{run_dir / AFTER} exists, so the run is finished, but {trained} does not: its trained policy is lost; "
            f"remove {run_dir} to train again"
        )
    own: Tree = {"data": _data(options, "edits"), "policy": {"model": str(options.editor.resolve())}}
    settings = _settings(options, "edits", run_dir, own, EDITING)
    policy = make_policy(settings)
    both = _run(options, settings, deadline, policy=policy)
    if both is None:
        return None
    if not trained.exists():
        save_whole(policy, trained)
    curves: dict[str, list[list[float]]] = {}
    for name, model in (("before", options.editor), ("after", trained)):
        curves[name] = []
        for guidance in GUIDANCE:
            drawn: Tree = {"policy": {"model": str(model.resolve()), "sampler": {"guidance_scale": guidance}}}
            at = _settings(options, "edits", run_dir, own, EDITING, drawn)
            path = run_dir / f"{name}-{guidance}.json"
            if not path.exists():
                if time.monotonic() >= deadline:
                    return None
                with closing(open_service(at)) as service:
                    save_evaluation(path, evaluate(make_policy(at), service, held_out(at), at, f"{name}, {guidance}"))
            rows = load_evaluation(path).rows
            curves[name].append([summary(row.components.get(one) for row in rows).mean or math.nan for one in EDITED])
    reward = _of(both, lambda row: row.reward)
    flow.show(run_dir, options.out.with_name("unirl_edits.png"), _sources(held_out(settings)))
    verdicts = {
        "reward up by 2 errors": _up(reward),
        "curve above at 3 of 4": above(curves["before"], curves["after"]) >= 3,
    }
    by_guidance = {name: dict(zip(map(str, GUIDANCE), curve, strict=True)) for name, curve in curves.items()}
    return {
        **_recorded(run_dir, both),
        "reward": asdict(reward),
        "similarities": {"of": list(EDITED), "by guidance": by_guidance},
        "verdicts": verdicts,
    }


def save_whole(policy: Policy, directory: Path) -> None:
    """Save a policy under another name, then rename it: if the directory exists, it has the whole policy."""
    partial = directory.with_name(f"{directory.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    policy.save(partial)
    partial.rename(directory)


def above(before: Sequence[Sequence[float]], after: Sequence[Sequence[float]]) -> int:
    """Return how many points (edit, source) of the first curve lie below the second at the same likeness to the source.

    Beyond its ends the second curve is continued with the value there.
    """
    ordered = sorted((source, edit) for edit, source in after)
    at, values = zip(*ordered, strict=True)
    return sum(bool(np.interp(source, at, values) > edit) for edit, source in before)


def train_reflection(options: argparse.Namespace, deadline: float) -> Part | None:
    """Train verdicts and redrawn images; return the shares of right verdicts and of corrected images."""
    run_dir = options.runs / "reflection"
    own: Tree = {
        "data": _data(options, "reflection"),
        "policy": {"model": str(options.editor.resolve()), "edits": True},
        "rewards": {"terms": ({"scorer": "geneval"}, {"of": "answer", "scorer": "reflection"})},
    }
    settings = _settings(options, "reflection", run_dir, own)
    both = _run(options, settings, deadline)
    if both is None:
        return None
    tasks = held_out(settings)
    wrong = [not task.truth[0] for task in tasks]
    right = _of(both, lambda row: None if row.right is None else float(row.right))
    corrected = _of(_where(both, wrong), lambda row: row.official)
    kept = _of(_where(both, [not one for one in wrong]), lambda row: row.official)
    flow.show(run_dir, options.out.with_name("unirl_reflection.png"), _sources(tasks))
    accuracy = right.after.mean
    verdicts = {
        "verdicts 5 points better, or 95 % right": None
        if accuracy is None or right.difference is None
        else accuracy >= 0.95 or right.difference >= 0.05,
        "more wrong images corrected, by 2 errors": _up(corrected),
    }
    shares = {"verdicts": asdict(right), "wrong images": asdict(corrected), "right images": asdict(kept)}
    return {**_recorded(run_dir, both), "right": shares, "verdicts": verdicts}


def _sources(tasks: Sequence[Task]) -> list[Pixels]:
    """Return the images that the first turn of each task edits."""
    found = [task.draws[0].source for task in tasks]
    return [one for one in found if isinstance(one, np.ndarray)]


def _where(both: tuple[Evaluation, Evaluation], chosen: Sequence[bool]) -> tuple[Evaluation, Evaluation]:
    """Return the chosen rows of both evaluations."""
    before, after = (
        Evaluation(one.conditions, tuple(row for row, taken in zip(one.rows, chosen, strict=True) if taken))
        for one in both
    )
    return before, after


PARTS: Final[Mapping[str, Measure]] = {
    "questions": train_questions,
    "reasoning": train_reasoning,
    "edits": train_edits,
    "reflection": train_reflection,
}


if __name__ == "__main__":
    exit_with(main)
