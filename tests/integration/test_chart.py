"""The rendered chart without Kubernetes: Serve's config on a Ray head, the test pod, the job.

Local folders replace the pods' mounts and this repository replaces the images' /app; everything else is as rendered.
"""

from __future__ import annotations

import json
import os
import re
import shlex
import shutil
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from ray.serve.schema import ServeDeploySchema

from services.cluster.local import environment, free_port
from services.cluster.processes import kill_users_of
from synod.client import SynodClient
from tests.chart.rendering import ROOT, Object, merged, of, pod_templates, render, serve_config, unpack
from tests.integration import sizes

pytestmark = pytest.mark.timeout(900)  # for a busy machine
BIN = Path(sys.executable).parent
SMALL = {  # the smallest run that trains and evaluates
    "SYNOD__TRAINER__STEPS": 1,
    "SYNOD__TRAINER__PROMPTS_PER_STEP": 1,
    "SYNOD__TRAINER__POLICY__SAMPLER__DENOISING_STEPS": 4,
    "SYNOD__TRAINER__POLICY__SAMPLER__MAX_NEW_TOKENS": 4,
    "SYNOD__TRAINER__SCREEN__GROUP_SIZE": 2,
    "SYNOD__TRAINER__SCREEN__PREVIEW_BATCH_SIZE": 2,
    "SYNOD__TRAINER__EVALUATE__PROMPTS": 2,
}
LORA = """
[trainer.policy.lora]
rank = 2
targets = ["q_proj", "v_proj"]
"""
SMALL_EVALUATION = ("--prompts=/app/embedded/data/prompts/heldout.jsonl", "--limit=2", "--images=1")
Wait = Callable[[Callable[[], bool], float], None]


class Pods:
    """One Ray head with the resources of all the release's pods, and their mounts as local folders."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.temp_dir = folder, Path(tempfile.mkdtemp(prefix="synod-chart-", dir="/tmp"))
        self.port, self.dashboard, self.agent = free_port(), free_port(), free_port()
        self.sizes = {
            "port": free_port(),
            "grpc_port": free_port(),
        }  # the ports of a second application, without models
        self.values = {
            "gateway": {"port": self.port, "grpcPort": free_port()},
            "ray": {"objectStoreBytes": 268435456},
            "trainer": {"enabled": True, "gpus": 0, "overrides": SMALL},
        }
        self.objects = render(self.values)
        self.mounts = {
            "/app": folder / "app",
            "/run/synod": folder / "run",
            "/etc/synod/tokens": folder / "tokens",
            "/etc/synod/token/": folder / "token",
            "/checkpoints": folder / "checkpoints",
        }
        for path in (*self.mounts.values(), folder / "app/deploy/release", folder / "run/metrics"):
            path.mkdir(parents=True, exist_ok=True)
        for image in ("scorer", "trainer"):
            unpack(image, folder / "app")
        self.job()
        secret = of(self.objects, "Secret")["stringData"]
        (folder / "tokens/tokens.toml").write_text(secret["tokens.toml"])
        (folder / "token/token").write_text(secret["token"])
        kept = {name: value for name, value in os.environ.items() if not name.startswith(("RAY_", "SYNOD_"))}
        self.env = {**kept, **environment(), "PYTHONPATH": str(ROOT), "HOME": str(folder)}
        self.env |= dict.fromkeys(
            ("RAY_API_SERVER_ADDRESS", "RAY_DASHBOARD_ADDRESS"), f"http://127.0.0.1:{self.dashboard}"
        )
        job = dict(pod_templates(self.objects))["trainer"]["spec"]["containers"][0]["env"]
        self.env |= {one["name"]: one["value"] for one in job if one["name"].startswith("RAY_JOB_")}

    def here(self, text: str) -> str:
        """Replace the pods' paths by local ones."""
        for inside, outside in self.mounts.items():
            text = text.replace(inside, f"{outside}/" if inside.endswith("/") else str(outside))
        return text

    def job(self, **trainer: Any) -> Object:
        """Return the release's RayJob with these values of the trainer, after mounting its settings."""
        objects = render(merged(self.values, {"trainer": trainer}))
        for name, text in of(objects, "ConfigMap")["data"].items():
            (self.folder / "app/deploy/release" / name).write_text(text)
        return of(objects, "RayJob")

    def ray(self, *command: str, env: dict[str, str] | None = None) -> str:
        """Run one of Ray's programs and return its output; it must succeed."""
        done = subprocess.run(
            [str(BIN / command[0]), *command[1:]],
            env={**self.env, **(env or {})},
            cwd=self.folder,
            capture_output=True,
            text=True,
            timeout=240,
        )
        assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-4000:]
        return done.stdout

    def answers(self, url: str) -> int:
        """Return the HTTP status, or 0 without an answer."""
        try:
            with urllib.request.urlopen(url, timeout=5) as answer:
                return int(answer.status)
        except urllib.error.HTTPError as error:
            return error.code
        except (urllib.error.URLError, TimeoutError, ConnectionError):
            return 0


