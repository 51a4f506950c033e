"""Train the unseen concepts of the embedded world in arms, and measure each after every stage.

    python -m benchmarks.personalization --only stages --minutes 60
    python -m benchmarks.personalization --summary                      only the summary of all finished arms

Groups of arms, with the CPU minutes of one seed, measuring included (estimates: 4 to train a concept, 3 to measure it):

    stages      stages 1, 2 and 3 of the six concepts, with drawing from knowledge           6 arms    45 minutes
    no_stage_1  the same without stage 1: stage 2 from untrained rows                        6 arms    25 minutes
    regions     Table 3 of UniCTokens: five starts of stage 3, three concepts               15 arms   100 minutes
    tokens      Fig. 10: 0, 1, 4, 8, 16 and 32 soft tokens, three concepts                  18 arms   120 minutes
    grid        Fig. 6, left: a third to 3 times the epochs, 3 to 12 images, no stage 3     27 arms   150 minutes
    geneval     Fig. 7: 480 prompts of GenEval before and after each stage, one concept      1 arm     12 minutes
    ablations   Tables 2, 3, 6 of Sync-R1, six concepts an arm; needs `make up`             11 arms   165 minutes

Measured elsewhere: the columns of UnifyBench and UnifyBench++ by benchmarks.personal_suites (15 minutes), one step at
full size by benchmarks.personal_real_size, and the base itself by `make weights` (90).

An arm is one concept, one seed and some settings. Its result is one JSON in a directory with the name of OUT without
its suffix, and an arm that has one is not run again: the same command continues after any stop. `--minutes` begins no
arm after so long. The CPU time of a stage that was stopped and resumed is unknown, null. An arm of "ablations" is all
concepts, one seed and --steps (`benchmarks.personalization.ablations`). A result that was made with other settings, by
--config or the environment, is refused, and so are arms of two base models. The summary has all arms with a result,
whatever --only says, and under "earlier" those of the last summary whose results are not there; images of "stages" are
next to it.

Facts that only text states are measured by the detector's accessory pixels; chance is .1, and "clear" prompts say the
colour themselves. "no rows" calls the concept by its class.
"""

from __future__ import annotations

import argparse
import json
import math
import shutil
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, Final

import numpy as np
import torch

from benchmarks.machine import command, commit, machine
from benchmarks.personalization.ablations import Ablation, ablations, facts_of, run_ablation, tables
from benchmarks.personalization.general import General, judge
from benchmarks.personalization.measure import Figures, Meter, drawn
from benchmarks.personalization.page import stages_page
from benchmarks.timed import check_facts
from embedded import world
from synod.errors import SettingsError
from trainer.checkpoint import flattened
from trainer.images import write_whole
from trainer.personalize.files import load_into
from trainer.personalize.records import ConceptRecord
from trainer.personalize.run import load_base, only_concept, personalize
from trainer.personalize.tokens import base_digest, remove
from trainer.policy.show_o.policy import ShowO
from trainer.settings import PersonalizeSettings, load_personalize

ROOT: Final = Path(__file__).resolve().parents[2]
CONFIG: Final = ROOT / "deploy/configs/personalize.toml"
EMBEDDED: Final = ROOT / "deploy/configs/embedded.toml"  # has GenEval's scorer
UNIFY: Final = ROOT / "embedded/data/unify"
NAMES: Final = tuple(profile.name.strip("<>") for profile in world.UNSEEN)
FEW: Final = ("uma", "taz", "vale")  # one of each kind, for arms that repeat a training several times
GROUPS: Final = ("stages", "no_stage_1", "regions", "tokens", "grid", "geneval")
ABLATIONS: Final = "ablations"
KNOWLEDGE: Final = ("stages", "no_stage_1")  # groups whose images of facts are measured
OTHERS: Final = ["a photo of a red car", "a photo of two dogs", "a photo of a person on the beach"]


