"""`python -m embedded.world.export`: write all files of embedded/data, bitwise reproducibly.

concepts/<name>/{info,conversations}.json and train/*.png, prompts/{train,heldout}.jsonl (GenEval metadata lines with
further fields), prompts/geneval_{train,heldout}.jsonl (those of GenEval alone), prompts/{train,heldout}.txt (the texts
of the latter, one a line), samples/*.png and samples.json (items as on the wire, with images as file names). unify/ has
the unseen concepts, as `unify` describes.
"""

from __future__ import annotations

import io
import json
from collections.abc import Iterator
from pathlib import Path

from PIL import Image

from embedded.world import unify
from embedded.world.concepts import CONCEPTS
from embedded.world.conversations import conversations
from embedded.world.json_records import info_json, prompt_json
from embedded.world.prompts import PROMPTS_HELDOUT, PROMPTS_TRAIN
from embedded.world.samples import samples
from embedded.world.scenes import training_renders
from synod.contracts import Pixels

DATA = Path(__file__).resolve().parents[1] / "data"


def png(pixels: Pixels) -> bytes:
    """Encode uint8 [H W 3] as a small PNG."""
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG", optimize=True)
    return buffer.getvalue()


def files() -> Iterator[tuple[str, Pixels | str]]:
    """Yield every file as (path under embedded/data, image or text)."""
    for profile in CONCEPTS:
        folder = f"concepts/{profile.name.strip('<>')}"
        yield f"{folder}/info.json", json.dumps(info_json(profile), indent=1) + "\n"
        talks = [{"query": query, "answer": answer} for query, answer in conversations(profile)]
        yield f"{folder}/conversations.json", json.dumps(talks, indent=1) + "\n"
        for i, drawn in enumerate(training_renders(profile)):
            yield f"{folder}/train/{i:02d}.png", drawn.image
    for name, prompts in (("train", PROMPTS_TRAIN), ("heldout", PROMPTS_HELDOUT)):
        yield f"prompts/{name}.jsonl", "".join(json.dumps(prompt_json(p)) + "\n" for p in prompts)
        plain = [p for p in prompts if p.concept is None]
        yield f"prompts/geneval_{name}.jsonl", "".join(json.dumps(prompt_json(p)) + "\n" for p in plain)
        yield f"prompts/{name}.txt", "".join(f"{p.text}\n" for p in plain)
    yield from unify.files()
    entries, images = samples()
    yield "samples/samples.json", json.dumps(entries, indent=1) + "\n"
    for name, image in images.items():
        yield f"samples/{name}", image


def main(data: Path = DATA) -> int:
    """Write all files and return their total bytes."""
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
