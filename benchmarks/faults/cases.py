"""The fault cases, one function each: inject the fault, count the outcomes, check them.

Each takes the running service and an amount, and returns counts with `held`: check -> whether it passed.
"""

from __future__ import annotations

import asyncio
import os
import signal
import statistics
import time
from collections import Counter
from collections.abc import Sequence
from typing import Any, Final

import httpx

from benchmarks.faults.load import PER_REQUEST, Tally, drive, either, fresh, score
from benchmarks.faults.scorers import BUSY_BATCH, BUSY_BATCH_S, NAN_EVERY, image_of
from benchmarks.faults.service import QUEUE, Running, eventually
from synod.client import SynodClient
from synod.codec import MSGPACK
from synod.contracts import ImageInput, ScoreItem, ScoreRequest
from synod.images import encode_png

Result = dict[str, Any]
Answered = tuple[int, float, float | None]  # status, seconds, Retry-After
KIND: Final = {"content-type": MSGPACK.content_type}
GROUP: Final = 32
TWICE_FROM: Final = 2000  # images; fewer are all scored before the killed replica is replaced
CUT: Final = 45  # bytes of a PNG: its header and its first pixels


def replica_killed(service: Running, images: int) -> Result:
    """SIGKILL one of two scorer replicas under 16 clients, and again once it is replaced."""
    return _killed(service, "colour", images)


def gateway_killed(service: Running, images: int) -> Result:
    """SIGKILL one of two gateways under 16 clients, and again once it is replaced."""
    return _killed(service, "Gateway", images)


