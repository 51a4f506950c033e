"""`python -m services`: start, stop and check a service on this machine.

    up CONFIG [--port N] [--run-dir DIR] [--detach]   serve until Ctrl-C or SIGTERM; a second Ctrl-C stops at once
    down [--run-dir DIR]                              stop the service of that directory, if one runs
    status [--run-dir DIR]                            print URL, process and scorers; exit 1 unless all are ready
    check CONFIG                                      validate the settings and print what they serve
    golden CONFIG OUT [--items FILE]                  record the scorers' values on the golden items
    warm CONFIG                                       download every model of the settings and check its files
    verify CONFIG [--pairs FILE]                      check that the scorers rank good inputs above bad ones
    faces CONFIG FOLDER OUT.npy                       write face vectors of images, for `synod personalize`

A service in the foreground ends with the process that started it; with `--detach` it keeps running.
"""

from __future__ import annotations

import argparse
import asyncio
import http.client
import json
import os
import shutil
import signal
import subprocess
import sys
import time
import urllib.error
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TypeVar

import numpy as np

from services import environments, golden, settings, verify, warm
from services.cluster.local import TEMP_PREFIX, RewardService, ask
from services.cluster.processes import kill_users_of
from services.cluster.run_dir import Record, RunDir
from services.gateway import auth
from services.scorers import registry
from services.scorers.fer import FerSettings
from services.scorers.fer import build as build_fer
from services.settings import Settings
from synod import hub
from synod.contracts import Pixels
from synod.errors import SettingsError, SynodError
from synod.images import ImageLimits, decode
from synod.scoring import pairs, show
from synod.toml import ENV_PREFIX

RUN_DIR = Path("runs/service")
FACE_IMAGES, FACE_LIMITS = (".png", ".jpg", ".jpeg", ".webp"), ImageLimits(64 * 2**20, 8192 * 8192)
STOP_TIMEOUT_S = 40.0
S = TypeVar("S")
T = TypeVar("T")


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command and return its exit status, 0 on success."""
    options = build_parser().parse_args(arguments)
    try:
        return int(options.command(options))
    except (SettingsError, SynodError, OSError) as error:  # a TimeoutError is an OSError
        print(f"error: {error}", file=sys.stderr)
        return 1


def up(options: argparse.Namespace) -> int:
    """Serve in the foreground, or in a process of its own with `--detach`."""
    loaded = _load(options)
    auth.load(loaded.auth)  # report errors in tokens and environments before anything starts
    for scorer in loaded.scorers.values():
        environments.placement_of(scorer)
    run_dir = RunDir(options.run_dir)
    return _detach(options, run_dir) if options.detach else _serve(options, loaded, run_dir)


def down(options: argparse.Namespace) -> int:
    """Stop the service of a run directory."""
    run_dir = RunDir(options.run_dir)
    stopped = run_dir.terminate(STOP_TIMEOUT_S)
    if (left := run_dir.claim()) is not None:
        _clean_up(left)
    run_dir.release()
    print("stopped" if stopped else f"no service runs from {run_dir.path}")
    return 0


def status(options: argparse.Namespace) -> int:
    """Print the URL of a run directory's service and which of its scorers are not ready."""
    record = RunDir(options.run_dir).running() if options.run_dir.is_dir() else None
    if record is None:
        print(f"no service runs from {options.run_dir.resolve()}")
        return 1
    print(f"{record.url}  pid {record.pid}  {record.config}")
    try:
        with ask(f"{record.url}/readyz", timeout_s=10) as answer:
            body = json.load(answer)
    except urllib.error.HTTPError as error:
        body = json.loads(error.read() or "{}")
    except (OSError, http.client.HTTPException, ValueError):
        print("starting: the service does not answer yet")
        return 1
    for name, one in body.get("scorers", {}).items():
        print(f"{name:12} {one['replicas']}/{one['wanted']} {'ready' if one['ready'] else one['reason']}")
    return 0 if body.get("ready") else 1


def check(options: argparse.Namespace) -> int:
    """Validate the settings and print what they serve."""
    loaded = settings.load(options.config)
    auth.load(loaded.auth)
    items = golden.load(Path(loaded.golden)) if loaded.golden else ()
    for name, scorer in loaded.scorers.items():
        spec, serving = registry.spec(name, scorer), scorer.serving
        takes = f"{serving.replicas} x ({serving.num_cpus:g} CPU, {serving.num_gpus:g} GPU)"
        print(f"{name:12} {takes if serving.colocate_with is None else f'with {serving.colocate_with}'}  {spec.source}")
        if (placement := environments.placement_of(scorer)) is not None:
            print(f"{'':12} {placement}")
    print(f"{len(loaded.ensembles)} ensembles, {len(items)} golden items, port {loaded.server.port}: ok")
    return 0


