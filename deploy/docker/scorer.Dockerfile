# The whole reward service: scorers with torch, the embedded models, and the gateway. From the repository's root:
#   docker build -f deploy/docker/scorer.Dockerfile -t synod-scorer:0.1.0 .
FROM python:3.11-slim-bookworm AS build
WORKDIR /build
COPY pyproject.toml constraints.txt README.md ./
COPY synod synod
RUN python -m venv /opt/synod \
 && /opt/synod/bin/pip install --no-cache-dir --constraint constraints.txt '.[service]'

FROM python:3.11-slim-bookworm
COPY --from=build /opt/synod /opt/synod
RUN mkdir -p /run/synod /models && chown 10001:10001 /run/synod /models
COPY services /app/services
COPY embedded/weights /app/embedded/weights
COPY embedded/data /app/embedded/data
COPY embedded/golden.json /app/embedded/golden.json
COPY deploy /app/deploy
ENV PATH=/opt/synod/bin:$PATH PYTHONPATH=/app PYTHONDONTWRITEBYTECODE=1 PYTHONUNBUFFERED=1 HOME=/tmp RAY_USAGE_STATS_ENABLED=0
ENV NVIDIA_VISIBLE_DEVICES=all NVIDIA_DRIVER_CAPABILITIES=compute,utility
WORKDIR /app
USER 10001:10001
EXPOSE 8000 9000
HEALTHCHECK --interval=10s --timeout=6s --retries=3 --start-period=300s \
  CMD ["python", "-c", "import urllib.request as u; u.urlopen('http://127.0.0.1:8000/readyz', timeout=5)"]
CMD ["python", "-m", "services", "up", "/app/deploy/configs/embedded.toml", "--run-dir", "/run/synod"]
