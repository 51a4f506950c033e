"""Read folders of concepts. Three forms give the same record:

UnifyBench, as UniCTokens publishes it (`embedded/data/unify` is an example):
    ROOT/random_images/*  template.json  pure_generation.json (or prompts_to_eval.json)  concepts_list.json
    ROOT/concept/train/train_images.json                       <c> -> the names of its training images; else all
    ROOT/concept/train/<c>/ images, cropped/, negative_example/, info, conversations, positive_recognitions, plus .json
    ROOT/concept/test/<c>/  images, vqa.json, text_only.json, t2i_conditions.json
Synod's (`embedded/data/concepts`):
    ROOT/<folder>/ info.json with a name, conversations.json, train/*; also what a folder of train/<c> may have
one concept:
    FOLDER/        the same, or the images in the folder itself; pure_generation.json, if there is one, is in it

Only info.json and images are required, and in UnifyBench's form the name is the folder's: `<c>`.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final

from synod.contracts import CONCEPT_KINDS, Concept, ConceptKind
from synod.errors import SettingsError
from synod.reader import Node, each, is_object
from trainer.data.files import hint, json_node, text
from trainer.personalize.plus import read_plus
from trainer.personalize.records import (
    IMAGE_SUFFIXES,
    ConceptPrompt,
    ConceptRecord,
    Plus,
    Question,
    held_out_negatives,
    images_in,
)
from trainer.personalize.templates import RECOGNITION

PLAIN: Final = "a photo of {}"
PURE_FILES: Final = ("pure_generation.json", "prompts_to_eval.json")
_HINT: Final = "See embedded/data/unify and embedded/data/concepts for examples"
_KEYS: Final = ("name", "kind", "class", "info", "extra_info", "heldout", "conversation_type", "generation_type")
_GENERATION: Final[Mapping[str, ConceptKind]] = {"object": "object", "live_subject": "animal"}


def read_folder(root: Path) -> dict[str, ConceptRecord]:
    """Return every concept of a folder by name, in the order of their folders.

    Raises SettingsError, which names the file and the mistake.
    """
    if not root.is_dir():
        raise SettingsError(f"{root} is not a directory; give a folder of concepts. {_HINT}")
    if (root / "concept/train").is_dir():
        folders = [path for path in sorted((root / "concept/train").iterdir()) if path.is_dir()]
        records = [_public(root, folder) for folder in folders]
    elif (root / "info.json").exists():
        folders, records = [root], [read_concept(root)]
    else:
        folders = sorted(path for path in root.iterdir() if path.is_dir())
        records = [read_concept(folder) for folder in folders]
    found = {record.name: record for record in records}
    if len(found) != len(folders) or not found:
        raise SettingsError(
            f"{root}: {len(folders)} concept folders name {len(found)} concepts; give each its own. {_HINT}"
        )
    return found


@hint(_HINT)
def read_names(root: Path) -> list[str]:
    """Return the names of a folder's concepts, without reading images. Raises SettingsError."""
    if (root / "concept/train").is_dir():
        return [f"<{path.name}>" for path in sorted((root / "concept/train").iterdir()) if path.is_dir()]
    folders = [root] if (root / "info.json").exists() else sorted(path for path in root.iterdir() if path.is_dir())
    return [_name(_info(folder), folder) for folder in folders]


@hint(_HINT)
def read_concept(folder: Path, *, without_plus: bool = False) -> ConceptRecord:
    """Return the concept of one folder, if wanted without reading plus.json. Raises SettingsError."""
    info = _info(folder).fields(*_KEYS)
    train = images_in(folder / "train") if (folder / "train").is_dir() else images_in(folder)
    if not train:
        raise SettingsError(f"{folder / 'train'}: no images; give at least one file of {', '.join(IMAGE_SUFFIXES)}")
    random = images_in(folder / "random_images")
    shared = {"pure": _pure_file(folder)}
    return _record(folder, folder / "test", info, _name(info, folder), train, random, shared, without_plus=without_plus)


