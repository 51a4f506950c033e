"""What the documents say can be done: links lead somewhere, blocks of commands, Python and TOML are well-formed."""

from __future__ import annotations

import ast
import importlib.util
import re
import subprocess
import tomllib
from dataclasses import dataclass
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PAGES = [
    ROOT / "README.md",
    ROOT / "CONTRIBUTING.md",
    ROOT / "helm/synod/README.md",
    *sorted((ROOT / "docs").rglob("*.md")),
]
LINK = re.compile(r"\[[^\]]*\]\(([^)\s]+)\)")
COMMANDS = {"score", "replay", "scorers", "serve", "train", "warm", "verify"}


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
    """As the common hosts make them of headings."""
    headings = re.findall(r"^#+ (.*)$", page.read_text(), flags=re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_lead_somewhere(page: Path) -> None:
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
def test_commands_are_there(page: Path) -> None:
    """Make targets, `python -m` modules, `synod` commands and shipped files that commands name."""
    text = page.read_text()
    shell = "\n".join([*(b.text for b in blocks() if b.page == page and b.language == "bash"), *indented(text)])
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), flags=re.MULTILINE))
    assert set(re.findall(r"^make ([a-z-]+)", shell, flags=re.MULTILINE)) <= targets
    for module in re.findall(r"python -m ([\w.]+)", text):
        assert importlib.util.find_spec(module), module
    assert set(re.findall(r"^\.venv/bin/synod (\w+)", shell, flags=re.MULTILINE)) <= COMMANDS
    for path in re.findall(r"(?<![\w/.])((?:deploy|embedded|helm)/[\w./-]+\.\w+)", shell):
        assert (ROOT / path).exists(), path


def indented(text: str) -> list[str]:
    return [line.strip() for line in re.findall(r"^    (\S.*)$", text, flags=re.MULTILINE)]
