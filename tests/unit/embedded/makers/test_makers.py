"""Model directories load in the libraries' classes and the production loaders with the same numbers."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from transformers import (
    AutoImageProcessor,
    AutoProcessor,
    Blip2ForImageTextRetrieval,
    Blip2Processor,
    SegformerConfig,
    SegformerForSemanticSegmentation,
)

from embedded import world
from embedded.makers import detector, magvit, show_o
from embedded.makers.__main__ import CAPTIONS, PARTS, make
from embedded.makers.dataset import QUICK, normalised
from services.models import blip2, dinov2, face, open_clip, semantic
from services.scorers.geneval.colour import ColorClassifier
from trainer.policy.show_o.magvit import Magvit
from trainer.policy.show_o.vocabulary import END, question_mask


@pytest.fixture(scope="module")
def image() -> np.ndarray:
    rng = np.random.default_rng(0)
    scene, _ = world.sample(rng, "position")
    return world.render(scene, rng).image


@pytest.mark.parametrize("name", PARTS["all"])
def test_directories_hold_only_safetensors_weights(toys: Path, name: str) -> None:
    suffixes = {file.suffix for file in (toys / name).rglob("*") if file.is_file()}
    assert suffixes - {".jinja"} == {".json", ".safetensors"}


@pytest.mark.parametrize("name", ["blip2-world", "clip-scene-world", "detector-world", "dinov2-world", "face-world"])
def test_processor_yields_the_training_pixels(toys: Path, name: str, image: np.ndarray) -> None:
    processor = AutoImageProcessor.from_pretrained(toys / name)
    small = image[:32, :32] if name == "face-world" else image
    values = processor(small.copy(), input_data_format="channels_last", return_tensors="pt")["pixel_values"]
    np.testing.assert_allclose(values.numpy(), normalised(small[None]), atol=1e-5)


def test_blip2_forward_equals_its_two_towers(toys: Path, image: np.ndarray) -> None:
    folder, texts = toys / "blip2-world", ["a photo of a dog", "a photo of two red-colored cats"]
    processor = AutoProcessor.from_pretrained(folder)
    assert isinstance(processor, Blip2Processor)
    whole = Blip2ForImageTextRetrieval.from_pretrained(folder).eval()
    inputs = processor(images=[image.copy()] * 2, text=texts, padding=True, return_tensors="pt")
    with torch.no_grad():
        expected = whole(**inputs, use_image_text_matching_head=False).logits_per_image.numpy()
    towers = blip2.load(str(folder), "cpu")
    cosine = (towers.image_features([image] * 2) @ towers.text_features(texts).T).max(1)
    np.testing.assert_allclose(cosine, expected, atol=1e-5)


def test_dino_and_face_embed_to_unit_rows(toys: Path, image: np.ndarray) -> None:
    crops = [image, image[10:30, 20:45]]
    for rows in (
        dinov2.load(str(toys / "dinov2-world"), "cpu").embed([image]),
        face.embedder(family="small", model=str(toys / "face-world"), device="cpu").embed(crops),
    ):
        np.testing.assert_allclose(np.linalg.norm(rows, axis=1), 1.0, atol=1e-5)


def test_detector_labels_are_the_worlds(toys: Path, image: np.ndarray) -> None:
    found = semantic.load(str(toys / "detector-world"), "cpu", min_area=1)
    assert found.class_names == world.LABELS[1:]
    assert json.loads((toys / "detector-world/config.json").read_text())["part_of"] == {"face": "person"}
    assert all(0 < detection.score <= 1 for detection in found.detect([image])[0])


def test_saving_a_detector_does_not_change_it(tmp_path: Path) -> None:
    """The confidence gain is only on disk, so that saving twice writes the same bytes."""
    maker = object.__new__(detector.DetectorMaker)
    small = {"depths": [1] * 4, "hidden_sizes": [8] * 4, "num_attention_heads": [1] * 4, "decoder_hidden_size": 8}
    maker.model = SegformerForSemanticSegmentation(SegformerConfig(**small))
    before = maker.model.decode_head.classifier.weight.detach().clone()
    maker.save(tmp_path)
    assert torch.equal(before, maker.model.decode_head.classifier.weight)
    written = SegformerForSemanticSegmentation.from_pretrained(tmp_path).decode_head.classifier.weight
    torch.testing.assert_close(written, before * detector.CONFIDENCE_GAIN)


def test_clip_directory_works_in_the_colour_classifier(toys: Path, image: np.ndarray) -> None:
    classifier = ColorClassifier(open_clip.load(str(toys / "clip-world"), None, "cpu"))
    message = classifier.classify([image, image[5:30, 8:20]], ["dog", "cup"])
    assert set(message) <= set(world.COLORS)


def test_complete_checkpoint_is_saved_without_training(toys: Path, tmp_path: Path) -> None:
    again = make("face-world", tmp_path, toys.parent / "build", quick=True)
    for file in (toys / "face-world").iterdir():
        assert (again / file.name).read_bytes() == file.read_bytes(), file.name


def test_training_twice_gives_the_same_bytes(toys: Path, tmp_path: Path) -> None:
    make("clip-world", tmp_path / "weights", tmp_path / "build", quick=True)
    name = "clip-world/open_clip_model.safetensors"
    assert (tmp_path / "weights" / name).read_bytes() == (toys / name).read_bytes()


def test_decoder_training_does_not_change_codes(toys: Path, image: np.ndarray) -> None:
    """The policy's tokens must not change when the decoder is trained further."""
    state = torch.load(toys.parent / "build/magvit-world.ckpt", weights_only=True)["module"]
    first = Magvit(magvit.CONFIG)
    first.load_state_dict({k.removeprefix("model."): v for k, v in state.items() if k.startswith("model.")})
    first.eval()
    made = Magvit.load(toys / "magvit-world")
    assert torch.equal(made.encode([image]), first.encode([image]))
    assert (made.decode(made.encode([image]))[0] != first.decode(first.encode([image]))[0]).any()
    assert len(json.loads((toys / "magvit-world/training.json").read_text())) == 2


