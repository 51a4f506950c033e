"""`synod evaluate` on a tiny Show-o: what POLICY names, tables, exit statuses, and what it refuses before drawing."""

from __future__ import annotations

import copy
import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch.distributed.run import get_args_parser

from synod import cli
from synod.errors import SettingsError, SynodError
from synod.images import encode_png
from tests.unit.trainer.evaluate.scoring_service import Service, connect
from tests.unit.trainer.loops import MakePolicy, MakeSettings
from tests.unit.trainer.tiny_run import TINY, make_settings
from trainer.__main__ import main
from trainer.clock import Clock
from trainer.evaluate import command, runner
from trainer.evaluate.command import _parser
from trainer.evaluate.draw import digest_of
from trainer.evaluate.runner import EVALUATION
from trainer.policy import registry
from trainer.policy.show_o.policy import ShowO
from trainer.scenarios import asked_task
from trainer.settings import ShowOSettings, TrainerSettings, load
from trainer.settings.data import TEMPLATES
from trainer.turns import finish_turns, start
from trainer.types import Prompt, RewardSpec

ROOT = Path(__file__).parents[4]
LINES = [
    {"tag": tag, "prompt": f"a photo of {n} {tag}", "include": [{"class": "cat", "count": n + 1}]}
    for tag in ("colors", "counting")
    for n in range(3)
]
QUERY = "Describe {prompt}"
Evaluate = Callable[..., int]


@pytest.fixture
def service(monkeypatch: pytest.MonkeyPatch) -> Service:
    service = Service()
    connect(monkeypatch, command, service)
    return service


@pytest.fixture
def world(make_policy: MakePolicy, tiny_settings: MakeSettings, world_dir: Path) -> Path:
    """A folder with train.toml, the model of a tiny Show-o, and prompts."""
    make_policy().save(world_dir / "model")
    tiny_settings()
    (world_dir / "geneval.jsonl").write_text("".join(json.dumps(line) + "\n" for line in LINES))
    (world_dir / "prompts.txt").write_text("a red cat\na blue dog\na green bird\n")
    return world_dir


@pytest.fixture
def evaluate(world: Path, service: Service, monkeypatch: pytest.MonkeyPatch) -> Evaluate:
    monkeypatch.chdir(world)
    return lambda *arguments: main(["evaluate", *map(str, arguments)])


def run_of(world: Path, settings: TrainerSettings) -> Path:
    """The directory of an ended run."""
    run = world / "run"
    run.mkdir()
    (run / "settings.json").write_text(json.dumps(settings.model_dump(mode="json")))
    (world / "model").rename(run / "policy")
    return run


