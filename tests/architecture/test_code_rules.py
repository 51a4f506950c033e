"""Rules of the codebase that review misses: no pickle, safe weights, pinned packages, a frozen list of settings."""

from __future__ import annotations

import ast
import re
import tomllib
from pathlib import Path

import pytest
from pydantic import BaseModel

import services.models.settings
import services.settings
import services.settings_types
import trainer.settings

ROOT = Path(__file__).parents[2]
PROGRAMS = sorted(p for package in ("synod", "services", "trainer", "embedded") for p in (ROOT / package).rglob("*.py"))


def unsafe_loads(source: str) -> list[str]:
    found = []
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import | ast.ImportFrom):
            names = [a.name for a in node.names] + [getattr(node, "module", None) or ""]
            found += [name for name in names if name.split(".")[0] in {"pickle", "cloudpickle", "dill", "joblib"}]
        if isinstance(node, ast.Call) and ast.unparse(node.func) == "torch.load":
            safe = any(
                k.arg == "weights_only" and isinstance(k.value, ast.Constant) and k.value.value is True
                for k in node.keywords
            )
            found += [] if safe else [ast.unparse(node)]
    return found


@pytest.mark.parametrize("path", PROGRAMS, ids=lambda p: str(p.relative_to(ROOT)))
def test_no_pickle_and_no_unsafe_torch_load(path: Path) -> None:
    assert unsafe_loads(path.read_text()) == []


@pytest.mark.parametrize(
    "planted", ["import pickle", "from pickle import loads", "torch.load(f)", "torch.load(f, weights_only=False)"]
)
def test_planted_unsafe_load_is_found(planted: str) -> None:
    assert unsafe_loads(planted)


def test_direct_dependencies_match_the_constraints() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    extras = {name: extra for name, extra in project["optional-dependencies"].items() if name != "cli"}
    direct = [dependency for extra in extras.values() for dependency in extra]  # the client's own are ranges
    lines = (ROOT / "constraints.txt").read_text().split()
    assert all(re.fullmatch(r"[\w.-]+==[\w.]+", line) for line in lines)
    pinned = {name.lower().replace("_", "-"): version for name, version in (line.split("==") for line in lines)}
    for dependency in direct:
        name, _, version = re.sub(r"\[.*\]", "", dependency).partition("==")
        assert pinned.get(name.lower().replace("_", "-")) == version, dependency


SETTINGS = {
    "services": (services.settings, services.settings_types, services.models.settings),
    "trainer": (
        trainer.settings.run,
        trainer.settings.policy,
        trainer.settings.data,
        trainer.settings.rewards,
        trainer.settings.report,
        trainer.settings.ranks,
        trainer.settings.evaluate,
        trainer.settings.loss,
        trainer.settings.personalize,
    ),
}


@pytest.mark.parametrize("program", SETTINGS)
def test_list_of_settings_is_frozen(program: str) -> None:
    """The list changes only on purpose. A scorer's own settings, in its module, are not listed."""
    records = {
        cls.__name__: list(cls.model_fields)
        for module in SETTINGS[program]
        for cls in vars(module).values()
        if isinstance(cls, type) and issubclass(cls, BaseModel) and cls.__module__ == module.__name__
        if cls.model_fields
    }
    frozen = tomllib.loads((Path(__file__).parent / "settings_frozen.toml").read_text())
    assert records == frozen[program]


def test_every_make_target_of_the_readme_exists() -> None:
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), flags=re.MULTILINE))
    named = set(re.findall(r"(?:`|^    )make ([a-z-]+)", (ROOT / "README.md").read_text(), flags=re.MULTILINE))
    assert {"demo", "test"} <= named
    assert named <= targets


def test_make_clean_keeps_the_runs_of_trainings() -> None:
    """It removes the directories that make's own targets write, and no other of runs/."""
    (recipe,) = re.findall(r"^clean:.*\n\t@rm -rf (.*)$", (ROOT / "Makefile").read_text(), flags=re.MULTILINE)
    removed = {path for path in recipe.split() if path.startswith("runs")}
    assert removed >= {"runs/service", "runs/demo"}
    assert all(re.fullmatch(r"runs/[\w-]+", path) for path in removed)
    configs = "".join(path.read_text() for path in (ROOT / "deploy/configs").rglob("*.toml"))
    trained = {path.removeprefix("../../") for path in re.findall(r'^run_dir = "(.*)"', configs, flags=re.MULTILINE)}
    assert "runs/train" in trained
    assert not removed & trained
