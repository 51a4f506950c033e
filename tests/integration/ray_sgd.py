"""`python -m trainer` whose workers of Ray Train use SGD: `python tests/integration/ray_sgd.py CONFIG.toml ...`.

The weights of AdamW amplify rounding errors of gradients near 0, so that two runs can be compared by SGD alone. The
program has no setting for it.
"""

from __future__ import annotations

import sys
from typing import Any

from trainer import launch
from trainer.__main__ import main

train_worker = launch._worker


def worker(config: dict[str, Any]) -> str | None:
    """Train by SGD. Ray sends this function itself to the workers, because it is not in an importable module."""
    from unittest.mock import patch

    from tests.unit.trainer.world_two import sgd

    with patch("trainer.state.make_optimizer", sgd):
        return train_worker(config)


if __name__ == "__main__":
    launch._worker = worker
    sys.exit(main())
