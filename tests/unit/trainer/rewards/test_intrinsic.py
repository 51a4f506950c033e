"""GvU's intrinsic reward: against one forward pass a token, next to a service's scores, and with a frozen teacher."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from concurrent.futures import Future
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from synod.contracts import ScoreFailure, ScoreItem
from synod.errors import SettingsError
from tests.unit.trainer.loops import MakePolicy, MakeSettings, draw, lines
from tests.unit.trainer.reward_services import Judge, answered
from trainer import run
from trainer.algorithms.costs import Costs
from trainer.clock import Clock
from trainer.data.source import wanted_rewards
from trainer.evaluate.heldout import load_evaluation
from trainer.policy.base import TokenLogp
from trainer.policy.show_o import vocabulary
from trainer.policy.show_o.policy import ShowO
from trainer.report.metrics import SAMPLES, read
from trainer.rewards.intrinsic import QUESTION, IntrinsicRewards, likelihood, with_intrinsic
from trainer.screen_audit import update_costs
from trainer.settings import load
from trainer.types import Query, Reward, RewardSpec

RNG = np.random.default_rng(5)
IMAGES = [RNG.integers(0, 256, (8, 8, 3), np.uint8) for _ in range(3)]
PROMPTS = ["a red cat", "two dogs wearing a hat : what is <bo> on grass", "dog"]
ITEMS = [ScoreItem(image, prompt) for image, prompt in zip(IMAGES, PROMPTS, strict=True)]
OWN = RewardSpec({"intrinsic": 2.0})
SELF_TAUGHT = """[trainer]
run_dir = "run"
steps = 2
[trainer.policy]
model = "./model"
lora = { rank = 2, alpha = 8, targets = ["q_proj"] }
sampler = { denoising_steps = 4, guidance_scale = 2.0 }
[trainer.data]
prompts = "plain.txt"
heldout = "plain.txt"
[trainer.rewards]
url = "http://127.0.0.1:1"
patience_s = 0.1
scorers = { intrinsic = 1.0 }
[trainer.screen]
threshold = "none"
group_size = 4
[trainer.loss]
normalise = "group_std"
[trainer.optimizer]
lr = 1e-3
[trainer.evaluate]
prompts = 2
"""
MIXED = RewardSpec({"intrinsic": 2.0, "geneval": 0.5})


class Service:
    """Scores every item with the next of `values` by each scorer, weighted; records what it is asked."""

    def __init__(self, *values: float | None) -> None:
        self.values, self.asked = values, list[tuple[str, RewardSpec | None]]()

    def submit_previews(self, items: Sequence[ScoreItem], reward: RewardSpec | None = None) -> Future[list[Reward]]:
        self.asked.append(("previews", reward))
        return answered([Reward(0.125)] * len(items))

    def submit(self, items: Sequence[ScoreItem], reward: RewardSpec) -> Future[list[Reward]]:
        self.asked.append(("images", reward))
        (weight,) = reward.scorers.values()
        lost = ScoreFailure("scorer_failed", "planted")
        return answered(
            [
                Reward(None, failure=lost) if v is None else Reward(weight * v, {"geneval": v}, fixed={}, official=1.0)
                for v in self.values
            ]
        )


def backend(policy: Any, service: Service, *, by_reference: bool = False, **options: Any) -> IntrinsicRewards:
    return IntrinsicRewards(service, policy, Clock(), by_reference=by_reference, **options)


@torch.no_grad()
def naive(policy: ShowO, image: Any, prompt: str) -> list[float]:
    """The probability of each token of the prompt, each from a forward pass of its own."""
    read = policy.vocab.question(QUESTION, policy.vq.encode([image])[0])
    found = []
    for token in policy.vocab.encode(prompt):
        hidden = policy.phi(read[None], vocabulary.question_mask(len(read), 18, policy.device))[0, -1]
        text = hidden.double() @ policy.phi.lm_head.weight.double().T + policy.phi.lm_head.bias.double()
        found.append(float(text[: policy.vocab.image_offset].softmax(-1)[token]))
        read = torch.cat((read, torch.tensor([token])))
    return found


def test_one_pass_equals_one_forward_a_token(make_policy: MakePolicy) -> None:
    """Of prompts of different lengths in one batch; the reward is the L-th root of the product."""
    policy = make_policy()
    rewards = backend(policy, Service()).submit(ITEMS, OWN).result()
    for reward, item in zip(rewards, ITEMS, strict=True):
        expected = naive(policy, item.image, str(item.prompt))
        assert [word for word, _ in reward.tokens] == policy.vocab.tokenizer.tokenize(str(item.prompt))
        assert np.exp([logp for _, logp in reward.tokens]) == pytest.approx(expected, abs=1e-5)
        score = math.prod(expected) ** (1 / len(expected))
        assert reward.components == {"intrinsic": pytest.approx(score, abs=1e-5)}
        assert reward.value == pytest.approx(2 * score, abs=1e-5)
        assert reward.image_part == reward.value  # no part of it was known before the image
    assert len({reward.value for reward in rewards}) == 3


def test_the_image_decides(make_policy: MakePolicy) -> None:
    items = [ScoreItem(image, "a red cat") for image in IMAGES]
    values = [reward.value for reward in backend(make_policy(), Service()).submit(items, OWN).result()]
    assert len(set(values)) == 3


def test_a_long_prompt_does_not_underflow() -> None:
    """The public code's product of 400 probabilities of .05 is 0; the reward is their geometric mean."""
    logp = math.log(0.05)
    assert math.prod([0.05] * 400) == 0.0
    assert likelihood(TokenLogp(("a",) * 400, (logp,) * 400)) == pytest.approx(0.05)


