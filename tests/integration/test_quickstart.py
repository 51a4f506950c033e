"""The quickstart of a Ray cluster, command by command, as docs/quickstart.md has it."""

from __future__ import annotations

import os
import re
import subprocess
from pathlib import Path

import pytest

from services.cluster.local import check_port
from synod.errors import SettingsError

ROOT = Path(__file__).parents[2]
PORTS = (6379, 8000, 8265)  # those of the text


def commands() -> str:
    """The blocks marked `bash ray`; what a run writes goes to a folder of this test."""
    text = (ROOT / "docs/quickstart.md").read_text()
    blocks = re.findall(r"^```bash ray\n(.*?)^```$", text, flags=re.MULTILINE | re.DOTALL)
    assert len(blocks) == 4
    return "".join(blocks).replace("make setup\n", "")


@pytest.mark.skipif(not os.environ.get("SYNOD_FULL"), reason="minutes, and fixed ports: make test-full")
@pytest.mark.timeout(600)
def test_it_can_be_followed_to_the_end(tmp_path: Path) -> None:
    try:
        for port in PORTS:
            check_port("127.0.0.1", port)
    except SettingsError as busy:
        pytest.skip(str(busy))
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("RAY_", "SYNOD_"))}
    script = "set -euxo pipefail\ntrap '.venv/bin/ray stop --force' EXIT\n" + commands()
    done = subprocess.run(["bash"], input=script, cwd=ROOT, env=kept, capture_output=True, text=True, timeout=550)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    assert "ber" in done.stdout
