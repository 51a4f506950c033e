"""Show-o with caches, trimmed blocks and cut columns against naive whole sequences."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from trainer.policy.show_o import maskgit
from trainer.policy.show_o.policy import ShowO
from trainer.policy.show_o.segments import ImageSegment
from trainer.policy.show_o.vocabulary import END, PAD
from trainer.types import Query

MakePolicy = Callable[..., ShowO]
Uniforms = Callable[..., Tensor]
OmniMask = Callable[[list[int], int, range], list[list[bool]]]

PROMPTS = ["a photo of <bo> wearing a red hat", "", "cat", "a dog on grass . a dog on grass . a dog on grass . a cat"]


def whole_logits(policy: ShowO, ids: list[int], mask: list[list[bool]]) -> Tensor:
    """Logits [L V] of one sequence read at once: no cache, no cut columns."""
    hidden = policy.phi(torch.tensor([ids]), torch.tensor(mask)[None, None])[0]
    logits: Tensor = policy.phi.lm_head(hidden)
    return logits


def naive_guided(policy: ShowO, omni_mask: OmniMask, prompt: str, codes: list[int], masked: list[bool]) -> Tensor:
    """log softmax((1 + g) cond - g uncond) [N V] from two whole sequences: 13 text ids, soi, the image, eoi."""
    vocab, g = policy.vocab, policy.sampling.guidance_scale
    image = [vocab.mask_id if m else vocab.image_offset + c for c, m in zip(codes, masked, strict=True)]
    logits = []
    for text in (prompt, ""):
        said = vocab.encode(text)[: 13 - 3]
        block = [vocab.id("<|t2i|>"), vocab.id(END), *said, vocab.id(END)]
        ids = [vocab.id(PAD)] * (13 - len(block)) + block + [vocab.id("<|soi|>"), *image, vocab.id("<|eoi|>")]
        read = whole_logits(policy, ids, omni_mask(ids, vocab.id(PAD), range(13, len(ids))))
        logits.append(read[14:-1, vocab.image_offset : vocab.mask_id])
    return ((1 + g) * logits[0] - g * logits[1]).log_softmax(-1)


def naive_batch(policy: ShowO, omni_mask: OmniMask, prompts: list[str], codes: Tensor, masked: Tensor) -> Tensor:
    rows = zip(prompts, codes.tolist(), masked.tolist(), strict=True)
    return torch.stack([naive_guided(policy, omni_mask, *row) for row in rows])


def some_state(policy: ShowO, uniforms: Uniforms) -> tuple[Tensor, Tensor]:
    """Codes [4 16] and their masks: nearly all, half, half, none."""
    codes = (uniforms(4, 16, seed=3) * 16).long()
    return codes, uniforms(4, 16, seed=4) < torch.tensor([0.95, 0.5, 0.5, 0.0])[:, None]


@pytest.mark.parametrize("guidance_scale", [0.0, 2.0, 5.0])
def test_guided_log_probabilities(
    make_policy: MakePolicy, omni_mask: OmniMask, uniforms: Uniforms, guidance_scale: float
) -> None:
    policy = make_policy(guidance_scale=guidance_scale)
    policy.module.double()
    codes, masked = some_state(policy, uniforms)
    with torch.no_grad():
        everywhere = torch.ones_like(masked)
        found = policy.image_logp(PROMPTS, codes, masked, everywhere).view(4, 16, 16)
        at_masked = policy.image_logp(PROMPTS, codes, masked, masked)
        expected = naive_batch(policy, omni_mask, PROMPTS, codes, masked)
        trimmed = policy.image_logp(PROMPTS[1:3], codes[1:3], masked[1:3], everywhere[1:3]).view(2, 16, 16)
    assert expected.std() > 0.5
    torch.testing.assert_close(found, expected, atol=1e-12, rtol=0)
    torch.testing.assert_close(at_masked, expected[masked], atol=1e-12, rtol=0)
    torch.testing.assert_close(trimmed, expected[1:3], atol=1e-12, rtol=0)  # without the columns that are all padding
    torch.testing.assert_close(found.exp().sum(-1), torch.ones(4, 16).double(), atol=1e-12, rtol=0)


@pytest.mark.parametrize("prompts", [["cat"] * 3, ["cat", PROMPTS[0], "cat"]])
@pytest.mark.parametrize("fraction", [1.0, 0.5])
def test_equal_prompts(
    make_policy: MakePolicy, omni_mask: OmniMask, uniforms: Uniforms, prompts: list[str], fraction: float
) -> None:
    """Read once where that is the same: texts always, images while every position is masked."""
    policy = make_policy()
    policy.module.double()
    codes, masked = (uniforms(3, 16, seed=3) * 16).long(), uniforms(3, 16, seed=4) <= fraction
    with torch.no_grad():
        found = policy.image_logp(prompts, codes, masked, masked)
        expected = naive_batch(policy, omni_mask, prompts, codes, masked)[masked]
    torch.testing.assert_close(found, expected, atol=1e-12, rtol=0)


def test_masked_log_probabilities_are_unguided_and_row_major(
    policy: ShowO, omni_mask: OmniMask, uniforms: Uniforms
) -> None:
    """Show-o's training objective: the true codes at the masked positions, in the order of the images."""
    policy.module.double()
    codes, masked = some_state(policy, uniforms)
    with torch.no_grad():
        found = policy.masked_logp(PROMPTS, codes, masked)
        policy.sampling = replace(policy.sampling, guidance_scale=0.0)
        naive = naive_batch(policy, omni_mask, PROMPTS, codes, masked)
    expected = [naive[b, n, codes[b, n]] for b in range(4) for n in range(16) if masked[b, n]]
    torch.testing.assert_close(found, torch.stack(expected), atol=1e-12, rtol=0)


