"""Two gateways of one service: images and scores survive either, and their counters add up."""

from __future__ import annotations

import os
import signal
import time
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest

from services.cluster.processes import users_of
from services.scorers.ber import BerSettings
from services.settings import StoreSettings
from services.settings_types import ServingSettings
from synod.codec import CODECS
from synod.contracts import ImageRef, PutImagesRequest, ScoreItem, ScoreRequest, ScoreResponse
from synod.digest import digest_of
from synod.images import encode_png
from tests.outcomes import values

Wait = Callable[..., None]
PNG = encode_png(np.full((8, 8, 3), 77, np.uint8))
JSON = CODECS["application/json"]


class Sharing:
    """A second application on the session's Ray, with a score store and a scorer that counts its work."""

    def __init__(self, service: Any, port: int, folder: Path, others: set[int]) -> None:
        self.service, self.folder, self._others = service, folder, others
        self.http = httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=90.0)

    def post(self, *items: ScoreItem, **fields: Any) -> httpx.Response:
        body = JSON.encode_request(ScoreRequest(items, ("counted",), **fields))
        return self.http.post("/v1/score", content=body, headers={"content-type": JSON.content_type})

    def score(self, *items: ScoreItem, **fields: Any) -> list[float | str | None]:
        """Return the scores; retry like a client on a broken connection or a 503."""
        last: object = None
        for _ in range(100):
            try:
                last = answer = self.post(*items, **fields)
                if answer.status_code == 200:
                    return values_of(JSON.decode_response(answer.content))
                assert answer.status_code == 503, answer.text
            except httpx.TransportError as error:
                last = error
            time.sleep(0.2)
        raise AssertionError(last)

    def put(self, image: bytes) -> httpx.Response:
        body = JSON.encode_put(PutImagesRequest((image,)))
        return self.http.put("/v1/images", content=body, headers={"content-type": JSON.content_type})

    def measured(self) -> Counter[str]:
        """Return how often each prompt was scored."""
        file = self.folder / "measured"
        return Counter(file.read_text().splitlines() if file.exists() else ())

    def processes(self, title: str) -> set[int]:
        """Return the ids of this application's processes whose title contains `title`."""
        return {pid for pid in users_of(self.service.temp_dir) if title in command(pid)} - self._others

    def gateways(self) -> set[int]:
        return self.processes("ServeReplica:sharing:Gateway")

    def actor(self) -> int:
        (pid,) = self.processes("ray::StoreActor")
        return pid


