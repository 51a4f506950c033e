"""A service as a process of its own: `python -m tests.unit.synod.scoring.dying_service PORT TALLY [DIES_AFTER]`.

Appends each prompt that it scored to the file TALLY, and kills itself (SIGKILL) when it was received for more than
DIES_AFTER items.
"""

from __future__ import annotations

import asyncio
import os
import signal
import sys
from collections.abc import Sequence
from pathlib import Path

import uvicorn

from services.backends import LocalBackend
from services.gateway import app
from services.gateway.core import Gateway
from services.settings import LimitSettings
from synod.contracts import Outcome, ScoreItem
from tests.unit.synod.reward_services import Bright


class Mortal(Bright):
    def score(self, items: Sequence[ScoreItem]) -> list[Outcome]:
        if DIES_AFTER is not None and len(self.received) + len(items) > DIES_AFTER:
            os.kill(os.getpid(), signal.SIGKILL)
        with TALLY.open("a") as tally:
            tally.writelines(f"{item.prompt}\n" for item in items)
        return super().score(items)


async def serve(port: int) -> None:
    gateway = Gateway(LocalBackend({"ber": Mortal("ber")}), {}, LimitSettings())
    await uvicorn.Server(uvicorn.Config(app.build(gateway), port=port, log_level="error", ws="none")).serve()


if __name__ == "__main__":
    TALLY = Path(sys.argv[2])
    DIES_AFTER = int(sys.argv[3]) if len(sys.argv) > 3 else None
    asyncio.run(serve(int(sys.argv[1])))
