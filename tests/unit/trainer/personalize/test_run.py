"""`synod personalize`: three stages in one command, what is done is skipped, and bad input loses nothing."""

from __future__ import annotations

import copy
import json
import re
import shutil
import tomllib
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from synod.errors import SettingsError
from tests.unit.trainer.personalize.tiny_concept import DOT, make_rows, noise, write_concept
from trainer.personalize import initialise, run, stages
from trainer.personalize.command import main
from trainer.personalize.files import load_concept, save_concept, write_public
from trainer.personalize.records import ConceptRecord, Question, load_image
from trainer.personalize.tokens import base_digest
from trainer.policy.show_o.policy import ShowO
from trainer.policy.show_o.vocabulary import Vocabulary
from trainer.report.stages import PHOTOGRAPHS
from trainer.settings.personalize import PersonalizeSettings, load_personalize

TOML = """[trainer.policy]
model = "model"
train = "rows"
concepts = ["not/there/yet"]
[trainer.policy.sampler]
denoising_steps = 4
guidance_scale = 2.0
[personalize]
data = "dot"
run_dir = "run"
prompt = "a photo of {}"
region_prompt = "{} on grass"
tokens = { shared = 3, generation = 2, understanding = 2 }
stage_1 = { epochs = 1, questions = 13 }
stage_2 = { epochs = 1, questions = 13, images = 3 }
stage_3 = { epochs = 1, questions = 13, images = 3 }
"""
Command = Callable[..., int]
ROOT = Path(__file__).parents[4]


@pytest.fixture
def base(make_policy: Callable[..., ShowO]) -> ShowO:
    return make_policy(denoising_steps=4)


