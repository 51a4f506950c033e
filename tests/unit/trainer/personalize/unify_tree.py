"""Write a small folder of concepts in UnifyBench's published form."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from synod.images import encode_png

FACTS = ("{} has red hat", "{} has blue hat", "{} has green hat")


def write_image(path: Path, level: int) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(encode_png(np.full((8, 8, 3), level, np.uint8)))
    return path


def write_json(path: Path, tree: Any) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(tree))
    return path


def write_tree(root: Path, names: Sequence[str] = ("bo", "cy"), kinds: Sequence[str] = ("animal", "animal")) -> Path:
    """Write the concepts: 2 training images, 2 test images, questions, prompts and a UnifyBench++ part each."""
    for number in range(3):
        write_image(root / f"random_images/{number}.png", 100 + number)
    write_json(root / "pure_generation.json", {k: ["a photo of {} on grass", "a {}"] for k in ("person", "animal")})
    write_json(root / "concept/train/train_images.json", {name: ["0.png", "1.png"] for name in names})
    for place, (short, kind) in enumerate(zip(names, kinds, strict=True)):
        name, train, test = f"<{short}>", root / "concept/train" / short, root / "concept/test" / short
        for number in range(2):
            write_image(train / f"{number}.png", 10 * place + number)
            write_image(test / f"{number}.png", 50 + 10 * place + number)
        facts = [fact.format(name) for fact in FACTS]
        info = {"class": "dog" if kind == "animal" else "person", "info": f"{name} is red .", "extra_info": facts}
        live = {"conversation_type": "human" if kind == "person" else "object", "generation_type": "live_subject"}
        write_json(train / "info.json", {**info, **live})
        talk = {"query": f"what is {name} ?", "answer": f"{name} is red ."}
        write_json(train / "conversations.json", {"0.png": [talk], "1.png": [talk], "text_only": [talk]})
        asked = [
            {"query": f"is {name} in photo ?", "answer": "Yes."},
            {"query": f"is {name} on grass ?", "answer": "Yes."},
        ]
        write_json(train / "positive_recognitions.json", asked)
        write_json(train / "plus.json", plus(name))
        write_json(test / "vqa.json", {"0.png": [talk], "1.png": [talk]})
        choice = {"type": "text_only_choice", "query": f"what color is {name} ? a. red b. blue", "answer": "a"}
        write_json(test / "text_only.json", [{"type": "text_only", **talk}, choice])
        vague = [f"a photo of {name} wearing hat", f"{name} wearing hat", f"{name} has hat"]
        write_json(test / "t2i_conditions.json", {"personalized_driven_generation": vague})
    return root


def plus(name: str) -> dict[str, Any]:
    facts = [
        {
            "text": FACTS[i].format(name),
            "split": split,
            "prompt": f"{i} {name} wearing hat",
            "resolved": f"{i} a dog red hat",
        }
        for i, split in enumerate(("train", "test", "test"))
    ]
    passage = {
        "passage": f"{name} is red .",
        "question": "what is red ?",
        "answer": name,
        "points": ["red hat", "a dog"],
    }
    dense = {"prompt": f"{name} , wearing hat", "resolved": f"{name} , wearing red hat"}
    return {
        "facts": facts,
        "dense": [{"prompt": f"{name} , on grass"}],
        "dense_reasoning": [passage],
        "dense_generation": [dense],
    }
