"""Show-o as published: config.json, parts, tokenizer, keys, shards, and what a load takes."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from synod.errors import SettingsError
from tests.unit.trainer.tiny_show_o import SHAPE, WORDS
from trainer.policy.show_o import loading
from trainer.policy.show_o.config import ShowOConfig
from trainer.policy.show_o.loading import Parts, load
from trainer.policy.show_o.magvit import Magvit, MagvitConfig
from trainer.policy.show_o.phi import PhiConfig
from trainer.policy.show_o.policy import Wrapped
from trainer.policy.show_o.vocabulary import END, PAD, SPECIALS, Vocabulary
from trainer.policy.weights import parameters_on_meta

PUBLIC = {
    "_class_name": "Showo", "_diffusers_version": "0.30.1", "codebook_size": 8192, "llm_vocab_size": 50295,
    "llm_model_path": "microsoft/phi-1_5", "load_from_showo": True, "mask_token_id": 58497, "num_vq_tokens": 1024,
    "vocab_size": 58498, "w_clip_vit": False,
}  # fmt: skip
Hub = Callable[..., list[str]]
Write = Callable[..., Wrapped]
VARIANTS = {"show-o": 256, "show-o-512x512": 1024, "show-o-512x512-wo-llava-tuning": 1024}


def write_config(directory: Path, **changes: Any) -> Path:
    directory.mkdir(parents=True, exist_ok=True)
    (directory / "config.json").write_text(json.dumps({**PUBLIC, **changes}))
    return directory


@pytest.fixture(scope="session")
def phi_tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A byte-level BPE in Phi-1.5's files: 256 bytes, 50,000 merges, the end token at 50256, 38 runs of blanks."""
    from tokenizers.pre_tokenizers import ByteLevel
    from transformers import CodeGenTokenizer

    symbols = sorted(ByteLevel.alphabet())
    merges = [(a, b) for a in symbols for b in symbols][:50_000]
    tokens = [*symbols, *map("".join, merges), END]
    folder = tmp_path_factory.mktemp("phi-1_5")
    tokenizer = CodeGenTokenizer({token: i for i, token in enumerate(tokens)}, merges)
    tokenizer.add_tokens([" " * count for count in range(31, 1, -1)] + ["\t" * count for count in range(9, 1, -1)])
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture
def hub(
    tmp_path: Path, tokenizer_of: Callable[[list[str]], Path], vq: Magvit, monkeypatch: pytest.MonkeyPatch
) -> Callable[..., list[str]]:
    """`hub()` serves tmp_path / "show-o", a small image tokenizer and WORDS as the public ones; it lists downloads."""
    calls: list[str] = []

    def serve(tokenizer: Path | None = None) -> list[str]:
        vq.save(tmp_path / "magvitv2")
        folders = {
            "microsoft/phi-1_5": tokenizer or tokenizer_of([*WORDS, END]), "showlab/magvitv2": tmp_path / "magvitv2",
        }  # fmt: skip

        def download(name: str, *, revision: str | None, allow_patterns: list[str]) -> str:
            weights = "weights" if allow_patterns[-1] in ("*.safetensors", "*.bin", "*.pt") else "configs"
            calls.append(f"{name}@{revision} {weights}")
            return str(folders.get(name, tmp_path / "show-o"))

        monkeypatch.setattr("huggingface_hub.snapshot_download", download)
        return calls

    return serve


@pytest.fixture
def write_published(tmp_path: Path, vq: Magvit) -> Callable[..., Wrapped]:
    """`write_published(llm_vocab_size)`: a small model in the published layout (pytorch_model.bin)."""

    def write(llm_vocab_size: int = len(WORDS) + 1, **changes: Any) -> Wrapped:
        codes = vq.config.codebook_size
        size = llm_vocab_size + 10 + codes + 1
        llm = {**SHAPE, "hidden_size": 16, "num_attention_heads": 2, "intermediate_size": 32}
        sizes = {"codebook_size": codes, "vocab_size": size, "mask_token_id": size - 1, "num_vq_tokens": 16}
        write_config(tmp_path / "show-o", llm=llm, llm_vocab_size=llm_vocab_size, **(sizes | changes))
        torch.manual_seed(0)
        module = Wrapped(PhiConfig(size, **llm))
        torch.save(module.state_dict(), tmp_path / "show-o/pytorch_model.bin")
        return module

    return write


