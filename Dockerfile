# syntax=docker/dockerfile:1
# The server in an image, without a model: docker build -t multiflora:cuda .
# For machines without a GPU: docker build --build-arg VARIANT=cpu -t multiflora:cpu .
# docs/deployment.md says how it is run.

ARG VARIANT=cuda
ARG UBUNTU=24.04
# The release that torch's wheels of constraints.txt are made for.
ARG CUDA=13.0.1

FROM ubuntu:${UBUNTU} AS build
ARG VARIANT
# Optional parts of pyproject.toml, with commas.
ARG EXTRAS=otel
# The distribution's updates are wanted: none of its packages is pinned.
# hadolint ignore=DL3008
RUN apt-get update \
    && apt-get install -y --no-install-recommends g++ python3-dev python3-venv \
    && rm -rf /var/lib/apt/lists/*
RUN python3 -m venv /opt/multiflora
ENV PATH=/opt/multiflora/bin:$PATH \
    PIP_CACHE_DIR=/var/cache/pip
WORKDIR /src

# By itself, because it is nearly all of the image and changes least.
COPY constraints.txt ./
# pip's cache is mounted: it is no part of the image.
# hadolint ignore=DL3042
RUN --mount=type=cache,target=/var/cache/pip \
    if [ "$VARIANT" = cpu ]; then set -- --extra-index-url https://download.pytorch.org/whl/cpu; fi \
    && pip install -c constraints.txt "$@" torch

COPY pyproject.toml README.md LICENSE ./
COPY multiflora multiflora
COPY kernels kernels
COPY adapters adapters
COPY engine engine
COPY server server
# hadolint ignore=DL3042
RUN --mount=type=cache,target=/var/cache/pip \
    pip install -c constraints.txt ".[$EXTRAS]"
# -P: the core is built beside the installed source, not here.
RUN python -P -c "from multiflora.kernels.cpu_ops.build import main; main()"
COPY deploy/image/launcher.py deploy/image/launcher.py
RUN mkdir /opt/triton \
    && if [ "$VARIANT" = cuda ]; then TRITON_CACHE_DIR=/opt/triton python deploy/image/launcher.py; fi

# "base" holds the CUDA runtime; cuBLAS and the other libraries come with torch's wheels.
FROM nvidia/cuda:${CUDA}-base-ubuntu${UBUNTU} AS runtime-cuda

FROM ubuntu:${UBUNTU} AS runtime-cpu

# hadolint ignore=DL3006
FROM runtime-${VARIANT} AS server
LABEL org.opencontainers.image.title=multiflora \
      org.opencontainers.image.description="One NF4 base, many LoRA adapters: served, swapped, merged and trained" \
      org.opencontainers.image.licenses=Apache-2.0 \
      org.opencontainers.image.source=https://github.com/multiflora/multiflora
# hadolint ignore=DL3008
RUN apt-get update \
    && apt-get install -y --no-install-recommends libgomp1 python3 \
    && rm -rf /var/lib/apt/lists/* \
    && groupadd --gid 10001 multiflora \
    && useradd --uid 10001 --gid 10001 --home-dir /data --no-create-home --shell /usr/sbin/nologin multiflora \
    && install --directory --owner=10001 --group=10001 --mode=0700 /data
COPY --from=build /opt/multiflora /opt/multiflora
COPY --from=build /opt/triton /opt/triton
COPY --chmod=0755 deploy/image/entrypoint.sh /opt/entrypoint.sh
# All that is ever written is below /data, and for a moment below /tmp.
ENV PATH=/opt/multiflora/bin:$PATH \
    HOME=/data \
    HF_HOME=/data/huggingface \
    TRITON_CACHE_DIR=/data/triton \
    MPLCONFIGDIR=/tmp/matplotlib \
    MULTIFLORA_DATA_DIR=/data \
    MULTIFLORA_HOST=0.0.0.0 \
    PYTHONUNBUFFERED=1
USER 10001:10001
WORKDIR /data
VOLUME /data
EXPOSE 8000
# /live, as a server that loads its base or has a full queue is not to be restarted for that.
HEALTHCHECK --interval=15s --timeout=5s --start-period=30s --retries=3 \
    CMD ["python", "-c", "import http.client, os; probe = http.client.HTTPConnection('127.0.0.1', int(os.environ.get('MULTIFLORA_PORT', 8000)), timeout=4); probe.request('GET', '/live'); raise SystemExit(probe.getresponse().status != 200)"]
ENTRYPOINT ["/opt/entrypoint.sh"]
CMD ["serve"]