def test_scores_of_the_service_are_added(make_policy: MakePolicy) -> None:
    policy, service = make_policy(), Service(0.5, None, 1.0)
    alone = backend(policy, service).submit(ITEMS, OWN).result()
    assert service.asked == []
    mixed = backend(policy, service).submit(ITEMS, MIXED).result()
    assert service.asked == [("images", RewardSpec({"geneval": 0.5}))]
    assert mixed[0].value == pytest.approx(alone[0].value + 0.25)
    assert mixed[0].components == {"geneval": 0.5, **alone[0].components}
    assert (mixed[0].official, mixed[0].tokens) == (1.0, alone[0].tokens)
    assert mixed[1].value is None
    assert mixed[1].failure is not None
    assert mixed[1].failure.message == "planted"
    assert mixed[1].components == alone[1].components
    plain = RewardSpec({"geneval": 1.0})
    assert backend(policy, service).submit(ITEMS, plain).result()[2].tokens == ()
    assert service.asked[-1] == ("images", plain)


def test_a_watched_scorer_changes_nothing(make_policy: MakePolicy) -> None:
    policy = make_policy()
    alone = backend(policy, Service()).submit(ITEMS, OWN).result()
    watched = backend(policy, Service(0.5, 0.25, 1.0)).submit(ITEMS, RewardSpec({"intrinsic": 2.0, "geneval": 0.0}))
    assert [one.value for one in watched.result()] == [one.value for one in alone]
    assert [one.components["geneval"] for one in watched.result()] == [0.5, 0.25, 1.0]


def test_a_prompt_without_tokens_is_masked(make_policy: MakePolicy) -> None:
    items = [ITEMS[0], ScoreItem(IMAGES[1], " ")]
    first, second = backend(make_policy(), Service()).submit(items, OWN).result()
    assert first.value == pytest.approx(2 * first.components["intrinsic"])
    assert (second.value, second.components) == (None, {})
    assert second.failure is not None
    assert second.failure.code == "invalid_item"
    assert second.failure.message.startswith("intrinsic: the policy's tokenizer makes no token of the prompt ' '")
    watched = RewardSpec({"intrinsic": 0.0, "geneval": 1.0})
    (other,) = backend(make_policy(), Service(0.5)).submit(items[1:], watched).result()
    assert (other.value, other.components) == (0.5, {"geneval": 0.5})


def test_weights_of_nan_mask_every_item(make_policy: MakePolicy) -> None:
    policy = make_policy()
    policy.phi.lm_head.bias.data.fill_(math.nan)
    found = backend(policy, Service()).submit(ITEMS, OWN).result()
    assert [one.value for one in found] == [None] * 3
    assert {one.failure.code for one in found if one.failure} == {"non_finite"}


