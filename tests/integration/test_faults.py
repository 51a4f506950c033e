"""Load and faults on a real service: batching, kill -9, deadlines, readiness, metrics, placement."""

from __future__ import annotations

import json
import os
import signal
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from prometheus_client.mmap_dict import MmapedDict

from synod.contracts import Score, ScoreFailure, ScoreItem, ScoreResponse
from tests.outcomes import values

Wait = Callable[..., None]


def numbers(*values: float, sleep_s: float = 0.0) -> list[ScoreItem]:
    return [ScoreItem(prompt=f"{value} sleep {sleep_s}") for value in values]


def values_by(response: ScoreResponse, scorer: str) -> list[float | str | None]:
    return values(result.scores[scorer] for result in response.results)


def pids(service: Any, scorer: str, calls: int = 24) -> set[int]:
    """Return the ids of the processes that answer for a scorer."""
    found = [service.score(*numbers(0.5), scorers=(scorer,)).results[0].scores[scorer] for _ in range(calls)]
    return {outcome.detail["pid"] for outcome in found if isinstance(outcome, Score)}


def kill(pids: Sequence[int] | set[int]) -> None:
    for pid in pids:
        os.kill(pid, signal.SIGKILL)


def held(service: Any, scorer: str) -> float:
    """Return the number of images queued or running in the scorer's replicas."""
    images: float = service.metrics().get(f'synod_held_images{{scorer="{scorer}"}}', 0.0)
    return images


def stopped_at_work(service: Any, scorer: str, pid: int) -> bool:
    """Stop a replica's process; let it go on if it holds no image."""
    os.kill(pid, signal.SIGSTOP)
    file = service.run_dir / "metrics" / f"gauge_livesum_{pid}.db"
    for key, value, *_ in MmapedDict.read_all_values_from_file(str(file)):
        _, name, labels, _ = json.loads(key)
        if name == "synod_held_images" and labels == {"scorer": scorer} and value > 0:
            return True
    os.kill(pid, signal.SIGCONT)
    return False


def counters(samples: dict[str, float]) -> dict[str, float]:
    return {name: v for name, v in samples.items() if "_total" in name or "_bucket" in name or "_count" in name}


def test_batches_form_across_concurrent_requests(service: Any) -> None:
    """32 callers with one item each and at most 8 items a batch: fewer batches than requests."""
    before = service.metrics()
    with ThreadPoolExecutor(32) as callers:
        answers = list(callers.map(lambda n: service.score(*numbers(n / 64), scorers=("number",)), range(32)))
    after = service.metrics()
    assert [values_by(answer, "number") for answer in answers] == [[n / 64] for n in range(32)]
    assert max(answer.results[0].scores["number"].detail["batch"] for answer in answers) > 1

    def grown(name: str) -> float:
        return after.get(name, 0.0) - before.get(name, 0.0)

    assert grown('synod_batch_items_sum{scorer="number"}') == 32
    assert 4 <= grown('synod_batch_items_count{scorer="number"}') < 32


def test_either_gateway_reports_the_requests_of_both(service: Any) -> None:
    name = 'synod_requests_total{outcome="unknown_scorer",route="/v1/score"}'
    before = service.metrics().get(name, 0.0)
    with ThreadPoolExecutor(8) as callers:
        list(callers.map(lambda _: service.post(b'{"items":[{"prompt":"1"}],"scorers":["none"]}'), range(40)))
    assert {service.metrics()[name] for _ in range(8)} == {before + 40}


def test_a_killed_replica_changes_no_answer(service: Any, eventually: Wait) -> None:
    """kill -9 one of two replicas under load: every request still gets all of its own scores."""
    eventually(lambda: len(pids(service, "frail")) == 2)
    before = counters(service.metrics())
    victim = min(pids(service, "frail"))
    answers: dict[int, list[float | str]] = {}

    def ask(n: int) -> None:
        items = numbers(*((n * 4 + k) / 1024 for k in range(4)), sleep_s=0.05)
        answers[n] = values_by(service.score(*items, scorers=("frail",), timeout_ms=60_000), "frail")

    with ThreadPoolExecutor(12) as callers:
        futures = [callers.submit(ask, n) for n in range(48)]
        eventually(lambda: stopped_at_work(service, "frail", victim))
        kill([victim])
        for future in futures:
            future.result()
    assert answers == {n: [(n * 4 + k) / 1024 for k in range(4)] for n in range(48)}
    after = service.metrics()
    assert after['synod_retries_total{scorer="frail"}'] > before.get('synod_retries_total{scorer="frail"}', 0.0)
    assert all(after[name] >= value for name, value in before.items())
    assert f"gauge_livesum_{victim}.db" not in {p.name for p in (service.run_dir / "metrics").iterdir()}
    eventually(lambda: service.ready()["ready"])
    assert victim not in pids(service, "frail")


