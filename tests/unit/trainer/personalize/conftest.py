"""Fixtures of a tiny policy with room for concepts, and of a concept's folder."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest

from tests.unit.trainer.personalize import tiny_concept
from trainer.personalize.folder import read_concept
from trainer.personalize.records import ConceptRecord
from trainer.policy.show_o.magvit import Magvit
from trainer.policy.show_o.policy import ShowO
from trainer.policy.show_o.vocabulary import Vocabulary


@pytest.fixture
def make_policy(vocab: Vocabulary, vq: Magvit) -> Callable[..., ShowO]:
    return partial(tiny_concept.make_policy, vocab, vq)


@pytest.fixture(scope="session")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_concept.write_concept(tmp_path_factory.mktemp("data") / "dot")


@pytest.fixture(scope="session")
def concept(folder: Path) -> ConceptRecord:
    return read_concept(folder)
