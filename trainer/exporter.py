"""`python -m trainer.exporter RUN [--port N]`: serve the last step of a run as Prometheus gauges.

    synod_training_step                          the last step
    synod_training_last_step_timestamp_seconds   when it was recorded, in Unix time
    synod_training_value{name}                   every number of that step, such as `reward_mean`, `seconds/update`

A missing number (null) has no series; it is not a 0. Before the first step the page is empty.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Final

from synod.exporter import Exporter, parser
from trainer.report.metrics import METRICS, read, scalars

PORT: Final = 8002
HELP: Final = {
    "synod_training_step": "The last step",
    "synod_training_last_step_timestamp_seconds": "Unix time at which it was recorded",
    "synod_training_value": "A number of that step",
}


def exposition(run_dir: Path) -> str:
    """Return the text of `/metrics` for the run in this directory; empty before its first step."""
    records = read(run_dir)
    if not records:
        return ""
    record = records[-1]
    values = [f'{{name="{name}"}} {value!r}' for name, value in scalars(record) if name != "step"]
    samples = {
        "synod_training_step": [f" {record['step']}"],
        "synod_training_last_step_timestamp_seconds": [f" {(run_dir / METRICS).stat().st_mtime!r}"],
        "synod_training_value": values,
    }
    lines = []
    for name, found in samples.items():
        lines += [f"# HELP {name} {HELP[name]}", f"# TYPE {name} gauge", *(name + sample for sample in found)]
    return "\n".join(lines) + "\n"


def main(arguments: Sequence[str] | None = None) -> None:
    """Serve until the process ends."""
    command = parser("trainer.exporter", __doc__.splitlines()[0], PORT)
    command.add_argument("run", type=Path, help="the run's directory; it may not exist yet")
    options = command.parse_args(arguments)
    with Exporter(options.host, options.port, lambda: exposition(options.run).encode()) as server:
        server.serve_forever()


if __name__ == "__main__":
    main()
