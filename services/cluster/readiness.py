"""Derive the readiness of a scorer from Serve's status of its deployment."""

from __future__ import annotations

from dataclasses import replace

from ray.serve.schema import DeploymentStatusOverview

from services.backends import Readiness

FAILED = frozenset({"UNHEALTHY", "DEPLOY_FAILED"})


def readiness(status: DeploymentStatusOverview | None, wanted: int, last: Readiness) -> Readiness:
    """Return the readiness of a scorer by the status of its deployment (None: not known) and its `last` readiness."""
    states = {} if status is None else status.replica_states
    running = int(states.get("RUNNING", 0))
    if wanted == 0 and not any(states.values()) and not (status and status.status.value in FAILED):
        return replace(last, replicas=0, wanted=0)
    least = max(wanted, 1)
    if status is not None and running >= least:
        return Readiness(True, running, wanted)
    reason = f"{running} of {least} replicas have loaded and passed their golden items"
    if status is not None and status.message:
        reason = f"{reason}: {exception_text(status.message)}"
    return Readiness(False, running, wanted, reason)


def exception_text(message: str) -> str:
    """Return the text of the exception in a deployment's message: the lines after its last traceback."""
    lines = message.strip().splitlines()
    traceback = [i for i, line in enumerate(lines) if line.startswith("  ")]
    return "\n".join(lines[traceback[-1] + 1 :] if traceback else lines)
