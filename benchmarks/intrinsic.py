"""Measure whether the intrinsic reward prefers a true prompt to one with a wrong word, on the synthetic world.

    python -m benchmarks.intrinsic --claims 600                                    # the embedded policy
    python -m benchmarks.intrinsic --claims 600 --policy build/weights/show-o-captions

Each claim is a held-out prompt, a fresh scene of it with exact ground truth, and the prompt with one word changed so
that it is false of the scene: a count, a colour, a relation ("left" for "right"), a place, or an object. `pairs` is the
share of claims whose true prompt has the higher intrinsic reward, `words` the share in which the true word alone is
likelier than the false one after the same words; `black` is `pairs` for a black image in place of the scene, so what
the language without the image gives: half, if nothing. Errors are binomial. The goal is .85 of each kind, the floor
.80.

The embedded policy was not trained to describe images, so its figures should be near those of the black image;
`python -m embedded.makers --only show-o-captions` trains one that was. About two minutes on two idle cores; no service.
"""

from __future__ import annotations

import argparse
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
from tqdm import tqdm

from benchmarks.arguments import count, exit_with
from benchmarks.machine import command, commit, machine
from embedded import world
from embedded.world.language import NUMBERS, WORD, plural
from embedded.world.records import Task
from synod.contracts import Pixels
from trainer.distributed import device
from trainer.images import write_whole
from trainer.policy import registry
from trainer.policy.base import Reader, TokenLogp
from trainer.rewards.intrinsic import QUESTION, likelihood
from trainer.settings import ShowOSettings
from trainer.types import Query

ROOT: Final = Path(__file__).resolve().parents[1]
GOAL: Final = 0.85
FLOOR: Final = 0.80
SHARES: Final = ("pairs", "words", "black")
BATCH: Final = 20  # claims
KINDS: Final[Mapping[str, tuple[Task, ...]]] = {  # where a word of each kind is found
    "count": ("counting",),
    "colour": ("colors", "color_attr", "dense"),
    "relation": ("position",),
    "place": ("dense",),
    "object": ("single_object", "two_object", "position"),
}
_RELATIONS: Final = ("left", "right", "above", "below")


@dataclass(frozen=True, slots=True, eq=False)
class Claim:
    """A scene, uint8 [H W 3], with a prompt that is true of it and one that is false by a word of this kind."""

    kind: str
    image: Pixels
    true: str
    false: str


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure and write the result; exit status 0: every kind is at or above FLOOR."""
    options = _parser().parse_args(arguments)
    policy = registry.load(ShowOSettings(model=str(options.policy), vq=str(options.vq)))
    assert isinstance(policy, Reader)
    policy.to(device())
    claims = draw(options.claims, options.seed)
    found = measure(policy, claims)
    result = {"command": command(), "commit": commit(), "machine": machine(), "goal": GOAL, "floor": FLOOR, **found}
    write_whole(options.out, (json.dumps(result, indent=1, allow_nan=False) + "\n").encode())
    for kind, one in found["kinds"].items():
        figures = "  ".join(f"{name} {one[name]:.3f} ± {one[f'{name}_error']:.3f}" for name in SHARES)
        print(f"{kind:<10}n {one['n']:<5}{figures}")
    return 0 if found["above_floor"] else 1


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.intrinsic", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--claims", type=count, default=600, help="claims, equally many of each kind (600)")
    weights = ROOT / "embedded/weights"
    parser.add_argument("--policy", type=Path, default=weights / "show-o-world", help="a Show-o directory")
    parser.add_argument("--vq", type=Path, default=weights / "magvit-world", help="its image tokenizer")
    parser.add_argument("--seed", type=int, default=0, help="of prompts and scenes (0)")
    parser.add_argument(
        "--out", type=Path, default=ROOT / "benchmarks/results/intrinsic.json", help="the result (%(default)s)"
    )
    return parser


def draw(number: int, seed: int) -> list[Claim]:
    """Return claims about held-out prompts, the kinds in turn; claim i follows from (seed, i)."""
    kinds = tuple(KINDS)
    return [_claim(kinds[i % len(kinds)], np.random.default_rng([seed, i])) for i in range(number)]


def _claim(kind: str, rng: np.random.Generator) -> Claim:
    while True:
        task = KINDS[kind][int(rng.integers(len(KINDS[kind])))]
        pool = world.POOLS[task, "heldout"]
        prompt = pool[int(rng.integers(len(pool)))]
        false = world.change_one_word(prompt, rng)
        if kind_of(prompt.text, false) == kind:
            return Claim(kind, world.render(world.scene_for(prompt, rng), rng).image, prompt.text, false)


def kind_of(true: str, false: str) -> str:
    """Return which kind of word differs between two prompts; "other" for accessories and for names."""
    (before, after), *more = ((a, b) for a, b in zip(WORD.findall(true), WORD.findall(false), strict=True) if a != b)
    assert not more, "one word differs"
    families = {
        "count": tuple(NUMBERS.values()),
        "colour": tuple(world.COLORS),
        "relation": _RELATIONS,
        "place": world.PLACES,
        "object": tuple(name for one in world.CLASSES for name in (one, plural(one))),
    }
    return next((kind for kind, words in families.items() if before in words and after in words), "other")


def measure(policy: Reader, claims: Sequence[Claim]) -> dict[str, Any]:
    """Return the figures of each kind of word and of all, and whether every kind reaches GOAL and FLOOR."""
    rows: list[tuple[str, bool, bool, bool]] = []
    for first in tqdm(range(0, len(claims), BATCH), unit="batch", desc="reading"):
        batch = claims[first : first + BATCH]
        seen = _read(policy, batch, [claim.image for claim in batch])
        unseen = _read(policy, batch, [np.zeros_like(claim.image) for claim in batch])
        for claim, (true, false), (dark, darker) in zip(batch, seen, unseen, strict=True):
            at = next(i for i, (a, b) in enumerate(zip(true.tokens, false.tokens, strict=False)) if a != b)
            pair, black = likelihood(true) > likelihood(false), likelihood(dark) > likelihood(darker)
            rows.append((claim.kind, pair, true.values[at] > false.values[at], black))
    asked = dict.fromkeys(row[0] for row in rows)
    kinds = {kind: _figures([row[1:] for row in rows if row[0] == kind]) for kind in asked}
    kinds["all"] = _figures([row[1:] for row in rows])
    shares = [one["pairs"] for one in kinds.values()]
    return {"kinds": kinds, "above_goal": min(shares) >= GOAL, "above_floor": min(shares) >= FLOOR}


def _read(policy: Reader, batch: Sequence[Claim], images: Sequence[Pixels]) -> list[tuple[TokenLogp, TokenLogp]]:
    """Return the tokens of each claim's true and false prompt, as read from these images."""
    queries = [Query(QUESTION, image) for image in images for _ in range(2)]
    found = policy.token_logps(queries, [text for claim in batch for text in (claim.true, claim.false)])
    return list(zip(found[::2], found[1::2], strict=True))


def _figures(rows: Sequence[tuple[bool, bool, bool]]) -> dict[str, float]:
    found: dict[str, float] = {"n": len(rows)}
    for name, column in zip(SHARES, zip(*rows, strict=True), strict=True):
        share = sum(column) / len(rows)
        found |= {name: share, f"{name}_error": math.sqrt(share * (1 - share) / len(rows))}
    return found


if __name__ == "__main__":
    exit_with(main)