def _killed(service: Running, deployment: str, images: int) -> Result:
    service.await_replicas(deployment, 2)
    tally, killed, under_way = Tally(), list[int](), list[int]()

    def kill() -> None:
        if killed:
            service.await_replicas(deployment, 2, without=killed)
        killed.append(min(service.pids(deployment)))
        os.kill(killed[-1], signal.SIGKILL)
        under_way.append(tally.asked - tally.done)

    at = {images // 4: kill} if images < TWICE_FROM else {images // 4: kill, images // 2: kill}
    seen = drive(service.url, fresh(images), "colour", tally, at=at)
    service.await_replicas(deployment, 2, without=killed)
    held = {
        "no score is lost, doubled, disordered or invented": tally.complete() and tally.asked >= images,
        "every kill met work in flight": len(under_way) == len(at) and all(under_way),
    }
    return tally.counts() | {"under_way_at_kills": under_way, "attempts": dict(seen), "held": held}


def corrupt_image(service: Running, images: int) -> Result:
    """Truncate one image of each 32."""
    numbers = fresh(images // GROUP * GROUP)
    bad = {group[i % GROUP] for i, group in enumerate(zip(*[iter(numbers)] * GROUP, strict=True))}

    def image(number: int) -> ImageInput:
        return encode_png(image_of(number))[:CUT] if number in bad else either(number)

    tally = Tally()
    drive(service.url, numbers, "colour", tally, image=image, per_request=GROUP)
    held = {
        "31 of 32 are scored": tally.right == len(numbers) - len(bad),
        "the truncated one is a bad_image": tally.failed == Counter(bad_image=len(bad)),
    }
    return tally.counts() | {"held": held}


def nan(service: Running, images: int) -> Result:
    """Score with a scorer that returns NaN for 1 % of the images."""
    numbers = fresh(images)
    bad = sum(number % NAN_EVERY == 0 for number in numbers)
    tally = Tally()
    drive(service.url, numbers, "nan", tally)
    held = {
        "every NaN is a typed failure": tally.failed == Counter(non_finite=bad) and bad > 0,
        "all others are scored": tally.right == images - bad,
    }
    return tally.counts() | {"held": held}


def overload(service: Running, seconds: float) -> Result:
    """Send requests at twice a scorer's throughput: some are refused whole, the others are scored."""
    from services.cluster import graph

    tally, answers = asyncio.run(_overload(service.url, seconds))
    admitted = sorted(seconds for status, seconds, _ in answers if status == 200)
    refused = [after for status, _, after in answers if status == 429]
    waits = [after for after in refused if after is not None]
    window = graph.windows(service.settings)["busy"].images
    drain = BUSY_BATCH / BUSY_BATCH_S
    gateways = service.settings.server.gateway_replicas
    held = {
        "all are answered 200 or 429": len(admitted) + len(refused) == len(answers),
        "there are both": bool(admitted) and bool(refused),
        "every refusal has a Retry-After": len(waits) == len(refused) and min(waits, default=1) >= 1,
        "every admitted image is scored": tally.complete(),
    }
    return tally.counts() | {
        "requests": len(answers),
        "admitted": len(admitted),
        "refused": len(refused),
        "retry_after_s": {"median": statistics.median(waits), "most": max(waits)} if waits else None,
        "admitted_p99_s": round(admitted[int(0.99 * len(admitted))], 3) if admitted else None,
        "bound_s": round(gateways * (QUEUE + window + PER_REQUEST) / drain, 3),  # (queued + in flight) / drain rate
        "offered_over_drain": round(len(answers) * PER_REQUEST / seconds / drain, 2),
        "held": held,
    }


async def _overload(url: str, seconds: float) -> tuple[Tally, list[Answered]]:
    """Send an open loop at twice the drain rate and return every request's answer."""
    tally, period_s = Tally(), PER_REQUEST / (2 * BUSY_BATCH / BUSY_BATCH_S)
    limits = httpx.Limits(max_connections=None)

    async def ask(http: httpx.AsyncClient) -> Answered:
        numbers, began_s = fresh(PER_REQUEST), time.monotonic()
        body = MSGPACK.encode_request(ScoreRequest(_items(numbers), ("busy",), timeout_ms=60_000))
        answer = await http.post("/v1/score", content=body, headers=KIND)
        took_s = time.monotonic() - began_s
        if answer.status_code == 200:
            tally.expect(numbers)
            for number, result in zip(numbers, MSGPACK.decode_response(answer.content).results, strict=True):
                tally.outcome(number, result.scores["busy"])
        after = answer.headers.get("retry-after")
        return answer.status_code, took_s, None if after is None else float(after)

    async with httpx.AsyncClient(base_url=url, timeout=120, limits=limits) as http, asyncio.TaskGroup() as tasks:
        asked: list[asyncio.Task[Answered]] = []
        began_s = time.monotonic()
        while (due_s := began_s + len(asked) * period_s) < began_s + seconds:
            await asyncio.sleep(due_s - time.monotonic())
            asked.append(tasks.create_task(ask(http)))
        answers = await asyncio.gather(*asked)
    return tally, answers


def timeout_then_retry(service: Running, requests: int) -> Result:
    """Give up while the images are on the device, and send the same request again at once."""
    tally, gave_up, asked = Tally(), 0, list[int]()
    with SynodClient(service.alone_url, timeout_s=120) as again:
        for i in range(requests):
            numbers = fresh(4)
            request = ScoreRequest(_items(numbers), ("logged",), request_id=f"retry-{i}")
            gave_up += _disconnect(service, request, numbers)
            asked += numbers
            tally.expect(numbers)
            for number, result in zip(numbers, again.score(request).results, strict=True):
                tally.outcome(number, result.scores["logged"])
    runs = _runs(service, asked)
    held = {
        "every first attempt was abandoned": gave_up == requests,
        "every retry is scored": tally.complete(),
        "device work is done once": set(runs.values()) == {1} and len(runs) == len(asked),
    }
    return tally.counts() | {"gave_up": gave_up, "device_runs": runs.total(), "held": held}


def client_gone(service: Running, requests: int) -> Result:
    """Ask for 128 images in batches of 4 and disconnect for good when the first batch is on the device."""
    asked: list[int] = []
    tally = Tally()
    with SynodClient(service.alone_url, timeout_s=120) as other:
        for _ in range(requests):
            numbers = fresh(128)
            asked += numbers
            _disconnect(service, ScoreRequest(_items(numbers), ("logged",)), numbers)
            score(other, fresh(1), "logged", tally, either)  # queued behind the abandoned work
    worked = _runs(service, asked).total()
    held = {"most of its work is dropped": worked <= len(asked) / 2, "the next caller is served": tally.complete()}
    return {"asked": len(asked), "reached_the_device": worked, "dropped": len(asked) - worked, "held": held}


def wrong_channel_order(service: Running, replicas: int) -> Result:
    """Deploy a scorer that reads BGR, behind the golden gate that the others passed."""
    from ray import serve

    def failed() -> bool:
        return bool(serve.status().applications["swapped"].status.value == "DEPLOY_FAILED")

    with service.application("swapped", None, service.changed("swapped", replicas=replicas)):
        eventually(failed, "verdict on the swapped scorer")
        status = serve.status().applications["swapped"].deployments["swapped"]
        running = int(status.replica_states.get("RUNNING", 0))
        message = status.message
    tally = Tally()
    drive(service.url, fresh(PER_REQUEST), "colour", tally)
    held = {
        "no replica of it serves": running == 0,
        "its drift is reported": "golden item 0 scored" in message,
        "the others serve": tally.complete(),
    }
    return {"replicas": replicas, "running": running, "message": message.strip().splitlines()[-1], "held": held}


def _items(numbers: Sequence[int]) -> tuple[ScoreItem, ...]:
    return tuple(ScoreItem(either(number), prompt="a colour") for number in numbers)


def _runs(service: Running, numbers: Sequence[int]) -> Counter[int]:
    """Count how often each of these images reached the device of `logged`."""
    wanted = set(numbers)
    logged = map(int, service.log.read_text().split()) if service.log.exists() else ()
    return Counter(number for number in logged if number in wanted)


def _disconnect(service: Running, request: ScoreRequest, numbers: Sequence[int]) -> bool:
    """Send the request and disconnect when one of its images is on the device.

    Returns whether no answer had come by then.
    """

    async def disconnect() -> bool:
        async with httpx.AsyncClient(base_url=service.alone_url, timeout=120) as http:
            asking = asyncio.create_task(http.post("/v1/score", content=MSGPACK.encode_request(request), headers=KIND))
            while not asking.done() and not _runs(service, numbers):
                await asyncio.sleep(0.01)
            unanswered = not asking.done()
            asking.cancel()
            await asyncio.wait([asking])
            return unanswered

    return asyncio.run(disconnect())
