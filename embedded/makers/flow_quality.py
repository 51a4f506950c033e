"""`python -m embedded.makers.flow_quality`: measure the flow models and rewrite embedded/QUALITY_FLOW.md.

The production loaders and scorers run on held-out prompts and fresh renders. Exits 1 when the codec costs a scorer's
metric more than MAX_TOKENIZER_LOSS, or a metric is below its floor.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Final

import numpy as np
import torch

from embedded import world
from embedded.makers import accept, language, metrics, quality
from embedded.makers.__main__ import FLOW, LANGUAGE, ROOT, SANA, SCENES
from embedded.makers.metrics import Degradation, Metric
from embedded.world.language import WORD
from embedded.world.visual_questions import NO, YES
from services.models import transformers_clip
from services.scorers.clip_direction import ClipDirection, ClipDirectionSettings
from services.settings import load
from synod.contracts import Pixels, ScoreItem
from synod.replies import answer_parts
from trainer.policy.flow import language as policy_language
from trainer.policy.flow.policy import FlowPolicy
from trainer.run import make_policy
from trainer.settings import load as load_trainer
from trainer.settings.data import REFLECT
from trainer.types import Query

SEED: Final = 910
PER_TASK: Final = 84  # images of each GenEval task: 504
PAIRS: Final = 600  # of captions, edits and images
ANSWERS: Final = 200
LONGEST: Final = 64  # tokens of an answer
CODEC: Final = "codec"  # column of images that the codec encoded and decoded
_TEXT = """# Quality of the embedded flow models

Measured by `python -m embedded.makers.flow_quality` (the end of `make weights PARTS=flow`) through the production
loaders and scorers, on held-out prompts and fresh renders, which no maker has seen.

## What the codec costs

Images that the codec encoded and decoded may cost a scorer's metric at most {most:.0f} points of its clean value. The
judge loses more, as with the image tokenizer of `QUALITY.md`, which explains the metrics.

{codec}
## The policy before reinforcement learning

Held-out prompts, one image each, by GenEval's official rule, with the sampler of `deploy/configs/embedded_flow.toml`
(± standard error): the SDE draws as training does, the ODE as evaluations do.

| task | n | SDE | ODE |
|---|--:|--:|--:|
{start}
## The CLIP of scenes, and the language model

| metric | n | value | floor |
|---|--:|--:|--:|
{readers}
An edit is a pair of scenes of one task; the right direction is that of its own prompts, the wrong one that to a third
prompt. Answers are sampled at temperature 1.

## Models

`python -m embedded.makers --parts flow` trained them on two cores, sana-world (the codec, then the transformer with
its text encoder) with two threads, the others with one each. Training minutes are CPU minutes per thread.

{models}"""


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m embedded.makers.flow_quality",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--weights", type=Path, default=ROOT / "embedded/weights", help="the models (%(default)s)")
    parser.add_argument(
        "--output", type=Path, default=ROOT / "embedded/QUALITY_FLOW.md", help="the document to write (%(default)s)"
    )
    options = parser.parse_args(arguments)
    service = load(ROOT / "deploy/configs/embedded.toml", without=("golden",))
    policy = policy_of(options.weights)
    rows = quality.measure(service, {"clean": lambda image: image, CODEC: codec_of(policy)})
    start = {
        "SDE": accept.geneval(policy, service.scorers["geneval"], PER_TASK),
        "ODE": drawn_by_ode(policy, lambda: accept.geneval(policy, service.scorers["geneval"], PER_TASK)),
    }
    readers = [*scenes(options.weights / SCENES, PAIRS), *answers(options.weights / LANGUAGE, ANSWERS)]
    options.output.write_text(document(rows, start, readers, options.weights))
    lost = [name for name, _, (clean, coded), floor in rows if floor and clean - coded > quality.MAX_TOKENIZER_LOSS]
    low = [one.name for one in readers if one.floor is not None and one.value < one.floor]
    print(options.output.read_text(), f"degraded by the codec: {', '.join(lost) or 'none'}", sep="\n")
    print(f"below their floor: {', '.join(low) or 'none'}")
    return int(bool(low or [name for name in lost if "judge" not in name]))


def policy_of(weights: Path) -> FlowPolicy:
    """Load sana-world with the settings of its training."""
    model = {"SYNOD__TRAINER__POLICY__MODEL": str(weights.resolve() / SANA)}
    policy = make_policy(load_trainer(ROOT / "deploy/configs/embedded_flow.toml", model))
    assert isinstance(policy, FlowPolicy)
    return policy


def codec_of(policy: FlowPolicy) -> Degradation:
    """Return the degradation by the policy's codec: encode and decode."""

    def coded(image: Pixels) -> Pixels:
        (segment,) = policy.start([""], [(0,)])
        return policy.images([replace(segment, clean_CHW=policy.encode(image))])[0]

    return coded


def drawn_by_ode(policy: FlowPolicy, measured: Callable[[], dict[str, Metric]]) -> dict[str, Metric]:
    """Return what is measured while the policy draws as in evaluations."""
    with policy.evaluating():
        return measured()


