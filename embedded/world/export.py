"""`python -m embedded.world.export`: write everything under embedded/data from the code. Same code, same bytes.

concepts/<name>/{info,conversations}.json and train/*.png, prompts/{train,heldout}.jsonl (GenEval's metadata lines with
our fields beside them), samples/*.png and samples.json (items of the wire, images as file names).
"""

from __future__ import annotations

import io
import json
from collections.abc import Iterator
from pathlib import Path

from PIL import Image

from embedded.world.concepts import CONCEPTS
from embedded.world.prompts import PROMPTS_HELDOUT, PROMPTS_TRAIN
from embedded.world.samples import samples
from embedded.world.scenes import training_renders
from embedded.world.wire import conversations_json, info_json, prompt_json
from synod.contracts import Pixels

DATA = Path(__file__).resolve().parents[1] / "data"


def png(pixels: Pixels) -> bytes:
    """A small PNG of uint8 [H W 3]."""
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG", optimize=True)
    return buffer.getvalue()


def files() -> Iterator[tuple[str, Pixels | str]]:
    """Every file as (path under embedded/data, image or text)."""
    for card in CONCEPTS:
        folder = f"concepts/{card.name.strip('<>')}"
        yield f"{folder}/info.json", json.dumps(info_json(card), indent=1) + "\n"
        yield f"{folder}/conversations.json", json.dumps(conversations_json(card), indent=1) + "\n"
        for i, drawn in enumerate(training_renders(card)):
            yield f"{folder}/train/{i:02d}.png", drawn.image
    for name, prompts in (("train", PROMPTS_TRAIN), ("heldout", PROMPTS_HELDOUT)):
        yield f"prompts/{name}.jsonl", "".join(json.dumps(prompt_json(p)) + "\n" for p in prompts)
    entries, images = samples()
    yield "samples/samples.json", json.dumps(entries, indent=1) + "\n"
    for name, image in images.items():
        yield f"samples/{name}", image


def main(data: Path = DATA) -> int:
    """Write all files; returns how many bytes they take."""
    total = 0
    for name, content in files():
        path = data / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content.encode() if isinstance(content, str) else png(content))
        total += path.stat().st_size
    print(f"{data}: {total / 1e6:.2f} MB")
    return total


if __name__ == "__main__":
    main()
