"""What the screen gets: tables and progress. rich and tqdm are loaded when something is shown."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence

from synod.contracts import Origin, Outcome, Score
from synod.scoring.compare import Comparison, status
from synod.scoring.run import Scored

MAX_TOLD = 10  # items named per scorer


def table(headers: Sequence[str], rows: Iterable[Sequence[str]]) -> None:
    """Print columns; on a terminal within its width, elsewhere as wide as they are."""
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    console = Console(highlight=False)
    made = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0))
    for header in headers:
        made.add_column(header, overflow="fold")
    for row in rows:
        made.add_row(*map(Text, row))
    if not console.is_terminal:
        console.width = 10**6
    with console.capture() as captured:
        console.print(made)
    print("\n".join(line.rstrip() for line in captured.get().splitlines()))


def progress(scored: Iterable[Scored], total: int) -> Iterator[Scored]:
    """The same, with a bar on a terminal's stderr."""
    from tqdm import tqdm

    yield from tqdm(scored, total=total, desc="scoring", unit="image", disable=None, file=sys.stderr)


def say(text: str) -> None:
    """A line for whoever runs the command."""
    print(f"synod: {text}", file=sys.stderr)


def cell(outcome: Outcome | None) -> str:
    """A value, or a failure's code."""
    return "" if outcome is None else f"{outcome.value:.4f}" if isinstance(outcome, Score) else outcome.code


def comparisons(found: Mapping[str, Comparison]) -> None:
    """A row per scorer, then the items whose status changed and where the values came from."""
    headers = ["SCORER", "N", "CHANGED", "MAX |DIFFERENCE|", "PEARSON", "SPEARMAN", "STATUS CHANGED"]
    table(headers, [_row(name, one) for name, one in found.items()])
    for name, one in found.items():
        for pair in one.status_changed[:MAX_TOLD]:
            print(f"{name}: {pair.where}: {status(pair.before)} -> {status(pair.after)}")
        if (more := len(one.status_changed) - MAX_TOLD) > 0:
            print(f"{name}: and {more} more")
        print(f"{name}: origin {_origins(one.origins_before)} -> {_origins(one.origins_after)}")


def origin_text(origin: Origin | None) -> str:
    """An origin on one line; the model by the start of its digest."""
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
    return "; ".join(map(origin_text, origins)) or "none"