def scenes(directory: Path, count: int) -> list[Metric]:
    """Measure the CLIP of scenes: captions with one wrong word, directions of edits, and images of one prompt."""
    clip, rng = transformers_clip.load(str(directory), "cpu"), np.random.default_rng(SEED)
    prompts = [_prompts(rng) for _ in range(count)]
    images = [[world.render(world.scene_for(one, rng), rng).image for one in (a, b, a)] for a, b, _ in prompts]
    seen = [clip.image_features(three) for three in images]
    said = clip.text_features([one.text for three in prompts for one in three]).reshape(count, 3, -1)
    off = clip.text_features([world.change_one_word(a, rng) for a, _, _ in prompts])
    own = np.array([rows[0] @ text[0] for rows, text in zip(seen, said, strict=True)])
    wrong = np.array([rows[0] @ text for rows, text in zip(seen, off, strict=True)])
    alike = np.array([rows[0] @ rows[2] - rows[0] @ rows[1] for rows in seen])
    editor = ClipDirection("clip_direction", clip, _direction(directory))
    items = [_edit(three, shown, to) for three, shown in zip(prompts, images, strict=True) for to in (1, 2)]
    right = np.array([one.value for one in metrics.scores(editor, items)]).reshape(count, 2)
    return [
        Metric("scenes: true caption above one word off", float((own > wrong).mean()), count, 0.8),
        Metric("scenes: edit in its own direction", float((right[:, 0] > right[:, 1]).mean()), count, 0.8),
        Metric("scenes: images of one prompt are closer", float((alike > 0).mean()), count, 0.8),
    ]


def _prompts(rng: np.random.Generator) -> tuple[world.Prompt, world.Prompt, world.Prompt]:
    """Return three held-out prompts of one task that ask for different things."""
    pool = world.POOLS[world.GENEVAL_TASKS[int(rng.integers(len(world.GENEVAL_TASKS)))], "heldout"]
    a, b, c = (pool[int(i)] for i in rng.choice(len(pool), 3, replace=False))
    return a, b, c


def _direction(directory: Path) -> ClipDirectionSettings:
    model = {"family": "transformers", "model": str(directory.resolve())}
    return ClipDirectionSettings.model_validate({"kind": "clip_direction", "model": model})


def _edit(prompts: Sequence[world.Prompt], images: Sequence[Pixels], to: int) -> ScoreItem:
    return ScoreItem(
        image=images[1],
        prompt=prompts[to].text,
        source_prompt=prompts[0].text,
        references=(images[0],),
    )


def answers(directory: Path, count: int) -> list[Metric]:
    """Measure the language model: yes or no, other answers, the format of refined prompts, and judged images.

    Answers are compared word by word: a decoded text has spaces before its punctuation.
    """
    model, words = policy_language.load(directory, LONGEST)
    rng = np.random.default_rng(SEED + 1)
    kinds: dict[str, list[bool]] = {"yes or no": [], "other answers": [], "refined in the format": [], "judged": []}
    while min(map(len, kinds.values())) < count:
        a, b, _ = _prompts(rng)
        rendered = world.render(world.scene_for(a, rng), rng)
        asked = world.questions(rendered, rng)
        question, answer = asked[int(rng.integers(len(asked)))]
        said = answered(model, words, Query(question, rendered.image), rng)
        kinds["yes or no" if answer in (YES, NO) else "other answers"].append(
            WORD.findall(said) == WORD.findall(answer)
        )
        refined = answered(model, words, Query(language.REFINE.format(prompt=a.text)), rng)
        kinds["refined in the format"].append(bool(answer_parts(refined)[0]))
        shown = bool(rng.random() < 0.5)
        judging = REFLECT.format(prompt=(a if shown else b).text)
        verdict, _ = answer_parts(answered(model, words, Query(judging, rendered.image), rng))
        kinds["judged"].append(verdict == ("yes" if shown else "no"))
    return [Metric(f"language: {name}", float(np.mean(hits)), len(hits), None) for name, hits in kinds.items()]


def answered(model: Any, words: policy_language.Language, query: Query, rng: np.random.Generator) -> str:
    """Sample an answer."""
    return words.sample(model, query, torch.from_numpy(rng.random((1, LONGEST))))[0].text


def document(
    rows: Sequence[quality.Row], start: Mapping[str, Mapping[str, Metric]], readers: Sequence[Metric], weights: Path
) -> str:
    """Return the text of QUALITY_FLOW.md."""
    tasks = [(task, one.n, [start[name][task] for name in ("SDE", "ODE")]) for task, one in start["SDE"].items()]
    floor = {one.name: "" if one.floor is None else f"{100 * one.floor:.0f} %" for one in readers}
    return _TEXT.format(
        most=100 * quality.MAX_TOKENIZER_LOSS,
        codec=quality.scores_table(rows, ["clean", CODEC]),
        start="".join(f"| {task} | {n} | {' | '.join(map(quality.format_value, two))} |\n" for task, n, two in tasks),
        readers="".join(
            f"| {one.name} | {one.n} | {quality.format_value(one)} | {floor[one.name]} |\n" for one in readers
        ),
        models=quality.models_table(weights / name for name in FLOW),
    )


if __name__ == "__main__":
    sys.exit(main())
