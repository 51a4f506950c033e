"""GenEval (Ghosh et al. 2023): a detector, a colour classifier and four rule sets."""

from services.scorers.geneval.scorer import GenEvalSettings, build, spec

__all__ = ["GenEvalSettings", "build", "spec"]
