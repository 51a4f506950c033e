"""Records of evaluations, and the change from one to another, pair by pair. Pure."""

from __future__ import annotations

import re
import statistics
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from math import sqrt
from typing import Any, Final

from synod.contracts import Pixels
from synod.errors import SettingsError
from trainer.evaluate.estimate import clustered

_FULL: Final = 1 - 1e-9


@dataclass(frozen=True, slots=True)
class Row:
    """One image of one held-out prompt.

    reward, components  of the reward that is trained on
    right               whether the answer names what was asked for; None if the task has no query
    failure             the error code of a missing reward
    heldout             scores by scorers that are not trained on
    heldout_reward      their weighted sum; None if one is missing, or there are none
    image_part          the reward without its terms that were fixed before drawing; None if they are not known
    official            GenEval's own verdict, 0 or 1; None if no scorer gave one
    """

    key: str
    pathway: str
    tag: str
    prompt: str
    answer: str
    reward: float | None
    components: Mapping[str, float]
    right: bool | None
    failure: str | None = None
    heldout: Mapping[str, float] = field(default_factory=dict)
    heldout_reward: float | None = None
    image_part: float | None = None
    official: float | None = None


@dataclass(frozen=True, slots=True, eq=False)
class Evaluation:
    """The settings that decide what is drawn, the rows, and images uint8 [H W 3] of the first rows by row.

    On several ranks each has all rows, and the images that it drew.
    """

    conditions: Mapping[str, Any]
    rows: tuple[Row, ...]
    images: Mapping[int, Pixels] = field(default_factory=dict, repr=False)


@dataclass(frozen=True, slots=True)
class Summary:
    """The mean of `n` values and its standard error; None below 1 and 2 values."""

    mean: float | None
    stderr: float | None
    n: int


@dataclass(frozen=True, slots=True)
class Paired:
    """A comparison of `n` pairs with a value on both sides; `dropped` pairs lack one.

    `difference` is the mean of after - before. `stderr` is the larger of two standard errors: as if all pairs were
    independent, and clustered by prompt, because images of one prompt may change alike.
    """

    before: Summary
    after: Summary
    difference: float | None
    stderr: float | None
    n: int
    dropped: int

    @property
    def verdict(self) -> str:
        """Return "up" or "down" for a change of more than two standard errors, else ""."""
        if self.difference is None or self.stderr is None or abs(self.difference) <= 2 * self.stderr:
            return ""
        return "up" if self.difference > 0 else "down"


def right(answer: str, segments: Sequence[str], truth: Sequence[float]) -> bool | None:
    """Return whether the answer names a true segment and no false one; None without segments.

    If no segment is true, only an empty answer is right. A segment is named if its words occur in the answer in order
    and next to each other; case and punctuation do not count, nor does a segment inside a longer named one. A segment
    that is there twice is true if one of them is. This is strict: a paraphrase is wrong. TIER grades paraphrases, but
    its arg-max would accept "a blue hat" for "a red hat" if no other segment has a hat.
    """
    if not segments:
        return None
    said = _words(answer)
    if not any(truth):
        return not said
    of: dict[tuple[str, ...], bool] = {}
    for segment, value in zip(segments, truth, strict=True):
        of[_words(segment)] = of.get(_words(segment), False) or value > 0
    named = [words for words in of if _inside(words, said)]
    longest = [words for words in named if not any(words != other and _inside(words, other) for other in named)]
    return bool(longest) and all(of[words] for words in longest)


def summary(values: Iterable[float | None]) -> Summary:
    """Return mean and standard error (sample standard deviation / sqrt n); None values are left out."""
    found = [float(value) for value in values if value is not None]
    stderr = statistics.stdev(found) / sqrt(len(found)) if len(found) > 1 else None
    return Summary(statistics.fmean(found) if found else None, stderr, len(found))