@dataclass(frozen=True)
class Arm:
    """One training: `changes` are settings by name, `epochs` a factor of all stages' epochs."""

    group: str
    name: str
    concept: str
    seed: int
    changes: Mapping[str, Any] = field(default_factory=dict)
    epochs: float = 1.0
    photographs: int | None = None

    @property
    def key(self) -> str:
        """The name of its files."""
        return f"{self.group}-{self.name}-{self.concept}-{self.seed}"


def arms(group: str, seed: int) -> Iterator[Arm]:
    """Yield the arms of a group for one seed."""
    if group == "stages":
        yield from (Arm(group, "all", name, seed) for name in NAMES)
    elif group == "no_stage_1":
        changes = {"stages": [1, 2], "stage_1": {"epochs": 0}}
        yield from (Arm(group, "untrained", name, seed, changes) for name in NAMES)
    elif group == "geneval":
        yield Arm(group, "all", FEW[1], seed)
    elif group == "regions":
        for mode in ("paper", "public", "full_image", "random_patch", "none"):
            yield from (Arm(group, mode, name, seed, {"regions": mode}) for name in FEW)
    elif group == "tokens":
        for total in (0, 1, 4, 8, 16, 32):
            quarter = total // 4
            counts = {"shared": total - 2 * quarter, "generation": quarter, "understanding": quarter}
            yield from (Arm(group, f"{total:02d}", name, seed, {"tokens": counts}) for name in FEW)
    else:
        for factor in (1 / 3, 1.0, 3.0):
            for count in (3, 6, 12):
                label, changes = f"{factor:.1f}x-{count}", {"stages": [1, 2]}
                yield from (Arm(group, label, name, seed, changes, factor, count) for name in FEW)


def settings_of(arm: Arm, runs: Path, config: Path = CONFIG) -> PersonalizeSettings:
    """Return the settings of an arm; those of fewer photographs have a copy of the data."""
    table = load_personalize(config).model_dump()
    data = UNIFY if arm.photographs is None else fewer_photographs(runs, arm.photographs)
    table |= {"data": data / "concept/train" / arm.concept, "run_dir": runs / arm.key, "seed": arm.seed}
    for stage in ("stage_1", "stage_2", "stage_3"):
        table[stage]["epochs"] = max(1, round(arm.epochs * table[stage]["epochs"]))
    for key, value in arm.changes.items():
        table[key] = {**table[key], **value} if isinstance(value, Mapping) else value
    return PersonalizeSettings.model_validate(table)


def fewer_photographs(runs: Path, count: int) -> Path:
    """Return a copy of the data with the first `count` training images of each concept."""
    root, partial = runs / f"data-{count}", runs / f"data-{count}.partial"
    if root.exists():
        return root
    shutil.rmtree(partial, ignore_errors=True)
    shutil.copytree(UNIFY, partial)
    names = [f"{i}.png" for i in range(count)]
    (partial / "concept/train/train_images.json").write_text(json.dumps(dict.fromkeys(NAMES, names)))
    for name in NAMES:
        folder = partial / "concept/train" / name
        for path in (*folder.glob("*.png"), *(folder / "cropped").glob("*.png")):
            if path.name not in names:
                path.unlink()
        talks = json.loads((folder / "conversations.json").read_text())
        kept = {key: value for key, value in talks.items() if key in (*names, "text_only")}
        (folder / "conversations.json").write_text(json.dumps(kept))
    partial.rename(root)
    return root


