"""Concept directories, and the public three files: read, written, and refused with a reason."""

from __future__ import annotations

import json
import pickle
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from synod.errors import SettingsError
from tests.unit.trainer.personalize.tiny_concept import DOT, WIDTH, make_rows
from trainer.personalize import files
from trainer.personalize.files import ConceptInfo, load_concept, load_into, read_public, save_concept, write_public
from trainer.personalize.tokens import base_digest, remove, rows_of, vq_digest
from trainer.policy.show_o.policy import ShowO
from trainer.policy.show_o.vocabulary import ConceptTokens

INFO = ConceptInfo(DOT, "dog", "animal", "0" * 32)
PARTS = ("embed", "lm_head_weight", "lm_head_bias")


def public(folder: Path, count: int, epoch: int = 15, seed: int = 0) -> Path:
    """Write files of the published shape."""
    folder.mkdir(exist_ok=True)
    for part, tensor in zip(PARTS, make_rows(count, seed).tensors(), strict=True):
        torch.save(tensor, folder / f"epoch_{epoch}_{part}.pt")
    return folder


def read(folder: Path, counts: str | None = None) -> tuple[ConceptInfo, object, str]:
    return read_public(folder, "<bo>", "dog", "animal", "base", width=WIDTH, counts=counts)


def test_a_directory_comes_back_bit_for_bit(tmp_path: Path) -> None:
    rows = make_rows(DOT.count)
    save_concept(tmp_path / "dot", INFO, rows)
    info, found = load_concept(tmp_path / "dot")
    assert info == INFO
    assert all(torch.equal(a, b) for a, b in zip(rows.tensors(), found.tensors(), strict=True))
    assert json.loads((tmp_path / "dot/concept.json").read_text()) == {
        "name": "<dot>",
        "shared": 3,
        "generation": 2,
        "understanding": 2,
        "class": "dog",
        "kind": "animal",
        "width": WIDTH,
        "base": "0" * 32,
    }


@pytest.mark.parametrize(
    ("count", "expected", "stage"),
    [
        (17, (16, 0, 0), "stage 1: K=16, M=0, no tokens_u"),
        (25, (16, 8, 0), "stage 2: K=16, M=8, no tokens_u"),
        (33, (16, 8, 8), "stage 3: K=16, M=8, N=8"),
    ],
)
def test_published_row_counts_are_known(tmp_path: Path, count: int, expected: tuple[int, ...], stage: str) -> None:
    public(tmp_path / "old", count, 5, seed=3)
    public(tmp_path / "old", count)
    info, rows, found = read(tmp_path / "old")
    assert info == ConceptInfo(ConceptTokens("<bo>", *expected), "dog", "animal", "base")
    assert found == f"epoch 15, {stage}"
    assert all(torch.equal(a, b) for a, b in zip(rows.tensors(), make_rows(count).tensors(), strict=True))


def test_export_and_import_are_inverse(tmp_path: Path) -> None:
    rows = make_rows(8)
    paths = write_public(tmp_path, rows, 20)
    assert [path.name for path in paths] == [f"epoch_20_{part}.pt" for part in PARTS]
    info, found, _ = read(tmp_path, "3,2,2")
    assert (info.tokens.shared, info.tokens.generation, info.tokens.understanding) == (3, 2, 2)
    assert all(torch.equal(a, b) for a, b in zip(rows.tensors(), found.tensors(), strict=True))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_any_float_type_is_read(tmp_path: Path, dtype: torch.dtype) -> None:
    for part, tensor in zip(PARTS, make_rows(17).tensors(), strict=True):
        torch.save(tensor.to(dtype), tmp_path / f"epoch_1_{part}.pt")
    _, rows, _ = read(tmp_path)
    assert rows.embed_RD.dtype == torch.float32
    torch.testing.assert_close(rows.embed_RD, make_rows(17).embed_RD, atol=0.02, rtol=0.01)


class Evil:
    def __reduce__(self) -> tuple[Callable[..., None], tuple[str]]:
        return print, ("executed",)


def nan(folder: Path) -> None:
    torch.save(make_rows(25).embed_RD.index_fill(0, torch.tensor([3]), torch.nan), folder / "epoch_15_embed.pt")


BAD = {
    "count": (lambda f: public(f, 9), "has 9 rows \\(known: 17, 25, 33\\); give --tokens K,M,N with .* = 9"),
    "uneven": (lambda f: torch.save(make_rows(17).bias_R, f / "epoch_15_lm_head_bias.pt"), r"\[25, 25, 17\] rows"),
    "width": (
        lambda f: torch.save(torch.zeros(25, 32), f / "epoch_15_embed.pt"),
        r"shape \[25, 32\], expected",
    ),
    "flat": (lambda f: torch.save(torch.zeros(25), f / "epoch_15_embed.pt"), r"shape \[25\], expected \[25, 64\]"),
    "integers": (lambda f: torch.save(torch.ones(25, WIDTH).long(), f / "epoch_15_embed.pt"), "is torch.int64"),
    "nan": (nan, "embed has NaN or infinity"),
    "list": (lambda f: torch.save([1.0], f / "epoch_15_embed.pt"), "holds a list, expected one tensor"),
    "scalar": (lambda f: torch.save(torch.tensor(1.0), f / "epoch_15_embed.pt"), r"\[0, 25, 25\] rows"),
    "pickle": (lambda f: (f / "epoch_15_embed.pt").write_bytes(pickle.dumps(Evil())), "cannot be read safely"),
    "object": (lambda f: torch.save(Evil(), f / "epoch_15_embed.pt"), "cannot be read safely"),
    "lost": (lambda f: (f / "epoch_15_lm_head_bias.pt").unlink(), "lacks epoch_15_lm_head_bias.pt of epoch 15"),
    "epochs": (
        lambda f: (f / "epoch_15_embed.pt").rename(f / "epoch_20_embed.pt"),
        r"\(epochs found: 15, 20",
    ),
    "empty": (lambda f: [path.unlink() for path in f.iterdir()], "has no epoch_E_embed.pt"),
}


