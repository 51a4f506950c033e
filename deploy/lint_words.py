#!/usr/bin/env python3
"""Refuse words that the glossary in CONTRIBUTING.md replaces, in every text file that git tracks.

Run by `make lint`. Exit status 1 and one line per finding (file:line, the word, what to write instead) if there are
any. `--docstrings` prints instead, for each package, how many public docstrings do not start with an imperative verb.
"""

from __future__ import annotations

import argparse
import ast
import re
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from fnmatch import fnmatch
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).resolve().parents[1]

# A refused word (a regular expression, matched as whole words in any case) and what to write instead.
WORDS: dict[str, str] = {
    r"told|tells?|telling": "report, return, log or notify, whichever is meant",
    r"anew": "again",
    r"who(so)?ever|whomever": "callers that, any client that",
    r"pictures?": "image",
    r"planes?": "reward service, service",
    r"away": "unavailable",
    r"(?<!there )(is|are|was|were) no(?! (longer|more|less|better|worse|later|earlier)\b)": "is not a, has no",
    r"twins?": "duplicate",
    r"rims?": "error boundary",
    r"(un)?lawful": "valid",
    r"hollow": "placeholder",
    r"lonely": "idle",
    r"import laws?": "import rules",
    r"batch law": "batch contract",
    r"lab notebook": "measurement log",
    r"drawn world": "synthetic world",
    r"wordless": "without text",
    r"beside": "next to, besides; the setting is colocate_with",
    r"mend(s|ed|ing)?": "fix",
    r"amiss": "wrong",
    r"nought|naught": "zero, nothing",
    r"whence|whither|thence|thereof|lest": "where, of it, so that not",
    r"as such": "itself (or leave it out)",
    r"just now": "temporarily, at present",
    r"some day": "later",
    r"what falls short": "known shortfalls",
    r"of (ours|yours)": "our own, your own",
    r"way out": "remedy",
    r"makes no sense": "is not valid, cannot be used",
}

# Files that hold data, generated code, or others' text.
SKIPPED_FILES = (
    "LICENSE",
    "*/LICENSE",
    "constraints.txt",
    "deploy/lint_words.py",
    "tests/deploy/test_lint_words.py",
    "synod/v1/*",
    "protos/released.binpb",
    "embedded/data/*",
    "embedded/photographs/*",
    "embedded/weights/*",
    "embedded/golden.json",
    "benchmarks/results/*",
)

# (file pattern, refused word as found, a regular expression for the line): text that models read, other fields' terms.
ALLOWED: tuple[tuple[str, str, str], ...] = (
    ("*", "plane", r"(control|data|focal|image) plane"),
    ("*", "tell", r"\.tell\(\)"),  # of files
    ("CONTRIBUTING.md", "*", r"^\|.*\|.*\|"),  # the glossary
    # prompts for the judge models and for the embedded policy: other words would change scores
    ("services/scorers/*.py", "picture", r"Does the picture show this"),
    ("services/models/judge.py", "is no", r"That is no verdict"),
    ("services/scorers/*.py", "picture", r'^\s*"Grade from 0 to 1 '),
    ("services/scorers/*.py", "as such", r'^\s*"Grade from 0 to 1 '),
    ("embedded/*.py", "picture", r"a picture of "),
    ("embedded/world/visual_questions.py", "picture", r"(?:the|this) picture\?"),
    ("embedded/world/samples.py", "picture", r"the picture shows <ben>"),
    ("tests/*.py", "picture", r"[\"'](a picture of |Does the picture)"),
)

# First words with which an imperative sentence does not start.
NOT_IMPERATIVE = re.compile(
    r"a|an|the|what|whatever|whether|who|whose|which|how|where|when|why|this|that|these|those|it|its|they|"
    r"their|there|here|he|one|two|three|four|all|each|every|any|some|no|none|not|nothing|both|same|such|other|"
    r"another|as|if|in|for|from|to|with|without|of|on|at|by|after|before|under|over|per|only|also|and|or|but|"
    r"so|than|then|true|false|is|are|was|has|have|may|can|must|will|would|should|i|we|you|our|your|my|once|now|"
    r"never|always|more|most|less|first|last|next"
)


class Finding(NamedTuple):
    path: str
    line: int
    word: str
    instead: str

    def __str__(self) -> str:
        return f"{self.path}:{self.line}: '{self.word}': write '{self.instead}'"