@pytest.mark.parametrize("lora", [False, True], ids=["copy", "adapters"])
def test_training_leaves_the_frozen_teacher_unchanged(make_policy: MakePolicy, lora: bool) -> None:
    """Bit for bit, while the current policy as the teacher changes its mind."""
    policy = make_policy()
    if lora:
        policy.add_adapters(rank=2, alpha=4, targets=["q_proj", "fc1"], seed=0, base="tiny")
    policy.keep_reference()
    frozen, current = (backend(policy, Service(), by_reference=by_reference) for by_reference in (True, False))
    before = [one.submit(ITEMS, OWN).result() for one in (frozen, current)]
    assert before[0] == before[1]
    optimizer = torch.optim.SGD([p for p in policy.module.parameters() if p.requires_grad], lr=0.5)
    for _ in range(2):
        (segment,) = policy.answer([Query("what is red ?", IMAGES[0])], [(0, 0, 0, 0)])
        optimizer.zero_grad()
        policy.terms([segment], 0).new_BD.sum().backward()
        optimizer.step()
    assert frozen.submit(ITEMS, OWN).result() == before[0]
    assert current.submit(ITEMS, OWN).result() != before[1]
    assert (policy.phi.lm_head.weight.grad is not None) is not lora  # the teacher is left: gradients are the policy's


def test_reading_keeps_no_graph(make_policy: MakePolicy) -> None:
    policy, kept = make_policy(), list[bool]()
    policy.phi.register_forward_hook(lambda module, inputs, output: kept.append(output.requires_grad))
    backend(policy, Service()).submit(ITEMS, OWN).result()
    assert kept == [False]  # one pass, without a gradient


def test_previews_are_read_too(make_policy: MakePolicy) -> None:
    policy, service = make_policy(), Service()
    read = backend(policy, service, surrogate="intrinsic")
    finished = read.submit(ITEMS, OWN).result()
    assert [2 * one.value for one in read.submit_previews(ITEMS).result()] == [one.value for one in finished]
    found = read.submit_previews(ITEMS, MIXED).result()
    assert [one.value for one in found] == pytest.approx([one.value + 0.125 for one in finished])
    texts = [ScoreItem(None, prompt) for prompt in PROMPTS]
    assert [one.value for one in read.submit_previews(texts, MIXED).result()] == [0.125] * 3
    assert read.submit_previews(texts, OWN).result() == [Reward(None)] * 3  # no term reads the text alone
    assert backend(policy, service).submit_previews(ITEMS).result()[0].value == 0.125
    asked = [spec for _, spec in service.asked]
    assert asked == [RewardSpec({"geneval": 0.5})] * 2 + [None]


def test_a_failing_service_fails_the_request(make_policy: MakePolicy) -> None:
    broken: Future[list[Reward]] = Future()
    service = Service()
    service.submit = lambda items, reward: broken  # type: ignore[method-assign]
    pending = backend(make_policy(), service).submit(ITEMS, MIXED)
    assert not pending.done()
    broken.set_exception(RuntimeError("planted"))
    with pytest.raises(RuntimeError, match="planted"):
        pending.result(1)


def test_a_run_on_the_intrinsic_reward_needs_no_service(make_policy: MakePolicy, tmp_path: Path) -> None:
    """It trains on prompts alone; each image's record has the tokens of its prompt."""
    make_policy().save(tmp_path / "model")
    (tmp_path / "plain.txt").write_text("a red cat\ntwo dogs\na blue hat\n")
    (tmp_path / "train.toml").write_text(SELF_TAUGHT)
    settings = load(tmp_path / "train.toml", {})
    assert wanted_rewards(settings) == []
    assert run.run(settings) == 0
    for record in lines(settings.run_dir):
        assert 0 < record["reward_mean"] == record["components"]["intrinsic"] < 1
        assert record["grad_norm"] > 0
    (sample, *_) = read(settings.run_dir, SAMPLES)[0]["samples"]["finished"]
    logps = [logp for _, logp in sample["tokens"]]
    assert sample["score"] == pytest.approx(math.exp(sum(logps) / len(logps)))
    before, after = (load_evaluation(settings.run_dir / f"evaluation/{when}.json") for when in ("before", "after"))
    for row in (*before.rows, *after.rows):
        assert row.reward == row.components["intrinsic"] == row.image_part
    assert read(settings.run_dir)[0]["seconds"]["intrinsic"] > 0


