"""What the small flow-matching model can do, and what Flow-GRPO teaches it, each against a control.

    make up CONFIG=deploy/configs/embedded_flow.toml && python -m benchmarks.flow
    python -m benchmarks.flow --only jpeg rho            # parts of it, into the same file

    start    how often the start is right by GenEval's rules, drawn by the ODE (20 steps) and by the SDE of the training
    jpeg     40 steps of 2 x 8 images towards small and towards large JPEG files, and towards small ones with advantages
             that are not divided by their group's deviation
    geneval  --steps of 4 x 8 images on GenEval's soft score, and the same with rewards permuted within each group
    rho      how well the score of a preview x - t v foretells that of the finished image, by denoising step

Every part is written into OUT when it is finished, next to the others; the first held-out images of a training before
and after it are next to OUT as PNG. Held-out images are drawn by the ODE, with the same prompts and random numbers
before and after. The same command skips what is finished and continues what was started; Ctrl-C, SIGTERM and --hours
stop it.

Time on two idle cores, for 5 x 160: start 3 minutes, jpeg 3 x 5, geneval 2 x 45 for 200 steps, rho 15.
"""

from __future__ import annotations

import argparse
import json
import math
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import closing
from dataclasses import asdict
from pathlib import Path
from typing import Any, Final

from benchmarks import screening_table
from benchmarks.arguments import count, exit_with
from benchmarks.arms import Permuted, Tree, merged
from benchmarks.dgs import open_service
from benchmarks.grid import before_after
from benchmarks.learning import figures
from benchmarks.machine import command, commit, machine
from benchmarks.measures import changes, to_document
from benchmarks.resumable import finish
from benchmarks.screening_rho import Plan, markdown, table
from benchmarks.timed import FACTS, facts_of, keep_facts, train_timed
from synod.contracts import Pixels
from trainer.data.source import heldout_tasks
from trainer.evaluate.compare import Evaluation, Paired, compare, matched, summary
from trainer.evaluate.heldout import AFTER, BEFORE, evaluate, held_out, load_evaluation, save_evaluation
from trainer.images import write_whole
from trainer.policy.base import Policy
from trainer.rewards.base import RewardBackend
from trainer.run import make_policy
from trainer.settings import TrainerSettings, load