@hint(_HINT)
def _public(root: Path, folder: Path) -> ConceptRecord:
    listed = _json(folder.parent / "train_images.json")
    names = None if listed is None else listed.get(folder.name, each(Node.text))
    train = images_in(folder) if names is None else tuple(folder / name for name in names)
    if missing := [str(path) for path in train if not path.exists()]:
        raise SettingsError(f"{folder.parent / 'train_images.json'} names {missing[0]}, which does not exist")
    if not train:
        raise SettingsError(f"{folder}: no images; give at least one file of {', '.join(IMAGE_SUFFIXES)}")
    shared = {"pure": _pure_file(root), "template": _json(root / "template.json")}
    random = images_in(root / "random_images")
    name = _checked(f"<{folder.name}>", folder)
    return _record(folder, root / "concept/test" / folder.name, _info(folder), name, train, random, shared)


def _record(
    folder: Path,
    test: Path,
    info: Node,
    name: str,
    train: tuple[Path, ...],
    random: tuple[Path, ...],
    shared: Mapping[str, Node | None],
    *,
    without_plus: bool = False,
) -> ConceptRecord:
    kind, facts = _kind(info), info.get("extra_info", each(_fact)) or ()
    heldout = info.get("heldout", each(Node.boolean)) or ()
    if heldout and len(heldout) != len(facts):
        raise info.error(f"heldout has {len(heldout)} flags, but extra_info has {len(facts)} facts; give one for each")
    conversations = _json(folder / "conversations.json")
    asked = _json(folder / "positive_recognitions.json")
    by_name = {path.name: path for path in train}
    hard, hard_test = held_out_negatives(images_in(folder / "negative_example"))
    random, random_test = held_out_negatives(random)
    return ConceptRecord(
        Concept(kind, info.need("class", _words), name),
        folder,
        info.get("info", Node.text) or "",
        facts,
        heldout,
        train,
        images_in(test),
        images_in(folder / "cropped"),
        hard,
        random,
        _recognition(asked, shared.get("template"), name),
        () if conversations is None else _questions(conversations, by_name),
        _test_questions(test),
        (
            *_pure(shared.get("pure"), kind, info, name),
            *_conditions(_json(test / "t2i_conditions.json"), name, facts, heldout),
        ),
        Plus() if without_plus else read_plus(folder / "plus.json", name, facts, heldout),
        hard_test,
        random_test,
    )


def _info(folder: Path) -> Node:
    return json_node(text(folder / "info.json"), str(folder / "info.json"))


def _json(path: Path) -> Node | None:
    return json_node(text(path), str(path)) if path.exists() else None


def _words(node: Node) -> str:
    """Return a string with at least one character that is not blank. Raises InvalidRequest."""
    if not node.text().strip():
        raise node.error("no words; give at least one")
    return node.text()


def _fact(node: Node) -> str:
    """Return a string with a word before its last period. Raises InvalidRequest."""
    if not _words(node).rstrip(". ").strip():
        raise node.error(f"{node.text()!r} states no fact; give words")
    return node.text()


def _name(info: Node, folder: Path) -> str:
    return _checked(info.get("name", Node.text) or f"<{folder.name}>", folder)


def _checked(name: str, folder: Path) -> str:
    if not re.fullmatch(r"<[^<>|\s]+>", name):
        raise SettingsError(f"{folder}: the name '{name}' is not of the form <name>, as <bo>; rename the concept")
    return name


def _kind(info: Node) -> ConceptKind:
    """Return the kind: as named, else a person if the conversations are of a "human", else by what is drawn."""
    if (kind := info.get("kind", lambda one: one.choice(CONCEPT_KINDS))) is not None:
        return kind
    if info.get("conversation_type", Node.text) == "human":
        return "person"
    known = tuple(_GENERATION)
    return _GENERATION[info.get("generation_type", lambda one: one.choice(known)) or "object"]


def _recognition(asked: Node | None, template: Node | None, name: str) -> tuple[str, ...]:
    if asked is not None:
        entries = asked if isinstance(asked.value, list) else Node(list(asked.mapping().values()), asked.path)
        if found := tuple(dict.fromkeys(entries.entries(lambda one: one.need("query", Node.text)))):
            return found
    own = None if template is None else template.get("recognition", each(Node.text))
    return tuple(one.replace("{}", name) for one in own or RECOGNITION)


