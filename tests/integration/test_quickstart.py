"""The Ray cluster quickstart of docs/quickstart.md, command by command."""

from __future__ import annotations

import os
import re
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
# Run in namespaces: `ray stop` ends every Ray process it finds, and the ports are fixed.
ISOLATED = ("unshare", "--user", "--map-root-user", "--pid", "--mount-proc", "--net", "--fork", "--kill-child", "bash")


def commands() -> str:
    """Return the blocks marked `bash ray`, without the installation."""
    text = (ROOT / "docs/quickstart.md").read_text()
    blocks = re.findall(r"^```bash ray\n(.*?)^```$", text, flags=re.MULTILINE | re.DOTALL)
    assert len(blocks) == 4
    return "".join(blocks).replace("make setup\n", "")


@pytest.mark.skipif(not os.environ.get("SYNOD_FULL"), reason="minutes: make test-full")
@pytest.mark.timeout(600)
def test_the_quickstart_runs_to_its_end() -> None:
    if subprocess.run([*ISOLATED, "-c", "ip link set lo up"], capture_output=True, check=False).returncode:
        pytest.skip("this user cannot create namespaces")
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("RAY_", "SYNOD_"))}
    script = "set -euxo pipefail\nip link set lo up\n" + commands()
    done = subprocess.run(ISOLATED, input=script, cwd=ROOT, env=kept, capture_output=True, text=True, timeout=550)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    assert "ber" in done.stdout
