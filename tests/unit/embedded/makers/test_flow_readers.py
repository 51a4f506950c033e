"""The models next to the flow policy: what their makers train is what the scorers and the trainer compute."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from embedded.makers import clip_scene, language
from embedded.makers.__main__ import LANGUAGE, SCENES
from embedded.makers.dataset import QUICK, normalised
from services.models import transformers_clip
from synod.replies import answer_parts
from trainer.policy.base import TextSegment
from trainer.policy.flow import language as policy_language
from trainer.types import Query


def restored(maker: Any, toys: Path, name: str) -> Any:
    """Return the maker with the weights that it wrote."""
    state = torch.load(toys.parent / f"build/{name}.ckpt", weights_only=True)["module"]
    maker.module.load_state_dict({key: value.bfloat16().float() for key, value in state.items()})
    maker.module.eval()
    return maker


@torch.no_grad()
def test_scene_clip_has_the_scorers_features(toys: Path) -> None:
    maker = restored(clip_scene.ClipSceneMaker(clip_scene.RECIPE, toys.parent / "build", QUICK), toys, SCENES)
    served = transformers_clip.load(str(toys / SCENES), "cpu")
    images, texts = maker.data["image"][:3], ["a photo of two dogs", "a red cat at the top left"]
    seen = maker.model.get_image_features(torch.from_numpy(normalised(images))).pooler_output
    read = maker.tokenizer(texts, padding=True, return_tensors="pt")
    said = maker.model.get_text_features(read.input_ids, read.attention_mask).pooler_output
    for rows, wanted in ((served.image_features(images), seen), (served.text_features(texts), said)):
        np.testing.assert_allclose(rows, torch.nn.functional.normalize(wanted, dim=-1).numpy(), atol=1e-4)
    assert served.scale == pytest.approx(float(maker.model.logit_scale.exp()), rel=0.01)


def test_equal_captions_fit_each_other() -> None:
    assert clip_scene.equal(["a", "b", "a"]).tolist() == [[1, 0, 1], [0, 1, 0], [1, 0, 1]]


@pytest.fixture(scope="module")
def maker(toys: Path) -> language.LanguageMaker:
    made: language.LanguageMaker = restored(
        language.LanguageMaker(language.RECIPE, toys.parent / "build", QUICK, toys / LANGUAGE), toys, f"{LANGUAGE}-3"
    )
    return made


def segment_of(maker: language.LanguageMaker, talk: language.Talk) -> TextSegment:
    """Return the answer of a talk as the policy has it."""
    row, question, answer = talk
    ids = torch.tensor(maker.processor.tokenizer(answer + language.END).input_ids)
    image = None if row is None else maker.data["image"][row]
    return TextSegment(Query(question, image), ids, torch.zeros(len(ids)), "")


def test_maps_are_in_the_order_of_the_encoders_patches() -> None:
    """A white patch in a black image is where its number is among the tokens' numbers."""
    numbers = language.by_token(np.arange(64).reshape(1, 8, 8))
    assert numbers.shape == (1, 16, 4)
    read = language.new_processor().image_processor
    for number in (0, 1, 8, 9, 21, 42, 63):
        image = np.zeros((64, 64, 3), np.uint8)
        row, column = divmod(number, 8)
        image[8 * row : 8 * row + 8, 8 * column : 8 * column + 8] = 255
        patches = read([Image.fromarray(image)], return_tensors="pt")["pixel_values"]
        assert numbers.flatten()[int(patches.mean(1).argmax())] == number


def test_background_counts_a_fifth() -> None:
    logits, target = torch.randn(6, 4, generator=torch.Generator().manual_seed(0)), torch.tensor([0, 0, 0, 1, 2, 3])
    logp = logits.log_softmax(-1)
    lost = [-float(logp[i, kind]) for i, kind in enumerate(target.tolist())]
    wanted = (0.2 * sum(lost[:3]) + sum(lost[3:])) / (0.2 * 3 + 3)
    assert float(language.weighted(logits, target)) == pytest.approx(wanted, rel=1e-5)


def test_image_encoder_is_learned_first(toys: Path) -> None:
    """The second part starts from the encoder of the first, and trains it further."""
    maker = language.SightMaker(language.SIGHT_RECIPE, toys.parent / "build", QUICK)
    state = torch.load(toys.parent / f"build/{LANGUAGE}.ckpt", weights_only=True)["module"]
    maker.module.load_state_dict(state)
    assert float(maker.loss(np.random.default_rng(0)).detach()) > 0
    folder = toys.parent / "sight"
    maker.save(folder)
    started = language.LanguageMaker(language.RECIPE, toys.parent / "build", QUICK, folder)
    for name, value in maker.model.model.visual.state_dict().items():
        torch.testing.assert_close(started.model.model.visual.state_dict()[name], value)


