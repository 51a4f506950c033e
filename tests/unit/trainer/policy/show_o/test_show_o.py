"""Show-o as a policy: recorded and recomputed log-probabilities, batches, files, and what is refused."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from synod.errors import SettingsError
from trainer.policy.show_o import policy as show_o
from trainer.policy.show_o.loading import load
from trainer.policy.show_o.magvit import Magvit
from trainer.policy.show_o.policy import ShowO, _uniforms, fit_to_square
from trainer.policy.show_o.segments import ImageSegment
from trainer.types import Query

MakePolicy = Callable[..., ShowO]
Uniforms = Callable[..., Tensor]

PROMPTS = ["a photo of <bo> wearing a red hat", "cat", "", "a dog on grass and a cat on a hat : blue green"]
TENSORS = ("codes_TN", "masked_TN", "logp_TN", "remasked_N", "uniform_T2N")


def drawn(policy: ShowO, uniforms: Uniforms, steps: int = 5) -> list[ImageSegment]:
    return policy.denoise(policy.begin(PROMPTS, uniforms(4, steps, 2, 16)), steps)


def equal(a: ImageSegment, b: ImageSegment) -> bool:
    return all(torch.equal(getattr(a, name), getattr(b, name)) for name in TENSORS)


# -- learning ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("positions", ["masked", "all"])
@pytest.mark.parametrize("guidance_scale", [0.0, 2.0, 5.0])
def test_the_ratio_of_an_image_is_exactly_1_before_an_update(
    make_policy: MakePolicy, uniforms: Uniforms, guidance_scale: float, positions: str
) -> None:
    policy = make_policy(guidance_scale=guidance_scale, positions=positions)
    segments = drawn(policy, uniforms)
    assert policy.steps(segments) == 5
    for step in range(5):
        new, old, mask = policy.logprobs(segments, step)
        assert new.requires_grad
        assert torch.equal((new - old).exp(), torch.ones(4, 16))
        assert torch.equal(mask, torch.stack([s.masked_TN[step] | (positions == "all") for s in segments]))
        assert (old != 0).equal(mask)
    # floor(16 cos(pi/2 * 4/5)) positions are decided in the last step
    assert mask.sum(-1).tolist() == [4 if positions == "masked" else 16] * 4


@pytest.mark.parametrize("confidence", ["drawn", "max_logp"])
@pytest.mark.parametrize("guidance_scale", [0.0, 2.0])
def test_committed_decisions_are_a_part_of_the_masked_ones(
    make_policy: MakePolicy, uniforms: Uniforms, guidance_scale: float, confidence: str
) -> None:
    """Each position once, where the drawn code is that of the finished image; with the ratio and the draws of all."""
    options = {"guidance_scale": guidance_scale, "confidence": confidence}
    every, few = (
        make_policy(positions=positions, denoising_steps=5, **options) for positions in ("masked", "committed")
    )
    segments, others = drawn(few, uniforms), drawn(every, uniforms)
    assert all(equal(a, b) for a, b in zip(segments, others, strict=True))
    times = torch.zeros(4, 16, dtype=torch.int64)
    for step in range(5):
        new, old, mask = few.logprobs(segments, step)
        whole, _, masked = every.logprobs(segments, step)
        assert torch.equal((new - old).exp()[mask], torch.ones(int(mask.sum())))
        assert torch.equal(new[mask], whole[mask])
        assert not bool((mask & ~masked).any())
        assert all(torch.equal(s.codes_TN[step][at], s.codes_TN[-1][at]) for s, at in zip(segments, mask, strict=True))
        times += mask
    assert bool((times == 1).all())
    assert few.decisions("image") == 16
    assert every.decisions("image") == 5 * 16


def test_committed_decisions_of_a_preview(make_policy: MakePolicy, uniforms: Uniforms) -> None:
    """The last step that was taken is not the last of all: what it re-masked is drawn again."""
    policy = make_policy(positions="committed", denoising_steps=5)
    preview = policy.denoise(policy.begin(PROMPTS, uniforms(4, 5, 2, 16)), 2)
    whole = policy.denoise(preview, 5)
    for step in range(2):
        assert torch.equal(policy.logprobs(preview, step)[2], policy.logprobs(whole, step)[2])


def test_with_max_logp_the_draw_does_not_decide_what_is_committed(make_policy: MakePolicy, uniforms: Uniforms) -> None:
    """Other draws at equal noise: the first step commits the same positions only if confidence ignores the draw."""
    uniform = uniforms(4, 5, 2, 16)
    other = uniform.clone()
    other[:, :, 0] = uniforms(4, 5, 16, seed=1)
    for confidence, same in (("max_logp", True), ("drawn", False)):
        policy = make_policy(denoising_steps=5, confidence=confidence)
        a, b = (
            torch.stack([s.remasked_N for s in policy.denoise(policy.begin(PROMPTS, u), 1)]) for u in (uniform, other)
        )
        assert torch.equal(a, b) is same


def test_recorded_answer_logp_equals_recomputed_logp(policy: ShowO, uniforms: Uniforms, image: Any) -> None:
    """Questions and answers of several lengths in one batch."""
    segments = [
        *policy.reason(Query("what color is <bo>?", image), uniforms(5, 9)),
        *policy.reason(Query("has <cy> a red hat? is <bo> a cat?"), uniforms(3, 6, seed=1)),
    ]
    assert policy.steps(segments) == 1
    new, old, mask = policy.logprobs(segments, 0)
    lengths = [len(s.ids_S) for s in segments]
    assert len(set(lengths)) > 2
    assert mask.sum(-1).tolist() == lengths
    assert new.shape == old.shape == mask.shape == (8, max(lengths))
    assert (new - old)[mask].abs().max() < 1e-5
    assert old[mask].std() > 0.2
    assert torch.isfinite(new).all()  # what is masked does not poison the gradient
    (new * mask).sum().backward()  # type: ignore[no-untyped-call]
    assert all(torch.isfinite(p.grad).all() for p in policy.module.parameters() if p.grad is not None)


# -- an update's passes -----------------------------------------------------------------------------------------------


def gradient(policy: ShowO) -> Tensor:
    return torch.cat([p.grad.flatten() for p in policy.module.parameters() if p.grad is not None])


def learned(policy: ShowO, segments: list[ImageSegment], *, shared: bool, size: int = 4) -> tuple[Tensor, list[Tensor]]:
    """The gradient of a loss over all steps, one backward pass each, and the reference's log-probabilities."""
    policy.module.zero_grad()
    references = []
    with policy.sharing(segments) if shared else nullcontext():
        for step in range(policy.steps(segments)):
            for first in range(0, len(segments), size):
                terms = policy.terms(segments[first : first + size], step, reference=True)
                assert terms.reference_BD is not None
                references.append(terms.reference_BD)
                weight = torch.arange(1.0, 1 + terms.new_BD.numel()).view(terms.new_BD.shape).sin()
                (terms.new_BD * terms.mask_BD * weight).sum().backward()  # type: ignore[no-untyped-call]
    return gradient(policy), references


