# The trainer, and Ray's own programs for a RayJob. From the repository's root:
#   docker build -f deploy/docker/trainer.Dockerfile -t synod-trainer:0.1.0 .
FROM python:3.11-slim-bookworm AS build
WORKDIR /build
COPY pyproject.toml constraints.txt README.md ./
COPY synod synod
RUN python -m venv /opt/synod \
 && /opt/synod/bin/pip install --no-cache-dir --constraint constraints.txt '.[trainer,job]'

FROM python:3.11-slim-bookworm
COPY --from=build /opt/synod /opt/synod
RUN mkdir -p /checkpoints && chown 10001:10001 /checkpoints
COPY trainer /app/trainer
COPY embedded/weights /app/embedded/weights
COPY embedded/data /app/embedded/data
COPY deploy /app/deploy
ENV PATH=/opt/synod/bin:$PATH PYTHONPATH=/app PYTHONDONTWRITEBYTECODE=1 PYTHONUNBUFFERED=1 HOME=/tmp RAY_USAGE_STATS_ENABLED=0
ENV NVIDIA_VISIBLE_DEVICES=all NVIDIA_DRIVER_CAPABILITIES=compute,utility
WORKDIR /app
USER 10001:10001
# No health check: the trainer has no port, and it may wait long for a service that is unavailable.
HEALTHCHECK NONE
CMD ["python", "-m", "trainer", "/app/deploy/configs/embedded.toml"]