def test_a_killed_host_of_five_scorers_changes_no_answer(service: Any, eventually: Wait) -> None:
    """kill -9 a process that runs five scorers: each of them still gives every item its own score."""
    scorers = ("frail", "frail_2", "frail_3", "frail_4", "frail_5")
    eventually(lambda: len(pids(service, "frail")) == 2)
    (victim, *_) = pids(service, "frail")
    assert all(victim in pids(service, name) for name in scorers)

    def ask(n: int) -> list[list[float | str]]:
        response = service.score(*numbers(n / 16, n / 32, sleep_s=0.05), scorers=scorers, timeout_ms=60_000)
        return [values_by(response, name) for name in scorers]

    with ThreadPoolExecutor(8) as callers:
        futures = [callers.submit(ask, n) for n in range(16)]
        eventually(lambda: all(held(service, name) > 3 for name in scorers))
        kill([victim])
        answers = [future.result() for future in futures]
    assert answers == [[[n / 16, n / 32]] * 5 for n in range(16)]
    eventually(lambda: service.ready()["ready"])
    assert victim not in pids(service, "frail_5")


def test_readiness_follows_the_replicas(service: Any, eventually: Wait) -> None:
    """Without a replica, requests wait, /readyz is 503 with the reason, and no counter decreases."""
    eventually(lambda: len(pids(service, "frail")) == 2 and service.ready()["ready"])
    before = counters(service.metrics())
    doomed = pids(service, "frail")
    seen_unready = threading.Event()

    def watch() -> None:
        while not seen_unready.is_set():
            answer = service.http.get("/readyz")
            if answer.status_code == 503 and "replicas" in answer.json()["scorers"]["frail"]["reason"]:
                seen_unready.set()

    watcher = threading.Thread(target=watch)
    with ThreadPoolExecutor(4) as callers:
        running = [callers.submit(service.score, *numbers(n / 8, sleep_s=2.0), scorers=("frail",)) for n in range(4)]
        eventually(lambda: held(service, "frail") >= 4)
        kill(doomed)
        watcher.start()
        assert [values_by(future.result(), "frail") for future in running] == [[n / 8] for n in range(4)]
    assert seen_unready.wait(30)
    watcher.join()
    eventually(lambda: service.ready()["ready"])
    after = service.metrics()
    assert all(after[name] >= value for name, value in before.items())


def test_a_deadline_returns_the_finished_batches(service: Any) -> None:
    """The first item is quick, the others cannot finish in time: they fail with `deadline_exceeded`."""
    items = [*numbers(0.1), *numbers(0.2, 0.3, sleep_s=6.0)]
    response = service.score(*items, scorers=("frail",), timeout_ms=3000)
    late = "deadline_exceeded"
    assert values_by(response, "frail") == [0.1, late, late]
    failed = response.results[1].scores["frail"]
    assert isinstance(failed, ScoreFailure)
    assert failed.retryable
    assert values_by(service.score(*numbers(0.4), scorers=("number",)), "number") == [0.4]


def test_requests_refused_by_a_full_replica_are_retried(service: Any) -> None:
    """A replica holds 128 images; six requests bring 384."""

    def ask(n: int) -> list[float | str]:
        items = numbers(*(k / 64 for k in range(64)), sleep_s=0.01)
        return values_by(service.score(*items, scorers=("number",)), "number")

    with ThreadPoolExecutor(6) as callers:
        answers = list(callers.map(ask, range(6)))
    assert answers == [[k / 64 for k in range(64)]] * 6


def test_held_images_return_to_zero(service: Any, eventually: Wait) -> None:
    with ThreadPoolExecutor(1) as caller:
        running = caller.submit(service.score, *numbers(0.40625, sleep_s=2.0), scorers=("number",))
        eventually(lambda: held(service, "number") == 1)
        assert values_by(running.result(), "number") == [0.40625]
    eventually(lambda: held(service, "number") == 0)


def test_two_halves_of_a_gpu_are_placed_and_a_third_is_refused(service: Any) -> None:
    """`bright` and `number` each hold half of the only (logical) GPU; our capacity check agrees with Ray."""
    import ray

    from services.cluster import graph

    assert service.ready()["scorers"]["bright"]["ready"]
    assert ray.cluster_resources()["GPU"] == 1
    assert ray.available_resources().get("GPU", 0) == 0
    graph.check_capacity(graph.Demand.of(service.settings), ray.cluster_resources()["CPU"], [1])

    @ray.remote(num_gpus=0.5)
    def third() -> None: ...

    _, waiting = ray.wait([third.remote()], timeout=1.0)
    assert len(waiting) == 1
    ray.cancel(waiting[0])


def test_a_scorer_off_its_golden_value_never_serves(service: Any, eventually: Wait) -> None:
    """The deployment of an application whose golden file records another value fails."""
    import fake_scorers  # type: ignore[import-not-found]
    from ray import serve

    from services.cluster import graph

    golden = service.run_dir / "golden.json"
    golden.write_text('[{"item": {"prompt": "0.5"}, "scores": {"number": 0.75}}]')
    number = service.settings.scorers["number"].model_copy(update={"serving": service.settings.scorers["face"].serving})
    changed = service.settings.model_copy(update={"golden": str(golden), "scorers": {"number": number}})
    application = graph.application(changed, str(service.run_dir / "metrics"), fake_scorers.build)
    serve.run_many(
        [serve.RunTarget(application, name="drifted", route_prefix=None)], wait_for_applications_running=False
    )
    try:
        eventually(lambda: serve.status().applications["drifted"].status.value == "DEPLOY_FAILED")
        message = serve.status().applications["drifted"].deployments["number"].message
        assert "golden item 0 scored 0.5; recorded is 0.75 +- 0.001" in message
    finally:
        serve.delete("drifted")
    assert service.ready()["ready"]