def run_arm(arm: Arm, runs: Path, config: Path = CONFIG) -> dict[str, Any]:
    """Train and measure an arm: its figures without rows, and after each stage."""
    settings = settings_of(arm, runs, config)
    policy = load_base(settings)
    before = {key: value.clone() for key, value in policy.module.state_dict().items()}
    others = drawn(policy, OTHERS, arm.seed)
    concept = only_concept(settings.data)
    measure = _measure_of(arm, policy, concept)
    figures = {"no rows": measure(policy, f"the {concept.class_word}")}
    seconds: dict[str, float | None] = {}
    for number in settings.stages:
        began, resumed = time.process_time(), (settings.run_dir / f"stage-{number}").exists()
        done = settings.stages[: settings.stages.index(number) + 1]
        personalize(settings.model_copy(update={"stages": done}), log=_silent)
        seconds[f"stage {number}"] = None if resumed else round(time.process_time() - began, 1)
        if not (rows := settings.run_dir / f"stage-{number}" / "concept").exists():
            raise SystemExit(f"{arm.key} was stopped; the same command resumes it")
        load_into(policy, rows)
        found = measure(policy, concept.name)
        same = all(np.array_equal(a, b) for a, b in zip(others, drawn(policy, OTHERS, arm.seed), strict=True))
        remove(policy, concept.name)
        figures[f"stage {number}"] = found | {"other_prompts_equal": same, "base_equal": _equal(policy, before)}
    return {"arm": asdict(arm), "base": base_digest(policy), "figures": figures, "cpu_s": seconds}


def _measure_of(arm: Arm, policy: ShowO, concept: ConceptRecord) -> Callable[[ShowO, str], Figures]:
    """Return what measures a policy that calls the concept by a name."""
    if arm.group == "geneval":
        general = General(policy, judge(EMBEDDED), arm.seed)
        return lambda policy, _: general.measure(policy)
    meter = Meter(concept, arm.seed, CONFIG)
    return lambda policy, name: meter.measure(policy, name, knowledge=arm.group in KNOWLEDGE)


def _equal(policy: ShowO, before: Mapping[str, torch.Tensor]) -> bool:
    return all(torch.equal(value, before[key]) for key, value in policy.module.state_dict().items())


def _silent(message: str) -> None:
    """A benchmark prints its own lines."""


def read_results(results: Path) -> list[dict[str, Any]]:
    """Return the results of all finished arms. Raises SettingsError for arms of several base models."""
    found = {path: json.loads(path.read_text()) for path in sorted(results.glob("*.json"))}
    bases = {one.get("base"): path for path, one in found.items()}
    if len(bases) > 1:
        raise SettingsError(
            f"results of {len(bases)} base models, such as {', '.join(map(str, bases.values()))}; remove those of the "
            "former one, and its arms are measured again"
        )
    return list(found.values())