@torch.no_grad()
def test_loss_is_the_policys_log_probability(toys: Path, maker: language.LanguageMaker) -> None:
    """The trainer gives tokens of images no probability, which changes the loss by less than .01."""
    model, words = policy_language.load(toys / LANGUAGE, 24)
    for row, question, answer in ((0, "is there a dog?", "no."), (None, "a photo of a cat", "<answer>a cat</answer>")):
        new, _, _ = words.logprobs(model, [segment_of(maker, (row, question, answer))])
        assert -float(new.mean()) == pytest.approx(float(maker.loss_of([(row, question, answer)])), abs=0.01)


def test_batched_answers_do_not_see_each_other(maker: language.LanguageMaker) -> None:
    """The loss of rows of different lengths, with and without images, is the mean over the tokens of each alone."""
    talks: list[language.Talk] = [
        (3, "is there a dog?", "no."),
        (None, "a photo of a cat", "<answer>a cat at the left</answer>"),
        (5, "what color is the cup?", "the cup is red."),
    ]
    with torch.no_grad():
        alone = [float(maker.loss_of([talk])) for talk in talks]
        lengths = [len(maker.processor.tokenizer(answer + language.END).input_ids) for _, _, answer in talks]
        assert float(maker.loss_of(talks)) == pytest.approx(np.average(alone, weights=lengths), abs=1e-4)


def test_yes_and_no_count_more_in_the_end(toys: Path, maker: language.LanguageMaker) -> None:
    """The last part starts from the whole model of the one before; its loss weighs two words."""
    folder = toys.parent / "answered"
    maker.save(folder)
    maker.model.float()
    last = language.VerdictMaker(language.VERDICT_RECIPE, toys.parent / "build", QUICK, folder)
    last.module.eval()
    for name, value in maker.model.state_dict().items():
        torch.testing.assert_close(last.model.state_dict()[name], value)
    words = last.processor.tokenizer
    counted = [words.convert_ids_to_tokens(i) for i, one in enumerate(last.weight_v) if one != 1]
    assert sorted(counted) == ["no", "yes"]
    talk: language.Talk = (3, "is there a dog?", "yes.")
    with torch.no_grad():
        plain, weighed = (float(one.loss_of([talk])) for one in (maker, last))
        count = len(words(talk[2] + language.END).input_ids)
        decisive = -float(policy_language.load(folder, 8)[1].logprobs(last.model, [segment_of(last, talk)])[0][0, 0])
    more = language.DECISIVE - 1
    assert weighed == pytest.approx((plain * count + more * decisive) / (count + more), abs=0.01)


def test_an_image_is_listed_from_its_top_left(maker: language.LanguageMaker) -> None:
    row, question, answer = maker.locate(np.random.default_rng(0))
    assert row is not None
    assert sorted(answer.split(", ")) == sorted(maker.texts[row]["words"].split(", "))
    ids = maker.processor.tokenizer([question, answer]).input_ids
    assert maker.processor.tokenizer.unk_token_id not in (*ids[0], *ids[1])


def test_refined_prompts_are_in_the_format_of_replies(maker: language.LanguageMaker) -> None:
    words = maker.processor.tokenizer
    for seed in range(8):
        row, question, answer = maker.refine(np.random.default_rng(seed))
        ids = words(answer).input_ids
        assert row is None
        assert words.unk_token_id not in (*ids, *words(question).input_ids)
        said = words.decode(ids, skip_special_tokens=True)
        refined, rest = answer_parts(said)
        assert refined
        assert (answer, rest) == (f"<answer>{refined}</answer>", "")


def test_judged_images_are_right_half_of_the_time(maker: language.LanguageMaker) -> None:
    rng = np.random.default_rng(0)
    talks = [maker.judge(rng) for _ in range(200)]
    for row, question, answer in talks:
        assert row is not None
        shown = maker.texts[row]["prompt"]
        assert (f'"{shown}"' in question) is answer.startswith("<answer>yes")
        assert answer.endswith("</answer>") or answer.split("</answer> ")[1] in {one["words"] for one in maker.texts}
    assert sum(answer.startswith(language.YES) for _, _, answer in talks) == pytest.approx(100, abs=25)