@pytest.mark.parametrize(("size", "checkpointing"), [(4, False), (2, False), (1, True)])
def test_shared_texts_give_the_same_gradient(
    make_policy: MakePolicy, uniforms: Uniforms, size: int, checkpointing: bool
) -> None:
    """Whether each step encodes its prompts or all steps share them; two of the prompts are equal."""
    policy = make_policy(checkpointing=checkpointing)
    policy.module.double()
    prompts = [*PROMPTS[:3], PROMPTS[0]]
    segments = policy.denoise(policy.begin(prompts, uniforms(4, 5, 2, 16)), 5)
    policy.keep_reference()
    with torch.no_grad():
        for parameter in policy.module.parameters():
            parameter.mul_(1.01)
    expected, far = learned(policy, segments, shared=False, size=size)
    found, also = learned(policy, segments, shared=True, size=size)
    assert expected.abs().max() > 1
    torch.testing.assert_close(found, expected, atol=1e-10, rtol=1e-10)
    for a, b in zip(also, far, strict=True):
        torch.testing.assert_close(a, b, atol=1e-10, rtol=0)
    new = policy.terms(segments, 0).new_BD
    assert (far[0] - new[: len(far[0])]).abs().max() > 1e-3  # the reference is another policy


def test_prompts_are_encoded_once_for_all_steps(
    policy: ShowO, uniforms: Uniforms, monkeypatch: pytest.MonkeyPatch
) -> None:
    segments = drawn(policy, uniforms)
    policy.keep_reference()
    encoded: list[list[str]] = []
    text = ShowO._text

    def counted(self: ShowO, prompts: Any) -> Any:
        encoded.append(list(prompts))
        return text(self, prompts)

    monkeypatch.setattr(ShowO, "_text", counted)
    learned(policy, segments, shared=True, size=2)
    assert encoded == [PROMPTS] * 2  # by the policy and by its reference
    policy.terms(segments[:2], 0)
    assert encoded[2:] == [[*PROMPTS[:2], ""]]


def test_a_failed_update_leaves_nothing_shared(policy: ShowO, uniforms: Uniforms) -> None:
    segments = drawn(policy, uniforms)
    with pytest.raises(IndexError), policy.sharing(segments):
        policy.terms(segments, 99)
    before = policy.terms(segments, 0).new_BD
    policy.phi.model.embed_tokens.weight.data.mul_(1.1)
    assert not torch.equal(policy.terms(segments, 0).new_BD, before)