def summary(found: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Return mean, standard error over concepts and seeds, and n of every figure, by arm and stage."""
    values: dict[tuple[str, str, str], list[float]] = defaultdict(list)
    for one in found:
        name = f"{one['arm']['group']}/{one['arm']['name']}"
        for stage, figures in one["figures"].items():
            for figure, value in {**figures, "cpu_s": one["cpu_s"].get(stage)}.items():
                if value is not None:
                    values[name, stage, figure].append(float(value))
    table: dict[str, Any] = {}
    for (name, stage, figure), some in values.items():
        error = round(float(np.std(some, ddof=1)) / math.sqrt(len(some)), 4) if len(some) > 1 else None
        row = {"mean": round(float(np.mean(some)), 4), "error": error, "n": len(some)}
        table.setdefault(name, {}).setdefault(stage, {})[figure] = row
    return table


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the arms that have no result yet, and write the summary. Raises SettingsError for results of others."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.personalization",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    choices = (*GROUPS, ABLATIONS)
    parser.add_argument(
        "--only", choices=choices, action="append", help="groups; repeatable (default: all but the last)"
    )
    parser.add_argument("--seeds", type=int, default=1, help="seeds of each arm")
    parser.add_argument("--minutes", type=float, default=math.inf, help="begin no arm after so many minutes")
    parser.add_argument("--config", type=Path, default=CONFIG, help="settings of every arm; the environment overrides")
    parser.add_argument("--runs", type=Path, default=ROOT / "runs/personalization", help="where the trainings go")
    parser.add_argument(
        "--out",
        type=Path,
        default=ROOT / "benchmarks/results/personalization.json",
        help="the summary; results of arms go next to it (%(default)s)",
    )
    parser.add_argument("--steps", type=int, default=40, help="updates of Sync-GRPO in an arm of ablations (40)")
    parser.add_argument("--url", default="http://127.0.0.1:8000", help="the service that rewards them")
    parser.add_argument("--summary", action="store_true", help="run nothing; write the summary of finished arms")
    options = parser.parse_args(arguments)
    jobs, results = _jobs(options), options.out.with_suffix("")
    until = time.monotonic() + 60 * options.minutes
    for key, job in jobs.items():
        if (path := results / f"{key}.json").exists():
            check_facts(path, job.facts, json.loads(path.read_text()).get("facts", {}))
    read_results(results)  # a mixture is refused before anything is trained
    for key, job in jobs.items():
        path = results / f"{key}.json"
        if options.summary or path.exists() or time.monotonic() > until:
            continue
        print(f"{key}: training and measuring", flush=True)
        found = {**job.work(), "facts": job.facts}
        write_whole(path, (json.dumps(found, indent=1) + "\n").encode())
        print(json.dumps(found["figures"]), flush=True)
        read_results(results)
    left = sum(not (results / f"{key}.json").exists() for key in jobs)
    document = {"command": command(), "commit": commit(), "machine": machine(), "left": left}
    arms_now = summary(read_results(results))
    document |= {"arms": arms_now, "earlier": _earlier(options.out, arms_now)}
    document[ABLATIONS] = tables(results / ABLATIONS, options.seeds, options.steps)
    write_whole(options.out, (json.dumps(document, indent=1) + "\n").encode())
    if page := stages_page([options.runs / arm.key for arm in arms("stages", 0)]):
        page.quantize().save(options.out.with_suffix(".png"), optimize=True)
    print(f"{len(jobs) - left} of {len(jobs)} arms are done")
    return 0


def _earlier(out: Path, now: Mapping[str, Any]) -> dict[str, Any]:
    """Return the arms of the last summary that the present one lacks."""
    last = json.loads(out.read_text()) if out.exists() else {}
    return {name: one for name, one in {**last.get("earlier", {}), **last.get("arms", {})}.items() if name not in now}


@dataclass(frozen=True)
class Job:
    """What trains and measures an arm, and the settings that decide the result besides what the arm sets."""

    facts: Mapping[str, Any]
    work: Callable[[], dict[str, Any]]


def _jobs(options: argparse.Namespace) -> dict[str, Job]:
    """Return the job of each wanted arm, by the name of its result."""
    jobs: dict[str, Job] = {}
    runs = options.runs.resolve()
    table = load_personalize(options.config).model_dump(mode="json")
    free = {"data", "run_dir", "seed", "policy.model", "policy.vq"}  # a result has the digest of its base
    shared = {f"personalize.{key}": value for key, value in flattened(table, free).items()}
    for group in options.only or GROUPS:
        for seed in range(options.seeds):
            if group == ABLATIONS:
                for one in ablations(seed, options.steps):
                    work = partial(_run_ablation, one, runs, options.config, options.url)
                    jobs[f"{ABLATIONS}/{one.key}"] = Job(shared | facts_of(one), work)
            else:
                jobs |= {arm.key: Job(shared, partial(run_arm, arm, runs, options.config)) for arm in arms(group, seed)}
    return jobs


def _run_ablation(arm: Ablation, runs: Path, config: Path, url: str) -> dict[str, Any]:
    """Train and measure an arm that begins with the stages of the group "stages", or with rows of the class word."""
    untrained = {f"stage_{number}": {"epochs": 0} for number in (1, 2)}
    group, changes = ("stages", {}) if arm.trained_stages else ("class_word", untrained)
    starts = {name: Arm(group, "all", name, arm.seed, changes) for name in NAMES}
    return run_ablation(arm, {name: settings_of(one, runs, config) for name, one in starts.items()}, runs, url)


if __name__ == "__main__":
    raise SystemExit(main())
