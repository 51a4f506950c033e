"""The turns of each scenario, the compound prompt, and the service's request items. Pure.

Sync-R1 sec. 3.1: visual instruct reasoning answers a query about an image of the concept, I + Q -> IR; textual
attribute reasoning picks the fact that a vague prompt hints at, Extra_info + IP -> IR. The image is then drawn from
the compound prompt CP = BP (+) IR.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from synod.contracts import Pixels, Reasoning, ScoreItem
from synod.images import to_square
from synod.replies import answer_parts
from trainer.settings.data import TEMPLATES
from trainer.types import ConceptProfile, Condition, Draw, Line, Pathway, Prompt, Query, Result, RewardSpec, Task


def textual_query(facts: Sequence[str], prompt_text: str, template: str = TEMPLATES["plain"], name: str = "") -> str:
    """Return the query of textual attribute reasoning: a template with {facts}, {prompt} and {name} filled in.

    The facts are "{fact}. {fact}" without a period at the end; "plain" is "{facts}. {prompt}".
    """
    return template.format(facts=". ".join(fact.rstrip(". ") for fact in facts), prompt=prompt_text, name=name)


def compound(prompt_text: str, answer: str) -> str:
    """Return CP = BP (+) IR: "{prompt}. {answer}", or the prompt alone if the answer is blank."""
    answer = answer.strip()
    return f"{prompt_text.rstrip('. ')}. {answer}" if answer else prompt_text


def make_task(
    prompt: Prompt,
    profile: ConceptProfile | None,
    pathway: Pathway,
    reward: RewardSpec,
    rng: np.random.Generator,
    template: str = TEMPLATES["plain"],
) -> Task:
    """Create the task of a prompt on a pathway, rewarded by `reward`.

    textual  the query, by `template`, lists the facts in an order drawn from `rng`, without an image; `truth` marks the
             fact that the prompt hints at, and is 0 everywhere if it hints at none (then an empty answer is right)
    visual   a stored (query, answer) is drawn from `rng`, and asked about its image, or about any if it holds of all.
             The segments are the distinct answers that hold of that image (`ConceptProfile.segments_of`) in a random
             order, and `truth` marks the asked one. The paper leaves this pathway's segments open (eq. 30)
    none     no query; the prompt may be about a concept

    Raises ValueError if the pathway needs a profile, facts, answers or images that are missing.
    """
    if pathway == "none":
        return Task(f"{prompt.concept or prompt.tag}/none", "none", prompt, reward, profile)
    if profile is None:
        raise ValueError(f"pathway '{pathway}' needs a concept, but the prompt {prompt.text!r} names none")
    key = f"{prompt.concept}/{pathway}"
    if pathway == "textual":
        if not profile.facts:
            raise ValueError(f"{prompt.concept} has no facts to reason over; give its info.json an extra_info")
        order = rng.permutation(len(profile.facts))
        facts = tuple(profile.facts[i] for i in order)
        truth = tuple(float(i == prompt.fact) for i in order)
        query = Query(textual_query(facts, prompt.text, template, prompt.concept or ""))
        return Task(key, pathway, prompt, reward, profile, query, facts, truth)
    if not profile.answers or not profile.images:
        counts = f"{len(profile.answers)} answers and {len(profile.images)} images"
        raise ValueError(f"{prompt.concept} has {counts}; give at least one of each")
    texts = (*(answer for _, answer in profile.answers), *profile.others)
    order = rng.permutation(len(texts))
    asked = int(rng.integers(len(profile.answers)))
    own = profile.image_of(asked)
    image = int(rng.integers(len(profile.images))) if own is None else own
    question, right = profile.answers[asked]
    found = profile.segments_of(image)
    segments = tuple(dict.fromkeys(texts[i] for i in order if texts[i] in found))
    truth = tuple(float(one == right) for one in segments)
    return Task(key, pathway, prompt, reward, profile, Query(question, profile.images[image]), segments, truth)


def surrogate_item(task: Task, image: Pixels) -> ScoreItem:
    """Return the request item of a preview uint8 [H W 3].

    It holds the original prompt and not the model's own answer, which the policy could learn to exploit: a surrogate
    scorer is not the reward. Where previews are scored by terms of the reward, `reward_item` is sent; so it is of an
    edit, whose prompt says what to do and not what to show.
    """
    if task.caption is not None:
        return reward_item(task, image, "", ())
    return ScoreItem(image, task.prompt.text, concept=None if task.profile is None else task.profile.concept)


def asked_task(prompt: Prompt, template: str, reward: RewardSpec) -> Task:
    """Create the task of a prompt that the policy is asked about first: its answer refines the prompt (scenario 5)."""
    query = Query(template.format(prompt=prompt.text))
    return Task(f"{prompt.tag}/asked", "asked", prompt, reward, None, query, draws=(Draw(read=element),))


def question_task(line: Line, image: Pixels | None, reward: RewardSpec) -> Task:
    """Create the task of a question about an image uint8 [H W 3], or about none: nothing is drawn (scenarios 1, 2)."""
    query = Query(line.text, image)
    return Task(f"{line.tag}/asked", "asked", line, reward, None, query, line.segments, line.truth, draws=())


def edit_task(line: Line, image: Pixels, reward: RewardSpec) -> Task:
    """Create the task of an edit of an image uint8 [H W 3], which is then edited back (scenario 4, eqs. 4 and 5)."""
    draws = (Draw(source=image), Draw(line.reverse, source=0))
    return Task(f"{line.tag}/none", "none", line, reward, draws=draws, caption=line.caption)


def reflection_task(line: Line, image: Pixels, template: str, reward: RewardSpec) -> Task:
    """Create the task of judging an image uint8 [H W 3] and redrawing it by the feedback (scenario 6)."""
    query, draws = Query(template.format(prompt=line.text), image), (Draw(read=feedback, source=image),)
    return Task(f"{line.tag}/asked", "asked", line, reward, None, query, line.segments, line.truth, draws)


def element(reply: str) -> str:
    """Return what is in `<answer>..</answer>` at the reply's start, or the whole reply without such an element."""
    answer, rest = answer_parts(reply)
    return rest if answer is None else answer


