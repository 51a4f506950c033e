"""`python -m trainer.exporter RUN [--port N]`: serve the last step of a run as Prometheus gauges.

    synod_training_step                          the last step
    synod_training_last_step_timestamp_seconds   when it was recorded, in Unix time
    synod_training_value{name}                   every number of that step, such as `reward_mean`, `seconds/update`

A missing number (null) has no series; it is not a 0. Before the first step the page is empty.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

from synod.exporter import Exporter, parser
from trainer.metrics import METRICS, scalars

PORT: Final = 8002
TAIL_BYTES: Final = 2**18  # far more than a line of metrics.jsonl
HELP: Final = {
    "synod_training_step": "The last step",
    "synod_training_last_step_timestamp_seconds": "Unix time at which it was recorded",
    "synod_training_value": "A number of that step",
}


def exposition(run_dir: Path) -> str:
    """Return the text of `/metrics` for the run in this directory; empty before its first step."""
    path = run_dir / METRICS
    record = last_record(path)
    if record is None:
        return ""
    values = [f'{{name="{name}"}} {value!r}' for name, value in scalars(record) if name != "step"]
    samples = {
        "synod_training_step": [f" {record['step']}"],
        "synod_training_last_step_timestamp_seconds": [f" {path.stat().st_mtime!r}"],
        "synod_training_value": values,
    }
    lines = []
    for name, found in samples.items():
        lines += [f"# HELP {name} {HELP[name]}", f"# TYPE {name} gauge", *(name + sample for sample in found)]
    return "\n".join(lines) + "\n"


def last_record(path: Path) -> dict[str, Any] | None:
    """Return the last complete line of metrics.jsonl, or None before the first."""
    try:
        with path.open("rb") as file:
            file.seek(max(0, path.stat().st_size - TAIL_BYTES))
            lines = file.read().split(b"\n")
    except FileNotFoundError:
        return None
    whole = [
        line for line in lines[:-1] if line.startswith(b"{")
    ]  # what follows the last newline is still being written
    return dict(json.loads(whole[-1])) if whole else None


def main(arguments: Sequence[str] | None = None) -> None:
    """Serve until the process ends."""
    command = parser("trainer.exporter", __doc__.splitlines()[0], PORT)
    command.add_argument("run", type=Path, help="the run's directory; it may not exist yet")
    options = command.parse_args(arguments)
    with Exporter(options.host, options.port, lambda: exposition(options.run).encode()) as server:
        server.serve_forever()


if __name__ == "__main__":
    main()