# -- bfloat16 ---------------------------------------------------------------------------------------------------------


def test_bfloat16_samples_and_learns_in_one_arithmetic(make_policy: MakePolicy, uniforms: Uniforms, image: Any) -> None:
    policy, exact = make_policy(dtype="bfloat16"), make_policy()
    segments = drawn(policy, uniforms)
    answers = policy.reason(Query("what color is <bo>?", image), uniforms(5, 9))
    policy.keep_reference()
    for step in range(5):
        new, old, mask = policy.logprobs(segments, step)
        assert new.dtype == old.dtype == torch.float32
        assert torch.equal(new, old)
        single = exact.logprobs(segments, step)[0]
        assert 0 < (single - new)[mask].abs().max() < 0.3
    said, before, spoken = policy.logprobs(answers, 0)
    assert (said - before)[spoken].abs().max() < 0.1
    found, _ = learned(policy, segments, shared=True)
    exact.keep_reference()
    expected, _ = learned(exact, segments, shared=True)
    assert found.dtype == torch.float32
    assert all(p.dtype == torch.float32 for p in policy.module.parameters())
    assert torch.nn.functional.cosine_similarity(found, expected, dim=0) > 0.99
    again = make_policy(dtype="bfloat16", checkpointing=True)
    again.keep_reference()
    torch.testing.assert_close(learned(again, segments, shared=True)[0], found, atol=1e-6, rtol=1e-6)


# -- batches and stops ------------------------------------------------------------------------------------------------


def test_finishing_a_preview_equals_drawing_in_one_go(policy: ShowO, uniforms: Uniforms) -> None:
    whole = drawn(policy, uniforms, 10)
    preview = policy.denoise(policy.begin(PROMPTS, uniforms(4, 10, 2, 16)), 2)
    assert [s.step for s in preview] == [2] * 4
    assert [int(s.remasked_N.sum()) for s in preview] == [14] * 4  # min(16 - 1 - 1, floor(16 cos(pi/2 * .2)))
    finished = policy.denoise(preview, 10)
    assert all(equal(a, b) for a, b in zip(finished, whole, strict=True))


def test_mixed_segments_are_refused(policy: ShowO, uniforms: Uniforms) -> None:
    first, second = (policy.denoise(policy.begin(["cat"], uniforms(1, 4, 2, 16)), n)[0] for n in (1, 2))
    with pytest.raises(AssertionError, match="different steps"):
        policy.denoise([first, second], 4)
    with pytest.raises(AssertionError, match="one kind"):
        policy.logprobs([*policy.reason(Query("a?"), uniforms(1, 2)), first], 0)


def test_images_are_the_last_full_draw(policy: ShowO, uniforms: Uniforms) -> None:
    segments = drawn(policy, uniforms, 3)
    found = policy.images(segments)
    expected = policy.vq.decode(torch.stack([s.codes_TN[2] for s in segments]))
    assert [p.shape for p in found] == [(8, 8, 3)] * 4
    assert all(np.array_equal(a, b) for a, b in zip(found, expected, strict=True))


# -- images of queries ------------------------------------------------------------------------------------------------


def test_an_image_is_encoded_once(policy: ShowO, monkeypatch: pytest.MonkeyPatch, uniforms: Uniforms) -> None:
    seen: list[int] = []
    encode = Magvit.encode

    def counted(self: Magvit, images: Any) -> Tensor:
        seen.append(int(images[0][0, 0, 0]))
        return encode(self, images)

    monkeypatch.setattr(Magvit, "encode", counted)
    monkeypatch.setattr(show_o, "CACHED_IMAGES", 2)
    for value in (1, 2, 1, 2, 3, 3, 1):
        policy.reason(Query("a?", np.full((8, 8, 3), value, np.uint8)), uniforms(1, 1))
    assert seen == [1, 2, 3, 1]


@pytest.mark.parametrize("shape", [(8, 8), (16, 16), (16, 48), (60, 20), (9, 8), (5, 7)])
def test_an_image_of_another_size_is_fitted(shape: tuple[int, int]) -> None:
    """The centre square is red, the rest blue: the fitted image is red."""
    side = min(shape)
    top, left = (shape[0] - side) // 2, (shape[1] - side) // 2
    image = np.full((*shape, 3), (0, 0, 255), np.uint8)
    image[top : top + side, left : left + side] = (255, 0, 0)
    read = fit_to_square(image, 8)
    assert read.shape == (8, 8, 3)
    assert read.dtype == np.uint8
    assert (read[2:6, 2:6] == (255, 0, 0)).all()
    assert fit_to_square(read, 8) is read


# -- files ------------------------------------------------------------------------------------------------------------


@pytest.fixture
def saved(policy: ShowO, tmp_path: Path) -> Path:
    policy.save(tmp_path / "model")
    return tmp_path / "model"


