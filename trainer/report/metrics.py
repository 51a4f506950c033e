"""The record of a run, written while it trains.

    <run_dir>/metrics.jsonl       one JSON object per step; null where nothing was measured, never NaN
    <run_dir>/samples.jsonl       one JSON object per group: its prompt, and of each image file, score and answer (of a
                                  task that draws nothing, no image file); no file before the first group
    <run_dir>/images/STEP/*.png   the image files
    <run_dir>/tensorboard/        the same numbers, images and texts
    <run_dir>/wandb/              the same numbers, for a project of Weights & Biases, if the settings name one

A run that resumes at step k first removes its records of step k and later, because those steps are trained again.
"""

from __future__ import annotations

import json
import math
import secrets
import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from numbers import Real
from pathlib import Path
from typing import Any, Final

import numpy as np

from synod.contracts import Pixels
from synod.errors import SettingsError
from trainer.images import image_name, write_images, write_whole

METRICS: Final = "metrics.jsonl"
SAMPLES: Final = "samples.jsonl"
IMAGES: Final = "images"


@dataclass(frozen=True, slots=True, eq=False)
class Sample:
    """An image uint8 [H W 3], its score (None: missing), the answer that it was drawn from, and the score's parts.

    `tokens` are those of the prompt with their log-probabilities, where the policy has read the image.

    The image is None on a rank that did not draw it; the one that did writes its file.
    """

    image: Pixels | None
    score: float | None
    answer: str = ""
    components: Mapping[str, float] = field(default_factory=dict)
    tokens: Sequence[tuple[str, float]] = ()


class Metrics(AbstractContextManager["Metrics"]):
    """Writes the records of one run; a line is flushed when `log` returns.

    `resume_at` is the next step, 0 for a new run. `wandb` is a project of Weights & Biases, None for none. Raises
    SettingsError for files that are not a run's, and for `wandb` without its package or login.
    """

    def __init__(self, run_dir: Path, resume_at: int = 0, wandb: str | None = None) -> None:
        from torch.utils.tensorboard import SummaryWriter  # slow to import, and readers do not need it

        self._run_dir = run_dir
        run_dir.mkdir(parents=True, exist_ok=True)
        for name in (METRICS, SAMPLES):
            kept = [record for record in read(run_dir, name) if record["step"] < resume_at]
            if (run_dir / name).exists():
                write_whole(run_dir / name, "".join(map(_line, kept)).encode())
        for folder in (run_dir / IMAGES).glob("[0-9]*"):
            if int(folder.name) >= resume_at:
                shutil.rmtree(folder)
        self._wandb = None if wandb is None else _wandb_run(wandb, run_dir)
        self._metrics = (run_dir / METRICS).open("a", encoding="utf-8")
        self._board = SummaryWriter(run_dir / "tensorboard", purge_step=resume_at)

    def log(self, step: int, values: Mapping[str, Any]) -> None:
        """Record a tree of numbers, strings and lists. NaN and infinities become null."""
        self._metrics.write(_line({"step": step, **values}))
        self._metrics.flush()
        found = dict(scalars(values))
        for name, value in found.items():
            self._board.add_scalar(name, value, step)
        if self._wandb is not None:
            self._wandb.log({**found, "step": step})

    def log_samples(
        self, step: int, group: int, prompt: str, samples: Mapping[str, Sequence[Sample]], *, has_images: bool = True
    ) -> None:
        """Record a group's samples by kind, such as "finished" and "rejected". All images have one size.

        `has_images` False: the task draws none. TensorBoard gets the images that are there, so on several ranks those
        of the groups that rank 0 drew.
        """
        save_samples(self._run_dir, step, group, samples)
        name, folder, record = f"group{group}", f"{IMAGES}/{step:06d}", dict[str, Any]()
        for kind, found in samples.items():
            record[kind] = [
                ({"image": f"{folder}/{image_name(f'{name}-{kind}', i)}"} if has_images else {})
                | {"score": sample.score, "answer": sample.answer}
                | ({"components": dict(sample.components)} if sample.components else {})
                | ({"tokens": sample.tokens} if sample.tokens else {})
                for i, sample in enumerate(found)
            ]
            if images := [sample.image for sample in found if sample.image is not None]:
                self._board.add_images(f"{name}/{kind}", np.stack(images), step, dataformats="NHWC")
        with (self._run_dir / SAMPLES).open("a", encoding="utf-8") as file:
            file.write(_line({"step": step, "group": group, "prompt": prompt, "samples": record}))
        lines = [prompt] + [f"{show(s.score)}  {s.answer}" for found in samples.values() for s in found if s.answer]
        self._board.add_text(name, "".join(f"    {line}\n" for line in lines), step)  # indented: not read as Markdown

    def __exit__(self, *_: object) -> None:
        self._metrics.close()
        self._board.close()
        if self._wandb is not None:
            self._wandb.finish()


