"""The arms of Sync-R1's ablations on unseen concepts: Sync-GRPO on the rows that stages 1 and 2 have trained.

    components   the whole, and without understanding, visual or textual reasoning, or the screen
    start        rows before and after Sync-GRPO: those of the class word, and those of stages 1 and 2
    rewards      two, three and all terms of the ensemble

"full" is in each group. Settings are those of deploy/configs/embedded.toml, changed by deploy/configs/ablations.
"""

from __future__ import annotations

import json
import os
from collections import defaultdict
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np

from benchmarks.personalization.measure import Figures, Meter
from trainer.checkpoint import fingerprint
from trainer.images import write_whole
from trainer.personalize.files import CONCEPT, load_into
from trainer.personalize.prompts import prompt_lines
from trainer.personalize.records import SPLITS, ConceptRecord
from trainer.personalize.run import load_base, only_concept, personalize
from trainer.policy.show_o.policy import ShowO
from trainer.run import run
from trainer.settings import PersonalizeSettings, TrainerSettings, load

ROOT: Final = Path(__file__).resolve().parents[2]
CONFIG: Final = ROOT / "deploy/configs/embedded.toml"
CHANGES: Final = ROOT / "deploy/configs/ablations"
UNIFY: Final = ROOT / "embedded/data/unify"
STAGES: Final = (1, 2)  # as in Sync-R1
PLAIN: Final = ("a photo of {}", "a small drawing of {}", "here is {}", "one more photo of {}")
TABLES: Final[Mapping[str, tuple[str, ...]]] = {
    "components": ("full", "without_und", "without_via", "without_tia", "without_dgs"),
    "start": ("class_word", "class_word_rl", "stages", "full"),
    "rewards": ("tier_ber", "tier_der", "tier_ber_der", "full"),
}
SETTINGS: Final[Mapping[str, Any]] = {  # of every arm: one rate for few rows, no prompts without a concept
    "POLICY__TRAIN": "rows",
    "DATA__GENEVAL_SHARE": 0.0,
    "OPTIMIZER__LR": 3e-3,
    "CHECKPOINT_EVERY": 5,
}


@dataclass(frozen=True)
class Ablation:
    """One training of all concepts, or none (`steps` 0); `changes` is a file of CHANGES."""

    name: str
    seed: int
    steps: int
    trained_stages: bool = True
    changes: str | None = None

    @property
    def key(self) -> str:
        """The name of its files."""
        return f"ablations-{self.name}-{self.steps}-{self.seed}"


def ablations(seed: int, steps: int) -> list[Ablation]:
    """Return every arm of the tables once."""
    found = []
    for name in dict.fromkeys(one for names in TABLES.values() for one in names):
        is_trained = name not in ("class_word", "stages")
        changes = name if (CHANGES / f"{name}.toml").exists() else None
        found.append(Ablation(name, seed, steps if is_trained else 0, not name.startswith("class_word"), changes))
    return found


def settings_of(arm: Ablation, concepts: list[Path], folder: Path, url: str) -> TrainerSettings:
    """Return the settings of an arm's training of these concepts; `folder` has its prompts. Raises SettingsError."""
    own = {
        "SEED": arm.seed,
        "STEPS": arm.steps,
        "RUN_DIR": folder / arm.key,
        "POLICY__CONCEPTS": json.dumps([str(path) for path in concepts]),
        "DATA__CONCEPTS": UNIFY,
        "DATA__PROMPTS": folder / "prompts.jsonl",
        "DATA__HELDOUT": folder / "prompts_heldout.jsonl",
        "REWARDS__URL": url,
    }
    return _loaded(arm, own)


def facts_of(arm: Ablation) -> dict[str, Any]:
    """Return the settings of an arm's training, by dotted key, but those that each arm sets. Raises SettingsError.

    The service is not named by its URL, which may change.
    """
    if not arm.steps:
        return {}
    own = {"POLICY__CONCEPTS": json.dumps([str(UNIFY)])}  # any directory: the concepts may not be trained yet
    return {f"trainer.{key}": value for key, value in fingerprint(_loaded(arm, own)).items()}


def _loaded(arm: Ablation, own: Mapping[str, Any]) -> TrainerSettings:
    environ = {f"SYNOD__TRAINER__{key}": str(value) for key, value in {**SETTINGS, **own}.items()}
    changes = [] if arm.changes is None else [CHANGES / f"{arm.changes}.toml"]
    return load(CONFIG, {**os.environ, **environ}, changes)


