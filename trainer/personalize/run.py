"""One concept through its stages: skip those that are done, train the others, write the concept's files.

<run_dir>/stage-1/   concept/ (rows.safetensors, concept.json), checkpoints/, metrics.jsonl, tensorboard/,
                     grid.png (images after the stage), settings.json
<run_dir>/stage-2/, stage-3/   the same; stage-3/regions/ has the drawn images, and its regions in white
<run_dir>/concept/   the last stage's, for [trainer.policy] concepts
<run_dir>/report.html   images, regions and losses of all stages, and photographs.png, decoded.png and class_word.png
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, Final

import numpy as np
from tqdm import tqdm

from synod.contracts import Pixels
from synod.errors import SettingsError
from synod.images import encode_png
from trainer.agreement import SAMPLE
from trainer.checkpoint import differences, file_digest, flattened
from trainer.distributed import device
from trainer.evaluate.draw import digest_of
from trainer.images import sheet, write_whole
from trainer.personalize import stages
from trainer.personalize.examples import Photos, questions
from trainer.personalize.files import CONCEPT, ROWS, ConceptInfo, check_base, load_concept, save_concept, with_base
from trainer.personalize.folder import read_folder
from trainer.personalize.initialise import face_rows, region_prompt
from trainer.personalize.records import ConceptRecord, load_images, load_photos, notify_unnamed
from trainer.personalize.start import Start
from trainer.personalize.tokens import Rows, base_digest, check_prompts, check_room, insert, remove, vq_digest
from trainer.policy import registry
from trainer.policy.show_o.policy import ShowO, fit_to_square
from trainer.policy.show_o.vocabulary import ConceptTokens, Vocabulary
from trainer.report.stages import CLASS_WORD, DECODED, GRID, PHOTOGRAPHS, write_stages
from trainer.run_dir import run_lock
from trainer.settings.personalize import PersonalizeSettings
from trainer.stop import stop_on_signal

GRID_IMAGES: Final = 16
GRID_SEED: Final = 1_000_003
SHORT_SIDE: Final = 1024  # twice the side of the largest published Show-o's images
# Settings that do not change a stage's result, or are compared by their content.
_FREE: Final = frozenset(
    {
        *("run_dir", "stages", "data", "faces", "stage_1", "stage_2", "stage_3"),
        *("policy.model", "policy.vq", "policy.checkpointing", "policy.lora"),
    }
)
Log = Callable[[str], None]


def personalize(
    settings: PersonalizeSettings, *, force_base: bool = False, skip_bad: bool = False, log: Log = tqdm.write
) -> int:
    """Run the stages of the settings in order and return the exit status: 0, also when stopped by a signal.

    Raises SettingsError, CheckpointMismatch, CheckpointNotWritten and NonFinite.
    """
    concept = only_concept(settings.data)
    with run_lock(settings.run_dir):
        concept, photos = read_photos(concept, log, skip_bad=skip_bad)
        policy = load_base(settings)
        _check(settings, concept, policy)
        if unknown := unknown_words(concept, policy.vocab):
            log(
                f"the model's tokenizer has no token for {', '.join(unknown)}: the model can neither read nor say "
                f"them; use other words in {concept.folder}, and let `synod personalize prepare FOLDER --replace` "
                "write the questions again"
            )
        base, weights, data = base_digest(policy), digest_of(policy, SAMPLE), data_digest(concept, photos)
        start = Start(policy, concept, photos, settings, log)
        with stop_on_signal(settings.run_dir, "epoch") as stop:
            for number in settings.stages:
                directory, before = settings.run_dir / f"stage-{number}", _before(settings, number)
                conditions = conditions_of(settings, number, weights, data, before)
                if is_done(directory, conditions):
                    log(f"stage {number} is done: {directory / 'concept'}")
                    continue
                is_new = number == settings.stages[0] and not (directory / "settings.json").exists()
                if is_new or not (settings.run_dir / CLASS_WORD).exists():
                    _write_sheets(policy, settings, concept, photos)
                info, rows = _rows(start, number, before, base, directory, force_base=force_base)
                insert(policy, info.tokens, rows)
                write_whole(directory / "settings.json", (json.dumps(conditions, indent=2) + "\n").encode())
                done = stages.train_stage(policy, concept, photos, settings, number, directory, conditions, stop)
                if done:
                    write_whole(directory / GRID, encode_png(grid(policy, settings, concept.name)))
                choices = policy.vocab.codebook_size if settings.t2i_loss == "codes" else policy.vocab.size
                report = write_stages(settings.run_dir, concept.name, choices)
                if not done:
                    log(f"stopped in stage {number}; the same command resumes it")
                    return 0
                save_concept(directory / "concept", info, remove(policy, concept.name))
                log(f"stage {number}: {directory / 'concept'}, {report}")
        _publish(settings, log)
    return 0


def _rows(
    start: Start, number: int, before: Path | None, base: str, directory: Path, *, force_base: bool
) -> tuple[ConceptInfo, Rows]:
    """Return the concept and its rows at the start of a stage. Raises SettingsError for rows of another base model."""
    vq = vq_digest(start.policy)
    if before is None:
        info, rows = start.understanding(base)
        return with_base(info, base, vq), rows
    info, rows = load_concept(before)
    check_base(before, info, base, vq, force_base=force_base)
    info = with_base(info, base, vq)
    if number == 2:
        return start.generation(info, rows)
    return start.from_images(info, rows, directory / "regions")


def only_concept(folder: Path) -> ConceptRecord:
    """Return the concept of a folder, which may be one of UnifyBench's concept/train/<c>. Raises SettingsError."""
    root = folder.parents[2] if len(folder.parents) > 2 and folder.parts[-3:-1] == ("concept", "train") else folder
    records = read_folder(root)
    if root != folder:
        return records[f"<{folder.name}>"]
    if len(records) != 1:
        raise SettingsError(
            f"[personalize] data = {folder} has {len(records)} concepts ({', '.join(list(records)[:3])}, ..); give the "
            "folder of one"
        )
    return next(iter(records.values()))


