"""Translate the exceptions that Ray raises for a call of a scorer into Synod's errors."""

from __future__ import annotations

from ray.exceptions import (
    LocalRayletDiedError,
    NodeDiedError,
    ObjectLostError,
    OutOfMemoryError,
    RayActorError,
    RayTaskError,
    TaskCancelledError,
    WorkerCrashedError,
)
from ray.serve.exceptions import BackPressureError, DeploymentUnavailableError, ReplicaUnavailableError

from synod.errors import Overloaded, ReplicaLost, ScorerFailed, SynodError

LOST = (
    RayActorError,
    WorkerCrashedError,
    NodeDiedError,
    LocalRayletDiedError,
    OutOfMemoryError,  # Ray's memory monitor killed the replica
    ObjectLostError,
    TaskCancelledError,  # not by the caller: the replica ended during the call
    DeploymentUnavailableError,
    ReplicaUnavailableError,
)


def translate(scorer: str, error: Exception) -> SynodError:
    """Return Synod's error for Ray's: retryable for lost replicas and full queues, else ScorerFailed."""
    cause = error.cause if isinstance(error, RayTaskError) else error
    if isinstance(cause, SynodError):
        return cause
    if isinstance(cause, LOST):
        return ReplicaLost(f"a replica of scorer '{scorer}' was lost while it scored; retry")
    if isinstance(cause, BackPressureError):
        return Overloaded(f"the queue of scorer '{scorer}' is full; retry later")
    return ScorerFailed(f"scorer '{scorer}' failed with {type(cause).__name__}: {str(cause)[:200]}")
