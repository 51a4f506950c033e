"""Read pairs of items of which one must score above the other, for `synod verify`.

A file of pairs is JSON Lines, with images as paths relative to the file's folder:

    {"name": "a cat by its name", "scorers": ["ber"], "better": {"image": "cat.jpg", "prompt": "a cat"}, "worse": {..}}

`scorers` are kinds, or names in the settings; POLICY stands for the trainer's policy. Only the order is checked, so
that the pairs apply to any good weights; golden values apply to one set of weights.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from synod.contracts import Outcome, Score, ScoreItem
from synod.errors import InvalidRequest, SettingsError, SynodError
from synod.formats import load_json
from synod.images import ImageLimits, decode_item
from synod.reader import Node, each
from synod.scoring import show
from synod.scoring.inputs import Source

POLICY: Final = "policy"
_LIMITS: Final = ImageLimits(max_bytes=16 * 2**20, max_pixels=4096 * 4096)


@dataclass(frozen=True, slots=True)
class Pair:
    """Two decoded items; `scorers` are the kinds or names that must score `better` above `worse`."""

    name: str
    scorers: tuple[str, ...]
    better: ScoreItem
    worse: ScoreItem


@dataclass(frozen=True, slots=True)
class Verdict:
    """Outcomes of one scorer, or of the policy, for a pair. A failure of either item counts as a wrong order."""

    pair: str
    scorer: str
    better: Outcome
    worse: Outcome

    @property
    def holds(self) -> bool:
        """Return whether the better item scores above the worse one."""
        scored = isinstance(self.better, Score) and isinstance(self.worse, Score)
        return scored and self.better.value > self.worse.value  # type: ignore[union-attr]


def load(path: Path) -> tuple[Pair, ...]:
    """Read the pairs of a file. Raises SettingsError with the file and line of an invalid pair."""
    try:
        lines = path.read_bytes().splitlines()
    except OSError as error:
        raise SettingsError(f"the pairs file {path} cannot be read: {error.strerror}; give another file") from None
    found = []
    for number, line in enumerate(lines, 1):
        if line.strip():
            try:
                found.append(_pair(Node(load_json(line)), path.parent))
            except (ValueError, InvalidRequest, SynodError) as error:
                raise SettingsError(f"{path}:{number}: {error}") from None
    if not found:
        raise SettingsError(f"the pairs file {path} holds no pairs; docs/operations.md shows the format")
    return tuple(found)


def pairs_for(name: str, kind: str, pairs: Sequence[Pair]) -> list[Pair]:
    """Return the pairs for a scorer, by its name in the settings or by its kind."""
    return [pair for pair in pairs if {name, kind} & {*pair.scorers}]


def table_row(one: Verdict) -> list[str]:
    """Return a row of the table: scorer, pair, both outcomes, and whether the relation holds."""
    outcomes = map(show.format_outcome, (one.better, one.worse))
    return [one.scorer, one.pair, *outcomes, "holds" if one.holds else "BROKEN"]


def _pair(node: Node, folder: Path) -> Pair:
    of = node.fields("name", "scorers", "better", "worse")
    better, worse = (of.need(side, lambda item: _item(item, folder)) for side in ("better", "worse"))
    return Pair(of.need("name", Node.text), of.need("scorers", each(Node.text)), better, worse)


def _item(node: Node, folder: Path) -> ScoreItem:
    fields: dict[str, Any] = dict(node.table(lambda child: child.value))
    item = Source(fields, folder, node.path).load().item
    if not isinstance(item, ScoreItem):
        raise item
    return decode_item(item, _LIMITS)