def record_golden(options: argparse.Namespace) -> int:
    """Load every scorer in this process and record its values on the golden items."""
    loaded = settings.load(options.config, without=("golden",))
    _check_folder_of(options.out)
    source = options.items or options.out
    entries, items = golden.read_entries(source), golden.load(source)
    scorers = [_build(registry.build, name, scorer) for name, scorer in loaded.scorers.items()]
    options.out.write_text(golden.record(entries, items, scorers))
    print(f"{len(items)} items x {', '.join(loaded.scorers)} -> {options.out}")
    return 0


def warm_models(options: argparse.Namespace) -> int:
    """Download and check every model of the settings; exit 1 when one cannot be used."""
    results, scorers = [], settings.load(options.config, without=("golden", "pairs", "auth")).scorers
    for name, scorer in scorers.items():
        if (placement := environments.placement_of(scorer)) is not None:
            _say(f"{name}.serving.python: {placement}")
    for model in warm.models_of(scorers):
        _say(f"{model.setting}: {model.source}")
        results.append(warm.warm(model))
    show.print_table(["MODEL", "SOURCE", "REVISION", "SIZE", "DIGEST", "SECONDS"], map(warm.table_row, results))
    failed = [one for one in results if one.error is not None]
    for one in failed:
        print(f"{one.model.setting}: {one.error}", file=sys.stderr)
    return 1 if failed else 0


def verify_pairs(options: argparse.Namespace) -> int:
    """Score pairs and print which relations hold; exit 1 when one does not, or nothing was compared."""
    loaded = settings.load(options.config, without=("golden", "auth"))
    source = options.pairs or loaded.pairs
    if source is None:
        raise SettingsError("the settings name no pairs; set 'pairs' or give --pairs, such as a file of deploy/pairs")
    found, verdicts = pairs.load(Path(source)), []
    for name, one in loaded.scorers.items():
        if own := pairs.pairs_for(name, one.kind, found):  # one scorer in memory at a time
            verdicts += asyncio.run(verify.score_pairs(_build(registry.build, name, one), own))
        else:
            print(f"{name}: the file has no pair for this scorer")
    show.print_table(["SCORER", "PAIR", "BETTER", "WORSE", ""], map(pairs.table_row, verdicts))
    held = sum(one.holds for one in verdicts)
    print(f"{held} of {len(verdicts)} relations hold")
    return 0 if verdicts and held == len(verdicts) else 1


def face_vectors(options: argparse.Namespace) -> int:
    """Write the embeddings [faces, size] of the largest face of each image in a folder, by the settings' FER."""
    loaded = settings.load(options.config, without=("golden", "pairs", "auth"))
    chosen = [(name, one) for name, one in loaded.scorers.items() if isinstance(one, FerSettings)]
    if not chosen:
        raise SettingsError(f"{options.config} has no scorer of kind fer; give settings that have one")
    _check_folder_of(options.out)
    files = sorted(path for path in options.folder.glob("*") if path.suffix.lower() in FACE_IMAGES)
    images = [_read_image(path) for path in files]
    found = _build(build_fer, *chosen[0]).embed(images) if images else {}
    if not found:
        raise SettingsError(f"{options.folder}: no face in {len(images)} images; give photographs that show one")
    np.save(options.out, np.stack(list(found.values())))
    print(f"{len(found)} faces in {len(images)} images: wrote {options.out}")
    return 0


def _build(build: Callable[[str, S], T], name: str, scorer: S) -> T:
    """Load a scorer from its settings. Raises SettingsError, which names it, if a model cannot be loaded."""
    try:
        return build(name, scorer)
    except SettingsError:
        raise
    except (OSError, ValueError) as error:  # of the hub and the model libraries
        message = " ".join(str(error).split())
        raise SettingsError(f"scorer '{name}' cannot be loaded ({message}){hub.remedy(error)}") from error


def _read_image(path: Path) -> Pixels:
    """Decode a file to uint8 [H W 3]. Raises SettingsError, which names the file, if it is not a whole image."""
    try:
        return decode(path.read_bytes(), FACE_LIMITS)
    except SynodError as error:
        raise SettingsError(f"{path}: {error}") from None


def _check_folder_of(out: Path) -> None:
    """Raise SettingsError if a file to write has no folder, before the work whose result it will hold."""
    if not out.parent.is_dir():
        raise SettingsError(f"{out}: the folder {out.parent} does not exist; create it, or choose another file")


def _serve(options: argparse.Namespace, loaded: Settings, run_dir: RunDir) -> int:
    began_s = time.monotonic()
    if (left := run_dir.claim()) is not None:
        _clean_up(left)
    service = RewardService(loaded, run_dir.path)
    record = Record(os.getpid(), service.url, str(options.config), str(service.temp_dir))
    run_dir.write(record)
    stop = _Stop(service)
    try:
        if not service.start(lambda line: _say(f"{time.monotonic() - began_s:5.1f} s  {line}"), stop.wanted):
            return 1
        stop.install()  # ray.init has replaced the handlers
        ready_s = time.monotonic() - began_s
        _say(f"ready on {service.url} in {ready_s:.1f} s")
        run_dir.write(Record(record.pid, record.url, record.config, record.temp_dir, ready_s))
        while not stop.wanted():
            time.sleep(0.2)
        return 0
    finally:
        _say("stopping")
        service.stop()
        run_dir.release()
        _say("stopped")