ROOT: Final = Path(__file__).resolve().parents[1]
CONFIG: Final = ROOT / "deploy/configs/embedded_flow.toml"
KB: Final = "larger"  # the scorer whose score is a JPEG's kB
JPEG: Final[Mapping[str, Tree]] = {
    "smaller": {"rewards": {"scorers": {"smaller": 1.0, KB: 0.0}}},
    "larger": {"rewards": {"scorers": {KB: 1.0}}},
    "smaller, not normalised": {
        "rewards": {"scorers": {"smaller": 1.0, KB: 0.0}},
        "loss": {"normalise": "none"},
    },
}
JPEG_STEPS: Final = 40
GENEVAL: Final[Tree] = {"rewards": {"scorers": {"geneval": 1.0}}, "optimizer": {"lr": 2e-4}, "prompts_per_step": 4}
CONTROL: Final = "permuted"
SAMPLERS: Final[Mapping[str, int]] = {"ODE": 20, "SDE": 0}  # evaluation_steps; 0: as training draws
START_BATCH: Final = 24
RHO: Final = Plan(rollouts=16, steps=(1, 2, 3, 4, 5, 7, 9), completions=4, scorer=KB)
SHOWN: Final = 16  # prompts in a PNG
Part = dict[str, Any]
Measure = Callable[[argparse.Namespace, float], Part | None]  # None: stopped at the deadline


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure the parts that are not finished; exit status 0: all that were asked for are."""
    return measure(_parser().parse_args(arguments), PARTS)


def measure(options: argparse.Namespace, parts: Mapping[str, Measure]) -> int:
    """Measure the parts that were asked for, in order; return the exit status, 0 if all are finished."""
    deadline = time.monotonic() + 3600 * options.hours

    def work() -> bool:
        for name in options.only:
            found = parts[name](options, deadline)
            if found is None:
                return False
            _write(options.out, name, found)
        return True

    return finish(options.runs, work)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.flow", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--only", nargs="+", choices=PARTS, default=list(PARTS), metavar="PART", help=", ".join(PARTS))
    parser.add_argument("--steps", type=count, default=200, help="steps of `geneval` (200)")
    parser.add_argument("--prompts", type=count, help="held-out images: start 500, jpeg 100, geneval 1000, rho 48")
    parser.add_argument("--hours", type=float, default=math.inf, help="stop after this time")
    parser.add_argument("--config", type=Path, default=CONFIG)
    parser.add_argument("--url", help="the service (default: the settings')")
    parser.add_argument("--runs", type=Path, default=ROOT / "runs/flow", help="where runs and evaluations go")
    parser.add_argument("--out", type=Path, default=ROOT / "benchmarks/results/flow.json")
    return parser


def settings_of(options: argparse.Namespace, run_dir: Path, *changes: Tree) -> TrainerSettings:
    """Return the settings of a run with other values.

    The scorers of `rewards` replace those of the file, and so does the table `data`.
    """
    url: Tree = {"rewards": {"url": options.url}} if options.url else {}
    tree = merged(load(options.config).model_dump(), url, *changes, {"run_dir": run_dir.resolve()})
    for change in changes:
        if scorers := change.get("rewards", {}).get("scorers"):
            tree["rewards"]["scorers"] = dict(scorers)
        if data := change.get("data"):
            tree["data"] = dict(data)
    return TrainerSettings.model_validate(tree)


def _write(path: Path, name: str, found: Part) -> None:
    """Put a part into the file, with what it was measured by."""
    whole = json.loads(path.read_text()) if path.exists() else {}
    whole[name] = {"command": command(), "commit": commit(), "machine": machine(), **found}
    write_whole(path, (json.dumps(whole, indent=1, allow_nan=False) + "\n").encode())
    print(json.dumps(found.get("verdicts", {}), indent=1))


# -- the start ---------------------------------------------------------------------------------------------------------


def measure_start(options: argparse.Namespace, deadline: float) -> Part | None:
    """Return GenEval's verdicts on the start, by sampler and tag."""
    folder = options.runs / "start"
    found: dict[str, Part] = {}
    for name, steps in SAMPLERS.items():
        own: Tree = {
            "rewards": {"scorers": {"geneval": 1.0, KB: 0.0}},
            "policy": {"sampler": {"evaluation_steps": steps}},
            "screen": {"preview_batch_size": START_BATCH},
            "evaluate": {"prompts": options.prompts or 500},
        }
        settings = settings_of(options, folder, own)
        path = folder / f"{name}.json"
        policy = make_policy(settings)
        facts = facts_of(settings, policy, ())
        keep_facts(folder / f"{name}-{FACTS}", facts)
        if not path.exists():
            if time.monotonic() >= deadline:
                return None
            with closing(open_service(settings)) as service:
                save_evaluation(path, evaluate(policy, service, held_out(settings), settings, name))
        found[name] = _verdicts_of(load_evaluation(path))
    right = found["SDE"]["official"]["mean"]
    return {**found, "verdicts": {"15 to 60 % under the SDE": None if right is None else 0.15 <= right <= 0.6}}


def _verdicts_of(evaluation: Evaluation) -> Part:
    rows = evaluation.rows
    return {
        "official": asdict(summary(row.official for row in rows)),
        "soft": asdict(summary(row.reward for row in rows)),
        "kB": asdict(summary(row.components.get(KB) for row in rows)),
        "official by tag": {
            tag: asdict(summary(row.official for row in rows if row.tag == tag))
            for tag in dict.fromkeys(row.tag for row in rows)
        },
    }


# -- training ----------------------------------------------------------------------------------------------------------


def train_jpeg(options: argparse.Namespace, deadline: float) -> Part | None:
    """Train on the size of files, three times; return the changes of held-out sizes."""
    found: dict[str, Part] = {}
    sizes: dict[str, Paired] = {}
    for name, arm in JPEG.items():
        own = {"steps": JPEG_STEPS, "evaluate": {"prompts": options.prompts or 100}}
        run_dir = options.runs / f"jpeg-{name.replace(', ', '-').replace(' ', '-')}"
        settings = settings_of(options, run_dir, own, arm)
        if not train(settings, options.runs, deadline):
            return None
        sizes[name] = _sizes(run_dir)
        found[name] = {**figures(run_dir), "kB": asdict(sizes[name])}
        if name in ("smaller", "larger"):
            show(run_dir, options.out.with_name(f"flow_jpeg_{name}.png"))
    return {**found, "verdicts": jpeg_verdicts(sizes)}


def _sizes(run_dir: Path) -> Paired:
    pairs = matched(load_evaluation(run_dir / BEFORE), load_evaluation(run_dir / AFTER))
    return compare(pairs, lambda row: row.components.get(KB))


def jpeg_verdicts(sizes: Mapping[str, Paired]) -> dict[str, bool | None]:
    """Return what the trainings on sizes show; None where it was not measured."""
    smaller, larger, plain = (sizes[name] for name in JPEG)
    small, large, unnormalised = (_relative(one) for one in (smaller, larger, plain))
    return {
        "smaller by 15 % and 5 errors": None if small is None else small <= -0.15 and _errors(smaller) < -5,
        "larger by 15 % and 5 errors": None if large is None else large >= 0.15 and _errors(larger) > 5,
        "not normalised: less than a third": None
        if small is None or unnormalised is None
        else abs(unnormalised) < abs(small) / 3,
    }


