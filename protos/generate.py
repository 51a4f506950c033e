"""Generate synod/v1 from reward.proto, into the folder given: `python protos/generate.py .` (`make proto`).

protoc writes two checks into its output: the protobuf runtime is at least protoc's version, and grpcio at least
grpcio-tools'. They are left out, because they refuse the older runtimes that trainers pin. The code itself needs
protobuf >= 4.25 and grpcio >= 1.64 (`_registered_method`): deploy/check_wheel.sh runs it on the lowest and the
highest version that pyproject.toml allows.
"""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

SCHEMA = "synod/v1/reward.proto"
CHECKS = {
    "reward_pb2.py": (
        r"^from google\.protobuf import runtime_version as _runtime_version\n",
        r"^_runtime_version\.ValidateProtobufRuntimeVersion\(\n(?: .*\n)+\)\n",
    ),
    "reward_pb2_grpc.py": (
        r"^import warnings\n",
        r"^GRPC_GENERATED_VERSION = (?s:.+?)\nif _version_not_supported:\n(?: .*\n)+\n",
    ),
}


def generate(out: Path) -> None:
    """Write synod/v1/reward_pb2{.py,.pyi,_grpc.py} under `out`."""
    outputs = [f"--{kind}_out={out}" for kind in ("python", "pyi", "grpc_python")]
    command = [sys.executable, "-m", "grpc_tools.protoc", f"-I{Path(__file__).parent}", *outputs, SCHEMA]
    subprocess.run(command, check=True)
    for name, checks in CHECKS.items():
        path = out / Path(SCHEMA).parent / name
        text = path.read_text()
        for check in checks:
            text, found = re.subn(check, "", text, flags=re.MULTILINE)
            assert found == 1, f"{name}: {found} matches of {check}; protoc writes its version checks differently now"
        path.write_text(text)


if __name__ == "__main__":
    generate(Path(sys.argv[1]))
