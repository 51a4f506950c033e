"""The measures of a suite, and their table: a mean over concepts next to the same mean of each control. Pure.

A concept's value is the mean over a column's groups of the mean over their items; the measure is the mean over concepts
with the standard error of that mean. Missing values are left out and counted. An item that was answered has a value,
also where nothing could be read in the answer: then it is wrong.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from statistics import fmean
from typing import Final

from synod.contracts import Outcome, Score, ScoreFailure
from trainer.evaluate.compare import summary
from trainer.evaluate.personal.arms import ARMS, CONTROLS, Arm
from trainer.evaluate.personal.items import HARD, RANDOM, YES, Item
from trainer.evaluate.personal.replies import is_choice_right, is_yes_no_right, share_said, yes_or_no

MARK: Final = "does not measure personalization"
NO_FACE: Final = "no face in the image"


@dataclass(frozen=True, slots=True)
class Row:
    """One item of one arm with what came of it: the reply, None if there is none, and the outcome of each scorer."""

    arm: Arm
    item: Item
    reply: str | None = None
    outcomes: Mapping[str, Outcome] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Measure:
    """A number of the table.

    value     row -> value; None if it is missing
    scorer    the service's scorer that it needs; None: none
    groups    the groups of its column that count; empty: all
    compared  whether its controls say if it measures personalization
    of        which rows count
    """

    name: str
    column: str
    value: Callable[[Row], float | None]
    scorer: str | None = None
    groups: tuple[str, ...] = ()
    compared: bool = True
    of: Callable[[Row], bool] = lambda row: True


@dataclass(frozen=True, slots=True)
class Cell:
    """A mean over `concepts` concepts and its standard error, None below 1 and 2; of `items` values, `missing` more."""

    mean: float | None
    stderr: float | None
    concepts: int
    items: int
    missing: int


@dataclass(frozen=True, slots=True)
class Line:
    """A measure by arm, and by control the mean difference from it over concepts, with its standard error.

    reached  the controls that the concept's value does not exceed by more than one standard error of the difference
    """

    measure: str
    cells: Mapping[Arm, Cell]
    differences: Mapping[Arm, tuple[float | None, float | None]]
    reached: tuple[Arm, ...] = ()
    compared: bool = True

    @property
    def mark(self) -> str:
        """Return what to write next to the measure: MARK, that no control decides, or nothing."""
        if self.reached:
            return f"{MARK}: {', '.join(self.reached)}"
        if not self.compared:
            return ""
        return "" if any(error is not None for _, error in self.differences.values()) else "not compared with a control"


def table(rows: Sequence[Row], measures: Sequence[Measure]) -> list[Line]:
    """Return a line for each measure that has rows in the arm "concept"."""
    found = []
    for measure in measures:
        values = {arm: _by_concept(rows, measure, arm) for arm in ARMS}
        if values["concept"]:
            found.append(_line(measure, values))
    return found


Values = Mapping[str, Mapping[str, list[float | None]]]  # concept -> group -> values


def _by_concept(rows: Iterable[Row], measure: Measure, arm: Arm) -> Values:
    found: dict[str, dict[str, list[float | None]]] = {}
    for row in rows:
        if row.arm != arm or row.item.column != measure.column or not measure.of(row):
            continue
        if not measure.groups or row.item.group in measure.groups:
            group = row.item.group if measure.groups else ""
            found.setdefault(row.item.concept, {}).setdefault(group, []).append(measure.value(row))
    return found


def _line(measure: Measure, values: Mapping[Arm, Values]) -> Line:
    means = {arm: {name: _mean(found, measure.groups) for name, found in values[arm].items()} for arm in ARMS}
    cells = {arm: _cell(means[arm], values[arm]) for arm in ARMS if values[arm]}
    differences: dict[Arm, tuple[float | None, float | None]] = {}
    for arm in CONTROLS if measure.compared else ():
        if arm in cells:
            changes = [
                own - other
                for name, own in means["concept"].items()
                if own is not None and (other := means[arm].get(name)) is not None
            ]
            found = summary(changes)
            differences[arm] = (found.mean, found.stderr)
    reached = tuple(
        arm for arm, (mean, error) in differences.items() if mean is not None and error is not None and mean <= error
    )
    return Line(measure.name, cells, differences, reached, measure.compared)


def _mean(groups: Mapping[str, Sequence[float | None]], wanted: Sequence[str]) -> float | None:
    """Return the mean over groups of their means; None if a group has no value."""
    found = [[value for value in groups.get(group, ()) if value is not None] for group in wanted or ("",)]
    return fmean(map(fmean, found)) if all(found) else None


def _cell(means: Mapping[str, float | None], values: Values) -> Cell:
    every = [value for groups in values.values() for found in groups.values() for value in found]
    whole, missing = summary(means.values()), every.count(None)
    return Cell(whole.mean, whole.stderr, whole.n, len(every) - missing, missing)


def _score(scorer: str) -> Callable[[Row], float | None]:
    def value(row: Row) -> float | None:
        outcome = row.outcomes.get(scorer)
        return outcome.value if isinstance(outcome, Score) else None

    return value


def _of_reply(value: Callable[[str, Item], float]) -> Callable[[Row], float | None]:
    return lambda row: None if row.reply is None else value(row.reply, row.item)


def _face(row: Row) -> float | None:
    """Return 1 if the scorer `fer` found a face, 0 if not; None without its outcome."""
    outcome = row.outcomes.get("fer")
    return float(outcome.detail.get("reason") != NO_FACE) if isinstance(outcome, Score) else None


def _of_four(row: Row) -> float | None:
    """Return the judge's grade, in [0, 1], on DreamBench++'s scale."""
    grade = _score("judge")(row)
    return None if grade is None else 4 * grade


def _scored(name: str, column: str, scorer: str, *groups: str) -> Measure:
    return Measure(name, column, _score(scorer), scorer, groups)


_STRICT = _of_reply(lambda reply, item: is_yes_no_right(reply, item.right or ""))
_CHOICE = _of_reply(lambda reply, item: is_choice_right(reply, item.right or ""))
_UNCLEAR = _of_reply(lambda reply, item: float(yes_or_no(reply) is None))
MEASURES: Final = (
    _scored("Rec weight, random", "rec", "recognition", YES, RANDOM),
    _scored("Rec weight, hard", "rec", "recognition", YES, HARD),
    _scored("Rec recall yes", "rec", "recognition", YES),
    _scored("Rec recall no, random", "rec", "recognition", RANDOM),
    _scored("Rec recall no, hard", "rec", "recognition", HARD),
    Measure("Rec weight, random, whole words", "rec", _STRICT, None, (YES, RANDOM)),
    Measure("Rec weight, hard, whole words", "rec", _STRICT, None, (YES, HARD)),
    Measure("Rec unclear replies", "rec", _UNCLEAR, compared=False),
    _scored("VQA BLEU", "vqa", "bleu"),
    _scored("VQA text judge", "vqa", "judge_text"),
    Measure("VQA choice", "vqa_choice", _CHOICE),
    _scored("QA BLEU", "qa", "bleu"),
    _scored("QA text judge", "qa", "judge_text"),
    Measure("QA choice", "qa_choice", _CHOICE),
    _scored("Gen CLIP-I", "plain", "clip_i"),
    _scored("Pure Gen CLIP-I", "pure", "clip_i"),
    _scored("Pure Gen CLIP-T", "pure", "clip_t"),
    _scored("Pure Gen DINO", "pure", "der"),
    _scored("Concept, CLIP-I", "graded", "clip_i"),
    _scored("Concept, DINO", "graded", "der"),
    _scored("Prompt, CLIP-T", "graded", "clip_t"),
    Measure("Prompt, judge 0 to 4", "graded", _of_four, "judge"),
    Measure("People Gen, images with a face", "people", _score("fer"), "fer", of=lambda row: _face(row) != 0.0),
    _scored("People Gen, no face is 0", "people", "fer"),
    Measure("People Gen, share with a face", "people", _face, "fer", compared=False),
    _scored("T2I knowledge", "knowledge", "knowledge"),
    _scored("T2I knowledge, held-out facts", "knowledge", "knowledge", "held out"),
    _scored("T2I CLIP-I", "knowledge", "clip_i"),
    _scored("Rea BLEU", "rea", "bleu"),
    _scored("Rea text judge", "rea", "judge_text"),
    _scored("Dense Rea BLEU", "dense_rea", "bleu"),
    _scored("Dense Rea text judge", "dense_rea", "judge_text"),
    Measure("Dense Rea points", "dense_rea", _of_reply(lambda reply, item: share_said(reply, item.points))),
    _scored("Rea Gen CLIP-T", "rea_gen", "clip_t"),
    _scored("Rea Gen CLIP-I", "rea_gen", "clip_i"),
    _scored("Dense Gen", "dense_gen", "dense_validity"),
    _scored("Dense Gen CLIP-I", "dense_gen", "clip_i"),
    _scored("Dense Rea Gen", "dense_rea_gen", "dense_validity"),
    _scored("Dense Rea Gen CLIP-I", "dense_rea_gen", "clip_i"),
)


def markdown(lines: Sequence[Line], failures: Mapping[str, ScoreFailure], notes: Sequence[str] = ()) -> str:
    """Return the table as Markdown: mean ± standard error by arm, numbers of concepts, values and failures, and notes.

    `failures` has the first failure of each scorer.
    """
    arms = [arm for arm in ARMS if any(arm in line.cells for line in lines)]
    heads = ["measure", *arms, "concepts", "n", "missing", "controls"]
    out = [f"| {' | '.join(heads)} |", f"|{'---|' * len(heads)}"]
    for line in lines:
        own, missing = line.cells["concept"], sum(cell.missing for cell in line.cells.values())
        shown = [_shown(line.cells.get(arm)) for arm in arms]
        counts = [str(own.concepts), str(own.items), str(missing)]
        out.append(f"| {' | '.join([line.measure, *shown, *counts, line.mark])} |")
    out += ["", 'Mean over concepts ± its standard error; n: values of the arm "concept"; missing: of all arms.']
    out.append("none: the class word in place of the name; other: another concept's name; black: a black image.")
    out.append(f'A control within one standard error of the difference is named: the measure then "{MARK}".')
    out += [f"{name}: the first failure: {one.code}, {one.message}" for name, one in failures.items()]
    return "\n".join([*out, *notes]) + "\n"


def _shown(cell: Cell | None) -> str:
    if cell is None:
        return ""
    mean, stderr = (("-" if value is None else f"{value:.4f}") for value in (cell.mean, cell.stderr))
    return f"{mean} ± {stderr}"