def _relative(change: Paired) -> float | None:
    if change.difference is None or not change.before.mean:
        return None
    return change.difference / change.before.mean


def _errors(change: Paired) -> float:
    """Return a change in standard errors; 0 if it has none."""
    return change.difference / change.stderr if change.difference is not None and change.stderr else 0.0


def train_geneval(options: argparse.Namespace, deadline: float) -> Part | None:
    """Train on GenEval's soft score, and on permuted rewards; return the changes of held-out images."""
    found: dict[str, Part] = {}
    soft: dict[str, Paired] = {}
    for name in ("rewards", CONTROL):
        own = {"steps": options.steps, "evaluate": {"prompts": options.prompts or 1000}}
        run_dir = options.runs / f"geneval-{name}"
        settings = settings_of(options, run_dir, own, GENEVAL)
        if not train(settings, options.runs, deadline, permuted=name == CONTROL):
            return None
        before, after = load_evaluation(run_dir / BEFORE), load_evaluation(run_dir / AFTER)
        soft[name] = compare(matched(before, after), lambda row: row.reward)
        found[name] = {**figures(run_dir), "heldout": to_document(changes(before, after))}
        if name == "rewards":
            show(run_dir, options.out.with_name("flow_geneval.png"))
    verdicts = {
        "soft score up by 2 errors": _errors(soft["rewards"]) > 2,
        "control within 2 errors of 0": abs(_errors(soft[CONTROL])) <= 2,
    }
    return {**found, "verdicts": verdicts}


def train(
    settings: TrainerSettings, runs: Path, deadline: float, *, permuted: bool = False, policy: Policy | None = None
) -> bool:
    """Train and evaluate one run, from its checkpoint if there is one; return whether it is complete.

    `policy` is the one to train, by default that of the settings. A request for rewards holds a whole group, so that
    `Permuted` permutes within groups.
    """
    assert settings.reward_batch_size == settings.screen.group_size, "a group is one request"
    with closing(open_service(settings)) as service:
        trained_on: RewardBackend = Permuted(service, settings.seed) if permuted else service
        return train_timed(
            settings,
            policy or make_policy(settings),
            service,
            [math.inf],
            trained_on=trained_on,
            deadline=deadline,
            starts=runs / "starts",
        )


def show(run_dir: Path, path: Path, sources: Sequence[Pixels] = ()) -> None:
    """Write the first held-out images before and after a run, next to their sources if there are any."""
    before_after(run_dir, SHOWN, sources=sources).save(path, optimize=True)


# -- previews ----------------------------------------------------------------------------------------------------------


def measure_previews(options: argparse.Namespace, deadline: float) -> Part | None:
    """Return the correlations of scores of previews with those of their ends: GenEval's soft score, and kB."""
    settings = settings_of(options, options.runs / "rho", {"rewards": {"scorers": {"geneval": 1.0}}})
    steps = tuple(step for step in RHO.steps if step < settings.policy.image_steps)
    plan = Plan(RHO.rollouts, steps, RHO.completions, RHO.scorer)
    tasks, folder = heldout_tasks(settings, 1, options.prompts or 48), options.runs / "rho"
    policy: Policy = make_policy(settings)
    facts = {**facts_of(settings, policy, ()), "plan": [plan.rollouts, list(plan.steps), plan.completions, plan.scorer]}
    keep_facts(folder / FACTS, facts)
    with closing(open_service(settings)) as service:
        found = list(screening_table.measure_all(policy, service, tasks, plan, 1, folder, deadline))
    if len(found) < len(tasks):
        return None
    cells = table(found, plan)
    text = markdown(cells)
    write_whole(options.out.with_name("flow_rho.md"), (text + "\n").encode())
    print(text)
    return {**cells, "verdicts": rho_verdicts(cells, settings.policy.image_steps)}


def rho_verdicts(cells: Mapping[str, Any], total: int) -> dict[str, bool | None]:
    """Return whether previews at 0.2 to 0.4 of the steps foretell the reward, by Spearman's correlation above .5."""
    early = [
        cell["spearman"]
        for cell in cells["correlations"]
        if (cell["task"], cell["surrogate"], cell["target"]) == ("all", "reward", "reward")
        and 0.2 <= cell["step"] / total <= 0.4
    ]
    return {"above .5 at 0.2 to 0.4 T": max(early) > 0.5 if early else None}


PARTS: Final[Mapping[str, Measure]] = {
    "start": measure_start,
    "jpeg": train_jpeg,
    "geneval": train_geneval,
    "rho": measure_previews,
}


if __name__ == "__main__":
    exit_with(main)
