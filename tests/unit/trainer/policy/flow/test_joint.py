"""A language model and a pipeline as one policy."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from services.scorers import likelihood
from synod.contracts import Score, ScoreItem
from synod.errors import SettingsError
from tests import tiny_vlm
from tests.unit.trainer.policy.flow.conftest import Load
from tests.unit.trainer.tiny_flow import Family
from trainer.credit import Credit
from trainer.distributed import ONE_RANK
from trainer.passes import accumulate, passes_of
from trainer.policy import registry
from trainer.policy.base import Reader
from trainer.policy.flow import joint, language
from trainer.policy.flow.connector import Connector, ConnectorConfig
from trainer.policy.flow.joint import JointPolicy
from trainer.policy.flow.policy import ADAPTER
from trainer.rewards import intrinsic
from trainer.rewards.intrinsic import QUESTION
from trainer.settings import LossSettings, read_policy
from trainer.types import MODALITIES, Query, Rollout

WORDS = ("a", "red", "cat", "two", "dogs", "hat", "what", "is", "it")
IMAGE = np.random.default_rng(0).integers(0, 256, (16, 16, 3), np.uint8)
Make = Callable[..., JointPolicy]


@pytest.fixture(scope="module")
def words(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The directory of a tiny Qwen2.5-VL."""
    folder = tmp_path_factory.mktemp("qwen")
    with torch.random.fork_rng():
        torch.manual_seed(0)
        tiny_vlm.qwen(folder, WORDS)
    return folder


@pytest.fixture
def make(load: Load, words: Path) -> Make:
    def made(*trains: Any, linked: Connector | None = None, **options: Any) -> JointPolicy:
        given = partial(JointPolicy, *language.load(words, 5), trains or ("text", "image"), linked)
        policy = load("sana", kind=given, **options)
        assert isinstance(policy, JointPolicy)
        return policy

    return made


def ratios(policy: JointPolicy, answers: list[Any]) -> Tensor:
    new, old, mask, *_ = (getattr(policy.terms(answers, 0), name) for name in ("new_BD", "old_BD", "mask_BD"))
    return (new - old).detach()[mask]


@pytest.mark.parametrize("image", [None, IMAGE], ids=["words", "image"])
def test_answers_are_learnt_as_they_were_sampled(make: Make, image: Any) -> None:
    policy, query = make(), Query("what is it", image)
    seeds = [(0, 0, 0, i) for i in range(6)]
    answers = policy.answer([query] * 6, seeds)
    assert len({tuple(one.ids_S.tolist()) for one in answers}) > 1
    assert ratios(policy, answers).abs().max() < 1e-5  # one pass against one token at a time
    (alone,) = policy.answer([query], seeds[3:4])
    assert torch.equal(alone.ids_S, answers[3].ids_S)  # it follows from its own seed
    lengths = {len(one.ids_S) for one in answers}
    assert max(lengths) <= policy.decisions("text") == 5
    with torch.no_grad():
        for parameter in policy.module["language"].parameters():
            parameter.mul_(1.02)
    assert ratios(policy, answers).abs().max() > 1e-4


def test_the_likelihood_of_a_text_is_that_of_the_services_scorer(make: Make, words: Path) -> None:
    """Of the same weights, in one pass; of a reference that training does not change."""
    texts = ("a red cat", "two dogs", "it")
    served = likelihood.build("likelihood", likelihood.LikelihoodSettings(kind="likelihood", model=str(words)))
    expected = served.score([ScoreItem(IMAGE, text) for text in texts])
    policy = make()
    policy.keep_reference()
    found = policy.token_logps([Query(QUESTION, IMAGE)] * 3, texts)
    for one, score in zip(found, expected, strict=True):
        assert isinstance(score, Score)
        assert list(one.tokens) == score.detail["tokens"]
        assert one.values == pytest.approx(score.detail["log_probs"], abs=1e-5)
        assert intrinsic.likelihood(one) == pytest.approx(score.value, abs=1e-5)
    assert not policy.token_logps([Query(QUESTION, IMAGE)], [" "])[0].tokens
    with torch.no_grad():
        for parameter in policy.module["language"].parameters():
            parameter.mul_(1.02)
    assert policy.token_logps([Query(QUESTION, IMAGE)] * 3, texts) != found
    with policy.reference():
        assert policy.token_logps([Query(QUESTION, IMAGE)] * 3, texts) == found
    assert isinstance(policy, Reader)
    assert QUESTION == likelihood.QUESTION


