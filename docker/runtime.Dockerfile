# syntax=docker/dockerfile:1
# The CPU runtime: Python, piston[ort] and piston[serve]. No PyTorch, no compiler, no package manager, no shell needed.
#
#   docker build -f docker/runtime.Dockerfile -t piston-runtime .
#   docker run --rm --read-only -v "$PWD/bundles/smollm2:/bundle:ro" piston-runtime run /bundle --chat --prompt Hello
#   docker run --rm --read-only -p 8000:8000 -v "$PWD/bundles/smollm2:/bundle:ro" piston-runtime \
#     serve /bundle --host 0.0.0.0
#
# Releases pin the base by digest: --build-arg BASE=docker.io/library/python:3.11-slim-bookworm@sha256:...
# INSTALLER needs pip and the same Python as BASE, which needs neither pip nor a shell.
ARG BASE=docker.io/library/python:3.11-slim-bookworm
ARG INSTALLER=${BASE}

FROM ${INSTALLER} AS installer
SHELL ["/bin/bash", "-o", "pipefail", "-c"]
# hadolint ignore=DL3008
RUN apt-get update && apt-get install -y --no-install-recommends g++ && rm -rf /var/lib/apt/lists/*
WORKDIR /src
COPY pyproject.toml constraints.txt README.md ./
COPY bench bench
COPY calibration calibration
COPY checkpoint checkpoint
COPY cli cli
COPY core core
COPY data data
COPY distillation distillation
COPY engines engines
COPY evaluation evaluation
COPY explanation explanation
COPY export export
COPY graph graph
COPY pipeline pipeline
COPY runtime runtime
COPY serving serving
COPY docker/check_install.py docker/check_install.py
# pip.conf is a secret because an index of one's own often has a password in it.
RUN --mount=type=secret,id=pip-conf,target=/etc/pip.conf \
    --mount=type=cache,target=/root/.cache/pip \
    python3 -m pip install --disable-pip-version-check --target /opt/piston --constraint constraints.txt '.[ort,serve]' \
    && python3 docker/check_install.py /opt/piston --write-sbom /opt/piston/sbom.cdx.json
# Piston's own kernels, for engines of the target ort-cpu:avx512.
RUN if [ "$(uname -m)" = x86_64 ]; then PYTHONPATH=/opt/piston python3 -m piston.runtime.kernels; fi

FROM ${BASE}
LABEL org.opencontainers.image.title="piston-runtime" \
      org.opencontainers.image.description="Runs Piston bundles on CPUs with ONNX Runtime" \
      org.opencontainers.image.base.name="docker.io/library/python:3.11-slim-bookworm"
COPY --from=installer /opt/piston /opt/piston
ENV PYTHONPATH=/opt/piston PYTHONDONTWRITEBYTECODE=1 PYTHONUNBUFFERED=1 ORT_DISABLE_TELEMETRY=1
USER 10001:10001
WORKDIR /
STOPSIGNAL SIGTERM
# Of `serve`: does the engine still step? Other verbs end by themselves.
HEALTHCHECK --interval=30s --timeout=10s --start-period=60s CMD ["python3", "-m", "piston.serving.health"]
ENTRYPOINT ["python3", "-m", "piston.cli.main"]
CMD ["--help"]