@pytest.fixture(scope="module")
def pods(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Pods]:
    pods = Pods(tmp_path_factory.mktemp("pods"))
    with (pods.folder / "head.log").open("wb") as log:
        head = subprocess.Popen(
            [str(BIN / "ray"), *_start(pods)], env=pods.env, cwd=pods.folder, stdout=log, stderr=log
        )
        try:
            ends_s = time.monotonic() + 90
            asked = (
                f"http://127.0.0.1:{pods.agent}{_probe(pods)}",
                f"http://127.0.0.1:{pods.dashboard}/api/gcs_healthz",
            )
            while [pods.answers(url) for url in asked] != [200, 200]:
                assert head.poll() is None, (pods.folder / "head.log").read_text()[-3000:]
                assert time.monotonic() < ends_s, "Ray's health never answered"
                time.sleep(0.25)
            yield pods
        finally:
            kill_users_of(pods.temp_dir)
            head.kill()
            head.wait()
            shutil.rmtree(pods.temp_dir, ignore_errors=True)


def _start(pods: Pods) -> list[str]:
    """Return the arguments that KubeRay gives `ray start`, with all groups in one node."""
    service = of(pods.objects, "RayService")["spec"]["rayClusterConfig"]
    job = of(pods.objects, "RayJob")["spec"]["rayClusterSpec"]
    groups = {g["groupName"]: g["rayStartParams"] for g in (*service["workerGroupSpecs"], *job["workerGroupSpecs"])}
    resources = {}
    for name in ("gateway", "trainer"):
        resources.update(json.loads(subprocess.check_output(["bash", "-c", f"echo {groups[name]['resources']}"])))
    return [
        "start", "--head", "--block", f"--port={free_port()}", f"--temp-dir={pods.temp_dir}", "--disable-usage-stats",
        f"--dashboard-port={pods.dashboard}", f"--dashboard-agent-listen-port={pods.agent}",
        "--dashboard-host=127.0.0.1",
        f"--num-cpus={groups['cpu']['num-cpus']}", f"--resources={json.dumps(resources)}",
        f"--object-store-memory={groups['cpu']['object-store-memory']}",
    ]  # fmt: skip


def _probe(pods: Pods) -> str:
    """Return the liveness path of head and workers; it needs no token."""
    templates = dict(pod_templates(pods.objects))
    paths = {
        templates[name]["spec"]["containers"][0]["livenessProbe"]["httpGet"]["path"]
        for name in ("head", "gateway", "scorer-cpu", "trainer")
    }
    (path,) = paths
    return str(path)


def serve_file(pods: Pods) -> Path:
    config: Object = yaml.safe_load(pods.here(yaml.safe_dump(serve_config(pods.objects))))
    ServeDeploySchema.model_validate(config)  # Ray's own
    config["applications"][0]["runtime_env"]["env_vars"]["SYNOD__SERVER__HOST"] = "127.0.0.1"
    (pods.folder / "sizes.toml").write_text(sizes.SETTINGS.format(**pods.sizes, gateways=1))
    (pods.folder / "sizes/metrics").mkdir(parents=True)
    config["applications"].append(
        {
            "name": "sizes",
            "import_path": "services.cluster.serve_app:service",
            "route_prefix": "/sizes",
            "args": {"config": str(pods.folder / "sizes.toml"), "metrics_dir": str(pods.folder / "sizes/metrics")},
        }
    )
    path = pods.folder / "serve.yaml"
    path.write_text(yaml.safe_dump(config))
    return path


@pytest.fixture(scope="module")
def deployed(pods: Pods) -> Pods:
    """Deploy, and wait until the gateway pods' startup probe succeeds."""
    pods.ray("serve", "deploy", str(serve_file(pods)))
    probe = dict(pod_templates(pods.objects))["gateway"]["spec"]["containers"][0]["startupProbe"]["httpGet"]["path"]
    ends_s, failed_s = time.monotonic() + 400, time.monotonic() + 30
    while pods.answers(f"http://127.0.0.1:{pods.port}{probe}") != 200:
        if time.monotonic() > failed_s:
            status = pods.ray("serve", "status")
            assert time.monotonic() < ends_s, status
            assert "DEPLOY_FAILED" not in status, status
            failed_s = time.monotonic() + 20
        time.sleep(0.5)
    return pods


