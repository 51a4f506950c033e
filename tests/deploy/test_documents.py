"""Check the documents: links, commands, paths and names exist; blocks of shell, Python and TOML are well-formed."""

from __future__ import annotations

import ast
import importlib
import importlib.util
import re
import subprocess
import textwrap
import tomllib
from dataclasses import dataclass
from pathlib import Path
from typing import Any, get_args

import pytest
import yaml
from pydantic import BaseModel

from trainer.settings import TrainerSettings

ROOT = Path(__file__).parents[2]
PAGES = [
    ROOT / "README.md",
    ROOT / "CONTRIBUTING.md",
    ROOT / "helm/synod/README.md",
    *sorted((ROOT / "docs").rglob("*.md")),
]
LINK = re.compile(r"\[[^\]]*\]\(([^)\s]+)\)")
COMMANDS = {"score", "replay", "scorers", "serve", "train", "personalize", "evaluate", "warm", "verify"}


@dataclass(frozen=True)
class Block:
    page: Path
    line: int
    language: str
    text: str

    def __str__(self) -> str:
        return f"{self.page.relative_to(ROOT)}:{self.line}"


def blocks() -> list[Block]:
    found = []
    for page in PAGES:
        text = page.read_text()
        for match in re.finditer(r"^```(\w*)[^\n]*\n(.*?)^```$", text, flags=re.MULTILINE | re.DOTALL):
            found.append(Block(page, text.count("\n", 0, match.start()) + 1, match[1], match[2]))
    return found


def anchors(page: Path) -> set[str]:
    """Return the anchors of a page's headings, as Git hosts form them."""
    headings = re.findall(r"^#+ (.*)$", page.read_text(), flags=re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_have_a_target(page: Path) -> None:
    for link in LINK.findall(page.read_text()):
        if re.match(r"[a-z]+:", link):
            continue
        path, _, anchor = link.partition("#")
        target = (page.parent / path).resolve() if path else page
        assert target.exists(), link
        assert not anchor or anchor in anchors(target), link


@pytest.mark.parametrize("block", blocks(), ids=str)
def test_blocks_are_well_formed(block: Block) -> None:
    if block.language == "toml":
        tomllib.loads(block.text)
    elif block.language == "python":
        ast.parse(block.text)
    elif block.language == "bash":
        done = subprocess.run(["bash", "-n"], input=block.text, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_commands_exist(page: Path) -> None:
    """Check make targets, `python -m` modules, `synod` commands and files that commands use."""
    text = page.read_text()
    shell = "\n".join([*(b.text for b in blocks() if b.page == page and b.language == "bash"), *indented(text)])
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), flags=re.MULTILINE))
    assert set(re.findall(r"^make ([a-z-]+)", shell, flags=re.MULTILINE)) <= targets
    for module in re.findall(r"python -m ([\w.]+)", text):
        assert importlib.util.find_spec(module), module
    assert set(re.findall(r"^\.venv/bin/synod (\w+)", shell, flags=re.MULTILINE)) <= COMMANDS
    for path in re.findall(r"(?<![\w/.])((?:deploy|embedded|helm)/[\w./-]+\.\w+)", shell):
        assert (ROOT / path).exists(), path


def test_values_in_the_charts_readme_are_yaml() -> None:
    text = (ROOT / "helm/synod/README.md").read_text()
    known = yaml.safe_load((ROOT / "helm/synod/values.yaml").read_text())
    found = [textwrap.dedent(one) for one in re.findall(r"^    \w+:\n(?:     .*\n)+", text, flags=re.MULTILINE)]
    assert len(found) >= 3
    for one in found:
        for table, values in yaml.safe_load(one).items():
            assert values.keys() <= known[table].keys(), one
    (egress,) = [yaml.safe_load(one)["networkPolicy"] for one in found if "restrictEgress" in one]
    assert all(rule.keys() == {"to", "ports"} for rule in egress["extraEgress"])


