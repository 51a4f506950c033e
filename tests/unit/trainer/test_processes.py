"""The variables of launchers: those of torchrun count, those of others are explained, half of them is refused."""

from __future__ import annotations

import pytest

from synod.errors import SettingsError
from tests.unit.trainer.loops import MakeSettings
from trainer.dry_run import dry_run
from trainer.launch import launch
from trainer.processes import processes
from trainer.run import run

TORCHRUN = {"RANK": "1", "WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "29500"}


@pytest.mark.parametrize(
    ("environ", "world"),
    [
        ({}, 1),
        (TORCHRUN, 2),
        ({"WORLD_SIZE": "1"}, 1),
        ({"WORLD_SIZE": "1", "RANK": "0"}, 1),
        ({"SLURM_NTASKS": "1", "SLURM_PROCID": "0"}, 1),
        ({"SLURM_NTASKS": "4", "SLURM_STEP_NUM_TASKS": "1"}, 1),  # `srun --ntasks 1` in an allocation of four
        ({**TORCHRUN, "SLURM_NTASKS": "2"}, 2),  # `srun torchrun`: the launcher below Slurm counts
        ({**TORCHRUN, "OMPI_COMM_WORLD_SIZE": "4"}, 2),
    ],
)
def test_processes_are_those_of_the_launcher(environ: dict[str, str], world: int) -> None:
    assert processes(environ) == world


@pytest.mark.parametrize(
    ("environ", "message"),
    [
        ({"WORLD_SIZE": "two"}, "WORLD_SIZE is 'two', not a whole number of at least 1"),
        ({"WORLD_SIZE": "0"}, "WORLD_SIZE is '0', not a whole number of at least 1"),
        ({"WORLD_SIZE": ""}, "WORLD_SIZE is '', not a whole number of at least 1"),
        ({**TORCHRUN, "RANK": "-1"}, "RANK is '-1', not a whole number of at least 0"),
        ({**TORCHRUN, "RANK": "2"}, "RANK is 2, but WORLD_SIZE 2 has only the ranks 0 to 1"),
        ({"RANK": "1", "WORLD_SIZE": "1"}, "RANK is 1, but WORLD_SIZE 1 has only the ranks 0 to 0"),
        ({"WORLD_SIZE": "2"}, "WORLD_SIZE is 2, but RANK is not set"),
        ({"WORLD_SIZE": "2", "RANK": "0"}, "WORLD_SIZE is 2, but MASTER_ADDR and MASTER_PORT are not set"),
        ({"WORLD_SIZE": "2", "RANK": "0", "MASTER_ADDR": "a"}, "WORLD_SIZE is 2, but MASTER_PORT is not set"),
        ({"RANK": "0"}, "RANK is 0, but WORLD_SIZE is not set"),
        ({"SLURM_NTASKS": "2", "SLURM_PROCID": "1"}, r"Slurm has started 2 processes \(SLURM_NTASKS\)"),
        ({"SLURM_NTASKS": "4", "SLURM_STEP_NUM_TASKS": "3"}, r"Slurm has started 3 processes \(SLURM_STEP_NUM_TASKS\)"),
        ({"OMPI_COMM_WORLD_SIZE": "2"}, r"Open MPI has started 2 processes \(OMPI_COMM_WORLD_SIZE\)"),
        ({"PMI_SIZE": "8"}, r"MPICH has started 8 processes \(PMI_SIZE\)"),
    ],
)
def test_other_variables_are_refused(environ: dict[str, str], message: str) -> None:
    with pytest.raises(SettingsError, match=rf"{message}.*torchrun --nproc-per-node N -m trainer CONFIG"):
        processes(environ)


@pytest.mark.parametrize("start", [run, launch, dry_run])
def test_refused_variables_leave_no_file(
    tiny_settings: MakeSettings, monkeypatch: pytest.MonkeyPatch, start: object
) -> None:
    settings = tiny_settings()
    monkeypatch.setenv("SLURM_NTASKS", "2")
    with pytest.raises(SettingsError, match="Slurm has started 2 processes"):
        start(settings)  # type: ignore[operator]
    assert not settings.run_dir.exists()


def _under_torchrun(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in TORCHRUN.items():
        monkeypatch.setenv(name, value)


def test_workers_under_torchrun_are_refused(tiny_settings: MakeSettings, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each of its processes would start workers."""
    settings = tiny_settings(RANKS__WORKERS="2", PROMPTS_PER_STEP="2")
    _under_torchrun(monkeypatch)
    with pytest.raises(SettingsError, match=r"workers = 2 .* has started 2 \(WORLD_SIZE\); give workers = 0"):
        launch(settings)
    assert not settings.run_dir.exists()


def test_a_dry_run_under_torchrun_is_refused(tiny_settings: MakeSettings, monkeypatch: pytest.MonkeyPatch) -> None:
    settings = tiny_settings()
    _under_torchrun(monkeypatch)
    with pytest.raises(SettingsError, match="--dry-run measures one process, but a launcher has started 2"):
        dry_run(settings)
