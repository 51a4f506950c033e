"""Measure the overhead of batching: embedded scorers through LocalBackend against direct calls.

    make bench-scorers                                  -> benchmarks/results/scorers_cpu.json
    python -m benchmarks.scorers --quick --out FILE     a shorter run

Both sides get the same decoded images and do the same preprocessing. They alternate within one run on one thread,
because torch gives every calling thread its own pool, and two pools would compete. Medians are compared:
`summary.share_of_direct` is direct time over batched time (1 means without overhead, the goal is 0.9). Decoding is
excluded; the gateway does it once for all scorers, and `summary.decode_ms` is its cost. `through_ray` is a service on
the same machine, called over msgpack by one client that waits for each answer, so it includes encoding, HTTP, decoding
and Ray.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Final

from benchmarks.machine import command, machine
from services import settings
from services.backends import LocalBackend
from services.cluster.local import RewardService, free_port
from services.scorers import registry
from services.scorers.base import ScorerSpec, run_batch
from services.scorers.geneval.rules import THRESHOLD
from services.scorers.shared.image_text import to_plain_text
from services.scorers.shared.images import crop, deduplicate
from synod.client import SynodClient
from synod.contracts import Outcome, Pixels, Score, ScoreItem, ScoreRequest
from synod.images import ImageLimits, decode_item
from synod.scoring.inputs import Source

ROOT: Final = Path(__file__).parents[1]
CONFIG: Final = ROOT / "deploy/configs/embedded.toml"
SAMPLES: Final = ROOT / "embedded/data/samples/samples.json"
GOAL: Final = 0.9
_LIMITS: Final = ImageLimits(max_bytes=2**24, max_pixels=2**24)

Direct = Callable[[Any, Sequence[ScoreItem]], Callable[[], object]]


def _tier(scorer: Any, items: Sequence[ScoreItem]) -> Callable[[], object]:
    reasonings = [item.reasoning for item in items if item.reasoning is not None]
    return lambda: scorer._encoder.encode(sorted({t for r in reasonings for t in (r.text, *r.segments)}), "mean")


def _ber(scorer: Any, items: Sequence[ScoreItem]) -> Callable[[], object]:
    texts = sorted({to_plain_text(item.prompt or "", item.concept) for item in items})
    images = [item.pixels() for item in items]
    return lambda: (scorer._model.text_features(texts), scorer._model.image_features(images))


def _der(scorer: Any, items: Sequence[ScoreItem]) -> Callable[[], object]:
    return lambda: scorer._embed(_distinct(items))


def _fer(scorer: Any, items: Sequence[ScoreItem]) -> Callable[[], object]:
    def call() -> object:
        images = _distinct(items)
        found = zip(images, scorer._finder.largest(images), strict=True)
        return scorer._embedder.embed([crop(image, box, 0.1) for image, box in found if box is not None])

    return call


def _geneval(scorer: Any, items: Sequence[ScoreItem]) -> Callable[[], object]:
    """Run the detector on all images, then the colour model on the crops that scoring classified."""
    classified: list[tuple[Any, ...]] = []
    classify = scorer._colors.classify

    def recorded(crops: Any, names: Any) -> Any:
        classified.append((list(crops), names))
        return classify(*classified[-1])

    scorer._colors.classify = recorded
    scorer.score(items)
    scorer._colors.classify = classify
    images = [item.pixels() for item in items]
    return lambda: (scorer._detector.detect(images, least=THRESHOLD), [classify(*crops) for crops in classified])


def _distinct(items: Sequence[ScoreItem]) -> Sequence[Pixels]:
    return deduplicate([image for item in items for image in (item.pixels(), *item.reference_pixels())])[0]


# Prepares, untimed, a direct call of each scorer's models.
DIRECT: Final[dict[str, Direct]] = {"tier": _tier, "ber": _ber, "der": _der, "fer": _fer, "geneval": _geneval}


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure every embedded scorer and write JSON. The exit status is 1 if an item failed."""
    options = _parser().parse_args(arguments)
    batches, repeats = _plan(options)
    loaded = settings.load(CONFIG, {})
    raw = _items()
    began_s = time.perf_counter()
    items = [decode_item(item, _LIMITS) for item in raw]
    decode_ms = 1000 * (time.perf_counter() - began_s) / sum(len(item.images()) for item in raw)
    cases: list[dict[str, Any]] = []
    usable: dict[str, list[ScoreItem]] = {}
    for name in options.scorers or DIRECT:
        scorer = registry.build(name, loaded.scorers[name])
        # Some samples are examples of items that a scorer refuses.
        places = [i for i, outcome in enumerate(run_batch(scorer, items)) if isinstance(outcome, Score)]
        usable[name] = [raw[i] for i in places]
        cases += asyncio.run(_cases(name, scorer, [items[i] for i in places], batches, repeats))
    through_ray = _through_ray(usable, max(batches), repeats) if options.ray else []
    shares = {
        name: round(statistics.median(c["share_of_direct"] for c in cases if c["scorer"] == name), 3) for name in usable
    }
    report = {
        "command": command(),
        "hardware": machine(),
        "summary": {"goal": GOAL, "share_of_direct": shares, "decode_ms": round(decode_ms, 3)},
        "cases": cases,
        "through_ray": through_ray,
    }
    options.out.parent.mkdir(parents=True, exist_ok=True)
    options.out.write_text(json.dumps(report, indent=1) + "\n")
    for name, share in shares.items():
        print(f"{name:8} {share:6.1%} of direct{'' if share >= GOAL else f', below {GOAL:.0%}'}")
    print(f"decoding {decode_ms:.2f} ms per image, once for all scorers -> {options.out}")
    for case in through_ray:
        print(f"{case['scorer']:8} {case['items_per_s']:6.1f} items/s through Ray, batches of {case['batch']}")
    return 1 if any(case["failures"] for case in (*cases, *through_ray)) else 0


