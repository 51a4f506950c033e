"""The compose file's service run without a container: its command, environment and health check."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import yaml

from services.cluster.local import free_port

ROOT = Path(__file__).parents[2]
SERVICE: dict[str, Any] = yaml.safe_load((ROOT / "docker-compose.yml").read_text())["services"]["service"]
TOKEN = "a-token-of-this-test-alone"

pytestmark = [
    pytest.mark.timeout(900),
    pytest.mark.skipif(os.environ.get("SYNOD_FULL") != "1", reason="a minute: make test-full"),
]


READ_ONLY = """
mount --make-rprivate / && mount --bind "$0" /srv
mount -t tmpfs tmpfs /tmp && mkdir -p "$0" && mount --bind /srv "$0"
mount -o remount,bind,ro / && ! touch /opt/x 2>/dev/null && exec "$@"
"""


def closed_in(folder: Path) -> list[str]:
    """Return a command prefix that makes the root read-only except for `folder`, like `read_only`.

    Empty where this user may not create mount namespaces.
    """
    before = ["unshare", "--mount", "bash", "-ec", READ_ONLY, str(folder)]
    allowed = (
        shutil.which("unshare")
        and subprocess.run([*before, "test", "-d", str(ROOT)], capture_output=True).returncode == 0
    )
    return before if allowed else []


def test_the_service_becomes_healthy_scores_and_stops_in_time(tmp_path: Path) -> None:
    port = str(free_port())
    (tmp_path / "tokens").write_text(f'[compose]\ntoken = "{TOKEN}"\n')
    mounts = {"/app/": f"{ROOT}/", "/run/secrets/": f"{tmp_path}/", "/run/synod": str(tmp_path / "run")}

    def here(text: str) -> str:
        for inside, outside in mounts.items():
            text = text.replace(inside, outside)
        return text

    kept = {name: value for name, value in os.environ.items() if not name.startswith(("RAY_", "SYNOD_"))}
    own = {name: here(str(value)) for name, value in SERVICE["environment"].items()}
    own |= {
        "SYNOD__SERVER__HOST": "127.0.0.1",
        "SYNOD__SERVER__PORT": port,
        "SYNOD__SERVER__GRPC_PORT": str(free_port()),
    }
    environment = {**kept, **own, "PYTHONPATH": str(ROOT), "PYTHONDONTWRITEBYTECODE": "1", "HOME": "/tmp"}
    command = [sys.executable, *map(here, SERVICE["command"][1:])]
    check = [sys.executable, *(word.replace("8000", port) for word in SERVICE["healthcheck"]["test"][2:])]
    service = subprocess.Popen([*closed_in(tmp_path), *command], env=environment, cwd=tmp_path, process_group=0)
    try:
        ends_s = time.monotonic() + 400
        while subprocess.run(check, stderr=subprocess.DEVNULL).returncode != 0:
            assert service.poll() is None
            assert time.monotonic() < ends_s
            time.sleep(0.5)
        score = [
            str(Path(sys.executable).parent / "synod"), "score", str(ROOT / "embedded/data/samples/05_bo.png"),
            "--prompt=a photo of <bo>", "--scorers=ber", "--json", f"--url=http://127.0.0.1:{port}",
        ]  # fmt: skip
        assert subprocess.run(score, env=kept, capture_output=True).returncode == 1  # no token
        response = json.loads(subprocess.check_output(score, env={**kept, "SYNOD_TOKEN": TOKEN}))
        assert 0 < response["results"][0]["scores"]["ber"]["value"] < 1
        service.send_signal(signal.SIGTERM)  # as `docker stop` does
        assert service.wait(timeout=float(SERVICE["stop_grace_period"].rstrip("s"))) == 0
    finally:
        if service.poll() is None:
            os.killpg(service.pid, signal.SIGKILL)
            service.wait()
