"""Draw a benchmark's images and score them; an interrupted evaluation goes on where it stopped.

    OUT/evaluation.json           what was drawn: prompts, weights, sampler, seed
    OUT/NNNNN/samples/KKKK.png    image KKKK of prompt NNNNN (from 0), as GenEval's generator lays them out
    OUT/rows.jsonl                a line per scored image, a score log: `synod replay OUT/rows.jsonl` reads it

An image that exists is not drawn again. A row that has every score is final; the next run scores the others again. The
last line of an image counts. On several ranks each draws and scores its share of the images; rank r > 0 writes
OUT/rows-r.jsonl, which rank 0 appends to rows.jsonl in the end, or when the same command continues.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any, Final

from tqdm import tqdm

from synod.client import SynodClient
from synod.contracts import Digest, GenEvalMetadata, Outcome, Pixels, Score, ScoreRequest
from synod.errors import SettingsError
from synod.images import encode_png
from synod.records import write
from synod.scoring.inputs import Source
from synod.scoring.log import ScoreLog, read_log
from synod.scoring.run import score_all
from trainer.evaluate.base import Benchmark, Row
from trainer.images import write_whole

CONDITIONS: Final = "evaluation.json"
ROWS: Final = "rows.jsonl"
EVALUATION: Final = 2**31 + 1  # in place of the step in the key of random numbers; no training has that many steps
Seed = tuple[int, ...]
Draw = Callable[[Sequence[str], Sequence[Seed]], list[Pixels]]


@dataclass(frozen=True, slots=True)
class Image:
    """Image number `image` of prompt number `prompt`, and its file relative to the evaluation's directory."""

    prompt: int
    image: int

    @property
    def file(self) -> str:
        return f"{self.prompt:05d}/samples/{self.image:04d}.png"


def plan(prompts: Sequence[int], images: int) -> list[Image]:
    """Return `images` images of each prompt number; the first image of every prompt comes first."""
    return [Image(prompt, image) for image in range(images) for prompt in prompts]


def share(images: Sequence[Image], batch: int, rank: int, world: int) -> list[Image]:
    """Return the images of a rank: of the batches that one rank would draw, those numbered rank, rank + world, ...

    Rounding depends on a batch's size, so batches are not divided.
    """
    firsts = range(rank * batch, len(images), world * batch)
    return [one for first in firsts for one in images[first : first + batch]]


def rows_file(out: Path, rank: int) -> Path:
    """Return the score log that a rank writes."""
    return out / (f"rows-{rank}.jsonl" if rank else ROWS)


def merge_rows(out: Path) -> None:
    """Append the score logs of other ranks to OUT/rows.jsonl, and remove them. Raises SettingsError."""
    for part in sorted(out.glob("rows-*.jsonl")):
        with ScoreLog(out / ROWS), ScoreLog(part), (out / ROWS).open("ab") as rows:  # they drop incomplete last lines
            rows.write(part.read_bytes())
        part.unlink()


def prepare(out: Path, conditions: Mapping[str, Any]) -> None:
    """Create the directory of an evaluation under these conditions, or check that it already has them.

    Raises SettingsError, which names the conditions that differ.
    """
    path = out / CONDITIONS
    try:
        found = json.loads(path.read_text()) if path.exists() else None
        if found is None:
            if out.exists() and any(out.iterdir()):
                raise SettingsError(f"{out} holds other files and no {CONDITIONS}; give --out a new directory")
            write_whole(path, (json.dumps(conditions, indent=2) + "\n").encode())
            return
        differing = [name for name in {**found, **conditions} if found.get(name) != conditions.get(name)]
    except SettingsError:
        raise
    except (ValueError, TypeError, AttributeError) as error:
        raise SettingsError(
            f"{path} is not the record of an evaluation ({error}); give --out a new directory"
        ) from None
    except OSError as error:
        raise SettingsError(f"{out}: {error.strerror}; give --out a directory that can be written") from None
    if differing:
        changes = "; ".join(f"{name} was {found.get(name)!r}, now {conditions.get(name)!r}" for name in differing)
        raise SettingsError(f"{out} holds another evaluation ({changes}); give --out a new directory")


