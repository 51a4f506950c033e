"""Environments of scorers: their packages decide how a scorer runs, or that it is refused."""

from __future__ import annotations

import dataclasses
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from services import environments, settings
from services.environments import CHILD_NEEDS, REPLICA_NEEDS, Environment, placement_of, probe
from services.origin import origin
from services.scorers.custom import CustomSettings
from services.scorers.jpeg import JpegSettings
from services.settings_types import ServingSettings
from synod.errors import SettingsError
from tests import venvs

OURS = probe(sys.executable)


def jpeg(**serving: Any) -> JpegSettings:
    return JpegSettings(kind="jpeg", direction="compressibility", serving=ServingSettings(**serving))


def answering(monkeypatch: pytest.MonkeyPatch, environment: Environment) -> None:
    monkeypatch.setattr(environments, "probe", lambda python, package="": environment)


def changed(**packages: str) -> Environment:
    return dataclasses.replace(OURS, packages={**OURS.packages, **packages})


def without(*modules: str) -> Environment:
    return dataclasses.replace(OURS, modules={**OURS.modules, **dict.fromkeys(modules, ())})


def test_current_environment_can_run_a_replica() -> None:
    assert OURS.version == sys.version_info[:3]
    assert OURS.replica_obstacle is None


@pytest.mark.parametrize(
    ("environment", "obstacle"),
    [
        (dataclasses.replace(OURS, version=(3, 12, 1)), "it has Python 3.12, the service has 3.11"),
        (changed(ray="2.59.0"), "it has ray 2.59.0, the service has 2.60.0"),
        (changed(numpy="1.26.4"), "it has numpy 1.26.4, the service has 2."),
        (without("ray", "prometheus_client"), "it lacks ray, prometheus_client"),
        (changed(numpy="2.0.1", transformers="4.45.2"), None),
    ],
)
def test_missing_replica_needs_require_a_child_process(
    monkeypatch: pytest.MonkeyPatch, environment: Environment, obstacle: str | None
) -> None:
    answering(monkeypatch, dataclasses.replace(environment, modules={**environment.modules, "synod": ("here",)}))
    found = placement_of(jpeg(python=sys.executable))
    assert found is not None
    assert (found.child_reason or "").startswith(obstacle or "")
    assert (found.child_reason is None) == (obstacle is None)


@pytest.mark.parametrize(
    ("environment", "message"),
    [
        (dataclasses.replace(OURS, version=(3, 9, 1)), "is Python 3.9.1, but a child process needs 3.10 or later"),
        (without("ray", "synod", "PIL"), "lacks synod, PIL, which .* -m pip install synod pillow"),
    ],
)
def test_environment_without_child_needs_is_refused(
    monkeypatch: pytest.MonkeyPatch, environment: Environment, message: str
) -> None:
    answering(monkeypatch, environment)
    with pytest.raises(SettingsError, match=message):
        placement_of(jpeg(python=sys.executable))


