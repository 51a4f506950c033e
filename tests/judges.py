"""A real HTTP server for OpenAI's chat completions that can misbehave on request."""

from __future__ import annotations

import asyncio
import base64
import io
import json
import math
import socket
import threading
from collections import deque
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import uvicorn
from PIL import Image
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

Reply = str | Response


@dataclass
class JudgeServer:
    """A server that answers with the next of `script`, or with a verdict by the image's redness.

    A text in the script is the model's answer, a Response is sent as it is, and `hang` keeps the caller waiting.
    """

    url: str
    script: deque[Reply | None] = field(default_factory=deque)
    asked: list[dict[str, Any]] = field(default_factory=list)
    headers: list[Mapping[str, str]] = field(default_factory=list)
    usage: dict[str, int] | None = field(default_factory=lambda: {"prompt_tokens": 90, "completion_tokens": 10})
    max_concurrent: int = 0
    open: int = 0
    gate: threading.Event | None = None
    released: threading.Event = field(default_factory=threading.Event)

    async def answer(self, request: Request) -> Response:
        body = json.loads(await request.body())
        self.asked.append(body)
        self.headers.append(dict(request.headers))
        self.open += 1
        self.max_concurrent = max(self.max_concurrent, self.open)
        try:
            reply = self.script.popleft() if self.script else None
            while self.gate is not None and not self.gate.is_set():
                await asyncio.sleep(0.005)
            if reply == "hang":
                while not (self.released.is_set() or await request.is_disconnected()):
                    await asyncio.sleep(0.01)
            if isinstance(reply, Response):
                return reply
            if reply is None and "response_format" not in body:
                return self.completion(*free_form(body))
            return self.completion(verdict(body) if reply is None else reply)
        finally:
            self.open -= 1

    def completion(self, text: object, first: Mapping[str, float] | None = None) -> Response:
        """Return a chat completion; `first`: the most likely first tokens and their probabilities."""
        choice: dict[str, Any] = {"index": 0, "message": {"role": "assistant", "content": text}}
        if first is not None:
            ranked = [
                {"token": token, "logprob": math.log(p), "bytes": [*token.encode()]} for token, p in first.items()
            ]
            choice["logprobs"] = {"content": [{**ranked[0], "top_logprobs": ranked}]}
        tree = {"id": "1", "object": "chat.completion", "choices": [choice]}
        return JSONResponse(tree if self.usage is None else {**tree, "usage": self.usage})


def redness(image: Mapping[str, Any]) -> float:
    """Return the red channel's mean over 255."""
    data = base64.b64decode(image["image_url"]["url"].removeprefix("data:image/png;base64,"))
    return float(np.asarray(Image.open(io.BytesIO(data)))[..., 0].mean() / 255)


def free_form(body: Mapping[str, Any]) -> tuple[str, dict[str, float] | None]:
    """Answer a free-form prompt by the redness r: UnifiedReward's grade 1 + 4r in its prompt's form.

    If first tokens are requested: "Yes" and the numerals with r of the probability, "No" with the rest.
    """
    image, text = body["messages"][0]["content"]
    red = redness(image)
    if "top_logprobs" in body:
        share = (0.01 + 0.98 * red) / 2
        return "Yes", {"Yes": share, "two": share, "No": 0.98 - 2 * share, "the": 0.001}
    if "Answer in one word" in text["text"]:
        return "Two." if "many" in text["text"] else ("Yes" if red > 0.5 else "No"), None
    if "Final Score" in text["text"]:
        return f"cat (object): 1\nFinal Score: {1 + 4 * red:.4f}", None
    scores = "\n".join(f"{axis} Score (1-5): {1 + 4 * red}" for axis in ("Alignment", "Coherence", "Style"))
    return scores, None


def verdict(body: Mapping[str, Any]) -> str:
    """Answer with the redness; as true/false, whether the image is red or the question says 'surely'.

    Without an image: 1 for a reply that is the right answer, 0.5 for one that contains it, else 0.
    """
    text, *images = body["messages"][0]["content"]
    if not images:
        right, reply = text["text"].partition("Right answer: ")[2].split("\nReply: ")
        return json.dumps({"reason": "read", "score": 1.0 if reply == right else 0.5 if right in reply else 0.0})
    (image,) = images
    red = redness(image)
    if "valid" in body["response_format"]["json_schema"]["schema"]["properties"]:
        return json.dumps({"reason": "seen", "valid": red > 0.5 or "surely" in text["text"]})
    return json.dumps({"reason": "seen", "score": red})


@contextmanager
def judging() -> Iterator[JudgeServer]:
    """Run the server in a thread until the block ends."""
    listener = socket.create_server(("127.0.0.1", 0))
    served = JudgeServer(f"http://127.0.0.1:{listener.getsockname()[1]}/v1")
    routes = [Route("/v1/chat/completions", served.answer, methods=["POST"])]
    config = uvicorn.Config(Starlette(routes=routes), log_level="error", ws="none", timeout_graceful_shutdown=2)
    server = uvicorn.Server(config)
    thread = threading.Thread(target=asyncio.run, args=(server.serve([listener]),))
    thread.start()
    try:
        yield served
    finally:
        served.released.set()
        server.should_exit = True
        thread.join(20)
        listener.close()
