# The server and the checkpoint that ships, for any x86-64 or arm64 machine; docs/image.md says how to build, run and verify it.
#   docker build -t phiserve .                                      torch for the CPU
#   docker build -t phiserve:slim --target slim .                   no torch: the native engine only
#   docker build --build-arg TORCH_INDEX_URL=https://download.pytorch.org/whl/cu130 -t phiserve:cuda .
# A package index of your own: --secret id=pip_config,src=/etc/pip.conf
ARG PYTHON_IMAGE=python:3.11-slim

FROM ${PYTHON_IMAGE} AS app
# The image follows its base's security updates, so the compiler is not pinned; it stays in this stage.
# hadolint ignore=DL3008
RUN apt-get update \
    && apt-get install --yes --no-install-recommends g++ \
    && rm -rf /var/lib/apt/lists/*
WORKDIR /app
COPY serve ./serve
# Every x86-64 gets the portable, AVX2 and AVX-512 kernels; the library chooses among them when it is loaded.
RUN python -m serve.engine.native.build
COPY iit ./iit
COPY model_store ./model_store
COPY models ./models
COPY LICENSE ./
# A read-only file system cannot keep compiled modules later.
RUN python -m compileall -q iit model_store serve

FROM ${PYTHON_IMAGE} AS venv-slim
ENV PIP_DISABLE_PIP_VERSION_CHECK=1 PIP_ROOT_USER_ACTION=ignore
COPY pyproject.toml /build/
# What serving needs is pyproject's list; torch and transformers are asked for by the other engine only.
RUN python -c "import tomllib; \
names = tomllib.load(open('/build/pyproject.toml', 'rb'))['project']['dependencies']; \
slim = [name for name in names if not name.startswith(('torch', 'transformers'))]; \
open('/build/full.txt', 'w').write('\n'.join(names)); \
open('/build/slim.txt', 'w').write('\n'.join(slim))" \
    && python -m venv --without-pip /opt/venv
RUN --mount=type=secret,id=pip_config,target=/etc/pip.conf --mount=type=cache,target=/root/.cache/pip \
    python -m pip --python /opt/venv/bin/python install --requirement /build/slim.txt

FROM venv-slim AS venv-full
ARG TORCH_INDEX_URL=https://download.pytorch.org/whl/cpu
RUN --mount=type=secret,id=pip_config,target=/etc/pip.conf --mount=type=cache,target=/root/.cache/pip \
    python -m pip --python /opt/venv/bin/python install --requirement /build/full.txt \
    ${TORCH_INDEX_URL:+--extra-index-url "${TORCH_INDEX_URL}"}
# Torch's own tests and C++ headers are a fifth of it, and nothing here imports them.
WORKDIR /opt/venv/lib/python3.11/site-packages/torch
RUN rm -rf test include && find bin -type f ! -name torch_shm_manager -delete

FROM ${PYTHON_IMAGE} AS runtime
LABEL org.opencontainers.image.title="phiserve" \
      org.opencontainers.image.description="Serves a causal language model over HTTP with the quality of its answers watched" \
      org.opencontainers.image.licenses="Apache-2.0"
RUN useradd --uid 10001 --user-group --no-create-home --home-dir /tmp --shell /usr/sbin/nologin phiserve
# Only /tmp is written to: sockets and metric files, below 10 MB.
ENV PATH=/opt/venv/bin:$PATH \
    HOME=/tmp \
    HF_HUB_OFFLINE=1 \
    PYTHONDONTWRITEBYTECODE=1 \
    PYTHONUNBUFFERED=1 \
    PHISERVE_HOST=0.0.0.0
WORKDIR /app
USER 10001:10001
EXPOSE 8000
HEALTHCHECK --interval=10s --timeout=5s --start-period=60s --retries=3 \
    CMD ["python", "-I", "-S", "-c", "import os, urllib.request as u; u.urlopen('http://127.0.0.1:' + os.environ.get('PHISERVE_PORT', '8000') + '/livez', timeout=4)"]
ENTRYPOINT ["python", "-m", "serve"]

FROM runtime AS slim
ENV PHISERVE_RUNNER=native
COPY --from=venv-slim /opt/venv /opt/venv
COPY --from=app /app /app
ARG VERSION=0.1.0
ARG REVISION=unknown
LABEL org.opencontainers.image.version="${VERSION}" org.opencontainers.image.revision="${REVISION}"

# The last stage is the one that a plain build makes.
FROM runtime AS full
COPY --from=venv-full /opt/venv /opt/venv
COPY --from=app /app /app
ARG VERSION=0.1.0
ARG REVISION=unknown
LABEL org.opencontainers.image.version="${VERSION}" org.opencontainers.image.revision="${REVISION}"