def load_base(settings: PersonalizeSettings) -> ShowO:
    """Return the base policy on its device, every weight frozen. Raises SettingsError."""
    policy = registry.load(settings.policy)
    assert isinstance(policy, ShowO), "concept tokens need a Show-o"
    policy.module.requires_grad_(False)
    policy.to(device())
    return policy


def read_photos(concept: ConceptRecord, log: Log, *, skip_bad: bool) -> tuple[ConceptRecord, Photos]:
    """Read every image that the stages use; with `skip_bad` leave out those that cannot be read.

    Images larger than SHORT_SIDE are reduced, since all are kept in memory: 100 of a telephone have 4 GB.
    """
    photos: dict[Path, Pixels] = dict(load_photos(concept, log, skip_bad=skip_bad, short_side=SHORT_SIDE))
    names = {path.name for path in photos}
    if left_out := len(concept.conversations) - len(concept.taught):
        log(f"{left_out} questions state facts that info.json's heldout holds out: left out")
    talks = tuple(one for one in concept.taught if one.image is None or one.image in photos)
    notify_unnamed(concept.name, [one.text for one in talks], concept.folder / "conversations.json", log)
    cropped = tuple(path for path in concept.cropped if path.name in names)
    train = tuple(photos)
    photos |= load_images((*cropped, *concept.random, *concept.hard), log, skip_bad=skip_bad, short_side=SHORT_SIDE)
    cropped, random, hard = (tuple(p for p in one if p in photos) for one in (cropped, concept.random, concept.hard))
    return replace(concept, train=train, conversations=talks, cropped=cropped, random=random, hard=hard), photos


def data_digest(concept: ConceptRecord, photos: Photos) -> str:
    """Return a digest of the concept's texts and images, wherever its folder is."""
    digest = hashlib.blake2b(digest_size=16)
    talks = [(one.text, one.answer, one.image and one.image.name) for one in concept.conversations]
    texts = [concept.name, concept.class_word, concept.concept.kind, concept.recognition, talks]
    digest.update(json.dumps(texts).encode())
    for paths in (concept.train, concept.cropped, concept.random, concept.hard):
        for path in paths:
            digest.update(path.name.encode() + photos[path].tobytes())
    return digest.hexdigest()


def conditions_of(
    settings: PersonalizeSettings, number: int, weights: str, data: str, before: Path | None
) -> dict[str, Any]:
    """Return what a stage's result depends on, by key: settings, base model, data and the rows of the stage before."""
    table = settings.model_dump(mode="json")
    flat = flattened(table, _FREE)
    own = flattened({f"stage_{number}": settings.stage(number).model_dump(mode="json")})
    faces = None if settings.faces is None else file_digest(settings.faces)
    content = {"base model and tokenizer (digest)": weights, "data (content)": data, "faces (content)": faces}
    if before is not None:
        content["stage before (rows)"] = file_digest(before / ROWS)
    return {**{f"personalize.{key}": value for key, value in (flat | own).items()}, **content}


def is_done(directory: Path, conditions: Mapping[str, Any]) -> bool:
    """Return whether a stage has its result. Raises SettingsError if it was started with other settings or data."""
    path = directory / "settings.json"
    if not path.exists():
        return False
    changes = differences(json.loads(path.read_text()), conditions, "there", "now", "")
    if changes:
        raise SettingsError(
            f"{directory} was trained with other settings:\n" + "\n".join(changes) + "\nGive [personalize] a new "
            "`run_dir`, or remove this directory and those of later stages"
        )
    return (directory / "concept" / CONCEPT).exists()