def edit(directory: Path, **changes: Any) -> Path:
    path = directory / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))
    return directory


def test_save_and_load(policy: ShowO, saved: Path, uniforms: Uniforms, image: Any) -> None:
    again = load(saved, sampling=policy.sampling)
    assert again.config == policy.config
    assert again.vocab.size == policy.vocab.size
    assert not again.module.training
    state, stored = policy.module.state_dict(), again.module.state_dict()
    assert list(state) == list(stored)
    assert all(torch.equal(state[key], stored[key]) for key in state)
    assert all(equal(a, b) for a, b in zip(drawn(policy, uniforms), drawn(again, uniforms), strict=True))
    query = Query("what color is <bo>?", image)
    for a, b in zip(policy.reason(query, uniforms(3, 6)), again.reason(query, uniforms(3, 6)), strict=True):
        assert torch.equal(a.ids_S, b.ids_S)
        assert a.text == b.text
    assert {p.name for p in saved.iterdir()} >= {"config.json", "pytorch_model.safetensors", "tokenizer.json", "vq"}


def test_tokenizers_in_other_directories(policy: ShowO, saved: Path, tmp_path: Path) -> None:
    """The published model: .bin weights, a tokenizer named in config.json, and a separate image tokenizer."""
    torch.save(policy.module.state_dict(), saved / "pytorch_model.bin")
    (saved / "pytorch_model.safetensors").unlink()
    (tmp_path / "words").mkdir()
    for file in saved.glob("tokenizer*"):
        shutil.move(file, tmp_path / "words")
    shutil.move(saved / "vq", tmp_path / "codes")
    edit(saved, llm_model_path=str(tmp_path / "words"), _class_name="Showo", mask_token_id=policy.vocab.mask_id)
    again = load(saved, vq=tmp_path / "codes")
    assert torch.equal(again.phi.lm_head.weight, policy.phi.lm_head.weight)
    edit(saved, llm_model_path="/nowhere")
    with pytest.raises(SettingsError, match="tokenizer '/nowhere' is not a directory"):
        load(saved, vq=tmp_path / "codes")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"w_clip_vit": True}, "w_clip_vit is true"),
        ({"vocab_size": 58_498}, r"tokenizer \d+ \+ codes 16 \+ mask 1 = \d+, but config.json says vocab_size 58498"),
        ({"concept_tokens": ["<bo>", "<cy>", "<more>"]}, "the vocabulary does not fit"),
        ({"codebook_size": 32, "vocab_size": 71}, "the image tokenizer has 16 codes, the policy 32"),
        ({"llm": {"layers": 2}}, r"does not describe a Show-o .*layers"),
        ({"llm": {"hidden_size": 64, "num_attention_heads": 4, "intermediate_size": 96, "num_hidden_layers": 2}},
         r"has other shapes: showo\.model\.layers\.0\.mlp\.fc1\.bias \(128,\) for \(96,\)"),
    ],
)  # fmt: skip
def test_a_config_that_does_not_fit(policy: ShowO, saved: Path, changes: dict[str, Any], message: str) -> None:
    if "codebook_size" in changes:
        changes = {**changes, "vocab_size": policy.vocab.image_offset + 33}
    with pytest.raises(SettingsError, match=message):
        load(edit(saved, **changes))


def test_a_directory_that_lacks_something(saved: Path, tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match="is not a directory"):
        load(tmp_path / "nowhere")
    shutil.move(saved / "vq", tmp_path / "vq")
    with pytest.raises(SettingsError, match="has no directory 'vq'; give its image tokenizer"):
        load(saved)
    (saved / "config.json").write_text("{}")
    with pytest.raises(SettingsError, match=r"does not describe a Show-o: vocab_size: Field required"):
        load(saved)


def test_random_numbers_follow_from_seed_and_stream() -> None:
    drawn = _uniforms([(7, 3, 1, 0), (7, 3, 1, 5)], 1, (2, 3))
    expected = np.random.default_rng([7, 3, 1, 5, 1]).random((2, 3), np.float32)
    assert np.array_equal(drawn[1].numpy(), expected)
    assert torch.equal(_uniforms([(7, 3, 1, 5)], 1, (2, 3))[0], drawn[1])
    others = [
        _uniforms([(*key, place)], stream, (50,))
        for key in ((7, 3, 1), (7, 4, 1))
        for place in (0, 5)
        for stream in (0, 1)
    ]
    assert len({tuple(row.flatten().tolist()) for row in others}) == 8
    many = _uniforms([(0, place) for place in range(4)], 0, (20_000,))
    assert many.dtype == torch.float32
    assert 0 < float(many.min()) < float(many.max()) < 1
    assert abs(float(many.mean()) - 0.5) < 4 / (12 * many.numel()) ** 0.5