def command(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes().decode(errors="replace")
    except OSError:
        return ""


def values_of(response: ScoreResponse) -> list[float | str | None]:
    return values(result.scores["counted"] for result in response.results)


def by_digest(*prompts: str) -> list[ScoreItem]:
    return [ScoreItem(ImageRef(digest_of(PNG)), prompt) for prompt in prompts]  # type: ignore[arg-type]


@pytest.fixture(scope="module")
def sharing(service: Any, free_port: Callable[[], int], tmp_path_factory: pytest.TempPathFactory) -> Iterator[Sharing]:
    import fake_scorers  # type: ignore[import-not-found]
    from ray import serve

    from services.cluster import graph

    folder = tmp_path_factory.mktemp("counted")
    counted = BerSettings(kind="ber", model=str(folder), serving=ServingSettings(replicas=2, max_batch_images=4))
    changed = service.settings.model_copy(update={"scorers": {"counted": counted}, "store": StoreSettings()})
    server = service.settings.server.model_copy(update={"port": free_port(), "grpc_port": None})
    changed = changed.model_copy(update={"ensembles": {}, "server": server})
    others = {pid for pid in users_of(service.temp_dir) if "ray::StoreActor" in command(pid)}
    application = graph.application(changed, str(service.run_dir / "metrics"), fake_scorers.build)
    serve.run_many([serve.RunTarget(application, name="sharing", route_prefix="/sharing")])
    subject = Sharing(service, server.port, folder, others)
    with subject.http:
        yield subject
    serve.delete("sharing")


@pytest.fixture(autouse=True)
def complete(sharing: Sharing, eventually: Wait) -> None:
    """Begin each test with two gateways and a responding store actor."""
    eventually(lambda: len(sharing.gateways()) == 2 and len(sharing.processes("ray::StoreActor")) == 1)
    eventually(lambda: sharing.put(PNG).status_code == 200)


def test_images_and_scores_survive_every_gateway(sharing: Sharing, eventually: Wait) -> None:
    """Kill, one after the other, both gateways that were running when the image was stored and scored."""
    items = by_digest("0.125", "0.5")
    first, second = sharing.gateways()
    os.kill(first, signal.SIGKILL)
    assert sharing.score(*items, request_id="r") == [0.125, 0.5]
    eventually(lambda: len(sharing.gateways() - {first}) == 2)
    os.kill(second, signal.SIGKILL)
    assert sharing.score(*items, request_id="r") == [0.125, 0.5]
    assert [sharing.measured()[prompt] for prompt in ("0.125", "0.5")] == [1, 1]
    eventually(lambda: len(sharing.gateways() - {first, second}) == 2)
    assert sharing.score(*items) == [0.125, 0.5]
    assert [sharing.measured()[prompt] for prompt in ("0.125", "0.5")] == [1, 1]


def test_gateways_share_equal_work_in_flight(sharing: Sharing) -> None:
    with ThreadPoolExecutor(12) as callers:
        answers = list(callers.map(lambda _: sharing.score(*by_digest("0.25 sleep 1")), range(12)))
    assert answers == [[0.25]] * 12
    assert sharing.measured()["0.25 sleep 1"] == 1


def test_the_claims_of_a_dead_gateway_are_released(sharing: Sharing, eventually: Wait) -> None:
    """Both gateways die while they hold a claim for ten minutes; the retry is answered in under one."""
    doomed = sharing.gateways()
    with ThreadPoolExecutor(1) as caller:
        lost = caller.submit(sharing.post, *by_digest("0.75 sleep 3"), timeout_ms=600_000)
        eventually(lambda: sharing.service.metrics().get('synod_held_images{scorer="counted"}', 0.0) == 1)
        for pid in doomed:
            os.kill(pid, signal.SIGKILL)
        lost.exception()
    assert sharing.score(*by_digest("0.75 sleep 3"), timeout_ms=60_000) == [0.75]


def test_the_service_scores_without_its_store_actor(sharing: Sharing, eventually: Wait) -> None:
    inline = ScoreItem(PNG, "0.375")
    assert sharing.score(inline) == [0.375]
    os.kill(sharing.actor(), signal.SIGKILL)
    answers = [sharing.post(inline) for _ in range(8)]
    assert [values_of(JSON.decode_response(answer.content)) for answer in answers] == [[0.375]] * 8
    refused = sharing.post(*by_digest("0.375"))
    assert (refused.status_code, refused.json()["error"]["code"]) in ((503, "unavailable"), (409, "unknown_image"))
    assert refused.json()["error"]["retryable"]
    eventually(lambda: sharing.put(PNG).status_code == 200)
    assert sharing.score(*by_digest("0.625")) == sharing.score(*by_digest("0.625")) == [0.625]
    assert sharing.measured()["0.625"] == 1
    assert sharing.service.metrics()['synod_store_failures_total{call="claim"}'] > 0


def test_a_hanging_store_actor_delays_nobody_for_long(sharing: Sharing, eventually: Wait) -> None:
    actor = sharing.actor()
    os.kill(actor, signal.SIGSTOP)
    try:
        answer = JSON.decode_response(sharing.post(ScoreItem(PNG, "0.875"), timeout_ms=20_000).content)
        assert values_of(answer) == [0.875]
        eventually(lambda: sharing.put(PNG).json().get("error", {}).get("code") == "unavailable")
    finally:
        os.kill(actor, signal.SIGCONT)
    eventually(lambda: sharing.put(PNG).status_code == 200)


def test_counters_add_up_and_survive_a_kill(sharing: Sharing, eventually: Wait) -> None:
    """60 requests of 3 items over two gateways and two replicas; then one of each is killed."""
    service = sharing.service

    def counted() -> dict[str, float]:
        samples = service.metrics()
        return {name: value for name, value in samples.items() if name in NAMES}

    gateways, replicas = sharing.gateways(), sharing.processes("ServeReplica:sharing:counted")
    before = counted()
    prompts = [[str((3 * n + k) / 1024) for k in range(200, 203)] for n in range(60)]
    with ThreadPoolExecutor(12) as callers:
        answers = list(callers.map(lambda one: sharing.score(*(ScoreItem(PNG, prompt) for prompt in one)), prompts))
    assert answers == [[float(prompt) for prompt in one] for one in prompts]
    after = counted()
    grown = {name: after[name] - before.get(name, 0.0) for name in NAMES}
    assert grown == dict(zip(NAMES, (60, 180, 180, 180, 180, 180), strict=True))
    shares = {pid: of_process(service.run_dir / "metrics", pid) for pid in gateways | replicas}
    assert all(shares[pid]["synod_scores_total"] > 0 for pid in gateways)
    assert all(shares[pid]["synod_batch_items_sum"] > 0 for pid in replicas)
    for pid in (min(gateways), min(replicas)):
        os.kill(pid, signal.SIGKILL)
    eventually(lambda: not {min(gateways), min(replicas)} & set(users_of(service.temp_dir)))
    assert {name: value for name, value in counted().items() if value < after[name]} == {}
    assert sharing.score(ScoreItem(PNG, "0.9375")) == [0.9375]
    assert counted()['synod_scores_total{scorer="counted"}'] == after['synod_scores_total{scorer="counted"}'] + 1


NAMES = (
    'synod_requests_total{outcome="ok",route="/v1/score"}',
    "synod_items_total",
    'synod_scores_total{scorer="counted"}',
    'synod_batch_items_sum{scorer="counted"}',
    "synod_images_total",
    'synod_cache_total{result="miss"}',
)


def of_process(folder: Path, pid: int) -> Counter[str]:
    """Return the values that one process has written, without labels."""
    from prometheus_client.multiprocess import MultiProcessCollector

    files = [str(path) for path in folder.glob(f"*_{pid}.db") if not path.name.startswith("gauge")]
    families = MultiProcessCollector.merge(files, accumulate=True)  # type: ignore[no-untyped-call]
    return Counter({sample.name: sample.value for family in families for sample in family.samples if sample.value})
