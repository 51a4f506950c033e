"""The errors: each has one code and one status, and survives the wire."""

from __future__ import annotations

import copy
from collections.abc import Iterator

import grpc
import pytest

from synod import errors
from synod.errors import SynodError, error_of


def family(kind: type[SynodError]) -> Iterator[type[SynodError]]:
    yield kind
    for child in kind.__subclasses__():
        yield from family(child)


TREE = list(family(SynodError))
RETRIED_HTTP = {429, 503, 504}
RETRIED_GRPC = {"RESOURCE_EXHAUSTED", "UNAVAILABLE", "DEADLINE_EXCEEDED"}


@pytest.mark.parametrize("kind", TREE)
def test_error_of_returns_the_class_of_each_code(kind: type[SynodError]) -> None:
    found = error_of(kind.code, "why")
    assert (type(found), found.message) == (kind, "why")


def test_codes_are_unique_and_every_error_is_documented() -> None:
    codes = [kind.code for kind in TREE]
    assert len(set(codes)) == len(codes)
    drawing = (errors.__doc__ or "").partition("`SettingsError`")[0]
    drawn = {line.strip("│├└─ ").split()[0] for line in drawing.splitlines()[2:] if line.strip()}
    assert drawn == {kind.__name__ for kind in TREE}


@pytest.mark.parametrize("kind", TREE)
def test_only_temporary_errors_are_retryable(kind: type[SynodError]) -> None:
    assert kind.retryable == issubclass(kind, errors.Unavailable | errors.UnknownImage)
    assert 400 <= kind.http_status < 600


def test_an_unknown_code_stays_in_the_message() -> None:
    assert (type(error_of("x", "m")), str(error_of("x", "m"))) == (SynodError, "x: m")
    assert type(error_of("x", "m", retryable=True)) is errors.Unavailable


@pytest.mark.parametrize("kind", TREE)
def test_every_error_has_a_grpc_status(kind: type[SynodError]) -> None:
    assert grpc.StatusCode[kind.grpc_status] not in (grpc.StatusCode.OK, grpc.StatusCode.UNKNOWN)


def test_http_and_grpc_statuses_agree() -> None:
    """A proxy or generic client that sees only the status reacts alike on both transports."""
    again = {kind: kind.grpc_status in RETRIED_GRPC for kind in TREE}
    assert again == {kind: kind.http_status in RETRIED_HTTP for kind in TREE}
    assert again == {kind: issubclass(kind, errors.Unavailable) for kind in TREE}


@pytest.mark.parametrize("kind", TREE)
def test_errors_can_be_pickled(kind: type[SynodError]) -> None:
    """Ray sends exceptions between processes by `__reduce__`."""
    error = kind("why", retry_after_s=2.5)
    if isinstance(error, errors.UnknownImage):
        error.digests = ("blake2b-256:00",)
    found = copy.copy(error)
    assert (type(found), found.message, found.__dict__) == (kind, "why", error.__dict__)


def test_retry_after_and_digests_are_restored() -> None:
    found = error_of("unknown_image", "why", digests=["d"], retry_after_s=3.0)
    assert isinstance(found, errors.UnknownImage)
    assert (found.digests, found.retry_after_s) == (("d",), 3.0)
    assert error_of("overloaded", "why", retry_after_s=0.5).retry_after_s == 0.5
    assert error_of("later", "why", retryable=True, retry_after_s=0.5).retry_after_s == 0.5
