"""Build the service from a Serve config, for `serve deploy` and KubeRay's RayService.

    applications:
    - name: synod
      import_path: services.cluster.serve_app:service
      route_prefix: /
      args: {config: /app/deploy/release/service.toml, metrics_dir: /run/synod/metrics}

Serve calls `service` in a process of its own on the head node. That node's environment may override settings
(`SYNOD__...`).
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from hashlib import sha256
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, Field
from ray.serve import Application

from services import settings
from services.cluster import graph
from synod.errors import SettingsError


class Arguments(BaseModel):
    """`config`: the settings TOML. `metrics_dir`: a directory that all processes of a node can write to.

    `sha256`: the digest of the expected TOML. A mounted file changes later than its source (the kubelet syncs once a
    minute), so `service` waits for the expected file, for at most `patience_s`.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    config: Path
    metrics_dir: Path
    sha256: str | None = Field(None, pattern="^[0-9a-f]{64}$")
    patience_s: float = Field(180.0, ge=0)


def service(args: Mapping[str, Any]) -> Application:
    """Return the application of `Arguments.config`. Raises SettingsError, and ValidationError for wrong `args`."""
    arguments = Arguments.model_validate(args)  # Serve does not validate: the annotation is a string
    if arguments.sha256 is not None:
        wait_for(arguments.config, arguments.sha256, arguments.patience_s)
    return graph.application(settings.load(arguments.config), str(arguments.metrics_dir))


def wait_for(
    path: Path,
    digest: str,
    patience_s: float,
    now_s: Callable[[], float] = time.monotonic,
    sleep: Callable[[float], None] = time.sleep,
) -> None:
    """Wait until the file has this SHA-256. Raises SettingsError after `patience_s`."""
    ends_s = now_s() + patience_s
    while (found := _digest(path)) != digest:
        if now_s() >= ends_s:
            raise SettingsError(
                f"settings file {path} has SHA-256 {found} after {patience_s:g} s, expected {digest}: check that the "
                "deployed file is mounted there, or raise 'patience_s'"
            )
        sleep(1.0)


def _digest(path: Path) -> str:
    try:
        return sha256(path.read_bytes()).hexdigest()
    except FileNotFoundError:
        return "none: no such file"