def test_a_whole_image(make_policy: MakePolicy, omni_mask: OmniMask, uniforms: Uniforms) -> None:
    """The trajectory is that of the sampler over naive guided log-probabilities."""
    policy = make_policy(temperature=3.0)
    policy.module.double()
    uniform = uniforms(4, 5, 2, 16)
    found = policy.denoise(policy.begin(PROMPTS, uniform), 5)
    with torch.no_grad():
        expected = maskgit.denoise(
            maskgit.begin(uniform), lambda c, m, s: naive_batch(policy, omni_mask, PROMPTS, c, m)[s], 5, 3.0
        )
    for b, segment in enumerate(found):
        assert segment.prompt == PROMPTS[b]
        assert torch.equal(segment.codes_TN, expected.codes_BTN[b])
        assert torch.equal(segment.masked_TN, expected.masked_BTN[b])
        assert torch.equal(segment.remasked_N, expected.remasked_BN[b])
        assert torch.equal(segment.uniform_T2N, uniform[b])
        torch.testing.assert_close(segment.logp_TN, expected.logp_BTN[b], atol=2e-5, rtol=0)


def naive_answer(policy: ShowO, query: Query, uniform: list[float]) -> tuple[list[int], list[float]]:
    """The whole sequence is read again for every token; inversion by a running sum."""
    vocab = policy.vocab
    codes = policy.vq.encode([query.image if query.image is not None else np.zeros((8, 8, 3), np.uint8)])[0]
    ids, end_of_image = vocab.question(query.text, codes).tolist(), 18
    said: list[int] = []
    logps: list[float] = []
    for u in uniform:
        mask = [[j <= end_of_image or j <= i for j in range(len(ids))] for i in range(len(ids))]
        logp = whole_logits(policy, ids, mask)[-1, : vocab.image_offset].log_softmax(-1)
        reached = np.cumsum(np.exp(logp.numpy()))
        token = int(np.argmax(reached >= u * reached[-1]))
        ids.append(token)
        said.append(token)
        logps.append(float(logp[token]))
        if token == vocab.id(END):
            break
    return said, logps


