"""The command `synod personalize prepare FOLDER`: questions and negatives for a folder of photographs.

FOLDER has the photographs, in itself or in train/, and info.json: {"class": "dog"} at least, better also "name",
"kind", "info" (a sentence about the looks) and "extra_info" (facts that the photographs do not show). It writes into
FOLDER

    positive_recognitions.json, random_recognitions.json   [{query, answer}]: the same questions, answered yes and no
    conversations.json     {photograph | "text_only": [{query, answer}]}, from info and extra_info, and by --judge
    prompts.jsonl, prompts_heldout.jsonl    prompts for [trainer.data] prompts and heldout (task = "sync_r1")
    pure_generation.json   scenes for `synod evaluate --suite unify`, if there are none yet
    plus.json              if info.json holds facts out: these prompts' hints for `synod evaluate --suite unify_pp`
    random_images/         copies of some images of --random
    negative_example/      the images of --pool that look most like the photographs, and scores.json

Every fourth image of these two is for evaluation alone, if there are eight or more.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Final

import numpy as np

from synod.client import SynodClient
from synod.contracts import CONCEPT_KINDS, Score, ScoreRequest
from synod.digest import digest_of
from synod.errors import SettingsError, SynodError
from synod.scoring import show
from synod.scoring.inputs import Source
from synod.scoring.run import score_all
from trainer.images import write_whole
from trainer.personalize import templates
from trainer.personalize.folder import PURE_FILES, read_concept
from trainer.personalize.pairs import Endpoint, NotWritten, Pair, written_pairs
from trainer.personalize.plus import GENERATED, is_generated
from trainer.personalize.prompts import plus_facts, prompt_lines
from trainer.personalize.records import ConceptRecord, Split, images_in, load_photos

URL: Final = "http://127.0.0.1:8000"
MAX_REFERENCES: Final = 16  # of an item; the service refuses more
TIMEOUT_S: Final = 600.0  # of a request of 32 photographs
POSITIVE, NEGATIVE, TALKS = "positive_recognitions.json", "random_recognitions.json", "conversations.json"
PURE, PLUS = "pure_generation.json", "plus.json"
PROMPTS: Final[Mapping[str, Split]] = {"prompts.jsonl": "train", "prompts_heldout.jsonl": "test"}
RANDOM, HARD, SCORES = "random_images", "negative_example", "scores.json"
EXAMPLES: Final = """examples:
  synod personalize prepare photographs/bo --random others
  synod personalize prepare photographs/bo --random others --pool dogs                            with a running service
  synod personalize prepare photographs/bo --judge http://127.0.0.1:8010/v1 --judge-model NAME    pairs by a model too

