"""Check the client's wheel: version ranges, Python from 3.10 on, rich and tqdm only for the command."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Any

import pytest
from packaging.requirements import Requirement
from packaging.version import Version

ROOT = Path(__file__).parents[2]
PROJECT: dict[str, Any] = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
CLIENT = [Requirement(text) for text in (*PROJECT["dependencies"], *PROJECT["optional-dependencies"]["cli"])]
CONSTRAINTS = dict(line.lower().split("==") for line in (ROOT / "constraints.txt").read_text().split())
PROGRAMS = ("service", "gateway", "trainer")
BLOCK = """
import sys
class Blocked:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in ("rich", "tqdm"):
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)
sys.meta_path.insert(0, Blocked())
"""


def test_the_clients_ranges_include_the_pinned_versions() -> None:
    assert PROJECT["requires-python"] == ">=3.10"
    for one in CLIENT:
        operators = {part.operator for part in one.specifier}
        assert operators <= {">=", "<"}, f"{one}: give a range"
        if one.name in CONSTRAINTS:
            assert Version(CONSTRAINTS[one.name]) in one.specifier
    assert not {"rich", "tqdm"} & {Requirement(text).name for text in PROJECT["dependencies"]}


@pytest.mark.parametrize("program", PROGRAMS)
def test_programs_pin_every_package_of_the_client(program: str) -> None:
    pinned = [Requirement(text) for text in PROJECT["optional-dependencies"][program]]
    assert all({part.operator for part in one.specifier} == {"=="} for one in pinned)
    needed = {one.name for one in CLIENT if one.marker is None}
    assert needed <= {one.name for one in pinned}


def test_check_wheel_tries_the_lowest_versions_declared() -> None:
    script = (ROOT / "deploy/check_wheel.sh").read_text()
    tried = dict(one.split("==") for one in re.search(r"lowest=\((.*)\)", script)[1].split())  # type: ignore[index]
    lowest = {
        one.name: next(part.version for part in one.specifier if part.operator == ">=")
        for one in CLIENT
        if one.marker is None
    }
    assert {name: Version(version) for name, version in tried.items()} == {
        name: Version(version) for name, version in lowest.items()
    }


def test_the_code_parses_as_python_3_10() -> None:
    for path in (ROOT / "synod").rglob("*.py"):
        ast.parse(path.read_text(), str(path), feature_version=(3, 10))


def run(code: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-c", BLOCK + code], cwd=ROOT, capture_output=True, text=True, timeout=60)


def test_the_library_imports_neither_rich_nor_tqdm() -> None:
    modules = [
        ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")
        for path in (ROOT / "synod").rglob("*.py")
        if path.name != "__main__.py"
    ]
    done = run(f"import importlib\nfor name in {sorted(modules)}: importlib.import_module(name)")
    assert done.returncode == 0, done.stderr


def test_the_command_names_a_missing_extra() -> None:
    done = run(
        "import importlib.util; find = importlib.util.find_spec\n"
        "importlib.util.find_spec = lambda name: None if name in ('rich', 'tqdm') else find(name)\n"
        "from synod.cli import main; sys.exit(main(['scorers']))"
    )
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == "synod: the command needs rich and tqdm; install them: pip install 'synod[cli]'\n"
