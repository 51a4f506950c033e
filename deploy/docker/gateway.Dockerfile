# The gateway: Ray Serve and the web framework, without torch. From the repository's root:
#   docker build -f deploy/docker/gateway.Dockerfile -t synod-gateway:0.1.0 .
FROM python:3.11-slim-bookworm AS build
WORKDIR /build
COPY pyproject.toml constraints.txt README.md ./
COPY synod synod
RUN python -m venv /opt/synod \
 && /opt/synod/bin/pip install --no-cache-dir --constraint constraints.txt '.[gateway]'

FROM python:3.11-slim-bookworm
COPY --from=build /opt/synod /opt/synod
COPY services /app/services
COPY embedded/data/samples /app/embedded/data/samples
ENV PATH=/opt/synod/bin:$PATH PYTHONPATH=/app PYTHONDONTWRITEBYTECODE=1 PYTHONUNBUFFERED=1 HOME=/tmp RAY_USAGE_STATS_ENABLED=0
WORKDIR /app
USER 10001:10001
EXPOSE 8000 9000
HEALTHCHECK --interval=10s --timeout=6s --retries=3 --start-period=120s \
  CMD ["python", "-c", "import urllib.request as u; u.urlopen('http://127.0.0.1:8000/healthz', timeout=5)"]
CMD ["synod", "--help"]