# -- config.json ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("name", "tokens"), VARIANTS.items())
def test_published_configs(tmp_path: Path, name: str, tokens: int) -> None:
    config = ShowOConfig.read(write_config(tmp_path / name, num_vq_tokens=tokens))
    assert config == ShowOConfig(58_498, 8192, tokens, 128, llm_vocab_size=50_295, mask_token_id=58_497)
    assert config.phi == PhiConfig(58_498, 2048, 8192, 24, 32, 0.5, 10_000.0, 1e-5)


@pytest.mark.parametrize("name", ["show-o-w-clip-vit", "show-o-512x512-w-clip-vit"])
def test_clip_vit_variants_are_refused_by_name(tmp_path: Path, name: str) -> None:
    directory = write_config(tmp_path / name, w_clip_vit=True)
    with pytest.raises(SettingsError, match=rf"{name}: a CLIP-ViT variant .* such as showlab/show-o-512x512"):
        load(directory)  # there are no weights: config.json decides


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"vocab_size": "58498"}, r"vocab_size: Input should be a valid integer \(given: '58498'\)"),
        ({"codebook_size": True}, r"codebook_size: Input should be a valid integer"),
        ({"codebook_size": 8192.0}, r"codebook_size: Input should be a valid integer"),
        ({"w_clip_vit": "false"}, r"w_clip_vit: Input should be a valid boolean"),
        ({"num_vq_tokens": 1000}, r"num_vq_tokens is 1000; a square image"),
        ({"num_vq_tokens": -4}, r"num_vq_tokens is -4"),
        ({"num_vq_tokens": 0}, r"num_vq_tokens is 0"),
        ({"mask_token_id": 58_496}, r"mask_token_id is 58496, but the last of vocab_size 58498 tokens is 58497"),
        ({"llm_vocab_size": 50_257}, r"llm_vocab_size 50257 and 8203 more .* make 58460"),
        ({"concept_tokens": ["<bo>"]}, r"1 concept tokens, .* make 58499"),
        ({"concept_tokens": "<bo>"}, r"concept_tokens: Input should be a valid"),
        ({"llm": {"hidden_size": "64"}}, r"config\.json, llm: hidden_size: Input should be a valid integer"),
        ({"llm": {"layers": 2}}, r"does not describe a Show-o .*layers"),
        ({"_class_name": "MAGVITv2"}, r"describes a 'MAGVITv2', expected 'Showo'"),
    ],
)  # fmt: skip
def test_a_config_that_contradicts_itself(tmp_path: Path, changes: dict[str, Any], message: str) -> None:
    with pytest.raises(SettingsError, match=message):
        ShowOConfig.read(write_config(tmp_path, **changes))


# -- tokenizer --------------------------------------------------------------------------------------------------------


def test_ids_with_phis_tokenizer(phi_tokenizer: Path) -> None:
    vocab = Vocabulary.read(phi_tokenizer, (), 8192, 128)
    assert [vocab.id(token) for token in (END, " " * 31, "\t\t", PAD, *SPECIALS)] == [
        *(50_256, 50_257, 50_294),
        *range(50_295, 50_305),
    ]
    assert (vocab.image_offset, vocab.mask_id, vocab.size) == (50_305, 58_497, 58_498)
    concept = ["<bo>", *(f"<token_{i}>" for i in range(24))]
    personal = Vocabulary.read(phi_tokenizer, concept, 8192, 128)
    assert (personal.image_offset, personal.mask_id, personal.size) == (50_330, 58_522, 58_523)
    assert personal.encode("<bo>") == [50_305]
    ids, start = personal.text_block(["a photo of <bo> in a red hat"])
    assert ids.shape[1] + start == 129


@pytest.mark.parametrize("text", ["It isn't a cat , is it ?", "<bo> 's hat . I 'm here", "do n't !", "a  b"])
def test_bpe_text_comes_back_as_it_was(phi_tokenizer: Path, text: str) -> None:
    """The clean-up that joins words and punctuation would change these; transformers ignores it, with a warning."""
    vocab = Vocabulary.read(phi_tokenizer, ["<bo>"], 8192, 128)
    vocab.tokenizer.clean_up_tokenization_spaces_for_bpe_even_though_it_will_corrupt_output = True
    assert vocab.decode(vocab.encode(text)) == text


