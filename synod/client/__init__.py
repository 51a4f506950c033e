"""The client of a reward service, blocking and for asyncio, over HTTP and gRPC.

`flows` decides what to send when, `core` decodes responses; neither does I/O. `http` and `rpc` move bytes.
"""

from synod.client.aio import AsyncSynodClient
from synod.client.sync import SynodClient
from synod.values import Missing, Values

__all__ = ["AsyncSynodClient", "Missing", "SynodClient", "Values"]