@pytest.mark.parametrize("fault", BAD)
def test_bad_public_files_are_refused(tmp_path: Path, fault: str, capsys: pytest.CaptureFixture[str]) -> None:
    change, message = BAD[fault]
    change(public(tmp_path / "old", 25))
    with pytest.raises(SettingsError, match=message):
        read(tmp_path / "old")
    assert "executed" not in capsys.readouterr().out


@pytest.mark.parametrize("counts", ["16,8,8", "16,8", "a,b,c", ""])
def test_counts_that_do_not_fit_are_refused(tmp_path: Path, counts: str) -> None:
    with pytest.raises(SettingsError, match=r"has 25 rows .*--tokens .* does not make that"):
        read(public(tmp_path, 25), counts)


def edited(directory: Path, **changes: object) -> None:
    path = directory / "concept.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda d: (d / "rows.safetensors").unlink(), "rows.safetensors cannot be read"),
        (lambda d: (d / "rows.safetensors").write_bytes(b"PK"), "rows.safetensors cannot be read"),
        (lambda d: save_file({"x": torch.zeros(1)}, d / "rows.safetensors"), "has x, expected embed, head_weight"),
        (lambda d: edited(d, shared=4), r"embed has shape \[8, 64\], expected \[9, 64\]"),
        (lambda d: edited(d, width=32), r"embed has shape \[8, 64\], expected \[8, 32\]"),
        (lambda d: edited(d, kind="dog"), "kind: 'dog'; give one of person, animal, object"),
        (lambda d: edited(d, shared=-1), "shared: -1; give a whole number"),
        (lambda d: edited(d, extra=1), "extra: unknown key"),
        (lambda d: (d / "concept.json").write_text("{"), "not valid JSON"),
        (lambda d: (d / "concept.json").unlink(), "concept.json: No such file"),
    ],
)
def test_bad_directories_are_refused(tmp_path: Path, change: Callable[[Path], None], message: str) -> None:
    save_concept(tmp_path, INFO, make_rows(DOT.count))
    change(tmp_path)
    with pytest.raises(SettingsError, match=message):
        load_concept(tmp_path)


def test_rows_of_another_base_are_refused(policy: ShowO, tmp_path: Path) -> None:
    save_concept(tmp_path, INFO, make_rows(DOT.count))
    with pytest.raises(SettingsError, match=f"of digest 000000000000, but this one has {base_digest(policy)[:12]}"):
        load_into(policy, tmp_path)
    assert policy.vocab.personal == ()
    load_into(policy, tmp_path, force_base=True)
    assert torch.equal(rows_of(policy, "<dot>").head_RD, make_rows(DOT.count).head_RD)


def test_rows_of_another_image_tokenizer_are_refused(policy: ShowO, tmp_path: Path) -> None:
    own = ConceptInfo(DOT, "dog", "animal", base_digest(policy), vq_digest(policy))
    save_concept(tmp_path / "own", own, make_rows(DOT.count))
    save_concept(tmp_path / "old", replace(own, vq=None), make_rows(DOT.count))
    save_concept(tmp_path / "other", replace(own, vq="1" * 32), make_rows(DOT.count))
    save_concept(tmp_path / "both", replace(own, base="0" * 32, vq="1" * 32), make_rows(DOT.count))
    with pytest.raises(
        SettingsError, match=f"on the image tokenizer of digest 1{{12}}, .* has {vq_digest(policy)[:12]}; give"
    ):
        load_into(policy, tmp_path / "other")
    with pytest.raises(
        SettingsError, match=r"on the model of digest 0{12}, .*; and on the image tokenizer of digest 1"
    ):
        load_into(policy, tmp_path / "both")
    assert policy.vocab.personal == ()
    assert load_into(policy, tmp_path / "own").vq == vq_digest(policy)
    remove(policy, "<dot>")
    assert load_into(policy, tmp_path / "old").vq is None, "an older file has no digest of it"


def test_an_interrupted_write_is_not_a_concept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    written: list[str] = []

    def record(path: Path, data: bytes) -> None:
        written.append(path.name)

    monkeypatch.setattr(files, "write_whole", record)
    save_concept(tmp_path, INFO, make_rows(DOT.count))
    assert written == ["rows.safetensors", "concept.json"]


def test_rows_are_stored_as_float32(tmp_path: Path) -> None:
    rows = make_rows(DOT.count)
    save_concept(tmp_path, INFO, type(rows)(*(tensor.bfloat16() for tensor in rows.tensors())))
    assert {value.dtype for value in load_file(tmp_path / "rows.safetensors").values()} == {torch.float32}
