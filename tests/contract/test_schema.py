"""The protobuf schema: generated code is up to date, the schema is lint-clean and breaks no released caller."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[2]
BUF = Path(sys.executable).with_name("buf")
SCHEMA = "synod/v1/reward.proto"


def buf(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    environ = {**os.environ, "BUF_CACHE_DIR": str(folder / "cache")}
    return subprocess.run([BUF, *arguments], cwd=folder, env=environ, capture_output=True, text=True, check=False)


@pytest.fixture
def copy(tmp_path: Path) -> Path:
    """A copy of the schema and of buf's settings, to change."""
    shutil.copytree(ROOT / "protos", tmp_path / "protos")
    shutil.copy(ROOT / "buf.yaml", tmp_path)
    return tmp_path


def change(copy: Path, old: str, new: str) -> None:
    path = copy / "protos" / SCHEMA
    assert old in path.read_text()
    path.write_text(path.read_text().replace(old, new))


def test_the_generated_code_is_up_to_date(tmp_path: Path) -> None:
    subprocess.run([sys.executable, ROOT / "protos/generate.py", tmp_path], check=True)
    fresh = {path.name: path.read_text() for path in (tmp_path / "synod/v1").iterdir()}
    kept = {path.name: path.read_text() for path in (ROOT / "synod/v1").glob("reward_pb2*")}
    assert kept == fresh, "run `make proto`"


def test_the_schema_is_clean_and_breaks_nothing(copy: Path) -> None:
    assert buf(copy, "lint").stdout == ""
    breaking = buf(copy, "breaking", "--against", "protos/released.binpb")
    assert (breaking.returncode, breaking.stdout) == (0, "")


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("optional int64 timeout_ms = 5;", "optional int64 timeout_ms = 15;", 'field "5"'),
        ("optional int64 timeout_ms = 5;", "optional int32 timeout_ms = 5;", "timeout_ms"),
        ("  string message = 2;\n", "", 'field "2"'),
        ("RELATION_ABOVE = 3;", "RELATION_OVER = 3;", "RELATION_ABOVE"),
        ("rpc PutImages(PutImagesRequest)", "rpc StoreImages(PutImagesRequest)", "PutImages"),
    ],
    ids=["renumbered", "retyped", "removed", "renamed value", "renamed call"],
)
def test_a_planted_breaking_change_is_detected(copy: Path, old: str, new: str, message: str) -> None:
    change(copy, old, new)
    breaking = buf(copy, "breaking", "--against", "protos/released.binpb")
    assert breaking.returncode != 0
    assert message in breaking.stdout


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("  // Pixels, >= 1.\n", "", 'Field "height" should have a non-empty comment'),
        ("string class_name = 1", "string className = 1", 'Field name "className" should be lower_snake_case'),
    ],
    ids=["no comment", "camel case"],
)
def test_a_planted_lint_error_is_detected(copy: Path, old: str, new: str, message: str) -> None:
    change(copy, old, new)
    lint = buf(copy, "lint", "--error-format=text")
    assert lint.returncode != 0
    assert message in lint.stdout