def test_the_rendered_service_passes_the_charts_test_pod(deployed: Pods) -> None:
    container = of(deployed.objects, "Pod")["spec"]["containers"][0]
    url = f"http://127.0.0.1:{deployed.port}"
    arguments = [deployed.here(one) for one in container["args"] if not one.startswith("--url=")]
    command = [*container["command"], f"--url={url}", "--json", *arguments]
    assert deployed.answers(f"{url}/v1/scorers") == 401  # no token
    response = json.loads(
        deployed.ray(*command, env={one["name"]: deployed.here(one["value"]) for one in container["env"]})
    )
    assert 0 < response["results"][0]["scores"]["ber"]["value"] < 1
    for probe in ("readinessProbe", "startupProbe"):
        gateway = dict(pod_templates(deployed.objects))["gateway"]["spec"]["containers"][0]
        assert deployed.answers(url + gateway[probe]["httpGet"]["path"]) == 200
    applications: Any = yaml.safe_load(deployed.ray("serve", "status"))["applications"]
    assert applications["synod"]["status"] == "RUNNING"
    assert set(applications["synod"]["deployments"]) == {"Gateway", "tier", "ber", "der", "fer", "geneval"}


@pytest.fixture(scope="module")
def target(deployed: Pods) -> sizes.Target:
    url = f"http://127.0.0.1:{deployed.sizes['port']}"
    with SynodClient(url) as client:
        client.wait_ready(120)
    return sizes.Target(url, f"grpc://127.0.0.1:{deployed.sizes['grpc_port']}")


@pytest.mark.parametrize("cell", sizes.cells("deployed"), ids=str)
def test_any_request_within_the_limits_is_scored(target: sizes.Target, cell: sizes.Cell) -> None:
    """The cells for `serve deploy`; `test_sizes` runs the others."""
    for name, values in sizes.ask(cell, target).items():
        assert values == pytest.approx(sizes.expected(cell.size, name), abs=1e-9)


def test_a_scorer_pods_exporter_reports_its_replicas(deployed: Pods) -> None:
    container = dict(pod_templates(deployed.objects))["scorer-cpu"]["spec"]["containers"][1]
    *command, _ = container["command"]
    env = {one["name"]: deployed.here(one["value"]) for one in container["env"]}
    port = free_port()
    exporter = subprocess.Popen(
        [sys.executable, *command[1:], str(port), "--host", "127.0.0.1"], env={**deployed.env, **env}
    )
    try:
        ends_s = time.monotonic() + 60
        while deployed.answers(f"http://127.0.0.1:{port}{container['readinessProbe']['httpGet']['path']}") != 200:
            assert time.monotonic() < ends_s
            time.sleep(0.2)
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=10) as answer:
            assert 'synod_batch_items_count{scorer="ber"}' in answer.read().decode()
    finally:
        exporter.kill()
        exporter.wait()


def job_env(pods: Pods, run: str, /, **trainer: Any) -> dict[str, str]:
    """Return the settings of the job's pod with these values of the trainer, with its own run directory."""
    objects = render(merged(pods.values, {"trainer": trainer}))
    worker = dict(pod_templates(objects))["trainer"]["spec"]["containers"][0]
    env = {one["name"]: pods.here(one["value"]) for one in worker["env"] if "value" in one}
    env = {name: value for name, value in env.items() if name.startswith("SYNOD")}
    env["SYNOD__TRAINER__REWARDS__URL"] = f"http://127.0.0.1:{pods.port}"
    return env | {"SYNOD__TRAINER__RUN_DIR": f"{env['SYNOD__TRAINER__RUN_DIR']}-{run}"}


def submit(pods: Pods, job: Object, env: dict[str, str], *options: str) -> str:
    """Submit a RayJob's entrypoint with `ray job submit` and return its output."""
    program, *arguments = shlex.split(pods.here(job["spec"]["entrypoint"]))
    return pods.ray(
        "ray", "job", "submit", "--runtime-env-json", json.dumps({"env_vars": env}), *options,
        "--entrypoint-resources", job["spec"]["entrypointResources"], "--", str(BIN / program), *arguments,
    )  # fmt: skip


def train(pods: Pods, env: dict[str, str], steps: int, *options: str, **trainer: Any) -> str:
    """Submit the chart's default job with these values of the trainer, without its evaluations."""
    job = pods.job(command=["synod", "train", "CONFIG", "--no-evaluation", f"--steps={steps}"], **trainer)
    return submit(pods, job, env, *options)


def steps_of(env: dict[str, str]) -> list[str]:
    """Return the lines of a run's metrics, one per step."""
    path = Path(env["SYNOD__TRAINER__RUN_DIR"]) / "metrics.jsonl"
    return path.read_text().splitlines() if path.exists() else []


