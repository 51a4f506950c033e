"""One real service for the session: Ray Serve, two gateways, fake scorers (and one real), REST on a free port."""

from __future__ import annotations

import os
import sys
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from xdist.scheduler import LoadFileScheduling

from services.cluster import local
from services.cluster.local import RewardService
from services.settings import Settings, load
from synod.codec import CODECS
from synod.contracts import ScoreItem, ScoreRequest, ScoreResponse
from tests.collector import Collector, collecting

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # Ray's own, at import
    import ray.serve  # noqa: F401

HERE = Path(__file__).parent
# Files whose tests run in one process. `ray_train` would find the cluster of the quickstart: both use /tmp/ray.
ON_THE_SERVICE = ("test_faults.py", "test_rest.py", "test_sizes.py", "test_two_gateways.py", "test_up.py")
GROUPS = {
    **dict.fromkeys(ON_THE_SERVICE, "service"),
    **dict.fromkeys(("test_quickstart.py", "test_ray_train.py"), "/tmp/ray"),
}
FRAIL_OTHERS = "\n".join(
    f"""[scorers.frail_{n}]
kind = "ber"
model = "./"
serving = {{ colocate_with = "frail", max_batch_images = 1 }}
"""
    for n in (2, 3, 4, 5)
)
SETTINGS = """
[server]
port = {port}
grpc_port = {grpc_port}
gateway_replicas = 2

[cluster]
num_cpus = 8
num_gpus = 1  # logical
object_store_bytes = 134217728

[tracing]
endpoint = "{collector}"
sample_ratio = 0.0  # only what a test asks for

[store]
max_scores = 0  # these tests look at the machinery below the store

[limits]
max_body_bytes = 2097152
max_image_bytes = 1048576
max_items = 64

[scorers.bright]
kind = "ber"
model = "./"
serving = {{ num_gpus = 0.5, batch_wait_ms = 50 }}

[scorers.colocated]
kind = "ber"
model = "./"
serving = {{ colocate_with = "bright", max_batch_images = 4 }}

[scorers.number]
kind = "ber"
model = "./"
serving = {{ num_gpus = 0.5, max_batch_images = 8, batch_wait_ms = 200 }}

[scorers.frail]
kind = "ber"
model = "./"
serving = {{ replicas = 2, max_batch_images = 1 }}

{frail_others}
[scorers.face]
kind = "der"
model = "./"

[scorers.der]
kind = "der"
model = "{dino}"

[ensembles.council]
clip_at_zero = true

[ensembles.council.by_kind]
person = {{ number = 0.5, bright = 0.25, face = 0.25 }}
animal = {{ number = 0.5, bright = 0.5, face = 0.0 }}

[ensembles.lenient]
missing = "renormalise"
weights = {{ number = 0.5, bright = 0.25, face = 0.25 }}
"""


class Groups(LoadFileScheduling):
    """`--dist loadfile` with one process for all files of a group."""

    def _split_scope(self, nodeid: str) -> str:
        file: str = super()._split_scope(nodeid)
        return GROUPS.get(Path(file).name, file)


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Groups | None:
    return Groups(config, log) if config.getoption("dist") == "loadfile" else None


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Refuse a file that uses the service below outside its group: another process would start a second one."""
    for item in items:
        uses = "service" in getattr(item, "fixturenames", ()) and not hasattr(getattr(item, "module", None), "service")
        if uses and item.path.name not in ON_THE_SERVICE:
            raise pytest.UsageError(
                f"{item.path.name} uses the session's service: name it in ON_THE_SERVICE of {__file__}"
            )


class Client:
    """What a caller sees: bytes over HTTP."""

    def __init__(self, url: str, run_dir: Path, temp_dir: Path, settings: Settings) -> None:
        self.url, self.run_dir, self.temp_dir, self.settings = url, run_dir, temp_dir, settings
        self.http = httpx.Client(base_url=url, timeout=60.0)

    def post(self, body: bytes, content_type: str = "application/json", **headers: str) -> httpx.Response:
        return self.http.post("/v1/score", content=body, headers={"content-type": content_type, **headers})

    def score(self, *items: ScoreItem, kind: str = "application/json", **fields: Any) -> ScoreResponse:
        answer = self.post(CODECS[kind].encode_request(ScoreRequest(items, **fields)), kind)
        assert answer.status_code == 200, answer.text
        return CODECS[kind].decode_response(answer.content)

    def ready(self) -> dict[str, Any]:
        body: dict[str, Any] = self.http.get("/readyz").json()
        return body

    def metrics(self) -> dict[str, float]:
        """Sample name with labels -> value."""
        lines = self.http.get("/metrics").text.splitlines()
        return {line.rpartition(" ")[0]: float(line.rpartition(" ")[2]) for line in lines if not line.startswith("#")}


@pytest.fixture(scope="session")
def collector() -> Iterator[Collector]:
    """Where the service's spans go."""
    with collecting() as one:
        yield one


@pytest.fixture(scope="session")
def service(tmp_path_factory: pytest.TempPathFactory, tiny_models: Any, collector: Collector) -> Iterator[Client]:
    folder = tmp_path_factory.mktemp("service")
    config = folder / "service.toml"
    ports = {"port": local.free_port(), "grpc_port": local.free_port()}
    config.write_text(
        SETTINGS.format(**ports, dino=tiny_models.dinov2, collector=collector.url, frail_others=FRAIL_OTHERS)
    )
    settings = load(config, {})
    sys.path.insert(0, str(HERE))
    os.environ["PYTHONPATH"] = os.pathsep.join((str(HERE), str(HERE.parents[1])))  # workers import the fakes too
    import fake_scorers  # type: ignore[import-not-found]

    service = RewardService(settings, folder, fake_scorers.build)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Ray's own
        try:
            assert service.start(print)
            client = Client(service.url, folder, service.temp_dir, settings)
            with client.http:
                yield client
        finally:
            service.stop()


@pytest.fixture(scope="session")
def free_port() -> Callable[[], int]:
    return local.free_port


@pytest.fixture
def eventually() -> Callable[[Callable[[], bool], float], None]:
    """Poll a condition; its patience is generous, for a busy machine."""
    import time

    def wait(condition: Callable[[], bool], patience_s: float = 60.0) -> None:
        ends_s = time.monotonic() + patience_s
        while not condition():
            assert time.monotonic() < ends_s, "it never came true"
            time.sleep(0.1)

    return wait
