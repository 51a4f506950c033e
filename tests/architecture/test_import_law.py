"""The import law of docs/architecture.md, read from the syntax tree: lazy imports count too."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
HOUSE = ("synod", "services", "trainer", "embedded")
WEB = ("fastapi", "starlette", "uvicorn")
IO = ("httpx", "io", "json", "logging", "os", "pathlib", "requests", "shutil", "socket", "subprocess", "tqdm")
NETWORK = ("asyncio", "grpc", "httpx", "socket", "subprocess", "threading")
HTTP = ("aiohttp", "http", "httpx", "requests", "urllib")
TELEMETRY = ("opentelemetry",)
FOLDERS = ("services", "services.scorers")  # rooms are inside; their own __init__ holds a docstring


@dataclass(frozen=True)
class Room:
    """`may`: rooms of ours that may be imported, besides the room itself. `never`: outside packages refused."""

    name: str
    may: tuple[str, ...]
    never: tuple[str, ...] = ()


# The most specific room wins. `services.settings` and `services.scorer_settings` are data: typed records of the TOML.
LAW = (
    Room("synod", may=(), never=("torch", "ray", "pydantic", *WEB)),
    *(
        Room(f"synod.client.{part}", may=("synod",), never=("torch", "ray", "pydantic", *NETWORK, *WEB))
        for part in ("core", "flows", "chunks", "references")
    ),
    *(
        Room(pure, may=("synod",), never=("torch", "ray", "pydantic", *NETWORK, *WEB))
        for pure in (
            *("synod.values", "synod.retry"),
            *("synod.adapters.items", "synod.scoring.compare", "synod.scoring.geneval", "synod.scoring.recall"),
        )
    ),
    Room("services.scorer_settings", may=("synod",), never=("torch", "ray", *WEB)),
    Room("services.settings", may=("synod", "services.scorer_settings"), never=("torch", "ray", *WEB)),
    Room(
        "services.origin",
        may=("synod", "services.scorer_settings", "services.environments", "services.environment_probe"),
        never=("torch", "ray", *WEB),
    ),
    Room("services.environments", may=("synod", "services.scorer_settings"), never=("torch", "ray", *WEB)),
    Room("services.child", may=("synod", "services.scorer_settings"), never=("torch", "ray", *WEB)),
    Room("services.environment_probe", may=(), never=("numpy", "torch", "ray", "pydantic", *WEB)),
    Room("services.isolation", may=("synod",), never=("torch", "ray", *WEB)),
    Room("services.batching", may=("synod", "services.isolation"), never=("torch", "ray", *WEB)),
    Room("services.combine", may=("synod",), never=("torch", "ray", *WEB)),
    Room(
        "services.backends",
        may=("synod", "services.scorers.base", "services.batching"),
        never=("torch", "ray", *WEB),
    ),
    Room(
        "services.golden",
        may=("synod", "services.scorers.base", "services.scorer_settings"),
        never=("torch", "ray", *WEB),
    ),
    Room("services.verify", may=("synod", "services.backends", "services.scorers.base"), never=("torch", "ray", *WEB)),
    Room("services.warm", may=("synod", "services.scorer_settings", "services.models"), never=("ray", *WEB)),
    Room("services.models", may=("synod", "services.scorer_settings"), never=("ray", *HTTP, *WEB)),
    Room(  # the one room of the reward service that asks elsewhere: a judge behind a settings' url
        "services.models.judge",
        may=("synod", "services.scorer_settings", "services.models.rate_limit"),
        never=("torch", "ray", "transformers", *WEB),
    ),
    Room(
        "services.models.rate_limit",
        may=("synod", "services.scorer_settings"),
        never=("torch", "ray", "transformers", *HTTP, *WEB),
    ),
    Room("services.observability", may=("synod",), never=(*TELEMETRY, "torch", "ray", *HTTP, *WEB)),
    Room("services.observability.tracing", may=("synod", "services.settings"), never=("torch", "ray", *WEB)),
    Room("services.scorers.base", may=("synod", "services.isolation"), never=("torch", "ray", *WEB)),
    Room(
        "services.scorers.registry",
        may=(
            *("synod", "services.scorer_settings", "services.scorers.base", "services.scorers.custom"),
            *("services.child", "services.environments"),
        ),
        never=("torch", "ray", *WEB),
    ),
    *(
        Room(
            f"services.scorers.{scorer}",
            may=(
                *("synod", "services.scorer_settings", "services.models"),
                *("services.scorers.base", "services.scorers.image_text", "services.scorers.references"),
            ),
            never=("ray", *WEB),
        )
        for scorer in (
            *("tier", "der", "fer", "geneval", "custom", "jpeg", "psnr"),
            *("clip_i", "clip_t", "clip_direction", "pickscore", "hps", "aesthetic", "ocr", "image_reward", "hpsv3"),
        )
    ),
    *(
        Room(
            f"services.scorers.{shared}",
            may=("synod", "services.models", "services.scorers.base"),
            never=("torch", "ray", "transformers", *WEB),
        )
        for shared in ("image_text", "references")
    ),
    *(
        Room(
            f"services.scorers.{scorer}",
            may=(
                *("synod", "services.scorer_settings", "services.models"),
                *("services.scorers.base", "services.scorers.image_text"),
            ),
            never=("ray", *HTTP, *WEB),
        )
        for scorer in ("ber", "likelihood")
    ),
    *(
        Room(
            f"services.scorers.{scorer}",
            may=(
                *("synod", "services.scorer_settings", "services.models.judge", "services.scorers.base"),
                *("services.scorers.image_text", "services.scorers.verdicts"),
            ),
            never=("torch", "ray", "transformers", *HTTP, *WEB),
        )
        for scorer in ("judge", "dense_validity", "quality", "verdicts", "unified_reward", "geneval2")
    ),
    Room(
        "services.scorers.geneval.rules",
        may=("synod", "services.scorers.geneval.records"),
        never=("torch", "ray", "PIL", "transformers", *WEB),
    ),
    Room("services.scorers.replies", may=("synod",), never=("torch", "ray", "PIL", "transformers", *WEB)),
    *(
        Room(
            f"services.scorers.{scorer}",
            may=("synod", "services.scorer_settings", "services.scorers.base", "services.scorers.replies"),
            never=("torch", "ray", "transformers", *WEB),
        )
        for scorer in ("bleu", "recognition", "format", "reflection")
    ),
    Room(
        "services.gateway",
        may=("synod", "services.backends", "services.combine", "services.settings", "services.observability"),
        never=(*TELEMETRY, "torch", "ray", "transformers", "httpx", "requests", "aiohttp", "urllib", "http", "socket"),
    ),
    Room(
        "services.gateway.ports",
        may=("synod", "services.gateway", "services.settings"),
        never=(*TELEMETRY, "torch", "ray", "transformers", "httpx", "requests", "aiohttp", "urllib", "http"),
    ),
    Room("services.cluster", may=("synod", "services"), never=TELEMETRY),
    Room("services.__main__", may=("synod", "services"), never=("torch", *TELEMETRY)),
    Room("trainer.settings", may=("synod",), never=("torch", "ray", *WEB)),
    Room("trainer.types", may=("synod.contracts",), never=("ray", "httpx", *WEB)),
    Room("trainer.grpo", may=("trainer.types",), never=("ray", "transformers", *IO, *WEB)),
    Room("trainer.policy", may=("synod", "trainer.types"), never=("ray", "httpx", *WEB)),
    Room("trainer", may=("synod", "trainer"), never=("ray", *WEB)),
    Room("embedded", may=("synod", "services", "trainer"), never=()),
)


def sources() -> list[Path]:
    return sorted(p for room in HOUSE for p in (ROOT / room).rglob("*.py"))


def module_name(path: Path) -> str:
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def inside(module: str, room: str) -> bool:
    return module == room or module.startswith(room + ".")


def room_of(module: str) -> Room | None:
    found = [room for room in LAW if inside(module, room.name)]
    return max(found, key=lambda room: len(room.name)) if found else None


def test_no_room_stands_twice() -> None:
    names = [room.name for room in LAW]
    assert sorted(names) == sorted(set(names))


def imports(tree: ast.AST, module: str) -> Iterator[str]:
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{module}: relative import; the house imports absolutely"
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def violations(source: str, module: str) -> list[str]:
    room = room_of(module)
    if room is None:
        return [] if module in FOLDERS else [f"{module}: no room in the import law"]
    found = []
    for name in imports(ast.parse(source), module):
        if name.split(".")[0] in HOUSE:
            lawful = (*room.may, room.name)
            if not any(inside(name, allowed) for allowed in lawful):
                found.append(f"{module} (room {room.name}) imports {name}; it may import {lawful}")
        elif name.split(".")[0] in room.never:
            found.append(f"{module} (room {room.name}) imports {name}, refused there")
    return found


@pytest.mark.parametrize("path", sources(), ids=lambda p: module_name(p))
def test_every_module_keeps_the_import_law(path: Path) -> None:
    assert violations(path.read_text(), module_name(path)) == []


@pytest.mark.parametrize(
    ("module", "planted"),
    [
        ("synod.codec", "import torch"),
        ("synod.client", "from services.settings import load"),
        ("services.batching", "def f():\n    import ray"),
        ("services.isolation", "import torch"),
        ("services.combine", "from services.scorers.base import Scorer"),
        ("services.models.blip2", "from services.scorers import ber"),
        ("services.models.vlm", "import httpx"),
        ("services.models.judge", "import torch"),
        ("services.scorers.quality", "import httpx"),
        ("services.scorers.ber", "from services.scorers.der import build"),
        ("services.scorers.der", "import services.cluster.replica"),
        ("services.scorers.image_text", "from services.scorers.ber import Ber"),
        ("services.scorers.references", "import torch"),
        ("services.scorers.geneval.rules", "import torch"),
        ("services.scorers.replies", "from services.scorers.base import ScorerSpec"),
        ("services.scorers.bleu", "from services.scorers.recognition import build"),
        ("services.gateway.core", "from services.cluster.backend import RayBackend"),
        ("services.gateway.rest", "import torch.nn as nn"),
        ("services.gateway.decode", "from urllib.request import urlopen"),
        ("services.cluster.graph", "import embedded.world"),
        ("services.gateway.rest", "from opentelemetry import trace"),
        ("services.observability.tracing", "import ray"),
        ("synod.toml", "from pydantic import BaseModel"),
        ("synod.client.flows", "import httpx"),
        ("synod.adapters.verl", "import torch"),
        ("synod.adapters.items", "import asyncio"),
        ("synod.scoring.compare", "import httpx"),
        ("services.gateway.compat", "from urllib.request import urlopen"),
        ("synod.client.core", "def f():\n    import grpc"),
        ("synod.retry", "import asyncio"),
        ("services.gateway.rpc", "from services.cluster.backend import RayBackend"),
        ("trainer.settings", "import torch"),
        ("trainer.grpo.losses", "from trainer.settings import LossSettings"),
        ("trainer.grpo.losses", "from synod.client import SynodClient"),
        ("trainer.grpo.screen", "import logging"),
        ("trainer.policy.show_o", "from trainer.rewards import Service"),
        ("trainer.policy.maskgit", "from trainer.settings import SamplerSettings"),
        ("trainer.train", "from services.settings import load"),
        ("trainer.train", "import embedded.world"),
        ("services.newroom", "import json"),
    ],
)
def test_a_planted_violation_is_seen(module: str, planted: str) -> None:
    assert violations(planted, module)


@pytest.mark.slow
def test_gateway_and_contract_load_without_torch_and_ray() -> None:
    """The syntax tree sees direct imports; this sees the whole closure."""
    program = (
        "import sys, services.gateway.app, synod.cli, synod.client\n"
        "import synod.adapters.flow_grpo, synod.adapters.trl, synod.adapters.verl\n"
        "heavy = sorted({'torch', 'ray', 'transformers', 'trl', 'verl'} & set(sys.modules))\n"
        "sys.exit(f'loaded {heavy}' if heavy else 0)"
    )
    run = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stderr


@pytest.mark.slow
def test_gateway_loads_no_model_library_and_no_http_client() -> None:
    """Imports of imports count: `services.gateway` may load them no more than it may name them."""
    refused = {"torch", "ray", "transformers", "httpx", "requests", "aiohttp", "urllib3", "synod.client"}
    program = f"import sys, services.gateway.app\nsys.exit(str(sorted({refused} & set(sys.modules))))"
    run = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=False)
    assert run.stderr.strip() == "[]"
