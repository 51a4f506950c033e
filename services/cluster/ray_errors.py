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

from synod.errors import Overloaded, ReplicaLost, ScorerFailed, SynodError, Unavailable

LOST = (  # the replica ended while it had the call: Serve itself tries another if it was dead before
    RayActorError,
    WorkerCrashedError,
    NodeDiedError,
    LocalRayletDiedError,
    OutOfMemoryError,  # Ray's memory monitor killed the replica
)
UNAVAILABLE = (  # no fault of the items
    DeploymentUnavailableError,
    ReplicaUnavailableError,
    ObjectLostError,
    TaskCancelledError,  # not by the caller: Serve stopped the replica during the call
)


def translate(scorer: str, error: Exception) -> SynodError:
    """Return Synod's error for Ray's: retryable for lost or missing replicas and full queues, else ScorerFailed.

    ReplicaLost means that the replica died while it had the call, so one of its items may be the cause.
    """
    cause = error.cause if isinstance(error, RayTaskError) else error
    if isinstance(cause, SynodError):
        return cause
    if isinstance(cause, LOST):
        return ReplicaLost(f"a replica of scorer '{scorer}' was lost while it scored; retry")
    if isinstance(cause, UNAVAILABLE):
        return Unavailable(f"no replica of scorer '{scorer}' could finish the call ({type(cause).__name__}); retry")
    if isinstance(cause, BackPressureError):
        return Overloaded(f"the queue of scorer '{scorer}' is full; retry later")
    return ScorerFailed(f"scorer '{scorer}' failed with {type(cause).__name__}: {str(cause)[:200]}")
