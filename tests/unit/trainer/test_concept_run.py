"""Sync-GRPO on the tokens of personalised concepts: what is loaded, trained, referenced, saved and refused."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from synod.errors import SettingsError
from tests.unit.trainer.loops import MakeSettings, equal, lines, run_loop, weights
from tests.unit.trainer.personalize.tiny_concept import LIMIT, make_rows
from tests.unit.trainer.reward_services import Judge, brightness, serve
from tests.unit.trainer.tiny_show_o import WORDS, make_show_o, write_tokenizer
from trainer import run as run_module
from trainer.evaluate import command
from trainer.personalize.files import ConceptInfo, load_concept, save_concept
from trainer.personalize.tokens import base_digest, rows_of
from trainer.policy.show_o.loading import load
from trainer.policy.show_o.magvit import Magvit
from trainer.policy.show_o.policy import ShowO
from trainer.policy.show_o.vocabulary import END, ConceptTokens, Vocabulary
from trainer.settings import ShowOSettings, TrainerSettings

BO = ConceptTokens("<bo>", 3, 2, 1)
Make = Callable[[TrainerSettings], ShowO]


@pytest.fixture
def base(tmp_path: Path, vq: Magvit) -> ShowO:
    """The tiny policy without any concept."""
    tokenizer = write_tokenizer(tmp_path / "words", ["[UNK]", *WORDS, END])
    policy = make_show_o(Vocabulary.read(tokenizer, (), 16, LIMIT), vq)
    policy.config = replace(policy.config, max_text_length=LIMIT, concept_tokens=())
    return policy


@pytest.fixture
def ready(base: ShowO, tiny_settings: MakeSettings, world_dir: Path) -> MakeSettings:
    """Settings that train the rows of <bo>."""
    base.save(world_dir / "model")
    rows = make_rows(BO.count)
    save_concept(world_dir / "bo", ConceptInfo(BO, "dog", "animal", base_digest(base)), rows)
    own = {"STEPS": "2", "CHECKPOINT_EVERY": "1", "POLICY__CONCEPTS": '["bo"]', "POLICY__TRAIN": "rows"}
    return lambda **overrides: tiny_settings(**{**own, "DATA__GENEVAL_SHARE": "0", **overrides})


def made(settings: TrainerSettings) -> ShowO:
    policy = run_module.make_policy(settings)
    assert isinstance(policy, ShowO)
    return policy


def test_a_run_trains_the_rows_and_nothing_else(ready: MakeSettings, base: ShowO, world_dir: Path) -> None:
    with serve(Judge(brightness)) as url:
        settings = ready(REWARDS__URL=url, OPTIMIZER__LR="0.02")
        assert run_module.run(settings, evaluated=False) == 0
    records = lines(settings.run_dir)
    assert all(record["kl_image"] is not None and record["text_cut"] == 0 for record in records)
    assert abs(records[0]["kl_image"]) < 1e-9  # the stored rows are the reference
    assert records[1]["kl_image"] > 0
    trained = load(settings.run_dir / "policy", concepts=["<bo>"])
    start = make_rows(BO.count)
    rows = rows_of(trained, "<bo>")
    assert (rows.embed_RD - start.embed_RD).abs().max() > 0.01
    info, saved = load_concept(settings.run_dir / "concepts/bo")
    assert info == load_concept(world_dir / "bo")[0]
    assert all(torch.equal(a, b) for a, b in zip(saved.tensors(), rows.tensors(), strict=True))
    from trainer.personalize.tokens import remove

    remove(trained, "<bo>")
    assert equal(weights(trained), weights(base))
    evaluated = command.resolve(str(settings.run_dir), "geneval").policy
    assert (evaluated.model, evaluated.concepts, evaluated.train) == (str(settings.run_dir / "policy"), (), "all")


def test_a_resumed_run_equals_a_whole_run(ready: MakeSettings, base: ShowO) -> None:
    whole, parts = ready(RUN_DIR='"whole"'), [ready(RUN_DIR='"parts"', STEPS=str(n)) for n in (1, 2)]
    ended = [run_loop(one, lambda: base, Judge(), made(one)) for one in (whole, *parts)]
    assert lines(whole.run_dir) == lines(parts[1].run_dir)
    assert equal(weights(ended[0].policy), weights(ended[2].policy))
    assert not equal(weights(ended[1].policy), weights(ended[2].policy))
    names = {name.rpartition(".")[2] for name in ended[0].trained}
    assert names == {"rows", "bias_rows"}


def test_other_weights_train_with_concepts_too(ready: MakeSettings) -> None:
    policy = made(ready(POLICY__TRAIN="all"))
    assert policy.vocab.personal == (BO,)
    assert all(parameter.requires_grad for parameter in policy.module.parameters())
    assert torch.equal(rows_of(policy, "<bo>").embed_RD, make_rows(BO.count).embed_RD)


def test_prompts_of_unknown_concepts_are_refused(ready: MakeSettings) -> None:
    with pytest.raises(SettingsError, match="has no token for 1 of the concepts, <bo>"):
        made(ready(POLICY__CONCEPTS="[]", POLICY__TRAIN="all"))


def test_rows_without_concepts_are_refused(base: ShowO, tmp_path: Path) -> None:
    from trainer.policy import registry

    base.save(tmp_path / "model")
    settings = ShowOSettings.model_validate({"model": str(tmp_path / "model"), "train": "rows"})
    with pytest.raises(SettingsError, match="trains the tokens of concepts, but the policy has none"):
        registry.load(settings)
    with pytest.raises(ValueError, match="train 'rows' and lora name different parameters"):
        ShowOSettings.model_validate({"model": "a/b", "train": "rows", "lora": {}})


def test_concepts_of_another_base_are_refused(ready: MakeSettings, base: ShowO, world_dir: Path) -> None:
    settings = ready()
    base.phi.model.layers[0].mlp.fc1.bias.data += 1.0
    base.save(world_dir / "model")
    with pytest.raises(SettingsError, match="were trained on the model of digest"):
        made(settings)


def test_a_removed_concept_does_not_resume(ready: MakeSettings, base: ShowO, world_dir: Path) -> None:
    first = ready(STEPS="1")
    run_loop(first, lambda: base, Judge(), made(first))
    other = ready(POLICY__TRAIN="all", POLICY__CONCEPTS="[]")
    with pytest.raises(SettingsError, match=r"trainer\.policy\.concepts: .*bo.* there, \[\] now"):
        run_loop(other, lambda: base, Judge(), base)


def test_prompts_that_do_not_fit_are_refused(ready: MakeSettings, world_dir: Path, base: ShowO) -> None:
    settings = ready()
    prompts = world_dir / "prompts.jsonl"
    prompts.write_text(prompts.read_text().replace("photo 1 of <bo>", f"photo of <bo> {'on grass ' * 16}"))
    with pytest.raises(SettingsError, match="tokens more than a text block of 41 with its concept's soft tokens"):
        made(settings)


def test_cut_answers_are_counted_in_every_step(ready: MakeSettings, world_dir: Path, base: ShowO) -> None:
    """A prompt that fills the text block is accepted, and what the policy answers to it is cut, counted and logged."""
    settings, logged = ready(DATA__PATHWAYS='["visual"]'), list[str]()
    policy = made(settings)
    prompt = "photo of <bo>"
    while not policy.vocab.num_cut(f"{prompt} grass"):
        prompt += " grass"
    (world_dir / "prompts.jsonl").write_text(json.dumps({"tag": "plain", "prompt": prompt, "concept": "<bo>"}) + "\n")
    policy = made(settings)
    policy.log = logged.append
    run_loop(settings, lambda: base, Judge(), policy)
    counts = [record["text_cut"] for record in lines(settings.run_dir)]
    assert len(counts) == 2
    assert all(0 < count <= settings.screen.group_size for count in counts)
    assert len(logged) == 1
    assert "do not fit a text block of 41" in logged[0]
