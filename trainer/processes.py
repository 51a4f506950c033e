"""How many processes a launcher started, by the environment variables that it set."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

from synod.errors import SettingsError

VARIABLES: Final = ("RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")  # torchrun and Ray Train set them
OTHERS: Final = {  # launchers that set others; the first variable that is set counts
    "Slurm": ("SLURM_STEP_NUM_TASKS", "SLURM_NTASKS"),
    "Open MPI": ("OMPI_COMM_WORLD_SIZE",),
    "MPICH": ("PMI_SIZE",),
}
START: Final = (
    "start the processes by `torchrun --nproc-per-node N -m trainer CONFIG`, or give [trainer.ranks] workers = N to "
    "`synod train`"
)


def processes(environ: Mapping[str, str]) -> int:
    """Return the number of processes that train together: WORLD_SIZE, 1 without a launcher.

    Raises SettingsError for variables that contradict each other, and for those of a launcher that starts several
    processes without RANK and WORLD_SIZE: each of them would train alone.
    """
    if "WORLD_SIZE" not in environ:
        _check_no_launcher(environ)
        return 1
    world = _whole(environ, "WORLD_SIZE", 1)
    rank = _whole(environ, "RANK", 0) if world > 1 or "RANK" in environ else 0
    if rank >= world:
        raise SettingsError(f"RANK is {rank}, but WORLD_SIZE {world} has only the ranks 0 to {world - 1}; {START}")
    missing = [name for name in VARIABLES if name not in environ] if world > 1 else []
    if missing:
        names = f"{' and '.join(missing)} {'is' if len(missing) == 1 else 'are'}"
        raise SettingsError(f"WORLD_SIZE is {world}, but {names} not set; {START}, or unset WORLD_SIZE")
    return world


def _check_no_launcher(environ: Mapping[str, str]) -> None:
    if "RANK" in environ:
        raise SettingsError(f"RANK is {environ['RANK']}, but WORLD_SIZE is not set; {START}, or unset RANK")
    for launcher, names in OTHERS.items():
        name = next((name for name in names if name in environ), None)
        if name is not None and environ[name] != "1":
            raise SettingsError(
                f"{launcher} has started {environ[name]} processes ({name}), but RANK and WORLD_SIZE are not set, so "
                f"each would train alone; start one task on each machine, and there {START}"
            )


def _whole(environ: Mapping[str, str], name: str, least: int) -> int:
    text = environ.get(name)
    if text is None:
        raise SettingsError(
            f"WORLD_SIZE is {environ['WORLD_SIZE']}, but {name} is not set; {START}, or unset WORLD_SIZE"
        )
    if not (text.isascii() and text.isdigit() and int(text) >= least):
        raise SettingsError(f"{name} is {text!r}, not a whole number of at least {least}; {START}, or unset {name}")
    return int(text)