It downloads nothing. Hard negatives, which look alike, matter: without them recognition learns the class alone. They
are found by a running service's scorer of likeness (--scorer, --url). See docs/personalization.md.
"""
UNREAD_SUFFIXES: Final = (".heic", ".heif", ".avif", ".tif", ".tiff", ".bmp", ".gif", ".dng")


def main(arguments: Sequence[str]) -> int:
    """Run the command and return its exit status: 0, or 1 for an error."""
    options = _parser().parse_args(arguments)
    try:
        for line in prepare(options):
            print(line)
    except (SynodError, SettingsError, OSError) as error:
        print(f"synod personalize prepare: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 130
    return 0


def prepare(options: argparse.Namespace) -> list[str]:
    """Write the files, and return a line about each. Nothing is written if anything is wrong.

    Raises SettingsError, and the SynodError of a service that fails.
    """
    folder: Path = options.folder
    record = read_concept(folder, without_plus=is_generated(folder / PLUS))  # it follows from info.json, as it is now
    photos = [path for path, _ in load_photos(record, show.notify, skip_bad=options.skip_bad)]
    endpoint = _endpoint(options)
    texts = {POSITIVE: _recognition(record, templates.YES), NEGATIVE: _recognition(record, templates.NO)}
    documents: dict[str, Any] = {**texts, **({} if endpoint else {TALKS: conversations(record, photos)})}
    if not any((folder / name).exists() for name in PURE_FILES):
        documents[PURE] = {kind: [*templates.SCENES, *templates.HELDOUT_SCENES] for kind in CONCEPT_KINDS}
    if is_generated(folder / PLUS) or not (folder / PLUS).exists():
        facts = plus_facts(record)
        documents |= {PLUS: {GENERATED: "synod personalize prepare", "facts": facts}} if facts else {}
    contents = {name: _json(tree) for name, tree in documents.items()}
    for name, split in PROMPTS.items():
        contents[name] = b"".join(json.dumps(line).encode() + b"\n" for line in prompt_lines(record, split))
    for name, content in contents.items():
        _check_absent(folder / name, content, replace=options.replace)
    stale = is_generated(folder / PLUS) and PLUS not in contents
    if stale and not options.replace:
        raise SettingsError(f"{folder / PLUS} is about facts that are no longer held out; remove it, or give --replace")
    random = _random(options, photos)
    hard = [] if options.pool is None else hard_negatives(options, photos)
    copies = {RANDOM: _copies(random), HARD: _copies([path for path, _ in hard])}
    for name, images in copies.items():
        _check_images(folder / name, images, replace=options.replace)
    written: list[Pair] = []
    if endpoint is not None:  # last, so that no answer that was paid for is lost to another mistake
        written, failed = _written(record, options, endpoint)
        is_kept = failed and (folder / TALKS).exists()  # it may have pairs that were written before
        talks = conversations(record, photos, written)
        contents[TALKS] = (folder / TALKS).read_bytes() if is_kept else _json(talks)
    for name, content in contents.items():
        write_whole(folder / name, content)
    if stale:
        (folder / PLUS).unlink()
    for name, images in copies.items():
        _replace_images(folder / name, images)
    if hard:
        scores = dict(zip(copies[HARD], (score for _, score in hard), strict=True))
        write_whole(folder / HARD / SCORES, _json({"scorer": options.scorer, "scores": scores}))
    lines = _summary(record, photos, json.loads(contents[TALKS]), random, hard, options)
    return [*lines, f"{TALKS}: {len(written)} of them by {options.judge_model}"] if written else lines


def _endpoint(options: argparse.Namespace) -> Endpoint | None:
    """Return the --judge, if there is one. Raises SettingsError for options that do not fit."""
    if options.judge is None:
        return None
    if options.judge_model is None:
        raise SettingsError("--judge needs --judge-model NAME, the model's name at that endpoint")
    if not options.judge_pairs:
        raise SettingsError("--judge-pairs 0 asks for nothing; give at least 1, or leave out --judge")
    if not options.replace and (options.folder / TALKS).exists():
        raise SettingsError(
            f"{options.folder / TALKS} exists; remove it, or give --replace, to have pairs written again"
        )
    endpoint = Endpoint(options.judge, options.judge_model, options.judge_key_env)
    endpoint.key()
    return endpoint


def _written(record: ConceptRecord, options: argparse.Namespace, endpoint: Endpoint) -> tuple[list[Pair], bool]:
    """Return the pairs of the --judge, and whether it failed, which `notify` receives. Raises SettingsError."""
    try:
        pairs, left_out = written_pairs(record, endpoint, options.judge_pairs)
    except NotWritten as error:
        show.notify(
            f"the judge at {endpoint.shown} has written no pairs: {error}. Those of templates are there, and what was "
            "there before; the same command with --replace asks it again"
        )
        return [], True
    if left_out:
        show.notify(f"{left_out} lines of {options.judge_model} are left out: not a new question about {record.name}")
    return pairs, False


def conversations(record: ConceptRecord, photos: Sequence[Path], written: Sequence[Pair] = ()) -> dict[str, list[Pair]]:
    """Return the questions about each photograph, two of templates.LOOKS in turn, and those without an image.

    `written` are further ones without an image.
    """
    found: dict[str, list[Pair]] = {}
    if record.info:
        asked = [_pair(question, record, record.info) for question in templates.LOOKS]
        found |= {path.name: [asked[(i + k) % len(asked)] for k in range(2)] for i, path in enumerate(photos)}
    article = "an" if record.class_word[0].lower() in "aeiou" else "a"
    textual = [
        _pair(question, record, f"{record.name} is {article} {record.class_word}.") for question in templates.CLASS
    ]
    textual += [_pair(question, record, record.info) for question in templates.LOOKS if record.info]
    sentences = [f"{fact.rstrip('. ')}." for fact in record.facts if fact not in record.held_out]
    textual += [_pair(question, record, " ".join(sentences)) for question in templates.FACTS if sentences]
    for sentence in sentences:
        words = sentence.split()
        begun = " ".join(words[: (len(words) + 1) // 2])
        textual.append({"query": templates.COMPLETE.replace("{}", begun), "answer": sentence})
    return {**found, "text_only": [*textual, *written]}


def hard_negatives(options: argparse.Namespace, photos: Sequence[Path]) -> list[tuple[Path, float]]:
    """Return the images of the pool that are most like the photographs, with their scores, the most alike first.

    Copies of photographs are left out. Raises SettingsError, and the SynodError of a service that fails.
    """
    own = {digest_of(path.read_bytes()) for path in photos}
    pool = [path for path in _images(options.pool) if digest_of(path.read_bytes()) not in own]
    if not pool:
        raise SettingsError(f"--pool {options.pool} has no image besides the photographs; give one with look-alikes")
    root = Path("/")
    references = [str(path.resolve().relative_to(root)) for path in photos[:MAX_REFERENCES]]
    sources = [
        Source({"image": str(path.resolve().relative_to(root)), "references": references}, root, str(path))
        for path in pool
    ]
    found = []
    with SynodClient(options.url, timeout_s=TIMEOUT_S, by_digest=True) as client:  # the photographs are sent once
        if options.scorer not in (names := [str(one["name"]) for one in client.scorers()]):
            raise SettingsError(f"the service has no scorer '{options.scorer}'; give --scorer of {', '.join(names)}")
        scored = score_all(client, sources, ScoreRequest((), (options.scorer,)))
        for path, one in zip(pool, scored, strict=True):
            outcome = None if one.result is None else one.result.scores[options.scorer]
            if isinstance(outcome, Score):
                found.append((path, outcome.value))
            elif outcome is not None:
                show.notify(f"{path} has no score and is left out: {outcome.message}")
    if not found:
        raise SettingsError(f"none of the {len(pool)} images of --pool has a score by '{options.scorer}'")
    return sorted(found, key=lambda pair: (-pair[1], str(pair[0])))[: options.hard]


def _random(options: argparse.Namespace, photos: Sequence[Path]) -> list[Path]:
    """Return some of the images of --random, by --seed."""
    if options.random is None:
        return []
    images = [path for path in _images(options.random) if path.resolve() not in {p.resolve() for p in photos}]
    order = np.random.default_rng(options.seed).permutation(len(images))
    return [images[int(i)] for i in order[: options.negatives]]


def _images(folder: Path) -> tuple[Path, ...]:
    found = images_in(folder)
    if not found:
        raise SettingsError(f"{folder}: no images; give a folder with some")
    return found


def _recognition(record: ConceptRecord, answer: str) -> list[Pair]:
    return [_pair(question, record, answer) for question in templates.RECOGNITION]


def _pair(question: str, record: ConceptRecord, answer: str) -> Pair:
    return {"query": question.replace("{}", record.name), "answer": answer}


def _check_absent(path: Path, content: bytes, *, replace: bool) -> None:
    if not replace and path.exists() and path.read_bytes() != content:
        raise SettingsError(f"{path} exists and differs from what would be written; remove it, or give --replace")


def _copies(images: Sequence[Path]) -> dict[str, bytes]:
    """Return the content of numbered copies of these images."""
    return {f"{number}{path.suffix.lower()}": path.read_bytes() for number, path in enumerate(images)}


def _check_images(folder: Path, copies: Mapping[str, bytes], *, replace: bool) -> None:
    """Raise SettingsError if copies would take the place of other images, or bring back those that were removed."""
    there = {path.name: path.read_bytes() for path in images_in(folder)}
    if copies and there and there != copies and not replace:
        raise SettingsError(
            f"{folder} has {len(there)} images, others than the {len(copies)} that would be copied; move them "
            "elsewhere, or give --replace, which deletes them"
        )


def _replace_images(folder: Path, copies: Mapping[str, bytes]) -> None:
    """Make the copies the images of a folder, if there are any."""
    if not copies:
        return
    for path in images_in(folder):
        if path.name not in copies:
            path.unlink()
    for name, data in copies.items():
        write_whole(folder / name, data)


def _json(tree: Any) -> bytes:
    return (json.dumps(tree, indent=1, ensure_ascii=False) + "\n").encode()


def _summary(
    record: ConceptRecord,
    photos: Sequence[Path],
    talks: Mapping[str, Sequence[Pair]],
    random: Sequence[Path],
    hard: Sequence[tuple[Path, float]],
    options: argparse.Namespace,
) -> list[str]:
    counts = [str(len(prompt_lines(record, split))) for split in PROMPTS.values()]
    pictured = sum(len(pairs) for key, pairs in talks.items() if key != "text_only")
    lines = [
        f"{record.name}, {record.concept.kind}, class {record.class_word}: {len(photos)} photographs",
        f"{POSITIVE}, {NEGATIVE}: {len(templates.RECOGNITION)} questions, answered yes and no",
        f"{TALKS}: {pictured} questions about the photographs, {len(talks['text_only'])} without an image",
        f"{' and '.join(PROMPTS)}: {' and '.join(counts)} prompts",
        f"{RANDOM}: {len(random)} images" if random else _there(record, RANDOM, "give --random DIR"),
    ]
    if hard:
        lines.append(f"{HARD}: {len(hard)} images, {options.scorer} from {hard[0][1]:.3f} down to {hard[-1][1]:.3f}")
        lines.append(f"look at them: one that shows {record.name} must be removed")
    else:
        lines.append(_there(record, HARD, "give --pool DIR with look-alikes, or recognition learns the class alone"))
    if others := sorted(path.name for path in photos[0].parent.iterdir() if path.suffix.lower() in UNREAD_SUFFIXES):
        lines.append(f"left out: {', '.join(others)}; convert to PNG, JPEG or WebP")
    if not record.facts:
        lines.append('info.json has no "extra_info": no prompt hints at a fact; train with pathways = ["visual"] or []')
    if record.facts and not record.held_out and not record.plus.facts:
        lines.append(f'{PLUS}: none; the suite unify_pp asks about facts that info.json holds out by "heldout"')
    if not record.info:
        lines.append('info.json has no "info": a sentence about the looks gives questions about the photographs')
    return lines


def _there(record: ConceptRecord, name: str, advice: str) -> str:
    """Return the line about negatives that this command has not copied."""
    count = len(images_in(record.folder / name))
    return f"{name}: {count} images, which were there before" if count else f"{name}: none; {advice}"


def _count(text: str) -> int:
    if not text.isdecimal():
        raise argparse.ArgumentTypeError(f"'{text}' is not a whole number of at least 0")
    return int(text)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="synod personalize prepare",
        description=__doc__,
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add: Callable[..., Any] = parser.add_argument
    add("folder", type=Path, metavar="FOLDER", help="3 to 15 photographs of one concept, and info.json")
    add("--random", type=Path, metavar="DIR", help="any images that do not show the concept")
    add("--negatives", type=_count, default=100, metavar="N", help="how many of --random to take (default: 100)")
    add("--pool", type=Path, metavar="DIR", help="images of other individuals of the class, to search for look-alikes")
    add("--hard", type=_count, default=20, metavar="N", help="how many of --pool to take (default: 20)")
    add("--scorer", default="clip_i", help="the service's scorer of likeness: clip_i or der (default: clip_i)")
    add("--url", default=URL, help=f"URL of the service (default: {URL})")
    add(
        "--judge",
        metavar="URL",
        help="chat completions that write text-only pairs too: the part before /chat/completions",
    )
    add("--judge-model", metavar="NAME", help="the model's name there")
    add("--judge-pairs", type=_count, default=20, metavar="N", help="how many pairs to ask for (default: 20)")
    add("--judge-key-env", metavar="VAR", help="the environment variable of its token")
    add("--seed", type=_count, default=0, help="of the choice from --random (default: 0)")
    add("--skip-bad", action="store_true", help="leave out photographs that cannot be read")
    add("--replace", action="store_true", help="replace files that differ")
    return parser
