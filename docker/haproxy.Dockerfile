# syntax=docker/dockerfile:1
# Debian's HAProxy with the configuration of docker/haproxy.cfg, for two replicas of `piston serve`.
#
#   docker build -f docker/haproxy.Dockerfile -t piston-haproxy .
#   docker compose -f docker/compose.serve.yaml up
ARG BASE=docker.io/library/debian:bookworm-slim

FROM ${BASE}
LABEL org.opencontainers.image.title="piston-haproxy" \
      org.opencontainers.image.description="HAProxy before two replicas of piston serve, by session" \
      org.opencontainers.image.base.name="docker.io/library/debian:bookworm-slim"
# hadolint ignore=DL3008
RUN apt-get update && apt-get install -y --no-install-recommends haproxy && rm -rf /var/lib/apt/lists/*
COPY docker/haproxy.cfg /etc/haproxy/haproxy.cfg
ENV PISTON_BIND=:8000 PISTON_REPLICA_1=piston-1:8000 PISTON_REPLICA_2=piston-2:8000
USER 10001:10001
WORKDIR /
# SIGUSR1 finishes what runs, SIGTERM would cut it off; compose gives it time with stop_grace_period.
STOPSIGNAL SIGUSR1
HEALTHCHECK NONE
ENTRYPOINT ["haproxy", "-W", "-f", "/etc/haproxy/haproxy.cfg"]
CMD ["-q"]