def test_reading_is_a_cost_of_scores_and_rewards(make_policy: MakePolicy, tiny_settings: MakeSettings) -> None:
    policy, clock, settings = make_policy(), Clock(), tiny_settings()
    groups, _ = draw(policy, Judge(), settings)
    subject = IntrinsicRewards(Service(), policy, clock, by_reference=False, surrogate="intrinsic")
    subject.submit_previews(ITEMS)
    previews = update_costs(Costs(), groups, 0, [clock.lap()], settings).seconds
    subject.submit(ITEMS, OWN)
    finished = update_costs(Costs(), groups, 0, [clock.lap()], settings).seconds
    assert previews.scores > previews.rewards == 0
    assert finished.rewards > finished.scores == 0


def test_reading_in_an_evaluation_is_part_of_it(
    make_policy: MakePolicy, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An image takes a second to read: two held-out ones between the steps, which have four each."""
    now, token_logps = [0.0], ShowO.token_logps

    def slow(policy: ShowO, queries: Sequence[Query], answers: Sequence[str]) -> list[TokenLogp]:
        now[0] += len(queries)
        return token_logps(policy, queries, answers)

    monkeypatch.setattr(ShowO, "token_logps", slow)
    monkeypatch.setattr("trainer.clock.time", SimpleNamespace(perf_counter=lambda: now[0]))
    make_policy().save(tmp_path / "model")
    (tmp_path / "plain.txt").write_text("a red cat\ntwo dogs\na blue hat\n")
    (tmp_path / "train.toml").write_text(SELF_TAUGHT + "every = 1\n")
    settings = load(tmp_path / "train.toml", {})
    assert run.run(settings) == 0
    first, second = (record["seconds"] for record in read(settings.run_dir))
    assert (first["intrinsic"], first["total"]) == (4, 4)
    assert (second["intrinsic"], second["evaluate"], second["total"]) == (4, 2, 6)


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        ({"POLICY__FAMILY": "flow"}, "policy.family 'flow' reads none without a language model; give policy.language"),
        ({"RANKS__SHARD": "2"}, "the copy of the policy is split then; give policy.lora"),
    ],
    ids=["no language", "split"],
)
def test_a_teacher_that_cannot_read_is_refused(
    settings_from: MakeSettings, overrides: dict[str, str], message: str
) -> None:
    text = "[trainer.rewards]\nscorers = { intrinsic = 1.0 }\n"
    wanted = {"DATA__GENEVAL_SHARE": "1.0", **overrides}
    with pytest.raises(SettingsError, match=re.escape(message)):
        settings_from(text, **wanted)
    assert not settings_from(text, **wanted, REWARDS__TEACHER="service").is_own_teacher


def test_an_answer_has_no_intrinsic_reward(settings_from: MakeSettings) -> None:
    with pytest.raises(SettingsError, match="by which the policy describes an image; give of = 'image'"):
        settings_from("[[trainer.rewards.terms]]\nscorer = 'intrinsic'\nof = 'answer'\n")


@pytest.mark.parametrize(("teacher", "kept"), [("reference", True), ("current", False), ("service", False)])
def test_only_the_frozen_teacher_needs_a_reference(settings_from: MakeSettings, teacher: str, kept: bool) -> None:
    text = f"[trainer.rewards]\nscorers = {{ intrinsic = 1.0 }}\nteacher = '{teacher}'\n"
    none = {"LOSS__TEXT__BETA": "0", "LOSS__IMAGE__BETA": "0"}
    settings = settings_from(text, **none)
    assert settings.needs_reference is kept
    assert settings_from(text).needs_reference  # a KL term does in any case
    service: Any = Service()
    with_service = with_intrinsic(service, object(), settings, Clock()) if teacher == "service" else None  # type: ignore[arg-type]
    assert with_service is (service if teacher == "service" else None)
    named = [name for one in wanted_rewards(settings_from(text)) for name in one.spec.scorers]
    assert ("intrinsic" in named) is (teacher == "service")


def test_answers_are_not_screened_by_an_intrinsic_reward(settings_from: MakeSettings) -> None:
    text = "[trainer.rewards]\nscorers = { intrinsic = 1.0, tier = %s }\nsurrogate = 'known'\n"
    settings_from(text % "0.5")
    with pytest.raises(SettingsError, match="read only the answer, but 'intrinsic' is the only term"):
        settings_from(text % "0.0")


def test_a_policy_without_a_language_model_is_refused(settings_from: MakeSettings) -> None:
    settings = settings_from("[trainer.rewards]\nscorers = { intrinsic = 1.0 }\n")
    with pytest.raises(SettingsError, match="has no language model; give"):
        with_intrinsic(Service(), object(), settings, Clock())  # type: ignore[arg-type]
