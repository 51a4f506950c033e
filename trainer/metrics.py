"""What a run tells while it trains: metrics.jsonl, texts.jsonl, images/ and TensorBoard's own files, side by side.

    <run>/metrics.jsonl          a JSON object a step; null where nothing was measured, never NaN
    <run>/texts.jsonl            {"step", "name", "text"} a line
    <run>/images/NAME-STEP.png grids (`trainer.grids`)
    <run>/tensorboard/           the same as curves, images and texts

A run that goes on from step k first forgets what it told of steps k and later: those are trained again.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterator, Mapping, Sequence
from numbers import Real
from pathlib import Path
from types import TracebackType
from typing import Any, Final, Self

from synod.errors import SettingsError
from trainer.grids import Row, save_grid, write_whole

METRICS, TEXTS, IMAGES = "metrics.jsonl", "texts.jsonl", "images"
_IMAGE: Final = re.compile(r"(?P<name>.+)-(?P<step>\d{6,})\.png")


class Metrics:
    """Open for the time of a training; every line is on its way to the disk when `log` returns.

    `resume_at`: the step that comes next, 0 for a new run. Raises SettingsError for files that are not a run's.
    """

    def __init__(self, run: Path, *, resume_at: int = 0) -> None:
        from torch.utils.tensorboard import SummaryWriter  # slow to import, and who only reads does not need it

        self._run = run
        run.mkdir(parents=True, exist_ok=True)
        for name in (METRICS, TEXTS):
            kept = [record for record in read(run, name) if record["step"] < resume_at]
            write_whole(run / name, "".join(map(_line, kept)).encode())
        for path, _, step in grids(run):
            if step >= resume_at:
                path.unlink()
        self._metrics, self._texts = ((run / name).open("a", encoding="utf-8") for name in (METRICS, TEXTS))
        self._board = SummaryWriter(run / "tensorboard", purge_step=resume_at)

    def log(self, step: int, values: Mapping[str, Any]) -> None:
        """A step's numbers, strings and lists of them, in mappings of any depth. NaN and infinities become null."""
        record = _finite({"step": step, **values})
        self._metrics.write(_line(record))
        self._metrics.flush()
        for name, value in _scalars(values):
            self._board.add_scalar(name, value, step)

    def images(self, step: int, name: str, rows: Sequence[Row]) -> Path:
        """A grid of captioned images uint8 [H W 3]; returns the PNG's path. `name` is a file's name without '-'."""
        path = self._run / IMAGES / f"{name}-{step:06d}.png"
        self._board.add_image(name, save_grid(path, rows), step, dataformats="HWC")
        return path

    def text(self, step: int, name: str, text: str) -> None:
        self._texts.write(_line({"step": step, "name": name, "text": text}))
        self._texts.flush()
        self._board.add_text(name, "    " + text.replace("\n", "\n    "), step)  # as it stands, not as Markdown

    def close(self) -> None:
        for file in (self._metrics, self._texts, self._board):
            file.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: type[BaseException] | BaseException | TracebackType | None) -> None:
        self.close()


def steps_saved(records: Sequence[Mapping[str, Any]]) -> float | None:
    """The share of a run's denoising steps that screening saved, against finishing every preview; None of no steps."""
    unscreened = sum(record.get("denoising_steps_unscreened", 0) for record in records)
    return 1 - sum(record["denoising_steps"] for record in records) / unscreened if unscreened else None


def read(run: Path, name: str = METRICS) -> list[dict[str, Any]]:
    """The records of a run in order; none when it has not begun. A last line cut short by a kill is left out.

    Raises SettingsError naming file and line for anything else that is not a record.
    """
    try:
        lines = (run / name).read_bytes().split(b"\n")
    except FileNotFoundError:
        return []
    records = []
    for number, line in enumerate(lines[:-1], 1):  # after the last newline there is nothing, or a line cut short
        try:
            record = json.loads(line)
            if not isinstance(record["step"], int):
                raise TypeError
        except (ValueError, KeyError, TypeError):
            raise SettingsError(
                f"{run / name}:{number}: not a line of a run's metrics; mend or remove the file, or give another run"
            ) from None
        records.append(record)
    return records


def grids(run: Path) -> list[tuple[Path, str, int]]:
    """(path, name, step) of every grid of the run, by step and name."""
    found = [(path, _IMAGE.fullmatch(path.name)) for path in (run / IMAGES).glob("*.png")]
    return sorted(((p, m["name"], int(m["step"])) for p, m in found if m), key=lambda grid: (grid[2], grid[1]))


def _line(record: Mapping[str, Any]) -> str:
    return json.dumps(record, allow_nan=False) + "\n"


def _finite(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {str(key): _finite(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(inner) for inner in value]
    if isinstance(value, Real) and not isinstance(value, int):  # NumPy's floats too
        return float(value) if math.isfinite(value) else None
    return value


def _scalars(values: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, float]]:
    for name, value in values.items():
        if isinstance(value, Mapping):
            yield from _scalars(value, f"{prefix}{name}/")
        elif isinstance(value, Real) and math.isfinite(value):
            yield f"{prefix}{name}", float(value)