@pytest.mark.slow
def test_missing_custom_package_is_refused() -> None:
    tree = {"kind": "custom", "load": "somewhere:load", "needs": ["image"], "serving": {"python": sys.executable}}
    with pytest.raises(SettingsError, match=r"not find the package 'somewhere' of load = 'somewhere:load': install it"):
        placement_of(CustomSettings.model_validate(tree))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("first", "module", "needs", "dependencies"),
    [
        (
            "ray",
            "services.cluster.host",
            REPLICA_NEEDS,
            {"annotated_types", "google", "pydantic_core", "typing_extensions", "typing_inspection"},
        ),
        ("sys", "synod.worker", CHILD_NEEDS, set()),
    ],
)
def test_needs_list_every_package_that_is_imported(
    first: str, module: str, needs: tuple[str, ...], dependencies: set[str]
) -> None:
    """Without the packages that `first` imports, and `dependencies` of packages in `needs`."""
    program = (
        f"import sys; import {first}; before = set(sys.modules); import {module}\n"
        "print(*{name.partition('.')[0] for name in set(sys.modules) - before if 'site-packages' in "
        "(getattr(sys.modules[name], '__file__', '') or '')})"
    )
    output = subprocess.run(
        [sys.executable, "-c", program], cwd=venvs.ROOT, capture_output=True, text=True, check=True
    ).stdout.split()
    assert {name for name in output if "cython" not in name} - dependencies <= set(needs)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda path: None, r"no such file. Make the environment \(python -m venv .*\) or correct the path"),
        (lambda path: path.mkdir(), "is a folder. Name the interpreter in it, such as '.*/bin/python'"),
        (lambda path: path.write_text("x"), "is not executable. Name the environment's own bin/python"),
    ],
)
def test_missing_interpreter_is_refused(tmp_path: Path, make: Any, message: str) -> None:
    path = tmp_path / "envs" / "bin" / "python"
    path.parent.mkdir(parents=True)
    make(path)
    (tmp_path / "service.toml").write_text(
        '[scorers.it]\nkind = "jpeg"\ndirection = "compressibility"\nserving = { python = "envs/bin/python" }\n'
    )
    with pytest.raises(SettingsError, match=rf"scorers.it.*python = '{path}'.*{message}"):
        settings.load(tmp_path / "service.toml", {})


@pytest.mark.slow
@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("#!/bin/sh\necho 'no such library' >&2; exit 3\n", "ended with status 3 and did not report .*no such library"),
        ("#!/bin/sh\necho hello\n", "ended with status 0 and did not report its version: it printed nothing"),
        ("not a program", "Exec format error.*give the Python of a virtual environment"),
        ("#!/bin/sh\nexec sleep 30\n", r"did not answer within 0\.5 s"),
    ],
)
def test_program_that_is_not_python_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, text: str, message: str
) -> None:
    monkeypatch.setattr(environments, "PROBE_TIMEOUT_S", 0.5 if "sleep" in text else 20.0)
    path = tmp_path / "python"
    path.write_text(text)
    path.chmod(0o755)
    with pytest.raises(SettingsError, match=f"python '{path}'.*{message}"):
        probe(str(path))


def test_origin_follows_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    answering(monkeypatch, OURS)
    before = origin(jpeg(python=sys.executable))
    assert origin(jpeg(python=sys.executable)) == before
    for other in (changed(torch="1.0"), changed(new="0.1"), dataclasses.replace(OURS, version=(3, 11, 99))):
        answering(monkeypatch, other)
        assert origin(jpeg(python=sys.executable)) != before
    assert origin(jpeg(resource="hpsv3")) is None  # its packages are not known here, and no score is reused


def test_scorer_with_an_environment_cannot_be_colocated(tmp_path: Path) -> None:
    path = tmp_path / "service.toml"
    one = '[scorers.{}]\nkind = "jpeg"\ndirection = "compressibility"\nserving = {{ {} }}\n'
    path.write_text(one.format("a", f'python = "{sys.executable}"') + one.format("b", 'colocate_with = "a"'))
    with pytest.raises(SettingsError, match="scorer 'b' is colocated with 'a', which has an environment of its own"):
        settings.load(path, {})
    path.write_text(one.format("a", "") + one.format("b", f'colocate_with = "a", python = "{sys.executable}"'))
    with pytest.raises(SettingsError, match="python with colocate_with = 'a'"):
        settings.load(path, {})


@pytest.mark.parametrize("place", ["server.gateway_resource", "scorers.it.serving.resource"])
def test_resource_reserved_by_ray_is_refused(tmp_path: Path, place: str) -> None:
    text = 'scorers.it.kind = "jpeg"\nscorers.it.direction = "compressibility"\n'
    (tmp_path / "service.toml").write_text(f'{text}{place} = "GPU"\n')
    with pytest.raises(SettingsError, match="'GPU' is a built-in resource of Ray; name a custom resource"):
        settings.load(tmp_path / "service.toml", {})