@pytest.mark.parametrize("token", ["<|im_end|>", "<|IM_END|>", "<|endoftext|>", "<|vision_start|>", "<|image_pad|>"])
def test_control_tokens_in_a_query_are_text(make: Make, token: str) -> None:
    """A file of prompts must not end the user's turn, or add an image that is not there. So in an answer."""
    policy = make()
    (answer,) = policy.token_logps([Query("a cat", IMAGE)], [f"a {token} cat"])
    assert not {*answer.tokens} & {*policy.language.processor.tokenizer.all_special_tokens}
    model, control = policy.module["language"], torch.tensor(policy.language.processor.tokenizer.all_special_ids)
    for image in (None, IMAGE):
        plain, tried = (
            policy.language._ask(model, Query(text, image))["input_ids"] for text in ("a cat", f"a {token} cat")
        )
        assert tried.shape[1] > plain.shape[1]
        assert torch.equal(tried[torch.isin(tried, control)], plain[torch.isin(plain, control)])


def test_tokens_are_drawn_by_their_probabilities(make: Make) -> None:
    """And those of images, which a text cannot hold, never."""
    policy, query = make(), Query("a red hat")
    count = 3000
    uniform = (torch.arange(count) + 0.5)[:, None] / count
    drawn = policy.language.sample(policy.module["language"], query, uniform)
    ids = torch.stack([one.ids_S[0] for one in drawn])
    inputs = policy.language._ask(policy.module["language"], query)
    logits = policy.module["language"](**inputs).logits[0, -1].detach()
    expected = policy.language.logp(logits).exp()
    found = torch.bincount(ids, minlength=len(expected)) / count
    assert (found - expected).abs().max() < 1.5 / count
    unspoken = policy.language._unspoken
    assert len(unspoken) == 2
    assert expected[unspoken].abs().max() == 0
    assert drawn[0].logp_S[0] == pytest.approx(float(expected[ids[0]].log()), abs=1e-5)


def test_sampling_moves_no_other_random_numbers(make: Make) -> None:
    policy = make()
    torch.manual_seed(3)
    expected = torch.rand(2)
    torch.manual_seed(3)
    policy.answer([Query("a cat")], [(0, 0)])
    assert torch.equal(torch.rand(2), expected)


def test_both_models_have_gradients_and_a_reference(make: Make) -> None:
    policy = make()
    policy.keep_reference()
    query = Query("what is it", IMAGE)
    answers = policy.answer([query, query], [(0, 0), (0, 1)])
    images = policy.denoise(policy.start([f"a cat. {one.text}" for one in answers], [(0, 0), (0, 1)]), 4)
    assert [group.kind for group in policy.parameter_groups()] == ["text", "image"]
    for segments in (answers, images):
        policy.module.zero_grad()
        terms = policy.terms(segments, 0, reference=True)
        terms.new_BD[terms.mask_BD].sum().backward()  # type: ignore[no-untyped-call]
        groups = policy.parameter_groups()
        moved = [any(p.grad is not None and p.grad.any() for p in group.parameters) for group in groups]
        assert moved == [segments is answers, segments is images]
        if terms.reference_BD is not None:
            assert torch.equal(terms.reference_BD, terms.new_BD.detach())
        else:
            assert terms.kl_BD is not None
            assert terms.kl_BD.abs().max() == 0