def run(
    benchmark: Benchmark,
    images: Sequence[Image],
    draw: Draw,
    client: SynodClient,
    scorers: Sequence[str],
    out: Path,
    *,
    seed: int,
    batch: int,
    rank: int = 0,
) -> None:
    """Draw the images that do not exist, `batch` at a time, and score those without a final row.

    `images` are those of this rank; rank 0 shows the progress of its own.

    The service scores some images while the next are drawn. The random numbers of an image follow from (seed, prompt
    number, image number). Raises the SynodError of a service that fails; what was drawn and scored is kept.
    """
    out.mkdir(parents=True, exist_ok=True)
    scored = _outcomes(out)
    left = [one for one in images if not _is_final(scored.get(one.file, {}), scorers) or not (out / one.file).exists()]
    exists = {one: (out / one.file).exists() for one in left}
    template = ScoreRequest((), tuple(scorers))
    num_drawn = len(images) - sum(not found for found in exists.values())
    with (
        ScoreLog(rows_file(out, rank)) as log,
        tqdm(
            total=len(images), initial=num_drawn, desc=f"drawing {benchmark.name}", unit="image", disable=rank > 0
        ) as bar,
    ):

        def sources() -> Iterator[Source]:
            yield from (_source(benchmark, one, out) for one, found in exists.items() if found)
            absent = iter([one for one, found in exists.items() if not found])
            while chosen := list(islice(absent, batch)):
                prompts = [benchmark.prompts[one.prompt].text for one in chosen]
                seeds = [(seed, EVALUATION, one.prompt, one.image) for one in chosen]
                for one, pixels in zip(chosen, draw(prompts, seeds), strict=True):
                    write_whole(out / one.file, encode_png(pixels))
                bar.update(len(chosen))
                yield from (_source(benchmark, one, out) for one in chosen)

        for done, one in enumerate(score_all(client, sources(), template), len(images) - len(left) + 1):
            assert one.result is not None
            log.write(one.loaded, template, one.result)
            bar.set_postfix(scored=done, refresh=False)


def rows(images: Sequence[Image], out: Path) -> list[Row]:
    """Return a row for each image, in order; one without a line has no outcomes. Raises SettingsError."""
    found = _outcomes(out)
    return [Row(one.prompt, one.image, one.file, found.get(one.file, {})) for one in images]


def _outcomes(out: Path) -> dict[str, dict[str, Outcome]]:
    """Return each image's outcomes by scorer, of all its lines: the last score, or the last failure without one.

    Lines of a file that has changed since do not count.
    """
    found: dict[str, dict[str, Outcome]] = {}
    digests: dict[str, Digest | None] = {}
    for line in read_log(out / ROWS) if (out / ROWS).exists() else ():
        file = str(line.source.fields["image"])
        digest = line.source.digests.get(file)
        if digests.setdefault(file, digest) != digest:
            digests[file], found[file] = digest, {}
        known = found.setdefault(file, {})
        for name, outcome in line.result.scores.items():
            if isinstance(outcome, Score) or not isinstance(known.get(name), Score):
                known[name] = outcome
    return found


def _is_final(outcomes: Mapping[str, Outcome], scorers: Sequence[str]) -> bool:
    return all(isinstance(outcomes.get(name), Score) for name in scorers)


def _source(benchmark: Benchmark, one: Image, out: Path) -> Source:
    prompt = benchmark.prompts[one.prompt]
    fields: dict[str, Any] = {"image": one.file, "prompt": prompt.text}
    if prompt.geneval is not None:
        fields["geneval"] = write(GenEvalMetadata, prompt.geneval)
    return Source(fields, out, one.file)
