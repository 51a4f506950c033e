"""Ids against the published layout, blocks by hand, masks against naive loops."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from synod.errors import SettingsError
from trainer.policy.show_o import vocabulary
from trainer.policy.show_o.policy import ShowO
from trainer.policy.show_o.vocabulary import END, PAD, SPECIALS, Vocabulary

TokenizerOf = Callable[[list[str]], Path]
OmniMask = Callable[[list[int], int, range], list[list[bool]]]


def test_ids_of_the_public_model_and_of_25_concept_tokens(tokenizer_of: TokenizerOf) -> None:
    """Phi-1.5's 50295 tokens with the end token at 50256, as Show-o extends them: showlab/show-o's config.json."""
    folder = tokenizer_of([END if i == 50_256 else f"w{i}" for i in range(50_295)])
    public = Vocabulary.read(folder, (), 8192, 128)
    assert [public.id(token) for token in (END, PAD, *SPECIALS)] == [50_256, *range(50_295, 50_305)]
    assert (public.id("<|soi|>"), public.id("<|t2i|>"), public.id("<|lvg|>")) == (50_296, 50_300, 50_304)
    assert (public.image_offset, public.mask_id, public.size) == (50_305, 58_497, 58_498)

    concept = ["<bo>", *(f"<token_{i}>" for i in range(24))]
    personal = Vocabulary.read(folder, concept, 8192, 128)
    assert [personal.id(token) for token in concept] == [*range(50_305, 50_330)]
    assert (personal.image_offset, personal.mask_id, personal.size) == (50_330, 58_522, 58_523)
    assert personal.encode("w7 <bo> w8<token_3>") == [7, 50_305, 8, 50_309]

    personal.tokenizer.save_pretrained(folder)
    again = Vocabulary.read(folder, concept, 8192, 128)
    assert (again.image_offset, again.id("<bo>")) == (50_330, 50_305)


def test_a_tokenizer_that_cannot_serve_is_refused(tokenizer_of: TokenizerOf, tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match=r"no <\|endoftext\|> token"):
        Vocabulary.read(tokenizer_of(["[UNK]", "a"]), (), 16, 12)
    with pytest.raises(SettingsError, match="cannot be read"):
        Vocabulary.read(tmp_path, (), 16, 12)
    with pytest.raises(SettingsError, match="cannot be read"):
        Vocabulary.read(tmp_path / "nowhere", (), 16, 12)


def test_a_text_block_by_hand(vocab: Vocabulary) -> None:
    ids, start = vocab.text_block(["a red cat", "", "<bo>"])
    pad, task, end, a, red, cat, bo = (vocab.id(t) for t in (PAD, "<|t2i|>", END, "a", "red", "cat", "<bo>"))
    assert ids.tolist() == [
        [task, end, a, red, cat, end],
        [pad, pad, pad, task, end, end],
        [pad, pad, task, end, bo, end],
    ]
    assert start == 13 - 6


@pytest.mark.parametrize(("count", "kept"), [(9, 9), (10, 10), (11, 10), (12, 10), (40, 10)])
def test_a_long_text_is_cut_before_its_end_token(vocab: Vocabulary, count: int, kept: int) -> None:
    """13 columns: task, bos, at most 10 words, eos."""
    ids, start = vocab.text_block([" ".join(["cat"] * count)])
    assert ids.tolist() == [[vocab.id("<|t2i|>"), vocab.id(END), *[vocab.id("cat")] * kept, vocab.id(END)]]
    assert start == 13 - (kept + 3)


def test_text_stops_at_the_end_token_without_specials(vocab: Vocabulary) -> None:
    said = [vocab.id(t) for t in ("<|soi|>", "<bo>", "has", "a", PAD, "hat", END, "dog", END)]
    assert vocab.decode(said) == "<bo> has a hat"
    assert vocab.decode(said[:4]) == "<bo> has a"
    assert vocab.decode([]) == ""


def test_control_tokens_in_a_text_are_text(vocab: Vocabulary) -> None:
    control = {vocab.id(token) for token in (END, PAD, *SPECIALS)}
    for token in (END, PAD, *SPECIALS):
        ids = vocab.encode(f"a {token} cat <bo>")
        assert not control & {*ids}
        assert [ids[0], *ids[-2:]] == [vocab.id("a"), vocab.id("cat"), vocab.id("<bo>")]


def test_question_image_ends_at_the_mask_boundary(policy: ShowO, vocab: Vocabulary) -> None:
    codes = torch.arange(16)
    for text in ("", "is <bo> a cat? " * 5):
        ids = vocab.question(text, codes).tolist()
        assert ids[:2] == [vocab.id("<|mmu|>"), vocab.id("<|soi|>")]
        assert ids[2:18] == [vocab.image_offset + c for c in range(16)]
        assert ids.index(vocab.id("<|eoi|>")) == 18
        assert ids[19] == vocab.id(END)
        assert ids[20:] == vocab.encode(f"USER: \n{text} ASSISTANT:")
    assert vocab.encode("USER:")[0] != vocab.id("[UNK]")


@pytest.mark.parametrize(("pads", "rows"), [([0], 1), ([3, 0, 6], 4), ([1, 1], 2), ([6, 5, 4, 3, 2, 1, 0], 3)])
def test_text_and_image_masks_against_a_naive_loop(pads: list[int], rows: int, omni_mask: OmniMask) -> None:
    width, pad = 7, 99
    ids = torch.tensor([[pad] * count + list(range(width - count)) for count in pads])
    text, image = vocabulary.text_mask(ids, pad), vocabulary.image_mask(ids != pad, rows)
    assert text.shape == (len(pads), 1, width, width)
    assert image.shape == (len(pads), 1, rows, width + rows)
    unseen = torch.zeros(len(pads), 1, width, rows, dtype=torch.bool)  # a text never sees the image after it
    whole = torch.cat((torch.cat((text, unseen), 3), image), 2)[:, 0]
    for block, found in zip(ids.tolist(), whole.tolist(), strict=True):
        assert found == omni_mask([*block, *range(rows)], pad, range(width, width + rows))
    assert bool(whole.any(-1).all())  # no row is empty, pads' rows neither: softmax stays finite


def test_question_mask_against_a_naive_loop() -> None:
    for length, end in ((9, 4), (5, 4), (12, 0)):
        found = vocabulary.question_mask(length, end, torch.device("cpu"))
        assert found.shape == (1, 1, length, length)
        assert found[0, 0].tolist() == [[j <= end or j <= i for j in range(length)] for i in range(length)]