@pytest.mark.parametrize("kind", ["text", "image"])
def test_checkpointing_changes_no_gradient_and_keeps_less(
    make: Make, words: Path, linked: Connector, kind: str
) -> None:
    """In a pass over answers, and in one over an image's prompt with the bridge of queries."""
    kept, found = [], []
    for checkpointing in (False, True):
        policy, size = make(linked=linked if kind == "image" else None), 0
        loaded, _ = language.load(words, 5, checkpointing=checkpointing)
        policy.module["language"] = loaded

        def pack(tensor: Tensor) -> Tensor:
            nonlocal size
            size += tensor.nbytes
            return tensor

        if kind == "text":
            drawn = policy.answer([Query("what is it", IMAGE)] * 3, [(0, 0, 0, i) for i in range(3)])
            reading: Any = partial(policy.terms, drawn, 0)
        else:
            reading = partial(policy._captions, "a red cat two dogs " * 8)
        with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
            read = reading()
        (read.new_BD[read.mask_BD] if kind == "text" else read).sum().backward()
        kept.append(size)
        found.append([one.grad for one in loaded.parameters()])
        assert not any(module.training for module in loaded.modules())
    assert kept[1] < 0.7 * kept[0]
    assert all(one is other is None or torch.equal(one, other) for one, other in zip(*found, strict=True))


@pytest.mark.parametrize(
    ("shape", "expected"), [((700, 1400), (336, 672)), ((900, 300), (672, 224)), ((600, 16), (600, 16))]
)
def test_large_images_are_shrunk(
    make: Make, monkeypatch: pytest.MonkeyPatch, shape: tuple[int, int], expected: tuple[int, int]
) -> None:
    policy, given = make(), list[Any]()
    processor = policy.language.processor

    def template(conversations: Any, **_: object) -> dict[str, Tensor]:
        given.append(conversations[0][0]["content"][0]["image"])
        return {}

    monkeypatch.setattr(processor, "apply_chat_template", template)
    policy.language._ask(policy.module["language"], Query("what is it", np.zeros((*shape, 3), np.uint8)))
    assert np.asarray(given[0]).shape == (*expected, 3)


@pytest.mark.parametrize("kind", ["text", "image"])
def test_one_model_may_be_trained_alone(make: Make, kind: Any) -> None:
    policy = make(kind)
    (group,) = policy.parameter_groups()
    assert group.kind == kind
    adapted = make(kind)
    adapted.add_adapters(rank=2, alpha=4, targets=("to_q", "q_proj"), seed=0, base="x")
    (group,) = adapted.parameter_groups()
    names = [name for name, one in adapted.module.named_parameters() if one.requires_grad]
    part = {"text": joint.LANGUAGE, "image": joint.IMAGE}[kind]
    assert len(names) == len(group.parameters)
    assert all(name.startswith(part) and "lora_" in name for name in names)
    with adapted.reference():
        pass
    assert [name for name, one in adapted.module.named_parameters() if one.requires_grad] == names


@pytest.mark.parametrize(
    ("trains", "targets", "message"),
    [
        (
            None,
            ["to_q"],
            r"\['to_q'\] match no layer of the language model, .* has 'text'; add .* such as 'q_proj', or",
        ),
        (
            ["image"],
            ["gate_proj"],
            r"\['gate_proj'\] match no layer of the transformer, .* 'to_q', or leave 'image' out",
        ),
        (["image"], ["to_q"], None),
    ],
)
def test_adapters_are_on_every_trained_model(
    pipelines: dict[Family, Path], words: Path, trains: Any, targets: list[str], message: str | None
) -> None:
    table = {"family": "flow", "model": str(pipelines["sana"]), "language": {"model": str(words)}, "trains": trains}
    settings = read_policy({**table, "lora": {"rank": 2, "alpha": 4, "targets": targets}})
    with nullcontext() if message is None else pytest.raises(SettingsError, match=message):
        registry.load(settings)