def save_samples(run_dir: Path, step: int, group: int, samples: Mapping[str, Sequence[Sample]]) -> None:
    """Write the image files of a group, of the images that are there."""
    for kind, found in samples.items():
        images = {i: sample.image for i, sample in enumerate(found) if sample.image is not None}
        write_images(run_dir / IMAGES / f"{step:06d}", f"group{group}-{kind}", images)


def read(run_dir: Path, name: str = METRICS) -> list[dict[str, Any]]:
    """Return a run's records in order, [] before the first; a last line without its end is left out.

    Raises SettingsError naming file and line for anything else that is not a record.
    """
    try:
        lines = (run_dir / name).read_bytes().split(b"\n")
    except FileNotFoundError:
        return []
    records = []
    for number, line in enumerate(lines[:-1], 1):  # what follows the last newline was cut short by a kill
        try:
            record = json.loads(line)
            if not isinstance(record["step"], int):
                raise TypeError
        except (ValueError, KeyError, TypeError):
            raise SettingsError(
                f"{run_dir / name}:{number} is not a line of a run's metrics; repair or remove the file, or give "
                "another run"
            ) from None
        records.append(record)
    return records


def steps_saved(records: Sequence[Mapping[str, Any]]) -> float | None:
    """Return the share of denoising steps that screening saved, against finishing every preview."""
    unscreened = sum(record.get("denoising_steps_unscreened", 0) for record in records)
    return 1 - sum(record["denoising_steps"] for record in records) / unscreened if unscreened else None


def scalars(values: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, float]]:
    """Yield every finite number of a tree with its path, such as ("seconds/total", 2.5)."""
    for name, value in values.items():
        if isinstance(value, Mapping):
            yield from scalars(value, f"{prefix}{name}/")
        elif isinstance(value, Real) and not isinstance(value, bool) and math.isfinite(value):
            yield f"{prefix}{name}", float(value)


def show(score: float | None) -> str:
    """Return a score as people read it."""
    return "missing" if score is None else f"{score:.2f}"


def _wandb_run(project: str, run_dir: Path) -> Any:
    """Start or continue the run in `project` whose id is in RUN/wandb/run-id; its curves are over "step".

    `WANDB_MODE=offline` keeps it in RUN/wandb, for `wandb sync`. Raises SettingsError.
    """
    try:
        import wandb  # an optional extra
    except ImportError:
        raise SettingsError(
            f"[trainer.report] wandb = {project!r} needs the package wandb, which is not installed; install it "
            "(pip install 'synod[wandb]' -c constraints.txt) or remove the setting"
        ) from None
    file = run_dir / "wandb" / "run-id"
    if not file.exists():
        write_whole(file, secrets.token_hex(8).encode())
    quiet = wandb.Settings(console="off", silent=True)
    try:
        run = wandb.init(
            project=project, name=run_dir.name, id=file.read_text(), dir=run_dir, resume="allow", settings=quiet
        )
    except wandb.errors.Error as error:
        raise SettingsError(
            f"[trainer.report] wandb = {project!r}: {error}; log in (`wandb login`), or set WANDB_MODE=offline"
        ) from None
    run.define_metric("*", step_metric="step")  # a step that is trained again after a resume is drawn again
    return run


def _line(record: Mapping[str, Any]) -> str:
    return json.dumps(_finite(record), allow_nan=False) + "\n"


def _finite(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {str(key): _finite(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(inner) for inner in value]
    if isinstance(value, Real) and not isinstance(value, int):  # NumPy's floats too
        return float(value) if math.isfinite(value) else None
    return value