def test_words_and_punctuation_are_joined(vocab: Vocabulary) -> None:
    assert vocab.decode(vocab.encode("what color is <bo>?")) == "what color is <bo>?"


@pytest.mark.parametrize(
    ("concepts", "message"),
    [
        (["bo"], "concept 'bo' is not of the form <name>"),
        (["<bo"], "'<bo' is not of the form"),
        (["<bo>s"], "'<bo>s' is not of the form"),
        (["<a b>"], "'<a b>' is not of the form"),
        (["<|soi|>"], r"'<\|soi\|>' is not of the form"),
        (["[PAD]"], r"'\[PAD\]' is not of the form"),
        (["<bo>", "<cy>", "<bo>"], "concept '<bo>' is not a new token"),
        (["<unk>"], "concept '<unk>' is not a new token: its id is 0, expected 13"),
    ],
)
def test_a_concept_is_a_new_token(
    tokenizer_of: Callable[[list[str]], Path], concepts: Sequence[str], message: str
) -> None:
    folder = tokenizer_of(["<unk>", "bo", "is", END])
    with pytest.raises(SettingsError, match=message):
        Vocabulary.read(folder, concepts, 16, 12)


# -- parts ------------------------------------------------------------------------------------------------------------


def test_a_hub_id_is_all_that_load_needs(hub: Hub, write_published: Write, phi_tokenizer: Path, vq: Magvit) -> None:
    module = write_published(50_295)
    calls = hub(phi_tokenizer)
    policy = load("showlab/show-o-512x512@c0ffee")
    state, stored = policy.module.state_dict(), module.state_dict()
    assert list(state) == list(stored)
    assert all(torch.equal(state[key], stored[key]) for key in stored)
    assert policy.vocab.encode("<bo>") != [policy.vocab.image_offset]
    assert all(
        torch.equal(a, b) for a, b in zip(policy.vq.state_dict().values(), vq.state_dict().values(), strict=True)
    )
    assert calls[0] == "showlab/show-o-512x512@c0ffee configs"
    assert {call.partition(" ")[0] for call in calls} == {
        "showlab/show-o-512x512@c0ffee", "microsoft/phi-1_5@None", "showlab/magvitv2@None",
    }  # fmt: skip
    assert "microsoft/phi-1_5@None weights" not in calls


def test_weights_wait_for_a_config_that_fits(hub: Hub, tmp_path: Path) -> None:
    write_config(tmp_path / "show-o", w_clip_vit=True)
    calls = hub()
    with pytest.raises(SettingsError, match="policy showlab/show-o-w-clip-vit: a CLIP-ViT variant"):
        load("showlab/show-o-w-clip-vit")
    assert calls == ["showlab/show-o-w-clip-vit@None configs"]


def test_given_and_included_image_tokenizers_come_first(tmp_path: Path) -> None:
    directory = write_config(tmp_path / "show-o")
    assert Parts.find(directory).vq == loading.PUBLIC_VQ == "showlab/magvitv2"
    assert Parts.find(directory).tokenizer == "microsoft/phi-1_5"
    (directory / "vq").mkdir()
    assert Parts.find(directory).vq is None
    assert Parts.find(directory, "org/own@v2").vq == "org/own@v2"
    with pytest.raises(SettingsError, match=r"has no tokenizer_config\.json, and its config\.json no llm_model_path"):
        Parts.find(write_config(directory, llm_model_path=""))
    (directory / "tokenizer_config.json").write_text("{}")
    assert Parts.find(directory).tokenizer is None
    assert [source.name for source in Parts.find(directory).sources()] == [str(directory)]


def test_a_tokenizer_of_another_length_is_refused(
    hub: Hub, write_published: Write, tokenizer_of: Callable[[list[str]], Path], tmp_path: Path
) -> None:
    other = str(tokenizer_of([END, "a"]))
    write_published(llm_model_path=other)
    hub()
    with pytest.raises(SettingsError, match=r"tokenizer 12 \+ codes 16 \+ mask 1 = 29, but config.json"):
        load("showlab/show-o-512x512")


