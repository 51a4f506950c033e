"""GenEval: does the image show the objects, counts, colours and positions asked for? Ghosh et al. 2023.

The detector runs once a batch; then one CLIP forward classifies the colours that some clause asks for.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any, Final, Literal

from services.models.settings import ClipModel, DetectorSettings
from services.models.types import Detection, Detector
from services.scorers.base import ScorerSpec
from services.scorers.geneval import rules
from services.scorers.geneval.colour import ColorClassifier, cutout
from services.scorers.geneval.rules import Found
from services.settings_types import ScorerSettings
from synod.contracts import GenEvalMetadata, Outcome, Pixels, Score, ScoreFailure, ScoreItem
from synod.errors import InvalidItem

RULE_SETS: Final[Mapping[str, Callable[[GenEvalMetadata, rules.Objects], rules.Verdict]]] = {
    "official": rules.official,
    "strict": rules.strict,
    "soft": rules.soft,
    "soft_compat": rules.soft_compat,
}


class GenEvalSettings(ScorerSettings):
    """GenEval: detector + colours + rules. `rule_set` picks the value; `detail` has all four."""

    kind: Literal["geneval"]
    detector: DetectorSettings
    color_model: ClipModel
    rule_set: Literal["official", "strict", "soft", "soft_compat"] = "soft"


def spec(name: str, settings: GenEvalSettings) -> ScorerSpec:
    summary = "objects, counts, colours and positions in the image against the prompt's metadata"
    low = rules.SOFT_COMPAT_LOW if settings.rule_set == "soft_compat" else 0.0
    return ScorerSpec(name, ("image", "geneval"), low, 1.0, "Ghosh et al. 2023 (GenEval)", summary, sized=True)


def build(name: str, settings: GenEvalSettings) -> GenEval:
    from services.models import clip, detector
    from services.models.cache import Device

    device = Device.of(settings.serving)
    found = detector.build(settings.detector, device)
    colors = ColorClassifier(clip.build(settings.color_model, settings.serving))
    return GenEval(name, found, colors, settings)


class GenEval:
    def __init__(self, name: str, detector: Detector, colors: ColorClassifier, settings: GenEvalSettings) -> None:
        self.spec = spec(name, settings)
        self._detector, self._colors, self._rule_set = detector, colors, settings.rule_set

    def score(self, items: Sequence[ScoreItem]) -> list[Outcome]:
        outcomes: dict[int, Outcome] = {}
        asked: dict[int, GenEvalMetadata] = {}
        for i, item in enumerate(items):
            assert item.geneval is not None
            try:
                rules.check(item.geneval, self._detector.class_names)
                asked[i] = item.geneval
            except InvalidItem as error:
                outcomes[i] = ScoreFailure.of(error)
        objects = self._colored(items, asked) if asked else {}
        outcomes |= {i: self._outcome(metadata, objects[i]) for i, metadata in asked.items()}
        return [outcomes[i] for i in range(len(items))]

    def _colored(
        self, items: Sequence[ScoreItem], asked: dict[int, GenEvalMetadata]
    ) -> dict[int, dict[str, tuple[Found, ...]]]:
        objects: dict[int, dict[str, tuple[Found, ...]]] = {}
        places, names = [], []
        seen: list[tuple[Pixels, Detection]] = []
        detected = self._detector.detect([items[i].pixels() for i in asked], least=rules.THRESHOLD)
        for (i, metadata), detections in zip(asked.items(), detected, strict=True):
            candidates = [Found(d.class_name, d.score, d.box, index) for index, d in enumerate(detections)]
            objects[i] = rules.select(candidates, metadata.tag)
            for found in rules.color_needs(metadata, objects[i]):
                places.append((i, found.index))
                seen.append((items[i].pixels(), detections[found.index]))
                names.append(found.class_name)
        colors = dict(zip(places, self._colors.classify((cutout(*one) for one in seen), names), strict=True))
        return {
            i: {name: tuple(replace(f, color=colors.get((i, f.index))) for f in group) for name, group in found.items()}
            for i, found in objects.items()
        }

    def _outcome(self, metadata: GenEvalMetadata, objects: dict[str, tuple[Found, ...]]) -> Score:
        verdicts = {name: rule_set(metadata, objects) for name, rule_set in RULE_SETS.items()}
        detail: dict[str, Any] = {name: verdict.value for name, verdict in verdicts.items()}
        detail["rule_set"] = self._rule_set
        detail["reasons"] = {name: list(verdict.reasons) for name, verdict in verdicts.items()}
        in_order = sorted((f for group in objects.values() for f in group), key=lambda f: f.index)
        detail["objects"] = [
            {"class": f.class_name, "score": f.score, "box": list(f.box), "color": f.color} for f in in_order
        ]
        return Score(verdicts[self._rule_set].value, detail)
