"""A run with an HTTP service: its files, and resuming after a kill, a stop, and an unavailable service."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from synod.errors import SettingsError
from synod.retry import RetryPolicy
from tests.unit.trainer.conftest import TINY
from tests.unit.trainer.loops import MakePolicy, MakeSettings, equal, lines, weights
from tests.unit.trainer.reward_services import Judge, serve
from trainer import run as run_module
from trainer.__main__ import main
from trainer.algorithms.threshold import KeepAll, Paper, Power, Quantile, make_controller
from trainer.checkpoint import CheckpointMismatch, load
from trainer.evaluate.compare import paired
from trainer.evaluate.heldout import evaluate, held_out, load_evaluation
from trainer.policy.show_o import loading
from trainer.policy.show_o.policy import Sampling, ShowO
from trainer.report.metrics import read
from trainer.settings import TrainerSettings
from trainer.settings import load as load_settings

ROOT = Path(__file__).parents[3]


@pytest.fixture
def ready(make_policy: MakePolicy, tiny_settings: MakeSettings, world_dir: Path) -> Callable[..., TrainerSettings]:
    """Settings with the tiny Show-o in the model directory."""
    make_policy().save(world_dir / "model")
    return lambda **overrides: tiny_settings(**{"STEPS": "2", "EVALUATE__PROMPTS": "6", **overrides})


def test_a_run_writes_all_its_files(ready: MakeSettings, make_policy: MakePolicy) -> None:
    judge = Judge()
    with serve(judge) as url:
        settings = ready(REWARDS__URL=url, DATA__GENEVAL_SHARE="0.5")
        assert run_module.run(settings) == 0
    run = settings.run_dir
    assert TrainerSettings.model_validate(json.loads((run / "settings.json").read_text())) == settings
    assert [line["step"] for line in lines(run)] == [0, 1]
    assert "<html" in (run / "report.html").read_text()
    trained = loading.load(run / "policy", sampling=Sampling(4, 2.0, max_new_tokens=4))
    done, state = load(run / "checkpoints/step-000002", settings)
    assert done == 2
    assert equal(weights(trained), state["policy"])
    assert not equal(weights(trained), weights(make_policy()))
    before, after = (load_evaluation(run / f"evaluation/{when}.json") for when in ("before", "after"))
    assert paired(before, after)["reward"].n == 6
    for found, policy in ((before, make_policy()), (after, trained)):
        expected = evaluate(policy, Judge(), held_out(settings), settings)
        assert [row.answer for row in found.rows] == [row.answer for row in expected.rows]
        assert [row.reward for row in found.rows] == pytest.approx([row.reward for row in expected.rows])
    assert [row.reward for row in before.rows] != [row.reward for row in after.rows]

    written = (run / "evaluation/before.json").stat().st_mtime_ns
    with serve(judge) as url:
        assert run_module.run(ready(REWARDS__URL=url, DATA__GENEVAL_SHARE="0.5")) == 0  # nothing is left to do
    assert (run / "evaluation/before.json").stat().st_mtime_ns == written
    assert [line["step"] for line in lines(run)] == [0, 1]
    assert equal(weights(loading.load(run / "policy")), weights(trained))


PLAIN = """[trainer]
run_dir = "run"
steps = 2
prompts_per_step = 2
[trainer.policy]
model = "./model"
[trainer.data]
prompts = "prompts.txt"
[trainer.rewards]
url = "{url}"
scorers = {{ ber = 0.5, {scorer} = -1.0 }}
aggregation = "{aggregation}"
surrogate = "ber"
"""


@pytest.fixture
def plain(ready: MakeSettings, world_dir: Path) -> Callable[..., TrainerSettings]:
    """Settings for a text file of three prompts, two of them equal, with two weighted scorers."""
    (world_dir / "prompts.txt").write_text("a cat\na dog\na cat\n")

    def make(url: str, scorer: str = "pickscore", aggregation: str = "sum") -> TrainerSettings:
        path = world_dir / "plain.toml"
        path.write_text(PLAIN.format(url=url, scorer=scorer, aggregation=aggregation) + TINY)
        return load_settings(path, {})

    return make


@pytest.mark.parametrize("aggregation", ["sum", "gdpo"])
def test_plain_prompts_train_on_weighted_scorers(
    plain: Callable[..., TrainerSettings], capsys: pytest.CaptureFixture[str], aggregation: str
) -> None:
    judge = Judge()
    with serve(judge) as url:
        settings = plain(url, aggregation=aggregation)
        assert run_module.run(settings) == 0
    said = capsys.readouterr().out
    assert said.count("names no held-out prompts: nothing is evaluated") == 1
    assert said.count("1 of 3 prompts repeat an earlier one") == 1
    assert not (settings.run_dir / "evaluation").exists()
    assert {tuple(spec.scorers) for spec, _ in judge.asked} == {("ber", "pickscore")}
    for line in lines(settings.run_dir):
        assert line["keys"] == ["prompt/none"] * 2
        assert sorted(line["prompts"]) == ["a cat", "a dog"]
        components = line["components"]
        assert components["ber"] == components["pickscore"]  # this judge gives every scorer one score
        assert line["reward_mean"] == pytest.approx(-0.5 * components["ber"])
        assert line["advantage_abs_image"] > 0


def test_a_scorer_that_is_not_served_ends_the_run(plain: Callable[..., TrainerSettings]) -> None:
    judge = Judge()
    with (
        serve(judge) as url,
        pytest.raises(SettingsError, match="scorer 'hps' is not served; served are ber, geneval, pickscore"),
    ):
        run_module.run(plain(url, scorer="hps"))
    assert judge.asked == judge.previewed == []


def test_a_bad_prompt_file_is_refused_before_loading(
    plain: Callable[..., TrainerSettings], world_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = plain("http://127.0.0.1:9")
    (world_dir / "prompts.txt").write_text("")
    monkeypatch.setattr(run_module, "make_policy", pytest.fail)
    with pytest.raises(SettingsError, match=r"prompts\.txt: no prompts"):
        run_module.run(settings)


@pytest.mark.parametrize(("beta", "kept"), [("0", False), ("0.01", True)])
def test_a_reference_is_kept_only_for_a_kl(ready: MakeSettings, beta: str, kept: bool) -> None:
    policy = run_module.make_policy(ready(LOSS__TEXT__BETA=beta, LOSS__IMAGE__BETA=beta))
    assert all(p.requires_grad for p in policy.module.parameters())
    if not kept:
        with pytest.raises(AssertionError, match="keep_reference"), policy.reference():
            pass
        return
    trained = policy.module
    with policy.reference():
        assert policy.module is not trained
        assert not any(p.requires_grad for p in policy.module.parameters())
    assert policy.module is trained


def test_evaluations_can_be_left_out(ready: MakeSettings) -> None:
    with serve(Judge()) as url:
        settings = ready(REWARDS__URL=url, STEPS="1")
        assert run_module.run(settings, evaluated=False) == 0
    assert not (settings.run_dir / "evaluation").exists()


@pytest.mark.parametrize("change", ["guidance", "prompts"])
def test_a_refused_resume_changes_nothing(ready: MakeSettings, world_dir: Path, change: str) -> None:
    """Other settings, or another file under the same name, are refused before anything is drawn or written."""
    judge = Judge()
    with serve(judge) as url:
        settings = ready(REWARDS__URL=url, CHECKPOINT_EVERY="1")
        assert run_module.run(settings) == 0
        before = {path: path.read_bytes() for path in settings.run_dir.rglob("*") if path.is_file()}
        drawn = len(judge.asked)
        if change == "prompts":
            text = (world_dir / "prompts.jsonl").read_text()
            (world_dir / "prompts.jsonl").write_text(text.replace("photo 1", "photo 9"))
        other = ready(REWARDS__URL=url, **({"POLICY__SAMPLER__GUIDANCE_SCALE": "9"} if change == "guidance" else {}))
        named = "guidance_scale: 2.0 there, 9.0 now" if change == "guidance" else r"data\.prompts \(content\)"
        with pytest.raises(CheckpointMismatch, match=named):
            run_module.run(other)
    assert {path: path.read_bytes() for path in settings.run_dir.rglob("*") if path.is_file()} == before
    assert len(judge.asked) == drawn


def test_a_changed_held_out_file_is_evaluated_again(ready: MakeSettings, world_dir: Path) -> None:
    text = (world_dir / "prompts.jsonl").read_text()
    (world_dir / "heldout.jsonl").write_text(text)
    with serve(Judge()) as url:
        settings = ready(REWARDS__URL=url, STEPS="1", DATA__HELDOUT="heldout.jsonl")
        assert run_module.run(settings) == 0
        (world_dir / "heldout.jsonl").write_text(text.replace("photo", "drawing"))
        assert run_module.run(settings) == 0
    for when in ("before", "after"):
        prompts = [row.prompt for row in load_evaluation(settings.run_dir / f"evaluation/{when}.json").rows]
        assert not any("photo " in prompt and "<bo>" in prompt for prompt in prompts)


def test_two_runs_cannot_share_a_directory(ready: MakeSettings) -> None:
    settings = ready()
    with run_module.run_lock(settings.run_dir), pytest.raises(SettingsError, match="another training uses it"):
        run_module.run(settings)
    with run_module.run_lock(settings.run_dir):  # released
        pass


def test_a_run_ends_early_and_saves_its_policy(ready: MakeSettings) -> None:
    """The held-out reward never rises, so the first evaluation during training ends the run."""
    changed = {"EVALUATE__EVERY": "1", "EVALUATE__PATIENCE": "1", "EVALUATE__SCORERS": '["geneval"]', "STEPS": "5"}
    with serve(Judge(lambda item: 0.5)) as url:
        settings = ready(REWARDS__URL=url, DATA__GENEVAL_SHARE="0.5", **changed)
        assert run_module.run(settings) == 0
    run = settings.run_dir
    assert [line["step"] for line in lines(run)] == [0]
    before, last, after = (load_evaluation(run / f"evaluation/{n}.json") for n in ("before", "step-000001", "after"))
    assert [row.heldout_reward for row in before.rows] == [0.5] * 6
    assert after.rows == last.rows
    assert (run / "policy/config.json").exists()
    assert "Rewards that are not trained on" in (run / "report.html").read_text()


def test_a_run_dir_that_is_a_file_is_refused(ready: MakeSettings, world_dir: Path) -> None:
    (world_dir / "run").write_text("a file")
    with pytest.raises(SettingsError, match=r"\[trainer\] run_dir = .*/run: .*give a directory"):
        run_module.run(ready())


@pytest.mark.parametrize(
    ("threshold", "made"),
    [
        ("quantile", Quantile(0.3)),
        ("power", Power(0.5, 0.3)),
        ("paper", Paper(0.5, 0.3, mu=0.12, eta=0.8, eps0=2.0)),
        ("none", KeepAll()),
    ],
)
def test_every_threshold_controller_is_created(tiny_settings: MakeSettings, threshold: str, made: object) -> None:
    screen = tiny_settings(SCREEN__THRESHOLD=threshold, SCREEN__TARGET_PASS_RATE="0.3").screen
    assert make_controller(screen.threshold, screen.target_pass_rate) == made


def test_policy_uses_the_sampler_settings(ready: MakeSettings) -> None:
    policy = run_module.make_policy(ready(POLICY__SAMPLER__GUIDANCE_SCALE="3.5", POLICY__SAMPLER__TEMPERATURE="0.7"))
    assert isinstance(policy, ShowO)
    assert (policy.sampling.guidance_scale, policy.sampling.temperature) == (3.5, 0.7)


# -- resuming ---------------------------------------------------------------------------------------------------------


@pytest.fixture
def command(ready: MakeSettings, world_dir: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str, int], list[str]]:
    """`command(url, steps)`: arguments for one reward request a step and a checkpoint every two steps."""
    ready()
    environ = {"CHECKPOINT_EVERY": "2", "REWARD_BATCH_SIZE": "4", "REWARDS__SURROGATE": "ber", "SCREEN__AUDIT": "0"}
    for key, value in environ.items():
        monkeypatch.setenv(f"SYNOD__TRAINER__{key}", value)
    toml, run = str(world_dir / "train.toml"), str(world_dir / "run")
    return lambda url, steps: [toml, "--steps", str(steps), "--run-dir", run, "--url", url, "--no-evaluation"]


def checkpoints(run: Path) -> list[str]:
    return sorted(path.name for path in (run / "checkpoints").glob("step-*"))


@pytest.mark.slow
def test_same_command_resumes_after_kill_and_stop(
    command: Callable[[str, int], list[str]], world_dir: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """SIGKILL in the fourth step: resume after the second. SIGTERM in the fifth: finish and save it, exit with 0."""
    run, started = world_dir / "run", list[subprocess.Popen[bytes]]()
    logs = [world_dir / "killed.log", world_dir / "stopped.log"]

    def rewarding(number: int) -> None:
        if number in (3, 6):
            started[-1].send_signal(signal.SIGKILL if number == 3 else signal.SIGTERM)

    with serve(Judge(), rewarding) as url:
        arguments = command(url, 6)
        full, environ = [sys.executable, "-m", "trainer", *arguments], {**os.environ, "PYTHONPATH": str(ROOT)}
        for log, status in zip(logs, (-signal.SIGKILL, 0), strict=True):
            with log.open("wb") as out:
                started.append(subprocess.Popen(full, cwd=ROOT, env=environ, stdout=out, stderr=subprocess.STDOUT))
            assert started[-1].wait(timeout=100) == status, log.read_text()
            if status:
                assert checkpoints(run) == ["step-000002"]
                assert [line["step"] for line in lines(run)] == [0, 1, 2]
        said = logs[1].read_text()
        assert "2 of 6 steps are done" in said
        assert "stopping after this step" in said
        assert checkpoints(run) == ["step-000004", "step-000005"]
        assert (run / "report.html").exists()
        assert not (run / "policy").exists()
        assert main(arguments) == 0
    assert "5 of 6 steps are done" in capfd.readouterr().out
    assert [line["step"] for line in lines(run)] == list(range(6))
    assert checkpoints(run)[-1] == "step-000006"
    assert (run / "policy/config.json").exists()
    assert len(read(run, "samples.jsonl")) == 6


def test_run_resumes_after_the_service_was_unavailable(
    command: Callable[[str, int], list[str]],
    world_dir: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    def rewarding(number: int) -> None:
        if number >= 3:
            beyond_patience = RetryPolicy(base_s=600.0, max_s=600.0, uniform=lambda low, high: high)
            monkeypatch.setattr("trainer.rewards.service.BACKOFF", beyond_patience)
            raise ConnectionAbortedError("planted")

    run = world_dir / "run"
    with serve(Judge(), rewarding) as url:
        assert main(command(url, 4)) == 1
    message = capsys.readouterr()
    assert "waiting up to 300 s for the reward service" in message.out
    assert "was unavailable for" in message.err
    assert "train again: the run resumes from its last checkpoint" in message.err
    assert checkpoints(run) == ["step-000002", "step-000003"]
    with serve(Judge()) as url:
        assert main(command(url, 4)) == 0
    assert [line["step"] for line in lines(run)] == [0, 1, 2, 3]
