"""What an interpreter is and holds, printed as one line of JSON: `python - MODULE.. < environment_probe.py`.

It runs in that interpreter, which may have nothing but the standard library."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import json
import sys
from pathlib import Path


def places(module: str) -> list[str]:
    """The folders of a package, or the file of a module; none when it is not there. Nothing is imported."""
    try:
        found = importlib.util.find_spec(module)
    except (ImportError, ValueError):
        return []
    if found is None:
        return []
    return [str(Path(place).resolve()) for place in found.submodule_search_locations or [found.origin or ""] if place]


def main() -> None:
    packages: dict[str, str] = {}
    for one in importlib.metadata.distributions():
        name = one.metadata["Name"]
        if name:
            packages.setdefault(name.lower().replace("_", "-"), one.version)  # the first on the path is imported
    found = {module: places(module) for module in sys.argv[1:]}
    print(json.dumps({"version": list(sys.version_info[:3]), "packages": packages, "modules": found}))


if __name__ == "__main__":
    main()
