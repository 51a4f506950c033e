"""The client of a reward plane. `core` speaks the protocol without I/O; `sync` moves its bytes over HTTP."""

from synod.client.sync import SynodClient

__all__ = ["SynodClient"]
