"""Concept files: a directory of rows.safetensors and concept.json, and the three .pt files of the authors' code.

rows.safetensors  embed [R D], head_weight [R D], head_bias [R], in the order of `ConceptTokens`
concept.json      {name, class, kind, shared, generation, understanding, width, base, image_tokenizer}; the last two
                  are digests of the model that the rows were trained on (`base_digest`) and of its image tokenizer
                  (`vq_digest`), which older files lack
"""

from __future__ import annotations

import json
import re
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Final

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save
from torch import Tensor

from synod.contracts import CONCEPT_KINDS, ConceptKind
from synod.errors import SettingsError
from synod.reader import Node
from trainer.data.files import hint, json_node, text
from trainer.images import write_whole
from trainer.personalize.tokens import Rows, base_digest, insert, rows_of, vq_digest
from trainer.policy.base import Policy
from trainer.policy.show_o.policy import ShowO
from trainer.policy.show_o.vocabulary import ConceptTokens
from trainer.settings.policy import PolicySettings, ShowOSettings

ROWS, CONCEPT = "rows.safetensors", "concept.json"
PUBLIC: Final = ("embed", "lm_head_weight", "lm_head_bias")  # epoch_{E}_{part}.pt
PUBLIC_COUNTS: Final = {17: (16, 0, 0), 25: (16, 8, 0), 33: (16, 8, 8)}  # rows -> K, M, N after stage 1, 2, 3
_KEYS: Final = ("embed", "head_weight", "head_bias")


@dataclass(frozen=True, slots=True)
class ConceptInfo:
    """What concept.json says: the tokens, the class and kind of the concept, and the model of its rows.

    vq  the digest of the model's image tokenizer; None: not known
    """

    tokens: ConceptTokens
    class_word: str
    kind: ConceptKind
    base: str
    vq: str | None = None


def save_concept(directory: Path, info: ConceptInfo, rows: Rows) -> None:
    """Write a concept directory, concept.json last: a directory that has it is complete."""
    tensors = {key: value.detach().float().contiguous() for key, value in zip(_KEYS, rows.tensors(), strict=True)}
    write_whole(directory / ROWS, save(tensors))
    document = {
        **asdict(info.tokens),
        "class": info.class_word,
        "kind": info.kind,
        "width": rows.embed_RD.shape[1],
        "base": info.base,
        **({} if info.vq is None else {"image_tokenizer": info.vq}),
    }
    write_whole(directory / CONCEPT, (json.dumps(document, indent=2) + "\n").encode())


def load_concept(directory: Path) -> tuple[ConceptInfo, Rows]:
    """Read a concept directory. Raises SettingsError, which names the file and the mistake."""
    info, width = _info(directory)
    path = directory / ROWS
    try:
        found = load_file(path)
    except (OSError, SafetensorError) as error:
        raise SettingsError(f"{path} cannot be read ({error}); copy the concept's directory again") from None
    if found.keys() != set(_KEYS):
        raise SettingsError(
            f"{path} has {', '.join(sorted(found))}, expected {', '.join(_KEYS)}; give a concept's rows"
        )
    return info, _rows(str(path), [found[key] for key in _KEYS], info.tokens.count, width)


def load_into(policy: ShowO, directory: Path, *, force_base: bool = False) -> ConceptInfo:
    """Insert the concept of a directory into a policy, and return what concept.json says.

    Raises SettingsError also for rows of another base model, unless `force_base`.
    """
    info, rows = load_concept(directory)
    check_base(directory, info, base_digest(policy), vq_digest(policy), force_base=force_base)
    insert(policy, info.tokens, rows)
    return info


def save_concepts(policy: Policy, settings: PolicySettings, directory: Path) -> None:
    """Write the tokens of the concepts that a run has trained alone, each as a concept directory of the same base."""
    if not isinstance(policy, ShowO) or not isinstance(settings, ShowOSettings) or settings.train != "rows":
        return
    for source in settings.concepts:
        info = load_concept(source)[0]
        save_concept(directory / info.tokens.name.strip("<>"), info, rows_of(policy, info.tokens.name))


def with_base(info: ConceptInfo, base: str, vq: str) -> ConceptInfo:
    """Return the concept as one of the model of digest `base`, whose image tokenizer has the digest `vq`."""
    return replace(info, base=base, vq=vq)


def check_base(directory: Path, info: ConceptInfo, base: str, vq: str, *, force_base: bool) -> None:
    """Raise SettingsError if the concept's rows were trained on a model or image tokenizer of another digest."""
    pairs = (("model", info.base, base), ("image tokenizer", info.vq or vq, vq))
    others = [f"the {what} of digest {own[:12]}, but this one has {now[:12]}" for what, own, now in pairs if own != now]
    if others and not force_base:
        raise SettingsError(
            f"{directory}: the rows of {info.tokens.name} were trained on {'; and on '.join(others)}; give that model, "
            "train the concept on this one, or give --force-base (for a policy: "
            f"`synod personalize import {directory} COPY --base MODEL --force-base`)"
        )


