"""Control tokens within a text are read as text by every text tower; other texts get the library's own ids."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import open_clip as library
import pytest
from numpy.typing import NDArray
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, trainers
from transformers import BertTokenizer, ByT5Tokenizer, CLIPTokenizer, RobertaTokenizer, T5Tokenizer

from services.models import blip2, open_clip, text_encoder, tokens, transformers_clip, vlm

CORPUS = [
    "a red ball and a blue cat",
    "a dog wearing a hat",
    "[ SEP ] [ CLS ] < / s > < pad > < unk > < | endoftext | >",
]
ORDINARY = ["a red ball", "a dog (wearing a hat) [sic] <3", "a < b > c", ""]
TEXT = "a red cat {} a hat below a dog"


def trained(model: Any, pre_tokenizer: Any, trainer: Any, normalizer: Any = None) -> tuple[Any, Any]:
    """Vocabulary and merges that a trainer finds in the corpus."""
    tokenizer = Tokenizer(model)
    tokenizer.pre_tokenizer = pre_tokenizer
    if normalizer is not None:
        tokenizer.normalizer = normalizer
    tokenizer.train_from_iterator(CORPUS, trainer)
    made = json.loads(tokenizer.to_str())["model"]
    return made["vocab"], [tuple(pair) for pair in made.get("merges", ())]


def bert() -> Any:
    trainer = trainers.WordPieceTrainer(special_tokens=["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"])
    vocabulary, _ = trained(
        models.WordPiece(unk_token="[UNK]"), pre_tokenizers.BertPreTokenizer(), trainer, normalizers.BertNormalizer()
    )
    return BertTokenizer(vocab=vocabulary)


def clip() -> Any:
    special = ["<|startoftext|>", "<|endoftext|>"]
    trainer = trainers.BpeTrainer(special_tokens=special, end_of_word_suffix="</w>")
    vocabulary, merges = trained(models.BPE(end_of_word_suffix="</w>"), pre_tokenizers.Whitespace(), trainer)
    return CLIPTokenizer(vocab=vocabulary, merges=merges)


def roberta() -> Any:
    special = ["<s>", "<pad>", "</s>", "<unk>", "<mask>"]
    trainer = trainers.BpeTrainer(special_tokens=special, initial_alphabet=pre_tokenizers.ByteLevel.alphabet())
    vocabulary, merges = trained(models.BPE(), pre_tokenizers.ByteLevel(add_prefix_space=False), trainer)
    return RobertaTokenizer(vocab=vocabulary, merges=merges)


def t5() -> Any:
    trainer = trainers.UnigramTrainer(special_tokens=["<pad>", "</s>", "<unk>"], unk_token="<unk>", vocab_size=90)
    vocabulary, _ = trained(models.Unigram(), pre_tokenizers.Metaspace(), trainer)
    return T5Tokenizer(vocab=[(piece, score) for piece, score in vocabulary], extra_ids=2)


TOKENIZERS: dict[str, Callable[[], Any]] = {
    "bert": bert,
    "clip": clip,
    "roberta": roberta,
    "t5": t5,
    "byt5": ByT5Tokenizer,
}


@pytest.fixture(scope="module", params=TOKENIZERS)
def tokenizer(request: pytest.FixtureRequest) -> Any:
    return TOKENIZERS[request.param]()


def test_tokenizers_are_fast_and_slow() -> None:
    assert {make().is_fast for make in (bert, ByT5Tokenizer)} == {True, False}


def test_ordinary_texts_get_the_librarys_ids(tokenizer: Any) -> None:
    options: dict[str, Any] = {"padding": True, "truncation": True, "max_length": 12, "return_tensors": "pt"}
    ours, theirs = tokens.TextTokenizer(tokenizer)(ORDINARY, **options), tokenizer(ORDINARY, **options)
    assert ours.keys() == theirs.keys()
    for key, expected in theirs.items():
        assert ours[key].dtype == expected.dtype
        assert ours[key].tolist() == expected.tolist(), key


@pytest.mark.parametrize("form", ["a red ball {} a blue cat", "a red ball{}a blue cat", "{}", "{}{}"])
def test_no_control_token_comes_from_a_text(tokenizer: Any, form: str) -> None:
    control = {*tokenizer.all_special_ids} - {tokenizer.unk_token_id}
    ours = tokens.TextTokenizer(tokenizer)
    for string in tokenizer.all_special_tokens:
        (ids,) = ours([form.replace("{}", string)], add_special_tokens=False)["input_ids"]
        assert ids
        assert not control & {*ids}, string
        assert (
            string == tokenizer.unk_token
            or not form.strip("{}")
            or control & {*tokenizer.encode(string, add_special_tokens=False)}
        )


def test_the_models_own_tokens_stay(tokenizer: Any) -> None:
    ours = tokens.TextTokenizer(tokenizer)
    ids, shorter = ours(["a red ball </s> [SEP]", "a"], padding=True)["input_ids"]
    assert ids[-1] == tokenizer.encode("a")[-1], "what closes a text"
    assert shorter[-1] == tokenizer.pad_token_id
    assert tokenizer("a red ball")["input_ids"] == ours(["a red ball"])["input_ids"][0], "and nothing is left behind"


@pytest.mark.parametrize("string", ["<end_of_text>", "<start_of_text>", "<END_OF_TEXT>", "&lt;end_of_text&gt;"])
def test_clips_own_byte_pairs(string: str) -> None:
    theirs = library.get_tokenizer("ViT-B-32")
    ours = tokens.of_open_clip(library.get_tokenizer("ViT-B-32"))
    assert ours(ORDINARY).tolist() == theirs(ORDINARY).tolist()
    ends = {theirs.sot_token_id, theirs.eot_token_id}
    assert ends & {*theirs.encode(f"a ball {string} a cat")}
    ids = ours.encode(f"a ball {string} a cat")
    assert not ends & {*ids}
    assert ours.decode(ids).split()[:2] == ["a", "ball"]
    assert ours.decode(ids).split()[-2:] == ["a", "cat"]


FAMILIES: dict[str, Callable[[Any], Callable[[Sequence[str]], NDArray[Any]]]] = {
    "text": lambda t: lambda texts: text_encoder.load(t.text, "cpu").encode(texts, "mean"),
    "blip2": lambda t: blip2.load(t.blip2, "cpu").text_features,
    "clip": lambda t: transformers_clip.load(t.clip, "cpu").text_features,
    "open_clip": lambda t: open_clip.load(t.open_clip, None, "cpu").text_features,
}


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("string", ["[SEP]", "[CLS]", "[PAD]"])
def test_a_text_counts_beyond_a_control_token(tiny_models: Any, family: str, string: str) -> None:
    """The text with the string against one with words that the vocabulary lacks in its place, as the string's parts
    are, and against the part before it."""
    embed = FAMILIES[family](tiny_models)
    found, expected, before = embed([TEXT.format(string), TEXT.format("( nil )"), TEXT.partition(" {}")[0]])
    assert found == pytest.approx(expected, abs=1e-5)
    assert not np.allclose(found, before, atol=1e-3)


@pytest.mark.parametrize("family", ["qwen", "llava"])
def test_a_vision_language_model_reads_them_as_text(tiny_models: Any, family: str, photographs: dict[str, Any]) -> None:
    model = vlm.load(getattr(tiny_models, family), "cpu")
    control = model._tokenizer.all_special_tokens
    strings = ["<|im_end|>", "<|image_pad|>", "<image>", "<|endoftext|>"]
    for text in [TEXT.format(string) for string in strings]:
        (found,) = model.log_probs([photographs["cat"]], [text], "what is it")
        assert not {*found.tokens} & {*control} - {"[UNK]"}
        assert len(found.tokens) > len(TEXT.split())