def _questions(node: Node, images: Mapping[str, Path]) -> tuple[Question, ...]:
    """Read [{query, answer}], or {image name | "text_only": [{query, answer}]}."""
    if not is_object(node.value):
        return node.entries(_question)
    found: list[Question] = []
    for key in node.mapping():
        if key != "text_only" and key not in images:
            raise node.error(
                f"'{key}' is neither an image of the concept nor text_only; known: {', '.join(images)}. Correct the "
                "file, or remove it and let `synod personalize prepare` write it again"
            )
        asked = node.need(key, each(_question))
        found += [Question(one.text, one.answer, images.get(key)) for one in asked]
    return tuple(found)


def _question(node: Node) -> Question:
    of = node.fields("query", "answer", "type", "image")
    is_choice = "choice" in (of.get("type", Node.text) or "")
    return Question(of.need("query", Node.text), of.need("answer", Node.text), None, is_choice)


def _test_questions(test: Path) -> tuple[Question, ...]:
    pictured, textual = _json(test / "vqa.json"), _json(test / "text_only.json")
    images = {path.name: path for path in images_in(test)}
    found = () if pictured is None else _questions(pictured, images)
    if any(one.image is None for one in found):
        raise SettingsError(f"{test / 'vqa.json'}: each question needs an image; give {{image name: [questions]}}")
    return (*found, *(() if textual is None else textual.entries(_question)))


def _pure_file(root: Path) -> Node | None:
    return next((node for name in PURE_FILES if (node := _json(root / name)) is not None), None)


def _pure(node: Node | None, kind: ConceptKind, info: Node, name: str) -> tuple[ConceptPrompt, ...]:
    """Read the prompts of a kind (or of what is drawn: object, live_subject); {} stands for the name."""
    plain = ConceptPrompt(PLAIN.format(name), "plain")
    if node is None:
        return (plain,)
    drawn = info.get("generation_type", Node.text) or ("object" if kind == "object" else "live_subject")
    keys = [key for key in (kind, drawn) if key in node.mapping()]
    if not keys:
        raise node.error(f"no prompts of '{kind}' or '{drawn}'; known: {', '.join(map(str, node.mapping()))}")
    listed = node.need(keys[0], lambda found: found.entries(lambda one: _placed(one, name)))
    return (plain, *(ConceptPrompt(one, "pure") for one in listed))


def _placed(node: Node, name: str) -> str:
    if "{}" not in node.text():
        raise node.error("the prompt has no {}, which stands for the concept's name")
    return node.text().replace("{}", name)


def _conditions(
    node: Node | None, name: str, facts: Sequence[str], heldout: Sequence[bool]
) -> tuple[ConceptPrompt, ...]:
    """Read t2i_conditions.json.

    A list has the plain prompt first; the others need knowledge. An object has personalized_driven_generation, whose
    prompt i belongs to fact i, and whose first half trains, or what info.json's `heldout` does not hold out.
    """
    if node is None:
        return ()
    if isinstance(node.value, list):
        texts = node.entries(lambda one: _named(one, name))
        return tuple(ConceptPrompt(one, "knowledge") for one in texts[1:])
    key = "personalized_driven_generation"
    if not is_object(node.value) or key not in node.value:
        raise node.error(f"neither a list of prompts nor an object with '{key}'")
    texts = node.need(key, lambda found: found.entries(lambda one: _named(one, name)))
    if len(texts) > len(facts):
        raise node.error(f"{len(texts)} prompts, but extra_info has {len(facts)}; prompt i belongs to extra_info i")
    half = len(texts) // 2
    held = heldout or [i >= half for i in range(len(texts))]
    return tuple(ConceptPrompt(one, "knowledge", i, held[i]) for i, one in enumerate(texts))


def _named(node: Node, name: str) -> str:
    """Return a prompt. Raises InvalidRequest for one that does not name the concept."""
    prompt: Any = node.text()
    if name not in prompt:
        raise node.error(f"the prompt does not name {name}")
    return str(prompt)
