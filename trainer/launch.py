"""Start a run: in this process, or in the workers of Ray Train. The only file that imports ray."""

from __future__ import annotations

import logging
import os
import signal
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from synod.errors import SettingsError
from trainer.distributed import PATIENCE
from trainer.errors import WorkersFailed
from trainer.processes import processes
from trainer.run_dir import LAUNCHER_LOCK, is_locked, run_lock
from trainer.settings import TrainerSettings
from trainer.stop import STOP_FILE

ROOT = Path(__file__).resolve().parents[1]


def launch(settings: TrainerSettings, *, evaluated: bool = True) -> int:
    """Train, and return the exit status 0. With `[trainer.ranks] workers` above 0 Ray Train starts the processes.

    Raises SettingsError without Ray Train, or where another launcher has started processes or holds the run's
    directory; WorkersFailed after too many failures; and what `trainer.run.run` raises.
    """
    world, workers = processes(os.environ), settings.ranks.workers
    if not workers:
        from trainer.run import run

        return run(settings, evaluated=evaluated)
    if world > 1:
        raise SettingsError(
            f"[trainer.ranks] workers = {workers} lets Ray Train start the processes, but a launcher has started "
            f"{world} (WORLD_SIZE); give workers = 0, or run `synod train` once, without torchrun"
        )
    with run_lock(settings.run_dir, LAUNCHER_LOCK):
        with run_lock(settings.run_dir):
            pass  # nor do processes of torchrun train there; rank 0 takes this lock
        _fit(settings, evaluated)
    return 0


def _fit(settings: TrainerSettings, evaluated: bool) -> None:
    try:
        import ray
        from ray.train import FailureConfig, RunConfig, ScalingConfig
        from ray.train.torch import TorchConfig, TorchTrainer
    except ImportError as error:
        raise SettingsError(
            f"[trainer.ranks] workers = {settings.ranks.workers} needs Ray Train ({error}); install it: "
            "pip install 'synod[trainer,job]', or start the processes by torchrun with workers = 0"
        ) from None
    ranks, paths = settings.ranks, [str(ROOT), os.environ.get("PYTHONPATH")]
    trainer = TorchTrainer(
        _worker,
        train_loop_config={"settings": settings.model_dump(mode="json"), "evaluated": evaluated},
        torch_config=TorchConfig(timeout_s=int(PATIENCE.total_seconds())),
        scaling_config=ScalingConfig(
            num_workers=ranks.workers,
            use_gpu=ranks.gpus > 0,
            resources_per_worker={"CPU": 1, **({"GPU": ranks.gpus} if ranks.gpus else {})},
        ),
        run_config=RunConfig(
            name=settings.run_dir.name,
            storage_path=str(settings.run_dir / "ray"),
            failure_config=FailureConfig(max_failures=ranks.max_failures),
            worker_runtime_env={"env_vars": {"PYTHONPATH": os.pathsep.join(filter(None, paths))}},
        ),
    )
    ray.init(ignore_reinit_error=True, log_to_driver=True)
    with _stop_by_file(settings.run_dir):
        try:
            refusal = _in_thread(trainer.fit).return_value
        except ray.train.TrainingFailedError as error:
            raise WorkersFailed(
                f"the workers failed more than [trainer.ranks] max_failures = {ranks.max_failures} times: {error}"
            ) from error
    if refusal is not None:
        raise SettingsError(refusal)


def _worker(config: dict[str, Any]) -> str | None:
    """Train; return the message of a SettingsError, which all ranks have: Ray Train starts failed workers again."""
    from trainer.run import run

    logging.getLogger("httpx").setLevel(logging.WARNING)  # Ray logs INFO: a line for every request
    try:
        run(TrainerSettings.model_validate(config["settings"]), evaluated=config["evaluated"])
    except SettingsError as error:
        return str(error)
    return None


def _in_thread(function: Callable[[], Any]) -> Any:
    """Return what the function returns in a thread: in the main thread Ray Train makes Ctrl-C abort the workers."""
    found: Future[Any] = Future()

    def call() -> None:
        try:
            found.set_result(function())
        except BaseException as error:
            found.set_exception(error)

    threading.Thread(target=call, name="ray-train", daemon=True).start()
    return found.result()


@contextmanager
def _stop_by_file(run_dir: Path) -> Iterator[None]:
    """Turn SIGTERM and Ctrl-C into a file that rank 0 looks for between two steps: signals do not reach the workers.

    A second Ctrl-C raises KeyboardInterrupt. So does any signal as long as no worker trains: Ray Train waits for
    resources that the cluster lacks without end.
    """
    file = run_dir / STOP_FILE
    file.unlink(missing_ok=True)  # of a launcher that was killed

    def handle(number: int, _frame: object) -> None:
        if not is_locked(run_dir) or (number == signal.SIGINT and file.exists()):
            raise KeyboardInterrupt
        file.touch()
        print("stopping after this step and its checkpoint; Ctrl-C ends at once")

    before = {number: signal.signal(number, handle) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
        file.unlink(missing_ok=True)
