"""What batching costs a scorer: the embedded models through LocalBackend, beside the same models called directly.

    make bench-scorers                                  -> benchmarks/results/scorers_cpu.json
    python -m benchmarks.scorers --quick --out FILE     a minute less, for a look

Both sides get the same decoded pictures and do the same preprocessing; they take turns within one run, and medians are
compared. `summary.share_of_direct` is direct time over batched time: 1 is free, the goal is 0.9. Decoding is apart: the
gateway does it once for all scorers, and `summary.decode_ms` says what that saves each further one.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Final

from benchmarks.machine import command, machine
from services import settings
from services.backends import LocalBackend
from services.models.images import crop, distinct
from services.scorers import registry
from services.scorers.image_text import plain
from synod.contracts import Score, ScoreItem
from synod.images import ImageLimits, decode_item
from synod.scoring.inputs import Source

ROOT: Final = Path(__file__).parents[1]
CONFIG: Final = ROOT / "deploy/configs/embedded.toml"
SAMPLES: Final = ROOT / "embedded/data/samples/samples.json"
GOAL: Final = 0.9
_LIMITS: Final = ImageLimits(max_bytes=2**24, max_pixels=2**24)

Direct = Callable[[Any, Sequence[ScoreItem]], object]


def _tier(scorer: Any, items: Sequence[ScoreItem]) -> object:
    reasonings = [item.reasoning for item in items if item.reasoning is not None]
    return scorer._encoder.encode(sorted({t for r in reasonings for t in (r.text, *r.segments)}), "mean")


def _ber(scorer: Any, items: Sequence[ScoreItem]) -> object:
    texts = sorted({plain(item.prompt or "", item.concept) for item in items})
    return scorer._model.text_features(texts), scorer._model.image_features([item.pixels() for item in items])


def _der(scorer: Any, items: Sequence[ScoreItem]) -> object:
    return scorer._model.embed(distinct([p for item in items for p in (item.pixels(), *item.reference_pixels())])[0])


def _fer(scorer: Any, items: Sequence[ScoreItem]) -> object:
    pictures = distinct([p for item in items for p in (item.pixels(), *item.reference_pixels())])[0]
    found = zip(pictures, scorer._finder.largest(pictures), strict=True)
    return scorer._embedder.embed([crop(picture, box, 0.1) for picture, box in found if box is not None])


# How each scorer's model is called without us. GenEval's crops follow from its detections: its own code is called.
DIRECT: Final[dict[str, Direct]] = {
    "tier": _tier,
    "ber": _ber,
    "der": _der,
    "fer": _fer,
    "geneval": lambda scorer, items: scorer.score(items),
}


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure every embedded scorer and write JSON. The exit status is 1 when an item failed."""
    options = _parser().parse_args(arguments)
    if options.quick:
        options.batches, options.repeats = [8], 5
    loaded = settings.load(CONFIG, {})
    raw = _items()
    began_s = time.perf_counter()
    items = [decode_item(item, _LIMITS) for item in raw]
    decode_ms = 1000 * (time.perf_counter() - began_s) / sum(len(item.pictures()) for item in raw)
    cases = [
        case
        for name in options.scorers or DIRECT
        for case in asyncio.run(_scorer(name, loaded, items, options.batches, options.repeats))
    ]
    shares = {
        name: round(statistics.median(c["share_of_direct"] for c in cases if c["scorer"] == name), 3)
        for name in {case["scorer"]: None for case in cases}
    }
    report = {
        "command": command(),
        "hardware": machine(),
        "summary": {"goal": GOAL, "share_of_direct": shares, "decode_ms": round(decode_ms, 3)},
        "cases": cases,
    }
    options.out.parent.mkdir(parents=True, exist_ok=True)
    options.out.write_text(json.dumps(report, indent=1) + "\n")
    for name, share in shares.items():
        print(f"{name:8} {share:6.1%} of direct{'' if share >= GOAL else f', below {GOAL:.0%}'}")
    print(f"decoding {decode_ms:.2f} ms a picture, once for all scorers -> {options.out}")
    return 1 if any(case["failures"] for case in cases) else 0


async def _scorer(name: str, loaded: Any, items: list[ScoreItem], batches: list[int], repeats: int) -> list[Any]:
    scorer: Any = registry.build(name, loaded.scorers[name])
    usable = [item for item in items if all(getattr(item, need) for need in scorer.spec.needs if need != "image")]
    backend = LocalBackend({name: scorer}, max_batch_images=10**6, max_queued_images=10**7)
    try:
        return [await _case(name, scorer, backend, usable, batch, repeats) for batch in batches]
    finally:
        await backend.close()


async def _case(
    name: str, scorer: Any, backend: LocalBackend, items: list[ScoreItem], batch: int, repeats: int
) -> dict[str, Any]:
    chosen = tuple(items[i % len(items)] for i in range(batch))
    direct_s: list[float] = []
    batched_s: list[float] = []
    failures = 0
    for turn in range(repeats + 1):  # the first warms up
        for side in ("direct", "batched") if turn % 2 else ("batched", "direct"):
            began_s = time.perf_counter()
            if side == "direct":
                DIRECT[name](scorer, chosen)
            else:
                staged = await backend.stage(chosen, 1)
                outcomes = await backend.score(name, staged, range(batch), 600.0)
                failures += sum(not isinstance(outcome, Score) for outcome in outcomes)
            if turn:
                (direct_s if side == "direct" else batched_s).append(time.perf_counter() - began_s)
    direct, batched = statistics.median(direct_s), statistics.median(batched_s)
    return {
        "scorer": name,
        "batch": batch,
        "repeats": repeats,
        "direct_items_per_s": batch / direct,
        "batched_items_per_s": batch / batched,
        "share_of_direct": direct / batched,
        "failures": failures,
    }


def _items() -> list[ScoreItem]:
    """The embedded sample items, their pictures encoded."""
    found = [
        Source({k: v for k, v in fields.items() if k != "note"}, SAMPLES.parent, f"{SAMPLES.name}:{i}").load().item
        for i, fields in enumerate(json.loads(SAMPLES.read_text()))
    ]
    return [item for item in found if isinstance(item, ScoreItem)]


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.scorers", description=str(__doc__).partition("\n")[0])
    parser.add_argument("--scorers", nargs="+", choices=tuple(DIRECT), help="these alone")
    parser.add_argument("--batches", nargs="+", type=int, default=[1, 8, 32])
    parser.add_argument("--repeats", type=int, default=31)
    parser.add_argument("--quick", action="store_true", help="batches of 8 alone, five repeats")
    parser.add_argument("--out", type=Path, default=ROOT / "benchmarks/results/scorers_cpu.json")
    return parser


if __name__ == "__main__":
    sys.exit(main())