@hint("`synod personalize` writes concept.json")
def _info(directory: Path) -> tuple[ConceptInfo, int]:
    path = directory / CONCEPT
    of = json_node(text(path), str(path))
    of = of.fields("name", "shared", "generation", "understanding", "class", "kind", "width", "base", "image_tokenizer")
    counts = [of.need(key, lambda node: node.integer(0)) for key in ("shared", "generation", "understanding")]
    tokens = ConceptTokens(of.need("name", Node.text), *counts)
    kind = of.need("kind", lambda node: node.choice(CONCEPT_KINDS))
    digests = of.need("base", Node.text), of.get("image_tokenizer", Node.text)
    info = ConceptInfo(tokens, of.need("class", Node.text), kind, *digests)
    return info, of.need("width", lambda node: node.integer(1))


def read_public(
    folder: Path, name: str, class_word: str, kind: ConceptKind, base: str, *, width: int, counts: str | None = None
) -> tuple[ConceptInfo, Rows, str]:
    """Read the newest epoch_{E}_*.pt of a folder; return the concept, its rows, and a sentence about what was found.

    The files have rows and nothing else, so the caller gives the rest. 17, 25 and 33 rows have the authors' K = 16,
    M = 8, N = 8 after stage 1, 2 and 3; for others `counts` is "K,M,N". Any floating dtype is read as float32. Raises
    SettingsError.
    """
    epoch, paths = _newest(folder)
    tensors = [_tensor(path) for path in paths]
    sizes = [len(tensor) if tensor.dim() else 0 for tensor in tensors]
    if len(set(sizes)) != 1:
        raise SettingsError(f"{folder}: the three files of epoch {epoch} have {sizes} rows; give those of one training")
    K, M, N = _counts(folder, sizes[0], counts)
    rows = _rows(f"{folder}: epoch_{epoch}", tensors, sizes[0], width)
    stage = 1 if not M and not N else 2 if not N else 3
    found = f"epoch {epoch}, stage {stage}: K={K}, M={M}, " + (f"N={N}" if N else "no tokens_u")
    return ConceptInfo(ConceptTokens(name, K, M, N), class_word, kind, base), rows, found


def write_public(directory: Path, rows: Rows, epoch: int) -> list[Path]:
    """Write the three files of the authors' code, float32 on the CPU, and return their paths."""
    directory.mkdir(parents=True, exist_ok=True)
    paths = [directory / f"epoch_{epoch}_{part}.pt" for part in PUBLIC]
    for path, tensor in zip(paths, rows.tensors(), strict=True):
        torch.save(tensor.detach().float().cpu().clone(), path)
    return paths


def _newest(folder: Path) -> tuple[int, list[Path]]:
    """Return the last epoch of a folder that has one, and its three files. Raises SettingsError if one is missing."""
    found = [m for path in folder.glob("epoch_*.pt") if (m := re.fullmatch(r"epoch_(\d+)_(\w+)\.pt", path.name))]
    epochs = sorted({int(match[1]) for match in found if match[2] in PUBLIC})
    if not epochs:
        raise SettingsError(f"{folder} has no epoch_E_embed.pt, with E a number; give a folder of concept files")
    paths = [folder / f"epoch_{epochs[-1]}_{part}.pt" for part in PUBLIC]
    if lost := [path.name for path in paths if not path.is_file()]:
        others = ", ".join(map(str, epochs))
        raise SettingsError(
            f"{folder} lacks {', '.join(lost)} of epoch {epochs[-1]} (epochs found: {others}); give three files of one "
            "epoch in a folder of their own"
        )
    return epochs[-1], paths


def _tensor(path: Path) -> Tensor:
    try:
        found: Any = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # torch and its unpickler raise a dozen kinds
        cause = str(error).strip().partition("\n")[0]
        raise SettingsError(f"{path} cannot be read safely ({cause}); give a file that holds one tensor") from None
    if not isinstance(found, Tensor):
        raise SettingsError(f"{path} holds a {type(found).__name__}, expected one tensor; give a concept's file")
    return found


def _counts(folder: Path, rows: int, counts: str | None) -> tuple[int, int, int]:
    if counts is None and rows in PUBLIC_COUNTS:
        return PUBLIC_COUNTS[rows]
    found = re.fullmatch(r"(\d+),(\d+),(\d+)", counts or "")
    K, M, N = (int(found[i]) for i in (1, 2, 3)) if found else (-1, 0, 0)
    if rows != 1 + K + M + N:
        given = "" if counts is None else f", and --tokens {counts} does not make that"
        known = ", ".join(map(str, PUBLIC_COUNTS))
        raise SettingsError(
            f"{folder} has {rows} rows (known: {known}){given}; give --tokens K,M,N with 1 + K + M + N = {rows}"
        )
    return K, M, N


def _rows(where: str, tensors: list[Tensor], count: int, width: int) -> Rows:
    """Return the rows as float32. Raises SettingsError for other shapes, integers, NaN and infinities."""
    for part, tensor in zip(_KEYS, tensors, strict=True):
        shape = (count,) if part == "head_bias" else (count, width)
        if tuple(tensor.shape) != shape:
            raise SettingsError(
                f"{where}: {part} has shape {list(tensor.shape)}, expected {list(shape)}; give rows of a model of this "
                "width, all of one training"
            )
        if not tensor.is_floating_point():
            raise SettingsError(f"{where}: {part} is {tensor.dtype}, expected floating point; give a concept's rows")
        if not bool(tensor.isfinite().all()):
            raise SettingsError(f"{where}: {part} has NaN or infinity; give an earlier epoch")
    return Rows(*(tensor.float() for tensor in tensors))
