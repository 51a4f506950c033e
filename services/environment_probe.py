"""Print an interpreter's version, packages and modules as one line of JSON.

`python - MODULE.. < environment_probe.py` runs in that interpreter and uses only the standard library.
"""

from __future__ import annotations

import importlib.metadata
import importlib.util
import json
import sys
from pathlib import Path


def module_locations(module: str) -> list[str]:
    """Return a package's folders or a module's file, without an import; empty if it is missing."""
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
    found = {module: module_locations(module) for module in sys.argv[1:]}
    print(json.dumps({"version": list(sys.version_info[:3]), "packages": packages, "modules": found}))


if __name__ == "__main__":
    main()
