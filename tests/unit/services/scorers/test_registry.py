"""The registry: every scorer has settings, a spec and a documented row; none of them loads a model library."""

from __future__ import annotations

import inspect
import subprocess
import sys
from pathlib import Path
from typing import Literal

import pytest

from services.scorers import registry
from tests.building import example

ROOT = Path(__file__).parents[4]
KINDS = sorted(registry.MODULES)


@pytest.mark.parametrize("kind", KINDS)
def test_module_of_a_kind_has_spec_and_build(kind: str) -> None:
    module = registry.MODULES[kind]
    spec, build = (inspect.signature(function).parameters for function in (module.spec, module.build))
    assert list(spec) == list(build) == ["name", "settings"]
    assert spec["settings"] == build["settings"]


@pytest.mark.parametrize("kind", KINDS)
def test_settings_class_has_its_modules_kind(kind: str) -> None:
    assert registry.CLASSES[kind].model_fields["kind"].annotation == Literal[kind]  # type: ignore[valid-type]


@pytest.mark.parametrize("kind", KINDS)
def test_spec_has_the_name_needs_and_range(kind: str) -> None:
    spec = registry.spec("my_name", registry.SETTINGS.validate_python(example(kind)))
    assert spec.name == "my_name"
    assert spec.low < spec.high
    assert spec.needs


def documented() -> dict[str, list[str]]:
    """Needs and range of each kind, as the table of docs/scorers.md has them."""
    text = (ROOT / "docs/scorers.md").read_text()
    rows = [line.strip("| ").split(" | ") for line in text.splitlines() if line.startswith("| `")]
    return {row[0].strip("`"): row[1:3] for row in rows if row[0].strip("`") in registry.MODULES}


@pytest.mark.parametrize("kind", sorted({*KINDS} - {"custom"}))
def test_documented_needs_and_range_are_the_specs(kind: str) -> None:
    """The first range is that of the default settings; a name in it is a setting."""
    settings = registry.SETTINGS.validate_python(example(kind))
    spec = registry.spec(kind, settings)
    needs, ranges = documented()[kind]
    assert needs == ", ".join(spec.needs)
    ends = [eval(end, {}, settings.model_dump()) for end in ranges.partition(";")[0].strip("[]").split(", ")]
    assert ends == pytest.approx([spec.low, spec.high], abs=0.005)


def test_every_kind_has_a_documented_row() -> None:
    assert set(documented()) == set(registry.MODULES)


@pytest.mark.slow
def test_specs_load_no_model_library() -> None:
    program = """
import sys
from services.scorers import registry
from tests.building import example
for kind in registry.MODULES:
    registry.spec(kind, registry.SETTINGS.validate_python(example(kind)))
heavy = {"torch", "transformers", "open_clip", "rapidocr", "onnxruntime", "ray", "httpx"} & set(sys.modules)
assert not heavy, heavy
"""
    done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
