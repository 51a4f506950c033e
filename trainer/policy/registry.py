"""The families of policies, by the `family` of `[trainer.policy]`."""

from __future__ import annotations

from collections.abc import Callable, Collection
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, cast

from synod.contracts import Pixels
from synod.errors import SettingsError
from trainer.personalize.files import load_concept, load_into
from trainer.policy.base import Policy
from trainer.policy.show_o import loading, ranking
from trainer.policy.show_o.policy import Sampling, ShowO
from trainer.policy.weights import Source
from trainer.settings import FlowSettings, PolicySettings, ShowOSettings

if TYPE_CHECKING:
    from trainer.policy.flow.loading import Parts


@dataclass(frozen=True)
class Family:
    """What the trainer's commands ask of a family, besides what they ask of a policy; settings are the family's own.

    load       settings, the seed of adapters, names of concepts -> a policy, on the CPU
    sources    settings -> where the policy's parts come from
    check      settings, names of concepts -> nothing, or SettingsError if the parts' files do not fit each other
    mean_logp  policy, image, prompt -> how likely the image is; it compares prompts of one image
    """

    load: Callable[[Any, int, Collection[str]], Policy]
    sources: Callable[[Any], list[Source]]
    check: Callable[[Any, Collection[str]], None]
    mean_logp: Callable[[Policy, Pixels, str], float]


def load(settings: PolicySettings, seed: int = 0, concepts: Collection[str] = ()) -> Policy:
    """Load the policy of the settings, on the CPU; `seed` decides the start of its adapters, if it has any.

    `concepts` are names that the prompts will use. Raises SettingsError for files that are missing or do not fit, for
    targets of adapters that it does not have, and for a concept that it has no token for.
    """
    return FAMILIES[settings.family].load(settings, seed, concepts)


def _load_show_o(settings: ShowOSettings, seed: int, concepts: Collection[str]) -> Policy:
    sampling = Sampling(**settings.sampler.model_dump(), positions=settings.positions)
    others = _unknown(settings, concepts)
    policy = loading.load(settings.model, vq=settings.vq, sampling=sampling, concepts=others)
    for directory in settings.concepts:
        load_into(policy, directory)
    policy.phi.checkpointing, policy.dtype = settings.checkpointing, settings.dtype
    if settings.train == "norms":
        policy.train_norms()
    if settings.train == "rows":
        policy.train_rows(_rows(policy))
    if settings.lora is not None:
        policy.add_adapters(**settings.lora.model_dump(), seed=seed, base=settings.model)
    return policy


def _unknown(settings: ShowOSettings, concepts: Collection[str]) -> list[str]:
    """Return the names that no directory of the settings has tokens for. Raises SettingsError."""
    known = {load_concept(directory)[0].tokens.name for directory in settings.concepts}
    return [name for name in concepts if name not in known]


def _rows(policy: ShowO) -> list[int]:
    """Return the rows of all concepts' tokens. Raises SettingsError if the policy has none."""
    found = [row for concept in policy.vocab.personal for row in policy.vocab.rows_of(concept.name)]
    if not found:
        raise SettingsError(
            "[trainer.policy] train = 'rows' trains the tokens of concepts, but the policy has none; give concepts = "
            "[directories] that `synod personalize` wrote, or train = 'all'"
        )
    return found


def _show_o_sources(settings: ShowOSettings) -> list[Source]:
    return loading.Parts.find(settings.model, settings.vq).sources()


def _check_show_o(settings: ShowOSettings, concepts: Collection[str]) -> None:
    loading.check(loading.Parts.find(settings.model, settings.vq), _unknown(settings, concepts))


def _show_o_mean_logp(policy: Policy, image: Pixels, prompt: str) -> float:
    assert isinstance(policy, ShowO)
    return ranking.mean_logp(policy, image, prompt)


# diffusers takes seconds to import: the functions below import this family.


