"""The demo's report: one self-contained HTML page of the samples with their scores, boxes and faces."""

from __future__ import annotations

import base64
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jinja2
import markupsafe

from embedded.samples import Sample
from synod.contracts import ItemResult, Score, ScoreFailure
from synod.images import ImageLimits, decode

TEMPLATE = Path(__file__).with_name("report.html.j2")
LIMITS = ImageLimits(max_bytes=2**20, max_pixels=2**20)


def write_report(
    path: Path,
    entries: Sequence[tuple[Sample, ItemResult]],
    summary: Mapping[str, Any],
    training: tuple[str, str] = ("", ""),
) -> None:
    """Write the page. A failure is shown as its code and message.

    `training` is the (CSS, HTML) of the training's report, shown below the samples.
    """
    environment = jinja2.Environment(autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True)
    template = environment.from_string(TEMPLATE.read_text())
    cards = [card(sample, result) for sample, result in entries]
    style, body = map(markupsafe.Markup, training)
    path.write_text(template.render(cards=cards, summary=summary, training_style=style, training=body))


def card(sample: Sample, result: ItemResult) -> dict[str, Any]:
    item = sample.item
    assert isinstance(item.image, bytes)
    return {
        "name": sample.name,
        "note": sample.note,
        "prompt": item.prompt,
        "reasoning": item.reasoning,
        "image": image(item.image, boxes(result)),
        "references": [image(r, []) for r in item.references if isinstance(r, bytes)],
        "scores": result.scores,
        "reward": result.reward,
        "reasons": reasons(result),
    }


def image(encoded: bytes, drawn: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    height, width, _ = decode(encoded, LIMITS).shape
    kind = "image/png" if encoded.startswith(b"\x89PNG") else "image/jpeg"
    data = base64.b64encode(encoded).decode()
    return {"data": data, "type": kind, "width": width, "height": height, "boxes": drawn}


def boxes(result: ItemResult) -> list[dict[str, Any]]:
    """Return the boxes (x0, y0, x1, y1 in pixels) that scorers detected: GenEval's objects, FER's face."""
    drawn = []
    for outcome in result.scores.values():
        if not isinstance(outcome, Score):
            continue
        for found in outcome.detail.get("objects", []):
            label = " ".join(filter(None, [found.get("color"), found["class"], f"{found['score']:.2f}"]))
            drawn.append({"box": found["box"], "label": label, "kind": "object"})
        if outcome.detail.get("box"):
            drawn.append({"box": outcome.detail["box"], "label": "face", "kind": "face"})
    return drawn


def reasons(result: ItemResult) -> list[str]:
    """Return the scorers' explanations of their scores."""
    found_reasons: list[str] = []
    for name, outcome in result.scores.items():
        if isinstance(outcome, ScoreFailure):
            found_reasons.append(f"{name}: {outcome.message}")
        elif "reasons" in outcome.detail:  # GenEval: by rule set
            found_reasons += [f"{name}: {reason}" for reason in outcome.detail["reasons"][outcome.detail["rule_set"]]]
        elif "reason" in outcome.detail:
            found_reasons.append(f"{name}: {outcome.detail['reason']}")
    return found_reasons
