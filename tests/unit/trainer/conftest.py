"""A small set of prompts and concepts on disk, and settings for it."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import settings

from synod.images import encode_png
from tests.unit.trainer.tiny_show_o import image, make_policy, policy, tokenizer_of, uniforms, vocab, vq  # noqa: F401
from trainer.settings import TrainerSettings, load

settings.register_profile("synod", deadline=None, derandomize=True)
settings.load_profile("synod")

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
[trainer.optimizer]
lr = 1e-3
"""


@pytest.fixture(autouse=True)
def keep_all_checkpoints(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("trainer.checkpoint.KEEP", 9)


@pytest.fixture
def world_dir(tmp_path: Path) -> Path:
    """prompts.jsonl, and concepts/bo with two images."""
    (tmp_path / "prompts.jsonl").write_text("\n".join(map(json.dumps, LINES)) + "\n")
    folder = tmp_path / "concepts/bo"
    (folder / "train").mkdir(parents=True)
    info = {"name": "<bo>", "kind": "animal", "class": "dog", "info": "<bo> is a brown dog.", "extra_info": FACTS}
    (folder / "info.json").write_text(json.dumps(info))
    (folder / "conversations.json").write_text(json.dumps(TALKS))
    for i in range(2):
        (folder / f"train/{i}.png").write_bytes(encode_png(np.full((8, 8, 3), 60 * i, np.uint8)))
    return tmp_path


@pytest.fixture
def settings_from(world_dir: Path) -> Callable[..., TrainerSettings]:
    """`settings_from("[trainer.loss]\\nbeta = 0.5", STEPS="7")`: the smallest TOML, added text, and overrides."""
    (world_dir / "model").mkdir()

    def make(text: str = "", **overrides: str) -> TrainerSettings:
        path = world_dir / "train.toml"
        path.write_text(
            '[trainer]\nrun_dir = "run"\n[trainer.policy]\nmodel = "./model"\n'
            '[trainer.data]\ntask = "sync_r1"\nconcepts = "concepts"\n'
            f'prompts = "prompts.jsonl"\nheldout = "./prompts.jsonl"\n{text}'
        )
        return load(path, {f"SYNOD__TRAINER__{key}": value for key, value in overrides.items()})

    return make


@pytest.fixture
def tiny_settings(settings_from: Callable[..., TrainerSettings]) -> Callable[..., TrainerSettings]:
    """`tiny_settings(STEPS="2")`: for the tiny Show-o, four denoising steps, groups of four, with overrides."""
    return lambda **overrides: settings_from(TINY, **overrides)