def write_prompts(folder: Path, records: Mapping[str, ConceptRecord]) -> None:
    """Write the prompts of all concepts, those of `prompt_lines` in words of the embedded model."""
    for split, name in zip(SPLITS, ("prompts.jsonl", "prompts_heldout.jsonl"), strict=True):
        lines = [line for record in records.values() for line in _lines(record, split == "train")]
        write_whole(folder / name, b"".join(json.dumps(line).encode() + b"\n" for line in lines))


def _lines(record: ConceptRecord, is_training: bool) -> list[dict[str, Any]]:
    hints = [line for line in prompt_lines(record, "train" if is_training else "test") if "fact" in line]
    scenes = PLAIN if is_training else ("a photo of {} on the beach",)
    plain = [
        {
            "tag": "plain",
            "prompt": scene.format(record.name),
            "concept": record.name,
            "resolved": scene.format(f"a {record.class_word}"),
        }
        for scene in scenes
    ]
    return [*plain, *hints]


def run_ablation(arm: Ablation, personal: Mapping[str, PersonalizeSettings], runs: Path, url: str) -> dict[str, Any]:
    """Train an arm and return its figures by concept; `personal` are the settings of each concept's stages.

    Raises SystemExit if it was stopped.
    """
    folder, records = runs / "ablations", {name: only_concept(one.data) for name, one in personal.items()}
    write_prompts(folder, records)
    for settings in personal.values():
        personalize(settings.model_copy(update={"stages": STAGES}), log=_silent)
    concepts = [settings.run_dir / f"stage-{STAGES[-1]}" / "concept" for settings in personal.values()]
    if arm.steps:
        training = settings_of(arm, concepts, folder, url)
        run(training, evaluated=False)
        concepts = [training.run_dir / "concepts" / name for name in personal]
    if not all((path / CONCEPT).exists() for path in concepts):
        raise SystemExit(f"{arm.key} was stopped; the same command resumes it")
    policy = load_base(next(iter(personal.values())))
    for path in concepts:
        load_into(policy, path)
    figures = {name: measure(policy, record, arm.seed) for name, record in records.items()}
    return {"arm": asdict(arm), "figures": figures}


def measure(policy: ShowO, record: ConceptRecord, seed: int) -> Figures:
    """Return what a policy knows of a concept, what it says of held-out facts, and whether it draws them."""
    meter = Meter(record, seed, ROOT / "deploy/configs/personalize.toml")
    return {**meter.measure(policy, record.name, knowledge=True), **meter.reasoning(policy)}


def tables(results: Path, seeds: int, steps: int) -> dict[str, Any]:
    """Return each table of trainings of `steps` steps: by arm and figure, mean and standard error over concepts and
    seeds, and the same of the difference to "full", paired by concept and seed.
    """
    values: dict[str, Values] = defaultdict(dict)
    for arm in (one for seed in range(seeds) for one in ablations(seed, steps)):
        if (path := results / f"{arm.key}.json").exists():
            figures = json.loads(path.read_text())["figures"]
            values[arm.name] |= {(concept, arm.seed): own for concept, own in figures.items()}
    found: dict[str, Any] = {}
    for table, names in TABLES.items():
        found[table] = {name: _row(values[name], values["full"]) for name in names if values[name]}
    return found


Values = dict[tuple[str, int], Figures]  # (concept, seed) -> figures


def _row(own: Values, full: Values) -> dict[str, Any]:
    row: dict[str, Any] = {}
    for figure in dict.fromkeys(name for one in own.values() for name in one):
        numbers = [one[figure] for one in own.values() if figure in one]
        pairs = [one[figure] - full[key][figure] for key, one in own.items() if figure in one and key in full]
        row[figure] = {"mean": _mean(numbers), "error": _error(numbers), "n": len(numbers)}
        row[figure] |= {"to_full": _mean(pairs) if pairs else None, "to_full_error": _error(pairs)}
    return row


def _mean(values: list[float]) -> float:
    return round(float(np.mean(values)), 4)


def _error(values: list[float]) -> float | None:
    return round(float(np.std(values, ddof=1) / np.sqrt(len(values))), 4) if len(values) > 1 else None


def _silent(message: str) -> None:
    """A benchmark prints its own lines."""