class _Stop:
    """Watch for Ctrl-C, SIGTERM, a closed terminal and the parent's end. A second signal kills."""

    def __init__(self, service: RewardService) -> None:
        import ray  # noqa: F401  (importing it replaces the SIGTERM handler)

        self._service = service
        self._signalled = False
        self._parent = None if os.getsid(0) == os.getpid() else os.getppid()  # a session leader runs detached
        self.install()

    def install(self) -> None:
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            signal.signal(number, self._on_signal)

    def wanted(self) -> bool:
        return self._signalled or (self._parent is not None and os.getppid() != self._parent)

    def _on_signal(self, number: int, frame: object) -> None:
        if self._signalled:
            self._service.kill()
            os._exit(128 + number)
        self._signalled = True


def _detach(options: argparse.Namespace, run_dir: RunDir) -> int:
    """Start `up` in a new session and wait until it is ready or has ended."""
    if (other := run_dir.running()) is not None:
        raise SettingsError(f"a service already runs from {run_dir.path} on {other.url}; stop it with `down` first")
    command = [sys.executable, "-m", "services", "up", str(options.config), "--run-dir", str(run_dir.path)]
    command += [] if options.port is None else ["--port", str(options.port)]
    with run_dir.log.open("wb") as log, run_dir.log.open() as progress:
        child = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True)
        try:
            while child.poll() is None:
                print(progress.read(), end="", flush=True)
                record = run_dir.read()
                if record is not None and record.pid == child.pid and record.ready_s is not None:
                    print(progress.read(), end="")
                    print(f"the service runs as process {child.pid} and logs to {run_dir.log}")
                    return 0
                time.sleep(0.2)
        except KeyboardInterrupt:
            child.terminate()
            child.wait()
        print(progress.read(), end="")
    return 1


def _clean_up(left: Record) -> None:
    """Kill the processes and remove the files that a killed service left behind."""
    folder = Path(left.temp_dir)
    if folder.name.startswith(TEMP_PREFIX):
        kill_users_of(folder)
        shutil.rmtree(folder, ignore_errors=True)


def _load(options: argparse.Namespace) -> Settings:
    environ = dict(os.environ)
    if options.port is not None:
        environ[f"{ENV_PREFIX}SERVER__PORT"] = str(options.port)
    return settings.load(options.config, environ)


def _say(line: str) -> None:
    print(line, flush=True)


def build_parser() -> argparse.ArgumentParser:
    """Build the parser of all commands."""
    parser = argparse.ArgumentParser(prog="python -m services", description="Start, stop and check a service here.")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")

    def add(name: str, command: object, text: str) -> argparse.ArgumentParser:
        one = commands.add_parser(name, help=text, description=text)
        one.set_defaults(command=command)
        return one

    one = add("up", up, "serve until Ctrl-C")
    one.add_argument("config", type=Path, help="settings TOML, such as deploy/configs/embedded.toml")
    one.add_argument("--port", type=int, help="override [server] port")
    one.add_argument("--detach", action="store_true", help="keep running in the background; return once ready")
    for name, command, text in (
        ("down", down, "stop a service"),
        ("status", status, "print whether a service is ready"),
    ):
        add(name, command, text)
    for name in ("up", "down", "status"):
        commands.choices[name].add_argument("--run-dir", type=Path, default=RUN_DIR, help="directory of logs and state")
    add("check", check, "validate settings and print what they serve").add_argument(
        "config", type=Path, help="settings TOML, such as deploy/configs/embedded.toml"
    )
    one = add("golden", record_golden, "record the golden values")
    one.add_argument("config", type=Path, help="settings TOML, such as deploy/configs/embedded.toml")
    one.add_argument("out", type=Path, help="file to write; an existing file provides the items")
    one.add_argument("--items", type=Path, help="read the items from this file instead")
    add("warm", warm_models, "download every model of the settings and check its files").add_argument(
        "config", type=Path, help="settings TOML, such as deploy/configs/embedded.toml"
    )
    one = add("verify", verify_pairs, "check that the scorers rank good inputs above bad ones")
    one.add_argument("config", type=Path, help="settings TOML, such as deploy/configs/embedded.toml")
    one.add_argument("--pairs", type=Path, help="pairs to score (default: the file that the settings name)")
    one = add("faces", face_vectors, "write face vectors of images")
    one.add_argument("config", type=Path, help="settings TOML with a scorer of kind fer")
    one.add_argument("folder", type=Path, help="folder of photographs")
    one.add_argument("out", type=Path, help=".npy file to write, for [personalize] faces")
    return parser


if __name__ == "__main__":
    sys.exit(main())
