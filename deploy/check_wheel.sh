#!/usr/bin/env bash
# Check the client's wheel: `deploy/check_wheel.sh [FOLDER]` (default: a temporary one). Needs the package index.
#   1. For Python 3.10 to 3.14, every dependency resolves to a published wheel.
#   2. On Python 3.11, tests/unit/synod passes with the lowest and with the highest version of every dependency that
#      pyproject.toml allows. Tests that need torch are skipped.
# The server of these tests runs in the same environment, so the packages that it needs are installed too.
set -euo pipefail
cd "$(dirname "$0")/.."
work=${1:-$(mktemp -d)}
python=${PYTHON:-python3.11}
lowest=(numpy==1.26.0 pillow==10.4.0 msgpack==1.0.5 protobuf==4.25.0 httpx==0.27.0 grpcio==1.64.0 rich==13.0.0 tqdm==4.66.0)
server=(fastapi pydantic uvicorn prometheus-client opentelemetry-api opentelemetry-sdk pytest pytest-asyncio pytest-timeout hypothesis scipy)

"$python" -m pip wheel --quiet --no-deps --wheel-dir "$work/dist" .
rm -rf build ./*.egg-info
wheel=$(ls "$work"/dist/synod-*.whl)

for version in 3.10 3.11 3.12 3.13 3.14; do
  echo "== Python $version resolves to"
  "$python" -m pip install --dry-run --ignore-installed --quiet --python-version "$version" --only-binary=:all: \
    --target "$work/none" --report "$work/$version.json" "${wheel}[cli]"
  "$python" -c 'import json, sys; print(*sorted("=".join((i["metadata"]["name"], i["metadata"]["version"])) for i in json.load(open(sys.argv[1]))["install"]))' "$work/$version.json"
done

for end in lowest highest; do
  echo "== tests/unit/synod on the $end versions"
  "$python" -m venv "$work/$end"
  pins=("${wheel}[cli]")
  [ "$end" = highest ] || pins+=("${lowest[@]}")
  "$work/$end/bin/pip" install --quiet --only-binary=:all: "${pins[@]}"
  "$work/$end/bin/pip" list --format=freeze > "$work/$end.txt"
  grep -viE '^(pip|setuptools|synod|commonmark)=' "$work/$end.txt" > "$work/$end.pins"
  "$work/$end/bin/pip" install --quiet --only-binary=:all: --constraint "$work/$end.pins" "${server[@]}"
  health=$(grep -i '^grpcio=' "$work/$end.pins" | cut -d= -f3)
  [ "$end" = highest ] || health=1.62.3 # that of 1.64 needs protobuf 5; grpcio and protobuf stay as they are
  "$work/$end/bin/pip" install --quiet --no-deps "grpcio-health-checking<=$health" "grpcio-reflection<=$health"
  OMP_NUM_THREADS=1 "$work/$end/bin/python" -m pytest tests/unit/synod -p no:cacheprovider \
    --override-ini=filterwarnings=default --ignore tests/unit/synod/adapters
done