def test_geneval_prints_its_tasks(
    evaluate: Evaluate, world: Path, service: Service, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["train.toml", "--suite", "geneval", "--prompts", "geneval.jsonl", "--images", "2"]
    assert evaluate(*arguments, "--json") == 0
    shown = json.loads(capsys.readouterr().out)
    out = world / "run/evaluation/geneval-start"
    assert (shown["suite"], shown["out"]) == ("geneval", str(out))
    assert list(shown["table"]) == ["colors", "counting", "overall", "all images", "prompts, any image"]
    drawn = [np.asarray(path.read_bytes()) for path in sorted(out.rglob("*.png"))]
    assert len(drawn) == shown["table"]["all images"]["soft"]["images"] == 12
    scores = [json.loads(line)["scores"]["geneval"] for line in (out / "rows.jsonl").read_text().splitlines()]
    mean = np.mean([one["detail"]["official"] for one in scores])
    assert shown["table"]["all images"]["official"]["mean"] == pytest.approx(mean)
    assert shown["table"]["overall"]["soft"]["mean"] == pytest.approx(np.mean([one["value"] for one in scores]))

    sent = service.num_items
    assert evaluate(*arguments) == 0
    assert service.num_items == sent, "the second run scores nothing"
    text = capsys.readouterr().out
    for part in ("OFFICIAL ± S.E.", "colors", "overall", "GenEval's score", "clustered by prompt", str(out)):
        assert part in text


def test_names_that_are_no_tokens_are_reported(
    evaluate: Evaluate, world: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (world / "named.txt").write_text("a photo of <bo>\n<momo> and <bo> on grass\n<momo>\n")
    arguments = ["train.toml", "--suite", "prompts", "--scorers", "ber", "--images", "1", "--prompts"]
    assert evaluate(*arguments, "named.txt", "--out", "a") == 0
    assert "the policy has no token for <momo>, and reads each as" in capsys.readouterr().err
    assert evaluate(*arguments, "prompts.txt", "--out", "b") == 0
    assert "no token" not in capsys.readouterr().err


def test_prompts_prints_each_scorer(
    evaluate: Evaluate, world: Path, service: Service, capsys: pytest.CaptureFixture[str]
) -> None:
    service.fails = lambda scorer, value: scorer == "hps"
    arguments = ["train.toml", "--suite", "prompts", "--prompts", "prompts.txt", "--scorers", "ber,hps"]
    assert evaluate(*arguments, "--images", "2", "--n", "2", "--out", "here", "--json") == 1
    said = capsys.readouterr()
    table = json.loads(said.out)["table"]
    assert (table["ber"]["mean"]["prompts"], table["ber"]["mean"]["images"], table["ber"]["mean"]["missing"]) == (
        2,
        4,
        0,
    )
    assert table["hps"]["mean"] == {"mean": None, "stderr": None, "images": 0, "prompts": 0, "missing": 4}
    assert "hps: 4 of 4 scores are missing, the first: planted" in said.err
    assert "the same command scores them again, which fails again unless the service" in said.err
    service.fails = lambda scorer, value: False
    assert evaluate(*arguments, "--images", "2", "--out", "here") == 0
    assert len(list((world / "here").rglob("*.png"))) == 6


def test_policy_names_a_run_a_toml_or_a_model(evaluate: Evaluate, world: Path, tiny_settings: MakeSettings) -> None:
    settings = tiny_settings(REWARDS__URL="http://the-runs:1", POLICY__LORA="{ rank = 2 }")
    options = ["--suite", "prompts", "--prompts", "prompts.txt", "--scorers", "ber", "--images", "1", "--n", "1"]
    sampler = {
        "denoising_steps": 4,
        "guidance_scale": 2.0,
        "temperature": 1.0,
        "max_new_tokens": 4,
        "confidence": "drawn",
        "schedule": "cosine",
    }
    model = command.resolve("model", "prompts")
    assert (model.policy.sampler.denoising_steps, model.policy.sampler.guidance_scale) == (50, 5.0)
    assert evaluate("model", *options, "--steps", "4", "--guidance", "2") == 0
    found = json.loads((world / "evaluation/model-prompts/evaluation.json").read_text())
    run = run_of(world, settings)
    trained = command.resolve("run", "prompts")
    assert (trained.policy.model, trained.url) == (str(run / "policy"), "http://the-runs:1")
    assert trained.policy.lora is None, "the adapters are merged into the policy of a run"
    assert trained.policy.sampler.model_dump() == sampler
    assert evaluate("run", *options) == 0
    other = json.loads((run / "evaluation/prompts/evaluation.json").read_text())
    assert {name for name in found if found[name] != other[name]} == {"sampler"}  # max_new_tokens
    assert other["sampler"] == sampler
    images = [next(folder.rglob("*.png")).read_bytes() for folder in (world / "evaluation", run / "evaluation")]
    assert images[0] == images[1], "the same weights, sampler and seed draw the same image"


def test_a_run_is_evaluated_without_the_tokenizer_it_was_trained_with(
    evaluate: Evaluate, world: Path, tiny_settings: MakeSettings
) -> None:
    settings = tiny_settings(POLICY__VQ="./model/vq")
    run = run_of(world, settings)  # the directory of `vq` is not there any more
    assert (run / "policy/vq").is_dir()
    assert command.resolve("run", "prompts").policy.vq is None


def test_a_policy_that_is_asked_first_is_evaluated_with_its_answers(
    evaluate: Evaluate, world: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """As it was trained; of a run and of a settings TOML."""
    data = f'prompts = "./prompts.txt"\nheldout = "./prompts.txt"\nquery = "{QUERY}"\n'
    rewards = '[trainer.rewards]\nscorers = { ber = 1.0 }\nsurrogate = "ber"\n'
    settings = make_settings(world, TINY + rewards, data=data)
    assert command.resolve("train.toml", "prompts").query == QUERY
    run = run_of(world, settings)
    options = ["--suite", "prompts", "--prompts", "prompts.txt", "--scorers", "ber", "--images", "2"]
    assert evaluate("run", *options) == 0
    assert "answer to the query of its settings" in capsys.readouterr().err
    out = run / "evaluation/prompts"
    assert json.loads((out / "evaluation.json").read_text())["query"] == QUERY

    policy = registry.load(command.resolve("run", "prompts").policy)
    prompts = ["a red cat", "a blue dog", "a green bird"] * 2
    seeds = [(0, EVALUATION, i % 3, i // 3) for i in range(6)]
    tasks = [asked_task(Prompt(text, "prompt"), QUERY, RewardSpec({"ber": 1.0})) for text in prompts]
    with torch.inference_mode(), policy.evaluating():
        rollouts, drawn = finish_turns(policy, tasks, start(policy, tasks, seeds, Clock()), Clock())
        bare = policy.images(policy.denoise(policy.start(prompts, seeds), policy.image_steps))
    changed = [not np.array_equal(image, plain) for (image,), plain in zip(drawn, bare, strict=True)]
    assert any(changed)
    assert [bool(rollout.answer) for rollout in rollouts] == changed
    files = [out / runner.Image(i % 3, i // 3).file for i in range(6)]
    assert [file.read_bytes() for file in files] == [encode_png(image) for (image,) in drawn]


def test_a_pipeline_with_a_connector_needs_its_language_model(
    evaluate: Evaluate, capsys: pytest.CaptureFixture[str]
) -> None:
    """Its text encoder is not what it was trained with."""
    Path("policy/connector").mkdir(parents=True)
    Path("policy/model_index.json").write_text("{}")
    assert evaluate("policy", "--suite", "geneval") == 2
    assert "policy has a connector: it was trained to draw from a language model" in capsys.readouterr().err


def test_other_weights_do_not_resume(
    evaluate: Evaluate, world: Path, make_policy: MakePolicy, capsys: pytest.CaptureFixture[str]
) -> None:
    options = ["--suite", "prompts", "--prompts", "prompts.txt", "--scorers", "ber", "--images", "1", "--out", "here"]
    assert evaluate("train.toml", *options) == 0
    policy = make_policy()
    next(policy.module.parameters()).data.add_(1e-3)
    policy.save(world / "model")
    assert evaluate("train.toml", *options) == 2
    assert "here holds another evaluation (weights was" in capsys.readouterr().err
    assert evaluate("train.toml", *options, "--seed", "1") == 2
    assert "seed was 0, now 1" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["nowhere.toml", "--suite", "geneval"], "nowhere.toml"),
        (["empty", "--suite", "geneval"], "empty"),
        (["train.toml", "--suite", "prompts", "--scorers", "ber"], "needs --prompts FILE"),
        (["train.toml", "--suite", "prompts", "--prompts", "prompts.txt"], "needs --scorers"),
        (["train.toml", "--suite", "geneval", "--prompts", "prompts.txt"], "needs prompts with GenEval's metadata"),
        (["train.toml", "--suite", "geneval", "--steps", "1"], "--steps 1: Input should be greater than or equal to 2"),
        (
            ["train.toml", "--suite", "geneval", "--scorers", "gen"],
            "the service has no scorer 'gen'; give --scorers of ber, geneval, hps",
        ),
        (
            ["train.toml", "--suite", "prompts", "--prompts", "prompts.txt", "--scorers", "geneval"],
            "the scorer 'geneval' needs geneval, which these prompts do not have; give --scorers of ber, hps",
        ),
    ],
)
def test_wrong_usage_is_refused_before_drawing(
    evaluate: Evaluate,
    world: Path,
    service: Service,
    capsys: pytest.CaptureFixture[str],
    arguments: list[str],
    message: str,
) -> None:
    (world / "empty").mkdir()
    assert evaluate(*arguments) == 2
    said = capsys.readouterr()
    assert message in said.err
    assert said.out == ""
    assert service.num_items == 0
    assert not (world / "run/evaluation").exists()


def test_an_unfinished_run_is_named(evaluate: Evaluate, world: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (world / "run").mkdir()
    (world / "run/settings.json").write_text('{"steps": 1}')
    assert evaluate("run", "--suite", "geneval") == 2
    assert "the run run has no trained policy yet" in capsys.readouterr().err
    (world / "run/policy").mkdir()
    assert evaluate("run", "--suite", "geneval") == 2
    assert "run/settings.json holds no settings of a run (KeyError('policy'))" in capsys.readouterr().err


def test_a_failing_service_says_how_to_go_on(
    evaluate: Evaluate, world: Path, service: Service, capsys: pytest.CaptureFixture[str]
) -> None:
    service.error = lambda number: SynodError("planted")
    options = ["--suite", "prompts", "--prompts", "prompts.txt", "--scorers", "ber", "--out", "here"]
    assert evaluate("train.toml", *options) == 1
    message = capsys.readouterr().err
    assert "planted" in message
    assert "here keeps images and scores; run the same command again to continue" in message


@pytest.mark.parametrize(
    ("batch", "advice"), [("3", "Give --batch 1\n"), ("1", "Use a larger device: no --batch is smaller\n")]
)
def test_out_of_memory_names_the_batch(
    evaluate: Evaluate, world: Path, capsys: pytest.CaptureFixture[str], batch: str, advice: str
) -> None:
    def denoise(*_: Any) -> Any:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.\nmore lines")

    options = ["--suite", "prompts", "--prompts", "prompts.txt", "--scorers", "ber", "--images", "1", "--out", "here"]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ShowO, "denoise", denoise)
        assert evaluate("train.toml", *options, "--batch", batch) == 1
    message = capsys.readouterr().err.partition("synod evaluate: ")[2]
    assert message == (
        f"out of memory with --batch {batch} (CUDA out of memory. Tried to allocate 2.00 GiB.). {advice}"
        f"{(world / 'here').resolve()} keeps images and scores, and the command continues with them\n"
    )
    assert evaluate("train.toml", *options, "--batch", "1") == 0


def test_digest_covers_every_weight(make_policy: MakePolicy) -> None:
    policy = make_policy()
    digest = digest_of(policy)
    assert digest == digest_of(make_policy())
    policy.vq = copy.deepcopy(policy.vq)  # the tests share one
    for module in (policy.module, policy.vq):
        parameter = list(module.parameters())[-1]
        parameter.data.view(-1)[-1] += 1
        assert digest_of(policy) != digest
        digest = digest_of(policy)


@pytest.mark.parametrize("arguments", [[], ["model"], ["model", "--suite", "x"], ["model", "--suite=geneval", "--n=0"]])
def test_wrong_options_end_with_2(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main(["evaluate", *arguments])
    assert ended.value.code == 2
    assert "usage: synod evaluate" in capsys.readouterr().err


def test_torchrun_takes_no_option_for_its_own() -> None:
    """It takes a unique beginning of an option for the option, also after the name of the module."""
    launcher = get_args_parser()
    for number, option in enumerate(_parser()._option_string_actions):
        if option not in ("-h", "--help", "--n"):
            given = ["evaluate", "model", option, str(number)]
            assert launcher.parse_args(["-m", "trainer", *given]).training_script_args == given
    with pytest.raises(SystemExit):
        launcher.parse_args(["-m", "trainer", "evaluate", "model", "--n", "6"])
    assert _parser().parse_args(["model", "--suite", "geneval", "--n", "6"]).limit == 6


def test_synod_evaluate_executes_the_trainer(monkeypatch: pytest.MonkeyPatch) -> None:
    became: list[Any] = []

    def execve(*what: Any) -> None:
        became.append(what)
        raise SystemExit  # as the real one, it does not come back

    monkeypatch.setattr(os, "execve", execve)
    monkeypatch.chdir(ROOT)
    with pytest.raises(SystemExit):
        cli.main(["evaluate", "runs/train", "--suite", "geneval"])
    ((_, arguments, _),) = became
    assert arguments == [sys.executable, "-m", "trainer", "evaluate", "runs/train", "--suite", "geneval"]


@pytest.mark.slow
def test_help_needs_no_torch() -> None:
    command = [sys.executable, "-X", "importtime", "-m", "trainer", "evaluate", "--help"]
    done = subprocess.run(command, cwd=ROOT, text=True, capture_output=True, timeout=120)
    assert done.returncode == 0
    assert "Standard errors" in done.stdout
    imported = {line.rpartition("|")[2].strip() for line in done.stderr.splitlines()}
    assert not {"torch", "transformers"} & imported


def test_facts_are_asked_as_the_policy_was_trained(tmp_path: Path) -> None:
    """By the template of a run's settings, or of a settings TOML; a model alone does not say."""
    config, environ = ROOT / "deploy/configs/embedded.toml", {"SYNOD__TRAINER__DATA__TEXTUAL_TEMPLATE": "instruct"}
    for environment, template in ((environ, TEMPLATES["instruct"]), ({}, TEMPLATES["plain"])):
        with pytest.MonkeyPatch.context() as patch:
            for name, value in environment.items():
                patch.setenv(name, value)
            assert command.resolve(str(config), "unify_pp").template == template
        (tmp_path / "policy").mkdir(exist_ok=True)
        (tmp_path / "settings.json").write_text(load(config, environment).model_dump_json())
        assert command.resolve(str(tmp_path), "unify_pp").template == template
    (tmp_path / "settings.json").write_text(load(ROOT / "deploy/configs/mask_grpo.toml", {}).model_dump_json())
    for other in (tmp_path, Path("a/model")):
        assert command.resolve(str(other), "unify_pp").template == TEMPLATES["plain"]


def test_policy_names_a_personalization(tmp_path: Path) -> None:
    (tmp_path / "photographs").mkdir()
    config, concept = tmp_path / "own.toml", tmp_path / "runs/bo/concept"
    config.write_text(
        '[personalize]\ndata = "photographs"\nrun_dir = "runs/bo"\n[trainer.policy]\nmodel = "a/b"\n'
        '[trainer.rewards]\nurl = "http://reward:8000"\n'
        "[trainer.policy.sampler]\ndenoising_steps = 3\n"
    )
    with pytest.raises(SettingsError, match=r"is not there yet; `synod personalize .*own\.toml` writes it"):
        command.resolve(str(config), "unify")
    assert command.resolve(str(config), "unify", has_concepts=True).out == concept.parent / "evaluation/unify"
    concept.mkdir(parents=True)
    (concept / "concept.json").touch()
    found = command.resolve(str(config), "unify")
    assert isinstance(found.policy, ShowOSettings)
    assert (found.policy.model, found.policy.concepts, found.out) == (
        "a/b",
        (concept,),
        concept.parent / "evaluation/unify",
    )
    assert (found.policy.sampler.denoising_steps, found.url) == (3, "http://reward:8000")
    config.write_text(config.read_text() + '[trainer.data]\nprompts = "none.txt"\n')  # also a training's settings
    with pytest.raises(SettingsError, match=r"trainer\.run_dir: Field required"):
        command.resolve(str(config), "unify")