def paired(before: Evaluation, after: Evaluation) -> dict[str, Paired]:
    """Compare two evaluations by measure.

    reward, reward PATHWAY  all rewards, and those of a pathway
    image part              rewards without their terms that were fixed before drawing, if there are such terms
    instruct, attribute     shares of right answers on the visual and the textual pathway
    asked                   share of right answers to questions, and about images to reflect on
    COMPONENT               each component of the rewards
    correct                 share of GenEval prompts with a soft score of 1: every count, colour and position as
                            asked, which is stricter than GenEval's own rules
    official                share of images that are right by GenEval's own rules
    geneval TAG             the soft scores of one tag

    Raises SettingsError if prompts or conditions differ.
    """
    pairs, rows = matched(before, after), (*before.rows, *after.rows)
    reasoned = {row.pathway for row in rows if row.right is not None}
    fixed = any(row.image_part not in (None, row.reward) for row in rows)
    kinds = (("visual", "instruct"), ("textual", "attribute"), ("asked", "asked"))
    names = [(p, name) for p, name in kinds if p in reasoned]
    by_pathway = {p: [pair for pair in pairs if pair[0].pathway == p] for p in ("visual", "textual", "asked", "none")}
    found = {"reward": compare(pairs, _reward)}
    found |= {f"reward {pathway}": compare(by_pathway[pathway], _reward) for pathway, _ in names}
    found |= {"image part": compare(pairs, lambda row: row.image_part)} if fixed else {}
    found |= {name: compare(by_pathway[pathway], lambda row: row.right) for pathway, name in names}
    for name in sorted({name for row in rows for name in row.components}):
        scored = [pair for pair in pairs if any(name in row.components for row in pair)]
        found[name] = compare(scored, partial(_component, name))
    tags = {row.tag for row in rows if set(row.components) == {"geneval"}}  # rewarded by GenEval's soft score alone
    geneval = [pair for p in ("none", "asked") for pair in by_pathway[p] if pair[0].tag in tags]
    if geneval:
        found["correct"] = compare(geneval, lambda row: None if row.reward is None else row.reward >= _FULL)
    judged = [pair for pair in pairs if any(row.official is not None for row in pair)]
    if judged:
        found["official"] = compare(judged, lambda row: row.official)
    for tag in sorted({row.tag for row, _ in geneval}):
        found[f"geneval {tag}"] = compare([pair for pair in geneval if pair[0].tag == tag], _reward)
    return found


def paired_heldout(before: Evaluation, after: Evaluation) -> dict[str, Paired]:
    """Compare two evaluations by the scorers that are not trained on: their weighted sum "reward", and each of them.

    It is empty if there are none. Raises SettingsError if prompts or conditions differ.
    """
    pairs = matched(before, after)
    names = sorted({name for row in (*before.rows, *after.rows) for name in row.heldout})
    if not names:
        return {}
    found = {"reward": compare(pairs, lambda row: row.heldout_reward)}
    return found | {name: compare(pairs, partial(_heldout, name)) for name in names}


def hacking(before: Evaluation, after: Evaluation) -> str | None:
    """Return a warning if the trained reward rose and the held-out one fell, by over two standard errors each.

    Raises SettingsError if prompts or conditions differ.
    """
    trained, heldout = paired(before, after)["reward"], paired_heldout(before, after).get("reward")
    if heldout is None or (trained.verdict, heldout.verdict) != ("up", "down"):
        return None
    rise, fall = (f"{abs(p.difference or 0):.3f} \u00b1 {p.stderr:.3f}" for p in (trained, heldout))
    return (
        f"Reward hacking is likely: on the same prompts the trained reward rose by {rise}, and the reward that is not "
        f"trained on fell by {fall}. Look at the images; stop earlier, or raise the KL weight"
    )


def matched(before: Evaluation, after: Evaluation) -> list[tuple[Row, Row]]:
    """Return the rows of the same images of two evaluations. Raises SettingsError if prompts or conditions differ."""
    if before.conditions != after.conditions or [_asked(r) for r in before.rows] != [_asked(r) for r in after.rows]:
        raise SettingsError(
            f"the evaluations differ in prompts or settings ({len(before.rows)} rows with {dict(before.conditions)}, "
            f"{len(after.rows)} with {dict(after.conditions)}); evaluate both again"
        )
    return list(zip(before.rows, after.rows, strict=True))


def _reward(row: Row) -> float | None:
    return row.reward


def _heldout(name: str, row: Row) -> float | None:
    return row.heldout.get(name)


def _component(name: str, row: Row) -> float | None:
    return row.components.get(name)


def compare(rows: Sequence[tuple[Row, Row]], value: Callable[[Row], float | None]) -> Paired:
    """Compare a value of matched rows; pairs that lack it on one side are dropped."""
    pairs = valued(rows, value)
    before, after = summary(a for _, a, _ in pairs), summary(b for _, _, b in pairs)
    change, by_prompt = summary(b - a for _, a, b in pairs), clustered((prompt, b - a) for prompt, a, b in pairs)
    errors = [error for error in (change.stderr, by_prompt.stderr) if error is not None]
    return Paired(before, after, change.mean, max(errors, default=None), change.n, len(rows) - len(pairs))


def valued(rows: Sequence[tuple[Row, Row]], value: Callable[[Row], float | None]) -> list[tuple[str, float, float]]:
    """Return (prompt, value before, value after) of each matched pair that has both values."""
    return [
        (row.prompt, a, b) for row, other in rows if (a := value(row)) is not None and (b := value(other)) is not None
    ]


def _asked(row: Row) -> tuple[str, ...]:
    return row.key, row.pathway, row.tag, row.prompt


def _words(text: str) -> tuple[str, ...]:
    return tuple(re.findall(r"[\w<>]+", text.casefold()))


def _inside(part: Sequence[str], whole: Sequence[str]) -> bool:
    return bool(part) and any(whole[i : i + len(part)] == part for i in range(len(whole) - len(part) + 1))