@pytest.mark.parametrize("kind", ["text", "image"])
def test_a_frozen_model_has_no_passes(make: Make, kind: Any) -> None:
    """Its answers and images have no gradient, and a backward pass through them would fail."""
    policy, seeds = make(kind), [(0, 0, 0, i) for i in range(2)]
    answers = policy.answer([Query("what is it")] * 2, seeds)
    images = policy.denoise(policy.start([one.text for one in answers], seeds), 4)
    rollouts = tuple(Rollout(*one) for one in zip(seeds, zip(answers, images, strict=True), strict=True))
    group: Any = SimpleNamespace(is_ours=True, rollouts=rollouts)
    credit = Credit((0, 1), torch.tensor([1.0, -1.0]))
    settings: Any = SimpleNamespace(seed=0, loss=LossSettings.model_validate({n: {"beta": 0} for n in MODALITIES}))
    found = passes_of(policy, [group], [0], {one: {0: credit} for one in MODALITIES}, settings, 0)
    assert {modality for (_, modality), passes in found.items() if passes} == {kind}
    accumulate(policy, [group], found, settings.loss, ONE_RANK)
    moved = {n.split(".")[0] for n, p in policy.module.named_parameters() if p.grad is not None and p.grad.any()}
    assert moved == {{"text": joint.LANGUAGE, "image": joint.IMAGE}[kind]}


def move(policy: JointPolicy) -> None:
    """Change every number that training would change."""
    with torch.no_grad():
        for group in policy.parameter_groups():
            for parameter in group.parameters:
                parameter.add_(0.02)


@pytest.mark.parametrize("adapters", [False, True])
def test_a_joint_policy_is_saved(make: Make, load: Load, tmp_path: Path, adapters: bool) -> None:
    from trainer.policy.flow import loading

    policy, query = make(), Query("what is it", IMAGE)
    if adapters:
        policy.add_adapters(rank=2, alpha=4, targets=("to_q", "q_proj"), seed=0, base="x")
    move(policy)
    policy.save(tmp_path)
    given = partial(JointPolicy, *language.load(tmp_path / joint.LANGUAGE, 5), ("text",), None)
    again = loading.load(tmp_path, sampler=policy.sampler, guidance_scale=3.0, max_text_length=6, kind=given)
    answers = policy.answer([query], [(0, 1)])
    torch.testing.assert_close(again.answer([query], [(0, 1)])[0].logp_S, answers[0].logp_S, rtol=1e-4, atol=1e-4)
    ours, theirs = (one.denoise(one.start(["a cat"], [(0,)]), 4)[0].clean_CHW for one in (policy, again))
    torch.testing.assert_close(theirs, ours, rtol=1e-4, atol=1e-4)


@pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing. is deprecated:FutureWarning")  # peft reads it
def test_each_models_adapters_are_saved_for_peft(make: Make, load: Load, words: Path, tmp_path: Path) -> None:
    """Under the names of that model alone, so that peft's own loader finds them and merges them as we do."""
    from peft import PeftModel

    policy = make()
    policy.add_adapters(rank=2, alpha=4, targets=("to_q", "q_proj"), seed=0, base="pipeline")
    move(policy)
    policy.save(tmp_path)
    for part, folder, started, source, targets in (
        (joint.IMAGE, tmp_path / ADAPTER, load("sana").module, "pipeline", {"to_q"}),
        (joint.LANGUAGE, tmp_path / joint.LANGUAGE / ADAPTER, language.load(words, 5)[0], str(words), {"q_proj"}),
    ):
        before = {key: value.clone() for key, value in started.state_dict().items()}
        loaded = PeftModel.from_pretrained(started, folder)
        config = loaded.peft_config["default"]
        assert (config.base_model_name_or_path, set(config.target_modules)) == (source, targets)
        merged = loaded.merge_and_unload().state_dict()
        assert any(not torch.equal(merged[key], value) for key, value in before.items())
        for key, value in policy._saved_state(part).items():
            torch.testing.assert_close(merged[key], value)