class Sides:
    """A scorer that runs and times the direct call instead while `direct` is set."""

    def __init__(self, scorer: Any) -> None:
        self.spec: ScorerSpec = scorer.spec
        self.scorer = scorer
        self.direct: Callable[[], object] | None = None
        self.direct_s = 0.0

    def score(self, items: Sequence[ScoreItem]) -> Sequence[Outcome]:
        if self.direct is None:
            scored: Sequence[Outcome] = self.scorer.score(items)
            return scored
        began_s = time.perf_counter()
        self.direct()
        self.direct_s = time.perf_counter() - began_s
        return [Score(self.spec.low)] * len(items)


async def _cases(name: str, scorer: Any, items: list[ScoreItem], batches: list[int], repeats: int) -> list[Any]:
    sides = Sides(scorer)
    backend = LocalBackend({name: sides}, max_batch_images=10**6, max_queued_images=10**7)
    try:
        return [await _case(name, sides, backend, items, batch, repeats) for batch in batches]
    finally:
        await backend.close()


async def _case(
    name: str, sides: Sides, backend: LocalBackend, items: list[ScoreItem], batch: int, repeats: int
) -> dict[str, Any]:
    chosen = tuple(items[i % len(items)] for i in range(batch))
    call = DIRECT[name](sides.scorer, chosen)
    direct_s: list[float] = []
    batched_s: list[float] = []
    failures = 0
    for turn in range(repeats + 1):  # the first warms up
        for side in ("direct", "batched") if turn % 2 else ("batched", "direct"):
            sides.direct = call if side == "direct" else None
            began_s = time.perf_counter()
            outcomes = await backend.score(name, await backend.stage(chosen, 1), range(batch), 600.0)
            took_s = time.perf_counter() - began_s
            failures += sum(not isinstance(outcome, Score) for outcome in outcomes)
            if turn:
                direct_s.append(sides.direct_s) if side == "direct" else batched_s.append(took_s)
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


def _through_ray(items: Mapping[str, list[ScoreItem]], batch: int, repeats: int) -> list[dict[str, Any]]:
    """Measure each scorer on a service with the embedded settings and no score store."""
    overrides = {"SYNOD__SERVER__PORT": str(free_port()), "SYNOD__STORE__MAX_SCORES": "0"}
    with tempfile.TemporaryDirectory() as folder:
        loaded = settings.load(CONFIG, overrides)
        service = RewardService(loaded, Path(folder))
        try:
            if not service.start(print):
                raise RuntimeError("the service did not start")
            with SynodClient(service.url, timeout_s=600.0) as client:
                return [_asked(client, name, usable, batch, repeats) for name, usable in items.items()]
        finally:
            service.stop()


def _asked(client: SynodClient, name: str, items: list[ScoreItem], batch: int, repeats: int) -> dict[str, Any]:
    request = ScoreRequest(tuple(items[i % len(items)] for i in range(batch)), scorers=(name,))
    took_s: list[float] = []
    failures = 0
    for turn in range(repeats + 1):  # the first warms up
        began_s = time.perf_counter()
        answer = client.score(request)
        failures += sum(not isinstance(result.scores[name], Score) for result in answer.results)
        if turn:
            took_s.append(time.perf_counter() - began_s)
    rate = batch / statistics.median(took_s)
    return {"scorer": name, "batch": batch, "repeats": repeats, "items_per_s": rate, "failures": failures}


def _items() -> list[ScoreItem]:
    """Return the embedded sample items with encoded images."""
    found = [
        Source({k: v for k, v in fields.items() if k != "note"}, SAMPLES.parent, f"{SAMPLES.name}:{i}").load().item
        for i, fields in enumerate(json.loads(SAMPLES.read_text()))
    ]
    return [item for item in found if isinstance(item, ScoreItem)]


def _plan(options: argparse.Namespace) -> tuple[list[int], int]:
    """Return batch sizes and repeats: the given ones, or the defaults of a quick or full run."""
    return options.batches or ([8] if options.quick else [1, 8, 32]), options.repeats or (5 if options.quick else 31)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.scorers", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--scorers", nargs="+", choices=tuple(DIRECT), help="only these")
    parser.add_argument("--batches", nargs="+", type=int, help="batch sizes (default: 1 8 32)")
    parser.add_argument("--repeats", type=int, help="repeats per case (default: 31)")
    parser.add_argument("--no-ray", dest="ray", action="store_false", help="skip the service")
    parser.add_argument("--quick", action="store_true", help="change the defaults to batches of 8 and 5 repeats")
    parser.add_argument(
        "--out", type=Path, default=ROOT / "benchmarks/results/scorers_cpu.json", help="the result (%(default)s)"
    )
    return parser


if __name__ == "__main__":
    sys.exit(main())