@pytest.fixture
def world(tmp_path: Path, base: ShowO, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with config.toml, the concept's folder and the model's."""
    write_concept(tmp_path / "dot")
    base.save(tmp_path / "model")
    (tmp_path / "config.toml").write_text(TOML.replace('"model"', f'"{tmp_path / "model"}"'))
    monkeypatch.setattr(initialise, "IMAGES", 4)
    monkeypatch.setattr(run, "GRID_IMAGES", 4)
    return tmp_path


@pytest.fixture
def personalize(world: Path, monkeypatch: pytest.MonkeyPatch) -> Command:
    return lambda *options: main([str(world / "config.toml"), *options])


def error(capsys: pytest.CaptureFixture[str]) -> str:
    return capsys.readouterr().err


def test_stages_do_not_read_held_out_facts(world: Path) -> None:
    path, said = world / "dot/info.json", list[str]()
    path.write_text(json.dumps({**json.loads(path.read_text()), "extra_info": ["a hat"], "heldout": [True]}))
    concept, _ = run.read_photos(run.only_concept(world / "dot"), said.append, skip_bad=False)
    assert [one.answer for one in concept.conversations] == ["<dot> is red ."]
    assert said == ["1 questions state facts that info.json's heldout holds out: left out"]


def test_three_stages_in_one_command(
    personalize: Command, world: Path, base: ShowO, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert personalize() == 0
    assert "stage 3: " in capsys.readouterr().out
    counts = [(3, 0, 0), (3, 2, 0), (3, 2, 2)]
    found = [load_concept(world / f"run/stage-{number}/concept") for number in (1, 2, 3)]
    for (info, rows), (K, M, N) in zip(found, counts, strict=True):
        assert (info.tokens.shared, info.tokens.generation, info.tokens.understanding) == (K, M, N)
        assert len(rows) == 1 + K + M + N
        assert (info.class_word, info.kind, info.base) == ("dog", "animal", base_digest(base))
    g = slice(4, 6)
    assert torch.equal(found[1][1].embed_RD[g], found[2][1].embed_RD[g])  # stage 3 leaves s and g as they are
    assert not torch.equal(found[0][1].embed_RD[:4], found[1][1].embed_RD[:4])
    for name in ("rows.safetensors", "concept.json"):
        assert (world / "run/concept" / name).read_bytes() == (world / "run/stage-3/concept" / name).read_bytes()
    for number in (1, 2, 3):
        assert load_image(world / f"run/stage-{number}/grid.png").shape == (8, 4 * 8, 3)
    for name in ("region", "drawn"):
        assert len(list((world / "run/stage-3/regions").glob(f"{name}-*.png"))) == 4
    page = (world / "run/report.html").read_text()
    assert page.count("<img") == 6 + 2 * 4  # photographs, the same decoded, class word, three stages; regions
    assert f"ln({base.vocab.codebook_size})" in page

    monkeypatch.setattr(stages, "train_stage", lambda *_: pytest.fail("a stage was trained again"))
    assert personalize() == 0
    assert capsys.readouterr().out.count("is done") == 3
    assert personalize("--stages", "1,2") == 0
    assert load_concept(world / "run/concept")[0].tokens.count == 6
    with (world / "config.toml").open("a") as file:
        file.write("[personalize.stage_9]\n")
    assert personalize() == 1
    assert "personalize.stage_9: unknown key" in error(capsys)


def test_stages_of_other_settings_are_not_mixed(
    personalize: Command, world: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert personalize("--stages", "1") == 0
    text = (world / "config.toml").read_text()
    (world / "config.toml").write_text(text.replace("stage_1 = { epochs = 1", "stage_1 = { epochs = 2"))
    assert personalize("--stages", "1") == 1
    assert "personalize.stage_1.epochs: 1 there, 2 now" in error(capsys)
    (world / "config.toml").write_text(text.replace("stage_2 = { epochs = 1", "stage_2 = { epochs = 2"))
    assert personalize("--stages", "1") == 0  # a later stage's settings do not matter
    (world / "dot/train/0.png").write_bytes((world / "dot/train/1.png").read_bytes())
    assert personalize("--stages", "1") == 1
    assert "data (content)" in error(capsys)


def test_a_stage_needs_the_one_before(
    personalize: Command, world: Path, base: ShowO, capsys: pytest.CaptureFixture[str]
) -> None:
    assert personalize("--stages", "2") == 1
    assert "stage 2 begins with the rows of stage 1, but" in error(capsys)
    save_concept(world / "run/stage-1/concept", _info("0" * 32), make_rows(4))
    assert personalize("--stages", "2") == 1
    assert "give that model, train the concept on this one, or give --force-base" in error(capsys)
    assert personalize("--stages", "2", "--force-base") == 0
    assert load_concept(world / "run/concept")[0].base == base_digest(base)


def _info(digest: str) -> run.ConceptInfo:
    return run.ConceptInfo(type(DOT)("<dot>", 3), "dog", "animal", digest)


def unreadable(world: Path) -> None:
    (world / "dot/train/1.png").write_bytes(b"PNG")


def renamed(world: Path, **changes: object) -> None:
    path = world / "dot/info.json"
    info = {**json.loads(path.read_text()), **changes}
    path.write_text(json.dumps({key: value for key, value in info.items() if value is not None}))


def larger(world: Path) -> None:
    path = world / "config.toml"
    path.write_text(path.read_text().replace("shared = 3", "shared = 30"))


def long(world: Path, prompt: str) -> None:
    path = world / "config.toml"
    path.write_text(path.read_text().replace(prompt, prompt + " on grass" * 17))


def silent(world: Path) -> None:
    shutil.rmtree(world / "dot/train")
    (world / "dot/train").mkdir()


BAD = {
    "unreadable": (unreadable, "1.png: .*--skip-bad"),
    "unreadable negative": (lambda w: (w / "dot/random_images/1.png").write_bytes(b"") and None, "1.png: .*--skip-bad"),
    "no negatives": (lambda w: shutil.rmtree(w / "dot/random_images"), "no image without <dot>: .*--random DIR"),
    "no images": (silent, "no images; give at least one file"),
    "no class": (lambda w: renamed(w, **{"class": None}), "class: missing"),
    "empty class": (lambda w: renamed(w, **{"class": ""}), "class: no words"),
    "known name": (lambda w: renamed(w, name="<bo>"), "'<bo>' is not a new token"),
    "questions of another name": (lambda w: renamed(w, name="<new>"), "question names <new>, but .*<dot>"),
    "no brackets": (lambda w: renamed(w, name="dot"), "not of the form <name>"),
    "blank": (lambda w: renamed(w, name="<d t>"), "not of the form <name>"),
    "too many tokens": (larger, "at most 29"),
    "long prompt": (lambda w: long(w, "a photo of {}"), "'a photo of <dot> on .* tokens more than a text block of 41"),
    "long region": (lambda w: long(w, "{} on grass"), "'<dot> on grass .* tokens more than a text block of 41"),
}


@pytest.mark.parametrize("fault", BAD)
def test_bad_input_is_named_and_nothing_is_trained(
    personalize: Command, world: Path, capsys: pytest.CaptureFixture[str], fault: str
) -> None:
    change, message = BAD[fault]
    change(world)
    assert personalize() == 1
    assert re.search(message, error(capsys), re.DOTALL)
    assert not (world / "run/stage-1/concept").exists()


def test_unreadable_images_can_be_left_out(
    personalize: Command, world: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    unreadable(world)
    assert personalize("--stages", "1", "--skip-bad") == 0
    out = capsys.readouterr().out
    assert "left out: " in out
    assert "has 2 image(s); 3 to 15" in out


def test_unreadable_negatives_and_crops_can_be_left_out(world: Path) -> None:
    for name in ("random_images/1.png", "cropped/0.png"):
        (world / "dot" / name).write_bytes(b"GIF")
    said: list[str] = []
    kept, photos = run.read_photos(run.only_concept(world / "dot"), said.append, skip_bad=True)
    assert [path.name for path in (*kept.random, *kept.cropped)] == ["0.png", "1.png", "2.png"]
    assert photos.keys() == {*kept.train, *kept.random, *kept.cropped}
    assert [line.partition(": ")[0] for line in said] == ["left out"] * 2


def test_large_photographs_are_reduced_and_small_ones_kept(world: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(run, "SHORT_SIDE", 20)
    for name, size in (("train/0", (60, 30)), ("random_images/0", (24, 90)), ("train/1", (200, 20))):
        Image.fromarray(noise(7, size[1], size[0])).save(world / f"dot/{name}.png")
    _, photos = run.read_photos(run.only_concept(world / "dot"), print, skip_bad=False)
    found = {str(path.relative_to(world / "dot").with_suffix("")): pixels for path, pixels in photos.items()}
    shapes = [found[name].shape for name in ("train/0", "random_images/0", "train/1", "train/2")]
    assert shapes == [(20, 40, 3), (75, 20, 3), (20, 200, 3), (10, 12, 3)]
    assert np.array_equal(found["train/1"], noise(7, 20, 200))
    assert np.array_equal(found["train/2"], load_image(world / "dot/train/2.png"))


def test_questions_without_the_name_are_reported(world: Path) -> None:
    path, said = world / "dot/conversations.json", list[str]()
    talks = json.loads(path.read_text())
    path.write_text(json.dumps({**talks, "1.png": [{"query": "what color is it ?", "answer": "red ."}]}))
    run.read_photos(run.only_concept(world / "dot"), said.append, skip_bad=False)
    assert len(said) == 1
    assert "conversations.json: 1 of 3 questions do not name <dot>, such as 'what color is it ?'" in said[0]


def test_a_missing_file_of_faces_is_named(
    personalize: Command, world: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SYNOD__PERSONALIZE__FACES", "gone.npy")
    assert personalize() == 1
    message = f"gone.npy does not exist; write it by `python -m services faces CONFIG {world / 'dot/train'} "
    assert message in error(capsys)
    assert not (world / "run/stage-1/concept").exists()


def test_the_report_of_a_new_training_shows_its_photographs(personalize: Command, world: Path) -> None:
    assert personalize("--stages", "1") == 0
    before = (world / "run" / PHOTOGRAPHS).read_bytes()
    Image.fromarray(np.full((9, 9, 3), 77, np.uint8)).save(world / "dot/train/0.png")
    shutil.rmtree(world / "run/stage-1")
    assert personalize("--stages", "1") == 0
    assert (world / "run" / PHOTOGRAPHS).read_bytes() != before


def test_grey_and_transparent_images_are_read(world: Path) -> None:
    Image.fromarray(np.full((9, 9), 77, np.uint8)).save(world / "dot/train/0.png")
    Image.fromarray(np.full((9, 9, 4), 77, np.uint8)).save(world / "dot/train/1.png")
    found = run.only_concept(world / "dot")
    _, photos = run.read_photos(found, print, skip_bad=False)
    assert {image.shape[2] for image in photos.values()} == {3}


def test_a_person_without_faces_starts_like_an_object(
    personalize: Command, world: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    renamed(world, kind="person")
    assert personalize("--stages", "1,2") == 0
    assert "no faces: a person's tokens of generation start like an object's" in capsys.readouterr().out


def test_faces_start_the_tokens_of_generation(
    personalize: Command, world: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    renamed(world, kind="person")
    np.save(world / "faces.npy", np.arange(16, dtype=np.float32).reshape(2, 8))
    monkeypatch.setenv("SYNOD__PERSONALIZE__FACES", "faces.npy")
    monkeypatch.setenv("SYNOD__PERSONALIZE__STAGE_2__EPOCHS", "0")
    assert personalize("--stages", "1,2") == 0
    rows = load_concept(world / "run/concept")[1].embed_RD[4:6]
    torch.testing.assert_close(rows, initialise.face_rows(world / "faces.npy", 2, 64))


def test_public_initialisation_copies_codes(
    personalize: Command, world: Path, base: ShowO, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SYNOD__PERSONALIZE__INITIALISE", "public")
    for number in (1, 2, 3):
        monkeypatch.setenv(f"SYNOD__PERSONALIZE__STAGE_{number}__EPOCHS", "0")
    assert personalize() == 0
    rows = load_concept(world / "run/concept")[1]
    offset, head = base.vocab.image_offset, base.phi.lm_head
    assert torch.equal(rows.head_RD, head.weight[offset : offset + 8])  # every head row, as the public code leaves them
    assert torch.equal(rows.bias_R, head.bias[offset : offset + 8])
    table = base.phi.model.embed_tokens.weight
    assert torch.equal(rows.embed_RD[4:6], table[offset + 4 : offset + 6])  # g of what is not a person
    assert torch.equal(rows.embed_RD[0], table[base.vocab.id("dog")])
    assert not torch.equal(rows.embed_RD[6:8], table[offset + 6 : offset + 8])


def test_import_and_export(world: Path, base: ShowO, capsys: pytest.CaptureFixture[str]) -> None:
    write_public(world / "old", make_rows(8), 15)
    named = ["--name", "<dot>", "--class", "dog", "--kind", "animal", "--base", str(world / "model")]
    assert main(["import", str(world / "old"), str(world / "new"), *named, "--tokens", "3,2,2"]) == 0
    assert "<dot>: epoch 15, stage 3: K=3, M=2, N=2; wrote" in capsys.readouterr().out
    info, rows = load_concept(world / "new")
    assert (info.tokens, info.base) == (DOT, base_digest(base))
    assert main(["export", str(world / "new"), str(world / "out"), "--epoch", "4"]) == 0
    assert torch.equal(torch.load(world / "out/epoch_4_embed.pt", weights_only=True), rows.embed_RD)
    assert main(["import", str(world / "old"), str(world / "x"), "--base", str(world / "model")]) == 1
    assert "give --name, --class, --kind" in error(capsys)
    assert main(["import", str(world / "old"), str(world / "x"), *named]) == 1
    assert "give --tokens K,M,N" in error(capsys)
    assert not (world / "x").exists()


def test_a_concept_moves_to_another_base_by_force(world: Path, capsys: pytest.CaptureFixture[str]) -> None:
    save_concept(world / "other", _info("0" * 32), make_rows(4))
    given = ["import", str(world / "other"), str(world / "new"), "--base", str(world / "model")]
    assert main(given) == 1
    assert "of digest 000000000000" in error(capsys)
    assert main([*given, "--force-base"]) == 0


def test_one_concept_of_the_public_layout_is_found(world: Path) -> None:
    root = world / "unify"
    (root / "concept/train").mkdir(parents=True)
    for name in ("dot", "sue"):
        shutil.copytree(world / "dot/train", root / "concept/train" / name)
        shutil.copy(world / "dot/info.json", root / "concept/train" / name)
    assert run.only_concept(root / "concept/train/sue").name == "<sue>"
    with pytest.raises(SettingsError, match=r"has 2 concepts \(<dot>, <sue>, \.\.\); give the folder of one"):
        run.only_concept(root)


def test_settings_name_table_key_and_value(tmp_path: Path) -> None:
    path = tmp_path / "config.toml"
    (tmp_path / "dot").mkdir()
    ok = '[trainer.policy]\nmodel = "a/b"\n[personalize]\ndata = "dot"\nrun_dir = "run"\n'
    path.write_text(ok)
    assert load_personalize(path, {}).policy.model == "a/b"
    bad = {
        "stages = [2, 1]": "personalize: stages \\[2, 1\\]: .*give stages that follow each other",
        "stages = [1, 3]": "personalize: stages \\[1, 3\\]: .*give stages that follow each other",
        'prompt = "a dog"': "personalize.prompt: the prompt has no {}",
        'region_prompt = "{} and {x}"': "personalize.region_prompt: the prompt has other braces than {}",
        'regions = "all"': "personalize.regions: ",
        "x = 1": "personalize.x: unknown key",
        "stage_1 = { lr = 0 }": "personalize.stage_1.lr: ",
    }
    for line, message in bad.items():
        path.write_text(f"{ok}{line}\n")
        with pytest.raises(SettingsError, match=message):
            load_personalize(path, {})
    path.write_text(ok.replace('model = "a/b"', "checkpointing = 3"))
    with pytest.raises(SettingsError, match=r"trainer\.policy\.model: "):
        load_personalize(path, {})
    path.write_text(ok.replace('"dot"', '"nowhere"'))
    with pytest.raises(SettingsError, match=r"personalize\.data: 'nowhere': no such directory"):
        load_personalize(path, {})


def test_without_what_the_guide_removes_the_shipped_settings_are_the_papers(tmp_path: Path) -> None:
    """Step 3 of docs/personalization.md, for a published Show-o."""
    tree = tomllib.loads((ROOT / "deploy/configs/personalize.toml").read_text())
    table = tree["personalize"] | {"data": tmp_path, "run_dir": tmp_path, "policy": {"model": "showlab/show-o-512x512"}}
    for key in ("tokens", "text_repeats", "prompt", "region_prompt", "stage_1", "stage_2", "stage_3"):
        assert table.pop(key)
    bare = {key: table[key] for key in ("data", "run_dir", "policy")}
    assert PersonalizeSettings.model_validate(table) == PersonalizeSettings.model_validate(bare)


def test_words_without_a_token_are_named(concept: ConceptRecord, vocab: Vocabulary) -> None:
    talks = (Question("what has <dot> ?", "a furry dog, a plush dog .", None), Question("quux ?", "<dot> is red ."))
    odd = replace(concept, concept=replace(concept.concept, class_word="otter"), conversations=talks)
    tokenizer = copy.deepcopy(vocab.tokenizer)
    assert run.unknown_words(odd, replace(vocab, tokenizer=tokenizer)) == []  # a tokenizer of word pieces
    tokenizer.unk_token = "[UNK]"
    assert run.unknown_words(odd, replace(vocab, tokenizer=tokenizer)) == ["otter", "furry", "plush"]