def defined(name: str) -> bool:
    """Return whether a dotted name is a module, or something defined at the top of a module or class."""
    parts = name.split(".")
    for i in range(len(parts), 0, -1):
        path = ROOT.joinpath(*parts[:i])
        source = next((p for p in (path.with_suffix(".py"), path / "__init__.py") if p.is_file()), None)
        if source is None:
            continue
        body: list[ast.stmt] = ast.parse(source.read_text()).body
        for part in parts[i:]:
            names = [
                n for n in body if part in (getattr(n, "name", None), getattr(getattr(n, "target", None), "id", None))
            ]
            if not names and not any(part in ast.unparse(n).partition("\n")[0] for n in body):
                return False
            body = getattr(names[0], "body", []) if names else []
        return True
    return (ROOT / "/".join(parts)).is_dir()


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_paths_and_names_in_the_code_exist(page: Path) -> None:
    text = page.read_text()
    for path in re.findall(r"`((?:synod|services|trainer|embedded|benchmarks|helm|deploy|tests)/[\w./*-]+)`", text):
        assert list(ROOT.glob(path.rstrip("/"))), path
    if page.parent.name == "synod":
        return  # the chart's values have dotted names too
    for name in re.findall(r"`((?:synod|services|trainer|embedded)\.[\w.]+)`", text):
        assert name.startswith("synod.v1.") or name.endswith((".py", ".toml", ".X")) or defined(name), name


def setting_names() -> set[str]:
    """Return the name of every key that the settings of service, scorers and trainer have."""
    for path in (*ROOT.glob("services/scorers/*.py"), *ROOT.glob("services/scorers/*/__init__.py")):
        importlib.import_module(".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__"))
    for module in ("services.settings", "trainer.settings"):
        importlib.import_module(module)
    found: set[str] = set()
    todo = [BaseModel]
    while todo:
        kind = todo.pop()
        todo += kind.__subclasses__()
        if kind.__module__.startswith(("services", "trainer", "synod")):
            found |= set(kind.model_fields)
    return found


def test_settings_in_the_documents_exist() -> None:
    names = setting_names()
    for page in (*PAGES, ROOT / "helm/synod/values.yaml"):
        if page.name == "log.md":
            continue  # it reports what was measured with the settings of its day
        text = page.read_text()
        keys = re.findall(r"`\[[\w.*]+\] (\w+)", text)
        keys += [name.lower() for name in re.findall(r"\bSYNOD__\w+?__([A-Z0-9_]+?)(?=\b(?!__))", text)]
        unknown = {key.rpartition("__")[2] for key in keys} - names
        assert not unknown, f"{page.relative_to(ROOT)}: {unknown}"


def is_setting(names: list[str], table: type[BaseModel]) -> bool:
    """Return whether a dotted name is a key of a table of settings; "*" stands for any key that is a table."""
    head, *rest = names
    found = table.model_fields.values() if head == "*" else filter(None, [table.model_fields.get(head)])
    kinds = [kind for field in found for kind in tables(field.annotation)]
    return any(is_setting(rest, kind) for kind in kinds) if rest else head in table.model_fields


def tables(annotation: Any) -> list[type[BaseModel]]:
    """Return the tables among a field's types."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return [annotation]
    return [table for one in get_args(annotation) for table in tables(one)]


def test_trainer_settings_in_the_trainers_pages_exist() -> None:
    """Dotted names there start in [trainer]."""
    pages = "".join((ROOT / f"docs/{name}.md").read_text() for name in ("training", "screens", "devices"))
    nodes = "|".join(name for name, field in TrainerSettings.model_fields.items() if tables(field.annotation))
    found = set(re.findall(rf"`((?:{nodes})\.[\w.*]+)`", pages))
    assert len(found) > 15
    assert [name for name in sorted(found) if not is_setting(name.split("."), TrainerSettings)] == []


def indented(text: str) -> list[str]:
    return [line.strip() for line in re.findall(r"^    (\S.*)$", text, flags=re.MULTILINE)]