def _load_flow(settings: FlowSettings, seed: int, concepts: Collection[str]) -> Policy:
    from trainer.policy.flow import connector, edits, language
    from trainer.policy.flow import loading as flow
    from trainer.policy.flow.joint import JointPolicy
    from trainer.policy.flow.policy import FlowPolicy
    from trainer.policy.flow.segments import Sampler

    chosen, kind = settings.sampler, cast(Callable[..., FlowPolicy], FlowPolicy)
    if settings.language is not None:
        own, parts = settings.language, _flow_parts(settings)  # a mistake there is found before weights are read
        linked = connector.load(_bridge(settings, parts)) if own.bridge == "queries" else None
        words = language.load(own.model, own.max_new_tokens, checkpointing=settings.checkpointing)
        kind = partial(JointPolicy, *words, settings.trained, linked)
    policy = flow.load(
        settings.model,
        resolution=settings.resolution,
        max_text_length=settings.max_text_length,
        sampler=Sampler.of(
            chosen.denoising_steps, chosen.shift, chosen.eta, schedule=chosen.schedule, window=chosen.sde
        ),
        guidance_scale=chosen.guidance_scale,
        guidance_reference=chosen.guidance_reference,
        has_edits=settings.edits,
        evaluation=None
        if not chosen.evaluation_steps
        else Sampler.of(chosen.evaluation_steps, chosen.shift, 0.0, schedule=chosen.schedule),
        dtype=settings.dtype,
        checkpointing=settings.checkpointing,
        kind=kind,
    )
    if settings.lora is not None:
        edits.check_adapters(policy.transformer, settings.lora.targets, settings.model)
        policy.add_adapters(**settings.lora.model_dump(), seed=seed, base=settings.model)
        _check_targets(policy, settings)
    return policy


def _check_targets(policy: Policy, settings: FlowSettings) -> None:
    """Raise SettingsError if a model that is to be trained has none of the layers that adapters are on."""
    assert settings.lora is not None
    having = {group.kind for group in policy.parameter_groups()}
    for kind in settings.trained:
        if not having & {kind, None}:
            model, example = ("language model", "q_proj") if kind == "text" else ("transformer", "to_q")
            raise SettingsError(
                f"policy.lora.targets {list(settings.lora.targets)} match no layer of the {model}, but policy.trains "
                f"has '{kind}'; add its layers, such as '{example}', or leave '{kind}' out of policy.trains"
            )


def _flow_parts(settings: FlowSettings) -> Parts:
    from trainer.policy.flow import loading as flow

    return flow.Parts.find(settings.model, settings.resolution, settings.max_text_length, has_edits=settings.edits)


def _bridge(settings: FlowSettings, parts: Parts) -> Path:
    from trainer.policy.flow.joint import check_bridge

    assert settings.language is not None
    return check_bridge(settings.model, settings.language.model, parts.configs["transformer"])


def _flow_sources(settings: FlowSettings) -> list[Source]:
    words = [] if settings.language is None else [Source("policy.language.model", settings.language.model)]
    return _flow_parts(settings).sources() + words


def _check_flow(settings: FlowSettings, concepts: Collection[str]) -> None:
    from trainer.policy.flow import connector, language
    from trainer.policy.flow import loading as flow

    parts = _flow_parts(settings)
    if settings.language is not None:
        if settings.language.bridge == "queries":
            connector.check(_bridge(settings, parts))
        language.check(settings.language.model)
    flow.check(parts)


def _flow_mean_logp(policy: Policy, image: Pixels, prompt: str) -> float:
    from trainer.policy.flow import ranking as flow
    from trainer.policy.flow.policy import FlowPolicy

    assert isinstance(policy, FlowPolicy)
    return flow.mean_logp(policy, image, prompt)


FAMILIES: Final[dict[str, Family]] = {
    "show_o": Family(_load_show_o, _show_o_sources, _check_show_o, _show_o_mean_logp),
    "flow": Family(_load_flow, _flow_sources, _check_flow, _flow_mean_logp),
}
