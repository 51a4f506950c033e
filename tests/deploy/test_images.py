"""Check that the images contain what their programs import, and no torch where it is not needed; lint Dockerfiles."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
import tomllib
from importlib import metadata
from pathlib import Path

import pytest

from tests.chart.rendering import let_through
from trainer.data.lines import FORMS, read_lines
from trainer.settings import load

ROOT = Path(__file__).parents[2]
DOCKERFILES = sorted((ROOT / "deploy/docker").glob("*.Dockerfile"))
HEAVY = ("torch", "torchvision", "transformers", "open_clip", "facenet_pytorch", "scipy")


def imports(path: Path) -> set[str]:
    """Return the modules that importing a file imports: not those inside functions or for type checking."""
    found: set[str] = set()
    todo: list[ast.stmt] = list(ast.parse(path.read_text()).body)
    while todo:
        node = todo.pop()
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            found |= {node.module, *(f"{node.module}.{alias.name}" for alias in node.names)}
        elif isinstance(node, ast.ClassDef | ast.Try | ast.With):
            todo += node.body
        elif isinstance(node, ast.If) and "TYPE_CHECKING" not in ast.unparse(node.test):
            newer = "sys.version_info >=" in ast.unparse(node.test)  # the images' Python takes the first branch
            todo += node.body if newer else [*node.body, *node.orelse]
    return found


def file_of(module: str, root: Path) -> Path | None:
    path = root / module.replace(".", "/")
    return next((p for p in (path.with_suffix(".py"), path / "__init__.py") if p.is_file()), None)


def closure(start: str, root: Path = ROOT) -> tuple[set[str], set[str]]:
    """Return (our modules, outside packages) that importing one of our modules loads."""
    ours: set[str] = set()
    outside: set[str] = set()
    todo = [start]
    while todo:
        module = todo.pop()
        path = file_of(module, root)
        if path is None:
            outside.add(module.partition(".")[0])
        elif module not in ours:
            ours.add(module)
            parents = module.split(".")
            todo += [".".join(parents[:i]) for i in range(1, len(parents))]
            todo += [
                name for name in imports(path) if file_of(name, root) or not file_of(name.rpartition(".")[0], root)
            ]
    outside -= {"services", "synod", "trainer"}
    return ours, outside - set(sys.stdlib_module_names)


def distributions(extra: str) -> set[str]:
    """Return the packages that `pip install '.[extra]'` installs, by the metadata of this environment."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    todo = [*project["dependencies"], *(d for one in extra.split(",") for d in project["optional-dependencies"][one])]
    found: set[str] = set()
    seen: set[str] = set()
    from packaging.requirements import Requirement

    while todo:
        text = todo.pop()
        if text in seen:
            continue
        seen.add(text)
        requirement = Requirement(text)
        if requirement.marker is not None and not requirement.marker.evaluate():
            continue
        found.add(requirement.name.lower().replace("_", "-"))
        try:
            needs = metadata.requires(requirement.name) or []
        except metadata.PackageNotFoundError:
            continue
        for need in map(Requirement, needs):
            wanted = [{"extra": one} for one in ("", *requirement.extras)]
            if need.marker is None or any(need.marker.evaluate(environment) for environment in wanted):
                todo.append(str(need).partition(";")[0].strip())
    return found


@pytest.mark.parametrize(
    "program", ["services.cluster.serve_app", "services.gateway.app", "services.cluster.exporter", "synod.cli"]
)
def test_the_gateway_does_not_import_torch(program: str) -> None:
    ours, outside = closure(program)
    assert len(ours) > 1
    assert outside & set(HEAVY) == set()


def test_the_import_walk_agrees_with_python() -> None:
    """Compare with the interpreter: it loads all that was walked (and the scorers' modules, by name), but not torch."""
    code = (
        "import warnings, sys; warnings.simplefilter('ignore');"
        "import services.cluster.serve_app, services.cluster.exporter;"
        f"print(*[m for m in sys.modules if m.partition('.')[0] in {(*HEAVY, 'services', 'synod')!r}])"
    )
    loaded = set(subprocess.check_output([sys.executable, "-c", code], text=True, cwd=ROOT).split())
    walked = closure("services.cluster.serve_app")[0] | closure("services.cluster.exporter")[0]
    assert loaded >= walked
    assert {module.partition(".")[0] for module in loaded} == {"services", "synod"}