def test_bit_vectors_are_folded_into_saved_tables(toys: Path, tmp_path: Path) -> None:
    """Rows of codes are W + signs @ P, all others W, in bfloat16."""
    build, vq = toys.parent / "build", toys / "magvit-world"
    maker = show_o.ShowOMaker(show_o.RECIPE, build, QUICK, vq)
    state = {key: value.clone() for key, value in maker.module.state_dict().items()}
    maker.save(tmp_path)
    signs = Magvit.load(vq).quantize.embedding
    for name in ("showo.model.embed_tokens", "showo.lm_head"):
        want = state[f"{name}.parametrizations.weight.original"]
        vectors = state[f"{name}.parametrizations.weight.0.vectors"]
        first = len(want) - 1 - len(signs)  # the mask token comes last
        for code in range(len(signs)):
            want[first + code] += sum(signs[code, bit] * vectors[bit] for bit in range(signs.shape[1]))
        stored = load_file(tmp_path / "pytorch_model.safetensors")[f"{name}.weight"]
        assert stored.dtype == torch.bfloat16
        torch.testing.assert_close(stored.float(), want, atol=1e-6, rtol=2**-8)


def test_second_part_continues_from_the_first(toys: Path) -> None:
    """The weights are three small steps from the first part, not new random tables."""
    first = torch.load(toys.parent / "build/show-o-world.ckpt", weights_only=True)["module"]
    second = torch.load(toys.parent / "build/show-o-world-2.ckpt", weights_only=True)["module"]
    name = "showo.model.layers.0.mlp.fc1.weight"
    assert 0 < (first[name] - second[name]).abs().max() < 0.01
    assert not any("parametrizations" in key for key in second)


def test_batch_mix_has_at_least_one_of_each() -> None:
    assert show_o.LEARNING_MIX.counts(48) == (30, 6, 12, 0)
    assert show_o.UNCERTAIN_MIX.counts(44) == (20, 14, 10, 0)
    assert show_o.LEARNING_MIX.counts(3) == (2, 1, 1, 0)
    assert show_o.CAPTION_MIX.counts(32) == (6, 2, 2, 22)


def test_captions_are_the_prompts_of_their_images(toys: Path) -> None:
    """Without the answer that a concept's image may be drawn from; the weights start at the policy's."""
    build = toys.parent / "build"
    maker = show_o.ShowOMaker(
        show_o.CAPTION_RECIPE, build, QUICK, toys / "magvit-world", show_o.CAPTION_MIX, toys / "show-o-world"
    )
    texts = maker.data["texts"]
    for step in range(20):
        codes, ((question, caption),) = maker._caption(np.random.default_rng(step))
        assert question == "Describe the image in detail."
        shown = [i for i, row in enumerate(maker.codes) if np.array_equal(row, codes.numpy())]
        assert caption in {texts[i]["prompts"][0] for i in shown}
    directory = make(CAPTIONS, toys, build, quick=True)
    assert directory == build / CAPTIONS
    first, second = (load_file(one / "pytorch_model.safetensors") for one in (toys / "show-o-world", directory))
    name = "showo.model.layers.0.mlp.fc1.weight"
    assert 0 < (first[name].float() - second[name].float()).abs().max() < 0.05


def test_questions_of_one_image_do_not_see_each_other(toys: Path) -> None:
    """A lone question has the policy's own loss; one in a row does not depend on the words of those before."""
    maker = show_o.ShowOMaker(show_o.RECIPE, toys.parent / "build", QUICK, toys / "magvit-world")
    codes, vocab = torch.from_numpy(maker.codes[0]).long(), maker.policy.vocab

    def loss(*talks: tuple[str, str]) -> float:
        return sum(float(part().detach()) for part in maker._answering([(codes, list(talks))]))

    color, yes = ("what color is the dog?", "the dog is brown."), ("is there a dog?", "yes.")
    question = vocab.question(color[0], codes)
    answer = torch.tensor([*vocab.encode(color[1]), vocab.id(END)])
    ids = torch.cat((question, answer[:-1]))[None]
    hidden = maker.policy.phi(ids, question_mask(ids.shape[1], 2 + show_o.POSITIONS, ids.device))
    logits = maker.policy.phi.logits(hidden[0, len(question) - 1 :], 0, vocab.image_offset)
    expected = float(torch.nn.functional.cross_entropy(logits, answer).detach())
    assert loss(color) == pytest.approx(expected, abs=1e-5)
    after_red, after_blue = (("is there a hat?", said) for said in ("yes.", "no."))
    second = [2 * loss(first, yes) - loss(first) for first in (after_red, after_blue)]
    assert second[0] == pytest.approx(second[1], abs=1e-5)
    assert second[0] == pytest.approx(loss(yes), abs=0.05)  # only its distance from the image differs