def _write_sheets(policy: ShowO, settings: PersonalizeSettings, concept: ConceptRecord, photos: Photos) -> None:
    """Write what the report shows next to the stages: the photographs, the same from their codes, the class word."""
    seen = [fit_to_square(photos[path], policy.image_side) for path in concept.train[:GRID_IMAGES]]
    write_whole(settings.run_dir / PHOTOGRAPHS, encode_png(sheet(seen)))
    write_whole(settings.run_dir / DECODED, encode_png(sheet(policy.vq.decode(policy.vq.encode(seen)))))
    drawn = grid(policy, settings, f"the {concept.class_word}")
    write_whole(settings.run_dir / CLASS_WORD, encode_png(drawn))


def grid(policy: ShowO, settings: PersonalizeSettings, name: str) -> Pixels:
    """Return GRID_IMAGES images of the prompt in rows of four, uint8 [H W 3]; the same noise after every stage."""
    seeds = [(settings.seed, GRID_SEED, i) for i in range(GRID_IMAGES)]
    found: list[Pixels] = []
    for first in tqdm(range(0, GRID_IMAGES, 4), desc=f"drawing {name} for the report", unit="batch"):
        begun = policy.start([settings.prompt.format(name)] * 4, seeds[first : first + 4])
        found += policy.images(policy.denoise(begun, policy.image_steps))
    return sheet(found)


def _check(settings: PersonalizeSettings, concept: ConceptRecord, policy: ShowO) -> None:
    """Raise SettingsError for what no stage can train on, and for names, tokens and files that do not fit together."""
    tokens = settings.tokens
    if settings.faces is not None and not settings.faces.is_file():
        raise SettingsError(
            f"[personalize] faces = {settings.faces} does not exist; write it by `python -m services faces CONFIG "
            f"{concept.train[0].parent} {settings.faces}`, or leave it out"
        )
    if settings.faces is not None and concept.concept.kind == "person" and 2 in settings.stages:
        face_rows(settings.faces, tokens.generation, policy.phi.model.embed_tokens.weight.shape[1])
    if concept.name in policy.vocab.base_tokenizer.get_vocab():
        raise SettingsError(
            f"{concept.folder}: '{concept.name}' is not a new token, the model has it already; give the concept "
            "another name, and let `synod personalize prepare FOLDER --replace` write its questions again"
        )
    if concept.recognition and not any(concept.name in query for query in concept.recognition):
        raise SettingsError(
            f"{concept.folder}: no recognition question names {concept.name}, but for example "
            f"{concept.recognition[0]!r}; let `synod personalize prepare FOLDER --replace` write them again, or "
            "correct the name"
        )
    own = ConceptTokens(concept.name, tokens.shared, tokens.generation, tokens.understanding)
    check_room(own, policy.vocab)
    prompts = [settings.prompt.format(concept.name)]
    if 3 in settings.stages:
        prompts.append(region_prompt(settings.region_prompt, concept.concept.kind, concept.name))
    check_prompts(policy.vocab.with_personal([own]), prompts)
    if not concept.random and not concept.hard:
        raise SettingsError(
            f"{concept.folder} has no image without {concept.name}: every recognition question would be answered yes, "
            "and the tokens would learn to say yes to any image; `synod personalize prepare FOLDER --random DIR "
            "--pool DIR` copies some into it"
        )
    for number in settings.stages:
        if not questions(concept, stages.RECIPES[number].kinds, np.random.default_rng(0)):
            raise SettingsError(
                f"{concept.folder} has no question that stage {number} trains on; `synod personalize prepare FOLDER` "
                "writes some"
            )


def unknown_words(concept: ConceptRecord, vocab: Vocabulary) -> list[str]:
    """Return the words of the class and of answers for which a tokenizer of whole words has no token."""
    texts = [concept.class_word, *(one.answer.replace(concept.name, "") for one in concept.conversations)]
    words = dict.fromkeys(word for text in texts for word in re.findall(r"\w+", text))
    return [word for word in words if vocab.tokenizer.unk_token_id in vocab.encode(word)]


def _before(settings: PersonalizeSettings, number: int) -> Path | None:
    """Return the concept of the stage before. Raises SettingsError if it is not there."""
    if number == 1:
        return None
    found = settings.run_dir / f"stage-{number - 1}" / "concept"
    if not (found / CONCEPT).exists():
        raise SettingsError(
            f"stage {number} begins with the rows of stage {number - 1}, but {found} does not exist; give "
            "[personalize] stages that begin at 1"
        )
    return found


def _publish(settings: PersonalizeSettings, log: Log) -> None:
    """Copy the last stage's concept to <run_dir>/concept."""
    last = settings.run_dir / f"stage-{settings.stages[-1]}" / "concept"
    target = settings.run_dir / "concept"
    for name in (ROWS, CONCEPT):
        write_whole(target / name, (last / name).read_bytes())
    log(f"the concept's tokens are in {target}; train with them by [trainer.policy] concepts = ['{target}']")
