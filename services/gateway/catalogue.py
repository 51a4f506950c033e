"""Describe what a gateway serves: scorers, ensembles and limits."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict

from services.backends import ScorerBackend, ScorerSpec
from services.settings import MAX_REFERENCES, MAX_SEGMENTS, MAX_TEXT_CHARS, EnsembleSettings, LimitSettings
from synod.contracts import Catalogue, EnsembleInfo, ScorerInfo


async def catalogue_of(
    backend: ScorerBackend, ensembles: Mapping[str, EnsembleSettings], limits: LimitSettings
) -> Catalogue:
    """Return the catalogue. A scorer with a ready replica also has what that replica found when it loaded."""
    loaded = {name: asdict(one) for name, one in (await backend.loaded()).items()}
    return Catalogue(
        tuple(_scorer_info(spec, loaded.get(name, {})) for name, spec in backend.specs.items()),
        {
            name: EnsembleInfo(e.weights, {str(k): w for k, w in e.by_kind.items()}, e.missing, e.clip_at_zero)
            for name, e in ensembles.items()
        },
        {
            **limits.model_dump(mode="json"),
            "max_references": MAX_REFERENCES,
            "max_text_chars": MAX_TEXT_CHARS,
            "max_segments": MAX_SEGMENTS,
        },
    )


def _scorer_info(spec: ScorerSpec, loaded: Mapping[str, object]) -> ScorerInfo:
    model = None if spec.origin is None else spec.origin.model
    info = (spec.name, spec.needs, spec.low, spec.high, spec.source, spec.summary, model)
    return ScorerInfo(*info, **loaded)  # type: ignore[arg-type]