@pytest.mark.parametrize("kind", ["text", "image"])
def test_only_a_trained_model_has_saved_adapters(make: Make, tmp_path: Path, kind: Any) -> None:
    policy = make(kind)
    policy.add_adapters(rank=2, alpha=4, targets=("to_q", "q_proj"), seed=0, base="pipeline")
    policy.save(tmp_path)
    found = [path.parent.relative_to(tmp_path).as_posix() for path in tmp_path.rglob("adapter_config.json")]
    assert found == [{"text": "language/adapter", "image": "adapter"}[kind]]


def test_a_language_model_without_weights_is_refused(
    words: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And one whose processor needs a package that is missing."""
    with pytest.raises(SettingsError, match="cannot be read"):
        language.load(tmp_path, 5)

    def lacking(*_: object, **__: object) -> None:
        raise ImportError("\nVideos need the library x, which was not found.\nInstall it")

    monkeypatch.setattr("transformers.AutoProcessor.from_pretrained", lacking)
    with pytest.raises(SettingsError, match=r"cannot be read \(Videos need the library x"):
        language.load(words, 5)


@pytest.mark.parametrize("bridge", ["text", "queries"])
def test_warm_checks_the_language_model(make: Make, linked: Connector, tmp_path: Path, bridge: str) -> None:
    """Its keys, processor and chat template, and a connector's keys, without reading the weights."""
    make(linked=linked).save(tmp_path / "made")
    folder, weights = tmp_path / "made/language", "model.safetensors"
    table = {"model": str(folder), "bridge": bridge}
    settings = read_policy({"family": "flow", "model": str(tmp_path / "made"), "max_text_length": 6, "language": table})

    def check() -> None:
        registry.FAMILIES["flow"].check(settings, ())

    check()
    if bridge == "queries":
        lost = _without_a_tensor(tmp_path / "made/connector" / weights)
        with pytest.raises(SettingsError, match=f"connector lacks {lost}"):
            check()
        return
    _without_a_tensor(folder / weights)
    with pytest.raises(SettingsError, match=r"language model '.*' lacks .*; give the weights of its config\.json"):
        check()
    (folder / "chat_template.jinja").unlink()
    with pytest.raises(SettingsError, match="no chat template"):
        check()
    (folder / "config.json").write_text("{}")
    (folder / "processor_config.json").unlink()
    with pytest.raises(SettingsError, match=r"language model '.*' cannot be read"):
        check()


def _without_a_tensor(file: Path) -> str:
    """Remove a tensor from a file of weights, and return its name."""
    tensors = load_file(file)
    lost = sorted(tensors)[0]
    save_file({key: value for key, value in tensors.items() if key != lost}, file, metadata={"format": "pt"})
    return lost


# -- the bridge of queries --------------------------------------------------------------------------------------------


@pytest.fixture
def linked() -> Connector:
    """For the tiny Qwen (width 32) and the tiny SANA (captions of 16)."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return Connector(ConnectorConfig(queries=3, width=32, caption_width=16, layers=1, heads=4, kv_heads=2))


def test_queries_carry_the_prompt_to_the_image(make: Make, linked: Connector) -> None:
    policy = make(linked=linked)
    policy.keep_reference()
    seeds = [(0, 0), (0, 1), (0, 2)]
    images = policy.denoise(policy.start(["a cat", "two dogs", "a cat"], seeds), 4)
    terms = policy.terms(images, 0, reference=True)
    assert (terms.new_BD - terms.old_BD).abs().max() == 0
    assert terms.kl_BD is not None
    assert terms.kl_BD.abs().max() == 0
    x = torch.zeros(2, 4, 4, 4)
    with torch.no_grad():
        v = policy.velocity(["a cat", "two dogs"], x, 0.5, 1.0)
        assert (v[0] - v[1]).abs().max() > 1e-5
        nothing = policy._conditions(["", "a cat"])["encoder_hidden_states"]
    assert nothing[0].abs().max() == 0
    assert nothing[1].abs().max() > 0
    assert [group.kind for group in policy.parameter_groups()] == [None, "image"]
    terms.new_BD.sum().backward()  # type: ignore[no-untyped-call]
    for name in (joint.LANGUAGE, joint.IMAGE, joint.CONNECTOR):  # the language model learns from images, too
        assert any(p.grad is not None and p.grad.abs().max() > 0 for p in policy.module[name].parameters())
    assert linked.queries.grad is not None
    assert linked.queries.grad.abs().max() > 0


def test_the_bridge_decides_what_of_a_prompt_is_cut(make: Make, linked: Connector) -> None:
    """A language model reads all of it, the text encoder of the pipeline 6 tokens."""
    for connector, cut in ((None, True), (linked, False)):
        (image,) = make(linked=connector).start(["a cat " * 9], [(0, 0)])
        assert (image.num_cut > 0) is cut


def test_a_frozen_language_model_passes_the_gradient_on(make: Make, linked: Connector) -> None:
    policy = make("image", linked=linked)
    images = policy.denoise(policy.start(["a cat"], [(0, 0)]), 4)
    policy.terms(images, 0).new_BD.sum().backward()  # type: ignore[no-untyped-call]
    assert all(p.grad is None for p in policy.module[joint.LANGUAGE].parameters())
    assert linked.queries.grad is not None
    (group,) = policy.parameter_groups()
    assert group.kind == "image"
    image = [parameter for name in (joint.IMAGE, joint.CONNECTOR) for parameter in policy.module[name].parameters()]
    assert len(group.parameters) == len(image)
    assert policy.activation_bytes(2, checkpointing=False) > 0


def test_the_settings_name_the_bridge(make: Make, linked: Connector, words: Path, tmp_path: Path) -> None:
    policy = make(linked=linked)
    policy.save(tmp_path / "made")
    table = {"model": str(tmp_path / "made/language"), "bridge": "queries", "max_new_tokens": 5}
    chosen = {"family": "flow", "model": str(tmp_path / "made"), "max_text_length": 6, "language": table}
    again = registry.load(read_policy({**chosen, "sampler": {"denoising_steps": 4, "guidance_scale": 3.0}}))
    assert isinstance(again, JointPolicy)
    ours, theirs = (one.denoise(one.start(["a cat"], [(0,)]), 4)[0].clean_CHW for one in (policy, again))
    torch.testing.assert_close(theirs, ours)
    shutil.rmtree(tmp_path / "made/connector")
    with pytest.raises(SettingsError, match="none is published; give bridge 'text'"):
        registry.load(read_policy(chosen))


def test_a_connector_of_another_width_is_refused(
    make: Make, linked: Connector, pipelines: dict[Family, Path], tmp_path: Path
) -> None:
    """By the configurations, before weights are read."""
    make(linked=linked).save(tmp_path / "made")
    for file in tmp_path.rglob("*.safetensors"):
        file.unlink()
    table = {"model": str(tmp_path / "made/language"), "bridge": "queries"}
    settings = read_policy({"family": "flow", "model": str(tmp_path / "made"), "language": table})
    (tmp_path / "made/connector/config.json").write_text(json.dumps(asdict(replace(linked.config, caption_width=24))))
    for called in (registry.load, lambda chosen: registry.FAMILIES["flow"].check(chosen, ())):
        with pytest.raises(SettingsError, match=r"captions of 24, but the language model has 32 and .* takes 16"):
            called(settings)
    other = read_policy({"family": "flow", "model": str(pipelines["sd3"]), "language": table})
    with pytest.raises(SettingsError, match="a SD3Transformer2DModel needs pooled texts too"):
        registry.load(other)
