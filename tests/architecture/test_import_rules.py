"""The import rules of docs/architecture.md, checked from the syntax tree (lazy imports too) and by loading."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PROJECT = ("synod", "services", "trainer", "embedded")
WEB = ("fastapi", "starlette", "uvicorn")
HTTP = ("aiohttp", "http", "httpx", "requests", "urllib.request")
NETWORK = ("asyncio", "grpc", "httpx", "socket", "subprocess", "threading")
IO = ("httpx", "io", "json", "logging", "os", "pathlib", "requests", "shutil", "socket", "subprocess", "tqdm")
MODELS = ("torch", "transformers", "diffusers")
RECORDS = ("services.models.types", "services.models.settings", "services.settings_types")


@dataclass(frozen=True)
class Rule:
    """What the modules that match `pattern` may import.

    Of our packages: `may` anywhere, `lazily` inside a function or under TYPE_CHECKING, and the rule's own modules (the
    pattern's group `own` where it has one). Of other packages: all but `never`.
    """

    pattern: str
    may: tuple[str, ...]
    never: tuple[str, ...] = ()
    lazily: tuple[str, ...] = ()


# The first rule whose pattern matches a module applies to it.
RULES = (
    Rule(
        r"synod\.(values|retry|replies|client\.(core|flows|chunks|references)|adapters\.items|scoring\.(compare|geneval|recall))",
        may=("synod",),
        never=("torch", "ray", "pydantic", *NETWORK, *WEB),
    ),
    Rule(r"synod(\..+)?", may=(), never=("torch", "ray", "pydantic", *WEB)),
    Rule(r"services\.environment_probe", may=(), never=("numpy", "torch", "ray", "pydantic", *WEB)),
    Rule(
        r"services\.(batching|batch_limit|isolation|combine|backends)",
        may=("synod", "services.scorers.base"),
        never=("torch", "ray", *WEB),
    ),
    Rule(r"services\.models\.(types|settings)", may=("synod", *RECORDS), never=("ray", *MODELS, *HTTP, *WEB)),
    Rule(  # the only module of the service that sends requests elsewhere
        r"services\.models\.judge", may=("synod", *RECORDS, "services.models.rate_limit"), never=("ray", *MODELS, *WEB)
    ),
    Rule(r"(?P<own>services\.models)(\..+)?", may=("synod", *RECORDS), never=("ray", *HTTP, *WEB)),
    Rule(r"services\.scorers\.base", may=("synod", "services.isolation"), never=("ray", *MODELS, *WEB)),
    Rule(
        r"services\.scorers(\.registry)?",
        may=("synod", "services.scorers", "services.settings_types", "services.child", "services.environments"),
        never=("ray", *MODELS, *HTTP, *WEB),
    ),
    Rule(
        r"(?P<own>services\.scorers\.\w+)(\..+)?",
        may=("synod", *RECORDS, "services.scorers.base", "services.scorers.shared"),
        lazily=("services.models",),
        never=("ray", *MODELS, *HTTP, *WEB),
    ),
    Rule(
        r"(?P<own>services\.gateway)(\..+)?",
        may=("synod", "services.backends", "services.combine", "services.settings", "services.observability"),
        never=("ray", "opentelemetry", *MODELS, *HTTP),
    ),
    Rule(
        r"services\.observability\.tracing",
        may=("synod", "services.settings", "services.observability"),
        never=("ray", *MODELS, *WEB),
    ),
    Rule(
        r"(?P<own>services\.observability)(\..+)?",
        may=("synod",),
        never=("ray", "opentelemetry", *MODELS, *HTTP, *WEB),
    ),
    Rule(r"(?P<own>services)\.(cluster\..+|__main__|cluster)", may=("synod",), never=("opentelemetry",)),
    Rule(
        r"services(\.(?!gateway|cluster|models|scorers|observability)\w+)?",
        may=("synod", *RECORDS, "services.scorers.registry", "services.scorers.base", "services.scorers.custom"),
        lazily=("services.models",),
        never=("ray", *HTTP, *WEB),
    ),
    Rule(r"(?P<own>trainer\.settings)(\..+)?", may=("synod",), never=("torch", "ray", *WEB)),
    Rule(r"trainer\.types", may=("synod.contracts",), never=("ray", "httpx", *WEB)),
    Rule(r"(?P<own>trainer\.algorithms)(\..+)?", may=("trainer.types",), never=("ray", "transformers", *IO, *WEB)),
    Rule(
        r"trainer\.policy\.registry",
        may=("synod.contracts", "synod.errors", "trainer.personalize.files", "trainer.policy", "trainer.settings"),
        never=("ray", "httpx", "diffusers", *WEB),
    ),
    Rule(  # the only package with diffusers
        r"(?P<own>trainer\.policy\.flow)(\..+)?",
        may=("synod", "trainer.types", "trainer.policy.base", "trainer.policy.lora", "trainer.policy.weights"),
        never=("ray", "httpx", "torch.distributed", *WEB),
    ),
    Rule(
        r"(?P<own>trainer\.policy\.\w+)(\..+)?",
        may=("synod", "trainer.types", "trainer.policy.base", "trainer.policy.lora", "trainer.policy.weights"),
        never=("ray", "httpx", "torch.distributed", "diffusers", *WEB),
    ),
    Rule(r"trainer\.launch", may=("synod", "trainer"), never=("torch.distributed", "diffusers", *WEB)),
    Rule(
        r"(?P<own>trainer\.distributed)(\..+)?",
        may=("synod.errors", "trainer.clock", "trainer.errors"),
        never=("ray", "diffusers", *WEB),
    ),
    Rule(r"(?P<own>trainer)(\..+)?", may=("synod",), never=("ray", "torch.distributed", "diffusers", *WEB)),
    Rule(r"(?P<own>embedded)(\..+)?", may=("synod", "services", "trainer")),
)

# Importing the modules on the left, with everything that they import in turn, must not load those on the right.
LOADS = {
    "services.settings": ("ray", *MODELS, "open_clip", "rapidocr", "onnxruntime", *WEB, "aiohttp", "httpx", "requests"),
    "services.gateway.app": ("ray", *MODELS, "aiohttp", "httpx", "requests"),
    "synod.cli synod.client synod.adapters.flow_grpo synod.adapters.trl synod.adapters.verl": (
        *("ray", *MODELS, "trl", "verl", "pydantic"),
        *WEB,
    ),
    "trainer.settings": ("ray", *MODELS),
    "trainer.run": ("ray", "peft", "diffusers"),  # peft only when adapters are on, diffusers only for its pipelines
}


def sources() -> list[Path]:
    return sorted(path for package in PROJECT for path in (ROOT / package).rglob("*.py"))


def module_name(path: Path) -> str:
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def is_within(module: str, package: str) -> bool:
    return module == package or module.startswith(package + ".")


def imports(node: ast.AST, lazy: bool = False) -> Iterator[tuple[str, bool]]:
    """Yield each imported name, and whether it is imported only inside a function or under TYPE_CHECKING."""
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.Import):
            yield from ((alias.name, lazy) for alias in child.names)
        elif isinstance(child, ast.ImportFrom):
            assert child.level == 0, f"relative import of {child.module}: import absolutely"
            yield from ((f"{child.module}.{alias.name}", lazy) for alias in child.names)
        else:
            delays = isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef) or (
                isinstance(child, ast.If) and ast.unparse(child.test) == "TYPE_CHECKING"
            )
            yield from imports(child, lazy or delays)


def violations(source: str, module: str) -> list[str]:
    rule, match = next((rule, match) for rule in RULES if (match := re.fullmatch(rule.pattern, module)))
    own = match.groupdict().get("own")
    found = []
    for name, lazy in imports(ast.parse(source)):
        if name.split(".")[0] not in PROJECT:
            allowed = not any(is_within(name, package) for package in rule.never)
        elif own is not None and is_within(name, own):
            allowed = True
        else:
            packages = (*rule.may, *(rule.lazily if lazy else ()))
            parent = name.rpartition(".")[0]
            peers = own is None and any(re.fullmatch(rule.pattern, one) for one in (name, parent))
            allowed = peers or any(is_within(name, package) for package in packages)
        if not allowed:
            found.append(f"{module} imports {name}; its rule is {rule}")
    return found


@pytest.mark.parametrize("path", sources(), ids=lambda path: module_name(path))
def test_module_follows_the_import_rules(path: Path) -> None:
    assert violations(path.read_text(), module_name(path)) == []


@pytest.mark.parametrize(
    ("module", "planted"),
    [
        ("synod.codec", "import torch"),
        ("synod.client", "from services.settings import load"),
        ("synod.toml", "from pydantic import BaseModel"),
        ("synod.client.flows", "import httpx"),
        ("synod.client.core", "def f():\n    import grpc"),
        ("synod.retry", "import asyncio"),
        ("synod.adapters.verl", "import torch"),
        ("synod.adapters.items", "import asyncio"),
        ("synod.scoring.compare", "import httpx"),
        ("services.batching", "def f():\n    import ray"),
        ("services.isolation", "import torch"),
        ("services.combine", "from services.scorers.registry import spec"),
        ("services.models.types", "import torch"),
        ("services.models.settings", "from services.models.clip import build"),
        ("services.models.blip2", "from services.scorers import ber"),
        ("services.models.vlm", "import httpx"),
        ("services.models.judge", "import torch"),
        ("services.scorers.quality", "import httpx"),
        ("services.scorers.ber", "from services.scorers.der import build"),
        ("services.scorers.ber", "from services.models import blip2"),
        ("services.scorers.ber", "class Ber:\n    from services.models import blip2"),
        ("services.scorers.der", "import services.cluster.hosted_scorer"),
        ("services.scorers.shared.image_text", "from services.scorers.ber import Ber"),
        ("services.scorers.shared.references", "import torch"),
        ("services.scorers.geneval.rules", "import torch"),
        ("services.scorers.bleu", "from services.scorers.recognition import build"),
        ("services.scorers.a_new_one", "from services.settings import Settings"),
        ("services.gateway.core", "from services.cluster.backend import RayBackend"),
        ("services.gateway.core", "from services.scorers.base import Scorer"),
        ("services.gateway.rest", "import torch.nn as nn"),
        ("services.gateway.decode", "from urllib.request import urlopen"),
        ("services.gateway.rest", "from opentelemetry import trace"),
        ("services.cluster.graph", "import embedded.world"),
        ("services.observability.tracing", "import ray"),
        ("services.a_new_one", "from services.gateway import app"),
        ("trainer.settings", "import torch"),
        ("trainer.algorithms.losses", "from trainer.settings import LossSettings"),
        ("trainer.algorithms.losses", "from synod.client import SynodClient"),
        ("trainer.algorithms.screen", "import logging"),
        ("trainer.policy.show_o", "from trainer.rewards.service import Service"),
        ("trainer.policy.show_o.maskgit", "from trainer.settings import SamplerSettings"),
        ("trainer.policy.show_o.policy", "import diffusers"),
        ("trainer.policy.registry", "def f():\n    import diffusers"),
        ("trainer.policy.flow.policy", "from trainer.policy.show_o.policy import ShowO"),
        ("trainer.train", "from services.settings import load"),
        ("trainer.train", "import embedded.world"),
        ("trainer.train", "import torch.distributed as dist"),
    ],
)
def test_planted_violation_is_found(module: str, planted: str) -> None:
    assert violations(planted, module)


@pytest.mark.slow
@pytest.mark.parametrize("modules", LOADS)
def test_loading_pulls_in_no_refused_library(modules: str) -> None:
    program = f"import sys, {modules.replace(' ', ', ')}\nprint(*sorted({set(LOADS[modules])!r} & set(sys.modules)))"
    run = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=False)
    assert (run.returncode, run.stdout.strip()) == (0, ""), run.stderr
