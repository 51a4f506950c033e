"""Read prompt files: any prompts (`read_prompts`), or prompts about concepts (`read_concept_prompts`)."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Final

from synod.contracts import GenEvalMetadata
from synod.errors import SettingsError
from synod.reader import Node
from synod.records import read
from synod.scoring import geneval
from trainer.data.files import hint, json_node, text
from trainer.types import ConceptProfile, Prompt

MAX_CHARS: Final = 8192  # of a prompt; the service refuses longer ones
PLAIN_TAG: Final = "prompt"  # of a prompt whose file names no tag
_OTHER_TASKS: Final = {  # by a column of their lines; the first that is there decides
    "segments": "questions",
    "reverse_prompt": "edits",
    "target_caption": "edits",
    "truth": "reflection",
    "caption": "edits",
}
_CIRCUMSTANCES: Final = ("accessories", "companion", "place")  # claims of a prompt; the service judges them


def read_prompts(path: Path, column: str, log: Callable[[str], None] = print) -> tuple[Prompt, ...]:
    """Return the distinct prompts of a file, in order.

    A `.txt` file has one prompt a line. A `.jsonl` file has one object a line with the prompt in `column`; a `tag` and
    GenEval's `include` and `exclude` are kept, other keys are ignored. A `.parquet` file has the prompts in `column`.
    Columns of another task's lines, such as an edit's, are refused: their images would be ignored. Blank lines are
    skipped; repeated prompts are kept once, and `log` receives their number. Raises SettingsError, which names file,
    line and mistake.
    """
    readers = {".txt": _lines, ".jsonl": _objects, ".parquet": _rows}
    if path.suffix.lower() not in readers:
        raise SettingsError(f"{path}: a file of prompts ends in {' or '.join(readers)}; convert it to one of them")
    distinct: dict[str, Prompt] = {}
    count = 0
    for prompt in readers[path.suffix.lower()](path, column):
        count += 1
        distinct.setdefault(prompt.text, prompt)
    if not distinct:
        raise SettingsError(f"{path}: no prompts; give at least one")
    if count > len(distinct):
        log(f"{path}: {count - len(distinct)} of {count} prompts repeat an earlier one and are left out")
    return tuple(distinct.values())


def _lines(path: Path, column: str) -> Iterator[Prompt]:
    for number, line in numbered(path):
        yield _line(Node(line, f"{path}:{number}"))


@hint("A .txt file has one prompt a line")
def _line(node: Node) -> Prompt:
    return Prompt(checked(node), PLAIN_TAG)


def _objects(path: Path, column: str) -> Iterator[Prompt]:
    for number, line in numbered(path):
        yield _object(json_node(line, f"{path}:{number}"), column)


@hint('A line of a .jsonl file is an object such as {"prompt": "a red cat"}')
def _object(node: Node, column: str) -> Prompt:
    _check_columns(column, list(map(str, node.mapping())), node)
    text = node.need(column, checked)
    if geneval.is_metadata(node.mapping()):
        metadata = geneval_of(node)
        return Prompt(text, metadata.tag, geneval=metadata)
    return Prompt(text, node.get("tag", Node.text) or PLAIN_TAG)


def _rows(path: Path, column: str) -> Iterator[Prompt]:
    from pyarrow import ArrowException  # imported here: other files need no pyarrow
    from pyarrow.parquet import ParquetFile

    try:
        with ParquetFile(path) as file:
            with hint("A .parquet file has the prompts in one column of strings"):
                _check_columns(column, file.schema_arrow.names, Node(None, str(path)))
            values = file.read([column])[column].to_pylist()
    except (OSError, ArrowException) as error:
        raise SettingsError(f"{path} cannot be read as parquet: {error}") from None
    for number, value in enumerate(values):
        yield _row(Node(value, f"{path}[{number}]", column))


@hint("A .parquet file has the prompts in one column of strings")
def _row(node: Node) -> Prompt:
    return Prompt(checked(node), PLAIN_TAG)


def _check_columns(column: str, columns: Sequence[str], node: Node) -> None:
    """Raise InvalidRequest if there is no such column, or if the columns are those of another task's lines."""
    if column not in columns:
        found = ", ".join(columns) or "none"
        raise node.error(
            f"no column '{column}' among {found}; name the prompts' one as [trainer.data] column, or --column"
        )
    mark = next((mark for mark in _OTHER_TASKS if mark in columns and mark != column), None)
    unread = next((name for name in ("image", "segments") if name in columns and name != column), None)
    if mark is not None and unread is not None:
        raise node.error(
            f"a line of data.task '{_OTHER_TASKS[mark]}': its {unread} would not be read; give that task, or remove "
            f"'{mark}' if these are prompts to draw"
        )


def read_concept_prompts(path: Path, concepts: Mapping[str, ConceptProfile]) -> tuple[Prompt, ...]:
    """Return the prompts of a JSONL file about concepts.

    A line is GenEval's metadata ({tag, include, exclude, prompt}), or {tag, prompt, concept} with `resolved` (what a
    vague prompt means) and `fact` (the index of the fact that it hints at), whose prompt names the concept. Raises
    SettingsError, which names file, line and mistake.
    """
    prompts = tuple(_concept_prompt(json_node(line, f"{path}:{n}"), concepts) for n, line in numbered(path))
    if not prompts:
        raise SettingsError(f"{path}: no prompts; give one JSON object per line")
    return prompts


@hint("A line is a JSON object, as in embedded/data/prompts")
def _concept_prompt(node: Node, concepts: Mapping[str, ConceptProfile]) -> Prompt:
    of = node.fields("tag", "prompt", "concept", "resolved", "fact", "include", "exclude", *_CIRCUMSTANCES)
    text, tag, name = of.need("prompt", checked), of.need("tag", Node.text), of.get("concept", Node.text)
    if name is None:
        return Prompt(text, tag, geneval=geneval_of(node))
    if "include" in of.mapping():
        raise node.error("'include' and 'concept' together; give GenEval's metadata or a concept")
    if name not in concepts:
        raise node.error(f"unknown concept {name!r}; give one of {', '.join(sorted(concepts))}")
    last = len(concepts[name].facts) - 1
    resolved, fact = of.get("resolved", Node.text), of.get("fact", lambda fact: fact.integer(0, last))
    if name not in text:
        raise node.error(
            f"the prompt does not name {name}, so it would be drawn without its tokens; write {name} into it"
        )
    return Prompt(text, tag, name, resolved, fact)


def geneval_of(node: Node) -> GenEvalMetadata:
    """Read GenEval's metadata in a line. Raises InvalidRequest."""
    return read(GenEvalMetadata, Node(geneval.item_fields(node.mapping())["geneval"], node.path))


def numbered(path: Path) -> Iterator[tuple[int, str]]:
    """Yield each line that is not blank with its number; only a line feed ends a line, as JSONL has it."""
    for number, line in enumerate(text(path).split("\n"), 1):
        if line.strip():
            yield number, line.strip()


def checked(node: Node) -> str:
    """Return a prompt without surrounding blanks. Raises InvalidRequest for one that is empty or too long."""
    prompt = node.text().strip()
    if not prompt:
        raise node.error("the prompt is empty")
    if len(prompt) > MAX_CHARS:
        raise node.error(f"the prompt has {len(prompt)} characters, the limit is {MAX_CHARS}; shorten it")
    return prompt
