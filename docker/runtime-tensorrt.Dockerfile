# syntax=docker/dockerfile:1
# The runtime on NVIDIA GPUs. The TensorRT packages are NVIDIA's and are installed from the index when you build the image:
# what you may do with the image is between you and their licence.
#
#   docker build -f docker/runtime-tensorrt.Dockerfile -t piston-runtime-tensorrt .
#   docker run --rm --gpus all --read-only -v "$PWD/bundles/smollm2:/bundle:ro" piston-runtime-tensorrt run /bundle --prompt Hello
#
# EXTRAS: cuda,trt (TensorRT), cuda,rtx (TensorRT-RTX), or cuda,trt-lean: TensorRT's lean runtime, a tenth of its size, for plans of
# `piston build --version-compatible`. TensorRT's own wheels bring the CUDA libraries they need, so BASE may be any image with Python whose
# container gets the driver from the NVIDIA container toolkit.
ARG BASE=docker.io/nvidia/cuda:13.0.1-base-ubuntu24.04
ARG INSTALLER=${BASE}

FROM ${INSTALLER} AS python
# CUDA base images have no Python; bases that have one skip this.
SHELL ["/bin/bash", "-o", "pipefail", "-c"]
# hadolint ignore=DL3008
RUN if ! command -v python3 >/dev/null; then \
        apt-get update && apt-get install -y --no-install-recommends python3 python3-pip && rm -rf /var/lib/apt/lists/*; \
    fi

FROM python AS installer
ARG EXTRAS=cuda,trt
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
    python3 -m pip install --disable-pip-version-check --target /opt/piston --constraint constraints.txt ".[ort,$EXTRAS]" \
    && python3 docker/check_install.py /opt/piston --write-sbom /opt/piston/sbom.cdx.json

FROM ${BASE}
SHELL ["/bin/bash", "-o", "pipefail", "-c"]
# hadolint ignore=DL3008
RUN if ! command -v python3 >/dev/null; then \
        apt-get update && apt-get install -y --no-install-recommends python3 && rm -rf /var/lib/apt/lists/*; \
    fi
LABEL org.opencontainers.image.title="piston-runtime-tensorrt" \
      org.opencontainers.image.description="Runs Piston bundles on NVIDIA GPUs with TensorRT or TensorRT-RTX" \
      org.opencontainers.image.base.name="docker.io/nvidia/cuda:13.0.1-base-ubuntu24.04"
COPY --from=installer /opt/piston /opt/piston
ENV PYTHONPATH=/opt/piston PYTHONDONTWRITEBYTECODE=1 PYTHONUNBUFFERED=1 ORT_DISABLE_TELEMETRY=1 \
    NVIDIA_VISIBLE_DEVICES=all NVIDIA_DRIVER_CAPABILITIES=compute,utility
USER 10001:10001
WORKDIR /
STOPSIGNAL SIGTERM
HEALTHCHECK --interval=5m --timeout=30s CMD ["python3", "-m", "piston.cli.main", "inspect", "/bundle", "--json"]
ENTRYPOINT ["python3", "-m", "piston.cli.main"]
CMD ["--help"]