@pytest.mark.parametrize("sharpness", [1.0, 30.0])
def test_answers(policy: ShowO, uniforms: Uniforms, image: Any, sharpness: float) -> None:
    """Sharpened 30 times every draw is the greedy one."""
    policy.module.double()
    policy.phi.lm_head.weight.data *= sharpness
    policy.phi.lm_head.bias.data *= sharpness
    lengths = []
    for query in (Query("what color is <bo>?", image), Query("has <cy> a hat?")):
        uniform = uniforms(6, 9, seed=5)
        found = policy.reason(query, uniform)
        for segment, row in zip(found, uniform.tolist(), strict=True):
            with torch.no_grad():
                ids, logps = naive_answer(policy, query, row)
            assert segment.query is query
            assert segment.ids_S.tolist() == ids
            assert segment.text == policy.vocab.decode(ids)
            np.testing.assert_allclose(segment.logp_S.numpy(), logps, atol=1e-5)
            lengths.append(len(ids))
    if sharpness == 1.0:
        assert min(lengths) < max(lengths) == 9  # some end early, some are cut
    else:
        assert all(a == b for a, b in pairwise(lengths[:6]))


def test_an_answer_of_a_hundred_tokens(policy: ShowO, uniforms: Uniforms, image: Any) -> None:
    """Show-o #49: the public code's mask does not grow with its answer. Every shorter answer is a part of this one."""
    policy.module.double()
    policy.phi.lm_head.bias.data[policy.vocab.id(END)] = -1e4  # it never ends
    query, uniform = Query("what color is <bo>?", image), uniforms(1, 100, seed=6)
    (segment,) = policy.reason(query, uniform)
    with torch.no_grad():
        ids, logps = naive_answer(policy, query, uniform[0].tolist())
    assert len(ids) == 100
    assert segment.ids_S.tolist() == ids
    np.testing.assert_allclose(segment.logp_S.numpy(), logps, atol=1e-5)


def chosen(logp: Tensor, segments: list[ImageSegment], step: int) -> Tensor:
    """Sum over the decisions of one step, weighted unevenly."""
    codes, masked = (torch.stack([getattr(s, name)[step] for s in segments]) for name in ("codes_TN", "masked_TN"))
    weight = torch.linspace(0.5, 1.5, codes.numel(), dtype=torch.float64).view(codes.shape)
    return (logp.gather(-1, codes[..., None]).squeeze(-1) * masked * weight).sum()


@pytest.mark.parametrize(
    ("prompts", "step"), [(PROMPTS[:2], 2), (PROMPTS[:2], 0), (["cat", "cat"], 2), (["cat"] * 2, 0)]
)
def test_the_gradient_flows_through_both_branches(
    policy: ShowO, omni_mask: OmniMask, uniforms: Uniforms, prompts: list[str], step: int
) -> None:
    """Against finite differences of the naive float64 sequence, along 3 directions."""
    policy.module.double()
    segments = policy.denoise(policy.begin(prompts, uniforms(2, 4, 2, 16)), 4)
    held = torch.stack([s.codes_TN[max(step - 1, 0)] for s in segments])
    masked = torch.stack([s.masked_TN[step] for s in segments])

    new, _, mask = policy.logprobs(segments, step)
    assert torch.equal(mask, masked)
    weight = torch.linspace(0.5, 1.5, mask.numel(), dtype=torch.float64).view(mask.shape)
    (new * mask * weight).sum().backward()  # type: ignore[no-untyped-call]
    parameters = list(policy.module.parameters())
    gradient = [torch.zeros_like(p) if p.grad is None else p.grad for p in parameters]

    @torch.no_grad()
    def value() -> float:
        return float(chosen(naive_batch(policy, omni_mask, prompts, held, masked), segments, step))

    def slope(direction: list[Tensor], small: float = 1e-5) -> float:
        for p, d in zip(parameters, direction, strict=True):
            p.data += small * d
        high = value()
        for p, d in zip(parameters, direction, strict=True):
            p.data -= 2 * small * d
        low = value()
        for p, d in zip(parameters, direction, strict=True):
            p.data += small * d
        return (high - low) / (2 * small)

    for seed in range(3):
        generator = torch.Generator().manual_seed(seed)
        direction = [torch.randn(p.shape, generator=generator, dtype=torch.float64) for p in parameters]
        along = sum(float((g * d).sum()) for g, d in zip(gradient, direction, strict=True))
        assert along == pytest.approx(slope(direction), rel=1e-4, abs=1e-3)
