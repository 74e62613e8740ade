# syntax=docker/dockerfile:1
# Every stage: export, calibrate, build, make. PyTorch is most of it: docker/README.md says how to take the one without CUDA.
#
#   docker build -f docker/build.Dockerfile -t piston-build .
#   docker run --rm -v "$PWD:/work" piston-build make recipe.toml
#
# EXTRAS may add engine compilers: --build-arg EXTRAS=export,rtx
ARG BASE=docker.io/library/python:3.11-slim-bookworm
ARG INSTALLER=${BASE}

FROM ${INSTALLER} AS installer
SHELL ["/bin/bash", "-o", "pipefail", "-c"]
# hadolint ignore=DL3008
RUN apt-get update && apt-get install -y --no-install-recommends g++ && rm -rf /var/lib/apt/lists/*
ARG EXTRAS=export
# A package index beside those that pip is configured for, such as PyTorch's own of builds without CUDA.
ARG TORCH_INDEX=
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
RUN --mount=type=secret,id=pip-conf,target=/etc/pip.conf \
    --mount=type=cache,target=/root/.cache/pip \
    python3 -m pip install --disable-pip-version-check --target /opt/piston --constraint constraints.txt \
        ${TORCH_INDEX:+--extra-index-url "$TORCH_INDEX"} ".[$EXTRAS]" \
    && python3 docker/check_install.py /opt/piston --allow-torch --write-sbom /opt/piston/sbom.cdx.json
# Piston's own kernels, for engines of the target ort-cpu:avx512.
RUN if [ "$(uname -m)" = x86_64 ]; then PYTHONPATH=/opt/piston python3 -m piston.runtime.kernels; fi

FROM ${BASE}
LABEL org.opencontainers.image.title="piston-build" \
      org.opencontainers.image.description="Exports, calibrates and builds language models with Piston" \
      org.opencontainers.image.base.name="docker.io/library/python:3.11-slim-bookworm"
COPY --from=installer /opt/piston /opt/piston
ENV PYTHONPATH=/opt/piston PYTHONDONTWRITEBYTECODE=1 PYTHONUNBUFFERED=1 ORT_DISABLE_TELEMETRY=1 HOME=/work
USER 10001:10001
WORKDIR /work
STOPSIGNAL SIGTERM
HEALTHCHECK NONE
ENTRYPOINT ["python3", "-m", "piston.cli.main"]
CMD ["--help"]