def test_a_lora_run_and_its_evaluation_are_jobs(deployed: Pods) -> None:
    """The trainer's own settings, whose log streams, then another command on what it left."""
    env = job_env(deployed, "lora")
    run = Path(env["SYNOD__TRAINER__RUN_DIR"])
    settings = of(deployed.objects, "ConfigMap")["data"]["service.toml"] + LORA
    command = ["synod", "train", "CONFIG", "--no-evaluation"]
    output = submit(deployed, deployed.job(config=settings, command=command), env)
    assert "succeeded" in output
    assert "training" in output  # the trainer's own progress
    assert [json.loads(line)["step"] for line in steps_of(env)] == [0]
    assert (run / "policy/adapter/adapter_model.safetensors").exists()
    command = ["synod", "evaluate", f"/checkpoints/{run.name}", "--suite=geneval", *SMALL_EVALUATION]
    output = submit(deployed, deployed.job(command=command), env)
    assert "succeeded" in output
    assert "geneval" in output
    rows = (run / "evaluation/geneval/rows.jsonl").read_text().splitlines()
    assert len(rows) == len(list((run / "evaluation/geneval").rglob("*.png"))) == 2


def test_a_flow_run_is_a_job(deployed: Pods) -> None:
    """Its policy is a pipeline."""
    env = job_env(deployed, "flow") | {
        "SYNOD__TRAINER__REWARDS__SCORERS": "{ geneval = 1.0 }",  # of those that are served
        "SYNOD__TRAINER__LOSS__NORMALISE": "none",  # a group of two has no deviation
    }
    del env["SYNOD__TRAINER__POLICY__SAMPLER__MAX_NEW_TOKENS"]
    config = (ROOT / "deploy/configs/embedded_flow.toml").read_text()
    command = ["synod", "train", "CONFIG", "--no-evaluation"]
    assert "succeeded" in submit(deployed, deployed.job(config=config, command=command), env)
    (step,) = map(json.loads, steps_of(env))
    assert (step["step"], step["kept"], step["masked"]) == (0, 2, 0)
    assert (Path(env["SYNOD__TRAINER__RUN_DIR"]) / "policy/model_index.json").exists()


def test_a_personalization_is_a_job(pods: Pods) -> None:
    """No service is needed; stage 1 alone, without an update."""
    config = (ROOT / "deploy/configs/personalize.toml").read_text()
    small = {
        "SYNOD__PERSONALIZE__STAGE_1__EPOCHS": 0,
        "SYNOD__PERSONALIZE__STAGES": "[1]",
        "SYNOD__TRAINER__POLICY__SAMPLER__DENOISING_STEPS": 2,
    }
    own = {"run": "uma", "config": config, "command": ["synod", "personalize", "CONFIG"], "overrides": small}
    assert "succeeded" in submit(pods, pods.job(**own), job_env(pods, "job", **own))
    assert (pods.folder / "checkpoints/uma/concept/rows.safetensors").exists()


def test_the_workers_of_a_job_share_the_groups(deployed: Pods) -> None:
    """Each draws a group of the two, and rank 0 records both."""
    env = job_env(deployed, "workers", workers=2) | {"SYNOD__TRAINER__PROMPTS_PER_STEP": "2"}
    output = train(deployed, env, 1, workers=2)
    assert "succeeded" in output
    assert set(re.findall(r"world_rank=(\d)", output)) == {"0", "1"}
    run = Path(env["SYNOD__TRAINER__RUN_DIR"])
    (step,) = steps_of(env)
    assert len(json.loads(step)["prompts"]) == 2
    groups = (run / "samples.jsonl").read_text().splitlines()
    assert [json.loads(group)["group"] for group in groups] == [0, 1]
    assert (run / "policy/config.json").exists()


@pytest.mark.skipif(not os.environ.get("SYNOD_FULL"), reason="a minute: make test-full")
@pytest.mark.parametrize("workers", [0, 2])
def test_a_stopped_job_resumes_from_its_checkpoint(deployed: Pods, workers: int) -> None:
    name = f"stopped-{workers}"
    env = job_env(deployed, name, workers=workers) | {"SYNOD__TRAINER__PROMPTS_PER_STEP": "2"}
    train(deployed, env, 1000, "--no-wait", "--submission-id", name, workers=workers)
    ends_s = time.monotonic() + 200
    while len(steps_of(env)) < 2:
        assert time.monotonic() < ends_s, deployed.ray("ray", "job", "logs", name)
        time.sleep(0.2)
    assert "was stopped" in deployed.ray("ray", "job", "stop", name)
    before = steps_of(env)
    assert "succeeded" in train(deployed, env, len(before) + 1, workers=workers)
    assert steps_of(env)[: len(before)] == before
    assert [json.loads(line)["step"] for line in steps_of(env)] == list(range(len(before) + 1))