# Whole words; an underscore separates words, so that `told_to_stop` counts as `told`.
_ANY_WORD = re.compile(rf"(?<![a-z])(?:{'|'.join(WORDS)})(?![a-z])")


def find_words(path: str, text: str) -> list[Finding]:
    """Find the refused words in `text`, the content of the file at `path`, but for those the allow-list names."""
    lowered = text.lower()
    found = []
    for match in _ANY_WORD.finditer(lowered):
        number = lowered.count("\n", 0, match.start()) + 1
        if not _is_allowed(path, match.group(), text.split("\n")[number - 1]):
            instead = next(instead for pattern, instead in WORDS.items() if re.fullmatch(pattern, match.group()))
            found.append(Finding(path, number, match.group(), instead))
    return found


def _is_allowed(path: str, word: str, line: str) -> bool:
    return any(
        fnmatch(path, files) and allowed in ("*", word) and re.search(context, line)
        for files, allowed, context in ALLOWED
    )


def read_tracked(root: Path) -> Iterator[tuple[str, str]]:
    """Yield (path, text) of each text file that git tracks below `root`, but for SKIPPED_FILES."""
    listed = subprocess.run(["git", "ls-files", "-z"], cwd=root, check=True, capture_output=True, text=True).stdout
    for path in filter(None, listed.split("\0")):
        if any(fnmatch(path, skipped) for skipped in SKIPPED_FILES) or not (root / path).is_file():
            continue
        try:
            yield path, (root / path).read_text()
        except UnicodeDecodeError:
            continue  # a binary file


def is_imperative(docstring: str) -> bool:
    """Return False if the first word cannot start an imperative sentence ('The', 'Whether', 'Returns')."""
    first = re.split(r"[^A-Za-z']", docstring.strip(), maxsplit=1)[0].lower()
    return not NOT_IMPERATIVE.fullmatch(first) and not re.fullmatch(r"\w+[^s]s", first)


def find_docstrings(source: str) -> Iterator[tuple[int, str, bool]]:
    """Yield (line, first line, whether it is imperative) of the docstring of each public function but properties."""

    def walk(body: list[ast.stmt]) -> Iterator[tuple[int, str, bool]]:
        for node in body:
            if isinstance(node, ast.ClassDef):
                if not node.name.startswith("_"):
                    yield from walk(node.body)
            elif isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) and not node.name.startswith("_"):
                decorators = {ast.unparse(one) for one in node.decorator_list}
                docstring = ast.get_docstring(node)
                if docstring and not decorators & {"property", "cached_property", "functools.cached_property"}:
                    yield node.lineno, docstring.split("\n")[0], is_imperative(docstring)

    yield from walk(ast.parse(source).body)


def _print_docstrings(root: Path, packages: list[str]) -> None:
    total: Counter[str] = Counter()
    wrong: Counter[str] = Counter()
    for path, text in read_tracked(root):
        package = path.split("/")[0]
        if package not in packages or not path.endswith(".py"):
            continue
        for line, first, imperative in find_docstrings(text):
            folder = str(Path(path).parent)
            total[folder] += 1
            if not imperative:
                wrong[folder] += 1
                print(f"{path}:{line}: {first}")
    for folder in sorted(total):
        print(f"{folder}: {wrong[folder]} of {total[folder]} public functions' docstrings are not imperative")
    print(f"all: {wrong.total()} of {total.total()}")


def main() -> int:
    """Run the command line and return its exit status."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("paths", nargs="*", help="report only on files whose path starts with one of these")
    parser.add_argument("--root", type=Path, default=ROOT, help="the git work tree to read (default: this repository)")
    parser.add_argument("--docstrings", action="store_true", help="count docstrings that are not imperative instead")
    arguments = parser.parse_args()
    if arguments.docstrings:
        _print_docstrings(arguments.root, arguments.paths or ["synod", "services", "trainer"])
        return 0
    findings = [
        finding
        for path, text in read_tracked(arguments.root)
        if not arguments.paths or path.startswith(tuple(arguments.paths))
        for finding in find_words(path, text)
    ]
    for finding in findings:
        print(finding)
    if findings:
        print(f"{len(findings)} refused words. CONTRIBUTING.md has the glossary; deploy/lint_words.py the allow-list.")
    return 1 if findings else 0


if __name__ == "__main__":
    sys.exit(main())