def test_a_concept_without_a_token_is_refused(hub: Hub, write_published: Write) -> None:
    """Before the weights and the image tokenizer are read: a published model has no concepts."""
    write_published()
    calls = hub()
    message = r"show-o-512x512 has no token for 2 of the concepts, <bo>, <ada>: it would read each as several"
    remedies = r".*`synod personalize`.*\[trainer\.policy\] concepts.*`synod evaluate --concepts`"
    for read in (load, lambda model, concepts: loading.check(Parts.find(model), concepts)):
        with pytest.raises(SettingsError, match=message + remedies):
            read("showlab/show-o-512x512", concepts=["<bo>", "a", "<ada>"])
    assert not [call for call in calls if call.startswith("showlab/magvitv2")]


# -- weights ----------------------------------------------------------------------------------------------------------


def test_keys_of_the_published_models_exactly() -> None:
    """437 and 382 keys of known sizes; nothing is allocated."""
    with parameters_on_meta():
        policy = Wrapped(PhiConfig(58_498))
        tokens = Magvit(MagvitConfig())
    assert {p.device.type for p in policy.parameters()} == {p.device.type for p in tokens.parameters()} == {"meta"}
    assert len(policy.state_dict()) == 437
    assert sum(value.numel() for value in policy.state_dict().values()) == 1_448_176_770
    assert len(tokens.state_dict()) == 382
    assert sum(p.numel() for p in tokens.parameters()) == 95_387_004
    assert tokens.quantize.embedding.dtype == torch.float32
    assert tokens.quantize.power_vals.tolist() == [2**i for i in range(12, -1, -1)]  # a buffer is not on meta


def test_published_layouts_load_strictly(hub: Hub, write_published: Write, tmp_path: Path) -> None:
    """Shards under the index that Show-o's own saver writes, named as diffusers names it."""
    directory = tmp_path / "show-o"
    state = write_published().state_dict()
    (directory / "pytorch_model.bin").unlink()
    hub()
    for suffix, save in (("bin", torch.save), ("safetensors", save_file)):
        shards = [f"pytorch_model-0000{i}-of-00002.{suffix}" for i in (1, 2)]
        weight_map = {key: shards[i % 2] for i, key in enumerate(state)}
        for shard in shards:
            save({key: state[key] for key in state if weight_map[key] == shard}, directory / shard)
        index = directory / f"diffusion_pytorch_model.{suffix}.index.json"
        index.write_text(json.dumps({"metadata": {"total_size": 1}, "weight_map": weight_map}))
        policy = load("showlab/show-o-512x512")
        assert all(torch.equal(value, state[key]) for key, value in policy.module.state_dict().items())
        loading.check(Parts.find("showlab/show-o-512x512"))
        index.unlink()


@pytest.mark.parametrize("key", ["mm_projector.0.weight", "showo.model.rotary.inv_freq"])
def test_other_keys_are_refused(hub: Hub, write_published: Write, tmp_path: Path, key: str) -> None:
    """mm_projector belongs to the CLIP-ViT variants alone."""
    state = write_published().state_dict()
    torch.save({**state, key: torch.zeros(2, 2)}, tmp_path / "show-o/pytorch_model.bin")
    hub()
    for read in (lambda: load("showlab/show-o"), lambda: loading.check(Parts.find("showlab/show-o"))):
        with pytest.raises(SettingsError, match=f"has unknown keys {key}"):
            read()


@pytest.mark.parametrize("stored", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, None])
def test_weights_have_the_type_asked_for(
    hub: Hub, write_published: Write, tmp_path: Path, stored: torch.dtype, dtype: torch.dtype | None
) -> None:
    module = write_published().to(stored)
    torch.save(module.state_dict(), tmp_path / "show-o/pytorch_model.bin")
    hub()
    policy = load("showlab/show-o", dtype=dtype)
    for key, value in policy.module.state_dict().items():
        assert value.dtype == (dtype or stored)
        assert torch.equal(value, module.state_dict()[key].to(dtype or stored))
    assert all(parameter.requires_grad and parameter.is_leaf for parameter in policy.module.parameters())
    assert policy.vq.encoder.conv_in.weight.dtype == torch.float32


def test_loading_draws_no_random_numbers(hub: Hub, write_published: Write, tmp_path: Path) -> None:
    write_published()
    hub()
    torch.manual_seed(1)
    load("showlab/show-o")
    drawn = torch.rand(3)
    torch.manual_seed(1)
    assert torch.equal(drawn, torch.rand(3))
