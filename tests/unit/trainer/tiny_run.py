"""A small set of prompts and concepts on disk, and settings for it."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from synod.images import encode_png
from trainer.settings import TrainerSettings, load

FACTS = ["<bo> has a red hat", "<bo> has a blue kite"]
TALKS = [{"query": "what is <bo>?", "answer": "<bo> is a dog."}, {"query": "which color?", "answer": "<bo> is brown."}]
LINES: list[dict[str, Any]] = [
    *({"tag": "plain", "prompt": f"photo {i} of <bo>", "concept": "<bo>"} for i in range(3)),
    *({"tag": "attribute", "prompt": f"{i} <bo> wearing its hat", "concept": "<bo>", "fact": i % 2} for i in range(4)),
    *(
        {"tag": "colors", "prompt": f"a photo of {i} cats", "include": [{"class": "cat", "count": i + 1}]}
        for i in range(3)
    ),
    {"tag": "counting", "prompt": "a photo of two dogs", "include": [{"class": "dog", "count": 2}]},
]

TINY = """[trainer.policy.sampler]
denoising_steps = 4
guidance_scale = 2.0
max_new_tokens = 4
[trainer.screen]
group_size = 4
preview_batch_size = 4
max_previews = 12
screen_fraction = 0.3
target_pass_rate = 0.5
select = "first_above"
[trainer.optimizer]
lr = 1e-3
"""


def write_data(folder: Path) -> None:
    """Write prompts.jsonl, and concepts/bo with two images."""
    (folder / "prompts.jsonl").write_text("\n".join(map(json.dumps, LINES)) + "\n")
    concept = folder / "concepts/bo"
    (concept / "train").mkdir(parents=True)
    info = {"name": "<bo>", "kind": "animal", "class": "dog", "info": "<bo> is a brown dog.", "extra_info": FACTS}
    (concept / "info.json").write_text(json.dumps(info))
    (concept / "conversations.json").write_text(json.dumps(TALKS))
    for i in range(2):
        (concept / f"train/{i}.png").write_bytes(encode_png(np.full((8, 8, 3), 60 * i, np.uint8)))


DATA = """task = "sync_r1"
concepts = "concepts"
prompts = "prompts.jsonl"
heldout = "./prompts.jsonl"
"""


def make_settings(
    folder: Path, text: str = "", overrides: Mapping[str, str] | None = None, data: str = DATA
) -> TrainerSettings:
    """Return the smallest settings for `write_data(folder)` and a model in `folder/model`, with added text."""
    path = folder / "train.toml"
    path.write_text(f'[trainer]\nrun_dir = "run"\n[trainer.policy]\nmodel = "./model"\n[trainer.data]\n{data}{text}')
    return load(path, {f"SYNOD__TRAINER__{key}": value for key, value in (overrides or {}).items()})
