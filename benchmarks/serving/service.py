"""Run a Synod service: `python -m benchmarks.serving.service CONFIG RUN_DIR` serves until SIGTERM.

The environment overrides settings of the TOML, and has the variables that Serve reads before Ray starts.
"""

from __future__ import annotations

import signal
import sys
import threading
from pathlib import Path

from benchmarks.serving import fakes
from services.cluster.local import RewardService
from services.settings import load


def main() -> int:
    stop = threading.Event()
    signal.signal(signal.SIGTERM, lambda *_: stop.set())
    service = RewardService(load(sys.argv[1]), Path(sys.argv[2]), fakes.build)
    try:
        if service.start(print, stop.is_set):
            stop.wait()
    finally:
        service.stop()
    return 0


if __name__ == "__main__":
    sys.exit(main())
