from __future__ import annotations

import importlib
import inspect
import subprocess
import sys
from pathlib import Path
from typing import get_args

import pytest
from pydantic import TypeAdapter

from services import settings
from services.scorer_settings import ScorerSettings
from services.scorers import registry

TREES = {
    "tier": '{"kind": "tier", "model": "a/b"}',
    "ber": '{"kind": "ber", "model": "a/b"}',
    "der": '{"kind": "der", "model": "a/b"}',
    "fer": '{"kind": "fer", "finder": {"family": "mtcnn"}, "embedder": {"family": "small", "model": "a/b"}}',
    "geneval": '{"kind": "geneval", "detector": {"family": "mask2former", "model": "a/b"}, "color_model": "a/b"}',
    "custom": '{"kind": "custom", "load": "my_package.my_scorer:load", "needs": ["image"]}',
    "clip_i": '{"kind": "clip_i", "model": {"family": "transformers", "model": "a/b"}}',
    "clip_t": '{"kind": "clip_t", "model": {"family": "open_clip", "model": "ViT-B-32", "pretrained": "laion2b_e16"}}',
    "clip_direction": '{"kind": "clip_direction", "model": {"family": "transformers", "model": "a/b"}}',
    "pickscore": '{"kind": "pickscore", "model": "a/b", "processor": "c/d"}',
    "hps": '{"kind": "hps", "weights": "a/b"}',
    "aesthetic": '{"kind": "aesthetic", "model": {"family": "transformers", "model": "a/b"}, "weights": "c/d"}',
    "image_reward": '{"kind": "image_reward", "model": "a/b"}',
    "hpsv3": '{"kind": "hpsv3", "model": "a/b"}',
    "ocr": '{"kind": "ocr"}',
    "psnr": '{"kind": "psnr"}',
    "jpeg": '{"kind": "jpeg", "direction": "compressibility"}',
    "bleu": '{"kind": "bleu"}',
    "recognition": '{"kind": "recognition"}',
    "format": '{"kind": "format"}',
    "reflection": '{"kind": "reflection"}',
    "judge": '{"kind": "judge", "url": "http://127.0.0.1:1/v1", "model": "m"}',
    "dense_validity": '{"kind": "dense_validity", "url": "http://127.0.0.1:1/v1", "model": "m"}',
    "quality": '{"kind": "quality", "url": "http://127.0.0.1:1/v1", "model": "m"}',
    "unified_reward": '{"kind": "unified_reward", "url": "http://127.0.0.1:1/v1", "model": "m"}',
    "geneval2": '{"kind": "geneval2", "url": "http://127.0.0.1:1/v1", "model": "m"}',
    "likelihood": '{"kind": "likelihood", "model": "a/b"}',
}


def test_the_table_has_every_kind_of_the_settings() -> None:
    union = get_args(get_args(settings.ScorerSettings)[0])
    assert set(registry.KINDS) == {get_args(kind.model_fields["kind"].annotation)[0] for kind in union} == set(TREES)


@pytest.mark.parametrize("module", registry.KINDS.values())
def test_every_kind_is_described_and_built_from_a_name_and_its_settings(module: str) -> None:
    found = importlib.import_module(module)
    described, built = (inspect.signature(one).parameters for one in (found.spec, found.build))
    assert list(described) == list(built) == ["name", "settings"]
    assert described["settings"] == built["settings"]


@pytest.mark.parametrize("kind", TREES)
def test_spec_bears_the_name_of_the_settings_table(kind: str) -> None:
    adapter: TypeAdapter[ScorerSettings] = TypeAdapter(ScorerSettings)
    spec = registry.spec("my_name", adapter.validate_json(TREES[kind]))
    assert spec.name == "my_name"
    assert spec.low < spec.high
    assert spec.needs


def documented() -> dict[str, list[str]]:
    """Of the table in docs/scorers.md: needs and range of each kind, as written."""
    text = (Path(registry.__file__).parents[2] / "docs/scorers.md").read_text()
    rows = [line.strip("| ").split(" | ") for line in text.splitlines() if line.startswith("| `")]
    return {row[0].strip("`"): row[1:3] for row in rows if row[0].strip("`") in registry.KINDS}


@pytest.mark.parametrize("kind", sorted(set(TREES) - {"custom"}))
def test_the_documents_table_tells_needs_and_range(kind: str) -> None:
    """The first range is that of the default settings; a name in it is a setting."""
    adapter: TypeAdapter[ScorerSettings] = TypeAdapter(ScorerSettings)
    chosen = adapter.validate_json(TREES[kind])
    spec = registry.spec(kind, chosen)
    needs, told = documented()[kind]
    assert needs == ", ".join(spec.needs)
    ends = [eval(end, {}, chosen.model_dump()) for end in told.partition(";")[0].strip("[]").split(", ")]
    assert ends == pytest.approx([spec.low, spec.high], abs=0.005)


def test_the_documents_table_has_every_kind() -> None:
    assert set(documented()) == set(registry.KINDS)


@pytest.mark.slow
def test_specs_load_no_model_library() -> None:
    program = f"""
import sys
from pydantic import TypeAdapter
from services.scorers import registry
from services.scorer_settings import ScorerSettings
for kind, tree in {TREES!r}.items():
    registry.spec(kind, TypeAdapter(ScorerSettings).validate_json(tree))
heavy = [m for m in ("torch", "transformers", "open_clip", "rapidocr", "onnxruntime", "ray") if m in sys.modules]
assert not heavy, heavy
"""
    root = Path(registry.__file__).parents[2]
    done = subprocess.run([sys.executable, "-c", program], cwd=root, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
