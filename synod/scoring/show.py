"""Print tables and progress. rich and tqdm are loaded only when something is printed."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence

from synod.contracts import Origin, Outcome, Score
from synod.scoring.compare import Comparison, status
from synod.scoring.run import Scored

MAX_LISTED = 10  # items listed per scorer


def print_table(headers: Sequence[str], rows: Iterable[Sequence[str]]) -> None:
    """Print a table, wrapped to the width of a terminal, or unwrapped elsewhere."""
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    console = Console(highlight=False)
    columns = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0))
    for header in headers:
        columns.add_column(header, overflow="fold")
    for row in rows:
        columns.add_row(*map(Text, row))
    if not console.is_terminal:
        console.width = 10**6
    with console.capture() as captured:
        console.print(columns)
    print("\n".join(line.rstrip() for line in captured.get().splitlines()))


def progress(scored: Iterable[Scored], total: int) -> Iterator[Scored]:
    """Yield the same values, with a progress bar on stderr if it is a terminal."""
    from tqdm import tqdm

    yield from tqdm(scored, total=total, desc="scoring", unit="image", disable=None, file=sys.stderr)


def notify(text: str) -> None:
    """Print a line for the user on stderr."""
    print(f"synod: {text}", file=sys.stderr)


def format_outcome(outcome: Outcome | None) -> str:
    """Return a value with four decimals, or a failure's code."""
    return "" if outcome is None else f"{outcome.value:.4f}" if isinstance(outcome, Score) else outcome.code


def print_comparisons(found: Mapping[str, Comparison]) -> None:
    """Print a row per scorer, then the items whose status changed, and the values' origins."""
    headers = ["SCORER", "N", "CHANGED", "MAX |DIFFERENCE|", "PEARSON", "SPEARMAN", "STATUS CHANGED"]
    print_table(headers, [_row(name, one) for name, one in found.items()])
    for name, one in found.items():
        for pair in one.status_changed[:MAX_LISTED]:
            print(f"{name}: {pair.label}: {status(pair.before)} -> {status(pair.after)}")
        if (more := len(one.status_changed) - MAX_LISTED) > 0:
            print(f"{name}: and {more} more")
        print(f"{name}: origin {_origins(one.origins_before)} -> {_origins(one.origins_after)}")


def format_origin(origin: Origin | None) -> str:
    """Return an origin as one line, with the model's digest shortened."""
    if origin is None:
        return "unknown"
    kind, _, digest = origin.model.rpartition(":")
    model = f"{kind}:{digest[:12]}" if kind else origin.model
    rules = "" if origin.rule_set is None else f", rules {origin.rule_set}"
    return f"{model}, preprocessing {origin.preprocessing}{rules}"


def _row(name: str, one: Comparison) -> list[str]:
    numbers = [_number(one.max_difference, ".3g"), _number(one.pearson, ".4f"), _number(one.spearman, ".4f")]
    return [name, str(one.n), str(one.changed), *numbers, str(len(one.status_changed))]


def _number(value: float | None, form: str) -> str:
    return "-" if value is None else format(value, form)


def _origins(origins: Sequence[Origin | None]) -> str:
    return "; ".join(map(format_origin, origins)) or "none"
