"""Hypothesis without a deadline, and with the same examples in every run."""

from __future__ import annotations

from hypothesis import settings

settings.register_profile("synod", deadline=None, derandomize=True)
settings.load_profile("synod")