@pytest.mark.parametrize(
    ("planted", "seen"),
    [("import torch", True), ("try:\n    from torch import nn\nexcept ImportError:\n    nn = None", True),
     ("def f():\n    import torch", False)],
)  # fmt: skip
def test_a_planted_import_is_found(tmp_path: Path, planted: str, seen: bool) -> None:
    (tmp_path / "services").mkdir()
    (tmp_path / "services/__init__.py").touch()
    (tmp_path / "services/a.py").write_text("from services import b")
    (tmp_path / "services/b.py").write_text(planted)
    assert ("torch" in closure("services.a", tmp_path)[1]) is seen


@pytest.mark.parametrize(
    ("extra", "programs"),
    [
        ("gateway", ("services.cluster.serve_app", "services.gateway.app", "synod.cli")),
        ("service", ("services.__main__", "services.cluster.serve_app", "services.cluster.hosted_scorer")),
        ("trainer,job", ("trainer.run", "trainer.exporter", "synod.cli")),
    ],
)
def test_an_image_installs_its_programs_imports(extra: str, programs: tuple[str, ...]) -> None:
    owners = metadata.packages_distributions()
    brought = distributions(extra)
    for program in programs:
        for package in closure(program)[1]:
            names = {name.lower().replace("_", "-") for name in owners[package]}
            assert names & brought, f"{program} imports {package}, which '.[{extra}]' does not install"
    assert ("torch" in brought) is (extra != "gateway")


OPTIONAL = {"wandb"}  # in an extra of its own; a run without it logs elsewhere


def imported_anywhere(path: Path) -> set[str]:
    """Return the packages that a file imports anywhere, also inside functions."""
    nodes = list(ast.walk(ast.parse(path.read_text())))
    names = {alias.name for node in nodes if isinstance(node, ast.Import) for alias in node.names}
    names |= {node.module for node in nodes if isinstance(node, ast.ImportFrom) and node.module}
    return {name.partition(".")[0] for name in names}


def test_the_trainers_image_installs_lazy_imports() -> None:
    """A package that is imported when a setting asks for it is missed by the walk above."""
    owners, brought = metadata.packages_distributions(), distributions("trainer,job")
    for path in sorted((ROOT / "trainer").rglob("*.py")):
        for package in imported_anywhere(path) - set(sys.stdlib_module_names) - OPTIONAL - {"trainer", "synod"}:
            names = {name.lower().replace("_", "-") for name in owners.get(package, ())}
            assert names & brought, f"{path.relative_to(ROOT)}: '.[trainer,job]' does not install {package}"


def test_the_trainers_image_reads_a_vision_language_model() -> None:
    """Transformers imports torchvision for the processor of Qwen2.5-VL, which none of our imports shows."""
    assert "torchvision" in distributions("trainer,job")


TRAINED = [path for path in sorted((ROOT / "deploy/configs").glob("*.toml")) if "[trainer]" in path.read_text()]


@pytest.mark.parametrize("path", TRAINED, ids=lambda path: path.stem)
def test_the_trainers_image_has_the_data_of_its_settings(path: Path) -> None:
    """A job in the image runs /app/deploy/configs/NAME.toml; paths in it start there."""
    sources = re.findall(r"^COPY (\S+) /app/", (ROOT / "deploy/docker/trainer.Dockerfile").read_text(), re.M)
    data = load(path, {"SYNOD__TRAINER__POLICY__MODEL": str(ROOT / "embedded/weights")}).data
    files = [one for one in (data.prompts, data.heldout, getattr(data, "concepts", None)) if one is not None]
    if data.task in FORMS:
        files += [line.image for line in read_lines(data.prompts, data.task) if line.image is not None]
    assert files
    for file in files:
        name = f"{file.resolve().relative_to(ROOT)}/"
        for admitted in (sources, let_through()):
            assert any(name.startswith(f"{one}/") for one in admitted), name


@pytest.mark.parametrize("path", DOCKERFILES, ids=lambda path: path.stem)
def test_a_dockerfile_passes_lint_and_runs_without_root(path: Path) -> None:
    done = subprocess.run([Path(sys.executable).parent / "hadolint", path], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout
    text = path.read_text()
    stages = text.split("\nFROM ")
    assert len(stages) == 3
    assert re.search(r"^USER 10001:10001$", stages[-1], re.M)
    assert re.search(r"^HEALTHCHECK ", stages[-1], re.M)
    assert "--constraint constraints.txt" in stages[1]
    assert "pip install" not in stages[-1]


@pytest.mark.parametrize("path", DOCKERFILES, ids=lambda path: path.stem)
def test_files_copied_by_a_dockerfile_exist(path: Path) -> None:
    for sources in re.findall(r"^COPY (?!--from)(.*) \S+$", path.read_text(), re.M):
        for source in sources.split():
            assert (ROOT / source).exists(), source
            assert any(f"{source}/".startswith(f"{one}/") or one.startswith(f"{source}/") for one in let_through()), (
                source
            )
