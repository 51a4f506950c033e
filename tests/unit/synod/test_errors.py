"""The error tree: one code, one status, one way back from the wire."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from synod import errors
from synod.errors import SynodError, error_of


def family(kind: type[SynodError]) -> Iterator[type[SynodError]]:
    yield kind
    for child in kind.__subclasses__():
        yield from family(child)


TREE = list(family(SynodError))


@pytest.mark.parametrize("kind", TREE)
def test_every_error_comes_back_from_its_code(kind: type[SynodError]) -> None:
    told = error_of(kind.code, "why")
    assert (type(told), told.message) == (kind, "why")


def test_codes_are_unique_and_every_error_is_drawn() -> None:
    codes = [kind.code for kind in TREE]
    assert len(set(codes)) == len(codes)
    drawing = (errors.__doc__ or "").partition("`SettingsError`")[0]
    drawn = {line.strip("│├└─ ").split()[0] for line in drawing.splitlines()[2:] if line.strip()}
    assert drawn == {kind.__name__ for kind in TREE}


@pytest.mark.parametrize("kind", TREE)
def test_only_what_may_pass_is_retryable(kind: type[SynodError]) -> None:
    assert kind.retryable == issubclass(kind, errors.Unavailable)
    assert 400 <= kind.http_status < 600


def test_an_unknown_code_stays_in_the_message() -> None:
    assert (type(error_of("x", "m")), str(error_of("x", "m"))) == (SynodError, "x: m")
    assert type(error_of("x", "m", retryable=True)) is errors.Unavailable