def feedback(reply: str) -> str:
    """Return what follows `<answer>..</answer>` at the reply's start, or the whole reply without such an element."""
    return answer_parts(reply)[1]


def condition(task: Task, draw: Draw, answer: str, images: Sequence[Pixels]) -> Condition:
    """Return what a turn draws from, after this answer and these images, uint8 [H W 3], of the rollout so far."""
    source = images[draw.source] if isinstance(draw.source, int) else draw.source
    return Condition(compound(draw.text or task.prompt.text, draw.read(answer)), source)


def result_items(
    task: Task, images: Sequence[Pixels], answer: str, references: Sequence[Pixels]
) -> dict[Result, ScoreItem]:
    """Return the request items of a finished rollout by what is scored: its images, and its answer alone.

    The image that was edited back is compared with the source, and is to show what the source shows.
    """
    item = reward_item(task, images[0] if images else None, answer, references)
    found: dict[Result, ScoreItem] = {"image": item, "answer": replace(item, image=None, references=())}
    if len(images) > 1:
        found["cycled"] = ScoreItem(images[1], task.caption, references=item.references)
    return found


def reward_item(task: Task, image: Pixels | None, answer: str, references: Sequence[Pixels]) -> ScoreItem:
    """Return the request item of an image uint8 [H W 3], with everything that its reward reads.

    Without an image it is for the terms that read only text.

    The prompt is `resolved`, the target of eq. 31: a score against the vague words would accept any hat. GenEval's
    prompts carry their metadata, without references; a plain prompt is sent alone. An edit is sent with its source, as
    the policy reads it (the middle, at the image's size), and both captions.
    """
    prompt = task.prompt
    item = ScoreItem(image, prompt.resolved or prompt.text)
    if task.profile is not None:
        item = replace(item, concept=task.profile.concept, references=tuple(references))
    if task.query is not None:
        item = replace(item, reasoning=Reasoning(answer, task.segments, task.truth))
    if task.caption is not None and isinstance(source := task.draws[0].source, np.ndarray):
        seen = source if image is None else to_square(source, len(image))
        item = replace(item, references=(seen,), source_prompt=task.caption)
    return replace(item, geneval=prompt.geneval)
